#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Sum meson's logs (testlog.json): skips by reason, failures with what they printed, and last
`N passed, N failed, N skipped`.

Before those the cases of tests/cases.tsv, each with what its tests did (`--cases FILE`), and the tables that tests
print (`# matrix: `), once if they are the same in each log.

A program that prints TAP counts by its lines, any other as one test. A mutant that died is
a test that passed. Failures come last, and short: often the end of a log is all one sees.

A program whose assertion failed, or that ran out of time, beside others on a busy machine was
repeated alone (test.sh; `--unsteady LOG` names those): if it passed every time, it counts by what it
did then, and is printed as unsteady. What torture and property tests find, and what a sanitizer or
a signal ended, has failed: a race that shows itself once is there.
"""
import collections
import json
import os
import re
import sys

TAP = re.compile(r"^(not )?ok \d+(?: - ([^#]*))?(?:#\s*(\w+)\s*(.*))?$")
GOOD = ("OK", "EXPECTEDFAIL")
FATAL = re.compile(r"ERROR: (Address|Leak)Sanitizer|WARNING: ThreadSanitizer|runtime error:|killed by signal (?!9 )")
SEARCHING = re.compile(r"\w+:(torture|property|contract|fuzz)")


def count(test):
    """Yields (verdict, name, reason) for each test that a program ran."""
    program = test["name"].split(" / ")[-1]
    lines = [m for m in map(TAP.match, test.get("stdout", "").splitlines()) if m]
    mutant = test["result"] in ("EXPECTEDFAIL", "UNEXPECTEDPASS")
    bad = 0
    for m in lines if not mutant else []:
        name = f"{program}: {(m[2] or '').strip()}"
        if m[1]:
            bad += 1
            yield "failed", name, ""
        elif (m[3] or "").upper().startswith("SKIP"):
            yield "skipped", name, m[4]
        else:
            yield "passed", name, ""
    if mutant or not lines:
        verdict = "passed" if test["result"] in GOOD else (
            "skipped" if test["result"] == "SKIP" else "failed")
        yield verdict, program, test["result"].lower()
    elif test["result"] not in GOOD + ("SKIP",) and not bad:
        yield "failed", program, test["result"].lower()  # crashed, hung or lost its plan


def words_of(test):
    """What a failed program said: of TAP the failed lines and why, of stderr the end."""
    said = []
    reasons = []
    for line in test.get("stdout", "").splitlines():
        if line.startswith("not ok"):
            said += reasons[-2:] + [line]
        reasons = reasons + [line] if line.startswith("#") else []
    errors = [line for line in test.get("stderr", "").splitlines() if line.strip()]
    said += [line for line in errors if not line.startswith("(test program exited")][-8:]
    return [f"    {line[:200]}" for line in said[-10:]]


def load(path):
    with open(path, encoding="utf-8") as log:
        return [json.loads(line) for line in log]


def is_good(test):
    return test["result"] in GOOD + ("SKIP",)


def may_be_repeated(test):
    if SEARCHING.match(test["name"]):
        return False
    return not is_good(test) and not FATAL.search(test.get("stdout", "") + test.get("stderr", ""))


def repeated(path):
    """The last of each program's repetitions, if it passed them all."""
    log = os.path.join(os.path.dirname(path), "again.json")
    runs = collections.defaultdict(list)
    for test in load(log) if os.path.exists(log) else []:
        runs[test["name"]].append(test)
    return {name: tests[-1] for name, tests in runs.items() if all(map(is_good, tests))}


def cases(path, verdicts):
    """Lines: the numbered rows of the table, and what their tests did: verdicts by (folder, test)."""
    with open(path, encoding="utf-8") as table:
        rows = [line.rstrip("\n").split("\t") for line in table if line[:1].isdigit()]
    for number, what, file, test, _ in rows:
        folder = file.split("/")[0]
        seen = [v for (where, name), all_of_it in verdicts.items() for v in all_of_it
                if where == folder and (name == test or name.startswith(test + "_"))]
        result = test if file == "-" else next(
            (v for v in ("failed", "passed", "skipped") if v in seen), "not run")
        yield f"case {number}: {what}: {result}"


def main():
    if sys.argv[1] == "--unsteady":
        names = [t["name"].split(" / ")[-1] for t in load(sys.argv[2]) if may_be_repeated(t)]
        print("\n".join(names))
        return 0
    arguments = sys.argv[1:]
    table = None
    if arguments[0] == "--cases":
        table = arguments[1]
        arguments = arguments[2:]
    verdicts = collections.defaultdict(list)
    tables = {}
    total = collections.Counter()
    skips = collections.Counter()
    unsteady = []
    failures = []
    for path in arguments:
        name = os.path.basename(path).removesuffix(".json")
        kind = path.split("/")[0] if name == "testlog" else name  # portability.sh: a log for each row
        again = repeated(path)
        for test in load(path):
            if may_be_repeated(test) and test["name"] in again:
                unsteady += [f"unsteady: {kind}: {test['name']}"] + words_of(test)
                test = again[test["name"]]
            tables.setdefault("".join(re.findall(r"^# (matrix: .*\n)", test.get("stdout", ""), re.M)))
            failed = []
            for verdict, name, reason in count(test):
                total[verdict] += 1
                folder = test["name"].split(" / ")[0].split(":")[-1]
                verdicts[folder, name.split(": ")[-1]].append(verdict)
                if verdict == "skipped":
                    skips[f"{kind}: {name.split(':')[0]} ({reason or 'as a whole'})"] += 1
                elif verdict == "failed":
                    failed.append(f"failed: {kind}: {name}" + (f" ({reason})" if reason else ""))
            if failed:
                failures += failed + words_of(test)
    for line in cases(table, verdicts) if table else []:
        print(line)
    print("".join(tables), end="")
    for what, times in skips.items():
        print(f"skipped {times}: {what}")
    for line in unsteady + failures:
        print(line)
    print(f"{total['passed']} passed, {total['failed']} failed, {total['skipped']} skipped")
    return 1 if total["failed"] or not total["passed"] else 0


sys.exit(main())
