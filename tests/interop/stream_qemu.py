#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""A real QEMU's stream through our reader and writer: the copy equals the original, byte
for byte, and a fresh QEMU takes it. stream_qemu.py STREAM_REWRITE"""
import json
import shutil
import subprocess
import sys
import tempfile
import time

import qemu

MACHINE = ["-machine", "pc", "-accel", "tcg", "-m", "16", "-nodefaults", "-display", "none", "-S"]


class Qemu:
    """One QEMU whose monitor is its standard input and output."""

    def __init__(self, *args):
        self.p = subprocess.Popen([qemu.BINARY, *MACHINE, *qemu.firmware(qemu.BINARY), *args, "-qmp", "stdio"],
                                  stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.reply("QMP")
        self.command("qmp_capabilities")

    def reply(self, *keys):
        while True:
            line = self.p.stdout.readline()
            if not line:
                raise RuntimeError("QEMU ended")
            msg = json.loads(line)
            if "error" in msg:
                raise RuntimeError(msg["error"]["desc"])
            if any(k in msg for k in keys):
                return msg

    def command(self, name, **arguments):
        self.p.stdin.write(json.dumps({"execute": name, "arguments": arguments}) + "\n")
        self.p.stdin.flush()
        return self.reply("return")["return"]

    def migrated(self, key="status"):
        for _ in range(600):
            status = self.command("query-migrate").get(key)
            if status in ("completed", "failed"):
                return status
            time.sleep(0.05)
        return "no end"

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.p.kill()
        self.p.wait()
        self.p.stdin.close()
        self.p.stdout.close()


def send(path, **capabilities):
    with Qemu() as q:
        q.command("migrate-set-capabilities", capabilities=[
            {"capability": k.replace("_", "-"), "state": v} for k, v in capabilities.items()])
        q.command("migrate", uri=f"exec:cat > {path}")
        status = q.migrated()
        assert status == "completed", status


def rewrite(tool, source, target):
    """What the tool found, as a dictionary; blocks as a list of names."""
    out = subprocess.run([tool, source, target], check=True, stdout=subprocess.PIPE, text=True)
    found = {"blocks": []}
    for line in out.stdout.splitlines():
        key, _, value = line.partition(" ")
        if key == "block":
            found["blocks"].append(value)
        else:
            found[key] = value if key == "machine" else int(value)
    return found


def same(a, b):
    with open(a, "rb") as f, open(b, "rb") as g:
        return f.read() == g.read()


def check_copy(tool, dir_):
    send(f"{dir_}/a")
    found = rewrite(tool, f"file:{dir_}/a", f"file:{dir_}/b")
    assert same(f"{dir_}/a", f"{dir_}/b"), "the copy differs"
    assert found["machine"].startswith("pc-i440fx"), found
    assert "pc.ram 16777216" in found["blocks"], found
    pages = sum(int(b.split()[-1]) for b in found["blocks"]) // 4096
    assert found["pages"] + found["zeros"] >= pages, found
    assert found["devices"] > 10 and found["located"] == found["devices"], found


def check_prefixes(tool, dir_):
    with open(f"{dir_}/a", "rb") as f:
        data = f.read()
    for cut in (0, 7, 26, 100, 5000, len(data) // 2, len(data) - 100000, len(data) - 1):
        with open(f"{dir_}/cut", "wb") as f:
            f.write(data[:cut])
        rc = subprocess.run([tool, f"file:{dir_}/cut", "file:/dev/null"],
                            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        assert rc.returncode == 1 and "byte " in rc.stderr, (cut, rc.returncode, rc.stderr)


def check_incoming(_tool, dir_):
    with Qemu("-incoming", f"exec:cat {dir_}/b") as q:
        status = q.migrated()
        assert status == "completed", status
        assert q.command("query-status")["status"] in ("paused", "prelaunch", "inmigrate")


def check_commands(tool, dir_):
    send(f"{dir_}/c", x_ignore_shared=False, xbzrle=True)
    rewrite(tool, f"file:{dir_}/c", f"file:{dir_}/d")
    assert same(f"{dir_}/c", f"{dir_}/d"), "the copy differs"


def check_shared(tool, dir_):
    send(f"{dir_}/e", x_ignore_shared=True)
    rewrite(tool, f"file:{dir_}/e", f"file:{dir_}/f")
    assert same(f"{dir_}/e", f"{dir_}/f"), "the copy differs"


def main():
    tests = [
        ("a_stream_of_qemu_is_copied_byte_for_byte", check_copy),
        ("a_cut_stream_of_qemu_is_refused", check_prefixes),
        ("a_fresh_qemu_takes_the_copy", check_incoming),
        ("a_second_migration_with_xbzrle_allowed_is_copied", check_commands),
        ("with_x_ignore_shared_blocks_have_addresses_and_the_copy_too", check_shared),
    ]
    print(f"1..{len(tests)}")
    missing = None if shutil.which(qemu.BINARY) else f"no {qemu.BINARY or 'newer QEMU'}"
    dir_ = tempfile.mkdtemp(prefix="guestram-stream-")
    bad = 0
    for number, (name, test) in enumerate(tests, 1):
        if missing:
            print(f"ok {number} - {name} # SKIP {missing}")
            continue
        try:
            test(sys.argv[1], dir_)
            print(f"ok {number} - {name}")
        except Exception as e:  # pylint: disable=broad-except
            bad += 1
            print("# " + repr(e).replace("\n", "\n# "))
            print(f"not ok {number} - {name}")
        sys.stdout.flush()
    shutil.rmtree(dir_)
    sys.exit(1 if bad else 0)


if __name__ == "__main__":
    main()
