#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""cases.py SOURCE - tests/cases.tsv names nothing that does not exist (TAP).

Each case 1 to 40 and each pitfall P1 to P29 has a row; the test is in the file; the mutant is in the source and in
tests/mutants with that file and test, or in models/models.tsv with that model. A table with mistakes
must be refused.
"""
import json
import os
import re
import subprocess
import sys
import tempfile

ROOT = sys.argv[1]
NUMBERS = [str(n) for n in range(1, 41)] + [f"P{n}" for n in range(1, 30)]


def read(path):
    try:
        with open(os.path.join(ROOT, path), encoding="utf-8") as f:
            return f.read()
    except OSError:
        return None


def all_sources():
    text = []
    for top in ("src", "include", "vmm"):
        for folder, _, names in os.walk(os.path.join(ROOT, top)):
            text += [read(os.path.join(folder, n)) for n in names if n.endswith((".c", ".h"))]
    return "\n".join(text)


MUTANTS = {m[0]: (m[1], m[2]) for m in re.findall(
    r"\['([A-Z0-9_]+)', \[[^\]]*\], '([^']+)',(?: #.*)?\s*\[([^\]]*)\]\]", read("tests/mutants/meson.build"))}
MODELS = [line.split("\t") for line in read("models/models.tsv").splitlines() if line[:1] != "#"]
SOURCES = all_sources()


def is_run(file):
    """Whether the meson.build of its folder has it, by its name or by what the name says it tests."""
    folder, _, name = file.rpartition("/")
    stem = os.path.splitext(name)[0].removeprefix("test_")
    listed = read(f"tests/{folder}/meson.build") or ""
    return file.startswith("models/") or re.search(rf"'(test_)?{stem}(\.\w+)?'", listed)


def file_mistake(file, test):
    if file == "-":
        return None if test.startswith("later: ") else f"no file, and not for later: {test}"
    text = read(file if file.startswith("models/") else f"tests/{file}")
    if text is None:
        return f"no file {file}"
    if not is_run(file):
        return f"{file} is in no meson.build"
    if file.endswith(".c") and ("/test_" in file or file.startswith("torture/")):
        found = f"TEST({test})" in text or f"SUITE_ROWS({test})" in text
    else:
        found = test in text
    return None if found else f"no {test} in {file}"


def mutant_mistake(file, test, mutant):
    if mutant == "-":
        return None
    if mutant.startswith("models/"):
        model, _, name = mutant[len("models/"):].partition(":")
        known = any(m[0] == model and name in m[-1].split() for m in MODELS)
        return None if known else f"no model mutant {mutant}"
    if mutant not in MUTANTS or f"GR_MUTANT_{mutant}" not in SOURCES:
        return f"no mutant {mutant}"
    killed_in, tests = MUTANTS[mutant]
    if killed_in != file or f"'{test}'" not in tests:
        return f"{mutant} is killed by {killed_in}: {tests}"
    return None


def mistakes(table):
    found, seen = [], set()
    for line in table.splitlines():
        if line.startswith("#"):
            continue
        row = line.split("\t")
        if len(row) != 5 or not all(row):
            found.append(f"not five columns: {line}")
            continue
        number, _, file, test, mutant = row
        seen.add(number)
        for mistake in (file_mistake(file, test), mutant_mistake(file, test, mutant)):
            if mistake:
                found.append(f"{number}: {mistake}")
    found += [f"{n} has no row" for n in NUMBERS if n not in seen]
    return found


table = read("tests/cases.tsv")
good = table.splitlines()
WRONG = {
    "a case without a row": "\n".join(line for line in good if not line.startswith("31\t")),
    "a pitfall without a row": "\n".join(line for line in good if not line.startswith("P13\t")),
    "a test that is not there": table.replace("handlers_may_run_sections_anywhere", "handlers_may_fly"),
    "a file that no build knows": table.replace("interop/test_machines.py\tpseries_is_refused_by_its_table",
                                                "interop/guestram.py\tListener"),
    "a mutant that is not there": table.replace("RCU_NO_HANDOFF", "RCU_NO_HANDS"),
    "a mutant of another test": table.replace("RCU_NO_HANDOFF", "RCU_SKIP_M1"),
    "a model's mutant that is not there": table.replace("WORD_READ_LATE", "WORD_READ_NEVER"),
}
print(f"1..{2 + len(WRONG)}")
bad = mistakes(table)
for line in bad:
    print("#", line)
print("not ok" if bad else "ok", "1 - every case of tests/cases.tsv has its test and its mutant")
for n, (what, wrong) in enumerate(WRONG.items(), 2):
    refused = wrong != table and len(mistakes(wrong)) > len(bad)
    print("ok" if refused else "not ok", n, "-", what, "is refused")
    bad += [] if refused else [what]

# What `make test` prints of a case is what its test did.
with tempfile.TemporaryDirectory() as folder:
    log, cases = os.path.join(folder, "testlog.json"), os.path.join(folder, "cases.tsv")
    with open(log, "w", encoding="utf-8") as f:
        for name, result, said in (("g:unit / test_a", "OK", "ok 1 - one\nok 2 - two # SKIP none\n"),
                                   ("g:unit / test_b", "FAIL", "ok 1 - one\nnot ok 2 - three_times\n")):
            f.write(json.dumps({"name": name, "result": result, "stdout": said}) + "\n")
    with open(cases, "w", encoding="utf-8") as f:
        f.write("# head\n" + "".join(f"{n}\tx\t{file}\t{test}\t-\n" for n, (file, test) in enumerate((
            ("unit/test_a.c", "one"), ("unit/test_a.c", "two"), ("unit/test_b.c", "three"),
            ("torture/test_a.c", "one"), ("-", "later: this")), 1)))
    out = subprocess.run([sys.executable, os.path.join(ROOT, "scripts/count-tests.py"), "--cases", cases, log],
                         stdout=subprocess.PIPE, text=True, check=False).stdout
    printed = [line.split(": ", 2)[2] for line in out.splitlines() if line.startswith("case ")]
    right = printed == ["passed", "skipped", "failed", "not run", "later: this"]
    with open(log, "a", encoding="utf-8") as f:  # of two builds one, the other the same
        f.write(2 * (json.dumps({"name": "g:interop / m", "result": "OK",
                                 "stdout": "ok 1 - a_to_b\n# matrix: x\n# matrix: y z\n"}) + "\n"))
    out = subprocess.run([sys.executable, os.path.join(ROOT, "scripts/count-tests.py"), log],
                         stdout=subprocess.PIPE, text=True, check=False).stdout
    right = right and out.startswith("matrix: x\nmatrix: y z\nskipped") and out.count("matrix") == 2
    print("ok" if right else "not ok", 2 + len(WRONG), "- each case is printed with what its test did, a table once")
    bad += [] if right else [printed]
sys.exit(1 if bad else 0)
