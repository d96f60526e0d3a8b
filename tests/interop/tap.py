# SPDX-License-Identifier: MIT
"""TAP for tests in Python: as tests/harness does it for C.

    @test
    def extract_equals_what_qemu_has(tmp):      # tmp: a folder of its own
        ...
    main()

A test fails by raising, skips by raising Skip(reason). Arguments select tests by name.
"""
import os
import shutil
import sys
import tempfile
import time
import traceback

TESTS = []


class Skip(Exception):
    """What this test needs is not here; says what."""


def test(fn):
    TESTS.append(fn)
    return fn


def equal(a, b, what=""):
    assert a == b, f"{what}: {a!r} against {b!r}"


def same_bytes(a, b, what):
    """As equal(), for contents too long to print."""
    if a == b:
        return
    assert len(a) == len(b), f"{what}: {len(a)} bytes against {len(b)}"
    at = next(i for i in range(len(a)) if a[i] != b[i])
    pages = sum(a[i:i + 4096] != b[i:i + 4096] for i in range(0, len(a), 4096))
    raise AssertionError(f"{what}: {pages} pages differ, the first at {at:#x}: "
                         f"{a[at:at + 8].hex()} against {b[at:at + 8].hex()}")


def main():
    chosen = [t for t in TESTS if len(sys.argv) < 2 or t.__name__ in sys.argv[1:]]
    failed = 0
    print(f"1..{len(chosen)}", flush=True)
    for n, fn in enumerate(chosen, 1):
        tmp = tempfile.mkdtemp(prefix="gr-")
        began = time.monotonic()
        try:
            fn(tmp)
            line = f"ok {n} - {fn.__name__}"
        except Skip as reason:
            line = f"ok {n} - {fn.__name__} # SKIP {reason}"
        except Exception:  # pylint: disable=broad-except
            failed += 1
            for text in traceback.format_exc().rstrip().split("\n"):
                print(f"# {text}")
            line = f"not ok {n} - {fn.__name__}"
        finally:
            shutil.rmtree(tmp, ignore_errors=True)
        print(f"{line}", flush=True)
        print(f"# {time.monotonic() - began:.1f} s", flush=True)
    sys.stdout.flush()
    os._exit(1 if failed else 0)
