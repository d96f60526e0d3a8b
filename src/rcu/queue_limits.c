/* SPDX-License-Identifier: MIT */
/*
 * Limits. Producers report every `grain` calls, the runner every 64 callbacks: `count` and
 * `bytes` are right within that. Over the soft limit the worker stops pacing. Over the hard
 * limit calls wait for room, as far as they may, and in any case not long: whoever waits with
 * a lock held that a callback or a reader needs goes on after GR_RCU_LIMIT_WAIT_NS. So no
 * cycle of waiting lasts, and what the limit promises is lost only by those who cause one.
 *
 * Callers do not run callbacks themselves. They may hold locks of which we know nothing, or be
 * signal handlers in the middle of malloc(); the worker is neither.
 *
 * ROOM. Who waits adds itself to room_waiters, fences (L1), looks at the count and sleeps on
 * `room`. The runner lowers the count, fences (L2), looks at room_waiters. Not both can miss.
 */
#include "base/clock.h"
#include "base/futex.h"
#include "base/log.h"
#include "rcu/queue.h"
#include "rcu/stall.h"

enum {
	LOOK_NS = 10000000,
	SAY_EVERY = 1024, /* callbacks over the limit between warnings, after the first */
};

void gr_rcu_raise(uint64_t *max, uint64_t v)
{
	uint64_t old = gr_load_relaxed(max);

	while (v > old && !gr_cas_acq_rel(max, &old, v)) {
	}
}

static bool is_over(struct gr_rcu_queue *q, size_t count, size_t bytes)
{
	return (count != 0 && gr_load_relaxed(&q->count) > (int64_t)count) ||
	       (bytes != 0 && gr_load_relaxed(&q->bytes) > (int64_t)bytes);
}

static bool is_over_hard(struct gr_rcu_queue *q)
{
	return is_over(q, q->params.hard_count, q->params.hard_bytes);
}

/*
 * A quiescent-state thread that is online counts as inside: only it knows whether it is, and to
 * wait offline would be a quiescent state in the middle of a section.
 */
static bool may_wait(struct gr_rcu_queue *q)
{
#ifdef GR_MUTANT_RCU_LIMIT_WAITS_OFFLINE
	return !gr_rcu_in_section(NULL);
#endif
	return !gr_rcu_read_ongoing() && !gr_rcu_in_section(q->params.domain) &&
	       !gr_rcu_in_notifier() && !gr_rcu_in_stall_report() && !gr_rcu_caller.callback_of &&
	       gr_load_relaxed(&q->runner) != gr_rcu_me() &&
	       !(q->params.is_locked && q->params.is_locked(q->params.opaque));
}

static void pass_over(struct gr_rcu_queue *q, const char *why)
{
	gr_add_relaxed(&q->stats.limit_passes, (uint64_t)1);
	if (gr_add_relaxed(&q->refused_said, 1u) % SAY_EVERY == 0) {
		gr_log(GR_LOG_WARN, "%s: over its hard limit with %lld callbacks, and a call %s",
		       q->name, (long long)gr_load_relaxed(&q->count), why);
	}
}

static void wait_for_room(struct gr_rcu_queue *q)
{
	uint64_t now = gr_clock_ns(), end = now + GR_RCU_LIMIT_WAIT_NS;

#ifdef GR_MUTANT_RCU_LIMIT_WAITS_OFFLINE
	struct gr_rcu_reader *qs = gr_rcu_wait_begin(&gr_rcu_default, "gr_rcu_call()");
#endif

	gr_add_relaxed(&q->stats.limit_waits, (uint64_t)1);
	gr_rcu_park();
	(void)gr_add_acq_rel(&q->room_waiters, 1u);
	while (now < end) {
		uint32_t seen = gr_load_acquire(&q->room);

		gr_fence(); /* L1 */
		if (!is_over_hard(q)) {
			break;
		}
		gr_rcu_queue_wake(q, true); /* makes a worker if there is none */
		(void)gr_futex_wait(&q->room, seen, GR_MIN(end - now, (uint64_t)LOOK_NS));
		now = gr_clock_ns();
	}
	(void)gr_sub_acq_rel(&q->room_waiters, 1u);
#ifdef GR_MUTANT_RCU_LIMIT_WAITS_OFFLINE
	gr_rcu_wait_end(qs);
#endif
	if (now >= end) {
		pass_over(q, "has waited in vain");
	}
}

void gr_rcu_queue_report(struct gr_rcu_queue *q, size_t n, size_t bytes)
{
	int64_t count = gr_add_relaxed(&q->count, (int64_t)n) + (int64_t)n;
	int64_t total = gr_add_relaxed(&q->bytes, (int64_t)bytes) + (int64_t)bytes;

	gr_rcu_raise(&q->stats.high_water, (uint64_t)GR_MAX(count, (int64_t)0));
	gr_rcu_raise(&q->stats.high_water_bytes, (uint64_t)GR_MAX(total, (int64_t)0));
	if (is_over(q, q->params.soft_count, q->params.soft_bytes) &&
	    gr_xchg_acq_rel(&q->urgent, 1u) == 0) {
		gr_rcu_queue_wake(q, true);
	}
#ifndef GR_MUTANT_RCU_NO_HARD_LIMIT
	if (is_over_hard(q)) {
#	ifdef GR_MUTANT_RCU_LIMIT_ALWAYS_WAITS
		wait_for_room(q);
#	else
		if (may_wait(q)) {
			wait_for_room(q);
		} else {
			pass_over(q, "must not wait where it is");
		}
#	endif
	}
#endif
}

void gr_rcu_queue_calm_down(struct gr_rcu_queue *q)
{
	if (gr_load_relaxed(&q->urgent) &&
	    !is_over(q, q->params.soft_count, q->params.soft_bytes)) {
		gr_store_relaxed(&q->urgent, 0u);
	}
}

void gr_rcu_queue_report_run(struct gr_rcu_queue *q, size_t n, size_t bytes)
{
	gr_add_relaxed(&q->count, -(int64_t)n);
	gr_add_relaxed(&q->bytes, -(int64_t)bytes);
	gr_add_relaxed(&q->stats.run, (uint64_t)n);
	gr_fence(); /* L2 */
	if (gr_load_relaxed(&q->room_waiters) != 0 && !is_over_hard(q)) {
		(void)gr_add_acq_rel(&q->room, 1u);
		gr_futex_wake(&q->room, GR_FUTEX_ALL);
	}
}
