#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""An exhaustive explorer of small C11 programs, under the other c11_*.py checkers; by itself it runs litmus tests.

Memory model: release and acquire with relaxed accesses, read-modify-writes and seq_cst fences, as a
view machine. Every location is the list of all values ever written to it; every thread has a
view (the oldest value of each location that it may still read). A load may return any value that
is not older than the view: stale reads, store buffering, load-load reordering and stores that
become visible to one thread before another (POWER) are all explored. A release write carries the
writer's view, an acquire read takes it over, a read-modify-write reads the newest value and
continues the release sequence it joins.

membarrier: the caller fences, then every other thread fences at one moment of its own ('heavy',
one step per thread), then the caller fences again.

Limits: threads issue in program order, so load buffering is not explored here (the Promela models
have it). A plain store is appended as the newest value: exact where there is one writer, or a lock.

A program is a list of tuples; a string is a label. Registers are named; R is the dict of the
thread's registers, G the dict of the run's ghost state.
  st loc val ord | ld reg loc ord | or/and/xchg reg loc val ord (reg = old value) | fence
  heavy [threads] | lock loc | unlock loc | await [threads] (they ended; joins them)
  set reg fn(R) | if fn(R) label | goto label | pick reg n (any of 0..n-1) | end
  quiesce thread (RCU: blocks while that thread's register sec is 1)
  chk fn(R, G) -> text of the error or None | g fn(R, G) (changes G)
val and loc may be constants or fn(R); ord is one of rlx acq rel ar."""


import sys


class Machine:
    def __init__(self, locs, progs, init=None, ghost=None, limit=8000000):
        self.locs = list(locs)
        self.ix = {l: i for i, l in enumerate(self.locs)}
        self.n = len(self.locs)
        self.names = list(progs)
        self.tix = {t: i for i, t in enumerate(self.names)}
        self.limit = limit
        self.code = []
        self.regs = []
        for t in self.names:
            code, lab = ([], {})
            for op in progs[t]:
                if isinstance(op, str):
                    lab[op] = len(code)
                elif op[0] == "heavy":
                    code.append(("fence",))
                    for u in op[1] if len(op) > 1 else [x for x in self.names if x != t]:
                        code.append(("heavy1", u))
                    code.append(("fence",))
                else:
                    code.append(op)
            code.append(("end",))
            rs = []
            for op in code:
                if op[0] in ("ld", "or", "and", "xchg", "set", "pick") and op[1] not in rs:
                    rs.append(op[1])
            self.code.append(
                [
                    tuple(
                        (
                            lab[x]
                            if k > 0 and op[0] in ("if", "goto") and isinstance(x, str)
                            else x
                            for k, x in enumerate(op)
                        )
                    )
                    for op in code
                ]
            )
            self.regs.append(rs)
        zero = (0,) * self.n
        mem = tuple(((((init or {}).get(l, 0), zero),) for l in self.locs))
        th = tuple(((0, (0,) * len(self.regs[i]), zero) for i in range(len(self.names))))
        self.gk = sorted(ghost or {})
        g = tuple(((ghost or {})[k] for k in self.gk))
        self.init = (th, mem, zero, g)

    def norm(self, s):
        """Drop values no thread can read any more and renumber: histories that no longer matter become equal states."""
        th, mem, S, g = s
        live = [t[2] for i, t in enumerate(th) if self.code[i][t[0]][0] != "end"]
        if not live:
            return s
        base = [min(c) for c in zip(*live)]
        if not any(base):
            return s
        low = [min(base[l], len(mem[l]) - 1) for l in range(self.n)]
        if not any(low):
            return s
        sh = lambda v: tuple((a - b if a > b else 0 for a, b in zip(v, low)))
        memo = {}

        def shm(v):
            r = memo.get(v)
            if r is None:
                r = memo[v] = sh(v)
            return r

        return (
            tuple(((p, r, shm(v)) for p, r, v in th)),
            tuple((tuple(((x, shm(v)) for x, v in m[low[l] :])) for l, m in enumerate(mem))),
            shm(S),
            g,
        )

    def run(self, final=None):
        """Returns (states, error or None)."""
        J = lambda a, b: a if a == b else tuple((x if x > y else y for x, y in zip(a, b)))
        seen = {self.init}
        stack = [self.init]
        cnt = 0
        ended = 0
        code = self.code
        while stack:
            s = stack.pop()
            cnt += 1
            if cnt > self.limit:
                return (cnt, "LIMIT")
            th, mem, S, g = s
            nxt = []
            alive = False
            for i, (pc, regs, view) in enumerate(th):
                op = code[i][pc]
                if op[0] == "end":
                    continue
                alive = True
                res = self.step(i, s, J)
                if isinstance(res, str):
                    return (cnt, "%s (thread %s)" % (res, self.names[i]))
                nxt += res
            if not nxt:
                if alive:
                    return (
                        cnt,
                        "DEADLOCK at "
                        + ", ".join(
                            ("%s:%s" % (self.names[i], code[i][t[0]][0]) for i, t in enumerate(th))
                        ),
                    )
                ended += 1
                if final:
                    e = final(
                        {l: mem[k][-1][0] for k, l in enumerate(self.locs)}, dict(zip(self.gk, g))
                    )
                    if e:
                        return (cnt, e)
            for t in nxt:
                t = self.norm(t)
                if t not in seen:
                    seen.add(t)
                    stack.append(t)
        return (cnt, None)

    def step(self, i, s, J):
        th, mem, S, g = s
        pc, regs, view = th[i]
        code = self.code[i]
        names = self.regs[i]
        out = []

        def loc(x, R):
            return self.ix[x(R) if callable(x) else x]

        def val(x, R):
            return x(R) if callable(x) else x

        def done(pc, R, view, mem=mem, S=S, g=g, others=None):
            """Local steps (no shared access) run at once with the shared step before them."""
            G = None
            while True:
                op = code[pc]
                k = op[0]
                if k == "set":
                    R = dict(R)
                    R[op[1]] = op[2](R)
                    pc += 1
                elif k == "if":
                    pc = op[2] if op[1](R) else pc + 1
                elif k == "goto":
                    pc = op[1]
                elif k == "g":
                    if G is None:
                        G = dict(zip(self.gk, g))
                    op[1](R, G)
                    pc += 1
                elif k == "chk":
                    if G is None:
                        G = dict(zip(self.gk, g))
                    e = op[1](R, G)
                    if e:
                        return e
                    pc += 1
                else:
                    break
            if G is not None:
                g = tuple((G[x] for x in self.gk))
            if op[0] == "end":
                R = {n: 0 for n in names}
            t2 = list(th) if others is None else list(others)
            t2[i] = (pc, tuple((R[n] for n in names)), view)
            out.append((tuple(t2), mem, S, g))
            return None

        R = dict(zip(names, regs))
        op = code[pc]
        k = op[0]
        up = lambda v, l, ts: v[:l] + (ts,) + v[l + 1 :]
        if k == "ld":
            l = loc(op[2], R)
            m = mem[l]
            seenv = set()
            for ts in range(view[l], len(m)):
                x, mv = m[ts]
                v2 = up(view, l, ts)
                if op[3] in ("acq", "ar"):
                    v2 = J(v2, mv)
                R2 = dict(R)
                R2[op[1]] = x
                e = done(pc + 1, R2, v2)
                if e:
                    return e
        elif k in ("or", "and", "xchg", "lock"):
            if k == "lock":
                l = loc(op[1], R)
                old, mv = mem[l][-1]
                if old:
                    return out
                new, order, R2 = (1, "ar", R)
            else:
                l = loc(op[2], R)
                old, mv = mem[l][-1]
                a = val(op[3], R)
                order = op[4]
                new = old | a if k == "or" else old & a if k == "and" else a
                R2 = dict(R)
                R2[op[1]] = old
            ts = len(mem[l])
            v2 = up(view, l, ts)
            if order in ("acq", "ar"):
                v2 = J(v2, mv)
            own = v2 if order in ("rel", "ar") else up((0,) * self.n, l, ts)
            e = done(pc + 1, R2, v2, mem[:l] + (mem[l] + ((new, J(own, mv)),),) + mem[l + 1 :])
            if e:
                return e
        elif k in ("st", "unlock"):
            l = loc(op[1], R)
            x = val(op[2], R) if k == "st" else 0
            order = op[3] if k == "st" else "rel"
            ts = len(mem[l])
            v2 = up(view, l, ts)
            own = v2 if order in ("rel", "ar") else up((0,) * self.n, l, ts)
            e = done(pc + 1, R, v2, mem[:l] + (mem[l] + ((x, own),),) + mem[l + 1 :])
            if e:
                return e
        elif k == "pick":
            for x in range(op[2]):
                R2 = dict(R)
                R2[op[1]] = x
                e = done(pc + 1, R2, view)
                if e:
                    return e
        elif k == "fence":
            v2 = J(view, S)
            e = done(pc + 1, R, v2, S=v2)
            if e:
                return e
        elif k == "heavy1":
            u = self.tix[op[1]]
            v2 = J(th[u][2], S)
            t2 = list(th)
            t2[u] = (th[u][0], th[u][1], v2)
            e = done(pc + 1, R, view, S=v2, others=t2)
            if e:
                return e
        elif k == "quiesce":
            u = self.tix[op[1]]
            ru = dict(zip(self.regs[u], th[u][1]))
            if ru.get("sec", 0):
                return out
            v2 = J(J(th[u][2], S), view)
            t2 = list(th)
            t2[u] = (th[u][0], th[u][1], v2)
            e = done(pc + 1, R, v2, S=v2, others=t2)
            if e:
                return e
        elif k == "await":
            v2 = view
            for u in op[1]:
                u = self.tix[u]
                if self.code[u][th[u][0]][0] != "end":
                    return out
                v2 = J(v2, th[u][2])
            e = done(pc + 1, R, v2)
            if e:
                return e
        else:
            e = done(pc, R, view)
            if e:
                return e
        return out


def main(cases, mutants):
    """The command line of a checker: all cases, or --mutant NAME. Exit status: 0 it holds, 1 not, 2 usage."""
    args = sys.argv[1:]
    if args and (len(args) != 2 or args[0] != "--mutant" or args[1] not in mutants):
        print("usage: [--mutant NAME], of: " + " ".join(mutants), file=sys.stderr)
        sys.exit(2)
    todo = {args[1]: mutants[args[1]]} if args else cases
    total = bad = 0
    for name, run in todo.items():
        states, error = run()
        total += states
        bad += error is not None
        print("# %s: %d states, %s" % (name, states, error or "holds"))
    print("%d states, stored" % total)
    sys.exit(1 if bad else 0)


def litmus():
    """The machine against known shapes: what C11 allows must be seen, what it forbids must not."""
    st, ld = (lambda x, o="rlx": ("st", x, 1, o), lambda r, x, o="rlx": ("ld", r, x, o))
    out = lambda k, f: ("g", lambda R, G: G.update({k: f(R)}))
    bad = 0

    def t(name, progs, hit, allowed):
        gh = {k: 0 for k in "abcd"}
        n, e = Machine(["x", "y", "z"], progs, ghost=gh).run(
            final=lambda m, G: "seen" if hit(G) else None
        )
        print(
            "%-34s %-9s %s"
            % (
                name,
                "allowed" if allowed else "forbidden",
                "as expected" if (e == "seen") == allowed else "WRONG",
            )
        )
        return (e == "seen") != allowed

    two = lambda p, q: {"P": p, "Q": q}
    F = ("fence",)
    zero = lambda G: not G["a"] and (not G["b"])
    mp = lambda G: G["a"] and (not G["b"])
    A, B = (out("a", lambda R: R["r"]), out("b", lambda R: R["r"] if "q" not in R else R["q"]))
    bad += t("SB", two([st("x"), ld("r", "y"), A], [st("y"), ld("r", "x"), B]), zero, True)
    bad += t(
        "SB acq/rel",
        two([st("x", "rel"), ld("r", "y", "acq"), A], [st("y", "rel"), ld("r", "x", "acq"), B]),
        zero,
        True,
    )
    bad += t(
        "SB + fences",
        two([st("x"), F, ld("r", "y"), A], [st("y"), F, ld("r", "x"), B]),
        zero,
        False,
    )
    bad += t(
        "SB + one fence", two([st("x"), F, ld("r", "y"), A], [st("y"), ld("r", "x"), B]), zero, True
    )
    bad += t(
        "SB + membarrier on one side",
        two([st("x"), ld("r", "y"), A], [st("y"), ("heavy", ["P"]), ld("r", "x"), B]),
        zero,
        False,
    )
    for so, lo in (("rlx", "rlx"), ("rel", "rlx"), ("rlx", "acq"), ("rel", "acq")):
        bad += t(
            "MP %s/%s" % (so, lo),
            two([st("x"), st("y", so)], [ld("r", "y", lo), A, ld("q", "x"), B]),
            mp,
            (so, lo) != ("rel", "acq"),
        )
    rmw = lambda o: {
        "P": [st("x"), st("y", "rel")],
        "Q": [("or", "w", "y", 2, o)],
        "S": [ld("r", "y", "acq"), A, ld("q", "x"), B],
    }
    bad += t("MP through a relaxed RMW", rmw("rlx"), lambda G: G["a"] == 3 and (not G["b"]), False)
    iriw = lambda o, f: {
        "P": [st("x", "rel")],
        "Q": [st("y", "rel")],
        "S": [ld("r", "x", o)] + f + [A, ld("q", "y", o), B],
        "U": [ld("r", "y", o)]
        + f
        + [out("c", lambda R: R["r"]), ld("q", "x", o), out("d", lambda R: R["q"])],
    }
    hit = lambda G: G["a"] and G["c"] and (not G["b"]) and (not G["d"])
    bad += t("IRIW acq/rel", iriw("acq", []), hit, True)
    bad += t("IRIW + fences", iriw("acq", [F]), hit, False)
    wrc = {
        "P": [st("x")],
        "Q": [ld("r", "x", "acq"), A, ("st", "y", lambda R: R["r"], "rel")],
        "S": [ld("r", "y", "acq"), out("c", lambda R: R["r"]), ld("q", "x"), B],
    }
    bad += t("WRC with x relaxed", wrc, lambda G: G["c"] and (not G["b"]), False)
    bad += t(
        "CoRR",
        two([("st", "x", 1, "rlx"), ("st", "x", 2, "rlx")], [ld("r", "x"), A, ld("q", "x"), B]),
        lambda G: G["a"] == 2 and G["b"] == 1,
        False,
    )
    return bad


if __name__ == "__main__":
    sys.exit(litmus() != 0)
