/* SPDX-License-Identifier: MIT */
/*
 * Quiet times: no grace period needs a process-wide fence.
 *
 * A HOT reader enters with one store, and a driver cannot ask it to do otherwise: the owner may
 * stand between its load of HOT and its store, in a signal handler's way or preempted, for
 * any length of time (I1 in grace_period.c). So a process that ever has quiet times grows no
 * HOT readers but WARM ones, who look at a word *after* their store (H3 in rcu.h) and
 * fence if it is set. They never change their state for it. That look costs about a tenth of
 * a section; processes without quiet times do not pay it.
 *
 *  Begin: is_quiet = 1; process-wide fence (Q1); in_effect = 1.
 *     Q1 puts a full fence at some point into each WARM thread's program. A section that
 *     looked before that point has stored "inside" before it, so a driver that finds
 *     in_effect set, and then loads ctr, sees it inside. One that looked after it finds
 *     is_quiet set, fences, and is like a COLD one: F1 of the driver is the partner.
 *  End: in_effect = 0; full fence (Q2); is_quiet = 0.
 *     A driver that found in_effect set has fenced (F1) after its P and before it looked. Its F1
 *     comes before Q2, or it would have found 0; so a section that finds is_quiet 0
 *     (acquire) sees P.
 *
 * Meanwhile M2 is not used either: a driver that sleeps looks again now and then.
 *
 *  Whoever is about to fence when a quiet time begins has looked at in_effect before. So it says so
 *     (fencing), fences (F1, O2), and only then looks; begin, after in_effect = 1, fences (Q3) and
 *     waits for those who said so, until they have fenced or their grace period is over. Not
 *     both can miss: nobody fences for a grace period after begin has returned.
 *
 * Considered: asking HOT readers to become COLD at their next unlock. Not safe, since that unlock
 * may be a handler's, on top of somebody who is about to store HOT + 1; nor would an idle
 * reader ever answer.
 *
 * Model: models/gp.pml (rows WARM).
 */
#include "base/atomic.h"
#include "base/futex.h"
#include "base/heavy_fence.h"
#include "rcu/rcu_internal.h"

uint32_t gr_rcu_is_quiet;

static struct {
	struct gr_mutex lock;	 /* held with signals blocked: a handler that forks needs it */
	struct gr_signals saved; /* (l) the holder's */
	unsigned depth;		 /* (l) */
	uint32_t in_effect;	 /* (a) written under lock */
	uint32_t ever;		 /* (a) */
	uint32_t held_off;	 /* (a) how many workers do; read as signed */
} quiet = { .lock = GR_MUTEX_INIT(GR_RANK_RCU_QUIET) };

bool gr_rcu_quiet_in_effect(void)
{
	/* Acquire: what follows is not looked at before. Pairs with the release in begin. */
	return gr_load_acquire(&quiet.in_effect) != 0;
}

uint32_t gr_rcu_quiet_grade(void)
{
	return gr_load_acquire(&quiet.ever) != 0 ? GR_RCU_WARM : GR_RCU_HOT;
}

static void lock_quiet(void) GR_ACQUIRE(quiet.lock) GR_NO_TSA
{
	struct gr_signals saved;

	gr_signals_block(&saved);
	gr_mutex_lock(&quiet.lock);
	quiet.saved = saved;
}

static void unlock_quiet(void) GR_RELEASE(quiet.lock) GR_NO_TSA
{
	struct gr_signals saved = quiet.saved;

	gr_mutex_unlock(&quiet.lock);
	gr_signals_restore(&saved);
}

void gr_rcu_quiet_begin(void)
{
	uint32_t held_off;

	lock_quiet();
	if (quiet.depth++ == 0) {
		gr_store_relaxed(&quiet.ever, 1u);
		gr_store_relaxed(&gr_rcu_is_quiet, 1u);
#ifndef GR_MUTANT_RCU_QUIET_WITHOUT_FENCE
		gr_heavy_fence(); /* Q1 */
#endif
		gr_store_release(&quiet.in_effect, 1u);
	}
	unlock_quiet();
#ifndef GR_MUTANT_RCU_QUIET_BEGINS_AT_ONCE
	/* Others who begin too wait as well: the first may not be through. */
	gr_fence(); /* Q3 */
	while ((int32_t)(held_off = gr_load_acquire(&quiet.held_off)) > 0) {
		(void)gr_futex_wait(&quiet.held_off, held_off, GR_RCU_FENCE_LOOK_NS);
	}
	gr_rcu_domains_wait_for_fences();
#endif
}

bool gr_rcu_quiet_hold_off(void)
{
	(void)gr_add_acq_rel(&quiet.held_off, 1u);
	gr_fence(); /* pairs with Q3 */
	if (gr_rcu_quiet_in_effect()) {
		gr_rcu_quiet_let_go();
		return false;
	}
	return true;
}

void gr_rcu_quiet_let_go(void)
{
	(void)gr_sub_acq_rel(&quiet.held_off, 1u); /* release: after the fence */
}

void gr_rcu_quiet_end(void)
{
	lock_quiet();
	if (quiet.depth == 0) {
		gr_die("gr_rcu_quiet_end() without gr_rcu_quiet_begin()");
	}
	if (--quiet.depth == 0) {
		gr_store_relaxed(&quiet.in_effect, 0u);
		gr_fence(); /* Q2 */
		gr_store_release(&gr_rcu_is_quiet, 0u);
	}
	unlock_quiet();
}

void gr_rcu_enter_quietly(struct gr_rcu_reader *r)
{
#ifndef GR_MUTANT_RCU_WARM_IGNORES_QUIET
	gr_rcu_store_ctr_fence(r, GR_RCU_WARM + 1); /* as C1 */
#else
	(void)r;
#endif
}

void gr_rcu_quiet_before_fork(void) GR_NO_TSA
{
	lock_quiet();
}

void gr_rcu_quiet_after_fork(bool in_child) GR_NO_TSA
{
	if (in_child) {
		quiet.held_off = 0;
	}
	unlock_quiet();
}
