#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""rcu_code.py INCLUDE_DIR - what compilers make of the inline read side (TAP).

With -O3, alone and after link-time optimisation, for each compiler that is here: a fence after
a cold reader's store, a release store at the end of a section, an ordered load for each
gr_rcu_dereference(), as many loads as the program has. A header with these weakened must be
refused, so that the check itself is checked.
"""
import os
import re
import shutil
import subprocess
import sys
import tempfile

INCLUDE = sys.argv[1]
SOURCE = """
#include <guestram/rcu.h>
struct thing { int v; };
struct thing *p;
void section_begin(void) { gr_rcu_read_lock(); }
void section_end(void) { gr_rcu_read_unlock(); }
int twice(void) { return gr_rcu_dereference(p)->v + gr_rcu_dereference(p)->v; }
void until_it_changes(struct thing *old) { while (gr_rcu_dereference(p) == old) { } }
void publish(struct thing *q) { q->v = 42; gr_rcu_assign_pointer(p, q); }
"""
# What must be in a function's code: patterns, one after the other.
X86 = {
    "section_begin": [r"\bxchg\b.*\(|\bxchg\b.*%fs"],
    "section_end": [r"\bmov[lq]?\b"],
    "twice": [r"\(%r"] * 4,  # the pointer and what it points to, both twice
    "until_it_changes": [r"\(%r"],
    "publish": [r"\$0x2a", r"\bmov\b.*\(%r"],
}
ARM64 = {
    "section_begin": [r"\b(stxr|stlxr|swp\w*)\b", r"\bdmb\s+ish\b"],
    "section_end": [r"\bstlr\b"],
    "twice": [r"\b(ldar|ldapr)\b", r"\b(ldar|ldapr)\b"],
    "until_it_changes": [r"\b(ldar|ldapr)\b"],
    "publish": [r"\bstr\b", r"\bstlr\b"],
}
POWER = {
    "section_begin": [r"\bstwcx\.", r"\b(hw)?sync\b"],
    "section_end": [r"\blwsync\b", r"\bstw\b"],
    "twice": [r"\bld\b.*", r"\b(isync|lwsync)\b", r"\bld\b", r"\b(isync|lwsync)\b"],
    "until_it_changes": [r"\bld\b"],
    "publish": [r"\bstw\b", r"\blwsync\b", r"\bstd\b"],
}
ARM32 = {
    "section_begin": [r"\bstrex\b", r"\bdmb\s+ish\b"],
    "section_end": [r"\bdmb\s+ish\b", r"\bstr\b"],
    "twice": [r"\bldr\b", r"\bdmb\s+ish\b"] * 2,
    "until_it_changes": [r"\bldr\b", r"\bdmb\s+ish\b"],
    "publish": [r"\bstr\b", r"\bdmb\s+ish\b", r"\bstr\b"],
}
S390X = {  # ordered as x86 is; bcr 14 or 15 with register 0 waits for the stores before it
    "section_begin": [r"\bcs\b", r"\b(bnor|br|bcr\s+1[45],)\s*%r0"],
    "section_end": [r"\bst\b"],
    "twice": [r"\b(lg|lgrl)\b", r"\bl\b", r"\b(lg|lgrl)\b", r"\b[al]\b"],
    "until_it_changes": [r"\b(lg|lgrl|cg|cgrl)\b"],
    "publish": [r"\bmvhi\b|\bst\b", r"\b(stg|stgrl)\b"],
}
COMPILERS = [
    ("gcc", [], "objdump", X86), ("clang", [], "objdump", X86),
    ("aarch64-linux-gnu-gcc", ["-mno-outline-atomics"], "aarch64-linux-gnu-objdump", ARM64),
    ("powerpc64-linux-gnu-gcc", [], "powerpc64-linux-gnu-objdump", POWER),
    ("powerpc64le-linux-gnu-gcc", [], "powerpc64le-linux-gnu-objdump", POWER),
    ("arm-linux-gnueabihf-gcc", [], "arm-linux-gnueabihf-objdump", ARM32),
    ("s390x-linux-gnu-gcc", [], "s390x-linux-gnu-objdump", S390X),
]
# What a wrong header would have; each must be found on ARM64.
WEAKENED = [
    ("release", "section_end", r"__ATOMIC_RELEASE(?=\); */\* R1|\);\n\t\tgr_rcu_look)", "__ATOMIC_RELAXED"),
    ("fence", "section_begin", r"__sync_synchronize\(\)", "(void)0"),
    ("acquire", "twice", r"\(p\), __ATOMIC_ACQUIRE", "(p), __ATOMIC_RELAXED"),
]
count, bad = 0, 0


def report(good, name, why=""):
    global count, bad
    count += 1
    bad += not good
    for line in why.splitlines():
        print("#", line)
    print("ok" if good else "not ok", count, "-", name)


def disassemble(tmp, compiler, flags, objdump, include, lto):
    source, obj = os.path.join(tmp, "s.c"), os.path.join(tmp, "s.o")
    with open(source, "w", encoding="ascii") as f:
        f.write(SOURCE)
    base = [compiler, "-std=gnu17", "-O3", "-D_GNU_SOURCE", f"-I{include}", *flags]
    if lto:
        subprocess.run([*base, "-flto", "-c", source, "-o", obj + ".lto"], check=True)
        subprocess.run([*base, "-flto", "-r", "-nostdlib", "-flinker-output=nolto-rel", obj + ".lto",
                        "-o", obj], check=True)
    else:
        subprocess.run([*base, "-c", source, "-o", obj], check=True)
    text = subprocess.run([objdump, "-d", "--no-show-raw-insn", obj], check=True,
                          capture_output=True, text=True).stdout
    return dict(re.findall(r"^[0-9a-f]+ <\.?(\w+)>:\n((?:.+\n)*)", text, re.M))


def lacks(code, wanted):
    """The first function of code that lacks one of its patterns, or None."""
    for function, patterns in wanted.items():
        rest = code.get(function, "")
        for pattern in patterns:
            hit = re.search(pattern, rest)
            if not hit:
                return f"{function} lacks {pattern}:\n{code.get(function)}"
            rest = rest[hit.end():]
    return None


def weakened(tmp, pattern, by):
    include = os.path.join(tmp, "weak")
    shutil.rmtree(include, ignore_errors=True)
    shutil.copytree(INCLUDE, include)
    path = os.path.join(include, "guestram", "rcu.h")
    with open(path, encoding="utf-8") as f:
        text = f.read()
    with open(path, "w", encoding="utf-8") as f:
        text, n = re.subn(pattern, by, text)
        f.write(text)
    return include, n


with tempfile.TemporaryDirectory() as tmp:
    for compiler, flags, objdump, wanted in COMPILERS:
        for lto in (False, True):
            name = f"{compiler} -O3{' -flto' if lto else ''} keeps loads, stores and fences as written"
            if not shutil.which(compiler) or not shutil.which(objdump):
                count += 1
                print(f"ok {count} - {name} # SKIP no {compiler}")
            elif lto and compiler == "clang":
                continue  # needs lld; gcc shows what link-time optimisation does
            else:
                why = lacks(disassemble(tmp, compiler, flags, objdump, INCLUDE, lto), wanted)
                report(why is None, name, why or "")
    compiler, flags, objdump, wanted = COMPILERS[2]
    for what, function, pattern, by in WEAKENED:
        name = f"a header without its {what} is refused"
        if not shutil.which(compiler):
            count += 1
            print(f"ok {count} - {name} # SKIP no {compiler}")
            continue
        include, n = weakened(tmp, pattern, by)
        why = lacks(disassemble(tmp, compiler, flags, objdump, include, False), wanted)
        report(n > 0 and why is not None and why.startswith(function), name,
               f"{n} places weakened; {why.splitlines()[0] if why else 'nothing found'}")
print(f"1..{count}")
sys.exit(1 if bad else 0)
