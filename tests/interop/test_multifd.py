#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Further channels: a QEMU whose guest writes all the time, with capability multifd at either
end, each compression and several numbers of channels. With the newer QEMU also a machine of 7.2's
version, which speaks 7.2's dialect."""
import json
import os

import guestram
import writer_guest
from qemu import NEWER, BINARY, Qemu, QemuError, wait_for
from running import PAGES, RAM, dots, migrate_while_writing, runs_on
from tap import Skip, equal, main, same_bytes, test

LIVE = os.environ.get("GR_LIVE", "build/tests/interop/live_destination")
MACHINES = ["pc", "pc-i440fx-7.2"] if BINARY == NEWER else ["pc"]


def running(tmp, name, machine, *args):
    return Qemu(tmp, name, "-m", "32", *writer_guest.floppy(tmp, PAGES),
                "-debugcon", f"file:{tmp}/{name}.e9", *args, machine=machine)


def set_up(q, channels, compression):
    """Both ends of QEMU's."""
    q.capability("multifd")
    try:
        q.cmd("migrate-set-parameters", multifd_channels=channels,
              multifd_compression=compression,
              downtime_limit=1)  # not done before it is told to, however slow its guest
    except QemuError as e:
        raise Skip(f"{BINARY} has no multifd-compression {compression}: {e}") from e


def options(channels, compression):
    return ["--multifd", str(channels), "--multifd-compression", compression]


def compare_ram(image, ram):
    return compare_bytes(guestram.extract(image, "pc.ram"), ram)


def compare_bytes(got, ram):
    # 0xa0000..0xfffff is not plain RAM to the monitor (VGA hole, shadowed firmware)
    same_bytes(got[:0xa0000], ram[:0xa0000], "low RAM")
    same_bytes(got[0x100000:], ram[0x100000:], "RAM above 1 MiB")
    return writer_guest.check_region(got, PAGES)


def receive(tmp, channels, compression, machine, uri=None, capabilities=()):
    """From a running QEMU into an image; the image, what was said, the source's RAM."""
    image = os.path.join(tmp, "vm.ram")
    with running(tmp, "source", machine) as q:
        set_up(q, channels, compression)
        for name in capabilities:
            q.capability(name)
        with guestram.Receiver(uri or f"unix:{tmp}/image.socket", image,
                               *options(channels, compression)) as receiver:
            # what compresses well is soon done, whatever the limits
            migrate_while_writing(q, tmp, receiver.uri, 5 if compression == "none" else 2)
            result = receiver.result()
        ram = q.memory(0, RAM)
    compare_ram(image, ram)
    assert result["pages_normal"] > PAGES, result
    return image, result, ram


def from_qemu(channels, compression="none", **more):
    def run(tmp):
        for number, machine in enumerate(MACHINES):
            sub = os.path.join(tmp, str(number))
            os.mkdir(sub)
            receive(sub, channels, compression, machine, **more)
    return run


def named(name, function):
    function.__name__ = name
    test(function)


named("qemu_to_image_over_8_channels", from_qemu(8))
named("qemu_to_image_over_tcp_with_a_return_path",
      from_qemu(4, uri="tcp:127.0.0.1:0", capabilities=["return-path"]))


def round_trip(channels, compression="none"):
    """QEMU -> image -> a fresh QEMU, where the guest runs on."""
    def run(tmp):
        for number, machine in enumerate(MACHINES):
            sub = os.path.join(tmp, str(number))
            os.mkdir(sub)
            image, _, ram = receive(sub, channels, compression, machine)
            # -S: it must not run before its RAM has been looked at
            with running(sub, "destination", machine, "-S", "-incoming", "defer") as q:
                set_up(q, channels, compression)
                q.cmd("migrate-incoming", uri=f"unix:{sub}/incoming")
                guestram.run("send", image, f"unix:{sub}/incoming", "--json",
                             *options(channels, compression))
                compare_ram(image, runs_on(sub, q, ram))
    return run


named("image_runs_on_in_qemu_over_2_channels", round_trip(2))
for method in "zlib", "zstd":
    named(f"image_runs_on_in_qemu_with_{method}", round_trip(3, method))


def to_a_live_machine(channels, compression="none", zero_pages=None, machines=("pc",)):
    """Into a gr_destination, whose memory is full of other bytes: zero pages count, too."""
    def run(tmp):
        for number, machine in enumerate(machines):
            sub = os.path.join(tmp, str(number))
            os.mkdir(sub)
            with running(sub, "source", machine) as q:
                set_up(q, channels, compression)
                if zero_pages:
                    try:
                        q.cmd("migrate-set-parameters", zero_page_detection=zero_pages)
                    except QemuError as error:
                        raise Skip(f"{BINARY} has zero pages on the main channel only: {error}") from None
                with guestram.Listener(f"{sub}/live", [LIVE, f"unix:{sub}/to", str(channels), compression,
                                                       str(RAM), f"{sub}/ram"]) as destination:
                    migrate_while_writing(q, sub, destination.uri, 2)
                    result = destination.result()
                ram = q.memory(0, RAM)
            with open(f"{sub}/ram", "rb") as f:
                compare_bytes(f.read(), ram)
            equal(result["state"], "completed", "state")
            assert min(result["normal"], 2 * result["zero"]) > PAGES, result
    return run


named("qemu_to_a_live_machine", to_a_live_machine(2, machines=MACHINES))
named("qemu_to_a_live_machine_over_8_channels", to_a_live_machine(8))
for method in "zlib", "zstd":
    named(f"qemu_to_a_live_machine_with_{method}", to_a_live_machine(2, method))
for where in "multifd", "legacy":
    named(f"qemu_to_a_live_machine_zero_pages_{where}", to_a_live_machine(4, zero_pages=where))


@test
def the_machines_uuid_is_on_each_channel(tmp):
    """A QEMU with -uuid looks for it on the further channels, and so does `receive --uuid`."""
    uuid, other = "12345678-9abc-def0-1234-56789abcdef0", "12345678-9abc-def0-1234-56789abcdef1"
    image = os.path.join(tmp, "vm.ram")
    with running(tmp, "refused", "pc", "-uuid", uuid) as q:
        set_up(q, 2, "none")
        with guestram.Receiver(f"unix:{tmp}/no", os.path.join(tmp, "no"), *options(2, "none"), "--uuid",
                               other) as receiver:
            q.migrate(receiver.uri)
            equal(receiver.process.wait(120), 2, "exit status")
            assert "multifd channel" in receiver.stderr(), receiver.stderr()
        wait_for(lambda: q.migration()["status"] == "failed", "failure")
    with running(tmp, "source", "pc", "-uuid", uuid) as q:
        set_up(q, 2, "none")
        with guestram.Receiver(f"unix:{tmp}/image", image, *options(2, "none"), "--uuid",
                               uuid) as receiver:
            migrate_while_writing(q, tmp, receiver.uri, 2)
            receiver.result()
        ram = q.memory(0, 32 << 20)
    with running(tmp, "destination", "pc", "-S", "-uuid", uuid, "-incoming", "defer") as q:
        set_up(q, 2, "none")
        q.cmd("migrate-incoming", uri=f"unix:{tmp}/incoming")
        guestram.run("send", image, f"unix:{tmp}/incoming", *options(2, "none"), "--uuid", uuid)
        compare_ram(image, runs_on(tmp, q, ram))


@test
def the_tool_has_a_qemu_send_over_further_channels(tmp):
    image, monitor = os.path.join(tmp, "vm.ram"), os.path.join(tmp, "monitor")
    with running(tmp, "source", "pc", "-qmp", f"unix:{monitor},server=on,wait=off") as q:
        wait_for(lambda: dots(f"{tmp}/source.e9") > 20, "writer at work")
        # however slowly pages are compressed and taken while the guest writes them again
        q.cmd("migrate-set-parameters", downtime_limit=60000)
        with guestram.Receiver(f"unix:{tmp}/image.socket", image, *options(2, "zlib")) as receiver:
            said = json.loads(guestram.run("migrate", "--qmp", "unix:" + monitor,
                                           *options(2, "zlib"), "--json", receiver.uri))
            equal(said["status"], "completed", "status")
            receiver.result()
        compare_ram(image, q.memory(0, RAM))


@test
def channels_that_do_not_agree_are_an_error_that_says_so(tmp):
    image = os.path.join(tmp, "vm.ram")
    with running(tmp, "source", "pc") as q:
        set_up(q, 2, "zlib")
        with guestram.Receiver(f"unix:{tmp}/image.socket", image, "--multifd", "2") as receiver:
            q.migrate(receiver.uri)
            equal(receiver.process.wait(120), 2, "exit status")
            said = receiver.stderr()
        assert "multifd channel" in said and "compression zlib" in said, said
        equal(q.cmd("query-status")["status"], "running", "the source's guest")


main()
