#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""test_names.py SOURCE CC - every public name of the liburcu headers that guestram/urcu.h replaces
is offered by it, or is in MISSING below with the reason (TAP).

The names come from the liburcu-dev that is installed; ours from the header alone."""
import re
import subprocess
import sys

source, cc = sys.argv[1], sys.argv[2].split()
FLAVORS = ["memb", "mb", "signal", "bp", "qsbr"]
REPLACED = (["call-rcu.h", "defer.h", "flavor.h", "pointer.h", "rculist.h", "rcuhlist.h", "urcu.h",
             "urcu-poll.h"] + [f"urcu-{f}.h" for f in FLAVORS] + [f"map/urcu-{f}.h" for f in FLAVORS])

# What is not offered: a pattern for whole names, and why.
MISSING = [
    (r"_?rcu_(gp|reader)(_\w+)?|urcu_\w+_(gp|reader)", "inside of liburcu's readers"),
    (r"(rcu|urcu_\w+?)_(defer_)?exit(_\w+)?", "mapped by liburcu, declared nowhere"),
    (r"(rcu|urcu_\w+?)_(yield_active|rand_yield)(_\w+)?", "delays for liburcu's own tests"),
    (r"rcu_(dereference|(set|xchg|cmpxchg)_pointer)_(memb|mb|sig|qsbr)", "mapped to what is declared nowhere"),
    (r"urcu_(memb|mb|signal|qsbr)_(dereference|(set|xchg|cmpxchg)_pointer)", "declared nowhere"),
    (r"u?rcu_(memb|mb|sig|signal|qsbr)_(before_fork|after_fork_(parent|child))", "declared nowhere"),
    (r"_URCU_QSBR_H", "urcu/urcu-qsbr.h is read on purpose: it says which flavour is meant"),
    (r"DEBUG_RCU", "switches on checks that are always on here"),
    (r"RCU_MEMBARRIER", "what urcu.h sets by default; one implementation serves all"),
]

# One of each kind, that the search for names must find.
KNOWN = {"call_rcu_data_free", "cds_hlist_for_each_entry_rcu_2", "cds_list_add_rcu",
         "free_all_cpu_call_rcu_data", "rcu_bp_before_fork", "rcu_defer_barrier_thread", "rcu_dereference",
         "rcu_flavor_struct", "rcu_head", "rcu_xchg_pointer_sym", "synchronize_rcu_qsbr",
         "urcu_atfork", "urcu_bp_after_fork_child", "urcu_mb_init", "urcu_signal_defer_rcu",
         "URCU_CALL_RCU_RT"}


def preprocess(*args, text):
    run = subprocess.run(cc + ["-E", "-xc", "-", f"-I{source}/include", *args],
                         input=text, capture_output=True, text=True, check=False)
    return run.stdout if run.returncode == 0 else None


def find_header(name):
    text = preprocess(text=f"#include <urcu/{name}>\n")
    where = text and re.search(rf'^# \d+ "([^"]*/urcu/{re.escape(name)})"', text, re.M)
    return where and where[1]


def names_of(path):
    text = re.sub(r"/\*.*?\*/|//[^\n]*", " ", open(path, encoding="utf-8").read(), flags=re.S)
    text = text.replace("\\\n", " ")
    names = set()
    for name, value in re.findall(r"^\s*#\s*define\s+(\w+)(?:\([^)]*\))?[ \t]*([^\n]*)", text, re.M):
        names.add(name)
        if "/map/" in path and re.fullmatch(r"\w+", value.strip()):
            names.add(value.strip())
    code = re.sub(r"^\s*#[^\n]*", "", text, flags=re.M)
    names.update(re.findall(r"\bstruct\s+(\w+)\s*[;{]", code))
    code = code.replace('extern "C" {', "")
    while re.search(r"\{[^{}]*\}", code):
        code = re.sub(r"\{[^{}]*\}", ";", code)
    names.update(re.findall(r"\b(\w+)\s*\(", code))
    return names - {"__attribute__", "defined", "void", "int"}


def offered():
    text = "#define GR_URCU_ALONE\n#include <guestram/urcu.h>\n"
    macros = set(re.findall(r"^#define (\w+)", preprocess("-dM", text=text), re.M))
    return macros | set(re.findall(r"\b\w+\b", preprocess("-P", text=text)))


def main():
    headers = {h: find_header(h) for h in REPLACED}
    if not headers["call-rcu.h"]:
        print("1..1\nok 1 - each public name is offered # SKIP no liburcu-dev")
        return 0
    ours = offered()

    def lost_without(name):
        return sorted(n for n in total if (n not in ours or n == name) and
                      not any(re.fullmatch(pattern, n) for pattern, _ in MISSING))

    found = {h: names_of(p) for h, p in headers.items() if p}
    total = set().union(*found.values())
    lost = lost_without(None)
    known = KNOWN - total
    print("1..4")
    print(f"# {len(total)} names in {len(found)} headers")
    for name in sorted(known):
        print(f"# not found: {name}")
    print(f"{'not ok' if known else 'ok'} 1 - the names of liburcu's headers are found")
    for name in lost:
        print(f"# not offered: {name}")
    print(f"{'not ok' if lost else 'ok'} 2 - each public name is offered, or its absence has a reason")
    idle = [p for p, _ in MISSING if not any(re.fullmatch(p, n) and n not in ours for n in total)]
    for pattern in idle:
        print(f"# nothing is missing by: {pattern}")
    print(f"{'not ok' if idle else 'ok'} 3 - each reason is for something")
    noticed = all(lost_without(n) == [n] for n in KNOWN) or lost
    print(f"{'ok' if noticed else 'not ok'} 4 - a name that is taken away is noticed")
    return 1 if lost or idle or known or not noticed else 0


sys.exit(main())
