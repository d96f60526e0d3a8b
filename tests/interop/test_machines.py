#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Machines other than `pc`: into an image, back into a fresh QEMU of the same kind, where its RAM is
the same and its guest goes on; or refused by the name of the section that cannot be followed."""
import os
import re
import struct

import guestram
import writer_guest
from qemu import TIMEOUT, Qemu, wait_for
from tap import equal, main, same_bytes, test

MIB = 1 << 20


def capture(tmp, q):
    path = os.path.join(tmp, "capture")
    q.migrate(f"exec:cat > {path}")
    q.wait_migrated()
    return path


def moves(tmp, start, base, size, counter_at, channels=0):
    """start(name, *more) is a QEMU whose guest counts at counter_at, in RAM of this place and size; over
    further channels if there are any."""
    options = ["--multifd", str(channels)] if channels else []

    def set_up(q):
        if channels:
            q.capability("multifd")
            q.cmd("migrate-set-parameters", multifd_channels=channels)
    image = os.path.join(tmp, "vm.ram")
    with start("source") as q:
        wait_for(lambda: q.word(counter_at) > 20, "guest at work")
        set_up(q)
        q.cmd("migrate-set-parameters", max_bandwidth=1 << 40, downtime_limit=60000)
        with guestram.Receiver(f"unix:{tmp}/image.socket", image, *options) as receiver:
            q.migrate(receiver.uri)
            q.wait_migrated()
            receiver.result()
        ram = q.memory(base, size)
        blocks = q.ram_blocks()
    listed = {b["id"]: b["used_bytes"] for b in guestram.info(image)["blocks"]}
    equal(listed, {name: blocks[name] for name in listed}, "blocks")
    with start("destination", "-S", "-incoming", "defer") as q:
        set_up(q)
        q.cmd("migrate-incoming", uri=f"unix:{tmp}/incoming")
        guestram.run("send", image, f"unix:{tmp}/incoming", *options)
        q.wait_migrated()
        q.wait_status("paused", "prelaunch")
        same_bytes(q.memory(base, size), ram, "RAM")
        counter = q.word(counter_at)
        assert counter > 20, counter
        q.cmd("cont")
        wait_for(lambda: q.word(counter_at) > counter + 20, "guest going on")


def x86(tmp, machine, *args):
    def start(name, *more):
        return Qemu(tmp, name, "-m", "32", *args, *more, machine=machine)
    moves(tmp, start, MIB, 31 * MIB, writer_guest.COUNTER_AT)


@test
def q35_moves(tmp):
    x86(tmp, "q35", *writer_guest.disk(tmp, 256))


@test
def isapc_moves(tmp):
    x86(tmp, "isapc", *writer_guest.floppy(tmp, 256))


def arm(tmp, binary, cpu, words, channels=0):
    base, size = 0x40000000, 32 * MIB
    path = os.path.join(tmp, "code")
    with open(path, "wb") as f:
        f.write(b"".join(struct.pack("<I", w) for w in words))

    def start(name, *more):
        return Qemu(tmp, name, "-cpu", cpu, "-m", "32", "-device", f"loader,file={path},addr={base + 2 * MIB},cpu-num=0",
                    *more, machine="virt", binary=binary)
    moves(tmp, start, base, size, base + 0x300000, channels)


COUNTS_ON_64_BITS = [
    0xd2a80600,  # mov x0, 0x40300000
    0xd2800001,  # mov x1, 0
    0x11000421,  # pass: add w1, w1, 1
    0xb9000001,  # str w1, [x0]
    0x91404002,  # add x2, x0, 16 << 12
    0xb9000041,  # str w1, [x2]
    0x17fffffc,  # b pass
]


@test
def arm_virt_of_64_bits_moves(tmp):
    arm(tmp, "qemu-system-aarch64", "cortex-a57", COUNTS_ON_64_BITS)


@test
def arm_virt_moves_over_further_channels(tmp):
    """Its stream says the size of its pages."""
    arm(tmp, "qemu-system-aarch64", "cortex-a57", COUNTS_ON_64_BITS, channels=2)


@test
def arm_virt_of_32_bits_moves(tmp):
    arm(tmp, "qemu-system-arm", "cortex-a15", [
        0xe3a00101,  # mov r0, 0x40000000
        0xe2800603,  # add r0, r0, 0x300000
        0xe3a01000,  # mov r1, 0
        0xe2811001,  # pass: add r1, r1, 1
        0xe5801000,  # str r1, [r0]
        0xe2802801,  # add r2, r0, 0x10000
        0xe5821000,  # str r1, [r2]
        0xeafffffa,  # b pass
    ])


def refused_by_section(tmp, section, binary, machine, *args):
    with Qemu(tmp, "source", "-S", *args, machine=machine, binary=binary) as q:
        path = capture(tmp, q)
    image = os.path.join(tmp, "vm.ram")
    said = guestram.refused("receive", f"file:{path}", "--output", image)
    assert f"'{section}'" in said and re.search(r"byte \d+", said), said
    assert not os.path.exists(image)


@test
def pseries_is_refused_by_its_table(tmp):
    refused_by_section(tmp, "spapr/htab", "qemu-system-ppc64", "pseries", "-m", "256")


@test
def s390x_is_refused_by_its_storage_attributes(tmp):
    refused_by_section(tmp, "s390-storage_attributes", "qemu-system-s390x", "s390-ccw-virtio", "-m", "32")


@test
def pages_of_one_kib_are_refused_as_such(tmp):
    with Qemu(tmp, "source", "-S", "-m", "32", machine="versatilepb",
              binary="qemu-system-arm") as q:
        path = capture(tmp, q)
    said = guestram.refused("receive", f"file:{path}", "--output", os.path.join(tmp, "vm.ram"))
    assert "pages of 1 KiB" in said and re.search(r"byte \d+", said), said


def ends_with_its_qemu(tmp, channels, words):
    """Pages larger than the host's: the QEMU divides by how many of them are in one of the host's and dies,
    at the first page; what has come until then is refused. (Were one to live, nothing in its stream says
    how large they are: what follows the first 4 KiB of a page is no record, and no packet of ours.)"""
    image = os.path.join(tmp, "vm.ram")
    options = ["--multifd", str(channels)] if channels else []
    with Qemu(tmp, "source", "-S", "-m", "32", machine="clipper", binary="qemu-system-alpha") as q:
        if channels:
            q.capability("multifd")
            q.cmd("migrate-set-parameters", multifd_channels=channels)
        with guestram.Receiver(f"unix:{tmp}/socket", image, *options) as receiver:
            q.migrate(receiver.uri)
            equal(receiver.process.wait(TIMEOUT), 2, "exit status")
            said = receiver.stderr()
        assert re.search(words, said), said
    assert not os.path.exists(image)


@test
def pages_of_eight_kib_are_refused(tmp):
    ends_with_its_qemu(tmp, 0, r"byte \d+")


@test
def pages_of_eight_kib_on_further_channels_are_refused(tmp):
    ends_with_its_qemu(tmp, 2, r"byte \d+|multifd channel \d")


main()
