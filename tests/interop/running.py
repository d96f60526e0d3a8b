# SPDX-License-Identifier: MIT
"""A QEMU whose guest numbers its page writes, moved while it writes."""
import os

import writer_guest
from qemu import Qemu, wait_for
from tap import equal, same_bytes

MIB = 1 << 20
RAM = 32 * MIB
PAGES = 4096  # 16 MiB that the guest dirties in each round


def dots(path):
    return os.path.getsize(path) if os.path.exists(path) else 0


def running(tmp, name, *args):
    """A QEMU with our writer; the source runs it, a destination gets it."""
    return Qemu(tmp, name, "-m", "32", *writer_guest.floppy(tmp, PAGES),
                "-debugcon", f"file:{tmp}/{name}.e9", *args)


def migrate_while_writing(q, tmp, uri, rounds=5):
    """Slowly at first, so that the guest dirties its pages again and again."""
    wait_for(lambda: dots(f"{tmp}/{q.name}.e9") > 20, "writer at work")
    q.cmd("migrate-set-parameters", max_bandwidth=16 * MIB)
    q.migrate(uri)
    wait_for(lambda: q.migration().get("ram", {}).get("dirty-sync-count", 0) >= rounds,
             f"{rounds} rounds")
    q.cmd("migrate-set-parameters", max_bandwidth=1 << 40, downtime_limit=60000)
    return q.wait_migrated()


def runs_on(tmp, destination, ram=None):
    """The destination has the source's RAM if that is known, and its writer counts on from there;
    the RAM it had."""
    info = destination.wait_migrated()
    equal(info["status"], "completed", "destination")
    destination.wait_status("paused", "prelaunch")
    got = destination.memory(0, RAM)
    if ram:
        same_bytes(got, ram, "destination's RAM")
    counter = writer_guest.check_region(got, PAGES)
    nonce = destination.word(writer_guest.NONCE_AT)
    destination.cmd("cont")
    wait_for(lambda: destination.word(writer_guest.COUNTER_AT) > counter + 20,
             "writer going on")
    equal(destination.word(writer_guest.NONCE_AT), nonce, "nonce: the guest has rebooted")
    assert dots(f"{tmp}/{destination.name}.e9") > 10
    destination.cmd("stop")
    later = destination.memory(0, RAM)
    assert writer_guest.check_region(later, PAGES) > counter
    return got


def shared_ram(tmp):
    """The options for main memory in a file that all map."""
    path = os.path.join(tmp, "shared")
    with open(path, "ab") as f:
        f.truncate(RAM)
    return ["-object", f"memory-backend-file,id=pc.ram,size={RAM},share=on,mem-path={path}",
            "-machine", "memory-backend=pc.ram"]
