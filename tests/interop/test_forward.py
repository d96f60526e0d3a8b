#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""A QEMU's writing guest moves to another QEMU, which our own source serves. Each mode of it is a row of
test_matrix.py; here are the limits, and what is refused."""
import os

import guestram
import qemu
from forward import Forward
from qemu import Qemu, wait_for
from running import MIB, RAM, dots, running, runs_on, shared_ram
from stream import Stream
from tap import equal, main, same_bytes, test

ROM_AT, EMPTY_FROM, ROM_END = 0xfffc0000, 192 << 10, 256 << 10
UUID = "12345678-9abc-def0-1234-56789abcdef0"


def moves(tmp, *options, capabilities=(), tcp=False):
    """Live; what was counted."""
    with running(tmp, "source") as source, \
            running(tmp, "destination", "-S", "-incoming", "defer") as destination:
        for name in capabilities:
            destination.capability(name)
        uri = f"unix:{tmp}/to"
        destination.cmd("migrate-incoming", uri="tcp:127.0.0.1:0" if tcp else uri)
        if tcp:
            uri = f"tcp:127.0.0.1:{destination.migration()['socket-address'][0]['port']}"
        with Forward(tmp, uri, *options) as forward:
            sends(tmp, source, forward)
            result = forward.result()
        runs_on(tmp, destination, source.memory(0, RAM))
    return result


def sends(tmp, source, forward, rounds=7):
    """The source may not end before ours has sent a few rounds of it."""
    wait_for(lambda: dots(f"{tmp}/source.e9") > 20, "writer at work")
    source.cmd("migrate-set-parameters", max_bandwidth=64 * MIB, downtime_limit=1)
    source.migrate(forward.uri)
    forward.wait_told("round", rounds)
    source.cmd("migrate-set-parameters", max_bandwidth=1 << 40, downtime_limit=60000)
    source.wait_migrated()


@test
def differences_with_a_return_path_over_tcp(tmp):
    """The writer changes twelve bytes of each page: a difference is a few bytes."""
    result = moves(tmp, "cache=32", "pages=2048", capabilities=["return-path", "xbzrle"], tcp=True)
    assert result["xbzrle"] > 4096, result
    assert result["xbzrle_bytes"] < 64 * result["xbzrle"], result


@test
def a_cache_that_is_much_too_small_does_no_harm(tmp):
    result = moves(tmp, "cache=1", "pages=2048")
    assert result["misses"] > result["xbzrle"] > 0, result


OTHER = UUID[:-1] + "1"


def uuid_of(theirs, ours, tmp, *options):
    """From a QEMU with a UUID through ours with another one to a QEMU with UUID: what each end said, if it
    refused."""
    with running(tmp, "source", "-uuid", theirs) as source, \
            running(tmp, "destination", "-S", "-uuid", UUID, "-incoming", "defer") as destination:
        for q in source, destination:
            q.capability("validate-uuid")
        source.capability("return-path")
        destination.cmd("migrate-incoming", uri=f"unix:{tmp}/to")
        with Forward(tmp, f"unix:{tmp}/to", f"uuid={ours.replace('-', '')}", *options) as forward:
            wait_for(lambda: dots(f"{tmp}/source.e9") > 20, "writer at work")
            source.migrate(forward.uri)
            equal(forward.process.wait(qemu.TIMEOUT), 1, "ours")
            wait_for(lambda: source.migration()["status"] == "failed", "failure of the source")
            wait_for(lambda: source.cmd("query-status")["running"], "source running")
            return forward.stderr(), destination


def names_both(said):
    assert UUID in said and OTHER in said and said.count("UUID") >= 1, said


@test
def a_qemu_with_another_uuid_is_refused_by_ours(tmp):
    """Which says both, and the QEMU's guest runs on."""
    said, _ = uuid_of(OTHER, UUID, tmp, "validate=1")
    names_both(said)


@test
def ours_with_another_uuid_is_refused_by_a_qemu(tmp):
    """Which says both; ours has heard that it was refused."""
    said, destination = uuid_of(OTHER, OTHER, tmp, "validate=1")
    names_both(destination.stderr())
    assert "the destination has" in said, said


@test
def our_source_names_every_page_of_every_block(tmp):
    """As a QEMU does, which relies on it: ROMs, and pages that nobody ever touched; by a parser of the
    tests' own."""
    sent = os.path.join(tmp, "sent")
    with running(tmp, "source") as source:
        with Forward(tmp, f"file:{sent}", "plain=1") as forward:
            sends(tmp, source, forward)
            forward.result()
        blocks, ram = source.ram_blocks(), source.memory(0, RAM)
    with open(sent, "rb") as f:
        stream = Stream(f.read())
    equal({name: len(block) for name, block in stream.blocks.items()}, blocks, "blocks")
    equal(stream.unnamed(), [], "pages that were not named")
    same_bytes(bytes(stream.blocks["pc.ram"][0x100000:]), ram[0x100000:], "RAM above 1 MiB")
    with running(tmp, "destination", "-S", "-incoming", f"exec:cat {sent}") as destination:
        runs_on(tmp, destination, ram)


def with_empty_rom(tmp):
    """A stream whose pc.bios ends with zeroes, where each fresh QEMU has bytes."""
    capture, empty = os.path.join(tmp, "capture"), os.path.join(tmp, "empty")
    with Qemu(tmp, "source", "-m", "8", "-S") as q:
        q.migrate(f"exec:cat > {capture}")
        q.wait_migrated()
        assert any(q.memory(ROM_AT + EMPTY_FROM, ROM_END - EMPTY_FROM)), "an empty ROM"
    with open(capture, "rb") as f:
        stream = Stream(f.read())
    data = bytearray(stream.data)
    for offset in range(EMPTY_FROM, ROM_END, 4096):
        at = stream.named["pc.bios"][offset]
        if at is not None:
            data[at:at + 4096] = bytes(4096)
    with open(empty, "wb") as f:
        f.write(data)
    return empty


def has_empty_rom(q):
    q.wait_migrated()
    rom = q.memory(ROM_AT, ROM_END)
    same_bytes(rom[EMPTY_FROM:], bytes(ROM_END - EMPTY_FROM), "the end of pc.bios")
    assert any(rom[:EMPTY_FROM]), "nothing of pc.bios"


@test
def a_rom_that_differs_from_the_destinations_own_arrives(tmp):
    """Its zero pages, too: live, as a stream of an image, and as an image."""
    empty, image = with_empty_rom(tmp), os.path.join(tmp, "vm.ram")
    uri = f"unix:{tmp}/to"
    guestram.run("receive", f"file:{empty}", "--output", image)
    with Qemu(tmp, "live", "-m", "8", "-S", "-incoming", uri) as q:
        with Forward(tmp, uri) as forward:
            guestram.run("relay", f"file:{empty}", forward.uri)
            forward.result()
        has_empty_rom(q)
    with Qemu(tmp, "sent", "-m", "8", "-S", "-incoming", uri) as q:
        guestram.run("send", image, uri)
        has_empty_rom(q)
    if (qemu.version_of(qemu.BINARY) or (0, 0)) >= (9, 0):
        with Qemu(tmp, "loads", "-m", "8", "-S", "-incoming", "defer") as q:
            q.capability("mapped-ram")
            q.cmd("migrate-incoming", uri=f"file:{image}")
            has_empty_rom(q)


@test
def shared_memory_on_one_side_only_is_refused_by_name(tmp):
    with running(tmp, "source", *shared_ram(tmp)) as source, \
            running(tmp, "destination", "-S", *shared_ram(tmp), "-incoming", f"unix:{tmp}/to"):
        wait_for(lambda: dots(f"{tmp}/source.e9") > 20, "writer at work")
        for on, options in (True, []), (False, [f"shared={tmp}/shared"]):
            source.capability("x-ignore-shared", on)
            source.capability("return-path")
            with Forward(tmp, f"unix:{tmp}/to", *options) as forward:
                source.migrate(forward.uri)
                equal(forward.process.wait(qemu.TIMEOUT), 1, "ours")
                assert "x-ignore-shared" in forward.stderr(), forward.stderr()
            wait_for(lambda: source.migration()["status"] == "failed", "failure")
            wait_for(lambda: source.cmd("query-status")["running"], "source running")


if __name__ == "__main__":
    main()
