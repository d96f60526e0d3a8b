#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""The matrix: a QEMU's guest that numbers its page writes moves QEMU -> guestram -> QEMU and runs on,
in each mode that the QEMUs have, between the versions that are here. A test is a cell."""
import collections
import os
import random
import types

import guestram
import qemu
from forward import Forward
from matrix import (ASKED, KERNEL, ROUNDS, UUID, Early, Lane, cell, may_lock_memory, name_of, says, skips, stream_in,
                    table)
from qemu import TIMEOUT, wait_for
from running import MIB, PAGES, RAM, runs_on, shared_ram
from tap import Skip, equal, main, same_bytes
from wire import Wire

MODES = {}
ZEROS = RAM // 4096 // 4  # that are zero in the guest's memory, at least
FREE_AT = 24 * MIB  # the guest leaves it alone


def mode(name):
    def keep(function):
        MODES[name] = function
        return function
    return keep


def live(name, *options, capabilities=(), parameters=None, source=(), rounds=2, both=None, came=None, sent=None):
    """Live, with these capabilities and parameters at both QEMUs, or the source's alone. What was on the wires:
    from the QEMU, to the QEMU, or both."""
    def run(move):
        move.capabilities, move.parameters = list(capabilities), dict(parameters or {})
        wires = move.live(*options, source=source, rounds=rounds)
        says(wires[0], **(both or {}), **(came or {}))
        says(wires[1], **ASKED, **(both or {}), **(sent or {}))
    MODES[name] = run


live("precopy", both={"normal": PAGES, "zero": PAGES // 4})
live("return-path", capabilities=["return-path"], came=ASKED)
live("xbzrle", "cache=32", "pages=2048", source=["xbzrle"], rounds=5, both={"xbzrle": PAGES // 4})
live("compress", source=["compress"], came={"compress": PAGES}, sent={"normal": PAGES})


def multifd(name, channels, compression="none", zero_pages=None):
    """All pages on the channels; the zero pages of a QEMU's where they are asked for."""
    def run(move):
        move.capabilities = ["multifd"]
        move.parameters = {"multifd-channels": channels, "multifd-compression": compression}
        wires = move.live(f"multifd={channels}", f"compression={compression}",
                          parameters={"zero-page-detection": zero_pages} if zero_pages else {})
        on_channels((wires[0], {}), (wires[1], ASKED), channels=channels, compression=compression)
        if zero_pages:
            there, not_there = ("zero_on_channels", "zero") if zero_pages == "multifd" else \
                ("zero", "zero_on_channels")
            assert wires[0].count[there] >= ZEROS and not wires[0].count[not_there], wires[0].count
    MODES[name] = run


def on_channels(*wires, channels, compression="none"):
    """Each wire with what else was on it."""
    for wire, more in wires:
        any_number = {k: wire.count[k] for k in ("flush", "zero_on_channels")}
        says(wire, channels=channels, packets=channels, normal_on_channels=PAGES, **any_number, **more)
        equal(wire.count["normal"], 0, "pages on the main channel")
        assert wire.count["zero"] + wire.count["zero_on_channels"] >= ZEROS, wire.count
        shrunk = 0 < wire.count["compressed_bytes"] < wire.count["normal_on_channels"] * 4096 // 2
        equal(shrunk, compression != "none", "compressed")


multifd("multifd-1", 1)
multifd("multifd-2", 2)
multifd("multifd-8", 8)
multifd("multifd-zlib", 3, "zlib")
multifd("multifd-zstd", 3, "zstd")
# The sender's parameter: ours says to each end what it understands.
multifd("multifd-zero-pages-on-channels", 2, zero_pages="multifd")
multifd("multifd-zero-pages-on-main", 2, zero_pages="legacy")


@mode("zero-copy-send")
def _(move):
    """The source's kernel sends from guest memory, which takes TCP and memory that may be locked. On loopback
    it has to copy all the same, and QEMU counts that: it was asked."""
    move.parameters = {"multifd-channels": 2, "multifd-compression": "none"}
    move.capabilities = ["multifd"]
    if not may_lock_memory(RAM):
        raise Skip(f"{KERNEL}RLIMIT_MEMLOCK is less than {RAM} bytes")
    came, sent = move.live("multifd=2", source=["zero-copy-send"], tcp=True)
    on_channels((came, {}), (sent, ASKED), channels=2)
    assert move.told["ram"]["dirty-sync-missed-zero-copy"] > 0, move.told


@mode("validate-uuid")
def _(move):
    """Both say it. test_forward.py has those that are refused."""
    move.capabilities = ["validate-uuid"]
    came, sent = move.live("validate=1")
    for wire, more in (came, {}), (sent, ASKED):
        says(wire, uuid=bytes.fromhex(UUID.replace("-", "")), **more)


@mode("x-ignore-shared")
def _(move):
    """All have one file for pc.ram: nothing of it is on a wire. The rest travels. What nobody but this test has
    written is there at the end."""
    move.options = shared_ram(move.tmp)
    mark = random.Random(move.tmp).randbytes(MIB)
    with open(f"{move.tmp}/shared", "r+b") as f:
        f.seek(FREE_AT)
        f.write(mark)
    move.capabilities = ["x-ignore-shared"]
    came, sent = move.live(f"shared={move.tmp}/shared", follow=False)
    for wire, more in (came, {}), (sent, ASKED):
        says(wire, shared=["pc.ram"], capabilities=["x-ignore-shared"], **more)
        assert set(wire.stream.blocks) > {"pc.ram", "pc.bios"}, list(wire.stream.blocks)
    same_bytes(move.ram[FREE_AT:FREE_AT + MIB], mark, "what was in the file before")


@mode("switchover-ack")
def _(move):
    """Ours hears of the destination, and says so to the source: both wait for it. Here neither word gets
    through before it is let through."""
    move.capabilities = ["return-path", "switchover-ack"]

    def during(source, forward, destination):
        came, sent = move.wires
        for wire in came, sent:
            assert wire.ack_came.wait(TIMEOUT), "nobody has acknowledged"
        move.finish(source)
        # Ours may switch over after its last round, and has gone on for as many again.
        move.rounds_of(source, source.migration()["ram"]["dirty-sync-count"] + ROUNDS)
        equal(source.migration()["status"], "active", "the source, not acknowledged")
        came.pass_ack()
        move.stopped(source)
        forward.wait_told("round", forward.last("round") + ROUNDS)
        equal(destination.cmd("query-status")["status"], "inmigrate", "destination")
        sent.pass_ack()
    for wire in move.live("ack=1", during=during, ack_passes=False):
        says(wire, ack=1, **ASKED)


def nothing_told(came, sent):
    """A mode of one end alone, of which the other hears nothing."""
    says(came)
    says(sent, **ASKED)


@mode("auto-converge")
def _(move):
    """The source slows its guest down, and ours slows the source down."""
    def during(source, forward, _):
        forward.wait_told("throttle")
        wait_for(lambda: source.migration().get("cpu-throttle-percentage", 0) > 0, "throttling")
        move.finish(source)
    nothing_told(*move.live("converge=1", "rounds=5", f"pages={PAGES}", during=during, source=["auto-converge"]))


@mode("pause-before-switchover")
def _(move):
    """Both stop before the last step, until they are told to go on; the guest runs nowhere meanwhile."""
    def during(source, forward, destination):
        move.finish(source)
        wait_for(lambda: source.migration()["status"] == "pre-switchover", "pre-switchover")
        assert not source.cmd("query-status")["running"]
        assert forward.last("pre-switchover") == 0
        source.cmd("migrate-continue", state="pre-switchover")
        forward.wait_told("pre-switchover")
        assert forward.process.poll() is None
        assert destination.cmd("query-status")["status"] == "inmigrate"
        forward.go_on()
    nothing_told(*move.live("pause=1", during=during, source=["pause-before-switchover"]))


def relay(name, channels=0, compression="none"):
    """Byte for byte what came in, and what was answered; the tool is told nothing of channels."""
    def run(move):
        move.capabilities = ["return-path", *["multifd"] * bool(channels)]
        if channels:
            move.parameters = {"multifd-channels": channels, "multifd-compression": compression}
        with move.destination(f"unix:{move.tmp}/to") as destination, \
                Wire(move.tmp, "out", f"unix:{move.tmp}/to") as sent:
            came, result = move.into(lambda: guestram.Relay(move.tmp, f"unix:{move.tmp}/from", sent.uri))
            move.arrived(destination)
        sent.read(compression != "none")
        same_bytes(sent.stream.data[:], came.stream.data[:], "what went out")
        equal(sent.back, came.back, "answers")
        if channels:
            same_channels(sent, came)
            on_channels((came, ASKED), (sent, ASKED), channels=channels, compression=compression)
        else:
            says(came, **ASKED)
        assert result["rounds"] >= 2, result
    MODES[name] = run


def same_channels(sent, came):
    """An empty packet of 7.2's behind the last SYNC may have been too late for anybody."""
    for out, into in zip(*(sorted(wire.channels, key=lambda c: c.id) for wire in (sent, came))):
        same_bytes(out.data[:], into.data[:len(out.data)], f"what went out on channel {out.id}")
        equal([k for k, n in (into.count - out.count).items() if n], ["packets"] * (len(out.data) < len(into.data)),
              f"what did not go out on channel {out.id}")


relay("relay")
relay("relay-multifd", 2)
relay("relay-multifd-zlib", 2, "zlib")
relay("relay-multifd-zstd", 2, "zstd")


def receive(move, **more):
    """Into an image of ours."""
    image = os.path.join(move.tmp, "vm.ram")
    came, _ = move.into(lambda: guestram.Receiver(f"unix:{move.tmp}/image", image), **more)
    says(came, normal=PAGES, zero=ZEROS)
    return image


def stream_of(move, image):
    """The image as a stream again, in a file."""
    back = os.path.join(move.tmp, "back")
    guestram.run("send", image, f"file:{back}")
    says(stream_in(back), normal=PAGES, zero=ZEROS)
    return back


@mode("image")
def _(move):
    image = receive(move)
    with move.destination(f"unix:{move.tmp}/incoming") as q:
        move.send(image, f"unix:{move.tmp}/incoming")
        move.arrived(q)


def by_file(move, scheme):
    """Into a file by the source, which ours receives; its stream again, in a file, for the destination. What
    has no file: has exec:."""
    capture, image = os.path.join(move.tmp, "capture"), os.path.join(move.tmp, "vm.ram")
    move.into_uri(f"file:{capture}" if "source" in scheme else f"exec:cat > {capture}")
    says(stream_in(capture), normal=PAGES, zero=ZEROS)
    guestram.run("receive", f"file:{capture}", "--output", image)
    back = stream_of(move, image)
    move.from_stream(f"file:{back}" if "destination" in scheme else f"exec:cat {back}")


@mode("exec")
def _(move):
    by_file(move, ())


@mode("file")
def _(move):
    by_file(move, move.lane.able((8, 2), "file:"))


def mapped_ram(name, capabilities, **parameters):
    """A QEMU from 9.0 on writes the file, or loads it; the other end has a stream."""
    def run(move):
        able = move.lane.able((9, 0), "mapped-ram")
        image = os.path.join(move.tmp, "theirs")
        if "source" in able:
            move.into_uri(f"file:{image}", capabilities=capabilities, parameters=parameters)
            mapped(image)
            image = again(move, image)
        else:
            image = receive(move)
        mapped(image)
        move.from_image(image, capabilities, parameters)
    MODES[name] = run


def mapped(image):
    """Pages by bitmaps, none in the stream."""
    found = stream_in(image, mapped_ram=True)
    assert found.count["in_bitmap"] >= PAGES, found.count
    equal({k: n for k, n in found.count.items() if k not in ("in_bitmap", "switchover-start", "flush")}, {},
          "records beside the bitmaps")


def again(move, image):
    """Through a stream into an image of our own."""
    ours = os.path.join(move.tmp, "ours")
    guestram.run("receive", f"file:{stream_of(move, image)}", "--output", ours)
    return ours


mapped_ram("mapped-ram", ["mapped-ram"])
mapped_ram("mapped-ram-multifd", ["mapped-ram", "multifd"])
mapped_ram("mapped-ram-direct-io", ["mapped-ram", "multifd"], **{"direct-io": True})


def from_ours(move, how):
    """The machine that came as an image of ours, which a QEMU from 9.0 on loads; what was counted."""
    image = os.path.join(move.tmp, "vm.ram")
    came, result = move.into(lambda: Forward(move.tmp, f"{how}:{image}"))
    says(came)
    mapped(image)
    move.from_image(image)
    return result


@mode("saved-image")
def _(move):
    from_ours(move, "save")


@mode("snapshot-image")
def _(move):
    """Its memory is overwritten while it is saved."""
    if not guestram.feature("uffd-wp-sync"):
        raise Skip(f"{KERNEL}uffd-wp-sync")
    result = from_ours(move, "snapshot")
    assert result["copied"] > 0, result


@mode("background-snapshot")
def _(move):
    """The source's guest goes on, and each page comes once, as it was in one moment."""
    with move.destination(f"unix:{move.tmp}/to") as destination, \
            Wire(move.tmp, "out", f"unix:{move.tmp}/to") as sent, \
            Forward(move.tmp, sent.uri, "rounds=2") as forward, \
            Wire(move.tmp, "in", forward.uri) as came:
        source = move.source(["background-snapshot"])
        source.migrate(came.uri)
        source.wait_migrated()
        assert source.cmd("query-status")["running"], "the source has stopped"
        source.cmd("stop")
        forward.result()
        runs_on(move.tmp, destination)
    for wire in came, sent:
        wire.read()
    nothing_told(came, sent)
    equal(3 in [code for code, _ in came.stream.sections], False, "a section END from the QEMU")
    equal(came.count["normal"] + came.count["zero"], sum(map(len, came.stream.blocks.values())) // 4096,
          "each page once")


def never(name, reason):
    def run(_):
        raise Skip(reason)
    MODES[name] = run


for name in "postcopy-ram", "postcopy-preempt", "tls":
    never(name, "guestram has no such thing yet")
never("dirty-limit", "QEMU needs KVM's dirty ring for it")

# No modes of their own, or none that we have.
OTHERS = {
    "rdma-pin-all": "needs RDMA", "block": "refused by name (test_refused.py)",
    "dirty-bitmaps": "refused by name (test_refused.py)", "x-colo": "two machines at once",
    "events": "nothing on the wire", "zero-blocks": "nothing on the wire",
    "late-block-activate": "nothing on the wire", "release-ram": "of postcopy",
    "postcopy-blocktime": "of postcopy",
}
QEMUS = {name_of(qemu.OLDER, "system"): qemu.OLDER, name_of(qemu.NEWER, "newer"): qemu.NEWER}
LANES = {f"{a}_to_{b}": Lane(QEMUS[a], QEMUS[b])
         for a, b in [(a, b) for a in QEMUS for b in QEMUS]}



def nothing_of_a_qemu_has_been_forgotten(tmp):
    """Each capability of each QEMU is a row, or known to be none."""
    seen = set()
    for binary in filter(qemu.version_of, QEMUS.values()):
        with qemu.Qemu(tmp, "asked", "-m", "8", "-S", binary=binary) as q:
            seen |= {c["capability"] for c in q.cmd("query-migrate-capabilities")}
    if not seen:
        raise Skip("no QEMU here")
    rows = set(MODES) | {"multifd"}
    equal(sorted(seen - rows - set(OTHERS)), [], "capabilities that no row is for")


class Said:
    """A wire by hand: one block of two pages, of which these were named."""

    def __init__(self, named=(0, 4096), uuid=None, **count):
        self.stream = types.SimpleNamespace(capabilities=[], uuid=uuid, blocks={"a": bytes(8192)},
                                            named={"a": dict.fromkeys(named)})
        self.count, self.channels = collections.Counter(normal=2, **count), []


def a_row_can_fail(tmp):
    """Its mode was not used, or another one was; a page is missing, or there that should not be."""
    del tmp
    says(Said())
    says(Said(xbzrle=5), xbzrle=5)
    says(Said(named=()), shared=["a"])
    for wire, wanted in ((Said(), {"xbzrle": 1}), (Said(xbzrle=4), {"xbzrle": 5}), (Said(xbzrle=1), {}),
                         (Said(compress=1), {}), (Said(ack=1), {}), (Said(**{"shut-bad": 1}), {}),
                         (Said(ping=2, pong=1), {"ping": 1, "pong": 1}), (Said(named=[0]), {}),
                         (Said(named=[0]), {"shared": ["a"]}), (Said(), {"uuid": b"u"}), (Said(uuid=b"u"), {}),
                         (Said(), {"capabilities": ["x-ignore-shared"]}), (Said(), {"channels": 1})):
        try:
            says(wire, **wanted)
        except AssertionError:
            continue
        raise AssertionError(f"nobody has noticed: {dict(wire.count)} {wanted}")


# With 7.2 and 10.0 these cells are skipped, for these reasons, and no others.
ALL = ["7.2_to_7.2", "7.2_to_10.0", "10.0_to_7.2", "10.0_to_10.0"]
SKIPPED = {
    **{f"{name}_{lane}": "guestram has no such thing yet"
       for name in ("postcopy-ram", "postcopy-preempt", "tls") for lane in ALL},
    **{f"dirty-limit_{lane}": "QEMU needs KVM's dirty ring for it" for lane in ALL},
    **{f"{name}_{lane}": "QEMU 7.2 has no parameter zero-page-detection"
       for name in ("multifd-zero-pages-on-channels", "multifd-zero-pages-on-main") for lane in ALL[:2]},
    **{f"compress_{lane}": "QEMU 10.0 has no capability compress" for lane in ALL[2:]},
    **{f"switchover-ack_{lane}": "QEMU 7.2 has no capability switchover-ack" for lane in ALL[:3]},
    "file_7.2_to_7.2": "QEMU 7.2 has no file:",
    **{f"{name}_7.2_to_7.2": "QEMU 7.2 has no mapped-ram"
       for name in ("mapped-ram", "mapped-ram-multifd", "mapped-ram-direct-io")},
}


def no_cell_is_skipped_that_should_not_be(tmp, results):
    """Nothing that fails can look like something that is not there."""
    del tmp
    versions = [qemu.version_of(binary) for binary in (qemu.OLDER, qemu.NEWER)]
    if versions != [(7, 2), (10, 0)]:
        raise Skip(f"what is skipped is known for QEMU 7.2 and 10.0, not for {versions}")
    found = skips(results)
    for cell_name, reason in sorted(found.items()):
        print(f"# skipped: {cell_name}: {reason}")
    may = {name: reason for name, reason in found.items()
           if reason.startswith(KERNEL) or reason == str(Early())}
    equal({**found, **{name: None for name in may}}, {**SKIPPED, **{name: None for name in may}}, "skipped cells")


def end(results):
    for lane in LANES.values():
        lane.close()
    return table(MODES, LANES, results)


main([[cell(lane, f"{name}_{between}", function) for name, function in MODES.items()]
      for between, lane in LANES.items()] + [[nothing_of_a_qemu_has_been_forgotten, a_row_can_fail]],
     last=no_cell_is_skipped_that_should_not_be, end=end)
