#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Marks against harvests (models/dirty_mark.pml, on a C11 machine): two leaf words W0 (pages a, b) and
W1 (page c), one sum S (a bit for each leaf word), one top T. Mirrors src/bitmap/mark.c (L1, L2) and
src/bitmap/harvest.c (H1, H2).

Each marker stores to its page (D0, D1, ...), then marks it. The harvester harvests some times, then
waits for markers and harvests a last time; it reads a page only when a harvest reports it. The copy
must hold the store of each awaited marker. In the cases named prompt, marker 0 is not awaited: it may
stand still for ever half way. With fallback there is no process-wide fence, each side has its own. The
child of a fork harvests everything, whatever the summaries say.

Limits: 2 or 3 markers of one mark each (or one of a range), 1 to 3 harvests; no load buffering, so
the release of an OR is not missed here (dirty_mark.pml: OR_RELAXED)."""
from c11_machine import Machine, main

# leaf word, bit in it, bit in the sum
BIT = {"a": ("W0", 1, 1), "b": ("W0", 2, 1), "c": ("W1", 1, 2)}


def or_sums(bits, mut):
    return [
        ("ld", "s", "S", "acq"),
        ("if", lambda R: R["s"] & bits(R) == bits(R), "TOP"),
        ("or", "s", "S", bits, "rel" if mut == "sum_no_acquire" else "ar"),
        "TOP",
        ("ld", "t", "T", "rlx"),
        ("if", lambda R: R["t"], "OUT"),
        ("or", "t", "T", 1, "ar"),
        "OUT",
    ]


def mark(i, page, mut, fallback):
    word, bit, sum_bit = BIT[page]
    store = [("st", "D%d" % i, 1, "rlx")]
    if fallback and mut != "no_light_fence":
        store += [("fence",)]
    look = [
        ("ld", "w", word, "rlx" if mut == "look_relaxed" else "acq"),
        ("if", lambda R: R["w"] & bit, "OUT" if mut == "trusts_leaf" else "SUM"),
    ]
    leaf = [("or", "w", word, bit, "rel" if mut == "leaf_no_acquire" else "ar")]
    if mut == "leaf_store":
        leaf = [("ld", "w", word, "acq"), ("st", word, lambda R: R["w"] | bit, "ar")]
    sums = or_sums(lambda R: sum_bit, mut)
    if mut == "top_down":
        return store + [("or", "t", "T", 1, "ar"), ("or", "s", "S", sum_bit, "ar")] + look[:1] + leaf
    if mut == "mark_then_store":
        return look + leaf + ["SUM"] + sums + store
    return store + look + leaf + ["SUM"] + sums


def mark_range(first, mut):
    """Pages b and c in one call: all leaf words, then the sum once."""
    sums = or_sums(lambda R: 3, mut)
    program = [("st", "D%d" % (first + n), 1, "rlx") for n in range(2)]
    if mut == "range_sum_early":
        program += sums
    for page in "bc":
        word, bit, _ = BIT[page]
        program += [
            ("ld", "w", word, "acq"),
            ("if", lambda R, bit=bit: R["w"] & bit, "NEXT" + page),
            ("or", "w", word, bit, "ar"),
            "NEXT" + page,
        ]
    return program if mut == "range_sum_early" else program + sums


def take_leaf(word, k, mut, tested=None):
    skip = "SKIP%s%d" % (word, k)
    take = [("if", tested, skip)] if tested else []
    if mut == "clears_by_store":
        return take + [("ld", "h" + word, word, "acq"), ("st", word, 0, "rel"), skip]
    return take + [("xchg", "h" + word, word, 0, "ar"), skip]


def harvest(pages, k, mut, fallback, everything=False):
    heavy = [("fence",)] if fallback else [("heavy",)]
    look_top = [("ld", "hT", "T", "rlx"), ("if", lambda R: not R["hT"], "READ%d" % k)]
    top = [("xchg", "hT", "T", 0, "ar")]
    sums = [("xchg", "hS", "S", 0, "ar")]
    leaves = take_leaf("W0", k, mut, lambda R: not R["hS"] & 1)
    leaves += take_leaf("W1", k, mut, lambda R: not R["hS"] & 2)
    all_leaves = take_leaf("W0", k, mut) + take_leaf("W1", k, mut)
    if everything:
        take = all_leaves + sums + top if mut == "sums_last" else top + sums + all_leaves
    elif mut == "bottom_up":
        take = look_top + [("ld", "hS", "S", "acq")] + leaves + sums + top
    else:
        take = look_top + top + sums + leaves
    read = []
    for i, page in pages:
        word, bit, _ = BIT[page]
        read += [
            ("if", lambda R, word=word, bit=bit: not R["h" + word] & bit, "NOT%d_%d" % (k, i)),
            ("ld", "c%d" % i, "D%d" % i, "rlx"),
            "NOT%d_%d" % (k, i),
        ]
    if mut == "fence_first":
        take = heavy + take
    elif mut != "no_fence":
        nothing = ("if", lambda R: not R["hW0"] and not R["hW1"], "READ%d" % k)
        take = take + [nothing] + heavy
    none = [("set", r, lambda R: 0) for r in ("hT", "hS", "hW0", "hW1")]
    return none + take + ["READ%d" % k] + read


def case(marks, mut="", harvests=1, prompt=False, fallback=False, everything=False, ranged=False):
    """marks: the page of each marker. ranged: one more marker marks b and c in one call."""
    pages = list(enumerate(marks))
    programs = {"M%d" % i: mark(i, page, mut, fallback) for i, page in pages}
    if ranged:
        programs["M%d" % len(marks)] = mark_range(len(marks), mut)
        pages += [(len(marks), "b"), (len(marks) + 1, "c")]
    needed = [(i, page) for i, page in pages if i > 0 or not prompt]
    harvester = [("set", "c%d" % i, lambda R: 0) for i, _ in pages]
    for k in range(harvests):
        harvester += harvest(pages, k, mut, fallback, everything and k == 0)
    harvester += [("await", [m for m in programs if m != "M0" or not prompt])]
    harvester += harvest(pages, 99, mut, fallback)
    harvester += [
        (
            "chk",
            lambda R, G: next(
                ("LOST: store %d, to page %s" % w for w in needed if not R["c%d" % w[0]]), None
            ),
        )
    ]
    programs["H"] = harvester
    return Machine(["T", "S", "W0", "W1"] + ["D%d" % i for i, _ in pages], programs).run()


CASES = {
    "one page, two harvests": lambda: case("aa", harvests=2),
    "one word": lambda: case("ab"),
    "two words": lambda: case("ac"),
    "one page, prompt": lambda: case("aa", prompt=True),
    "one word, prompt": lambda: case("ab", prompt=True),
    "two words, prompt": lambda: case("ac", prompt=True),
    "one page, fallback": lambda: case("aa", fallback=True),
    "a range": lambda: case("b", ranged=True),
    "everything": lambda: case("ab", everything=True),
}
MUTANTS = {
    "mark_then_store": lambda: case("aa", "mark_then_store"),
    "top_down": lambda: case("a", "top_down"),
    "trusts_leaf": lambda: case("aa", "trusts_leaf", prompt=True),
    "leaf_store": lambda: case("ab", "leaf_store"),
    "leaf_no_acquire": lambda: case("ab", "leaf_no_acquire"),
    "look_relaxed": lambda: case("aab", "look_relaxed", prompt=True),
    "sum_no_acquire": lambda: case("ac", "sum_no_acquire"),
    "range_sum_early": lambda: case("b", "range_sum_early", ranged=True),
    "bottom_up": lambda: case("ab", "bottom_up"),
    "clears_by_store": lambda: case("ab", "clears_by_store"),
    "no_fence": lambda: case("aa", "no_fence"),
    "fence_first": lambda: case("aa", "fence_first"),
    "no_light_fence": lambda: case("aa", "no_light_fence", fallback=True),
    "sums_last": lambda: case("ab", "sums_last", everything=True),
}

if __name__ == "__main__":
    main(CASES, MUTANTS)
