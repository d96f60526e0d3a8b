#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""A QEMU's writing guest moves to another QEMU, which our own source serves: its rounds, its
differences (XBZRLE), its switch-over. The guest's writes and its numbers go on over there."""
import os
import re
import subprocess

import qemu
from qemu import wait_for
from running import MIB, RAM, dots, running, runs_on
from tap import Skip, equal, main, test

FORWARD = os.environ.get("GR_FORWARD", "build/tests/interop/forward")
ROUNDS = 8


class Forward:
    """tests/interop/forward.c in the background."""

    def __init__(self, folder, to, cache_mib, *args):
        self.path = os.path.join(folder, "forward")
        with open(self.path + ".err", "wb") as err, open(self.path + ".out", "wb") as out:
            self.process = subprocess.Popen(
                [FORWARD, f"unix:{folder}/from", to, str(ROUNDS), str(cache_mib),
                 *args],
                stdin=subprocess.DEVNULL, stdout=out, stderr=err)
        self.uri = wait_for(lambda: re.search("^listening on (.*)$", self.text(".err"), re.M),
                            "listening").group(1)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()

    def text(self, suffix):
        with open(self.path + suffix, encoding="utf-8", errors="replace") as f:
            return f.read()

    def round(self):
        assert self.process.poll() in (None, 0), self.text(".err")
        rounds = re.findall(r"^round (\d+)$", self.text(".out"), re.M)
        return int(rounds[-1]) if rounds else 0

    def result(self):
        equal(self.process.wait(qemu.TIMEOUT), 0, self.text(".err"))
        return {k: int(v) for k, v in re.findall(r"^(\w+) (\d+)$", self.text(".out"), re.M)}


def moves(tmp, cache_mib, capabilities=(), to=None, args=(), options=()):
    with running(tmp, "source") as source, \
            running(tmp, "destination", "-S", *options, "-incoming", "defer") as destination:
        for name in capabilities:
            if name not in [c["capability"] for c in
                            destination.cmd("query-migrate-capabilities")]:
                raise Skip(f"{qemu.BINARY} has no capability {name}")
            destination.capability(name)
        destination.cmd("migrate-incoming", uri=to or f"unix:{tmp}/to")
        uri = f"unix:{tmp}/to"
        if to:
            uri = f"tcp:127.0.0.1:{destination.migration()['socket-address'][0]['port']}"
        with Forward(tmp, uri, cache_mib, *args) as forward:
            wait_for(lambda: dots(f"{tmp}/source.e9") > 20, "writer at work")
            source.cmd("migrate-set-parameters", max_bandwidth=64 * MIB, downtime_limit=1)
            source.migrate(forward.uri)
            # The source may not end before ours has sent a few rounds of it.
            wait_for(lambda: forward.round() >= ROUNDS, "rounds of ours")
            source.cmd("migrate-set-parameters", max_bandwidth=1 << 40, downtime_limit=60000)
            source.wait_migrated()
            result = forward.result()
        runs_on(tmp, destination, source.memory(0, RAM))
    return result


@test
def a_writing_guest_moves_as_pages(tmp):
    result = moves(tmp, 0)
    equal(result["xbzrle"], 0, "differences")


@test
def a_writing_guest_moves_as_differences(tmp):
    """The writer changes twelve bytes of each page: a difference is a few bytes."""
    result = moves(tmp, 32)
    assert result["xbzrle"] > 4096, result
    assert result["xbzrle_bytes"] < 64 * result["xbzrle"], result


@test
def differences_with_a_return_path_over_tcp(tmp):
    result = moves(tmp, 32, ["return-path", "xbzrle"], "tcp:127.0.0.1:0")
    assert result["xbzrle"] > 4096, result


@test
def a_cache_that_is_much_too_small_does_no_harm(tmp):
    result = moves(tmp, 1)
    assert result["misses"] > result["xbzrle"] > 0, result


@test
def the_guest_is_stopped_after_the_destinations_word(tmp):
    """switchover-ack: a QEMU from 8.1 on says that it is ready, and ours waits for that."""
    moves(tmp, 0, ["return-path", "switchover-ack"], args=["ack"])


@test
def a_machine_with_the_same_uuid_is_taken(tmp):
    uuid = "12345678-9abc-def0-1234-56789abcdef0"
    moves(tmp, 0, ["validate-uuid"], args=[uuid.replace("-", "")], options=["-uuid", uuid])


@test
def a_machine_with_another_uuid_is_refused(tmp):
    with running(tmp, "source") as source, \
            running(tmp, "destination", "-S", "-uuid", "12345678-9abc-def0-1234-56789abcdef1",
                    "-incoming", "defer") as destination:
        destination.capability("validate-uuid")
        destination.cmd("migrate-incoming", uri=f"unix:{tmp}/to")
        with Forward(tmp, f"unix:{tmp}/to", 0, "123456789abcdef0123456789abcdef0") as forward:
            wait_for(lambda: dots(f"{tmp}/source.e9") > 20, "writer at work")
            source.migrate(forward.uri)
            equal(forward.process.wait(qemu.TIMEOUT), 1, "ours")


def shared_ram(tmp):
    """QEMU's main memory in a file that all map."""
    path = os.path.join(tmp, "shared")
    with open(path, "ab") as f:
        f.truncate(RAM)
    return ["-object", f"memory-backend-file,id=pc.ram,size={RAM},share=on,mem-path={path}",
            "-machine", "memory-backend=pc.ram"]


@test
def shared_memory_stays_where_it_is_while_the_guest_moves(tmp):
    """x-ignore-shared: QEMU, ours and QEMU have one file for pc.ram; the rest travels."""
    with running(tmp, "source", *shared_ram(tmp)) as source, \
            running(tmp, "destination", "-S", *shared_ram(tmp), "-incoming", "defer") as destination:
        for q in source, destination:
            q.capability("x-ignore-shared")
        destination.cmd("migrate-incoming", uri=f"unix:{tmp}/to")
        with Forward(tmp, f"unix:{tmp}/to", 0, f"shared={tmp}/shared") as forward:
            wait_for(lambda: dots(f"{tmp}/source.e9") > 20, "writer at work")
            source.migrate(forward.uri)
            source.wait_migrated()
            result = forward.result()
        runs_on(tmp, destination, source.memory(0, RAM))
    assert result["bytes"] < RAM // 8, result


@test
def shared_memory_on_one_side_only_is_refused_by_name(tmp):
    with running(tmp, "source", *shared_ram(tmp)) as source, \
            running(tmp, "destination", "-S", *shared_ram(tmp), "-incoming", f"unix:{tmp}/to"):
        wait_for(lambda: dots(f"{tmp}/source.e9") > 20, "writer at work")
        for on, args in (True, []), (False, [f"shared={tmp}/shared"]):
            source.capability("x-ignore-shared", on)
            source.capability("return-path")
            with Forward(tmp, f"unix:{tmp}/to", 0, *args) as forward:
                source.migrate(forward.uri)
                equal(forward.process.wait(qemu.TIMEOUT), 1, "ours")
                assert "x-ignore-shared" in forward.text(".err"), forward.text(".err")
            wait_for(lambda: source.migration()["status"] == "failed", "failure")
            wait_for(lambda: source.cmd("query-status")["running"], "source running")


if __name__ == "__main__":
    main()
