# SPDX-License-Identifier: MIT
"""tests/interop/forward.c in the background: a source of ours between two QEMUs."""
import os
import re

from guestram import Listener
from qemu import wait_for

FORWARD = os.environ.get("GR_FORWARD", "build/tests/interop/forward")


class Forward(Listener):
    """`with Forward(folder, to, "rounds=4") as forward: source.migrate(forward.uri)`"""

    def __init__(self, folder, to, *options, listen=None):
        super().__init__(os.path.join(folder, "forward"),
                         [FORWARD, listen or f"unix:{folder}/from", to, *options])

    def last(self, what):
        """The last value that it told of, or 0."""
        assert self.process.poll() in (None, 0), self.stderr()
        told = re.findall(rf"^{what} (\d+)$", self.stdout(), re.M)
        return int(told[-1]) if told else 0

    def wait_told(self, what, value=1):
        wait_for(lambda: self.last(what) >= value, f"{what} {value} of ours")

    def go_on(self):
        """From where it waits before the switch-over."""
        self.process.stdin.write(b"\n")
        self.process.stdin.flush()

    def result(self):
        """What it counted."""
        self.wait()
        return {k: int(v) for k, v in re.findall(r"^(\w+) (\d+)$", self.stdout(), re.M)}
