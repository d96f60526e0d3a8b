#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""must-fail.py [--may-skip] PROGRAM TEST... - run a mutant; it must fail each of the named tests.

Prints TAP of its own: one test per name, ok when the mutant failed it. A test that does
not exist, a skip or a pass is not ok; with --may-skip (for what only some machines have) a
skip is a skip.
"""
import re
import subprocess
import sys

may_skip = sys.argv[1] == "--may-skip"
program, *tests = sys.argv[2 if may_skip else 1:]
run = subprocess.run([program] + tests, capture_output=True, text=True)
print(f"1..{len(tests)}")
good = True
for n, test in enumerate(tests, 1):
    killed = re.search(rf"^not ok \d+ - {re.escape(test)}$", run.stdout, re.M) is not None
    skip = re.search(rf"^ok \d+ - {re.escape(test)} (# SKIP.*)$", run.stdout, re.M)
    if may_skip and skip:
        print(f"ok {n} - {test} kills it {skip[1]}")
        continue
    good &= killed
    print(f"{'ok' if killed else 'not ok'} {n} - {test} kills it")
for line in (run.stdout + run.stderr).splitlines():
    print(line if line.startswith("#") else f"# {line}")
sys.exit(0 if good else 1)
