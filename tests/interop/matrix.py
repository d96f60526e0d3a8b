# SPDX-License-Identifier: MIT
"""What the matrix is made of: a lane for each pair of QEMUs, in which one source serves all modes."""
import mmap
import os
import resource
import shutil
import tempfile

import guestram
import qemu
import writer_guest
from forward import Forward
from qemu import Qemu, QemuError, wait_for
from running import MIB, PAGES, RAM, dots, runs_on
from stream import Stream
from tap import Skip, equal, same_bytes
from wire import Wire

UUID = "12345678-9abc-def0-1234-56789abcdef0"
PAGE = 4096
ROM_AT, ROM = 0xfffc0000, 256 << 10  # pc.bios
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

    def able(self, version, what):
        """The ends that are at least so new; Skip if none is."""
        able = [end for end in self.version if self.version[end] >= version]
        if not able:
            self.need("source", version, what)
        return able

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
            try:
                q.capability(name)
            except QemuError as error:
                if str(error) != CANNOT.get(name):
                    raise
                raise Skip(KERNEL + str(error)) from None
        if parameters:
            q.cmd("migrate-set-parameters", **parameters)


# What a QEMU says to the call that switches a mode on, where the kernel has it not.
KERNEL = "not with this kernel: "
CANNOT = {"background-snapshot":
          "migrate-set-capabilities: Background-snapshot is not supported by host kernel"}

ENDS = ("completed", "failed")

# What a wire can have that says which mode was used. What a row does not name may not be there.
TELLING = ("xbzrle", "compress", "flush", "packets", "normal_on_channels", "zero_on_channels", "open", "ping",
           "pong", "shut", "shut-bad", "ack")
ASKED = {"open": 1, "ping": 1, "pong": 1, "shut": 1}  # a return path that is used


class Early(Skip):
    """The source had sent all before it was told to."""

    def __init__(self):
        super().__init__("it moved and runs on, but the guest wrote too little for rounds of ours")


def stream_in(path, **how):
    """A file's, as a wire has it."""
    with open(path, "rb") as f:
        return File(Stream(mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ), **how))


class File:
    def __init__(self, stream):
        self.stream, self.channels, self.count = stream, [], stream.count


def may_lock_memory(n):
    soft, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    return soft in (-1, resource.RLIM_INFINITY) or soft >= n or os.geteuid() == 0


def says(wire, *, shared=(), capabilities=(), uuid=None, channels=0, **least):
    """At least so many of each were on the wire, and nothing that belongs to another mode; each page of
    each block was, except of those that are shared: none."""
    for kind in {*TELLING, *least}:
        n, wanted = wire.count[kind], least.get(kind, 0)
        assert n >= wanted if wanted else n == 0, f"{kind}: {n}, not {wanted}; {dict(wire.count)}"
    equal(wire.count["ping"], wire.count["pong"], "answers to PING")
    equal(wire.stream.capabilities, list(capabilities), "capabilities in the configuration")
    equal(wire.stream.uuid, uuid, "UUID in the configuration")
    equal(sorted(c.id for c in wire.channels), list(range(channels)), "channels")
    named = {name: set(pages) for name, pages in wire.stream.named.items()}
    for channel in wire.channels:
        for name, pages in channel.named.items():
            named[name] |= pages
    for name, block in wire.stream.blocks.items():
        wanted = set() if name in shared else set(range(0, len(block), PAGE))
        equal(sorted(named[name] ^ wanted)[:8], [], f"pages of {name} named that should not, or not named")


class Move:
    """One cell: a mode in a lane, in a folder of its own. What a mode's function gets."""

    def __init__(self, lane, tmp, capabilities=(), parameters=None):
        self.lane, self.tmp = lane, tmp
        self.capabilities, self.parameters = list(capabilities), dict(parameters or {})
        self.options = []  # of both QEMUs, which then are for this cell alone
        self.ram = self.rom = None
        self.wires = ()
        self.told = None  # by the source, at the end

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
        self.told = source.wait_migrated()
        equal(source.cmd("query-status")["status"], "postmigrate", "source")
        self.ram, self.rom = source.memory(0, RAM), source.memory(ROM_AT, ROM)

    def rounds_of(self, source, rounds=2):
        wait_for(lambda: source.migration().get("ram", {}).get("dirty-sync-count", 0) >= rounds,
                 f"{rounds} rounds")

    def live(self, *options, during=None, source=(), parameters=None, rounds=2, follow=True, tcp=False,
             ack_passes=True):
        """Through a source of ours, round by round while it comes in; what went over both wires."""
        with self.destination(f"unix:{self.tmp}/to") as destination, \
                Wire(self.tmp, "out", f"unix:{self.tmp}/to") as sent, \
                Forward(self.tmp, sent.uri, f"rounds={ROUNDS}",
                        f"uuid={UUID.replace('-', '')}", *options) as forward, \
                Wire(self.tmp, "in", forward.uri, tcp=tcp) as came:
            source = self.source(source, parameters)
            self.wires = came, sent
            for wire in self.wires if not ack_passes else ():
                wire.ack_passes = False
            source.migrate(came.uri)
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
            forward.result()
            self.arrived(destination)
        for wire in came, sent:
            wire.read(self.parameters.get("multifd-compression", "none") != "none")
        if early:
            raise Early
        return came, sent

    def into(self, start, rounds=2, **more):
        """Into what start() listens with (guestram.Receiver and the like); the wire, and what it says at the
        end."""
        with start() as receiver, Wire(self.tmp, "in", receiver.uri) as came:
            source = self.source(**more)
            source.migrate(came.uri)
            self.rounds_of(source, rounds)
            self.finish(source)
            self.stopped(source)
            result = receiver.result()
        came.read(self.parameters.get("multifd-compression", "none") != "none")
        return came, result

    def send(self, image, destination_uri):
        """An image of ours goes to a QEMU that waits."""
        with Wire(self.tmp, "sent", destination_uri) as sent:
            guestram.run("send", image, sent.uri)
        sent.read()
        says(sent)

    def arrived(self, q):
        """What the source had is there, its ROMs, too, and the guest runs on."""
        runs_on(self.tmp, q, self.ram)
        same_bytes(q.memory(ROM_AT, ROM), self.rom, "destination's ROM")

    def into_uri(self, uri, **more):
        """Into something that is no socket, at full speed: it waits for nobody."""
        source = self.source(**more)
        self.finish(source)
        source.migrate(uri)
        self.stopped(source)

    def from_stream(self, uri):
        """The destination reads a stream."""
        with self.destination(None, [], {}) as q:
            q.cmd("migrate-incoming", uri=uri)
            self.arrived(q)

    def from_image(self, image, capabilities=("mapped-ram",), parameters=None):
        """The destination gets an image: it loads it if it can, or it is sent there."""
        if self.lane.version["destination"] < (9, 0):
            with self.destination(f"unix:{self.tmp}/incoming", [], {}) as q:
                self.send(image, f"unix:{self.tmp}/incoming")
                self.arrived(q)
            return
        with self.destination(None, capabilities, parameters or {}) as q:
            q.cmd("migrate-incoming", uri=f"file:{image}")
            self.arrived(q)


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


def skips(results):
    """{name of a cell: reason}"""
    return {name: verdict for name, verdict in results.items() if verdict not in ("", "ok")}


def table(modes, lanes, results):
    """Lines: the modes down, the lanes across."""
    words = {"ok": "passed", "": "FAILED", "-": "-"}
    width = max(map(len, modes))
    for mode, found in [("", lanes), *((mode, [results.get(f"{mode}_{lane}", "-") for lane in lanes])
                                       for mode in modes)]:
        columns = found if mode == "" else [words.get(verdict, "skipped") for verdict in found]
        yield f"matrix: {mode:{width}}" + "".join(f"  {column:>12}" for column in columns)
