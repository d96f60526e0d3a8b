/* SPDX-License-Identifier: MIT */
/*
 * The worker thread: sleeps until there is work, gathers callbacks for a moment if it has just
 * had a grace period, takes a batch through the next one and runs it. W1 is in queue.h.
 *
 * PACING. Grace periods of a busy queue begin PACE_NS after one another at the soonest. The first
 * callback after a pause finds that time past and waits for nothing; behind a slow reader or
 * slow callbacks it is past too, since they gather by themselves. Barriers and limits end it.
 */
#include "base/clock.h"
#include "base/futex.h"
#include "base/heavy_fence.h"
#include "base/hook.h"
#include "base/log.h"
#include "rcu/queue.h"
#include <string.h>

enum {
	PACE_NS = 200000,
	RUNNER_LOOK_NS = 1000000, /* while somebody runs in the worker's place */
};

static bool somebody_waits(struct gr_rcu_queue *q)
{
	return gr_rcu_is_running(q, gr_load_acquire(&q->want)) || gr_load_acquire(&q->urgent) ||
	       gr_load_acquire(&q->stop);
}

static bool has_work(struct gr_rcu_queue *q)
{
	return gr_load_acquire(&q->stop) || gr_rcu_queue_has_callbacks(q);
}

/* Has somebody else's grace period served the open batch? */
static bool is_ready(struct gr_rcu_queue *q)
{
	bool ready;

	gr_mutex_lock(&q->lock);
	ready = q->opened != q->closed &&
		gr_rcu_domain_poll_state(q->params.domain, q->open_batch.cookie);
	gr_mutex_unlock(&q->lock);
	return ready;
}

void gr_rcu_queue_wake(struct gr_rcu_queue *q, bool urgent)
{
	uint32_t seen = gr_load_relaxed(&q->sleeping);

	if (seen == GR_RCU_ABSENT) {
		(void)gr_rcu_queue_start_worker(q);
	} else if ((seen == GR_RCU_ASLEEP || (urgent && seen == GR_RCU_PACING)) &&
		   gr_cas_acq_rel(&q->sleeping, &seen, (uint32_t)GR_RCU_AWAKE)) {
		if (gr_rcu_has_thread(q)) {
			gr_futex_wake(&q->sleeping, 1);
		} else {
			gr_rcu_queue_ring_fd(q);
		}
	}
}

static bool announce_and_look(struct gr_rcu_queue *q, bool heavy)
{
	gr_store_relaxed(&q->sleeping, (uint32_t)GR_RCU_ASLEEP);
	if (heavy) {
		gr_heavy_fence(); /* W2 */
	} else {
		gr_fence(); /* W1: the announcement, before the look. Pairs with S3. */
	}
	return has_work(q);
}

static void sleep_until_work(struct gr_rcu_queue *q)
{
	/* See SLEEP in queue.h. */
	static const uint64_t looks_ns[] = { 200000, 2000000, 20000000, 100000000 };
	bool light = gr_load_relaxed(&gr_rcu_callers_fence_is_light);
	unsigned looks = light ? 0 : GR_ARRAY_SIZE(looks_ns);

	if (has_work(q)) {
		return;
	}
	gr_rcu_park();
	for (;;) {
		/* W2 interrupts other CPUs: in quiet times the looks go on instead. */
		bool last = looks == GR_ARRAY_SIZE(looks_ns) && (!light || gr_rcu_quiet_hold_off());
		bool found = announce_and_look(q, light && last);

		if (light && last) {
			gr_rcu_quiet_let_go();
		}
		if (found) {
			gr_store_relaxed(&q->sleeping, (uint32_t)GR_RCU_AWAKE);
			return;
		}
		(void)gr_futex_wait(&q->sleeping, GR_RCU_ASLEEP,
				    last ? GR_FUTEX_FOR_EVER
					 : looks_ns[GR_MIN(looks, GR_ARRAY_SIZE(looks_ns) - 1)]);
		looks += looks < GR_ARRAY_SIZE(looks_ns);
	}
}

static void pace(struct gr_rcu_queue *q)
{
	uint64_t end = q->last_start_ns + PACE_NS;
	uint64_t now = gr_clock_ns();

	while (now < end && !is_ready(q)) {
		gr_store_relaxed(&q->sleeping, (uint32_t)GR_RCU_PACING);
		gr_fence(); /* W1, with the fences of barriers and of the limits' reports */
		if (somebody_waits(q)) {
			break;
		}
		if (gr_futex_wait(&q->sleeping, GR_RCU_PACING, end - now) == 0 &&
		    gr_load_relaxed(&q->sleeping) == GR_RCU_AWAKE) {
			break;
		}
		now = gr_clock_ns();
	}
	gr_store_relaxed(&q->sleeping, (uint32_t)GR_RCU_AWAKE);
}

static void wait_for_grace_period(struct gr_rcu_queue *q, uint64_t cookie)
{
#ifndef GR_MUTANT_RCU_CALLBACK_WITHOUT_GRACE_PERIOD
	if (gr_load_relaxed(&q->urgent) && !gr_rcu_domain_poll_state(q->params.domain, cookie)) {
		gr_rcu_domain_synchronize_expedited(q->params.domain);
	} else {
		gr_rcu_domain_cond_synchronize(q->params.domain, cookie);
	}
#else
	(void)q;
	(void)cookie;
#endif
}

bool gr_rcu_queue_next_batch(struct gr_rcu_queue *q)
{
	struct gr_signals saved;
	uint64_t cookie;
	bool any;

	gr_signals_block(&saved);
	gr_mutex_lock(&q->lock);
	any = q->closed != q->finished;
	if (!any) {
		(void)gr_rcu_queue_take(q);
	}
	cookie = q->open_batch.cookie;
	if (any || q->opened == q->closed) {
		gr_mutex_unlock(&q->lock);
		gr_signals_restore(&saved);
		return any; /* left by who could not run all of it, or by a fork's parent */
	}
	gr_mutex_unlock(&q->lock);
	gr_signals_restore(&saved);

	GR_HOOK("next batch: opened");
	q->last_start_ns = gr_clock_ns();
	for (;;) {
		wait_for_grace_period(q, cookie);
		gr_signals_block(&saved);
		gr_mutex_lock(&q->lock);
		/* B1: a barrier's take may have joined just as it began, with a new cookie. */
#ifdef GR_MUTANT_RCU_COOKIE_KEPT
		break;
#endif
		if (q->open_batch.cookie == cookie) {
			break;
		}
		cookie = q->open_batch.cookie;
		gr_mutex_unlock(&q->lock);
		gr_signals_restore(&saved);
	}
	gr_rcu_queue_close(q);
	/* Others' grace periods may serve the next batch while this one runs. */
	(void)gr_rcu_queue_take(q);
	gr_mutex_unlock(&q->lock);
	gr_signals_restore(&saved);
	return true;
}

static void run_next_batch(struct gr_rcu_queue *q)
{
	struct gr_rcu_budget budget = { .left = SIZE_MAX };

	while (!gr_rcu_queue_begin_running(
		q)) { /* borrowed by a barrier, when there was no thread */
		(void)gr_futex_wait(&q->done, gr_load_acquire(&q->done), RUNNER_LOOK_NS);
	}
	if (gr_rcu_queue_next_batch(q)) {
		(void)gr_rcu_queue_run(q, &budget);
	}
	gr_rcu_queue_end_running(q);
}

static void *worker(void *arg)
{
	struct gr_rcu_queue *q = arg;

	gr_rcu_caller.worker_of = q;
	(void)pthread_setname_np(pthread_self(), q->name);
	for (;;) {
		sleep_until_work(q);
		pace(q);
		gr_rcu_queue_calm_down(q);
		run_next_batch(q);
		if (gr_load_acquire(&q->stop) && !gr_rcu_queue_has_callbacks(q)) {
			return NULL;
		}
	}
}

static int create_thread(struct gr_rcu_queue *q)
{
	pthread_attr_t attr;
	struct gr_signals saved;
	int ret;

	pthread_attr_init(&attr);
	/* Nobody joins the default queue's worker: it lives as long as the process. */
	pthread_attr_setdetachstate(&attr, q->is_default ? PTHREAD_CREATE_DETACHED
							 : PTHREAD_CREATE_JOINABLE);
#ifdef __linux__
	if (q->params.flags & GR_RCU_QUEUE_PIN) {
		cpu_set_t set;

		CPU_ZERO(&set);
		CPU_SET((unsigned)q->params.cpu, &set);
		(void)pthread_attr_setaffinity_np(&attr, sizeof(set), &set);
	}
#endif
	gr_signals_block(&saved); /* handlers run on the caller's threads */
	ret = pthread_create(&q->thread, &attr, worker, q);
	gr_signals_restore(&saved);
	pthread_attr_destroy(&attr);
	return ret;
}

bool gr_rcu_queue_start_worker(struct gr_rcu_queue *q)
{
	uint32_t absent = GR_RCU_ABSENT;
	int ret;

	if (gr_load_acquire(&q->sleeping) != GR_RCU_ABSENT ||
	    !gr_cas_acq_rel(&q->sleeping, &absent, (uint32_t)GR_RCU_AWAKE)) {
		return true;
	}
	ret = create_thread(q);
	if (ret == 0) {
		gr_store_relaxed(&q->no_thread_said, 0u);
		return true;
	}
	gr_store_release(&q->sleeping, (uint32_t)GR_RCU_ABSENT);
	gr_rcu_queue_announce(q); /* who relied on us looks again */
	if (gr_xchg_acq_rel(&q->no_thread_said, 1u) == 0) {
		gr_log(GR_LOG_WARN, "%s: cannot start the callback thread (%s), will try again",
		       q->name, strerror(ret));
	}
	return false;
}
