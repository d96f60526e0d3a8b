#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Consumers and epochs (models/dirty_epoch.pml, on a C11 machine): ONE live bitmap (here one word W;
its summaries are dirty_mark.pml's business), a private pending set per consumer (PA, PB), one
harvest lock L. A begin takes the live bits, ORs them into every other consumer's pending set,
takes its own pending set, and runs one membarrier if it cleared live bits, all under the lock;
then it reads the pages of its epoch and commits (the copy counts) or aborts (the copy does not
count, the bits go back to its pending set). Each consumer does one epoch (commit or abort,
explored), then waits for the markers and does the last one: its copy must hold every store. A
third consumer may be added meanwhile (it drains the live bits to the others, then copies all
pages, then a last epoch) and B may be removed (its pending set is freed). Limits: 2 markers,
pages a and b, 2 or 3 consumers, 1 epoch each before the last."""
from c11_machine import Machine, main

BIT = {"a": 1, "b": 2}


def mark(i, page):
    b = BIT[page]
    return [
        ("st", "D%d" % i, 1, "rlx"),
        ("ld", "w", "W", "acq"),
        ("if", lambda R: R["w"] & b, "OUT"),
        ("or", "w", "W", b, "ar"),
        "OUT",
    ]


def begin(me, others, pages, k, mut):
    L = lambda x: "%s%s" % (x, k)
    P = []
    fan = lambda: [
        o
        for x in others
        for o in (
            ("ld", "on", "ON" + x, "rlx"),
            ("if", lambda R: not R["on"], L("o" + x)),
            ("or", "x", "P" + x, lambda R: R["w"], "rlx"),
            ("chk", lambda R, G, x=x: "USE AFTER FREE of P" + x if G["freed" + x] else None),
            L("o" + x),
        )
    ]
    heavy = [("if", lambda R: not R["w"], L("NH")), ("heavy", ["M0", "M1"]), L("NH")]
    if mut == "no_lock":
        lock, unlock = ([], [])
    else:
        lock, unlock = ([("lock", "L")], [("unlock", "L")])
    if mut == "list_before_lock":
        P += (
            [("ld", "on", "ON" + others[0], "rlx")]
            + lock
            + [
                ("xchg", "w", "W", 0, "ar"),
                ("if", lambda R: not R["on"], L("z")),
                ("or", "x", "P" + others[0], lambda R: R["w"], "rlx"),
                (
                    "chk",
                    lambda R, G, x=others[0]: "USE AFTER FREE of P" + x if G["freed" + x] else None,
                ),
                L("z"),
            ]
        )
    else:
        P += lock + [("xchg", "w", "W", 0, "ar")]
        if mut == "own_first":
            P = P[:-1] + [("xchg", "p", "P" + me, 0, "rlx")] + P[-1:]
        if mut == "fan_out_late":
            pass
        elif mut != "no_fan_out":
            P += fan()
    if mut != "own_first":
        P += [("xchg", "p", "P" + me, 0, "rlx")]
    if mut == "fan_out_late":
        P += unlock + fan() + lock
    if mut in ("barrier_unlocked_elided", "barrier_unlocked"):
        P += unlock + ([("heavy", ["M0", "M1"])] if mut == "barrier_unlocked" else heavy)
    elif mut == "no_membarrier":
        P += unlock
    else:
        P += heavy + unlock
    P += [("set", "e", lambda R: R["p"] | R["w"])]
    for i, p in pages:
        P += [
            ("set", "t%d" % i, lambda R: 0),
            ("if", lambda R, b=BIT[p]: not R["e"] & b, L("r%d" % i)),
            ("ld", "t%d" % i, "D%d" % i, "rlx"),
            L("r%d" % i),
        ]
    return P


def consumer(me, others, pages, mut, epochs=1, aw=("M0", "M1"), remove=None, add=False):
    P = [("set", "c%d" % i, lambda R: 0) for i, _ in pages]
    commit = [("set", "c%d" % i, lambda R, i=i: R["c%d" % i] | R["t%d" % i]) for i, _ in pages]
    if add:
        drain = [
            o
            for x in others
            for o in (
                ("ld", "on", "ON" + x, "rlx"),
                ("if", lambda R: not R["on"], "ad" + x),
                ("or", "x", "P" + x, lambda R: R["w"], "rlx"),
                "ad" + x,
            )
        ]
        P += [("lock", "L"), ("xchg", "w", "W", 0, "ar")] + ([] if mut == "add_drops" else drain)
        P += [
            ("if", lambda R: not R["w"] or mut == "add_no_barrier", "AN"),
            ("heavy", ["M0", "M1"]),
            "AN",
            ("st", "ON" + me, 1, "rlx"),
            ("unlock", "L"),
        ]
        if mut == "add_after_copy":
            P = P[: len(pages)]
        P += [("ld", "c%d" % i, "D%d" % i, "rlx") for i, _ in pages]
        if mut == "add_after_copy":
            P += [("lock", "L"), ("st", "ON" + me, 1, "rlx"), ("unlock", "L")]
    for k in range(epochs):
        P += (
            begin(me, others, pages, k, mut)
            + [("pick", "n", 2), ("if", lambda R: R["n"], "AB%d" % k)]
            + commit
            + [("goto", "DN%d" % k), "AB%d" % k]
        )
        if mut == "abort_drops":
            pass
        elif mut == "abort_overwrites":
            P += [("lock", "L"), ("st", "P" + me, lambda R: R["e"], "rlx"), ("unlock", "L")]
        elif mut == "abort_unlocked":
            P += [("ld", "y", "P" + me, "rlx"), ("st", "P" + me, lambda R: R["e"] | R["y"], "rlx")]
        else:
            P += [("lock", "L"), ("or", "x", "P" + me, lambda R: R["e"], "rlx"), ("unlock", "L")]
        P += ["DN%d" % k]
    if remove:
        if mut == "remove_unlocked":
            return P + [
                ("st", "ON" + me, 0, "rlx"),
                ("g", lambda R, G: G.update({"freed" + me: 1})),
                ("st", "Z", 0, "rlx"),
            ]
        return P + [
            ("lock", "L"),
            ("st", "ON" + me, 0, "rlx"),
            ("g", lambda R, G: G.update({"freed" + me: 1})),
            ("unlock", "L"),
        ]
    P += [("await", list(aw))] + begin(me, others, pages, "F", mut) + commit
    return P + [
        (
            "chk",
            lambda R, G: next(
                (
                    "LOST for %s: store of M%d to page %s" % (me, i, p)
                    for i, p in pages
                    if not R["c%d" % i]
                ),
                None,
            ),
        )
    ]


def case(marks="aa", mut="", who="AB", remove_b=False, add_c=False):
    pages = list(enumerate(marks))
    progs = {"M%d" % i: mark(i, p) for i, p in pages}
    if len(marks) == 1:
        progs["M1"] = [("ld", "z", "Z", "rlx")]
    all_ = list(who) + (["C"] if add_c else [])
    for x in who:
        progs[x] = consumer(
            x,
            [y for y in all_ if y != x],
            pages,
            mut,
            remove=remove_b and x == "B",
            epochs=0 if add_c or (remove_b and x == "B") else 1,
        )
    if add_c:
        progs["C"] = consumer("C", list(who), pages, mut, epochs=0, add=True)
    return Machine(
        ["W", "L", "Z"]
        + ["D%d" % i for i, _ in pages]
        + ["P" + x for x in all_]
        + ["ON" + x for x in all_],
        progs,
        init={"ON" + x: 1 for x in who},
        ghost={"freed" + x: 0 for x in "ABC"},
        limit=4000000,
    ).run()


CASES = {
    "one page": lambda: case("aa"),
    "two pages": lambda: case("ab"),
    "a consumer is added": lambda: case("aa", who="A", add_c=True),
    "a consumer is removed": lambda: case("aa", remove_b=True),
}
MUTANTS = {
    m: lambda m=m: case("aa", m)
    for m in "no_membarrier no_fan_out fan_out_late no_lock abort_drops abort_overwrites".split()
}
for added in "add_no_barrier", "add_after_copy", "add_drops":
    MUTANTS[added] = lambda m=added: case("aa", m, who="A", add_c=True)
for removed in "list_before_lock", "remove_unlocked":
    MUTANTS[removed] = lambda m=removed: case("aa", m, remove_b=True)

if __name__ == "__main__":
    main(CASES, MUTANTS)
