#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""A paused QEMU with known RAM into an image: every block is what QEMU has."""
import json
import os
import random

import guestram
from qemu import Qemu
from stream import Stream
from tap import equal, main, same_bytes, test

RAM = 64 << 20
BIOS_AT, BIOS = 0xfffc0000, 256 << 10
ROM_AT, ROM = 0xc0000, 128 << 10


def known_content(path):
    """Random runs, zero runs, and pages of one byte; reproducible."""
    rnd = random.Random(7)
    with open(path, "wb") as f:
        f.truncate(RAM)
        for _ in range(200):
            at = rnd.randrange(RAM // 4096) * 4096
            n = min(rnd.randrange(1, 100) * 4096, RAM - at)
            f.seek(at)
            f.write(rnd.choice([bytes(n), b"\xff" * n, rnd.randbytes(n)]))


def paused(tmp, name, *args):
    """A QEMU that has not run yet, its RAM in a shared file that the test wrote."""
    backing = os.path.join(tmp, "ram")
    if not os.path.exists(backing):
        known_content(backing)
    return Qemu(tmp, name, "-m", "64", "-S", "-object",
                f"memory-backend-file,id=pc.ram,size={RAM},share=on,mem-path={backing}",
                *args, machine="pc,memory-backend=pc.ram")


def check_image(tmp, image, qemu):
    """Blocks, sizes and bytes against QEMU's."""
    listed = guestram.info(image)
    equal({b["id"]: b["used_bytes"] for b in listed["blocks"]}, qemu.ram_blocks(), "blocks")
    equal([b["id"] for b in listed["blocks"]][0], "pc.ram", "the biggest block comes first")
    assert listed["terminated"]
    assert listed["file_bytes"] < 1.05 * listed["ram_bytes"], listed
    assert listed["disk_bytes"] < 1.05 * listed["ram_bytes"], listed
    assert any(d["name"] == "timer" for d in listed["devices"]), listed["devices"]
    assert any("I440FX" in d["name"] for d in listed["devices"]), listed["devices"]

    ram = guestram.extract(image, "pc.ram")
    with open(os.path.join(tmp, "ram"), "rb") as f:
        same_bytes(ram, f.read(), "pc.ram and its backing file")
    same_bytes(ram, qemu.memory(0, 0xa0000) + ram[0xa0000:0x100000] +
               qemu.memory(0x100000, RAM - 0x100000), "pc.ram")
    same_bytes(guestram.extract(image, "pc.bios"), qemu.memory(BIOS_AT, BIOS), "pc.bios")
    same_bytes(guestram.extract(image, "pc.rom"), qemu.memory(ROM_AT, ROM), "pc.rom")

    block = listed["blocks"][0]
    nonzero = sum(ram[i:i + 4096] != bytes(4096) for i in range(0, RAM, 4096))
    equal(block["pages_present"], nonzero, "pages with bytes")
    equal(block["pages_zero"], RAM // 4096 - nonzero, "pages of zero")


def over_socket(tmp, uri):
    image = os.path.join(tmp, "vm.ram")
    with paused(tmp, "source") as q:
        with guestram.Receiver(uri, image) as receiver:
            q.migrate(receiver.uri)
            q.wait_migrated()
            result = receiver.result()
        version = q.cmd("query-version")["qemu"]
        equal(result["machine"], f"pc-i440fx-{version['major']}.{version['minor']}", "machine")
        assert not os.path.exists(image + ".part")
        check_image(tmp, image, q)


@test
def unix_socket_image_equals_qemu(tmp):
    over_socket(tmp, f"unix:{tmp}/socket")


@test
def tcp_socket_image_equals_qemu(tmp):
    over_socket(tmp, "tcp:127.0.0.1:0")


@test
def tcp6_socket_image_equals_qemu(tmp):
    over_socket(tmp, "tcp:[::1]:0")


@test
def exec_capture_image_equals_qemu(tmp):
    capture, image = os.path.join(tmp, "capture"), os.path.join(tmp, "vm.ram")
    with paused(tmp, "source") as q:
        q.migrate(f"exec:cat > {capture}")
        q.wait_migrated()
        guestram.run("receive", f"file:{capture}", "--output", image)
        check_image(tmp, image, q)
    # blocks that QEMU does not map for a guest: by a parser of the tests' own
    with open(capture, "rb") as f:
        stream = Stream(f.read())
    listed = guestram.info(image)
    equal(listed["machine"], stream.machine, "machine")
    equal(listed["tail_bytes"], len(stream.data) - stream.tail_at, "device tail")
    for block, content in stream.blocks.items():
        same_bytes(guestram.extract(image, block), bytes(content), block)
    # an exec: source of ours does the same
    again = os.path.join(tmp, "again.ram")
    guestram.run("receive", f"exec:cat {capture}", "--output", again)
    with open(image, "rb") as a, open(again, "rb") as b:
        same_bytes(a.read(), b.read(), "images of the same stream")


@test
def source_with_return_path_hears_of_success(tmp):
    image = os.path.join(tmp, "vm.ram")
    with paused(tmp, "source") as q:
        q.capability("return-path")
        with guestram.Receiver(f"unix:{tmp}/socket", image) as receiver:
            q.migrate(receiver.uri)
            q.wait_migrated()
            receiver.result()
        check_image(tmp, image, q)


@test
def a_machine_with_another_uuid_is_refused(tmp):
    """validate-uuid, by `receive --uuid`; without it, and with the same, it is taken."""
    uuid, other = "12345678-9abc-def0-1234-56789abcdef0", "12345678-9abc-def0-1234-56789abcdef1"
    capture = os.path.join(tmp, "capture")
    with paused(tmp, "source", "-uuid", uuid) as q:
        q.capability("validate-uuid")
        q.migrate(f"exec:cat > {capture}")
        q.wait_migrated()
    said = guestram.refused("receive", f"file:{capture}", "--output", f"{tmp}/no", "--uuid", other)
    assert uuid in said and other in said, said
    for args in [], ["--uuid", uuid]:
        guestram.run("receive", f"file:{capture}", "--output", f"{tmp}/vm.ram", *args)
    back = os.path.join(tmp, "back")
    guestram.run("send", f"{tmp}/vm.ram", f"exec:cat > {back}")
    assert bytes.fromhex(uuid.replace("-", "")) in open(back, "rb").read(200), "told again"


@test
def send_of_an_image_is_the_stream_again(tmp):
    capture, image, back = (os.path.join(tmp, n) for n in ("capture", "vm.ram", "back"))
    with paused(tmp, "source") as q:
        q.migrate(f"exec:cat > {capture}")
        q.wait_migrated()
    guestram.run("receive", f"file:{capture}", "--output", image)
    guestram.run("send", image, f"exec:cat > {back}")
    with open(capture, "rb") as a, open(back, "rb") as b:
        old, new = Stream(a.read()), Stream(b.read())
    equal(new.machine, old.machine, "machine")
    equal(list(new.blocks), list(old.blocks), "order of the blocks")
    for block, content in old.blocks.items():
        same_bytes(new.blocks[block], content, block)
    equal(new.pages + new.zeros, sum(map(len, new.blocks.values())) // 4096,
          "every page named once")
    same_bytes(new.data[new.tail_at:], old.data[old.tail_at:], "device tail")
    first = next(at for code, at in old.sections if code == 2)
    same_bytes(new.data[:first], old.data[:first], "everything in front of the pages")


@test
def the_tool_shows_the_ram_of_a_running_qemu(tmp):
    monitor = os.path.join(tmp, "monitor")
    with paused(tmp, "shown", "-qmp", f"unix:{monitor},server=on,wait=off") as qemu:
        shown = json.loads(guestram.run("info", "--json", "--qmp", "unix:" + monitor))
        listed = {line.split()[0]: int(line.split()[4], 16)
                  for line in shown["blocks"].splitlines()[1:]}
        equal(listed, qemu.ram_blocks(), "blocks")
        assert "pc.ram" in shown["regions"] and "(prio 0, ram)" in shown["regions"], shown
        text = guestram.run("info", "--qmp", "unix:" + monitor)
        assert "pc.bios" in text and "\r" not in text, text


main()
