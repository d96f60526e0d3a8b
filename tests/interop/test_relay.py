#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""A QEMU moves through `guestram relay` to another one, its guest writing until the switch-over."""
import os

import guestram
from qemu import BINARY, Qemu, QemuError, wait_for
from running import MIB, PAGES, RAM, dots, migrate_while_writing, running, runs_on
from tap import Skip, equal, main, same_bytes, test


def moves(tmp, uri, to, capabilities=(), rounds=5, **parameters):
    """From a QEMU to a fresh one; what the relay counted."""
    with running(tmp, "source") as source, \
            running(tmp, "destination", "-S", "-incoming", "defer") as destination:
        for q in source, destination:
            for name in capabilities:
                q.capability(name)
            if parameters:
                try:
                    q.cmd("migrate-set-parameters", **parameters)
                except QemuError as e:
                    raise Skip(f"{BINARY} has no {parameters}: {e}") from None
        destination.cmd("migrate-incoming", uri=to)
        if to.startswith("tcp"):
            to = f"tcp:127.0.0.1:{destination.migration()['socket-address'][0]['port']}"
        with guestram.Relay(tmp, uri, to) as relay:
            migrate_while_writing(source, tmp, relay.uri, rounds)
            result = relay.result()
        runs_on(tmp, destination, source.memory(0, RAM))
        equal(source.cmd("query-status")["status"], "postmigrate", "source")
    assert result["pages_normal"] > PAGES and result["rounds"] >= rounds, result
    return result


@test
def a_writing_guest_moves_through_tcp_and_the_answers_come_back(tmp):
    result = moves(tmp, "tcp:127.0.0.1:0", "tcp:127.0.0.1:0", ["return-path"])
    assert result["bytes_passed"] > RAM, result


@test
def differences_are_passed_on(tmp):
    result = moves(tmp, f"unix:{tmp}/from", f"unix:{tmp}/to", ["xbzrle", "return-path"])
    assert result["pages_xbzrle"] > 0, result


@test
def what_comes_out_is_what_went_in(tmp):
    """Byte for byte, from file to file; and each piece of it is refused, with the byte."""
    capture, copy = os.path.join(tmp, "capture"), os.path.join(tmp, "copy")
    with running(tmp, "source") as q:
        migrate_while_writing(q, tmp, f"exec:cat > {capture}", rounds=2)
    guestram.run("relay", f"file:{capture}", f"file:{copy}", "--json")
    with open(capture, "rb") as a, open(copy, "rb") as b:
        whole = a.read()
        same_bytes(b.read(), whole, "copy")
    cut = os.path.join(tmp, "cut")
    for n in 0, 7, 100, 5000, len(whole) // 2, len(whole) - 1:
        with open(cut, "wb") as f:
            f.write(whole[:n])
        assert "byte " in guestram.refused("relay", f"file:{cut}", f"file:{copy}"), n


@test
def a_source_that_listens_goes_on_when_the_destination_refuses(tmp):
    with running(tmp, "source") as source, \
            Qemu(tmp, "destination", "-m", "64", "-S", "-incoming", "defer") as destination:
        for q in source, destination:
            q.capability("return-path")
        destination.cmd("migrate-incoming", uri=f"unix:{tmp}/to")
        with guestram.Relay(tmp, f"unix:{tmp}/from", f"unix:{tmp}/to") as relay:
            source.migrate(relay.uri)
            wait_for(lambda: source.migration().get("status") in ("failed", "completed"), "end")
            equal(source.migration()["status"], "failed", "source")
            equal(relay.process.wait(60), 2, "relay")
        wait_for(lambda: source.cmd("query-status")["running"], "source running again")


def over_further_channels(name, *capabilities, tcp=False, compression="none", channels=2, **parameters):
    """The relay is told nothing of them."""
    def run(tmp):
        uris = ["tcp:127.0.0.1:0"] * 2 if tcp else [f"unix:{tmp}/from", f"unix:{tmp}/to"]
        # what compresses well is soon done, whatever the limits
        moves(tmp, *uris, ["multifd", *capabilities], 3 if compression == "none" else 2,
              multifd_channels=channels, multifd_compression=compression, **parameters)
    run.__name__ = "a_writing_guest_moves_over_further_channels_" + name
    test(run)


over_further_channels("and_the_answers_come_back", "return-path")
over_further_channels("through_tcp", tcp=True)
over_further_channels("eight", channels=8)
over_further_channels("zlib", compression="zlib")
over_further_channels("zstd", "return-path", compression="zstd")
over_further_channels("with_its_zero_pages_there", "return-path", zero_page_detection="multifd")
over_further_channels("with_its_zero_pages_on_the_main_one", zero_page_detection="legacy")


@test
def further_channels_of_ours_pass_too(tmp):
    """A QEMU into an image, and that into another QEMU, both through a relay."""
    image, options = f"{tmp}/vm.ram", ["--multifd", "2"]
    with running(tmp, "source") as source:
        source.capability("multifd")
        with guestram.Receiver(f"unix:{tmp}/image", image, *options) as receiver:
            with guestram.Relay(tmp, f"unix:{tmp}/from", receiver.uri) as relay:
                migrate_while_writing(source, tmp, relay.uri, 2)
                relay.wait()
            receiver.wait()
        ram = source.memory(0, RAM)
    with running(tmp, "destination", "-S", "-incoming", "defer") as destination:
        destination.capability("multifd")
        destination.cmd("migrate-incoming", uri=f"unix:{tmp}/to")
        with guestram.Relay(tmp, f"unix:{tmp}/back", f"unix:{tmp}/to") as relay:
            guestram.run("send", image, relay.uri, *options)
            relay.wait()
        runs_on(tmp, destination, ram)


def broken_off(tmp, how, status):
    """A move over further channels that ends in the middle; what the relay said. Its guest goes on."""
    with running(tmp, "source") as source, \
            running(tmp, "destination", "-S", "-incoming", "defer") as destination:
        for q in source, destination:
            q.capability("multifd")
        destination.cmd("migrate-incoming", uri=f"unix:{tmp}/to")
        wait_for(lambda: dots(f"{tmp}/source.e9") > 20, "writer at work")
        source.cmd("migrate-set-parameters", max_bandwidth=4 * MIB, downtime_limit=1)
        with guestram.Relay(tmp, f"unix:{tmp}/from", f"unix:{tmp}/to") as relay:
            source.migrate(relay.uri)
            wait_for(lambda: source.migration().get("ram", {}).get("dirty-sync-count", 0) >= 2,
                     "a round")
            how(source, destination)
            try:
                wait_for(lambda: source.migration().get("status") == status, status)
            except (QemuError, OSError) as e:
                died = source.process.wait(60)
                assert died < 0, f"the source ended with {died}"
                raise Skip(f"this QEMU dies of a channel that closes: signal {-died}") from e
            equal(relay.process.wait(60), 2, "relay")
            said = relay.stderr()
        wait_for(lambda: source.cmd("query-status")["running"], "source running")
        seen = dots(f"{tmp}/source.e9")
        wait_for(lambda: dots(f"{tmp}/source.e9") > seen + 5, "writer going on")
    return said


@test
def a_move_over_further_channels_can_be_cancelled(tmp):
    said = broken_off(tmp, lambda source, _: source.cmd("migrate_cancel"), "cancelled")
    assert "byte " in said, said


@test
def a_destination_that_dies_ends_all_channels_and_the_guest_goes_on(tmp):
    said = broken_off(tmp, lambda _, destination: destination.process.kill(), "failed")
    assert f"{tmp}/to" in said, said


def source_dies(tmp, *capabilities):
    with running(tmp, "destination", "-S", "-incoming", "defer") as destination:
        for name in capabilities:
            destination.capability(name)
        destination.cmd("migrate-incoming", uri=f"unix:{tmp}/to")
        with running(tmp, "source") as source, \
                guestram.Relay(tmp, f"unix:{tmp}/from", f"unix:{tmp}/to") as relay:
            for name in capabilities:
                source.capability(name)
            wait_for(lambda: dots(f"{tmp}/source.e9") > 20, "writer at work")
            source.cmd("migrate-set-parameters", max_bandwidth=4 * MIB)
            source.migrate(relay.uri)
            wait_for(lambda: source.migration().get("ram", {}).get("transferred", 0) > MIB,
                     "a part of it")
            source.process.kill()
            equal(relay.process.wait(60), 2, "relay")
        try:
            wait_for(lambda: destination.migration().get("status") == "failed", "failure", 60)
        except Exception:  # a QEMU that ends then, as all did once  pylint: disable=broad-except
            destination.process.wait(60)


@test
def a_source_that_dies_leaves_a_destination_that_does_not_start(tmp):
    source_dies(tmp)


@test
def a_source_that_dies_with_further_channels_does_so_too(tmp):
    source_dies(tmp, "multifd", "return-path")


if __name__ == "__main__":
    main()
