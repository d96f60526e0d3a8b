#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Growth of the chunk array under RCU while markers mark and a harvester harvests
(models/dirty_grow.pml, on a C11 machine). ARR names the published array (0: one chunk, 1: two
chunks; both point to the same chunk 0), BLK says that the block in chunk 1 can be found (O3:
after ARR). M0 marks a page of chunk 0 with whatever array it loads; M1 looks the new block up,
then marks a page of chunk 1. G grows, publishes the block, waits for a grace period, frees the
old array. H harvests once at any time, then after the markers. One word per chunk stands for the
hierarchical chunk. Limits: one growth, 2 markers,"""
from c11_machine import Machine, main

UAF = (
    "chk",
    lambda R, G: "USE AFTER FREE of the old array" if R["k"] == 0 and G["freed"] else None,
)


def markword(i, W):
    return [
        ("st", "D%d" % i, 1, "rlx"),
        ("ld", "w", W, "acq"),
        ("if", lambda R: R["w"] & 1, "OUT"),
        ("or", "w", W, 1, "ar"),
        "OUT",
    ]


def progs(mut):
    ld = lambda: ("ld", "k", "ARR", "rlx" if mut == "array_relaxed" else "acq")
    W0 = (lambda R: "W0c" if R["k"] else "W0") if mut in ("copy_bits", "copy_bits_gp") else "W0"
    touch = [("ld", "z", "Z", "rlx"), UAF]
    m0 = (
        [("set", "sec", lambda R: 1), ld()]
        + touch
        + markword(0, W0)
        + [("set", "sec", lambda R: 0)]
    )
    oob = [
        (
            "chk",
            lambda R, G: "OUT OF BOUNDS: block found, chunk not there" if R["k"] == 0 else None,
        ),
        ("ld", "i", "INIT", "rlx"),
        ("chk", lambda R, G: "chunk not zeroed yet" if not R["i"] else None),
    ]
    look = [("ld", "b", "BLK", "acq"), ("if", lambda R: not R["b"], "NO")]
    if mut == "array_before_lookup":
        m1 = [("set", "sec", lambda R: 1), ld()] + look + oob
    else:
        m1 = [("set", "sec", lambda R: 1)] + look + [ld()] + oob
    m1 += touch + markword(1, "W1") + ["NO", ("set", "sec", lambda R: 0)]
    g = [("st", "INIT", 1, "rlx")]
    if mut in ("copy_bits", "copy_bits_gp"):
        g += [("ld", "x", "W0", "acq"), ("st", "W0c", lambda R: R["x"], "rlx")]
    pub = [("st", "ARR", 1, "rlx" if mut == "publish_relaxed" else "rel")]
    blk = [("st", "BLK", 1, "rel")]
    g += blk + pub if mut == "block_first" else pub + blk
    if mut != "no_gp":
        g += [("quiesce", t) for t in ("M0", "M1", "H")]
    if mut == "copy_bits_gp":
        g += [("ld", "x", "W0", "acq"), ("or", "y", "W0c", lambda R: R["x"], "ar")]
    g += [("g", lambda R, G: G.update(freed=1)), ("st", "Z", 1, "rlx")]

    def harvest(n):
        L = lambda x: x + str(n)
        P = (
            [("set", "sec", lambda R: 1)]
            + ([] if n and mut == "harvester_caches_array" else [ld()])
            + touch
        )
        P += [
            ("xchg", "a", W0, 0, "ar"),
            ("set", "b", lambda R: 0),
            ("if", lambda R: not R["k"], L("s")),
            ("ld", "i", "INIT", "rlx"),
            ("chk", lambda R, G: None if R["i"] else "harvester: chunk not zeroed yet"),
            ("xchg", "b", "W1", 0, "ar"),
            L("s"),
        ]
        P += [
            ("if", lambda R: not R["a"] and (not R["b"]), L("e")),
            ("heavy", ["M0", "M1"]),
            L("e"),
            ("if", lambda R: not R["a"], L("x")),
            ("ld", "c0", "D0", "rlx"),
            L("x"),
            ("if", lambda R: not R["b"], L("y")),
            ("ld", "c1", "D1", "rlx"),
            L("y"),
            ("set", "sec", lambda R: 0),
        ]
        return P

    h = harvest(0) + [("await", ["M0", "M1"])] + harvest(1)
    h += [
        (
            "chk",
            lambda R, G: "LOST: store of M0, chunk 0"
            if not R["c0"]
            else "LOST: store of M1, chunk 1"
            if G["m1"] and (not R["c1"])
            else None,
        ),
        ("ld", "z", "Z", "rlx"),
    ]
    m1.insert(-2, ("g", lambda R, G: G.update(m1=1)))
    return {"M0": m0, "M1": m1, "G": g, "H": h}


def case(mut=""):
    return Machine(
        ["ARR", "BLK", "INIT", "W0", "W1", "W0c", "D0", "D1", "Z"],
        progs(mut),
        ghost={"freed": 0, "m1": 0},
        limit=4000000,
    ).run()


MUTANTS = (
    "copy_bits copy_bits_gp no_gp block_first array_before_lookup publish_relaxed array_relaxed"
    " harvester_caches_array"
)

if __name__ == "__main__":
    main({"growth": case}, {m: lambda m=m: case(m) for m in MUTANTS.split()})
