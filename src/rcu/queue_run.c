/* SPDX-License-Identifier: MIT */
/*
 * Running a closed batch. The protocol heads queue.h; F1 and F2 are there.
 *
 * Without a lock of the caller's there is one pass, in order. With one there are two: first all
 * FREE ones, without the lock, each leaving 0 in its entry; then the others, in slices of
 * the lock, by the runner or by who drains. While a thread holds the lock and the batch still
 * has LOCKED callbacks the batch stays what it is: it is finished only with the lock held.
 * A batch that has none does without the lock.
 */
#include "base/clock.h"
#include "base/futex.h"
#include "rcu/checks.h"
#include "rcu/queue.h"
#include "rcu/trace.h"

enum {
	REPORT_EVERY = 64,	 /* callbacks between looks at the limits */
	FETCH_AHEAD = 12,	 /* heads whose objects are on their way to our cache */
	STEP_BACK_NS = 50000,	 /* after GR_RCU_SLICE_NS of holding the caller's lock */
	DOOR_LOOK_NS = 10000000, /* fork has no wake for who came when it had just opened */
};

uint32_t gr_rcu_fork_door;
uint32_t gr_rcu_callbacks_are_qs;

/* ---- one callback -------------------------------------------------------------------------- */

void gr_rcu_wait_at_door(void)
{
	while (gr_load_acquire(&gr_rcu_fork_door) != 0) {
		(void)gr_futex_wait(&gr_rcu_fork_door, 1, DOOR_LOOK_NS);
	}
}

static inline void decided(struct gr_rcu_queue *q)
{
	gr_store_release(&q->deciding, (uintptr_t)0);
}

/*
 * Between these two a callback is noted as begun. False: the door is closed, and the caller's
 * lock is not kept from who forks, whose other handlers may want it.
 */
static inline bool decide(struct gr_rcu_queue *q, const struct gr_rcu_budget *budget)
{
	for (;;) {
		gr_store_relaxed(&q->deciding, gr_rcu_me());
		/* F2: the flag, before the look at the door. Pairs with F1. */
		if (GR_LIKELY(gr_load_relaxed(&gr_rcu_callers_fence_is_light))) {
			gr_barrier();
		} else {
			gr_fence();
		}
#ifndef GR_MUTANT_RCU_FORK_NO_DOOR
		if (GR_UNLIKELY(gr_load_acquire(&gr_rcu_fork_door) != 0)) {
			decided(q);
			if (budget->no_wait) {
				return false;
			}
			gr_rcu_wait_at_door();
			continue;
		}
#endif
		return true;
	}
}

/* What a batch's bytes are is known, not whose they are: they go down with its callbacks. */
static GR_COLD void report_run(struct gr_rcu_queue *q, size_t n)
{
	struct gr_rcu_batch *b = &q->batch;
	size_t bytes;

	n = GR_MIN(n, b->count);
	bytes = n == b->count ? b->bytes
			      : (size_t)((double)b->bytes / (double)b->count * (double)n);
	/* Relaxed: gr_rcu_queue_length() looks at them meanwhile. */
	gr_store_relaxed(&b->count, b->count - n);
	gr_store_relaxed(&b->bytes, b->bytes - bytes);
	q->unreported = 0;
	gr_rcu_queue_report_run(q, n, bytes);
}

static inline void run_one(struct gr_rcu_queue *q, struct gr_rcu_head *head,
			   struct gr_rcu_budget *budget)
{
	void (*func)(struct gr_rcu_head *) = gr_load_relaxed(&head->func);
	uint64_t start_ns = gr_rcu_check_started(head, func);

	budget->ran++;
	if (GR_UNLIKELY(!func)) {
		gr_die("%s: a callback was queued twice, or its memory used again before it ran",
		       q->name);
	}
	gr_store_relaxed(&head->func, NULL);
	GR_TRACE2(rcu_callback_run, head, func);
	if ((uintptr_t)func <= GR_RCU_FREE_OFFSET_MAX + 1) {
		free((char *)head - ((uintptr_t)func - 1));
	} else {
		func(head); /* head may be gone now */
		if (GR_UNLIKELY(gr_rcu_read_ongoing() || q->params.domain) &&
		    (gr_rcu_in_section(NULL) || gr_rcu_in_section(q->params.domain))) {
			gr_die("an RCU callback returned inside a read-side section");
		}
	}
	gr_rcu_check_ran(q->name, func, start_ns);
	if (++q->unreported == REPORT_EVERY) {
		report_run(q, q->unreported);
	}
}

static inline bool is_spent(const struct gr_rcu_budget *b)
{
	return b->ran >= b->left || (b->end_ns != 0 && gr_clock_ns() >= b->end_ns);
}

static bool run_list(struct gr_rcu_queue *q, struct gr_rcu_list *list, struct gr_rcu_budget *budget)
{
	while (list->first) {
		struct gr_rcu_head *head = list->first;

		if (is_spent(budget) || !decide(q, budget)) {
			return false;
		}
		list->first = head->next;
		decided(q);
		run_one(q, head, budget);
	}
	return true;
}

/* ---- rings ------------------------------------------------------------------------------------
 */

/* The ring from r on that has entry i; i is below tail, so its ring is linked. */
static struct gr_rcu_ring *ring_of(struct gr_rcu_ring *r, size_t i)
{
	struct gr_rcu_ring *next;

	while ((next = gr_load_acquire(&r->next)) && (intptr_t)(i - next->first) >= 0) {
		r = next;
	}
	return r;
}

/* Where ring r's entries end, at most at end. */
static size_t end_in_ring(struct gr_rcu_ring *r, size_t end)
{
	struct gr_rcu_ring *next = gr_load_acquire(&r->next);

	return next && (intptr_t)(end - next->first) > 0 ? next->first : end;
}

static inline void fetch(const struct gr_rcu_ring *r, size_t i)
{
	__builtin_prefetch(gr_rcu_entry_head(gr_load_relaxed(&r->entry[i & r->mask])), 1);
}

/* All entries of the shard's ring in the batch, in order; those that are 0 have run. */
static bool run_ring(struct gr_rcu_queue *q, struct gr_rcu_shard *s, struct gr_rcu_budget *budget)
{
	size_t i = s->run, end;

	while (i != s->closed) {
		struct gr_rcu_ring *r = s->get = ring_of(s->get, i);

		for (end = end_in_ring(r, s->closed); i != end; i++) {
			gr_rcu_entry e = gr_load_relaxed(&r->entry[i & r->mask]);

			if (end - i > FETCH_AHEAD) {
				fetch(r, i + FETCH_AHEAD);
			}
			if (e == 0) {
				gr_store_relaxed(&s->run, i + 1);
				continue;
			}
			if (is_spent(budget) || !decide(q, budget)) {
				return false;
			}
			gr_store_relaxed(&s->run, i + 1);
			decided(q);
			run_one(q, gr_rcu_entry_head(e), budget);
		}
	}
	return true;
}

/* The FREE ones among them. */
static bool run_free_of_ring(struct gr_rcu_queue *q, struct gr_rcu_shard *s,
			     struct gr_rcu_budget *budget)
{
	struct gr_rcu_ring *r = s->get;
	size_t i = s->pass, end;

	while (i != s->closed) {
		r = ring_of(r, i);
		for (end = end_in_ring(r, s->closed); i != end; s->pass = ++i) {
			gr_rcu_entry e = gr_load_relaxed(&r->entry[i & r->mask]);

			if ((e & 1) != GR_RCU_FREE) {
				q->has_locked |= e != 0;
				continue;
			}
			if (is_spent(budget) || !decide(q, budget)) {
				return false;
			}
			gr_store_relaxed(&r->entry[i & r->mask], (gr_rcu_entry)0);
			decided(q);
			run_one(q, gr_rcu_entry_head(e), budget);
		}
	}
	return true;
}

static bool run_shard(struct gr_rcu_queue *q, struct gr_rcu_shard *s, struct gr_rcu_budget *budget)
{
	return run_ring(q, s, budget) && run_list(q, &s->closed_over[GR_RCU_LOCKED], budget);
}

static bool run_free_of_shard(struct gr_rcu_queue *q, struct gr_rcu_shard *s,
			      struct gr_rcu_budget *budget)
{
	return run_free_of_ring(q, s, budget) && run_list(q, &s->closed_over[GR_RCU_FREE], budget);
}

static bool run_shards(struct gr_rcu_queue *q, struct gr_rcu_budget *budget,
		       bool (*run)(struct gr_rcu_queue *, struct gr_rcu_shard *,
				   struct gr_rcu_budget *))
{
	for (; q->cursor; q->cursor = q->cursor->next) {
		if (!run(q, q->cursor, budget)) {
			return false;
		}
	}
	return true;
}

/* ---- a batch ----------------------------------------------------------------------------------
 */

bool gr_rcu_queue_run_unlocked(struct gr_rcu_queue *q, struct gr_rcu_budget *budget)
{
	struct gr_rcu_queue *outer = gr_rcu_caller.callback_of;
	bool all;

#ifdef GR_MUTANT_RCU_FREE_TAKES_LOCK
	q->has_locked = true;
	return true;
#endif
	if (!q->params.lock || gr_load_relaxed(&q->unlocked_done) == q->closed) {
		return true;
	}
	gr_rcu_caller.callback_of = q;
	all = run_list(q, &q->batch.list[GR_RCU_FREE], budget) &&
	      run_shards(q, budget, run_free_of_shard);
	gr_rcu_caller.callback_of = outer;
	if (all) {
		q->cursor = gr_load_acquire(&q->shards);
		if (!q->has_locked) {
			return gr_rcu_queue_run_locked(q, budget); /* finishes it, no more */
		}
		/* Release: the cursor and all, for who drains. */
		gr_store_release(&q->unlocked_done, q->closed);
		gr_rcu_queue_announce(q);
	}
	return all;
}

bool gr_rcu_queue_run_locked(struct gr_rcu_queue *q, struct gr_rcu_budget *budget)
{
	struct gr_rcu_queue *outer = gr_rcu_caller.callback_of;
	bool all;

	/* A barrier in a callback may run another queue's callbacks in between. */
	gr_rcu_caller.callback_of = q;
	all = run_list(q, &q->batch.list[GR_RCU_LOCKED], budget) &&
	      run_shards(q, budget, run_shard) && run_list(q, &q->batch.after, budget);
	gr_rcu_caller.callback_of = outer;
	if (all) {
#ifdef GR_MUTANT_RCU_FORK_KEEPS_COUNT
		report_run(q, q->unreported);
#else
		/* All of it: in a fork child one may be lost that a thread of the parent's ran. */
		report_run(q, q->batch.count);
#endif
		all = gr_rcu_queue_finish(q, q->closed, budget->no_wait);
	}
	return all;
}

/* One slice of the caller's lock. Somebody who drains may have been faster. */
static bool run_slice(struct gr_rcu_queue *q, uint32_t batch, bool take,
		      struct gr_rcu_budget *budget)
{
	struct gr_rcu_budget slice = { .no_wait = true };
	uint64_t start, held;
	bool done;

	if (take) {
		q->params.lock(q->params.opaque);
	}
	start = gr_clock_ns();
#ifdef GR_MUTANT_RCU_ONE_SLICE
	slice.left = SIZE_MAX;
#else
	slice.left = GR_MIN(budget->left - budget->ran, (size_t)GR_RCU_SLICE_CALLBACKS);
	slice.end_ns = start + GR_RCU_SLICE_NS;
#endif
	if (budget->end_ns != 0) {
		slice.end_ns = GR_MIN(slice.end_ns, budget->end_ns);
	}
	done = !gr_rcu_is_running(q, batch) || gr_rcu_queue_run_locked(q, &slice);
	held = gr_clock_ns() - start;
	if (take) {
		q->params.unlock(q->params.opaque);
	}
	budget->ran += slice.ran;
	q->held_ns += held;
	gr_rcu_raise(&q->stats.slice_ns_max, held);
	return done;
}

static bool run_slices(struct gr_rcu_queue *q, struct gr_rcu_budget *budget)
{
	bool take = !q->params.is_locked || !q->params.is_locked(q->params.opaque);
	uint32_t batch = q->closed;

	while (!run_slice(q, batch, take, budget)) {
		if (is_spent(budget)) {
			return false;
		}
		if (GR_UNLIKELY(gr_load_acquire(&gr_rcu_fork_door) != 0)) {
			if (budget->no_wait) {
				return false;
			}
			gr_rcu_wait_at_door();
		}
		gr_cpu_relax(); /* or it had all run, and q->lock was not free */
		/*
		 * A mutex that is released and taken again at once is usually not passed on: step
		 * back for a moment.
		 */
		if (q->held_ns >= GR_RCU_SLICE_NS) {
			struct timespec ts = gr_timespec_from_ns(STEP_BACK_NS);

			q->held_ns = 0;
			(void)nanosleep(&ts, NULL);
		}
	}
	return true;
}

/* As the worker of liburcu's qsbr, a registered thread; but of many callbacks it says where they end. */
static bool run_online(struct gr_rcu_queue *q, struct gr_rcu_budget *budget)
{
	bool registers = !gr_rcu_self.is_qs, all;

	if (registers) {
		gr_rcu_qs_register_thread();
	} else {
		gr_rcu_thread_online();
	}
	for (;;) {
		struct gr_rcu_budget slice = {
			.left = GR_MIN(budget->left - budget->ran, (size_t)GR_RCU_SLICE_CALLBACKS),
			.end_ns = budget->end_ns,
			.no_wait = budget->no_wait,
		};

		all = gr_rcu_queue_run_locked(q, &slice);
		budget->ran += slice.ran;
		if (all || is_spent(budget) || slice.ran < slice.left) { /* fork's door */
			break;
		}
#ifndef GR_MUTANT_URCU_WORKER_SAYS_NOTHING
		gr_rcu_quiescent_state(); /* between callbacks: none may end inside a section */
#endif
	}
	if (registers) {
		gr_rcu_qs_unregister_thread();
	} else {
		gr_rcu_thread_offline();
	}
	return all;
}

/* Who is online already stays so. The flag was set before the calls that it is for. */
static bool shall_be_online(void)
{
#ifdef GR_MUTANT_URCU_CALLBACKS_OFFLINE
	return false;
#endif
	return gr_load_relaxed(&gr_rcu_callbacks_are_qs) != 0 && !gr_rcu_read_ongoing() &&
	       !gr_rcu_self.late;
}

bool gr_rcu_queue_run(struct gr_rcu_queue *q, struct gr_rcu_budget *budget)
{
	if (!q->params.lock) {
		return shall_be_online() ? run_online(q, budget) : gr_rcu_queue_run_locked(q, budget);
	}
	if (!gr_rcu_queue_run_unlocked(q, budget)) {
		return false;
	}
	return !q->has_locked || run_slices(q, budget);
}

bool gr_rcu_queue_begin_running(struct gr_rcu_queue *q)
{
	uintptr_t nobody = 0;

	return gr_cas_acq_rel(&q->runner, &nobody, gr_rcu_me());
}

void gr_rcu_queue_end_running(struct gr_rcu_queue *q)
{
	gr_store_release(&q->runner, (uintptr_t)0);
	gr_rcu_queue_announce(q); /* somebody who waits may run in our place */
}
