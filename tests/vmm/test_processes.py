#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Machines in processes of their own, as a user runs them: run, migrate, demo."""
import json
import os
import signal
import socket
import subprocess
import sys
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "../interop"))
import tap  # noqa: E402  pylint: disable=wrong-import-position
from tap import Skip, equal, main  # noqa: E402  pylint: disable=wrong-import-position

TOOL = os.environ["GR_TOOL"]
MEMORY = "32M"
DEMO_KEYS = [
    "accelerator", "tracker", "rounds", "pages_sent", "pages_zero", "bytes_sent",
    "throughput_bytes_per_s", "downtime_ns", "blocks_plugged", "blocks_unplugged",
    "blocks_alive_at_switchover", "pages_checked", "plugged_pages_checked",
    "device_pages_checked", "pages_written_once", "pages_last_written_before_final_round",
    "pages_wrong", "guest_resumed"]


PROCESSES = []  # of the test that runs


def test(fn):
    """A test that leaves no process behind, however it ends."""
    def clean(folder):
        try:
            fn(folder)
        finally:
            while PROCESSES:
                process = PROCESSES.pop()
                process.kill()
                process.wait()
    clean.__name__ = fn.__name__
    return tap.test(clean)


class Refused(Exception):
    """The monitor answered with an error."""


class Machine:
    """A `guestram run` and its monitor."""

    def __init__(self, folder, name, *args, memory=MEMORY):
        self.path = os.path.join(folder, name + ".qmp")
        self.process = subprocess.Popen(  # pylint: disable=consider-using-with
            [TOOL, "run", "--memory", memory, "--accel", "threads", "--rate", "200M",
             "--qmp", "unix:" + self.path, *args],
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        PROCESSES.append(self.process)
        self.events = []
        self.states = []  # of migrations, by their events
        self.join()

    def join(self):
        """Be the monitor's one client."""
        self.socket = socket.socket(socket.AF_UNIX)
        until(lambda: self.process.poll() is not None or self.connects())
        # To be read only: a text file that is written too forgets what it has read ahead.
        self.file = self.socket.makefile("r")
        assert "QMP" in json.loads(self.file.readline())
        self.do("qmp_capabilities")

    def leave(self):
        """Another may be the client."""
        self.socket.close()
        self.file.close()

    def tool(self, *args, timeout=120):
        """What guestram's tool says to this machine."""
        self.leave()
        done = subprocess.run([TOOL, *args], capture_output=True, timeout=timeout, check=False)
        self.join()
        return done

    def connects(self):
        try:
            self.socket.connect(self.path)
            return True
        except OSError:
            return False

    def send(self, *requests):
        self.socket.sendall("".join(json.dumps(r) + "\n" for r in requests).encode())

    def do(self, command, **arguments):
        self.send({"execute": command, "arguments": arguments})
        while True:
            answer = json.loads(self.file.readline())
            if "event" in answer:
                self.events.append(answer["event"])
                if answer["event"] == "MIGRATION":
                    self.states.append(answer["data"]["status"])
            elif "error" in answer:
                raise Refused(answer["error"]["desc"])
            else:
                return answer["return"]

    def status(self):
        return self.do("query-status")["status"]

    def check(self):
        """Every word; returns how many pages were looked at."""
        result = self.do("x-check")
        equal((result["pages-wrong"], result["first-wrong"]), (0, ""), "wrong pages")
        return result["pages-checked"]

    def lives(self):
        """The guest goes on: its heart and every writer."""
        beats = self.do("x-query-heartbeat")["beats"]
        until(lambda: self.do("x-query-heartbeat")["beats"] > beats + 10)
        writes(self)

    def quit(self):
        """What it had to say."""
        self.do("quit")
        self.leave()
        _, err = self.process.communicate(timeout=30)
        equal(self.process.returncode, 0, err.decode())
        return err.decode()

    def kill(self):
        self.process.kill()
        self.process.communicate()


def until(what):
    end = time.monotonic() + 120
    while not what():
        assert time.monotonic() < end, "it takes too long"
        time.sleep(0.01)


def writes(machine):
    """Every writer goes on."""
    ops = machine.do("x-query-ops")
    until(lambda: all(new > old for new, old in zip(machine.do("x-query-ops"), ops)))


def migrate(machine, uri, *args):
    """Exit status and the result, by the tool."""
    p = machine.tool("migrate", "--json", "--qmp", "unix:" + machine.path, *args, uri)
    return p.returncode, json.loads(p.stdout or "null"), p.stderr.decode()


def says_no(machine, command, why, **arguments):
    try:
        machine.do(command, **arguments)
    except Refused as e:
        assert why in str(e), f"{command}: {e}"
    else:
        raise AssertionError(f"{command} was not refused: {arguments}")


def arrives(here, there):
    """It runs on there, every word as it has to be; returns how many pages were looked at."""
    until(lambda: there.status() == "running")
    there.lives()
    there.do("stop")
    pages = there.check()
    here.quit()
    there.quit()
    return pages


@test
def a_machine_moves_to_another_process_and_runs_on(folder):
    uri = f"unix:{folder}/move"
    there = Machine(folder, "there", "--incoming", uri)
    here = Machine(folder, "here")
    equal(there.status(), "inmigrate", "status")
    here.do("x-block-add", id="extra", size=1 << 20)
    here.lives()
    status, result, err = migrate(here, uri)
    equal((status, result["status"]), (0, "completed"), err)
    equal(here.status(), "postmigrate", "source")
    until(lambda: there.status() == "running")
    there.lives()
    equal([b["id"] for b in there.do("x-query-blocks")], ["ram", "extra"], "blocks")
    there.do("x-block-del", id="extra")
    there.do("stop")
    equal(there.check(), (32 << 20) // 4096, "pages checked")
    equal(there.do("query-migrate")["status"], "completed", "destination")
    here.quit()
    there.quit()


def snapshot(machine, path, *args):
    """Exit status and the result, by the tool."""
    p = machine.tool("snapshot", "--json", "--qmp", "unix:" + machine.path, *args, path)
    return p.returncode, json.loads(p.stdout or "null"), p.stderr.decode()


@test
def a_snapshot_is_taken_while_the_machine_runs_and_brings_it_back(folder):
    uri, image = f"unix:{folder}/back", f"{folder}/vm.ram"
    here = Machine(folder, "here")
    here.lives()
    status, result, err = snapshot(here, image, "--buffer", "1M", "--rate", "100M")
    if status != 0 and ("userfaultfd" in err or "privilege" in err):
        raise Skip(err)
    equal((status, result and result["status"]), (0, "completed"), err)
    assert result["buffer_bytes_max"] <= 1 << 20, result
    assert result["stalls"]["count"] > 0, result
    here.lives()
    back = Machine(folder, "back", "--incoming", uri)
    subprocess.run([TOOL, "send", image, uri], capture_output=True, timeout=120, check=True)
    until(lambda: back.status() == "running")
    back.lives()
    for machine in (here, back):
        machine.do("stop")
        equal(machine.check() > 0, True, "pages")
    # One that has to be given up, or is told something wrong.
    here.do("cont")
    os.unlink(image)
    status, result, err = snapshot(here, image, "--buffer", "8K", "--when-full", "abort",
                                   "--rate", "1M")
    equal((status, result["status"]), (2, "failed"), err)
    assert "the buffer of 8192 bytes is full" in err, err
    equal(os.path.exists(image) or os.path.exists(image + ".part"), False, "left")
    here.lives()
    status, _, err = snapshot(here, folder)
    equal(status, 2, err)
    assert "Is a directory" in err, err
    says_no(here, "x-snapshot", "'wait' or 'abort'", filename=image, **{"when-full": "maybe"})
    here.do("stop")
    here.check()
    here.quit()
    back.quit()


def capabilities(machine, *names):
    machine.do("migrate-set-capabilities",
               capabilities=[{"capability": name, "state": True} for name in names])


@test
def a_machine_moves_over_further_channels(folder):
    for compression in "none", "zlib":
        uri = f"unix:{folder}/{compression}"
        there = Machine(folder, "there" + compression, "--incoming", "defer")
        capabilities(there, "multifd")
        try:
            there.do("migrate-set-parameters",
                     **{"multifd-channels": 3, "multifd-compression": compression})
        except Refused as e:
            if "this build has no" not in str(e):
                raise
            raise Skip(e) from e
        says_no(there, "migrate-incoming", "need a socket", uri=f"file:{folder}/x")
        says_no(there, "migrate-incoming", "need a socket", uri="exec:true")
        there.do("migrate-incoming", uri=uri)
        says_no(there, "migrate-incoming", "already been started", uri=uri)
        here = Machine(folder, "here" + compression, "--rate", "4M")
        here.lives()
        status, result, err = migrate(here, uri, "--multifd", "3", "--multifd-compression",
                                      compression)
        equal((status, result and result["status"]), (0, "completed"), err)
        until(lambda: there.status() == "running")  # pylint: disable=cell-var-from-loop
        there.lives()
        there.do("stop")
        there.check()
        there.quit()
        says_no(here, "migrate-set-parameters", "'lzma'", **{"multifd-compression": "lzma"})
        says_no(here, "migrate-set-parameters", "1 and 255", **{"multifd-channels": 256})
        says_no(here, "migrate-incoming", "defer", uri=uri)
        here.quit()


@test
def a_uuid_that_nobody_would_hear_is_refused(folder):
    p = subprocess.run([TOOL, "send", f"{folder}/none", f"file:{folder}/x", "--uuid",
                        "12345678-9abc-def0-1234-56789abcdef0"], capture_output=True, timeout=30,
                       check=False)
    assert p.returncode == 2 and b"needs --multifd" in p.stderr, p
    assert not os.path.exists(f"{folder}/x"), "sent"


@test
def memory_in_one_file_stays_where_it_is(folder):
    uri, shared = f"unix:{folder}/move", ["--memory-file", f"{folder}/ram"]
    here = Machine(folder, "here", *shared)
    here.lives()
    here.do("x-block-add", id="extra", size=1 << 20)
    there = Machine(folder, "there", "--incoming", "defer", *shared)
    capabilities(there, "x-ignore-shared")
    there.do("migrate-incoming", uri=uri)
    status, result, err = migrate(here, uri, "--capability", "x-ignore-shared")
    equal((status, result["status"]), (0, "completed"), err)
    assert result["ram_bytes"] == 1 << 20, result
    assert result["bytes_sent"] < 16 << 20, result
    equal(arrives(here, there), (32 << 20) // 4096, "pages checked")


@test
def the_capability_on_one_side_only_is_refused_and_the_guest_goes_on(folder):
    uri, shared = f"unix:{folder}/move", ["--memory-file", f"{folder}/ram"]
    here = Machine(folder, "here", *shared)
    there = Machine(folder, "there", "--incoming", uri, *shared)
    status, result, _ = migrate(here, uri, "--capability", "x-ignore-shared")
    equal((status, result["status"]), (1, "failed"), "one side only")
    _, err = there.process.communicate(timeout=30)
    assert b"the sender uses the capability 'x-ignore-shared'" in err, err
    here.lives()
    here.quit()


@test
def a_machine_with_another_uuid_is_refused(folder):
    ours, theirs = "12345678-9abc-DEF0-1234-56789abcdef0", "12345678-9abc-def0-1234-56789abcdef1"
    here = Machine(folder, "here", "--uuid", ours)
    there = Machine(folder, "there", "--incoming", f"unix:{folder}/a", "--uuid", theirs)
    status, result, _ = migrate(here, f"unix:{folder}/a", "--capability", "validate-uuid")
    equal((status, result["status"]), (1, "failed"), "another machine")
    assert result["error"].startswith("the destination has "), result
    _, err = there.process.communicate(timeout=30)
    equal(there.process.returncode, 2, err.decode())
    why = f"of the machine with UUID {ours.lower()}, this is {theirs}"
    assert why in err.decode(), err
    here.lives()
    there = Machine(folder, "same", "--incoming", f"unix:{folder}/b", "--uuid", ours)
    status, result, err = migrate(here, f"unix:{folder}/b")
    equal((status, result["status"]), (0, "completed"), err)
    until(lambda: there.status() == "running")
    here.quit()
    there.quit()
    for wrong in ours[:-1], ours + "0", ours.replace("-", ""), ours.replace("9", "g"):
        p = subprocess.run([TOOL, "run", "--uuid", wrong], capture_output=True, timeout=30,
                           check=False)
        assert p.returncode == 2 and b"not a UUID" in p.stderr, p


def make_image(folder, machine):
    """Of a machine that has written all over its memory, and hardly writes from then on."""
    image = f"{folder}/vm.ram"
    machine.lives()
    before = machine.do("x-query-ops")
    until(lambda: all(b > a + 20000 for a, b in zip(before, machine.do("x-query-ops"))))
    machine.do("x-set-rate", **{"bytes-per-second": 1 << 20})
    status, result, err = snapshot(machine, image)
    if status != 0 and ("userfaultfd" in err or "privilege" in err):
        raise Skip(err)
    equal((status, result and result["status"]), (0, "completed"), err)
    return image


@test
def a_machine_runs_before_its_memory_has_come(folder):
    here = Machine(folder, "here", memory="64M")
    image = make_image(folder, here)
    here.quit()
    # Ahead of what it asks for comes next to nothing: its heart beats all the same.
    lazy = Machine(folder, "lazy", "--image", image, "--lazy", "--lazy-rate", "4K", memory="64M")
    equal(lazy.status(), "running", "status")
    writes(lazy)
    until(lambda: lazy.do("x-query-resume")["waited-for"] > 0)
    far = lazy.do("x-query-resume")
    equal(far["status"], "active", far)
    assert 0 < far["remaining"] < far["total"], far
    status, _, err = snapshot(lazy, f"{folder}/no.ram")
    equal(status, 2, err)
    assert "from its image" in err, err
    refuses_what_waits_for_memory(lazy, folder, "comes from its image")
    lazy.quit()  # in the middle of it
    again = Machine(folder, "again", "--image", image, "--lazy", memory="64M")
    writes(again)
    until(lambda: again.do("x-query-resume")["status"] == "completed")
    again.lives()
    equal(again.do("x-query-resume")["remaining"], 0, "remaining")
    again.do("stop")
    again.check()
    again.quit()
    whole = Machine(folder, "whole", "--image", image, "--paused", memory="64M")
    equal((whole.status(), whole.do("x-query-resume")["status"]), ("paused", "completed"), "at once")
    whole.check()
    whole.do("cont")
    whole.lives()
    whole.quit()
    for why, *args in (
            ("block 'ram' has 67108864 bytes at the source, 33554432 here",
             "--image", image, "--memory", "32M"),
            (f"{folder}/none: No such file or directory", "--image", f"{folder}/none", "--lazy"),
            ("--lazy needs --image", "--lazy"),
            ("--lazy-rate needs --lazy", "--image", image, "--lazy-rate", "1"),
            ("not a rate of loading: '0'", "--image", image, "--lazy", "--lazy-rate", "0"),
            ("not a rate of loading: '0'", "--lazy-rate", "0"),
            ("--lazy and --memory-file exclude each other",
             "--image", image, "--lazy", "--memory-file", f"{folder}/r"),
            ("--image and --incoming exclude each other",
             "--image", image, "--incoming", "tcp:127.0.0.1:0")):
        p = subprocess.run([TOOL, "run", "--accel", "threads", *args], capture_output=True,
                           timeout=60, check=False)
        assert p.returncode == 2 and why in p.stderr.decode(), (why, p)


def refuses_what_waits_for_memory(machine, folder, why):
    """What its monitor would do itself, or would wait for vCPUs to do."""
    if machine.status() == "running":
        says_no(machine, "stop", why)
        says_no(machine, "x-query-registers", why)
    else:
        machine.do("stop")
        machine.do("x-query-registers")
    says_no(machine, "pmemsave", why, val=0, size=4096, filename=f"{folder}/page")
    says_no(machine, "x-check", why)
    says_no(machine, "x-query-heartbeat", why)
    says_no(machine, "x-heartbeat-reset", why)
    says_no(machine, "x-block-add", why, id="extra", size=1 << 20)
    says_no(machine, "x-block-del", why, id="extra")
    says_no(machine, "calc-dirty-rate", why, **{"calc-time": 1})
    says_no(machine, "x-snapshot", why, filename=f"{folder}/no.ram")


def resume_from_cut(folder, image, name, *args):
    """A lazy machine whose image loses its end as soon as it is open, and what mends that."""
    with open(image, "rb") as f:
        content = f.read()

    def mend():
        with open(image, "r+b") as f:
            f.write(content)
    # The loading ahead must not be through before the file is cut, nor take for ever after.
    for rate in "4M", "1M", "128K":
        machine = Machine(folder, name + rate, "--image", image, "--lazy", "--lazy-rate", rate, *args,
                          memory="16M")
        os.truncate(image, 1 << 20)
        machine.socket.settimeout(120)  # where its monitor hangs
        until(lambda: machine.do("x-query-resume")["status"] != "active")
        if machine.do("x-query-resume")["status"] == "failed":
            return machine, mend
        machine.quit()
        mend()
    raise AssertionError("the image is always there before it is cut")


@test
def a_lazy_machine_whose_image_is_cut_waits_and_its_monitor_does_not(folder):
    here = Machine(folder, "here", memory="16M")
    image = make_image(folder, here)
    here.quit()
    lazy, mend = resume_from_cut(folder, image, "lazy")
    assert "was cut" in lazy.do("x-query-resume")["error-desc"], "why"
    lazy.do("x-set-rate", **{"bytes-per-second": 200 << 20})
    for _ in range(20):
        refuses_what_waits_for_memory(lazy, folder, "memory")
        lazy.do("x-resume-retry")  # for a moment nothing has failed
    mend()
    until(lambda: lazy.do("x-resume-retry") == {} and
          lazy.do("x-query-resume")["status"] == "completed")
    lazy.do("x-resume-retry")  # nothing to try, nothing to say
    lazy.lives()
    lazy.do("stop")
    lazy.check()
    lazy.do("x-query-registers")
    lazy.do("pmemsave", val=0, size=16 << 20, filename=f"{folder}/all")
    err = lazy.quit()
    equal(err.count("all memory has come"), 1, err)
    assert "was cut" in err, err
    # Those that stand are asked as ever, and what cannot be mended can be left.
    paused, mend = resume_from_cut(folder, image, "paused", "--paused")
    refuses_what_waits_for_memory(paused, folder, "memory")
    paused.do("cont")
    says_no(paused, "stop", "x-resume-retry")
    paused.quit()
    mend()
    signalled, _ = resume_from_cut(folder, image, "signalled")
    signalled.process.send_signal(signal.SIGTERM)
    signalled.process.communicate(timeout=60)
    equal(signalled.process.returncode, 0, "exit status")


@test
def the_capability_background_snapshot_saves_a_machine_that_stays(folder):
    here = Machine(folder, "here")
    here.lives()
    image = f"{folder}/vm.ram"
    capabilities(here, "background-snapshot")
    says_no(here, "migrate-set-capabilities", "not compatible with xbzrle",
            capabilities=[{"capability": "xbzrle", "state": True}])
    says_no(here, "migrate", "'file:PATH'", uri=f"unix:{folder}/x")
    status, result, err = migrate(here, "file:" + image)
    said = (result or {}).get("error") or err
    if status != 0 and ("userfaultfd" in said or "privilege" in said):
        raise Skip(said)
    equal((status, result["status"]), (0, "completed"), err)
    equal(here.status(), "running", "the machine stays")
    # Who follows its events hears what it would hear of a migration, the end among it.
    for last, command in [("completed", None), ("cancelled", "migrate_cancel")]:
        here.states.clear()
        if command:
            here.do("migrate-set-parameters", **{"max-bandwidth": 1 << 18})
        here.do("migrate", uri=f"file:{image}")
        until(lambda: "active" in here.states or not here.do("query-status"))
        if command:
            here.do(command)
        until(lambda: last in here.states  # pylint: disable=cell-var-from-loop
              or not here.do("query-status"))
        equal(here.states, ["setup", "active", last], "states")
    here.lives()
    back = Machine(folder, "back", "--image", image)
    back.lives()
    back.do("stop")
    back.check()
    back.quit()
    # It can go afterwards, as any other.
    here.do("migrate-set-parameters", **{"max-bandwidth": 0})
    here.do("migrate-set-capabilities",
            capabilities=[{"capability": "background-snapshot", "state": False}])
    there = Machine(folder, "there", "--incoming", f"unix:{folder}/move")
    status, result, err = migrate(here, f"unix:{folder}/move")
    equal((status, result["status"]), (0, "completed"), err)
    until(lambda: there.status() == "running")
    here.quit()
    there.quit()


@test
def the_tool_shows_the_ram_of_a_running_machine(folder):
    machine = Machine(folder, "here")
    machine.do("x-block-add", id="extra", size=1 << 20, gpa=1 << 32)
    shown = json.loads(machine.tool("info", "--json", "--qmp", "unix:" + machine.path).stdout)
    lines = shown["blocks"].splitlines()
    equal([line.split()[0] for line in lines[1:]], ["ram", "extra"], "blocks")
    equal(int(lines[2].split()[4], 16), 1 << 20, "used")
    assert "  0000000100000000-00000001000fffff (prio 0, ram): extra\n" in shown["regions"], shown
    text = machine.tool("info", "--qmp", "unix:" + machine.path).stdout.decode()
    equal(text, shown["blocks"] + "\n" + shown["regions"], "for people")
    equal(machine.do("x-query-ramblock")["human-readable-text"], shown["blocks"], "QMP")
    says_no(machine, "human-monitor-command", "'info cpus'", **{"command-line": "info cpus"})
    machine.quit()


@test
def tcp_and_a_paused_destination_work_too(folder):
    probe = socket.socket()
    probe.bind(("127.0.0.1", 0))
    uri = f"tcp:127.0.0.1:{probe.getsockname()[1]}"
    probe.close()
    there = Machine(folder, "there", "--incoming", uri, "--paused")
    here = Machine(folder, "here")
    here.lives()
    status, _, err = migrate(here, uri)
    equal(status, 0, err)
    until(lambda: there.status() == "paused")
    there.check()
    here.check()
    there.do("pmemsave", val=0, size=32 << 20, filename=f"{folder}/a")
    here.do("pmemsave", val=0, size=32 << 20, filename=f"{folder}/b")
    with open(f"{folder}/a", "rb") as a, open(f"{folder}/b", "rb") as b:
        assert a.read() == b.read(), "the memory of the two differs"
    there.do("cont")
    there.lives()
    here.quit()
    there.quit()


@test
def a_dirty_rate_is_measured_in_the_words_of_qemu(folder):
    here = Machine(folder, "here", memory="64M")
    rate = here.do("query-dirty-rate")
    equal((rate["status"], "dirty-rate" in rate), ("unstarted", False), "before")
    here.lives()
    for mode in ["page-sampling", "dirty-bitmap"]:
        here.do("calc-dirty-rate", **{"calc-time": 300, "calc-time-unit": "millisecond",
                                      "mode": mode})
        until(lambda: here.do("query-dirty-rate")["status"] == "measured")
        rate = here.do("query-dirty-rate")
        equal((rate["mode"], rate["calc-time"], rate["calc-time-unit"], rate["sample-pages"]),
              (mode, 300, "millisecond", 512), "what was asked for")
        # it writes 200 MB a second if it can; not more pages than there are, in 0.3 s or more
        assert 0 < rate["dirty-rate"] <= 64 / 0.3, rate
    here.do("calc-dirty-rate", **{"calc-time": 60})
    equal(here.do("query-dirty-rate")["status"], "measuring", "meanwhile")
    here.do("stop")
    says_no(here, "calc-dirty-rate", "already", **{"calc-time": 1})
    here.quit()  # in the middle of it
    there = Machine(folder, "there")
    for arguments, why in [
            ({}, "calc-time"), ({"calc-time": 61}, "50 to 60000"),
            ({"calc-time": 49, "calc-time-unit": "millisecond"}, "50 to 60000"),
            ({"calc-time": 1, "calc-time-unit": "year"}, "year"),
            ({"calc-time": 1, "mode": "guess"}, "guess"),
            ({"calc-time": 1, "mode": "dirty-ring"}, "ring"),
            ({"calc-time": 1, "sample-pages": 127}, "128 to 16384"),
            ({"calc-time": 1, "sample-pages": 512, "mode": "dirty-bitmap"}, "page-sampling")]:
        says_no(there, "calc-dirty-rate", why, **arguments)
    equal(there.do("query-dirty-rate")["status"], "unstarted", "what was refused")
    there.quit()


@test
def a_stop_that_comes_just_after_the_machine_is_obeyed(folder):
    uri, fifo = f"unix:{folder}/move", f"{folder}/fifo"
    os.mkfifo(fifo)
    there = Machine(folder, "there", "--incoming", uri)
    here = Machine(folder, "here")
    here.lives()
    # the monitor hangs in the first one, and the second one is next: before it looks around
    there.send({"execute": "pmemsave",
                "arguments": {"val": 0, "size": 4096, "filename": fifo}},
               {"execute": "stop"})
    status, _, err = migrate(here, uri)
    equal(status, 0, err)
    time.sleep(0.5)  # the source's end is not quite the destination's
    with open(fifo, "rb") as f:
        equal(len(f.read()), 4096, "bytes saved")
    answers = 0
    while answers < 2:
        answers += "return" in json.loads(there.file.readline())
    equal(there.status(), "paused", "status")
    time.sleep(0.1)
    equal(there.status(), "paused", "status")
    there.check()
    there.do("cont")
    there.lives()
    here.quit()
    there.quit()


@test
def a_destination_whose_source_is_killed_ends_with_an_error_and_never_runs(folder):
    uri = f"unix:{folder}/move"
    there = Machine(folder, "there", "--incoming", uri)
    here = Machine(folder, "here")
    here.lives()
    here.do("migrate-set-parameters", **{"max-bandwidth": 1 << 20})
    here.do("migrate", uri=uri)
    until(lambda: there.do("query-migrate").get("ram", {}).get("transferred", 0) > 100000)
    equal(there.status(), "inmigrate", "status")
    try:
        there.do("cont")  # as QEMU's: it will run when it is here
        equal(there.status(), "inmigrate", "status")
    except Refused:
        pass
    here.kill()
    _, err = there.process.communicate(timeout=30)
    equal(there.process.returncode, 2, err.decode())
    assert b"RAM is incomplete" in err, err
    assert b"runs" not in err, err


@test
def a_move_waits_in_pre_switchover_and_sends_differences(folder):
    uri = f"unix:{folder}/move"
    there = Machine(folder, "there", "--incoming", uri)
    here = Machine(folder, "here", "--rate", "64M")
    here.lives()
    for wrong in ([{"capability": "postcopy-ram", "state": True}], [{"capability": "xbzrle"}], "x"):
        try:
            here.do("migrate-set-capabilities", capabilities=wrong)
            raise AssertionError(f"taken: {wrong}")
        except Refused:
            pass
    here.do("migrate-set-capabilities", capabilities=[
        {"capability": n, "state": True} for n in
        ("xbzrle", "auto-converge", "pause-before-switchover", "switchover-ack", "return-path")])
    equal({c["capability"]: c["state"] for c in here.do("query-migrate-capabilities")},
          {"xbzrle": True, "auto-converge": True, "pause-before-switchover": True,
           "switchover-ack": True, "background-snapshot": False, "multifd": False,
           "validate-uuid": False, "x-ignore-shared": False}, "capabilities")
    try:
        here.do("migrate-set-parameters", **{"max-bandwidth": 1, "cpu-throttle-initial": 100})
        raise AssertionError("a throttle of 100 %")
    except Refused:
        pass
    equal(here.do("query-migrate-parameters")["max-bandwidth"], 0, "nothing was set")
    here.do("migrate-set-parameters", **{"xbzrle-cache-size": 8 << 20})
    try:
        here.do("migrate-continue", state="pre-switchover")
        raise AssertionError("nothing waits")
    except Refused:
        pass
    here.do("migrate", uri=uri)
    until(lambda: here.do("query-migrate")["status"] == "pre-switchover")
    equal(here.status(), "finish-migrate", "source")
    equal(there.status(), "inmigrate", "destination")
    equal(here.do("query-migrate")["xbzrle-cache"]["cache-size"], 8 << 20, "cache")
    here.do("migrate-continue", state="pre-switchover")
    arrives(here, there)


@test
def the_tool_sets_capabilities_and_parameters_first(folder):
    uri = f"unix:{folder}/move"
    there = Machine(folder, "there", "--incoming", uri)
    here = Machine(folder, "here")
    here.lives()
    status, _, err = migrate(here, uri, "--capability", "nonsense")
    equal(status, 2, err)
    assert "nonsense" in err, err
    status, _, err = migrate(here, uri, "--parameter", "max-bandwidth")
    equal(status, 2, err)
    status, _, err = migrate(here, uri, "--capability", "xbzrle", "--capability", "-auto-converge",
                             "--parameter", "xbzrle-cache-size=4M", "--parameter",
                             "max-bandwidth=1G")
    equal(status, 0, err)
    equal(here.do("query-migrate-parameters")["xbzrle-cache-size"], 4 << 20, "cache")
    equal(here.do("query-migrate")["xbzrle-cache"]["cache-size"], 4 << 20, "cache")
    until(lambda: there.status() == "running")
    here.quit()
    there.quit()


@test
def a_guest_that_is_too_fast_is_slowed_down_and_moves(folder):
    """Its vCPU and its device dirty 6 MiB/s each, the channel carries 8; the device is not slowed down."""
    uri = f"unix:{folder}/move"
    there = Machine(folder, "there", "--incoming", uri, "--rate", "12M")
    here = Machine(folder, "here", "--rate", "12M")
    here.lives()
    here.do("migrate-set-capabilities",
            capabilities=[{"capability": "auto-converge", "state": True}])
    here.do("migrate-set-parameters", **{"max-bandwidth": 8 << 20, "downtime-limit": 200,
                                         "cpu-throttle-increment": 79})
    here.do("migrate", uri=uri)
    throttled = lambda: here.do("query-migrate").get("cpu-throttle-percentage", 0) >= 20
    until(lambda: throttled() or there.status() == "running")
    if there.status() == "running" and not throttled():
        raise tap.Skip("this machine runs the guest so slowly that nothing had to be done")
    arrives(here, there)


@test
def a_cancelled_move_leaves_the_guest_right_and_the_next_one_works(folder):
    uri = f"unix:{folder}/move"
    there = Machine(folder, "there", "--incoming", uri)
    here = Machine(folder, "here")
    here.lives()
    here.do("migrate-set-parameters", **{"max-bandwidth": 1 << 20})
    here.do("migrate", uri=uri)
    until(lambda: here.do("query-migrate")["status"] == "active")
    try:
        here.do("migrate", uri=uri)
        raise AssertionError("two moves at once")
    except Refused:
        pass
    here.do("migrate_cancel")
    until(lambda: here.do("query-migrate")["status"] == "cancelled")
    equal(here.status(), "running", "status")
    there.process.communicate(timeout=30)
    equal(there.process.returncode, 2, "destination")
    here.lives()
    here.do("stop")
    here.check()
    here.do("cont")
    here.do("migrate-set-parameters", **{"max-bandwidth": 0})
    again = Machine(folder, "again", "--incoming", uri)
    status, _, err = migrate(here, uri)
    equal(status, 0, err)
    until(lambda: again.status() == "running")
    again.lives()
    again.do("stop")
    again.check()
    assert "MIGRATION" in again.events + here.events
    here.quit()
    again.quit()


@test
def moves_that_cannot_be_fail_with_a_reason_and_the_guest_goes_on(folder):
    here = Machine(folder, "here")
    status, result, _ = migrate(here, f"unix:{folder}/nobody")
    equal((status, result["status"]), (1, "failed"), "nobody there")
    equal(result["error"], f"unix:{folder}/nobody: No such file or directory", "reason")
    there = Machine(folder, "there", "--incoming", f"unix:{folder}/move", memory="16M")
    status, result, _ = migrate(here, f"unix:{folder}/move")
    equal((status, result["status"]), (1, "failed"), "another size")
    _, err = there.process.communicate(timeout=30)
    equal(there.process.returncode, 2, err.decode())
    assert b"block 'ram' has 33554432 bytes at the source, 16777216 here" in err, err
    here.lives()
    here.quit()
    p = subprocess.run([TOOL, "migrate", "--qmp", f"unix:{folder}/none", "tcp:x:1"],
                       capture_output=True, timeout=30, check=False)
    equal((p.returncode, p.stdout), (2, b""), "no monitor")
    assert f"unix:{folder}/none': No such file or directory" in p.stderr.decode(), p


@test
def a_signal_ends_a_machine_in_order(folder):
    here = Machine(folder, "here")
    here.lives()
    here.process.send_signal(signal.SIGTERM)
    here.process.communicate(timeout=30)
    equal(here.process.returncode, 0, "exit status")
    assert not os.path.exists(here.path), "the socket is still there"


@test
def registers_can_be_asked_for_while_it_runs(folder):
    here = Machine(folder, "here", "--vcpus", "2")
    here.lives()
    cpus = here.do("x-query-registers")
    equal([c["cpu-index"] for c in cpus], [0, 1], "vCPUs")
    assert int(cpus[1]["registers"]["op"], 16) > 0, cpus
    equal(here.status(), "running", "status")
    here.lives()
    here.quit()


@test
def a_flat_image_without_kvm_is_refused_with_the_reason(folder):
    if os.access("/dev/kvm", os.W_OK):
        raise Skip("/dev/kvm is here")
    image = os.path.join(folder, "image")
    with open(image, "wb") as f:
        f.write(b"\xf4")
    p = subprocess.run([TOOL, "run", "--flat", image], capture_output=True, timeout=30,
                       check=False)
    equal((p.returncode, p.stdout), (2, b""), "exit status")
    assert b"a flat image needs KVM" in p.stderr, p.stderr


def demo(*args):
    p = subprocess.run([TOOL, "demo", "--accel", "threads", "--json", *args],
                       capture_output=True, timeout=400, check=False)
    return p.returncode, json.loads(p.stdout or "null"), p.stderr.decode()


@test
def the_demo_says_what_it_did_and_all_is_right(_):
    status, result, err = demo("--memory", "128M")
    equal(status, 0, err)
    equal(list(result), DEMO_KEYS, "keys")
    equal(result["accelerator"], "threads", "accelerator")
    equal(result["pages_checked"], (128 << 20) // 4096, "pages checked")
    equal((result["pages_wrong"], result["guest_resumed"]), (0, True), "outcome")
    assert result["blocks_plugged"] >= 20 and result["blocks_unplugged"] >= 20, result
    assert result["blocks_alive_at_switchover"] >= 5, result
    assert result["rounds"] >= 2 and result["downtime_ns"] > 0, result
    assert 0 < result["pages_last_written_before_final_round"] <= result["pages_written_once"]
    assert result["device_pages_checked"] > 0 and result["plugged_pages_checked"] > 0, result


def damaged(fault):
    status, result, err = demo("--memory", "128M", "--inject", fault)
    equal(status, 1, err)
    assert result["pages_wrong"] >= 1, result
    equal(result["guest_resumed"], False, "a damaged guest ran")


@test
def the_demo_finds_a_lost_page(_):
    damaged("lose-page")


@test
def the_demo_finds_pages_read_too_early(_):
    damaged("early-read")


@test
def the_demo_finds_a_missing_last_harvest(_):
    damaged("skip-final-sync")


if __name__ == "__main__":
    main()
