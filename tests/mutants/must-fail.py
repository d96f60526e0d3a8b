#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""must-fail.py PROGRAM TEST... - run a mutant; it must fail each of the named tests.

Prints TAP of its own: one test per name, ok when the mutant failed it. A test that does
not exist, a skip or a pass is not ok.
"""
import re
import subprocess
import sys

program, tests = sys.argv[1], sys.argv[2:]
run = subprocess.run([program] + tests, capture_output=True, text=True)
print(f"1..{len(tests)}")
good = True
for n, test in enumerate(tests, 1):
    killed = re.search(rf"^not ok \d+ - {re.escape(test)}$", run.stdout, re.M) is not None
    good &= killed
    print(f"{'ok' if killed else 'not ok'} {n} - {test} kills it")
for line in (run.stdout + run.stderr).splitlines():
    print(line if line.startswith("#") else f"# {line}")
sys.exit(0 if good else 1)
