/* SPDX-License-Identifier: MIT */
/*
 * Callback queues: gr_rcu_call(), the workers, gr_rcu_barrier().
 *
 * Callers push on `incoming`, a lock-free stack. The worker takes the whole stack, turns it
 * round (so the order of each caller is kept), waits for a grace period and runs it: a
 * *batch*. A stack, not a linked queue, because a push is one step: there is no moment in
 * which fork() or a slow caller could leave it half done.
 *
 * BARRIER. seq is odd while a batch runs, as the grace periods' is. The worker makes seq odd,
 * then takes incoming. A barrier looks at incoming, then at seq:
 *   incoming empty: what we queued was taken by a batch, and (acquire on incoming, release in
 *     the worker's exchange) we see at least that batch's odd seq. seq even: all of it has
 *     run. seq odd: it has when this batch ends.
 *   incoming not empty: ours may be taken by the next batch to start, or, with seq odd, by
 *     the one that has not looked yet or the one after it: seq + 2 or seq + 3.
 * It puts the number in `want`, so that the worker runs that batch even if nothing is
 * left for it. No marker is queued: nothing to allocate, nothing on a stack that
 * might go away, and an idle queue costs no grace period.
 *
 * SLEEP. The worker announces that it sleeps, then looks for work, then sleeps. A caller
 * that pushed on an empty stack looks for the announcement. A full fence on both sides
 * (Q1, Q2): not both can miss. Callers that find the stack non-empty leave it to the one
 * that found it empty. They only see to it that there is a worker: who found the stack empty
 * may have failed to make one, or be a thread of the parent of this fork's child. A worker
 * that starts looks for work by itself.
 *
 * LOCK. The caller's lock is held while callbacks run, in slices (rcu.h). A mutex that is
 * released and taken again at once is usually not passed on, so after each 200 us of
 * holding it in total the worker steps back for a moment. Our own lock (q->lock) covers only
 * the batch's list, one step at a time, so that fork() finds it whole.
 *
 * FORK. In the child a batch that was under way goes back in front of incoming; the callback
 * that was running in another thread is lost with that thread.
 */
#include "base/atomic.h"
#include "base/clock.h"
#include "base/futex.h"
#include "base/log.h"
#include "base/memory.h"
#include "rcu/rcu_internal.h"
#include <errno.h>
#include <guestram/event.h>
#include <stdio.h>
#include <string.h>

enum worker_state {
	WORKER_NONE,	 /* to be started by the next call */
	WORKER_STARTING, /* somebody starts it */
	WORKER_RUNNING,
	WORKER_BORROWED, /* no thread could be made: a barrier runs batches itself */
};

enum worker_sleep {
	AWAKE = 0,
	ASLEEP = 1, /* nothing to do: any call wakes */
	PACING = 2, /* gathers callbacks for a moment: only barriers wake */
};

enum {
	PACE_NS = 200000,     /* between the grace periods of a busy queue */
	STEP_BACK_NS = 50000, /* after GR_RCU_SLICE_NS of holding the caller's lock */
	NO_WORKER_RETRY_NS = 10000000,
};

struct gr_rcu_queue {
	struct gr_rcu_head *incoming GR_ALIGNED(GR_CACHE_LINE); /* (a) newest first */
	uint32_t sleeping GR_ALIGNED(GR_CACHE_LINE);		/* (a) enum worker_sleep; futex */
	uint32_t state;						/* (a) enum worker_state */
	uint32_t stop;						/* (a) leave when all has run */
	uint32_t done;	       /* (a) bumped after each batch; futex of barriers */
	uint32_t done_waiters; /* (a) */
	gr_atomic_u64 seq;	       /* (a) batches; odd while one runs */
	gr_atomic_u64 want;	       /* (a) run batches until seq is this */
	/* Protects batch. Not held while anything is called. */
	struct gr_mutex lock;
	struct gr_rcu_head *batch; /* (l) what is left of it, oldest first */
	uint64_t last_end_ns;	   /* (o) worker: end of its last grace period */
	uint64_t held_ns;	   /* (o) worker: caller's lock held since it stepped back */
	uint32_t no_thread_said;   /* (a) that no thread can be made was said already */
	pthread_t thread;	   /* (c) once RUNNING */
	void (*user_lock)(void *opaque); /* (c) */
	void (*user_unlock)(void *opaque);
	void *user_opaque;
	char name[16];		   /* (c) */
	bool is_default;	   /* (c) */
	struct gr_rcu_queue *next; /* queues.lock */
};

static struct gr_rcu_queue default_queue = {
	.lock = GR_MUTEX_INIT(GR_RANK_RCU_QUEUE),
	.name = "gr-rcu",
	.is_default = true,
};

static struct {
	/* Protects the list, for fork; the peers' locks are taken in its order. */
	struct gr_mutex lock;
	struct gr_rcu_queue *first; /* (l) */
} queues = { .lock = GR_MUTEX_INIT(GR_RANK_RCU_QUEUES), .first = &default_queue };

/* (o) The queue whose callback this thread is running. */
static __thread struct gr_rcu_queue *in_callback_of;

static struct gr_rcu_queue *queue_or_default(struct gr_rcu_queue *q)
{
	return q ? q : &default_queue;
}

static bool has_work(struct gr_rcu_queue *q)
{
	return gr_load_acquire(&q->incoming) ||
	       (int64_t)(gr_load_acquire(&q->want) - gr_load_relaxed(&q->seq)) > 0 ||
	       gr_load_acquire(&q->stop);
}

/* Wakes the worker if it sleeps, for a barrier also if it paces. */
static void wake_worker(struct gr_rcu_queue *q, bool urgent)
{
	uint32_t seen;

	gr_fence(); /* Q1: the push (or want, stop), before the look. Pairs with Q2. */
	seen = gr_load_relaxed(&q->sleeping);
	if (seen == ASLEEP || (urgent && seen == PACING)) {
		if (gr_xchg_acq_rel(&q->sleeping, (uint32_t)AWAKE) != AWAKE) {
			gr_futex_wake(&q->sleeping, 1);
		}
	}
}

static void sleep_until_work(struct gr_rcu_queue *q)
{
	gr_rcu_park();
	for (;;) {
		gr_store_relaxed(&q->sleeping, (uint32_t)ASLEEP);
		gr_fence(); /* Q2: the announcement, before the look. Pairs with Q1. */
		if (has_work(q)) {
			gr_store_relaxed(&q->sleeping, (uint32_t)AWAKE);
			return;
		}
		(void)gr_futex_wait(&q->sleeping, ASLEEP, GR_FUTEX_FOR_EVER);
	}
}

/* A busy queue gathers callbacks between its grace periods, unless somebody waits. */
static void pace(struct gr_rcu_queue *q)
{
	uint64_t end = q->last_end_ns + PACE_NS;
	uint64_t now = gr_clock_ns();

	while (now < end) {
		gr_store_relaxed(&q->sleeping, (uint32_t)PACING);
		gr_fence(); /* Q2 */
		if ((int64_t)(gr_load_acquire(&q->want) - gr_load_relaxed(&q->seq)) > 0 ||
		    gr_load_acquire(&q->stop)) {
			break;
		}
		if (gr_futex_wait(&q->sleeping, PACING, end - now) == 0 &&
		    gr_load_relaxed(&q->sleeping) == AWAKE) {
			break;
		}
		now = gr_clock_ns();
	}
	gr_store_relaxed(&q->sleeping, (uint32_t)AWAKE);
}

static struct gr_rcu_head *turn_round(struct gr_rcu_head *newest)
{
	struct gr_rcu_head *oldest = NULL;

	while (newest) {
		struct gr_rcu_head *next = newest->next;

		newest->next = oldest;
		oldest = newest;
		newest = next;
	}
	return oldest;
}

static bool take_batch(struct gr_rcu_queue *q)
{
	bool any;

	gr_mutex_lock(&q->lock);
	/* Acquire: the heads. Release: seq is odd for who finds the stack empty (BARRIER). */
	q->batch = turn_round(gr_xchg_acq_rel(&q->incoming, (struct gr_rcu_head *)NULL));
	any = q->batch != NULL;
	gr_mutex_unlock(&q->lock);
	return any;
}

static struct gr_rcu_head *pop(struct gr_rcu_queue *q)
{
	struct gr_rcu_head *head;

	gr_mutex_lock(&q->lock);
	head = q->batch;
	if (head) {
		q->batch = head->next;
	}
	gr_mutex_unlock(&q->lock);
	return head;
}

static void run_one(struct gr_rcu_head *head)
{
	head->func(head); /* head may be gone now */
	if (gr_rcu_read_ongoing()) {
		gr_die("an RCU callback returned inside a read-side section");
	}
}

static bool slice_has_room(int ran, uint64_t start_ns)
{
#ifdef GR_MUTANT_RCU_ONE_SLICE
	(void)ran;
	(void)start_ns;
	return true;
#else
	return ran < GR_RCU_SLICE_CALLBACKS && gr_clock_ns() - start_ns < GR_RCU_SLICE_NS;
#endif
}

/* Returns whether the batch may have more. */
static bool run_slice(struct gr_rcu_queue *q)
{
	struct gr_rcu_head *head;
	uint64_t start;
	int n = 0;

	q->user_lock(q->user_opaque);
	start = gr_clock_ns();
	do {
		head = pop(q);
		if (head) {
			run_one(head);
		}
	} while (head && slice_has_room(++n, start));
	q->held_ns += gr_clock_ns() - start;
	q->user_unlock(q->user_opaque);
	return head != NULL;
}

static void run_callbacks(struct gr_rcu_queue *q)
{
	struct gr_rcu_queue *outer = in_callback_of; /* a barrier in a callback may run another queue's */
	struct gr_rcu_head *head;

	in_callback_of = q;
	if (!q->user_lock) {
		while ((head = pop(q))) {
			run_one(head);
		}
	} else {
		while (run_slice(q)) {
			if (q->held_ns >= GR_RCU_SLICE_NS) {
				struct timespec ts = gr_timespec_from_ns(STEP_BACK_NS);

				q->held_ns = 0;
				(void)nanosleep(&ts, NULL);
			}
		}
	}
	in_callback_of = outer;
}

static void run_batch(struct gr_rcu_queue *q)
{
	/* Before the batch is taken: take_batch() releases it to who finds the stack empty. */
	gr_store_release(&q->seq, q->seq + 1);
	if (take_batch(q)) {
#ifndef GR_MUTANT_RCU_CALLBACK_WITHOUT_GRACE_PERIOD
		gr_rcu_synchronize();
#endif
		q->last_end_ns = gr_clock_ns();
		run_callbacks(q);
	}
	/* Release: what the callbacks did, for barriers. Pairs with their acquire of seq. */
	gr_store_release(&q->seq, q->seq + 1);
	(void)gr_add_acq_rel(&q->done, 1u);
	gr_fence(); /* the bump, before the look. Pairs with the fence in wait_for_batch(). */
	if (gr_load_relaxed(&q->done_waiters) != 0) {
		gr_futex_wake(&q->done, GR_FUTEX_ALL);
	}
}

static void *worker(void *arg)
{
	struct gr_rcu_queue *q = arg;

	(void)pthread_setname_np(pthread_self(), q->name);
	for (;;) {
		sleep_until_work(q);
		if (gr_load_acquire(&q->incoming)) {
			pace(q);
		}
		if (gr_load_acquire(&q->incoming) ||
		    (int64_t)(gr_load_acquire(&q->want) - gr_load_relaxed(&q->seq)) > 0) {
			run_batch(q);
		} else if (gr_load_acquire(&q->stop)) {
			return NULL;
		}
	}
}

/* Makes sure of a worker. False if there is none and none can be made now. */
static bool start_worker(struct gr_rcu_queue *q)
{
	uint32_t none = WORKER_NONE;
	pthread_attr_t attr;
	struct gr_signals saved;
	int ret;

	if (gr_load_acquire(&q->state) != WORKER_NONE) {
		return true;
	}
	if (!gr_cas_acq_rel(&q->state, &none, (uint32_t)WORKER_STARTING)) {
		return true;
	}
	gr_signals_block(&saved); /* handlers run on the caller's threads */
	pthread_attr_init(&attr);
	/* Nobody joins the default queue's worker: it lives as long as the process. */
	pthread_attr_setdetachstate(&attr, q->is_default ? PTHREAD_CREATE_DETACHED :
							   PTHREAD_CREATE_JOINABLE);
	ret = pthread_create(&q->thread, &attr, worker, q);
	pthread_attr_destroy(&attr);
	gr_store_release(&q->state, (uint32_t)(ret == 0 ? WORKER_RUNNING : WORKER_NONE));
	gr_signals_restore(&saved);
	if (ret == 0) {
		gr_store_relaxed(&q->no_thread_said, 0u);
	} else if (gr_xchg_acq_rel(&q->no_thread_said, 1u) == 0) {
		gr_log(GR_LOG_WARN, "%s: cannot start the callback thread (%s), will try again",
		       q->name, strerror(ret));
	}
	return ret == 0;
}

void gr_rcu_call(struct gr_rcu_queue *queue, struct gr_rcu_head *head,
		 void (*func)(struct gr_rcu_head *head))
{
	struct gr_rcu_queue *q = queue_or_default(queue);
	struct gr_rcu_head *old = gr_load_relaxed(&q->incoming);

	if (!func) {
		gr_die("gr_rcu_call() without a function");
	}
	head->func = func;
	do {
		if (old == head) {
			gr_die("gr_rcu_call() for a head that is already queued");
		}
		head->next = old;
		/* Release: the head, and all that made the object unreachable. */
	} while (!gr_cas_acq_rel(&q->incoming, &old, head));
	if (!old) {
		(void)start_worker(q);
		wake_worker(q, false);
	} else if (GR_UNLIKELY(gr_load_relaxed(&q->state) == WORKER_NONE)) {
		/* Left by a fork, or by a caller that could not make a thread. It looks by itself. */
		(void)start_worker(q);
	}
}

/* See BARRIER above. */
static uint64_t batch_that_has_it(struct gr_rcu_queue *q)
{
	/* Acquire, in this order. Pairs with the exchange in take_batch(). */
	bool empty = gr_load_acquire(&q->incoming) == NULL;
	uint64_t seq = gr_load_acquire(&q->seq);

	if (empty) {
#ifdef GR_MUTANT_RCU_BARRIER_FORGETS_RUNNING
		return seq & ~1ull;
#else
		return (seq + 1) & ~1ull;
#endif
	}
	return (seq + 3) & ~1ull;
}

static bool batch_done(struct gr_rcu_queue *q, uint64_t target)
{
	return (int64_t)(gr_load_acquire(&q->seq) - target) >= 0;
}

static void wait_for_batch(struct gr_rcu_queue *q, uint64_t target)
{
	while (!batch_done(q, target)) {
		uint32_t seen = gr_load_acquire(&q->done);
		bool have_worker = start_worker(q);
		uint32_t none = WORKER_NONE;

		if (!have_worker && gr_cas_acq_rel(&q->state, &none, (uint32_t)WORKER_BORROWED)) {
			run_batch(q);
			gr_store_release(&q->state, (uint32_t)WORKER_NONE);
			continue;
		}
		if (batch_done(q, target)) {
			return;
		}
		(void)gr_add_acq_rel(&q->done_waiters, 1u);
		gr_fence(); /* the count, before the kernel's look at done */
		(void)gr_futex_wait(&q->done, seen,
				    gr_load_relaxed(&q->state) == WORKER_RUNNING ?
					    GR_FUTEX_FOR_EVER :
					    NO_WORKER_RETRY_NS);
		(void)gr_sub_acq_rel(&q->done_waiters, 1u);
	}
}

void gr_rcu_barrier(struct gr_rcu_queue *queue)
{
	struct gr_rcu_queue *q = queue_or_default(queue);
	struct gr_rcu_reader *qs;
	uint64_t target, want;

	qs = gr_rcu_wait_begin(&gr_rcu_default, "gr_rcu_barrier()");
	if (in_callback_of == q) {
		gr_die("gr_rcu_barrier() in a callback of the same queue would never end");
	}
	gr_fence(); /* calls of other threads that we know of, before the look */
	target = batch_that_has_it(q);
	if (batch_done(q, target)) {
		gr_rcu_wait_end(qs);
		return;
	}
	want = gr_load_relaxed(&q->want);
	while ((int64_t)(target - want) > 0 && !gr_cas_acq_rel(&q->want, &want, target)) {
	}
	wake_worker(q, true);
	wait_for_batch(q, target);
	gr_rcu_wait_end(qs);
}

static int check_params(const struct gr_rcu_queue_params *params, struct gr_error *err)
{
	if (!params) {
		return 0;
	}
	if (params->size != sizeof(*params)) {
		return gr_error_set(err, -EINVAL, "RCU queue: parameters of %zu bytes, not %zu",
				    params->size, sizeof(*params));
	}
	if (!params->lock != !params->unlock) {
		return gr_error_set(err, -EINVAL, "RCU queue: lock and unlock go together");
	}
	return 0;
}

int gr_rcu_queue_create(const struct gr_rcu_queue_params *params, struct gr_rcu_queue **ret_queue,
			struct gr_error *err)
{
	struct gr_rcu_queue *q;
	int ret = check_params(params, err);

	if (ret < 0) {
		return ret;
	}
	q = gr_aligned_alloc(GR_CACHE_LINE, GR_ROUND_UP(sizeof(*q), (size_t)GR_CACHE_LINE));
	if (!q) {
		return gr_error_set(err, -ENOMEM, "RCU queue: no memory");
	}
	memset(q, 0, sizeof(*q));
	gr_mutex_init(&q->lock, GR_RANK_RCU_QUEUE);
	(void)snprintf(q->name, sizeof(q->name), "%s",
		       params && params->name ? params->name : "gr-rcu-queue");
	if (params) {
		q->user_lock = params->lock;
		q->user_unlock = params->unlock;
		q->user_opaque = params->opaque;
	}
	gr_mutex_lock(&queues.lock);
	q->next = queues.first;
	queues.first = q;
	gr_mutex_unlock(&queues.lock);
	*ret_queue = q;
	return 0;
}

static void stop_worker(struct gr_rcu_queue *q)
{
	while (gr_load_acquire(&q->incoming)) {
		gr_rcu_barrier(q); /* callbacks may have queued callbacks */
	}
	if (gr_load_acquire(&q->state) != WORKER_RUNNING) {
		return;
	}
	gr_store_release(&q->stop, 1u);
	wake_worker(q, true);
	pthread_join(q->thread, NULL);
}

void gr_rcu_queue_free(struct gr_rcu_queue *queue)
{
	struct gr_rcu_queue **where = &queues.first;

	if (!queue) {
		return;
	}
	gr_rcu_barrier(queue);
	stop_worker(queue);
	gr_mutex_lock(&queues.lock);
	while (*where != queue) {
		where = &(*where)->next;
	}
	*where = queue->next;
	gr_mutex_unlock(&queues.lock);
	gr_mutex_destroy(&queue->lock);
	gr_aligned_free(queue);
}

void gr_rcu_queues_before_fork(void) GR_NO_TSA
{
	gr_mutex_lock(&queues.lock);
	for (struct gr_rcu_queue *q = queues.first; q; q = q->next) {
		gr_mutex_lock_peer(&q->lock);
	}
}

/* The child has no worker, unless a callback forked: then we are it, and go on. */
static void mend_in_child(struct gr_rcu_queue *q)
{
	struct gr_rcu_head **end = &q->incoming;

	q->done_waiters = 0;
	if (in_callback_of == q) {
		return;
	}
	while (*end) {
		end = &(*end)->next;
	}
	*end = turn_round(q->batch); /* older than all that is incoming: newest first */
	q->batch = NULL;
	q->seq &= ~1ull;
	q->want = q->seq;
	q->sleeping = AWAKE;
	q->state = WORKER_NONE;
}

void gr_rcu_queues_after_fork(bool in_child) GR_NO_TSA
{
	for (struct gr_rcu_queue *q = queues.first; q; q = q->next) {
		if (in_child) {
			mend_in_child(q);
		}
		gr_mutex_unlock(&q->lock);
	}
	gr_mutex_unlock(&queues.lock);
}
