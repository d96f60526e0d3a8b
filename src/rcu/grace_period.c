/* SPDX-License-Identifier: MIT */
/*
 * Grace periods.
 *
 * CLAIM. Let an updater make an object unreachable (a store P), then wait for a grace period
 * (synchronize.c). Every section that may have found the object has ended, and its accesses
 * are ordered, before the wait returns.
 *
 * STATE. Each reader: ctr (the owner's; HOT, WARM, COLD, QS or LATE, with the nesting depth) and
 * need_qs (a request by the driver). Each domain: seq, odd while a grace period runs; pending, the
 * requests not yet taken back. One driver at a time (gp_lock).
 *
 * INVARIANTS.
 *  I1  Only the owner writes its ctr, and it goes from HOT or WARM to COLD only where no section is
 *      being entered below it on its stack (gr_rcu_park(), going offline: never in a
 *      handler). A driver, or a handler, that demoted an idle HOT reader to COLD could do so
 *      between the owner's load and its store; the owner then stands in a HOT section that no
 *      later driver knows to need M1.
 *  I2  pending is raised before the need_qs that it counts; each need_qs that was set is
 *      exchanged back to 0 by one side, which takes 1 off pending. The driver holds 1 itself
 *      until it has nothing left to do but to sleep. So pending reaches 0 exactly once, when the
 *      last awaited reader is done, and a reader that brings it there wakes a driver that
 *      sleeps, or is about to: at most one wake per grace period. Readers that are not
 *      awaited never touch pending.
 *  I3  Every section stores a constant. There is no counter or phase that a slow reader could
 *      publish late, so one pass over the readers is enough on 32 and 64 bits alike.
 *
 * THE STEPS, each with its partner.
 *  F1  (driver: full fence) between P, which came before, and the loads of ctr. With C1 (a
 *      COLD reader's full fence between its store "inside" and its reads): either the
 *      driver sees it inside, or the section sees P and cannot find the object. The same
 *      pair covers a reader that becomes HOT (it fences once), a LATE one, a quiescent-state
 *      thread that comes online, and a WARM reader that found quiet times.
 *      If the driver sees a reader not HOT, that reader's store of HOT comes after, and with
 *      its fence F1 gives: all its sections from then on see P. So:
 *  M1  (driver: process-wide fence, only if some reader is HOT, or WARM with no quiet time in
 *      effect, and has not reported) between P and the loads of ctr. With H1 (compiler barrier
 * between "inside" and the reads): M1 puts a full fence at some point into each HOT thread's
 * program. A section whose store lies before that point is seen inside; one whose store lies behind
 * it sees P. An *idle* HOT reader counts as HOT: its store may be in its store buffer. A reader
 * that moves between threads changes nothing: the argument is made for each section, and a section
 * stays on its thread. Quiet times replace M1 for WARM readers: see quiet.c. Who needs M1 is asked
 * for a report just before it, inside or not: so M1 serves as M2 too. Nor does it need M1 if it has
 * reported before: its sections until then are over (R1, and the release of its subtraction from
 * pending), those that follow see P (it took the request, acquire, which was set after P). So the
 * driver waits a moment for reports: readers that run one section after another need no M1, and are
 * not interrupted. Otherwise one that stays inside costs a sleep, and no second process-wide fence.
 *      After M1, and not before, the requests to those who are seen outside are claimed back.
 *  W   = the others who are seen inside; one look is enough, by F1. Who is outside is done: its
 *      ctr was loaded with acquire and stored with release (R1), so its earlier sections are
 *      ordered before what the updater does next. That is why there is no fence at the end.
 *  QS  A quiescent-state thread that is online is in W for as long as it is online; looking
 *      again is of no use, so it is asked at once. It answers with the exchange of need_qs: its
 *      accesses before are ordered before the driver's return (release, through pending),
 *      those after it see P (acquire: need_qs was set after P). Going offline stores ctr, full
 *      fence, looks at need_qs (O1): it misses no request, whatever the driver's fence is.
 *  Spinning looks again for some microseconds: most sections are short.
 *      The family counts that is seen after the request and a fence (O2): a thread seen online
 *      before may have gone offline since, looked too early, and be in an ordinary section.
 *  M2  (driver: process-wide fence if some reader of W that was asked is then inside and HOT, WARM
 *      or COLD) between storing need_qs and loading ctr again. With H2 (unlock: compiler barrier
 *      between storing "outside" and loading need_qs): either the reader sees the request and
 *      reports, or the driver sees it outside and claims the request back. Without M2 both
 *      could miss and the driver sleep for ever. Where there is no process-wide fence, or
 *      quiet times forbid it, M2 is a fence of the driver's only, both can miss, and the
 *      driver looks again after 20 us and with growing pauses.
 *      Why not look again for COLD readers always, and save the interrupt? A driver that sleeps
 *      does so for a section longer than the spin; looking again costs it several
 *      wake-ups per grace period, and its last resort would be the fence anyhow. Who wants no
 *      interrupts says so, with quiet times, and gets none at all.
 *  A report is legal at the first outermost unlock after the request, even if that ended a
 *      section that began after W was made: sections of one reader end in order, and those that
 *      come after the report see P (it takes the request, acquire, which was set after P). So a
 *      reader in a tight loop cannot hold up a grace period. The exchange of need_qs and the
 *      subtraction from pending are acquire and release, the driver's look at pending acquires:
 *      the section is ordered before the return.
 *
 * The driver touches a record only under the registry's lock, which it never holds
 * while it fences process-wide, spins between passes, calls a notifier or sleeps; a reader
 * leaves under the lock, taking its request back. So joining a thread inside a section,
 * while another synchronizes, does not deadlock.
 *
 * Models, in every interleaving: models/gp.pml (out-of-order readers of all kinds, quiet times),
 * models/promote.pml (I1). The mutants in tests/mutants break the same steps here.
 *
 * Source: Desnoyers et al., TPDS 2012 for the problem and the two fences; C++ P1202 for
 * the asymmetric pair.
 */
#include "base/atomic.h"
#include "base/clock.h"
#include "base/futex.h"
#include "base/heavy_fence.h"
#include "base/hook.h"
#include "rcu/stall.h"
#include "rcu/trace.h"
#include <assert.h>
#include <string.h>

static_assert(sizeof(void *) == 8 || __atomic_always_lock_free(8, 0), "64-bit atomics needed");

/* reader.awaited */
enum { NOT_AWAITED, AWAITED, ASKED, ASKED_BEFORE_M1 };

enum {
	REPORTS_NS = 2000, /* reports that come within this save M1, which takes longer */
	NO_REPORTS = 31,   /* after some that did not: grace periods that do not wait for them */
	SPIN_NS = 5000,
	SPIN_RELAX_MAX = 16,
	RESCAN_FIRST_NS = 20000, /* then five times that, and so on */
	RESCAN_FACTOR = 5,
	RESCAN_LAST_NS = 100000000,
};

static bool is_inside(uint32_t ctr)
{
#ifdef GR_MUTANT_RCU_QS_UNASKED
	if ((ctr & GR_RCU_QS) != 0) {
		return false;
	}
#endif
#ifdef GR_MUTANT_RCU_NESTED_IS_OUTSIDE
	return (ctr & GR_RCU_DEPTH) == 1;
#else
	return (ctr & GR_RCU_DEPTH) != 0;
#endif
}

/* May enter without a fence? */
static bool needs_m1(uint32_t ctr, bool quiet)
{
#ifdef GR_MUTANT_RCU_IDLE_HOT_IS_SAFE
	return ctr == GR_RCU_HOT + 1 || (ctr == GR_RCU_WARM + 1 && !quiet);
#else
	return (ctr & GR_RCU_HOT) != 0 || ((ctr & GR_RCU_WARM) != 0 && !quiet);
#endif
}

/* Returns how many were left, this one included. */
static uint32_t take_one_off(struct gr_rcu_domain *d)
{
	/* Release: the reader's sections. Acquire: those of the readers that went before. */
	uint32_t before = gr_sub_acq_rel(&d->pending, 1u) & GR_RCU_PENDING_COUNT;

	GR_ASSERT(before != 0);
	return before;
}

void gr_rcu_pending_down(struct gr_rcu_domain *d)
{
	uint32_t *pending = &d->pending, before = take_one_off(d);

	/* From here on the domain may be freed: a wake needs no more than the address. */
	GR_HOOK("report: done");
#ifdef GR_MUTANT_RCU_REPORT_COUNTS_LATE
	GR_RCU_COUNT_SHARED(d, reports, 1);
#endif
	if (before == 1) {
		gr_futex_wake(pending, 1);
	}
}

/* With the registry's lock held. */
static void ask_reader(struct gr_rcu_domain *d, struct gr_rcu_reader *r, uint32_t state)
{
	r->awaited = state;
	GR_TRACE2(rcu_reader_requested, r, gr_load_relaxed(&r->tid));
	GR_RCU_COUNT(d, requests, 1);
	d->now.asked++;
#ifdef GR_MUTANT_RCU_REQUEST_BEFORE_PENDING
	gr_store_release(&r->need_qs, 1u);
	for (int i = 0; i < 2000; i++) {
		gr_cpu_relax(); /* makes the bad schedule likely */
	}
#endif
	/* I2: first. The driver's own part is still there. */
	GR_ASSERT((gr_add_acq_rel(&d->pending, 1u) & GR_RCU_PENDING_COUNT) != 0);
#ifndef GR_MUTANT_RCU_REQUEST_BEFORE_PENDING
	/* Release: whoever takes the request sees pending, and P. */
	gr_store_release(&r->need_qs, 1u);
#endif
}

/* Nobody but the driver holds a part of pending. Acquire: pairs with the readers' subtractions. */
static bool all_reported(struct gr_rcu_domain *d)
{
	return (gr_load_acquire(&d->pending) & GR_RCU_PENDING_COUNT) == 1;
}

struct census {
	bool needs_m1; /* somebody did, and all who did were asked */
	bool anybody;  /* in W besides */
	bool qs;       /* quiescent-state threads among them */
};

/* Makes W. Those of whom only M1 can tell whether they are in it are asked. */
static struct census take_census(struct gr_rcu_domain *d)
{
	const struct gr_rcu_reader *mine = gr_rcu_domain_reader(d);
	struct gr_rcu_signals saved;
	struct census c = { 0 };
	bool quiet;

	gr_rcu_registry_lock(d, &saved);
	quiet = gr_rcu_quiet_in_effect(); /* before the loads of ctr: Q1 in quiet.c */
	for (struct gr_rcu_reader *r = d->readers; r; r = r->next) {
		uint32_t ctr = gr_load_acquire(&r->ctr); /* pairs with R1 */

		if (r != mine && needs_m1(ctr, quiet)) { /* our own stores we see anyway */
			c.needs_m1 = true;
#ifdef GR_MUTANT_RCU_ASK_AFTER_M1
			r->awaited = AWAITED;
#else
			ask_reader(d, r, ASKED_BEFORE_M1);
#endif
			continue;
		}
		r->awaited = is_inside(ctr) ? AWAITED : NOT_AWAITED;
		c.anybody |= is_inside(ctr);
		c.qs |= is_inside(ctr) && (ctr & GR_RCU_QS) != 0;
	}
	gr_rcu_registry_unlock(d, &saved);
	return c;
}

#ifdef GR_MUTANT_RCU_DRIVER_DEMOTES
/* Breaks I1: "an idle HOT reader needs no fence if we make it COLD". */
static void demote_idle(struct gr_rcu_domain *d)
{
	struct gr_rcu_signals saved;

	gr_rcu_registry_lock(d, &saved);
	for (struct gr_rcu_reader *r = d->readers; r; r = r->next) {
		uint32_t idle = GR_RCU_HOT;

		(void)gr_cas_acq_rel(&r->ctr, &idle, GR_RCU_COLD);
	}
	gr_rcu_registry_unlock(d, &saved);
}
#endif

/* One more look at those of W who were not asked. Returns whether any is left. */
static bool drop_finished(struct gr_rcu_domain *d)
{
	struct gr_rcu_signals saved;
	bool any = false;

	gr_rcu_registry_lock(d, &saved);
	for (struct gr_rcu_reader *r = d->readers; r; r = r->next) {
		if (r->awaited == AWAITED && !is_inside(gr_load_acquire(&r->ctr))) { /* R1 */
			r->awaited = NOT_AWAITED;
		}
		any |= r->awaited == AWAITED;
	}
	gr_rcu_registry_unlock(d, &saved);
	return any;
}

static bool spin_for_awaited(struct gr_rcu_domain *d)
{
	uint64_t end = gr_clock_ns() + SPIN_NS;
	unsigned relax = 1;

	do {
		for (unsigned i = 0; i < relax; i++) {
			gr_cpu_relax();
		}
		relax = GR_MIN(2 * relax, (unsigned)SPIN_RELAX_MAX);
		if (!drop_finished(d) && all_reported(d)) {
			return true;
		}
	} while (gr_clock_ns() < end);
	return false;
}

/* Sets requests: those of quiescent-state threads, or of all who have none yet. */
static void ask(struct gr_rcu_domain *d, bool qs_only)
{
	uint32_t wanted = qs_only ? GR_RCU_QS : ~0u;
	struct gr_rcu_signals saved;

	gr_rcu_registry_lock(d, &saved);
	for (struct gr_rcu_reader *r = d->readers; r; r = r->next) {
		if (r->awaited == AWAITED && (gr_load_relaxed(&r->ctr) & wanted) != 0) {
			GR_HOOK("ask: chosen");
			ask_reader(d, r, ASKED);
		}
	}
	gr_rcu_registry_unlock(d, &saved);
}

/* Inside, and will look at need_qs when it leaves: perhaps too early (H2). */
static bool may_miss_request(const struct gr_rcu_reader *r, uint32_t ctr)
{
	return r->awaited == ASKED && (ctr & (GR_RCU_QS | GR_RCU_LATE)) == 0 &&
	       gr_load_relaxed(&r->need_qs) != 0;
}

/*
 * Takes back the requests of readers that are outside and have not reported. Returns whether
 * somebody is left who may miss the request.
 */
static bool claim_requests(struct gr_rcu_domain *d)
{
	struct gr_rcu_signals saved;
	bool may_miss = false;

	gr_rcu_registry_lock(d, &saved);
	for (struct gr_rcu_reader *r = d->readers; r; r = r->next) {
		uint32_t ctr = gr_load_acquire(&r->ctr); /* pairs with R1 */

		if (r->awaited >= ASKED && is_inside(ctr)) {
			may_miss |= may_miss_request(r, ctr);
		} else if (r->awaited >= ASKED) {
			r->awaited = NOT_AWAITED;
			if (gr_xchg_acq_rel(&r->need_qs, 0u) == 1) {
				GR_RCU_COUNT(d, claims, 1);
				d->now.claimed++;
				d->now.last = take_one_off(d) == 1;
			}
		}
	}
	gr_rcu_registry_unlock(d, &saved);
	return may_miss;
}

/*
 * Do all who were asked before M1 report soon? Then it is not needed. Only a report counts: who
 * looks as if it were outside may be inside, its store on the way (M1).
 */
static bool report_in_time(struct gr_rcu_domain *d, uint64_t start_ns)
{
#ifdef GR_MUTANT_RCU_ASK_AFTER_M1
	return false; /* nobody was asked */
#endif
#ifdef GR_MUTANT_RCU_OUTSIDE_IS_REPORTED
	(void)claim_requests(d);
#endif
	if (all_reported(d)) {
		return true;
	}
	if (d->no_reports > 0) {
		d->no_reports--;
		return false;
	}
	do {
		for (unsigned i = 0; i < SPIN_RELAX_MAX; i++) {
			if (all_reported(d)) {
				return true;
			}
			gr_cpu_relax();
		}
	} while (gr_clock_ns() - start_ns < REPORTS_NS);
	d->no_reports = NO_REPORTS;
	return false;
}

bool gr_rcu_holds_up(const struct gr_rcu_reader *r)
{
	return r->awaited >= ASKED && gr_load_relaxed(&r->need_qs) != 0;
}

/* All that can report wakes us; where that is not sure (rescan), we look now and then. */
static void sleep_for_reports(struct gr_rcu_domain *d, bool rescan, uint64_t start_ns)
{
	uint64_t rescan_ns = rescan ? RESCAN_FIRST_NS : GR_FUTEX_FOR_EVER;
	struct gr_rcu_patience patience;

	gr_rcu_patience_init(&patience, start_ns);
	gr_rcu_stall_begin(&d->stall, start_ns);
	gr_store_relaxed(&d->driver_sleeps, 1u);
	for (;;) {
		/*
		 * Acquire: pairs with the subtractions of the readers. The flag is taken back
		 * before the look at what it announces.
		 */
		uint32_t left = gr_and_acq_rel(&d->pending, GR_RCU_PENDING_COUNT);
		uint64_t timeout_ns;

		left &= GR_RCU_PENDING_COUNT;
		if (left == 0 || d->alone) {
			break;
		}
		timeout_ns = GR_MIN(gr_rcu_patience_check(d, &patience), rescan_ns);
		timeout_ns = GR_MIN(timeout_ns, gr_rcu_stall_check(d, &d->stall));
		GR_RCU_COUNT(d, sleeps, 1);
		(void)gr_futex_wait(&d->pending, left, timeout_ns);
#ifdef GR_MUTANT_RCU_ONE_SLEEP
		break; /* "woken: so it is over" */
#endif
		if (rescan) {
			GR_RCU_COUNT(d, rescans, 1);
			rescan_ns = GR_MIN(rescan_ns * RESCAN_FACTOR, (uint64_t)RESCAN_LAST_NS);
			(void)claim_requests(d);
		}
	}
	gr_store_relaxed(&d->driver_sleeps, 0u);
	gr_rcu_stall_end(d, &d->stall);
}

/* M2. Returns whether no reader that was asked can miss it now. */
static bool fence_if_allowed(struct gr_rcu_domain *d)
{
#ifdef GR_MUTANT_RCU_QUIET_FENCES_REQUESTS
	bool allowed = gr_heavy_fence_available();
#else
	bool allowed = gr_heavy_fence_available() && !gr_rcu_quiet_in_effect();
#endif

#ifndef GR_MUTANT_RCU_SKIP_M2
	if (allowed) {
		GR_RCU_COUNT(d, flag_fences, 1);
		GR_TRACE3(rcu_barrier, d->name, d->seq, 2);
		gr_heavy_fence();
		(void)claim_requests(d);
	}
#endif
	return allowed;
}

static bool fence_requests(struct gr_rcu_domain *d)
{
	bool sure;

	gr_store_release(&d->fencing, 1u);
	gr_fence(); /* O2: the requests, before the looks at ctr. Pairs with O1. And with Q3. */
	sure = !claim_requests(d) || fence_if_allowed(d);
	gr_store_release(&d->fencing, 0u);
	return sure;
}

static void wait_for_awaited(struct gr_rcu_domain *d, struct census w, uint64_t start_ns)
{
	bool sure;

	if (w.qs) {
		ask(d, true);
	}
	if (spin_for_awaited(d)) {
		return;
	}
	ask(d, false);
#ifdef GR_MUTANT_RCU_FAMILY_SEEN_EARLY
	sure = w.qs || fence_requests(d); /* they were online when W was made */
#else
	sure = fence_requests(d);
#endif
	if ((gr_sub_acq_rel(&d->pending, 1u) & GR_RCU_PENDING_COUNT) != 1) {
		sleep_for_reports(d, !sure, start_ns);
		GR_RCU_COUNT(d, reader_wakes, !d->now.last);
	}
}

/* Readers count nothing: they are done with the domain when they have reported. */
static void count(struct gr_rcu_domain *d, uint64_t ns)
{
	unsigned i = ns == 0 ? 0 : 64 - (unsigned)__builtin_clzll(ns);

	GR_RCU_COUNT(d, reports, d->now.asked - d->now.claimed);
	GR_RCU_COUNT(d, latency[GR_MIN(i, GR_RCU_LATENCY_CLASSES - 1u)], 1);
}

void gr_rcu_run_grace_period(struct gr_rcu_domain *d)
{
	uint64_t start_ns = gr_clock_ns(), end_ns;
	struct census w;

	/* Release is not needed by anybody; odd only sends cookies to the next one. */
	gr_store_release(&d->seq, d->seq + 1);
	GR_RCU_COUNT(d, grace_periods, 1);
	memset(&d->now, 0, sizeof(d->now));
	d->alone = false;
	GR_TRACE2(rcu_gp_start, d->name, d->seq);
	/* Release: seq. Before the look at quiet times (in the census); pairs with Q3. */
	gr_store_release(&d->fencing, 1u);
	gr_fence(); /* F1 */
#ifndef GR_MUTANT_RCU_SKIP_GRACE_PERIOD
	/* Release: pairs with the acquire of whoever takes a request. */
	gr_store_release(&d->pending, 1u); /* our own part (I2) */
	w = take_census(d);
#	ifndef GR_MUTANT_RCU_SKIP_M1
	if (w.needs_m1 && !report_in_time(d, start_ns)) {
		GR_RCU_COUNT(d, entry_fences, 1);
		GR_TRACE3(rcu_barrier, d->name, d->seq, 1);
		GR_HOOK("grace period: M1 next");
		gr_heavy_fence(); /* M1, and M2 for those who were asked */
#		ifdef GR_MUTANT_RCU_ASK_AFTER_M1
		ask(d, false);
#		endif
	}
#	endif
	gr_store_release(&d->fencing, 0u);
	if (!all_reported(d)) {
		(void)claim_requests(d);
	}
#	ifdef GR_MUTANT_RCU_DRIVER_DEMOTES
	demote_idle(d);
#	endif
	if (w.anybody || !all_reported(d)) {
		wait_for_awaited(d, w, start_ns);
	}
#else
	(void)w;
	gr_store_release(&d->fencing, 0u);
#endif
	end_ns = gr_clock_ns();
	count(d, end_ns - start_ns);
	GR_TRACE3(rcu_gp_end, d->name, d->seq, end_ns - start_ns);
	/* Release: pairs with the acquire of who asks for a cookie. */
	gr_store_release(&d->seq, d->seq + 1);
}
