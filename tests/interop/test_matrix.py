#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""The matrix: a QEMU's guest that numbers its page writes moves QEMU -> guestram -> QEMU and runs on,
in each mode that the QEMUs have, between the versions that are here. A test is a cell."""
import os

import guestram
import qemu
from forward import Forward
from matrix import Lane, cell, name_of, table
from qemu import QemuError, wait_for
from running import PAGES, RAM, runs_on, shared_ram
from tap import Skip, equal, main

MODES = {}


def mode(name):
    def keep(function):
        MODES[name] = function
        return function
    return keep


def live(name, *options, capabilities=(), parameters=None, source=(), rounds=2, check=None):
    """Live, with these capabilities and parameters at both QEMUs, or the source's alone."""
    def run(move):
        move.capabilities, move.parameters = list(capabilities), dict(parameters or {})
        result = move.live(*options, source=source, rounds=rounds)
        if check:
            assert check(result), result
    MODES[name] = run


live("precopy", check=lambda r: r["normal"] > PAGES)
live("return-path", capabilities=["return-path"])
live("xbzrle", "cache=32", "pages=2048", source=["xbzrle"], rounds=5,
     check=lambda r: min(r["xbzrle"], r["in_xbzrle"]) > PAGES / 4)
live("compress", source=["compress"], check=lambda r: r["in_normal"] > PAGES)


def multifd(name, channels, compression="none", **parameters):
    live(name, f"multifd={channels}", f"compression={compression}", capabilities=["multifd"],
         parameters={"multifd-channels": channels, "multifd-compression": compression, **parameters},
         check=lambda r: min(r["in_zero"], r["in_normal"], r["normal"]) > RAM // 4096 // 4)


multifd("multifd-1", 1)
multifd("multifd-2", 2)
multifd("multifd-8", 8)
multifd("multifd-zlib", 3, "zlib")
multifd("multifd-zstd", 3, "zstd")
multifd("multifd-zero-pages-on-channels", 2, **{"zero-page-detection": "multifd"})
multifd("multifd-zero-pages-on-main", 2, **{"zero-page-detection": "legacy"})


@mode("zero-copy-send")
def _(move):
    """The source's kernel sends from guest memory, which takes TCP and memory that may be locked."""
    move.parameters = {"multifd-channels": 2, "multifd-compression": "none"}
    move.capabilities = ["multifd"]
    try:
        move.live("multifd=2", source=["zero-copy-send"], listen="tcp:127.0.0.1:0")
    except (AssertionError, QemuError) as error:
        if "ZERO_COPY" in str(error) or "memlock" in str(error).lower():
            raise Skip(str(error)) from None
        raise


@mode("validate-uuid")
def _(move):
    move.capabilities = ["validate-uuid"]
    move.live("validate=1")


@mode("x-ignore-shared")
def _(move):
    """All have one file for pc.ram; the rest travels."""
    move.options = shared_ram(move.tmp)
    move.capabilities = ["x-ignore-shared"]
    result = move.live(f"shared={move.tmp}/shared", follow=False)
    assert result["bytes"] < RAM // 8, result


@mode("switchover-ack")
def _(move):
    """Ours hears of the destination, and says so to the source: both wait for it."""
    move.capabilities = ["return-path", "switchover-ack"]
    move.live("ack=1")


@mode("auto-converge")
def _(move):
    """The source slows its guest down, and ours slows the source down."""
    def during(source, forward, _):
        forward.wait_told("throttle")
        wait_for(lambda: source.migration().get("cpu-throttle-percentage", 0) > 0, "throttling")
        move.finish(source)
    move.live("converge=1", "rounds=5", f"pages={PAGES}", during=during, source=["auto-converge"])


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
    move.live("pause=1", during=during, source=["pause-before-switchover"])


@mode("relay")
def _(move):
    with move.destination(f"unix:{move.tmp}/to") as destination:
        move.into(lambda: guestram.Relay(move.tmp, f"unix:{move.tmp}/from", f"unix:{move.tmp}/to"))
        runs_on(move.tmp, destination, move.ram)


def receive(move, **more):
    """Into an image of ours."""
    image = os.path.join(move.tmp, "vm.ram")
    move.into(lambda: guestram.Receiver(f"unix:{move.tmp}/image", image), **more)
    return image


def stream_of(move, image):
    """The image as a stream again, in a file."""
    back = os.path.join(move.tmp, "back")
    guestram.run("send", image, f"file:{back}")
    return back


@mode("image")
def _(move):
    image = receive(move)
    with move.destination(f"unix:{move.tmp}/incoming") as q:
        guestram.run("send", image, f"unix:{move.tmp}/incoming")
        runs_on(move.tmp, q, move.ram)


@mode("exec")
def _(move):
    capture, image = os.path.join(move.tmp, "capture"), os.path.join(move.tmp, "vm.ram")
    move.into_uri(f"exec:cat > {capture}")
    guestram.run("receive", f"file:{capture}", "--output", image)
    move.from_stream(stream_of(move, image))


@mode("file")
def _(move):
    for end in "source", "destination":
        move.lane.need(end, (8, 2), "file:")
    capture, image = os.path.join(move.tmp, "capture"), os.path.join(move.tmp, "vm.ram")
    move.into_uri(f"file:{capture}")
    guestram.run("receive", f"file:{capture}", "--output", image)
    with move.destination(f"file:{stream_of(move, image)}") as q:
        runs_on(move.tmp, q, move.ram)


def mapped_ram(name, capabilities, **parameters):
    """A QEMU from 9.0 on writes the file, or loads it; the other end has a stream."""
    def run(move):
        able = [end for end in ("source", "destination") if move.lane.version[end] >= (9, 0)]
        if not able:
            move.lane.need("source", (9, 0), "mapped-ram")
        image = os.path.join(move.tmp, "theirs")
        if "source" in able:
            move.into_uri(f"file:{image}", capabilities=capabilities, parameters=parameters)
            image = again(move, image)
        else:
            image = receive(move)
        move.from_image(image, capabilities, parameters)
    MODES[name] = run


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
    result = move.into(lambda: Forward(move.tmp, f"{how}:{image}"))
    move.from_image(image)
    return result


def unless_it_cannot(function):
    """Skip where the kernel has no write protection of memory for us, or for QEMU."""
    try:
        return function()
    except AssertionError as error:
        if "userfault" in str(error) or "write tracking" in str(error):
            raise Skip(str(error)) from None
        raise


@mode("saved-image")
def _(move):
    from_ours(move, "save")


@mode("snapshot-image")
def _(move):
    """Its memory is overwritten while it is saved."""
    result = unless_it_cannot(lambda: from_ours(move, "snapshot"))
    assert result["copied"] > 0, result


@mode("background-snapshot")
def _(move):
    """The source's guest goes on, and each page comes once, as it was in one moment."""
    with move.destination(f"unix:{move.tmp}/to") as destination, \
            Forward(move.tmp, f"unix:{move.tmp}/to", "rounds=2") as forward:
        source = move.source(["background-snapshot"])
        source.migrate(forward.uri)
        unless_it_cannot(source.wait_migrated)
        assert source.cmd("query-status")["running"], "the source has stopped"
        source.cmd("stop")
        forward.result()
        runs_on(move.tmp, destination)


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


def end(results):
    for lane in LANES.values():
        lane.close()
    return table(MODES, LANES, results)


main([[cell(lane, f"{name}_{between}", function) for name, function in MODES.items()]
      for between, lane in LANES.items()] + [[nothing_of_a_qemu_has_been_forgotten]], end=end)
