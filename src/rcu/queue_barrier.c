/* SPDX-License-Identifier: MIT */
/*
 * Waiting for callbacks: gr_rcu_barrier(), gr_rcu_barrier_async(), gr_rcu_drain(). Which
 * batch to wait for is in queue.h under BARRIER. No marker is queued: nothing to allocate,
 * nothing on a stack that might go away, and an idle queue costs no grace period.
 *
 * Who waits adds itself to done_waiters, fences (D1), looks, and sleeps on `done`. Who finishes a
 * batch bumps done, fences (D2, in gr_rcu_queue_announce()), looks at done_waiters.
 *
 * DRAIN. With the caller's lock held no other thread finishes a batch that has LOCKED callbacks,
 * so those of a batch that says unlocked_done can be run here. For everything else the
 * lock is released and taken again.
 */
#include "base/futex.h"
#include "rcu/checks.h"
#include "rcu/queue.h"

enum { NO_WORKER_RETRY_NS = 10000000 };

static struct gr_rcu_reader *wait_begin(struct gr_rcu_queue *q, const char *what)
{
	if (gr_rcu_caller.callback_of == q) {
		gr_die("%s in a callback of the same queue would never end", what);
	}
	return gr_rcu_wait_begin(gr_rcu_domain_or_default(q->params.domain), what);
}

static bool holds_lock(struct gr_rcu_queue *q)
{
	return q->params.is_locked && q->params.is_locked(q->params.opaque);
}

/* The batch by whose end all that was queued before has run. q->lock is held. */
static uint32_t batch_that_has_it(struct gr_rcu_queue *q) GR_REQUIRES(q->lock)
{
	if (gr_rcu_queue_take(q) || !gr_rcu_queue_untaken(q)) {
#ifdef GR_MUTANT_RCU_BARRIER_FORGETS_RUNNING
		return q->opened != q->closed ? q->opened : q->finished;
#else
		return q->opened;
#endif
	}
	return q->opened + 1;
}

/* Whether the caller's lock, which was held, had to be released for it (F3: who forks may have
 * ours). */
static bool lock_queue(struct gr_rcu_queue *q, bool lock_held) GR_ACQUIRE(q->lock) GR_NO_TSA;
static bool lock_queue(struct gr_rcu_queue *q, bool lock_held)
{
	if (lock_held && gr_mutex_trylock(&q->lock)) {
		return false;
	}
	if (lock_held) {
		q->params.unlock(q->params.opaque);
	}
	gr_mutex_lock(&q->lock);
	return lock_held;
}

/* Asks for it. False: it has run already. The caller's lock, if held, is so afterwards. */
static bool want_batch(struct gr_rcu_queue *q, bool lock_held, uint32_t *ret_batch)
{
	bool back;
	struct gr_signals saved;
	uint32_t batch, want;

	gr_fence();		  /* calls of other threads that we know of, before the look */
	gr_signals_block(&saved); /* a handler that forks needs the lock */
	back = lock_queue(q, lock_held);
	batch = *ret_batch = batch_that_has_it(q);
	want = gr_load_relaxed(&q->want);
	if ((int32_t)(batch - want) > 0) {
		gr_store_release(&q->want, batch);
	}
	gr_mutex_unlock(&q->lock);
	gr_signals_restore(&saved);
	if (back) {
		q->params.lock(q->params.opaque);
	}
	if (!gr_rcu_is_running(q, batch)) {
		return false;
	}
	gr_fence(); /* want, before the look at sleeping. Pairs with W1. */
	gr_rcu_queue_wake(q, true);
	return true;
}

/* Sleeps until done is no longer `seen`, or runs a batch where nobody else would. */
static void wait_or_run(struct gr_rcu_queue *q, uint32_t seen, bool locked_too)
{
	bool have_worker = gr_rcu_has_thread(q) && gr_rcu_queue_start_worker(q);
	struct gr_rcu_budget budget = { .left = SIZE_MAX };

	if (!have_worker && gr_rcu_queue_begin_running(q)) {
		if (gr_rcu_queue_next_batch(q)) {
			(void)(locked_too ? gr_rcu_queue_run(q, &budget)
					  : gr_rcu_queue_run_unlocked(q, &budget));
		}
		gr_rcu_queue_end_running(q);
		return;
	}
	(void)gr_add_acq_rel(&q->done_waiters, 1u);
	gr_fence(); /* D1, before the kernel's look at done */
	(void)gr_futex_wait(&q->done, seen, have_worker ? GR_FUTEX_FOR_EVER : NO_WORKER_RETRY_NS);
	(void)gr_sub_acq_rel(&q->done_waiters, 1u);
}

void gr_rcu_barrier(struct gr_rcu_queue *queue)
{
	struct gr_rcu_queue *q = gr_rcu_queue_or_default(queue);
	struct gr_rcu_reader *qs = wait_begin(q, "gr_rcu_barrier()");
	uint32_t batch;

	gr_rcu_check_wait(gr_rcu_domain_or_default(q->params.domain), q, "gr_rcu_barrier()");
	if (holds_lock(q)) {
		gr_die("gr_rcu_barrier() with the queue's lock held would never end");
	}
	if (want_batch(q, false, &batch)) {
		for (;;) {
			uint32_t seen = gr_load_acquire(&q->done);

			if (!gr_rcu_is_running(q, batch)) {
				break;
			}
			wait_or_run(q, seen, true);
		}
	}
	gr_rcu_wait_end(qs);
}

/* The batch has callbacks that wait for nothing but the lock, which we hold. */
static bool needs_only_lock(struct gr_rcu_queue *q)
{
	uint32_t batch = gr_load_acquire(&q->unlocked_done);

	return gr_load_acquire(&q->closed) == batch && gr_rcu_is_running(q, batch);
}

/* With the lock held, but where it says so. */
static void drain_until(struct gr_rcu_queue *q, uint32_t batch)
{
	struct gr_rcu_budget budget = { .left = SIZE_MAX, .no_wait = true };

	for (;;) {
		uint32_t seen = gr_load_acquire(&q->done);

		if (!gr_rcu_is_running(q, batch)) {
			return;
		}
		if (needs_only_lock(q)) {
			if (!gr_rcu_queue_run_locked(q, &budget)) {
				q->params.unlock(q->params.opaque); /* F3 */
				gr_rcu_wait_at_door();
				q->params.lock(q->params.opaque);
			}
			continue;
		}
#ifdef GR_MUTANT_RCU_DRAIN_KEEPS_LOCK
		wait_or_run(q, seen, false);
#else
		q->params.unlock(q->params.opaque);
		wait_or_run(q, seen, false);
		q->params.lock(q->params.opaque);
#endif
	}
}

void gr_rcu_drain(struct gr_rcu_queue *queue)
{
	struct gr_rcu_queue *q = gr_rcu_queue_or_default(queue);
	struct gr_rcu_reader *qs;
	uint32_t batch;

	if (!q->params.lock) {
		gr_rcu_barrier(q);
		return;
	}
	qs = wait_begin(q, "gr_rcu_drain()");
	if (q->params.is_locked && !holds_lock(q)) {
		gr_die("gr_rcu_drain() without the queue's lock");
	}
	if (want_batch(q, true, &batch)) {
		drain_until(q, batch);
	}
	gr_rcu_wait_end(qs);
}

void gr_rcu_barrier_async(struct gr_rcu_queue *queue, struct gr_rcu_head *head,
			  void (*func)(struct gr_rcu_head *head))
{
	struct gr_rcu_queue *q = gr_rcu_queue_or_default(queue);
	struct gr_signals saved;
	bool all;

	if (!func) {
		gr_die("gr_rcu_barrier_async() without a function");
	}
	head->func = func;
	gr_fence(); /* as in want_batch() */
	gr_signals_block(&saved);
	gr_mutex_lock(&q->lock);
	all = gr_rcu_queue_take(q) || !gr_rcu_queue_untaken(q);
	if (all && q->opened == q->closed) {
		/* Nothing is queued, or the last of it runs: a batch whose grace period is over. */
		gr_rcu_queue_open(q, gr_rcu_domain_get_state(q->params.domain) - 4);
	}
	gr_rcu_list_append(all ? &q->open_batch.after : &q->after_next, head);
	/* Under the lock it never goes back; others look at it without. */
	gr_store_release(&q->want, all ? q->opened : q->opened + 1);
	gr_mutex_unlock(&q->lock);
	gr_signals_restore(&saved);
	gr_fence(); /* the list, before the look at sleeping. Pairs with W1. */
	gr_rcu_queue_wake(q, true);
}
