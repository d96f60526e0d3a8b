#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""promote.pml once more, written independently: one reader becomes HOT, parks and becomes HOT again, while a driver
runs grace periods that leave M1 out if nobody is HOT (I1 of src/rcu/grace_period.c). The reader has a store buffer,
as on x86; a fence waits until it is empty. Claim: no section uses what was freed, and everybody gets to the end.
"""
from c11_machine import main

IDLE_HOT, IN_HOT, IDLE_COLD, IN_COLD = 1, 2, 3, 4
FIELDS = "ctr need pending pc loaded found buf sections driver gp fenced ptr freed".split()


def reader_steps(s, own, step, mutant, sections):
    pc, buf, empty = s["pc"], s["buf"], not s["buf"]
    if pc == "LOCK":
        if s["sections"] == sections:
            step(pc="DONE")
            return None
        step(loaded=own, pc="STORE")
        if own == IDLE_HOT:
            step(buf=buf + (IDLE_COLD,), pc="PARK_FENCE")
    elif pc == "PARK_FENCE":
        if empty:
            step(pc="PARK_LOOK")
    elif pc == "PARK_LOOK":
        step(need=0, pending=s["pending"] - s["need"], pc="LOCK")
    elif pc == "STORE":
        if s["loaded"] == IDLE_HOT:
            step(buf=buf + (IN_HOT,), pc="FIND")
        else:
            step(buf=buf + (IN_COLD,), pc="FENCE")  # C1
            step(buf=buf + (IN_HOT,), pc="RISE_FENCE")
    elif pc == "FENCE" or pc == "RISE_FENCE":
        if empty or (pc == "RISE_FENCE" and mutant == "rise_no_fence"):
            step(pc="FIND")
    elif pc == "FIND":
        step(found=s["ptr"] + 1, pc="USE")
    elif pc == "USE":
        if s["freed"] >> (s["found"] - 1) & 1:
            return "USE AFTER FREE"
        step(pc="UNLOCK")
    elif pc == "UNLOCK":
        step(buf=buf + (IDLE_HOT if own == IN_HOT else IDLE_COLD,), pc="LOOK")
    elif pc == "LOOK":
        if s["need"]:
            step(pc="REPORT")
        else:
            step(pc="LOCK", sections=s["sections"] + 1)
    elif pc == "REPORT" and empty:  # a read-modify-write
        pending = s["pending"] - s["need"]
        step(need=0, pending=pending, pc="LOCK", sections=s["sections"] + 1)
    return None


def driver_steps(s, step, mutant, gps):
    d, ctr, outside = s["driver"], s["ctr"], s["ctr"] in (IDLE_HOT, IDLE_COLD)
    hot = (IN_HOT,) if mutant == "idle_hot_is_safe" else (IDLE_HOT, IN_HOT)
    if d == "UNLINK":
        if s["gp"] == gps:
            step(driver="END")
        else:
            step(ptr=s["gp"] + 1, driver="DEMOTE" if mutant == "driver_demotes" else "LOOK")
    elif d == "DEMOTE":
        step(ctr=IDLE_COLD if ctr == IDLE_HOT else ctr, driver="M1" if ctr in hot else "SCAN")
    elif d == "LOOK":
        step(driver="M1" if ctr in hot else "SCAN")
    elif d == "M1":
        if not s["buf"] or mutant == "no_m1":
            step(driver="SCAN")
    elif d == "SCAN":
        step(driver="FREE" if outside else "ASK", fenced=int(ctr == IN_HOT))
    elif d == "ASK":
        step(need=1, pending=1, driver="M2" if s["fenced"] else "SCAN_2")
    elif d == "M2":
        if not s["buf"] or mutant == "no_m2":
            step(driver="SCAN_2")
    elif d == "SCAN_2":
        step(driver="CLAIM" if outside else "SLEEP")
    elif d == "CLAIM":
        step(need=0, pending=s["pending"] - s["need"], driver="SLEEP")
    elif d == "SLEEP":
        if s["pending"] == 0:
            step(driver="FREE")
        elif not s["fenced"] and outside:
            step(driver="CLAIM")  # the re-scan, where there was no M2
    elif d == "FREE":
        step(freed=s["freed"] | 1 << s["gp"], gp=s["gp"] + 1, driver="UNLINK")


def run(sections, gps, mutant=""):
    first = (IDLE_COLD, 0, 0, "LOCK", 0, 0, (), 0, "UNLINK", 0, 0, 0, 0)
    seen, todo = {first}, [first]
    while todo:
        s = dict(zip(FIELDS, todo.pop()))
        following = []

        def step(**change):
            following.append(tuple({**s, **change}.values()))

        if s["buf"]:
            step(ctr=s["buf"][0], buf=s["buf"][1:])
        error = reader_steps(s, s["buf"][-1] if s["buf"] else s["ctr"], step, mutant, sections)
        if error:
            return len(seen), error
        driver_steps(s, step, mutant, gps)
        if not following and (s["pc"], s["driver"]) != ("DONE", "END"):
            return len(seen), "HANG: reader %s, driver %s" % (s["pc"], s["driver"])
        for t in following:
            if t not in seen:
                seen.add(t)
                todo.append(t)
    return len(seen), None


MUTANTS = "driver_demotes rise_no_fence idle_hot_is_safe no_m1 no_m2"

if __name__ == "__main__":
    main(
        {"3 sections, 2 grace periods": lambda: run(3, 2), "4 sections, 3": lambda: run(4, 3)},
        {m: lambda m=m: run(4, 3, m) for m in MUTANTS.split()},
    )
