# SPDX-License-Identifier: MIT
"""A QEMU for tests: started, spoken to over QMP, always ended."""
import json
import os
import shutil
import socket
import subprocess
import time

from tap import Skip

# With GR_TEST_QEMU10 the newer one that scripts/qemu10.sh unpacks.
OLDER = os.environ.get("GR_QEMU", "qemu-system-x86_64")
NEWER = os.environ.get("GR_QEMU10", "")
BINARY = NEWER if os.environ.get("GR_TEST_QEMU10") else OLDER
TIMEOUT = 120  # seconds; generous, machines that run tests are slow


def firmware(binary):
    """Where the newer one, which is not installed, has its own."""
    data = os.environ.get("GR_QEMU10_DATA")
    return ["-L", data] if binary == NEWER and data else []


def version_of(binary):
    """(major, minor); None where there is none."""
    if not binary or not shutil.which(binary):
        return None
    said = subprocess.run([binary, "--version"], capture_output=True, check=True).stdout.decode()
    return tuple(map(int, said.split("version ")[1].split()[0].split(".")[:2]))


class QemuError(Exception):
    """QEMU said no: the class and description of its answer."""


def wait_for(condition, what, timeout=TIMEOUT, interval=0.02):
    """Poll until condition() is true; its value."""
    end = time.monotonic() + timeout
    while True:
        value = condition()
        if value:
            return value
        assert time.monotonic() < end, f"no {what} within {timeout} s"
        time.sleep(interval)


class Qemu:
    """`with Qemu(tmp, "source", "-m", "64", ...) as q: q.cmd("stop")`"""

    def __init__(self, folder, name, *args, machine="pc", binary=BINARY):
        if not binary:
            raise Skip("GR_QEMU10 names no newer QEMU (scripts/qemu10.sh)")
        if not shutil.which(binary):
            raise Skip(f"{binary} is not installed")
        self.folder = folder
        self.name = name
        self.events = []
        self.stderr_path = os.path.join(folder, name + ".stderr")
        ours, theirs = socket.socketpair()
        command = [binary, "-accel", "tcg", "-machine", machine, "-nodefaults",
                   "-display", "none", "-no-user-config", *firmware(binary),
                   "-chardev", f"socket,id=qmp,fd={theirs.fileno()}",
                   "-mon", "chardev=qmp,mode=control", *args]
        with open(self.stderr_path, "wb") as stderr:
            self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=stderr,
                                            stderr=stderr, pass_fds=[theirs.fileno()])
        theirs.close()
        ours.settimeout(TIMEOUT)
        self.socket = ours
        self.file = ours.makefile("rb")
        try:
            self._receive()  # the greeting
            self.cmd("qmp_capabilities")
        except Exception:
            self.close()
            raise

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def close(self):
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        self.file.close()
        self.socket.close()

    def stderr(self):
        with open(self.stderr_path, encoding="utf-8", errors="replace") as f:
            return f.read()

    def _receive(self):
        line = self.file.readline()
        if not line:
            raise QemuError(f"{self.name} ended: {self.stderr()}")
        return json.loads(line)

    def cmd(self, command, /, **arguments):
        """Run a QMP command; underscores in argument names are QMP's dashes."""
        arguments = {k.replace("_", "-"): v for k, v in arguments.items()}
        request = {"execute": command, "arguments": arguments}
        self.socket.sendall(json.dumps(request).encode() + b"\n")
        while True:
            answer = self._receive()
            if "return" in answer:
                return answer["return"]
            if "error" in answer:
                raise QemuError(f"{command}: {answer['error']['desc']}")
            self.events.append(answer)

    def hmp(self, line):
        return self.cmd("human-monitor-command", command_line=line)

    def memory(self, address, size):
        """Guest physical memory as QEMU sees it."""
        path = os.path.join(self.folder, self.name + ".pmem")
        self.cmd("pmemsave", val=address, size=size, filename=path)
        with open(path, "rb") as f:
            data = f.read()
        os.unlink(path)
        return data

    def word(self, address):
        return int.from_bytes(self.memory(address, 4), "little")

    def ram_blocks(self):
        """{id: used bytes} as `info ramblock` tells it."""
        blocks = {}
        for line in self.hmp("info ramblock").splitlines()[1:]:
            fields = line.split()
            # name, page size (a number and its unit), offset, used, total, and more since 8.1
            blocks[fields[0]] = int(fields[4], 16)
        return blocks

    def capability(self, name, state=True):
        self.cmd("migrate-set-capabilities",
                 capabilities=[{"capability": name, "state": state}])

    def migrate(self, uri, **arguments):
        self.cmd("migrate", uri=uri, **arguments)

    def migration(self):
        return self.cmd("query-migrate")

    def wait_migrated(self):
        """Until the migration has ended; it must have succeeded."""
        def ended():
            info = self.migration()
            return info if info.get("status") in ("completed", "failed", "cancelled") else None
        info = wait_for(ended, "end of the migration")
        assert info["status"] == "completed", f"{self.name}: {info} {self.stderr()}"
        return info

    def wait_cancelled(self):
        """A QEMU 7.2 with a return path may say "failed" instead, of a socket that broke: its own."""
        wait_for(lambda: self.migration()["status"] in ("cancelled", "failed"), "end of the migration")

    def wait_status(self, *names):
        return wait_for(lambda: self.cmd("query-status")["status"] in names, f"status {names}")
