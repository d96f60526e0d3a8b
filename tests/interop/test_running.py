#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""A QEMU whose guest writes all the time into an image, and from the image into a fresh QEMU
where the guest goes on."""
import os

import guestram
import writer_guest
from running import MIB, PAGES, RAM, dots, migrate_while_writing, running, runs_on
from qemu import QemuError, wait_for
from tap import Skip, equal, main, same_bytes, test

def make_image(tmp, q, uri=None):
    """Migrate into vm.ram; the source's RAM after it has stopped."""
    image = os.path.join(tmp, "vm.ram")
    with guestram.Receiver(uri or f"unix:{tmp}/image.socket", image) as receiver:
        migrate_while_writing(q, tmp, receiver.uri)
        result = receiver.result()
    equal(q.cmd("query-status")["status"], "postmigrate", "source")
    return image, result, q.memory(0, RAM)


def compare_ram(image, ram):
    got = guestram.extract(image, "pc.ram")
    # 0xa0000..0xfffff is not plain RAM to the monitor (VGA hole, shadowed firmware)
    same_bytes(got[:0xa0000], ram[:0xa0000], "low RAM")
    same_bytes(got[0x100000:], ram[0x100000:], "RAM above 1 MiB")
    return writer_guest.check_region(got, PAGES)


def keeps_small_over(tmp, uri):
    with running(tmp, "source") as q:
        image, result, ram = make_image(tmp, q, uri)
        compare_ram(image, ram)
    listed = guestram.info(image)
    assert result["bytes_received"] > 2 * listed["ram_bytes"], result
    assert listed["file_bytes"] < 1.05 * listed["ram_bytes"], listed
    assert listed["disk_bytes"] < 1.05 * listed["ram_bytes"], listed


@test
def unix_image_stays_small_and_equals_the_stopped_source(tmp):
    keeps_small_over(tmp, f"unix:{tmp}/image.socket")


@test
def tcp_image_stays_small_and_equals_the_stopped_source(tmp):
    keeps_small_over(tmp, "tcp:127.0.0.1:0")


@test
def exec_capture_grows_and_its_image_does_not(tmp):
    capture, image = os.path.join(tmp, "capture"), os.path.join(tmp, "vm.ram")
    with running(tmp, "source") as q:
        migrate_while_writing(q, tmp, f"exec:cat > {capture}")
        guestram.run("receive", f"file:{capture}", "--output", image)
        compare_ram(image, q.memory(0, RAM))
    listed = guestram.info(image)
    assert os.path.getsize(capture) > 2 * listed["ram_bytes"], os.path.getsize(capture)
    assert listed["file_bytes"] < 1.05 * listed["ram_bytes"], listed


@test
def differences_are_applied(tmp):
    """XBZRLE, whose records change a part of a page that the image has already."""
    image = os.path.join(tmp, "vm.ram")
    with running(tmp, "source") as q:
        q.capability("xbzrle")
        with guestram.Receiver(f"unix:{tmp}/image.socket", image) as receiver:
            migrate_while_writing(q, tmp, receiver.uri)
            result = receiver.result()
        compare_ram(image, q.memory(0, RAM))
    assert result["pages_xbzrle"] > PAGES, result


@test
def pages_that_were_compressed_one_by_one_are_received(tmp):
    """COMPRESS_PAGE, of QEMUs before 9.1."""
    image = os.path.join(tmp, "vm.ram")
    with running(tmp, "source") as q:
        try:
            q.capability("compress")
        except QemuError as error:
            raise Skip(f"this QEMU does not compress pages: {error}") from None
        with guestram.Receiver(f"unix:{tmp}/image.socket", image) as receiver:
            migrate_while_writing(q, tmp, receiver.uri)
            receiver.result()
        assert q.migration()["compression"]["pages"] > PAGES, q.migration()
        ram = q.memory(0, RAM)
        compare_ram(image, ram)
    with running(tmp, "destination", "-S", "-incoming", f"unix:{tmp}/incoming") as q:
        guestram.run("send", image, f"unix:{tmp}/incoming")
        goes_on(tmp, q, image, ram)


@test
def a_background_snapshot_of_a_running_guest_is_received_and_runs_on(tmp):
    """Each page once, and no end of 'ram': the guest goes on writing and the image is of one moment."""
    image = os.path.join(tmp, "vm.ram")
    with running(tmp, "source") as q:
        wait_for(lambda: dots(f"{tmp}/source.e9") > 20, "writer at work")
        try:
            q.capability("background-snapshot")
        except QemuError as error:
            raise Skip(f"no background snapshots: {error}") from None
        q.cmd("migrate-set-parameters", max_bandwidth=64 * MIB)
        with guestram.Receiver(f"unix:{tmp}/image.socket", image) as receiver:
            q.migrate(receiver.uri)
            try:
                q.wait_migrated()
            except AssertionError as error:
                if "write tracking" in str(error) or "userfault" in str(error):
                    raise Skip(f"no background snapshots: {error}") from None
                raise
            receiver.result()
        assert q.cmd("query-status")["running"], "the source has stopped"
    ram = guestram.extract(image, "pc.ram")
    counter = writer_guest.check_region(ram, PAGES)
    with running(tmp, "destination", "-S", "-incoming", f"unix:{tmp}/incoming") as q:
        guestram.run("send", image, f"unix:{tmp}/incoming")
        q.wait_migrated()
        q.wait_status("paused", "prelaunch")
        compare_ram(image, q.memory(0, RAM))
        q.cmd("cont")
        wait_for(lambda: q.word(writer_guest.COUNTER_AT) > counter + 20, "writer going on")


def goes_on(tmp, destination, image, ram):
    """The destination has the source's RAM and the image's, and its writer counts on from there."""
    compare_ram(image, runs_on(tmp, destination, ram))


@test
def image_sent_back_runs_on_in_a_fresh_qemu(tmp):
    with running(tmp, "source") as q:
        image, _, ram = make_image(tmp, q)
    # -S: it must not run before its RAM has been looked at
    with running(tmp, "destination", "-S", "-incoming", "defer") as q:
        q.cmd("migrate-incoming", uri="tcp:127.0.0.1:0")
        port = q.migration()["socket-address"][0]["port"]
        guestram.run("send", image, f"tcp:127.0.0.1:{port}", "--json")
        goes_on(tmp, q, image, ram)


main()
