# SPDX-License-Identifier: MIT
"""What the matrix is made of: a lane for each pair of QEMUs, in which one source serves all modes."""
import os
import shutil
import tempfile

import guestram
import qemu
import writer_guest
from forward import Forward
from qemu import Qemu, wait_for
from running import MIB, PAGES, RAM, dots, runs_on
from tap import Skip, equal

UUID = "12345678-9abc-def0-1234-56789abcdef0"
LIMIT = 64 * MIB  # of the source, while the guest is to write again what was sent
ROUNDS = 4


def name_of(binary, otherwise):
    version = qemu.version_of(binary)
    return f"{version[0]}.{version[1]}" if version else otherwise


class Lane:
    """From one QEMU to another. Its source is kept: after each move its guest runs on there, too."""

    def __init__(self, source, destination):
        self.binary = {"source": source, "destination": destination}
        self.version = {end: qemu.version_of(binary) for end, binary in self.binary.items()}
        versions = [v for v in self.version.values() if v]
        oldest = min(versions) if versions else (0, 0)
        self.machine = f"pc-i440fx-{oldest[0]}.{oldest[1]}"
        self.folder = None
        self.source = None
        self.undo = []

    def qemu(self, folder, name, end, *args):
        return Qemu(folder, name, "-m", "32", *writer_guest.floppy(folder, PAGES), "-uuid", UUID,
                    "-debugcon", f"file:{folder}/{name}.e9", *args, machine=self.machine,
                    binary=self.binary[end])

    def running_source(self, *options):
        """With the guest at work. One with options is for this time alone."""
        if self.source and self.source.process.poll() is None:
            if options:
                self.close(also_folder=False)
            else:
                self.source.cmd("cont")
                return self.source
        self.folder = self.folder or tempfile.mkdtemp(prefix="gr-")
        self.source = self.qemu(self.folder, "source", "source", *options)
        wait_for(lambda: dots(f"{self.folder}/source.e9") > 20, "writer at work")
        return self.source

    def close(self, *, also_folder=True):
        if self.source:
            self.source.close()
            if os.path.exists(f"{self.folder}/source.e9"):
                os.unlink(f"{self.folder}/source.e9")
        self.source = None
        self.undo = []
        if also_folder and self.folder:
            shutil.rmtree(self.folder, ignore_errors=True)

    def name_version(self, end):
        return f"QEMU {name_of(self.binary[end], 'not there')}"

    def need(self, end, version, what):
        """Skip unless that end is at least so new; not there at all is another reason."""
        if not self.version[end]:
            raise Skip("no such QEMU here (GR_QEMU, GR_QEMU10; make qemu10)")
        if version and self.version[end] < version:
            raise Skip(f"{self.name_version(end)} has no {what}")

    def set_up(self, q, end, capabilities, parameters):
        """Capabilities and parameters of either end; Skip where there is no such thing."""
        known = [c["capability"] for c in q.cmd("query-migrate-capabilities")]
        there = q.cmd("query-migrate-parameters")
        for name in capabilities:
            if name not in known:
                raise Skip(f"{self.name_version(end)} has no capability {name}")
        for name in parameters:
            if name not in there:
                raise Skip(f"{self.name_version(end)} has no parameter {name}")
        if end == "source":
            self.undo += [lambda n=n: q.cmd("migrate-set-parameters", **{n: there[n]}) for n in parameters]
            self.undo += [lambda n=n: q.capability(n, False) for n in reversed(capabilities)]
        for name in capabilities:
            q.capability(name)
        if parameters:
            q.cmd("migrate-set-parameters", **parameters)


ENDS = ("completed", "failed")


class Move:
    """One cell: a mode in a lane, in a folder of its own. What a mode's function gets."""

    def __init__(self, lane, tmp, capabilities=(), parameters=None):
        self.lane, self.tmp = lane, tmp
        self.capabilities, self.parameters = list(capabilities), dict(parameters or {})
        self.options = []  # of both QEMUs, which then are for this cell alone
        self.ram = None

    def source(self, capabilities=(), parameters=None):
        q = self.lane.running_source(*self.options)
        self.lane.set_up(q, "source", [*self.capabilities, *capabilities],
                         {**self.parameters, **(parameters or {})})
        # What shrinks well is soon sent, and a source that could send all the rest at once ends.
        shrinks = self.parameters.get("multifd-compression", "none") != "none"
        q.cmd("migrate-set-parameters", max_bandwidth=LIMIT // 64 if shrinks else LIMIT,
              downtime_limit=1)
        return q

    def destination(self, uri, capabilities=None, parameters=None):
        """Started, waiting at uri; to be closed."""
        q = self.lane.qemu(self.tmp, "destination", "destination", *self.options, "-S",
                           "-incoming", "defer")
        try:
            self.lane.set_up(q, "destination",
                             self.capabilities if capabilities is None else capabilities,
                             self.parameters if parameters is None else parameters)
            if uri:
                q.cmd("migrate-incoming", uri=uri)
        except BaseException:
            q.close()
            raise
        return q

    @staticmethod
    def finish(source):
        """The source may stop its guest now."""
        source.cmd("migrate-set-parameters", max_bandwidth=1 << 40, downtime_limit=60000)

    def stopped(self, source):
        """The move is over there: what its RAM was."""
        source.wait_migrated()
        equal(source.cmd("query-status")["status"], "postmigrate", "source")
        self.ram = source.memory(0, RAM)

    def rounds_of(self, source, rounds=2):
        wait_for(lambda: source.migration().get("ram", {}).get("dirty-sync-count", 0) >= rounds,
                 f"{rounds} rounds")

    def live(self, *options, during=None, source=(), rounds=2, follow=True, listen=None):
        """Through a source of ours, round by round while it comes in; what that counted."""
        with self.destination(f"unix:{self.tmp}/to") as destination, \
                Forward(self.tmp, f"unix:{self.tmp}/to", f"rounds={ROUNDS}",
                        f"uuid={UUID.replace('-', '')}", *options, listen=listen) as forward:
            source = self.source(source)
            source.migrate(forward.uri)
            early = False
            if follow:
                self.rounds_of(source, rounds)
                # A guest that does not run for a moment writes nothing: then the source can end, and
                # nothing keeps it from that.
                wait_for(lambda: forward.last("round") >= ROUNDS - 1
                         or source.migration()["status"] in ("pre-switchover", *ENDS),
                         f"round {ROUNDS - 1} of ours")
                early = source.migration()["status"] in ENDS
            if during and not early:
                during(source, forward, destination)
            else:
                self.finish(source)
            self.stopped(source)
            result = forward.result()
            runs_on(self.tmp, destination, self.ram)
        if early:
            raise Skip("it moved and runs on, but the guest wrote too little for rounds of ours")
        return result

    def into(self, start, rounds=2, **more):
        """Into what start() listens with (guestram.Receiver and the like); what it says at the end."""
        with start() as receiver:
            source = self.source(**more)
            source.migrate(receiver.uri)
            self.rounds_of(source, rounds)
            self.finish(source)
            self.stopped(source)
            return receiver.result()

    def into_uri(self, uri, **more):
        """Into something that is no socket, at full speed: it waits for nobody."""
        source = self.source(**more)
        self.finish(source)
        source.migrate(uri)
        self.stopped(source)

    def from_stream(self, path):
        """The destination reads a stream in a file."""
        with self.destination(None, [], {}) as q:
            q.cmd("migrate-incoming", uri=f"exec:cat {path}")
            runs_on(self.tmp, q, self.ram)

    def from_image(self, image, capabilities=("mapped-ram",), parameters=None):
        """The destination gets an image: it loads it if it can, or it is sent there."""
        if self.lane.version["destination"] < (9, 0):
            with self.destination(f"unix:{self.tmp}/incoming", [], {}) as q:
                guestram.run("send", image, f"unix:{self.tmp}/incoming")
                runs_on(self.tmp, q, self.ram)
            return
        with self.destination(None, capabilities, parameters or {}) as q:
            q.cmd("migrate-incoming", uri=f"file:{image}")
            runs_on(self.tmp, q, self.ram)


def cell(lane, name, function):
    """A test of tap.py."""
    def run(tmp):
        for end in "source", "destination":
            lane.need(end, None, None)
        move = Move(lane, tmp)
        try:
            function(move)
            for undo in lane.undo:
                undo()
            lane.undo = []
            if move.options:
                lane.close(also_folder=False)
        except BaseException:
            lane.close(also_folder=False)
            raise
    run.__name__ = name
    return run


def table(modes, lanes, results):
    """Lines: the modes down, the lanes across."""
    words = {"ok": "passed", "": "FAILED", "-": "-"}
    width = max(map(len, modes))
    for mode, found in [("", lanes), *((mode, [results.get(f"{mode}_{lane}", "-") for lane in lanes])
                                       for mode in modes)]:
        columns = found if mode == "" else [words.get(verdict, "skipped") for verdict in found]
        yield f"matrix: {mode:{width}}" + "".join(f"  {column:>12}" for column in columns)
