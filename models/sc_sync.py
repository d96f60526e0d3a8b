#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""sync.pml once more, written independently: merge, sleep and hand over in src/rcu/synchronize.c, every interleaving.

A thread takes its cookie, reads the futex word of the cookie's parity, looks whether it is served, tries the
driver's lock. The driver runs a grace period (two steps of seq), unlocks, bumps both words, wakes all sleepers of
its parity, then one of the other. Who does not get the lock sleeps while the word is what it read. Claim: each
thread returns, and not before the grace period it asked for. Each access is a step; memory is sequentially consistent.
"""
from c11_machine import main


def parity(cookie):
    return cookie // 2 & 1


def steps_of(i, state, mutant):
    """What thread i can do next: a list of states."""
    seq, lock, words, threads = state
    pc, cookie, seen = threads[i]
    out = []

    def to(thread, seq=seq, lock=lock, words=words, wake=None):
        t = list(threads)
        t[i] = thread
        for j in wake or ():
            t[j] = ("READ_WORD", t[j][1], 0)
        out.append((seq, lock, words, tuple(t)))

    def bumped(n):
        return tuple(w + (n == k) for k, w in enumerate(words))

    def asleep(p):
        return [j for j, t in enumerate(threads) if t[0] == "ASLEEP" and parity(t[1]) == p]

    late = mutant == "word_read_late"
    if pc == "COOKIE":
        to(("READ_WORD", (seq + 3) & ~1, 0))
    elif pc == "READ_WORD":
        to(("LOOK", cookie, words[parity(cookie)]))
    elif pc == "LOOK":
        to(("END", cookie, 0) if seq >= cookie else ("TRY", cookie, seen))
    elif pc == "TRY":
        if lock is None:
            to(("LOOK_AGAIN", cookie, 0), lock=i)
        else:
            to(("READ_LATE" if late else "WAIT", cookie, seen))
    elif pc == "READ_LATE":
        to(("WAIT", cookie, words[parity(cookie)]))
    elif pc == "WAIT":
        to(("ASLEEP" if words[parity(cookie)] == seen else "READ_WORD", cookie, 0))
    elif pc == "LOOK_AGAIN":
        quiet = mutant == "quiet_without_gp"
        to(("BEGIN" if seq < cookie else "QUIET_UNLOCK" if quiet else "UNLOCK", cookie, 0))
    elif pc == "QUIET_UNLOCK":
        to(("READ_WORD", cookie, 0), lock=None)
    elif pc == "BEGIN":
        to(("FINISH", cookie, 0), seq=seq + 1)
    elif pc == "FINISH":
        to(("BUMP_0" if mutant == "bump_before_unlock" else "UNLOCK", cookie, 0), seq=seq + 1)
    elif pc == "UNLOCK":
        to(("WAKE" if mutant == "bump_before_unlock" else "BUMP_0", cookie, 0), lock=None)
    elif pc == "BUMP_0":
        to(("BUMP_1", cookie, 0), words=bumped(0))
    elif pc == "BUMP_1":
        to(("UNLOCK" if mutant == "bump_before_unlock" else "WAKE", cookie, 0), words=bumped(1))
    elif pc == "WAKE":
        to(("HAND_ON", cookie, 0), wake=asleep(parity(cookie)))
    elif pc == "HAND_ON":
        others = asleep(1 - parity(cookie)) if mutant != "no_handoff" else []
        for j in others:
            to(("READ_WORD", cookie, 0), wake=[j])
        if not others:
            to(("READ_WORD", cookie, 0))
    return out


def run(n, mutant=""):
    first = (0, None, (0, 0), (("COOKIE", 0, 0),) * n)
    seen, todo = {first}, [first]
    while todo:
        state = todo.pop()
        following = [s for i in range(n) for s in steps_of(i, state, mutant)]
        if not following and any(t[0] != "END" for t in state[3]):
            return len(seen), "HANG: " + " ".join(t[0] for t in state[3])
        for s in following:
            if s not in seen:
                seen.add(s)
                todo.append(s)
    return len(seen), None


MUTANTS = "bump_before_unlock word_read_late no_handoff quiet_without_gp"

if __name__ == "__main__":
    main(
        {"%d callers" % n: lambda n=n: run(n) for n in (1, 2, 3)},
        {m: lambda m=m: run(3, m) for m in MUTANTS.split()},
    )
