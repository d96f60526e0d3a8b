#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Images are QEMU's own mapped-ram files: a QEMU from 9.0 on loads ours, and we read its."""
import os
import subprocess

import guestram
import qemu
import writer_guest
from qemu import Qemu, wait_for
from tap import Skip, equal, main, same_bytes, test

MIB = 1 << 20
RAM = 32 * MIB
PAGES = 2048


def newer_qemu():
    binary = qemu.NEWER
    if not binary:
        raise Skip("GR_QEMU10 names no newer QEMU (scripts/qemu10.sh)")
    try:
        said = subprocess.run([binary, "--version"], capture_output=True, check=True).stdout
    except OSError as error:
        raise Skip(f"{binary}: {error.strerror}") from None
    version = said.decode().split("version ")[1].split()[0]
    if int(version.split(".")[0]) < 9:
        raise Skip(f"{binary} is {version}, mapped-ram needs 9.0 (scripts/qemu10.sh)")
    return binary


def newer(tmp, name, *args):
    return Qemu(tmp, name, "-m", "32", *writer_guest.floppy(tmp, PAGES),
                "-debugcon", f"file:{tmp}/{name}.e9", *args, binary=newer_qemu())


def wait_writer(q, tmp):
    path = f"{tmp}/{q.name}.e9"
    wait_for(lambda: os.path.exists(path) and os.path.getsize(path) > 20, "writer at work")


def check_goes_on(q, ram):
    q.wait_migrated()
    q.wait_status("paused", "prelaunch", "inmigrate")
    same_bytes(q.memory(0, RAM), ram, "RAM")
    counter = writer_guest.check_region(ram, PAGES)
    nonce = ram[writer_guest.NONCE_AT:writer_guest.NONCE_AT + 4]
    q.cmd("cont")
    wait_for(lambda: q.word(writer_guest.COUNTER_AT) > counter + 20, "writer going on")
    equal(q.memory(writer_guest.NONCE_AT, 4), nonce, "nonce: the guest has rebooted")


@test
def newer_qemu_loads_our_image(tmp):
    image = os.path.join(tmp, "vm.ram")
    with newer(tmp, "source") as q:
        wait_writer(q, tmp)
        with guestram.Receiver(f"unix:{tmp}/socket", image) as receiver:
            q.cmd("migrate-set-parameters", max_bandwidth=16 * MIB)
            q.migrate(receiver.uri)
            wait_for(lambda: q.migration().get("ram", {}).get("dirty-sync-count", 0) >= 3,
                     "3 rounds")
            q.cmd("migrate-set-parameters", max_bandwidth=1 << 40, downtime_limit=60000)
            q.wait_migrated()
            receiver.result()
        ram = q.memory(0, RAM)
    for capabilities in (["mapped-ram"], ["mapped-ram", "multifd"]):
        with newer(tmp, "-".join(capabilities), "-S", "-incoming", "defer") as q:
            for capability in capabilities:
                q.capability(capability)
            q.cmd("migrate-incoming", uri=f"file:{image}")
            check_goes_on(q, ram)


@test
def image_of_a_newer_qemu_is_read_and_sent_back(tmp):
    image, back = os.path.join(tmp, "vm.ram"), os.path.join(tmp, "back")
    with newer(tmp, "source") as q:
        wait_writer(q, tmp)
        q.capability("mapped-ram")
        q.cmd("migrate-set-parameters", max_bandwidth=1 << 40, downtime_limit=60000)
        q.migrate(f"file:{image}")
        q.wait_migrated()
        ram, blocks = q.memory(0, RAM), q.ram_blocks()
    listed = guestram.info(image)
    equal({b["id"]: b["used_bytes"] for b in listed["blocks"]}, blocks, "blocks")
    got = guestram.extract(image, "pc.ram")
    same_bytes(got[:0xa0000], ram[:0xa0000], "low RAM")
    same_bytes(got[0x100000:], ram[0x100000:], "RAM above 1 MiB")
    guestram.run("send", image, f"file:{back}")
    with newer(tmp, "destination", "-S", "-incoming", f"exec:cat {back}") as q:
        check_goes_on(q, ram)


# 7 is no multiple of anything; libvirt puts a header of its own in front.
@test
def images_at_an_offset_go_both_ways(tmp):
    theirs, ours, back = (os.path.join(tmp, name) for name in ("theirs", "ours", "back"))
    for path in (theirs, ours):
        with open(path, "wb") as f:
            f.write(b"header of somebody else's" * 100)
    with newer(tmp, "source") as q:
        wait_writer(q, tmp)
        q.cmd("stop")
        q.capability("mapped-ram")
        q.cmd("migrate-set-parameters", max_bandwidth=1 << 40, downtime_limit=60000)
        q.migrate(f"file:{theirs},offset=1k")
        q.wait_migrated()
        ram = q.memory(0, RAM)
    image = f"file:{theirs},offset=1024"
    same_bytes(guestram.extract(image, "pc.ram")[0x100000:], ram[0x100000:], "RAM above 1 MiB")
    guestram.run("send", image, f"file:{back}")
    guestram.run("receive", f"file:{back}", "--output", f"file:{ours},offset=7")
    with open(ours, "rb") as f:
        equal(f.read(7), b"header ", "what was in front")
    with newer(tmp, "destination", "-S", "-incoming", "defer") as q:
        q.capability("mapped-ram")
        q.cmd("migrate-incoming", uri=f"file:{ours},offset=7")
        check_goes_on(q, ram)


main()
