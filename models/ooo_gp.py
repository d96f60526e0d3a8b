#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""gp.pml once more, written independently: several HOT readers and a driver (src/rcu/grace_period.c).

Readers are out-of-order machines: an operation is done at any time that its constraints allow (one place in
order; a use after its load; the release; stores after the branches before them), loads run ahead of branches, and
what ran ahead of a branch that is taken after all never happened. A process-wide fence is for each reader a
moment at which what it has done is a prefix of its program. The driver unlinks, counts and asks each reader,
fences (M1), takes the requests of those that it finds outside back, and waits until all are answered.
Claim: nobody uses what was freed, and the driver gets to the end.
"""
from c11_machine import main

OUTSIDE, INSIDE = 0, 1
SECTION = ("enter", "load", "use", "leave", "look", "report")
STORES = ("enter", "leave", "report")


class Reader:
    """A program of so many sections; before[i] is the set of operations that come before operation i."""

    def __init__(self, sections, mutant):
        self.ops = SECTION * sections
        self.before = []
        for j, op in enumerate(self.ops):
            before = {
                i
                for i, other in enumerate(self.ops[:j])
                if {op, other} <= {"enter", "leave"} or {op, other} <= {"look", "report"}
            }
            if op == "use":
                before.add(j - 1)
            if op == "leave" and mutant != "unlock_relaxed":
                before |= set(range(j))  # R1
            self.before.append(sum(1 << i for i in before))

    def may(self, j, done, regs):
        """Operation j now? regs[j] of a report: what the look before it found."""
        if done >> j & 1 or self.before[j] & ~done:
            return False
        for i in range(j):
            if self.ops[i] == "report" and not done >> i & 1:
                resolved = done >> (i - 1) & 1
                if (resolved and regs[i]) or (not resolved and self.ops[j] in STORES):
                    return False
        if self.ops[j] == "report" and regs[j]:  # a read-modify-write
            return done & ((1 << j) - 1) == (1 << j) - 1 and not done >> (j + 1)
        return True

    def is_squashed(self, done, regs):
        """Something ran ahead of a branch that is taken: an execution that does not exist."""
        return any(
            op == "report" and regs[i] and not done >> i & 1 and done >> (i + 1)
            for i, op in enumerate(self.ops)
        )


def is_prefix(done):
    return done & (done + 1) == 0


def reader_steps(r, reader, state, mutant):
    """What it can do next: states. Raises what is wrong."""
    readers, ptr, pending, freed, driver = state
    done, regs, ctr, need = readers[r]
    for j, op in enumerate(reader.ops):
        if not reader.may(j, done, regs):
            continue
        regs2, ctr2, need2, pending2 = list(regs), ctr, need, pending
        if op in ("enter", "leave"):
            ctr2 = INSIDE if op == "enter" else OUTSIDE
        elif op == "load":
            regs2[j + 1] = ptr
        elif op == "use" and freed >> regs[j] & 1:
            raise RuntimeError("USE AFTER FREE by reader %d" % r)
        elif op == "look":
            regs2[j + 1] = need
        elif op == "report" and regs[j]:
            if need or mutant == "plain_clear":
                pending2 -= 1
            need2 = 0
        mine = (done | 1 << j, tuple(regs2), ctr2, need2)
        yield readers[:r] + (mine,) + readers[r + 1 :], ptr, pending2, freed, driver


def driver_steps(state, gps, mutant):
    readers, ptr, pending, freed, (pc, gp, k) = state
    n = len(readers)

    def ask(r, need):
        done, regs, ctr, _ = readers[r]
        return readers[:r] + ((done, regs, ctr, need),) + readers[r + 1 :]

    def then(pc, last, **change):
        """On to the next reader, or behind the last one."""
        at = (pc, gp, k + 1) if k + 1 < n else (last, gp, 0)
        return (
            change.get("readers", readers),
            change.get("ptr", ptr),
            change.get("pending", pending),
            change.get("freed", freed),
            at,
        )

    done, _, ctr, need = readers[k] if k < n else (0, (), 0, 0)
    fence = "SCAN" if mutant == "no_m1" else "M1"
    if pc == "UNLINK":
        count = 0 if mutant == "request_before_pending" else n
        yield readers, gp + 1, count, freed, ("ASK", gp, 0)
    elif pc == "ASK":
        if mutant == "idle_hot_is_safe" and ctr == OUTSIDE:
            yield then("ASK", fence, pending=pending - 1)
        else:
            yield then(
                "ASK", "COUNT" if mutant == "request_before_pending" else fence, readers=ask(k, 1)
            )
    elif pc == "COUNT":
        yield readers, ptr, n, freed, ("M1", gp, 0)
    elif pc == "M1":
        if is_prefix(done):
            yield then("M1", "SCAN")
    elif pc == "SCAN":
        if need and (ctr == OUTSIDE or mutant == "inside_is_safe"):
            yield then("SCAN", "WAIT", readers=ask(k, 0), pending=pending - 1)
        else:
            yield then("SCAN", "WAIT")
    elif pc == "WAIT":
        if pending == 0 or (mutant == "wake_before_last" and pending < n):
            last = gp + 1 == gps
            at = ("END" if last else "UNLINK", gp + 1, 0)
            yield readers, ptr, pending, freed | 1 << gp, at


def run(sections, gps, mutant=""):
    programs = [Reader(n, mutant) for n in sections]
    start = tuple((0, (0,) * len(p.ops), OUTSIDE, 0) for p in programs)
    first = (start, 0, 0, 0, ("UNLINK", 0, 0))
    seen, todo = {first}, [first]
    while todo:
        state = todo.pop()
        try:
            following = list(driver_steps(state, gps, mutant))
            for r, p in enumerate(programs):
                following += reader_steps(r, p, state, mutant)
        except RuntimeError as error:
            return len(seen), str(error)
        if not following and state[4][0] != "END":
            if not any(p.is_squashed(*s[:2]) for p, s in zip(programs, state[0])):
                return len(seen), "HANG: driver at " + state[4][0]
        for s in following:
            if s not in seen:
                seen.add(s)
                todo.append(s)
    return len(seen), None


MUTANTS = "no_m1 unlock_relaxed plain_clear request_before_pending idle_hot_is_safe inside_is_safe wake_before_last"
SHAPES = (((3,), 2), ((1, 1), 1))


def first_error(mutant):
    total = 0
    for sections, gps in SHAPES:
        n, error = run(sections, gps, mutant)
        total += n
        if error:
            return total, error
    return total, None


if __name__ == "__main__":
    main(
        {"sections %s, %d grace periods" % s: lambda s=s: run(*s) for s in SHAPES},
        {m: lambda m=m: first_error(m) for m in MUTANTS.split()},
    )
