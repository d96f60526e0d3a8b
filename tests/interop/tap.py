# SPDX-License-Identifier: MIT
"""TAP for tests in Python: as tests/harness does it for C.

    @test
    def extract_equals_what_qemu_has(tmp):      # tmp: a folder of its own
        ...
    main()

A test fails by raising, skips by raising Skip(reason). Arguments select tests by name.
"""
import os
import queue
import shutil
import sys
import tempfile
import threading
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


def run(fn):
    """One test: the verdict ("" for a failure, "ok", or a skip's reason) and what there is to say."""
    tmp = tempfile.mkdtemp(prefix="gr-")
    began = time.monotonic()
    said = []
    try:
        fn(tmp)
        verdict = "ok"
    except Skip as reason:
        verdict = str(reason)
    except Exception:  # pylint: disable=broad-except
        verdict = ""
        said = traceback.format_exc().rstrip().split("\n")
    finally:
        shutil.rmtree(tmp, ignore_errors=True)
    return verdict, said, time.monotonic() - began


def main(lanes=None, last=None, end=lambda results: []):
    """Run what the arguments choose; several lanes side by side, the tests of each in turn. Then, if all were
    run, the test last(tmp, {name: verdict}). The lines that end() of the same returns are printed behind them."""
    lanes = [[t for t in lane if len(sys.argv) < 2 or t.__name__ in sys.argv[1:]]
             for lane in lanes or [TESTS]]
    todo, printing, results = queue.SimpleQueue(), threading.Lock(), {}
    for lane in lanes:
        todo.put(lane)

    def work():
        while True:
            try:
                lane = todo.get_nowait()
            except queue.Empty:
                return
            for fn in lane:
                one(fn, fn.__name__)

    def one(fn, name):
        verdict, said, seconds = run(fn)
        with printing:
            results[name] = verdict
            line = f"{'ok' if verdict else 'not ok'} {len(results)} - {name}"
            line += f" # SKIP {verdict}" if verdict not in ("", "ok") else ""
            print("".join(f"# {text}\n" for text in said) + f"{line}\n# {seconds:.1f} s", flush=True)

    last = last if len(sys.argv) < 2 else None
    print(f"1..{sum(map(len, lanes)) + bool(last)}", flush=True)
    threads = [threading.Thread(target=work) for _ in range(min(len(lanes), os.cpu_count() or 1))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if last:
        one(lambda tmp: last(tmp, results), last.__name__)
    for text in end(results):
        print(f"# {text}")
    sys.stdout.flush()
    os._exit(1 if "" in results.values() else 0)
