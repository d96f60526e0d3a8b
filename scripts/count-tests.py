#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Sum meson's logs (testlog.json): skips by reason, failures with what they printed, and last
`N passed, N failed, N skipped`.

A program that prints TAP counts by its lines, any other as one test. A mutant that died is
a test that passed. Failures come last, and short: often the end of a log is all one sees.
"""
import collections
import json
import re
import sys

TAP = re.compile(r"^(not )?ok \d+(?: - ([^#]*))?(?:#\s*(\w+)\s*(.*))?$")
GOOD = ("OK", "EXPECTEDFAIL")


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
    """What a failed program said: of TAP the failed lines, of stderr the end."""
    said = [line for line in test.get("stdout", "").splitlines() if line.startswith("not ok")]
    said += test.get("stderr", "").splitlines()[-8:]
    return [f"    {line[:200]}" for line in said[-10:]]


def main():
    total = collections.Counter()
    skips = collections.Counter()
    failures = []
    for path in sys.argv[1:]:
        kind = path.split("/")[0]
        with open(path, encoding="utf-8") as log:
            for line in log:
                test = json.loads(line)
                failed = []
                for verdict, name, reason in count(test):
                    total[verdict] += 1
                    if verdict == "skipped":
                        skips[f"{kind}: {name.split(':')[0]} ({reason or 'as a whole'})"] += 1
                    elif verdict == "failed":
                        failed.append(f"failed: {kind}: {name}" + (f" ({reason})" if reason else ""))
                if failed:
                    failures += failed + words_of(test)
    for what, times in skips.items():
        print(f"skipped {times}: {what}")
    print("\n".join(failures), end="\n" if failures else "")
    print(f"{total['passed']} passed, {total['failed']} failed, {total['skipped']} skipped")
    return 1 if total["failed"] or not total["passed"] else 0


sys.exit(main())
