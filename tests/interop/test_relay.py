#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""A QEMU moves through `guestram relay` to another one, its guest writing until the switch-over."""
import os

import guestram
from qemu import Qemu, QemuError, wait_for
from running import MIB, RAM, dots, migrate_while_writing, running, runs_on
from tap import Skip, equal, main, same_bytes, test


def moves(tmp, uri, to, capabilities=()):
    """From a QEMU to a fresh one; what the relay counted."""
    with running(tmp, "source") as source, \
            running(tmp, "destination", "-S", "-incoming", "defer") as destination:
        for q in source, destination:
            for name in capabilities:
                q.capability(name)
        destination.cmd("migrate-incoming", uri=to)
        if to.startswith("tcp"):
            to = f"tcp:127.0.0.1:{destination.migration()['socket-address'][0]['port']}"
        with guestram.Relay(tmp, uri, to) as relay:
            migrate_while_writing(source, tmp, relay.uri)
            result = relay.result()
        runs_on(tmp, destination, source.memory(0, RAM))
        equal(source.cmd("query-status")["status"], "postmigrate", "source")
    assert result["bytes_passed"] > RAM and result["rounds"] >= 5, result
    return result


@test
def a_writing_guest_moves_through_tcp_and_the_answers_come_back(tmp):
    moves(tmp, "tcp:127.0.0.1:0", "tcp:127.0.0.1:0", ["return-path"])


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


@test
def a_source_with_further_channels_fails_and_its_guest_goes_on(tmp):
    """A relay passes one channel on."""
    with running(tmp, "source") as source, \
            running(tmp, "destination", "-S", "-incoming", "defer") as destination:
        for q in source, destination:
            q.capability("multifd")
        destination.cmd("migrate-incoming", uri=f"unix:{tmp}/to")
        wait_for(lambda: dots(f"{tmp}/source.e9") > 20, "writer at work")
        with guestram.Relay(tmp, f"unix:{tmp}/from", f"unix:{tmp}/to") as relay:
            source.migrate(relay.uri)
            try:
                wait_for(lambda: source.migration().get("status") == "failed", "failure")
            except (QemuError, OSError) as e:
                status = source.process.wait(60)
                assert status < 0, f"the source ended with {status}"
                raise Skip(f"this QEMU dies of a channel that closes: signal {-status}") from e
            equal(relay.process.wait(60), 2, "relay")
        wait_for(lambda: source.cmd("query-status")["running"], "source running")


@test
def a_source_that_dies_leaves_a_destination_that_does_not_start(tmp):
    with running(tmp, "destination", "-S", "-incoming", "defer") as destination:
        destination.cmd("migrate-incoming", uri=f"unix:{tmp}/to")
        with running(tmp, "source") as source, \
                guestram.Relay(tmp, f"unix:{tmp}/from", f"unix:{tmp}/to") as relay:
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


if __name__ == "__main__":
    main()
