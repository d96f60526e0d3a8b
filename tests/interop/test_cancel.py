#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""A QEMU gives a move up and moves again: what it had sent to is none the worse, and says so."""
import os

import guestram
import qemu
from forward import Forward
from qemu import wait_for
from running import MIB, RAM, dots, running, runs_on
from tap import equal, main, same_bytes, test


def started(source, tmp):
    wait_for(lambda: dots(f"{tmp}/source.e9") > 20, "writer at work")
    source.cmd("migrate-set-parameters", max_bandwidth=16 * MIB, downtime_limit=1)


def gives_up(source, receiver, status):
    """In its second round; the other side fails and says why."""
    source.migrate(receiver.uri)
    wait_for(lambda: source.migration().get("ram", {}).get("dirty-sync-count", 0) >= 2, "2 rounds")
    source.cmd("migrate_cancel")
    source.wait_cancelled()
    equal(receiver.process.wait(qemu.TIMEOUT), status, "ours")
    assert "byte " in receiver.stderr() or "closed" in receiver.stderr(), receiver.stderr()
    assert source.cmd("query-status")["running"], "the guest has stopped"


def goes_through(source, receiver):
    source.migrate(receiver.uri)
    wait_for(lambda: source.migration().get("ram", {}).get("dirty-sync-count", 0) >= 2, "2 rounds")
    source.cmd("migrate-set-parameters", max_bandwidth=1 << 40, downtime_limit=60000)
    source.wait_migrated()


def image_of(tmp, name):
    return os.path.join(tmp, name)


def is_there(image, source):
    ram, got = source.memory(0, RAM), guestram.extract(image, "pc.ram")
    same_bytes(got[:0xa0000] + got[0x100000:], ram[:0xa0000] + ram[0x100000:], "RAM")


def into_images(tmp, *capabilities):
    """Given up into one, moved into another."""
    first, second = image_of(tmp, "first"), image_of(tmp, "second")
    with running(tmp, "source") as source:
        for name in capabilities:
            source.capability(name)
        started(source, tmp)
        with guestram.Receiver(f"unix:{tmp}/1", first) as receiver:
            gives_up(source, receiver, 2)
        assert not os.path.exists(first), "an image of a move that was given up"
        with guestram.Receiver(f"unix:{tmp}/2", second) as receiver:
            goes_through(source, receiver)
            receiver.result()
        is_there(second, source)


@test
def into_an_image(tmp):
    into_images(tmp)


@test
def into_an_image_with_a_return_path(tmp):
    into_images(tmp, "return-path")


@test
def into_an_image_with_differences(tmp):
    """A cache that was filled for another destination is of no use for this one."""
    into_images(tmp, "return-path", "xbzrle")


@test
def through_ours_into_a_qemu(tmp):
    """The QEMU behind ours does not start either; the next one gets the guest."""
    with running(tmp, "source") as source:
        source.capability("return-path")
        started(source, tmp)
        with running(tmp, "first", "-S", "-incoming", f"unix:{tmp}/to1"), \
                Forward(tmp, f"unix:{tmp}/to1") as forward:
            gives_up(source, forward, 1)
        with running(tmp, "destination", "-S", "-incoming", f"unix:{tmp}/to2") as destination, \
                Forward(tmp, f"unix:{tmp}/to2") as forward:
            goes_through(source, forward)
            forward.result()
            runs_on(tmp, destination, source.memory(0, RAM))


@test
def without_a_return_path_after_one_with(tmp):
    """A QEMU 7.2 opens one nevertheless and has nobody who reads it: with our answer in its socket its close is a
    reset, which cannot be told from a source that died waiting for our word. So this is a failure here, whatever
    is kept is whole, and a move with the capability arrives."""
    first, second, third = (image_of(tmp, n) for n in ("first", "second", "third"))
    version = qemu.version_of(qemu.BINARY)
    with running(tmp, "source") as source:
        source.capability("return-path")
        started(source, tmp)
        with guestram.Receiver(f"unix:{tmp}/1", first) as receiver:
            gives_up(source, receiver, 2)
        source.capability("return-path", False)
        with guestram.Receiver(f"unix:{tmp}/2", second) as receiver:
            goes_through(source, receiver)
            if version >= (8, 0):
                receiver.result()
                is_there(second, source)
                return
            equal(receiver.process.wait(qemu.TIMEOUT), 2, "receiver")
            assert "reset" in receiver.stderr() or "Broken pipe" in receiver.stderr(), receiver.stderr()
        if os.path.exists(second):  # it was safe before the source could be told
            is_there(second, source)
        source.cmd("cont")
        source.capability("return-path")
        started(source, tmp)
        with guestram.Receiver(f"unix:{tmp}/3", third) as receiver:
            goes_through(source, receiver)
            receiver.result()
        is_there(third, source)


main()
