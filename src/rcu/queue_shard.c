/* SPDX-License-Identifier: MIT */
/*
 * Producers: gr_rcu_call() and the shards it fills. The protocol heads queue.h; S1 to S3
 * and B2 are there.
 *
 * A shard belongs to one thread, so its producer side needs no atomic read-modify-write; but
 * the thread's signal handlers call too. `busy` is set for as long as the ring and its tail
 * may disagree: a handler that finds it set does without the shard. Everything that changes
 * which shards there are runs with signals blocked; a handler may walk the thread's list at any
 * time.
 */
#include "base/heavy_fence.h"
#include "base/hook.h"
#include "base/memory.h"
#include "base/thread_exit.h"
#include "rcu/checks.h"
#include "rcu/queue.h"
#include <guestram/event.h>
#include <string.h>

enum {
	SHARD_BYTES = 4096,
	RING_BYTES_FIRST = 1 << 14, /* of a ring outside the shard... */
	RING_BYTES_MAX = 1 << 17,   /* ...twice that of the one before, up to this */
	CALLS_BEFORE_SHARD = 32,    /* a thread that calls less often is not worth a page */
};

#ifndef _WIN32
__thread struct gr_rcu_calls gr_rcu_caller;
#endif

static struct gr_once init_once = GR_ONCE_INIT;
static struct gr_thread_exit exit_hook;
static bool have_exit_hook; /* (c) after the once */
bool gr_rcu_callers_fence_is_light;

/* ---- a shard's life ---------------------------------------------------------------------- */

static void free_rings(struct gr_rcu_shard *s)
{
	struct gr_rcu_ring *r = s->oldest;

	while (r) {
		struct gr_rcu_ring *next = gr_load_relaxed(&r->next);

		if (r->bytes != 0) {
			gr_pages_free(r, r->bytes);
		}
		r = next;
	}
}

void gr_rcu_shard_free(struct gr_rcu_shard *s)
{
	free_rings(s);
	gr_pages_free(s, SHARD_BYTES);
}

static size_t power_of_two_below(size_t n)
{
	size_t p = 1;

	while (p * 2 <= n) {
		p *= 2;
	}
	return p;
}

static size_t ring_entries(size_t bytes)
{
	return power_of_two_below((bytes - sizeof(struct gr_rcu_ring)) / sizeof(gr_rcu_entry));
}

/* Empty, for queue q. Not yet known to it. */
static void reset_shard(struct gr_rcu_shard *s)
{
	if (s->oldest) {
		free_rings(s); /* it had another queue before */
	}
	s->ring0.next = NULL;
	s->ring0.first = 0;
	s->ring0.mask = ring_entries(SHARD_BYTES - offsetof(struct gr_rcu_shard, ring0)) - 1;
	s->put = s->get = s->oldest = &s->ring0;
	s->tail = s->bytes = s->reported = s->reported_bytes = 0;
	s->over = NULL;
	memset(s->open_over, 0, sizeof(s->open_over));
	memset(s->closed_over, 0, sizeof(s->closed_over));
	s->head = s->run = s->pass = s->closed = s->open = s->open_bytes = 0;
	s->full_at = s->ring0.mask + 1;
	s->orphan = false;
}

/* The thread ends: its shards are the queues' to free, once they are empty. */
static void leave_at_exit(void *arg)
{
	struct gr_rcu_calls *me = &gr_rcu_caller;
	struct gr_signals saved;
	struct gr_rcu_shard *s, *next;

	(void)arg;
	gr_signals_block(&saved);
	gr_mutex_lock(&gr_rcu_queues.lock);
	for (s = me->shards; s; s = next) {
		struct gr_rcu_queue *q = gr_load_relaxed(&s->queue);

		next = s->next_of_thread;
		if (!q) {
			gr_rcu_shard_free(s);
			continue;
		}
		gr_add_relaxed(&q->count, (int64_t)(s->tail - s->reported));
		gr_add_relaxed(&q->bytes, (int64_t)(s->bytes - s->reported_bytes));
		gr_mutex_lock(&q->lock);
		s->orphan = true; /* the lock: what we put is visible to who frees it */
		gr_mutex_unlock(&q->lock);
	}
	gr_mutex_unlock(&gr_rcu_queues.lock);
	me->last = me->shards = NULL;
	me->late = true;
	gr_signals_restore(&saved);
}

static void init(void)
{
	have_exit_hook = gr_thread_exit_init(&exit_hook, leave_at_exit) == 0;
}

/* Early: the first keys need no memory when they are set. */
__attribute__((constructor)) static void init_early(void)
{
	gr_once(&init_once, init);
	gr_store_relaxed(&gr_rcu_callers_fence_is_light, gr_heavy_fence_available());
}

/* A shard of this thread that has no queue any more, or a new one. Signals are blocked. */
static struct gr_rcu_shard *unused_shard(struct gr_rcu_calls *me)
{
	struct gr_rcu_shard *s = me->shards;

	while (s && gr_load_acquire(&s->queue)) { /* pairs with gr_rcu_queue_free() */
		s = s->next_of_thread;
	}
	if (!s && gr_thread_exit_set(&exit_hook, me) == 0) {
		s = gr_pages_alloc(SHARD_BYTES);
		if (s) {
			s->next_of_thread = me->shards;
			me->shards = s;
		}
	}
	return s;
}

static struct gr_rcu_shard *shard_of(struct gr_rcu_queue *q)
{
	struct gr_rcu_shard *s = gr_rcu_caller.shards;

	while (s && gr_load_relaxed(&s->queue) != q) {
		s = s->next_of_thread;
	}
	return s;
}

static void link_shard(struct gr_rcu_queue *q, struct gr_rcu_shard *s) GR_REQUIRES(q->lock)
{
	reset_shard(s);
	s->next = q->shards;
	gr_store_release(&s->queue, q);
	gr_store_release(&q->shards, s); /* the runner reads it without the lock */
}

/* NULL is no error: incoming does. Never waits, because a handler may be here. */
static GR_COLD struct gr_rcu_shard *make_shard(struct gr_rcu_queue *q)
{
	struct gr_rcu_calls *me = &gr_rcu_caller;
	struct gr_rcu_shard *s = NULL;
	struct gr_signals saved;

	if (me->calls < CALLS_BEFORE_SHARD) {
		me->calls++;
		return NULL;
	}
	gr_once(&init_once, init);
	if (me->late || !have_exit_hook) {
		return NULL;
	}
	gr_signals_block(&saved);
	s = shard_of(q);			/* a handler may have come before us */
	if (!s && gr_mutex_trylock(&q->lock)) { /* taken: then the next time */
		s = unused_shard(me);
		if (s) {
			link_shard(q, s);
		}
		gr_mutex_unlock(&q->lock);
	}
	gr_signals_restore(&saved);
	return s;
}

static struct gr_rcu_shard *find_shard(struct gr_rcu_queue *q)
{
	struct gr_rcu_shard *s = shard_of(q);

	if (!s) {
		return make_shard(q);
	}
	gr_rcu_caller.last = s;
	return s;
}

/* ---- calls ---------------------------------------------------------------------------------- */

/* The ring is full as far as we know. False: it is, and there is no memory for another. */
static GR_COLD bool make_room(struct gr_rcu_shard *s, size_t tail)
{
	struct gr_rcu_ring *old = s->put, *new;
	/* Acquire: the runner is done with the slots below. Pairs with B2. */
	size_t from = gr_load_acquire(&s->head);
	size_t bytes;

	if ((intptr_t)(from - old->first) < 0) {
		from = old->first;
	}
	s->full_at = from + old->mask + 1;
	if (tail != s->full_at) {
		return true;
	}
	bytes = old->bytes ? old->bytes * 2 : (size_t)RING_BYTES_FIRST;
	bytes = GR_MIN(bytes, (size_t)RING_BYTES_MAX);
	new = gr_pages_alloc(bytes);
	if (!new) {
		return false;
	}
	new->first = tail;
	new->mask = ring_entries(bytes) - 1;
	new->bytes = bytes;
	s->full_at = tail + new->mask + 1;
	/* In this order: fork() cuts what follows `put` (see FORK). Release: the ring's header. */
	gr_store_release(&s->put, new);
	gr_store_release(&old->next, new);
	return true;
}

static GR_COLD void check_previous(struct gr_rcu_shard *s, size_t tail)
{
	if ((intptr_t)(tail - 1 - gr_load_relaxed(&s->run)) >= 0) {
		gr_die("gr_rcu_call() for a head that is already queued");
	}
}

static void push(struct gr_rcu_head **stack, struct gr_rcu_head *head, enum gr_rcu_class class)
{
	struct gr_rcu_head *old = gr_load_relaxed(stack);

	do {
		if (old == head) {
			gr_die("gr_rcu_call() for a head that is already queued");
		}
		head->next = (struct gr_rcu_head *)((uintptr_t)old | class);
	} while (!gr_cas_acq_rel(stack, &old, head)); /* S2 */
}

/* No room in the ring, or some are over already. Nobody else pushes here, but it may be taken. */
static GR_COLD void push_over(struct gr_rcu_queue *q, struct gr_rcu_shard *s, gr_rcu_entry e)
{
	struct gr_rcu_head *head = gr_rcu_entry_head(e), *old = gr_load_acquire(&s->over);

	/* Before the push: who takes a stack knows how many it holds at most. */
	gr_add_relaxed(&q->pushed, (size_t)1);
	s->reported--; /* tail does not count it */
	do {
		if (!old) {
			gr_store_relaxed(&s->over_at, s->tail);
		} else if (old == head) {
			gr_die("gr_rcu_call() for a head that is already queued");
		}
		head->next = (struct gr_rcu_head *)((uintptr_t)old | (e & 1));
	} while (!gr_cas_acq_rel(&s->over, &old, head)); /* S2 */
}

/* The shard is busy: with us. */
static inline void put(struct gr_rcu_queue *q, struct gr_rcu_shard *s, gr_rcu_entry e)
{
	size_t tail = gr_load_relaxed(&s->tail);
	struct gr_rcu_ring *r;

	/* Acquire: ORDER, over has been taken. */
	if (
#ifndef GR_MUTANT_RCU_RING_WHILE_OVER
		GR_UNLIKELY(gr_load_acquire(&s->over) != NULL) ||
#endif
		(GR_UNLIKELY(tail == s->full_at) && !make_room(s, tail))) {
		push_over(q, s, e);
		return;
	}
	r = s->put;
	if (GR_UNLIKELY(gr_load_relaxed(&r->entry[(tail - 1) & r->mask]) == e) &&
	    tail != r->first) {
		check_previous(s, tail);
	}
	gr_store_relaxed(&r->entry[tail & r->mask], e);
	gr_store_release(&s->tail, tail + 1); /* S1 */
}

/* How many calls, and bytes, the queue's count must be told of; none most of the time. */
static inline size_t due(struct gr_rcu_queue *q, struct gr_rcu_shard *s, size_t *ret_bytes)
{
	size_t n = gr_load_relaxed(&s->tail) - s->reported;

	*ret_bytes = gr_load_relaxed(&s->bytes) - s->reported_bytes;
	if (GR_LIKELY(n < q->grain && *ret_bytes < q->grain_bytes)) {
		return 0;
	}
	s->reported += n;
	s->reported_bytes += *ret_bytes;
	return n;
}

/* A handler is in the middle of its thread's call. */
static inline bool is_busy(const struct gr_rcu_shard *s)
{
#ifdef GR_MUTANT_RCU_HANDLER_IGNORES_BUSY
	(void)s;
	return false;
#else
	return gr_load_relaxed(&s->busy) != 0;
#endif
}

static inline size_t call_in_shard(struct gr_rcu_queue *q, struct gr_rcu_shard *s, gr_rcu_entry e,
				   size_t bytes, size_t *ret_bytes)
{
	size_t n;

	gr_store_relaxed(&s->busy, 1u);
	gr_barrier();
#ifdef GR_MUTANT_RCU_BYTES_AFTER_CALL
	put(q, s, e);
	GR_HOOK("call: put");
#endif
	if (bytes != 0) { /* S1, S2: before the call can be seen (see take_bytes()) */
		gr_store_relaxed(&s->bytes, gr_load_relaxed(&s->bytes) + bytes);
	}
#ifndef GR_MUTANT_RCU_BYTES_AFTER_CALL
	put(q, s, e);
	GR_HOOK("call: put");
#endif
	n = due(q, s, ret_bytes);
	gr_barrier();
	gr_store_relaxed(&s->busy, 0u);
	return n;
}

static GR_COLD size_t call_without_shard(struct gr_rcu_queue *q, struct gr_rcu_head *head,
					 enum gr_rcu_class class, size_t bytes)
{
	gr_add_relaxed(&q->pushed, (size_t)1); /* as in push_over() */
	gr_add_relaxed(&q->pushed_bytes, bytes);
	push(&q->incoming, head, class);
	return 1;
}

static inline void call(struct gr_rcu_queue *q, struct gr_rcu_head *head,
			void (*func)(struct gr_rcu_head *head), enum gr_rcu_class class,
			size_t bytes)
{
	struct gr_rcu_shard *s = gr_rcu_caller.last;
	size_t n;

	gr_rcu_check_queued(head, func, __builtin_return_address(0));
	gr_store_relaxed(&head->func, func);
	if (GR_UNLIKELY(!s || gr_load_relaxed(&s->queue) != q)) {
		s = find_shard(q);
	}
	if (GR_LIKELY(s != NULL && !is_busy(s))) {
		n = call_in_shard(q, s, (uintptr_t)head | class, bytes, &bytes);
	} else {
		n = call_without_shard(q, head, class, bytes);
	}
	/* S3: the entry, before the look at sleeping. Pairs with W1 and W2. */
	if (GR_LIKELY(gr_load_relaxed(&gr_rcu_callers_fence_is_light) && !q->full_fence)) {
		gr_barrier();
	} else {
		gr_fence();
	}
	if (GR_UNLIKELY(gr_load_relaxed(&q->sleeping) > GR_RCU_PACING)) {
		gr_rcu_queue_wake(q, false);
	}
	if (GR_UNLIKELY(n != 0)) {
		gr_rcu_queue_report(q, n, bytes);
	}
}

static void check_func(void (*func)(struct gr_rcu_head *head))
{
	if (GR_UNLIKELY((uintptr_t)func <= GR_RCU_FREE_OFFSET_MAX + 1)) {
		gr_die("gr_rcu_call() without a function");
	}
}

void gr_rcu_call(struct gr_rcu_queue *queue, struct gr_rcu_head *head,
		 void (*func)(struct gr_rcu_head *head))
{
	check_func(func);
	call(gr_rcu_queue_or_default(queue), head, func, GR_RCU_LOCKED, 0);
}

void gr_rcu_call_nolock(struct gr_rcu_queue *queue, struct gr_rcu_head *head,
			void (*func)(struct gr_rcu_head *head))
{
	check_func(func);
	call(gr_rcu_queue_or_default(queue), head, func, GR_RCU_FREE, 0);
}

void gr_rcu_call_sized(struct gr_rcu_queue *queue, struct gr_rcu_head *head,
		       void (*func)(struct gr_rcu_head *head), size_t bytes)
{
	check_func(func);
	call(gr_rcu_queue_or_default(queue), head, func, GR_RCU_LOCKED, bytes);
}

/* The function's place says what to free: 1 + offset. No function is in the first page. */
void gr_rcu_free_at(struct gr_rcu_head *head, size_t offset)
{
	if (offset > GR_RCU_FREE_OFFSET_MAX) {
		gr_die("gr_rcu_free(): the head is %zu bytes into its object", offset);
	}
	call(gr_rcu_queue_or_default(NULL), head,
	     (void (*)(struct gr_rcu_head *))(uintptr_t)(offset + 1), GR_RCU_FREE, 0);
}
