# SPDX-License-Identifier: MIT
"""The tool under test, as a user runs it."""
import json
import os
import re
import signal
import subprocess

from qemu import TIMEOUT, wait_for

TSAN_OPTIONS = ":".join([os.environ.get("TSAN_OPTIONS", ""), "suppressions=" + os.path.join(
    os.path.dirname(os.path.abspath(__file__)), "tsan.supp")])
TOOL = os.environ.get("GR_TOOL", "build/tool/guestram")


def run(*args, status=0, stdin=None, text=True):
    """Run to the end; standard output. The exit status must be as expected."""
    p = subprocess.run([TOOL, *args], stdin=stdin, stdout=subprocess.PIPE,
                       stderr=subprocess.PIPE, timeout=TIMEOUT, check=False)
    said = p.stderr.decode(errors="replace")
    assert p.returncode == status, f"{args}: exit status {p.returncode}: {said}"
    return p.stdout.decode() if text else p.stdout


def refused(*args, stdin=None):
    """Run what must fail with status 2; what it said on standard error."""
    p = subprocess.run([TOOL, *args], stdin=stdin, stdout=subprocess.PIPE,
                       stderr=subprocess.PIPE, timeout=TIMEOUT, check=False)
    said = p.stderr.decode(errors="replace")
    assert p.returncode == 2, f"{args}: exit status {p.returncode}: {said}"
    assert p.stdout == b"", f"{args}: a refusal on standard output: {p.stdout[:200]!r}"
    return said


def info(image):
    return json.loads(run("info", image, "--json"))


def feature(name):
    """Whether this kernel has it."""
    return {f["name"]: f["available"] for f in json.loads(run("features", "--json"))["features"]}[name]


def extract(image, block):
    return run("extract", image, block, text=False)


class Listener:
    """A program in the background; .uri is where it listens. What it says goes to path.std*."""

    def __init__(self, path, command):
        self.stderr_path = path + ".stderr"
        self.stdout_path = path + ".stdout"
        with open(self.stderr_path, "wb") as err, open(self.stdout_path, "wb") as out:
            self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=out, stderr=err,
                                            env={**os.environ, "TSAN_OPTIONS": TSAN_OPTIONS})
        self.uri = wait_for(self._listening, f"listening of {command}")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGKILL)
        self.process.wait()
        self.process.stdin.close()

    def stdout(self):
        with open(self.stdout_path, encoding="utf-8", errors="replace") as f:
            return f.read()

    def stderr(self):
        with open(self.stderr_path, encoding="utf-8", errors="replace") as f:
            return f.read()

    def _listening(self):
        assert self.process.poll() is None, f"it ended: {self.stderr()}"
        found = re.search(r"^listening on (.*)$", self.stderr(), re.M)
        return found.group(1) if found else None

    def wait(self):
        """For a good end."""
        status = self.process.wait(TIMEOUT)
        assert status == 0, f"exit status {status}: {self.stderr()}"

    def result(self):
        """Wait for the end; what it printed as JSON."""
        self.wait()
        return json.loads(self.stdout())


class Receiver(Listener):
    """`guestram receive`"""

    def __init__(self, uri, image, *options):
        super().__init__(image, [TOOL, "receive", uri, "--output", image, *options, "--json"])


class Relay(Listener):
    """`guestram relay`; the destination must wait already."""

    def __init__(self, folder, uri, to):
        super().__init__(os.path.join(folder, "relay"), [TOOL, "relay", uri, to, "--json"])
