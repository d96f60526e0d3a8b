#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""What cannot be kept is refused, by name or by the byte; nothing is left that looks whole."""
import os
import random
import re

import guestram
from qemu import Qemu, QemuError, wait_for
from stream import Stream
from tap import Skip, equal, main, test

SMALL = ["-m", "8", "-S"]


def disk(tmp):
    path = os.path.join(tmp, "disk")
    with open(path, "wb") as f:
        f.truncate(1 << 20)
    return ["-blockdev", f"driver=file,filename={path},node-name=disk"]


def capture(tmp, q, name="capture", **arguments):
    path = os.path.join(tmp, name)
    q.migrate(f"exec:cat > {path}", **arguments)
    q.wait_migrated()
    return path


def must_refuse(tmp, path, *words):
    image = os.path.join(tmp, "refused.ram")
    said = guestram.refused("receive", f"file:{path}", "--output", image)
    for word in words:
        assert word in said, said
    assert re.search(r"byte \d+", said), said
    assert not os.path.exists(image)
    return said


@test
def dirty_bitmaps_are_refused_by_name(tmp):
    with Qemu(tmp, "source", *SMALL, *disk(tmp)) as q:
        q.cmd("block-dirty-bitmap-add", node="disk", name="changed")
        q.capability("dirty-bitmaps")
        must_refuse(tmp, capture(tmp, q), "dirty-bitmap")


@test
def block_migration_is_refused_by_name(tmp):
    drive = ["-drive", f"if=none,id=disk,format=raw,file={tmp}/disk",
             "-device", "virtio-blk-pci,drive=disk"]
    disk(tmp)
    with Qemu(tmp, "source", *SMALL, *drive) as q:
        try:
            path = capture(tmp, q, blk=True)
        except QemuError as error:
            raise Skip(f"this QEMU has no block migration: {error}") from None
        must_refuse(tmp, path, "block")


@test
def refusal_reaches_a_source_that_listens(tmp):
    image = os.path.join(tmp, "vm.ram")
    with Qemu(tmp, "source", *SMALL, *disk(tmp)) as q:
        q.cmd("block-dirty-bitmap-add", node="disk", name="changed")
        q.capability("dirty-bitmaps")
        q.capability("return-path")
        with guestram.Receiver(f"unix:{tmp}/socket", image) as receiver:
            q.migrate(receiver.uri)
            wait_for(lambda: q.migration().get("status") in ("failed", "completed"), "end")
            equal(q.migration()["status"], "failed", "source")
            equal(receiver.process.wait(60), 2, "receiver")
            assert "dirty-bitmap" in receiver.stderr(), receiver.stderr()
    assert not os.path.exists(image)


@test
def every_truncation_is_refused_with_its_byte(tmp):
    with Qemu(tmp, "source", *SMALL) as q:
        path = capture(tmp, q)
    with open(path, "rb") as f:
        data = f.read()
    stream = Stream(data)
    rnd = random.Random(1)
    cuts = {0, 1, 7, 8, 9, 12, 25, 26, 43, 51, 60, len(data) - 1, len(data) - 2,
            stream.tail_at, stream.tail_at + 1, stream.tail_at - 1, stream.tail_at - 5}
    for _, at in stream.sections:
        cuts |= {at, at + 1, at + 5}
    cuts |= {rnd.randrange(len(data)) for _ in range(40)}
    cuts |= {rnd.randrange(stream.tail_at, len(data)) for _ in range(20)}
    cuts |= set(range(26, 200, 11))
    cut_path = os.path.join(tmp, "cut")
    for cut in sorted(cuts):
        with open(cut_path, "wb") as f:
            f.write(data[:cut])
        said = must_refuse(tmp, cut_path)
        byte = int(re.search(r"byte (\d+)", said).group(1))
        assert byte <= cut, f"cut at {cut}: {said}"
    # and the whole one is taken
    guestram.run("receive", f"file:{path}", "--output", os.path.join(tmp, "vm.ram"))


@test
def truncated_images_are_refused(tmp):
    image = os.path.join(tmp, "vm.ram")
    with Qemu(tmp, "source", *SMALL) as q:
        guestram.run("receive", f"file:{capture(tmp, q)}", "--output", image)
    size = os.path.getsize(image)
    rnd = random.Random(2)
    for cut in sorted({0, 1, 8, 30, 100, 4096, size - 1} | {rnd.randrange(size) for _ in range(30)},
                      reverse=True):
        os.truncate(image, cut)
        said = guestram.refused("info", image)
        assert re.search(r"byte \d+", said), said
        guestram.refused("extract", image, "pc.ram")


@test
def machine_without_description_needs_to_be_allowed(tmp):
    image = os.path.join(tmp, "vm.ram")
    with Qemu(tmp, "source", *SMALL, machine="pc,suppress-vmdesc=on") as q:
        path = capture(tmp, q)
    must_refuse(tmp, path)
    guestram.run("receive", f"file:{path}", "--output", image, "--allow-unterminated")
    listed = guestram.info(image)
    equal(listed["terminated"], False, "terminated")
    back = os.path.join(tmp, "back")
    guestram.run("send", image, f"file:{back}")
    with Qemu(tmp, "destination", *SMALL, "-incoming", f"exec:cat {back}",
              machine="pc,suppress-vmdesc=on") as q:
        q.wait_migrated()
    # the image knows how long its device state is, so a torn one is found all the same
    os.truncate(image, os.path.getsize(image) - 1)
    guestram.refused("info", image)


main()
