/* SPDX-License-Identifier: MIT */
/*
 * Grace periods.
 *
 * CLAIM. Let an updater make an object unreachable (a store P), then call
 * gr_rcu_synchronize(). Every section that may have found the object has ended, and its
 * accesses are ordered, before the call returns.
 *
 * STATE. Each reader: ctr (the owner's; HOT, COLD or LATE, with the nesting depth) and need_qs
 * (a request by the driver). Globally: seq, odd while a grace period runs; pending, the
 * requests not yet taken back. One driver at a time (gp.lock).
 *
 * INVARIANTS.
 *  I1  Only the owner writes its ctr. (A driver that demoted an idle HOT reader to COLD
 *      could do so between the owner's load and its store; the owner then stands in a HOT
 *      section that no later driver knows to need M1.)
 *  I2  pending is set before any need_qs; each need_qs that was set is exchanged back to 0
 *      by one side, which takes 1 off pending. So pending reaches 0 exactly once, when the
 *      last awaited reader is done, and whoever brings it there (a reader) wakes the driver: one
 *      wake per grace period. Readers that are not awaited never touch pending.
 *  I3  Every section stores a constant. There is no counter or phase that a slow reader could
 *      publish late, so one pass over the readers is enough on 32 and 64 bits alike.
 *
 * THE STEPS, each with its partner.
 *  F1  (driver: full fence) between P, which came before, and the loads of ctr. With C1 (a
 *      COLD reader's full fence between its store "inside" and its reads): either the
 *      driver sees it inside, or the section sees P and cannot find the object. The same
 *      pair covers a reader that becomes HOT (it fences once) and a LATE one.
 *      If the driver sees a reader not HOT, that reader's store of HOT comes after, and with
 *      its fence F1 gives: all its sections from then on see P. So:
 *  M1  (driver: process-wide fence, only if some reader is HOT) between P and the loads of
 *      ctr. With H1 (compiler barrier between "inside" and the reads): M1 puts a full
 *      fence at some point into each HOT thread's program. A section whose store lies before
 *      that point is seen inside; one whose store lies behind it sees P. An *idle* HOT reader
 *      counts as HOT: its store may be in its store buffer.
 *  W   = readers seen inside. Others are done: their ctr was loaded with acquire and stored
 *      with release (R1), so their earlier sections are ordered before what the updater
 *      does next. That is why there is no fence at the end.
 *  Spinning looks again for some microseconds: most sections are short.
 *  M2  (driver: process-wide fence if some awaited reader is HOT) between storing need_qs and
 *      loading ctr again. With H2 (unlock: compiler barrier between storing "outside" and
 *      loading need_qs): either the reader sees the request and reports, or the driver
 *      sees it outside and claims the request back. Without M2 both could miss and the
 *      driver sleep for ever. Where no awaited reader is HOT, M2 is a fence of the driver's only,
 *      both can miss, and the driver looks again after 20 us, 100 us, 1 ms. If that
 *      was not enough and there is a process-wide fence, it issues one then, and sleeps.
 *  A report is legal at the first outermost unlock after the request, even if that ended a
 *      section that began after W was made: sections of one thread end in order. So a
 *      reader in a tight loop cannot hold up a grace period. The exchange of need_qs and the
 *      subtraction from pending are acquire and release, the driver's load of pending acquires:
 *      the section is ordered before the return.
 *
 * The driver touches a record only under the registry's lock, which it never holds
 * while it fences process-wide, spins between passes or sleeps; a thread leaves under the
 * lock, taking its request back. So joining a thread inside a section, while another
 * synchronizes, does not deadlock.
 *
 * COOKIES. A grace period that starts from even seq s ends at s + 2. A cookie is the first
 * even value whose grace period starts from now on: s + 2 from even s, s + 3 from odd (the
 * one that runs may have begun too early). Whoever finds its cookie passed is served,
 * by whomever.
 *
 * WAITING FOR A DRIVER. Those who find gp.lock taken sleep on one of two words, by the
 * parity of cookie / 2 (a sleeper's cookie is that of the grace period that runs, or of
 * the next one). A driver unlocks, *then* bumps both words, *then* wakes all who may be
 * served, and one of the others: it is the next driver. A sleeper reads its word *before* it
 * looks at seq and tries the lock. So a sleeper that failed to get the lock has read its
 * word before the holder's bump, and either does not fall asleep or is woken. The driver
 * bumps and wakes even if it found nothing to do: its holding the lock may have sent
 * somebody to sleep.
 *
 * Checked exhaustively, outside this tree, for out-of-order readers (3 sections, 2 grace
 * periods; 3 readers), for TSO with threads becoming HOT and COLD, and for the sleep
 * protocol with 3 callers; each broken variant is found. The mutants in tests/mutants break
 * the same steps here.
 *
 * Source: Desnoyers et al., TPDS 2012 for the problem and the two fences; C++ P1202 for
 * the asymmetric pair; the cookies are the kernel's (rcu_seq).
 */
#include "base/atomic.h"
#include "base/clock.h"
#include "base/futex.h"
#include "base/heavy_fence.h"
#include "rcu/rcu_internal.h"
#include <assert.h>
#include <sched.h>

static struct {
	/* Who drives. Only ever tried; protects the running of a grace period, nothing else. */
	struct gr_mutex lock;
	gr_atomic_u64 seq GR_ALIGNED(GR_CACHE_LINE); /* (a) written under lock; odd: one runs */
	uint32_t pending;			/* (a) requests not yet taken back; a futex */
	uint32_t word[2];			/* (a) futexes of those who wait for a driver */
	uint32_t waiters[2];			/* (a) how many sleep, or are about to */
	gr_atomic_u64 poll_wanted;			/* (a) the latest cookie that start_poll gave */
} gp = { .lock = GR_MUTEX_INIT(GR_RANK_RCU_GP) };
static_assert(sizeof(void *) == 8 || __atomic_always_lock_free(8, 0), "64-bit atomics needed");

struct gr_rcu_stats gr_rcu_stats;

enum {
	SPIN_PASSES = 24, /* with SPIN_RELAX each: 2 to 5 us */
	SPIN_RELAX = 16,
};

static bool is_inside(uint32_t ctr)
{
	return (ctr & GR_RCU_DEPTH) != 0;
}

/* Needs M1: somebody else may enter without a fence. Our own stores we see anyway. */
static bool somebody_is_hot(void)
{
	struct gr_rcu_signals saved;
	bool hot = false;

	gr_rcu_registry_lock(&saved);
	for (struct gr_rcu_reader *r = gr_rcu_registry.first; r && !hot; r = r->next) {
#ifdef GR_MUTANT_RCU_IDLE_HOT_IS_SAFE
		hot = r != &gr_rcu_self && gr_load_acquire(&r->ctr) == GR_RCU_HOT + 1;
#else
		hot = r != &gr_rcu_self && (gr_load_acquire(&r->ctr) & GR_RCU_HOT) != 0;
#endif
	}
	gr_rcu_registry_unlock(&saved);
	return hot;
}

#ifdef GR_MUTANT_RCU_DRIVER_DEMOTES
/* Breaks I1: "an idle HOT reader needs no fence if we make it COLD". */
static void demote_idle(void)
{
	struct gr_rcu_signals saved;

	gr_rcu_registry_lock(&saved);
	for (struct gr_rcu_reader *r = gr_rcu_registry.first; r; r = r->next) {
		uint32_t idle = GR_RCU_HOT;

		(void)gr_cas_acq_rel(&r->ctr, &idle, GR_RCU_COLD);
	}
	gr_rcu_registry_unlock(&saved);
}
#endif

/* Makes W. Returns whether anybody is in it. */
static bool find_awaited(void)
{
	struct gr_rcu_signals saved;
	bool any = false;

	gr_rcu_registry_lock(&saved);
	for (struct gr_rcu_reader *r = gr_rcu_registry.first; r; r = r->next) {
		/* Acquire: pairs with R1. */
		r->awaited = is_inside(gr_load_acquire(&r->ctr));
		any |= r->awaited != 0;
	}
	gr_rcu_registry_unlock(&saved);
	return any;
}

/* One more look at W, nothing requested yet. Returns whether anybody is left. */
static bool drop_finished(void)
{
	struct gr_rcu_signals saved;
	bool any = false;

	gr_rcu_registry_lock(&saved);
	for (struct gr_rcu_reader *r = gr_rcu_registry.first; r; r = r->next) {
		if (r->awaited && !is_inside(gr_load_acquire(&r->ctr))) { /* R1 */
			r->awaited = 0;
		}
		any |= r->awaited != 0;
	}
	gr_rcu_registry_unlock(&saved);
	return any;
}

static bool spin_for_awaited(void)
{
	for (int pass = 0; pass < SPIN_PASSES; pass++) {
		for (int i = 0; i < SPIN_RELAX; i++) {
			gr_cpu_relax();
		}
		if (!drop_finished()) {
			return true;
		}
	}
	return false;
}

void gr_rcu_pending_down(bool by_reader)
{
	/* Release: the reader's sections. Acquire: those of the readers that went before. */
	uint32_t before = gr_sub_acq_rel(&gp.pending, 1u);

	GR_ASSERT(before != 0);
	if (!by_reader) {
		GR_RCU_COUNT(claims, 1);
		return;
	}
	GR_RCU_COUNT(reports, 1);
	if (before == 1) {
		GR_RCU_COUNT(reader_wakes, 1);
		gr_futex_wake(&gp.pending, 1);
	}
}

/* Sets the requests. Returns how many; ret_hot: whether some reader may look too early. */
static uint32_t request_reports(bool *ret_hot)
{
	struct gr_rcu_signals saved;
	uint32_t n = 0;

	*ret_hot = false;
	gr_rcu_registry_lock(&saved);
	for (struct gr_rcu_reader *r = gr_rcu_registry.first; r; r = r->next) {
		n += r->awaited != 0;
		*ret_hot |= r->awaited && (gr_load_relaxed(&r->ctr) & GR_RCU_HOT);
	}
#ifndef GR_MUTANT_RCU_REQUEST_BEFORE_PENDING
	gr_store_release(&gp.pending, n); /* I2: first */
#endif
	for (struct gr_rcu_reader *r = gr_rcu_registry.first; r; r = r->next) {
		if (r->awaited) {
			/* Release: whoever takes the request sees pending. */
			gr_store_release(&r->need_qs, 1u);
		}
	}
#ifdef GR_MUTANT_RCU_REQUEST_BEFORE_PENDING
	for (int i = 0; i < 2000; i++) {
		gr_cpu_relax(); /* makes the bad schedule likely */
	}
	gr_store_release(&gp.pending, n);
#endif
	gr_rcu_registry_unlock(&saved);
	GR_RCU_COUNT(requests, n);
	return n;
}

/* Takes back the requests of readers that are outside and have not reported. */
static void claim_requests(void)
{
	struct gr_rcu_signals saved;

	gr_rcu_registry_lock(&saved);
	for (struct gr_rcu_reader *r = gr_rcu_registry.first; r; r = r->next) {
		if (r->awaited && !is_inside(gr_load_acquire(&r->ctr))) { /* R1 */
			r->awaited = 0;
			if (gr_xchg_acq_rel(&r->need_qs, 0u) == 1) {
				gr_rcu_pending_down(false);
			}
		}
	}
	gr_rcu_registry_unlock(&saved);
}

/* M2 as a process-wide fence; from then on no reader can miss its request. */
static void fence_requests(void)
{
	gr_heavy_fence();
	GR_RCU_COUNT(flag_fences, 1);
}

static void wait_for_awaited(void)
{
	static const uint64_t rescan_ns[] = { 20000, 100000, 1000000 };
	unsigned rescans = 0;
	uint32_t left;
	bool fenced;

	if (request_reports(&fenced) == 0) {
		return;
	}
#ifdef GR_MUTANT_RCU_SKIP_M2
	gr_fence();
#else
	if (fenced) {
		fence_requests();
	} else {
		gr_fence(); /* M2 without the other half: re-scan below */
	}
#endif
	claim_requests();
	/* Acquire: pairs with the subtractions of the readers. */
	while ((left = gr_load_acquire(&gp.pending)) != 0) {
		GR_RCU_COUNT(sleeps, 1);
		if (fenced) {
			(void)gr_futex_wait(&gp.pending, left, GR_FUTEX_FOR_EVER);
			continue;
		}
		(void)gr_futex_wait(&gp.pending, left,
				    rescan_ns[GR_MIN(rescans, GR_ARRAY_SIZE(rescan_ns) - 1)]);
		GR_RCU_COUNT(rescans, 1);
		if (++rescans >= GR_ARRAY_SIZE(rescan_ns) && gr_heavy_fence_available()) {
			fence_requests();
			fenced = true;
		}
		claim_requests();
	}
}

static void run_grace_period(void) GR_REQUIRES(gp.lock)
{
	/* Release is not needed by anybody; odd only sends cookies to the next one. */
	gr_store_release(&gp.seq, gp.seq + 1);
	GR_RCU_COUNT(grace_periods, 1);
	gr_fence(); /* F1 */
#ifndef GR_MUTANT_RCU_SKIP_GRACE_PERIOD
#ifdef GR_MUTANT_RCU_SKIP_M1
	(void)somebody_is_hot;
#else
	if (somebody_is_hot()) {
		GR_RCU_COUNT(entry_fences, 1);
		gr_heavy_fence(); /* M1 */
	}
#endif
#ifdef GR_MUTANT_RCU_DRIVER_DEMOTES
	demote_idle();
#endif
	if (find_awaited() && !spin_for_awaited()) {
		wait_for_awaited();
	}
#endif
	/* Release: pairs with the acquire in gr_rcu_poll_state(). */
	gr_store_release(&gp.seq, gp.seq + 1);
}

uint64_t gr_rcu_get_state(void)
{
	/* Full: what the caller did, before the look at seq. Pairs with F1 of the driver. */
	gr_fence();
	return (gr_load_acquire(&gp.seq) + 3) & ~1ull;
}

bool gr_rcu_poll_state(uint64_t cookie)
{
	/* Acquire: pairs with the driver's last release, which follows all the sections. */
	if ((int64_t)(gr_load_acquire(&gp.seq) - cookie) < 0) {
		return false;
	}
	gr_fence(); /* nor may what the caller writes next come before a section's reads */
	return true;
}

static void sleep_for_driver(unsigned parity, uint32_t seen)
{
	(void)gr_add_acq_rel(&gp.waiters[parity], 1u);
	/* The count, before the kernel's look at the word. Pairs with the fence in hand_on(). */
	gr_fence();
	(void)gr_futex_wait(&gp.word[parity], seen, GR_FUTEX_FOR_EVER);
	(void)gr_sub_acq_rel(&gp.waiters[parity], 1u);
}

/* After the unlock: lets go whom the driver served, and appoints the next. */
static void hand_on(unsigned served)
{
	unsigned other = 1 - served;

	(void)gr_add_acq_rel(&gp.word[0], 1u);
	(void)gr_add_acq_rel(&gp.word[1], 1u);
	/* The bumps, before the look at the counts. Pairs with the fence in sleep_for_driver(). */
	gr_fence();
	if (gr_load_relaxed(&gp.waiters[served]) != 0) {
		gr_futex_wake(&gp.word[served], GR_FUTEX_ALL);
	}
#ifndef GR_MUTANT_RCU_NO_HANDOFF
	if (gr_load_relaxed(&gp.waiters[other]) != 0) {
		gr_futex_wake(&gp.word[other], 1);
	}
#else
	(void)other;
#endif
}

static void unlock_and_hand_on(unsigned served) GR_RELEASE(gp.lock)
{
#ifdef GR_MUTANT_RCU_BUMP_BEFORE_UNLOCK
	hand_on(served);
	sched_yield(); /* makes the bad schedule likely */
	gr_mutex_unlock(&gp.lock);
#else
	gr_mutex_unlock(&gp.lock);
	hand_on(served);
#endif
}

void gr_rcu_cond_synchronize(uint64_t cookie)
{
	unsigned parity = (unsigned)(cookie / 2) & 1;

	if (gr_rcu_read_ongoing()) {
		gr_die("waiting for a grace period inside a read-side section would never end");
	}
	for (;;) {
		/* Acquire: before the looks at seq and the lock (see WAITING above). */
		uint32_t seen = gr_load_acquire(&gp.word[parity]);

		if (gr_rcu_poll_state(cookie)) {
			GR_RCU_COUNT(merged, 1);
			return;
		}
		if (!gr_mutex_trylock(&gp.lock)) {
			sleep_for_driver(parity, seen);
			continue;
		}
		if (!gr_rcu_poll_state(cookie)) {
			run_grace_period();
		}
		unlock_and_hand_on(parity);
		if (gr_rcu_poll_state(cookie)) {
			return;
		}
	}
}

void gr_rcu_synchronize(void)
{
	gr_rcu_cond_synchronize(gr_rcu_get_state());
}

uint64_t gr_rcu_start_poll(void)
{
	uint64_t cookie = gr_rcu_get_state();
	uint64_t wanted = gr_load_relaxed(&gp.poll_wanted);

	while ((int64_t)(cookie - wanted) > 0 && !gr_cas_acq_rel(&gp.poll_wanted, &wanted, cookie)) {
	}
	gr_rcu_queue_kick_default();
	return cookie;
}

bool gr_rcu_poll_wanted(void)
{
	return !gr_rcu_poll_state(gr_load_acquire(&gp.poll_wanted));
}

void gr_rcu_poll_serve(void)
{
	gr_rcu_cond_synchronize(gr_load_acquire(&gp.poll_wanted));
}

void gr_rcu_stats_get(struct gr_rcu_stats *ret_stats)
{
	const uint64_t *from = (const uint64_t *)&gr_rcu_stats;
	uint64_t *to = (uint64_t *)ret_stats;

	for (size_t i = 0; i < sizeof(*ret_stats) / sizeof(*to); i++) {
		to[i] = gr_load_relaxed(&from[i]);
	}
}

void gr_rcu_seq_set_for_test(uint64_t seq)
{
	GR_ASSERT((seq & 1) == 0);
	gr_store_release(&gp.seq, seq);
	gr_store_release(&gp.poll_wanted, seq);
}

/*
 * In a fork child: a driver, if there was one, is gone with its thread. Nothing it began has
 * been announced, so the grace period goes back to not begun; cookies stay right.
 */
void gr_rcu_grace_period_after_fork_in_child(void)
{
	gr_mutex_init(&gp.lock, GR_RANK_RCU_GP);
	gp.seq &= ~1ull;
	gp.pending = 0;
	for (unsigned i = 0; i < 2; i++) {
		gp.waiters[i] = 0;
	}
}
