/* SPDX-License-Identifier: MIT */
/*
 * Producers: gr_rcu_call() and the shards it fills. The protocol heads queue.h; S1 to S4
 * and B2 are there.
 *
 * A shard belongs to one thread, so its producer side needs no atomic read-modify-write; but
 * the thread's signal handlers call too. `busy` is set for as long as the ring and its tail
 * may disagree: a handler that finds it set uses the stack. Everything that changes which shards
 * there are runs with signals blocked; a handler may walk the thread's list at any time.
 */
#include "base/heavy_fence.h"
#include "base/memory.h"
#include "base/thread_exit.h"
#include "rcu/queue.h"
#include <guestram/event.h>

enum {
	SHARD_BYTES = 4096,
	RING_BYTES_FIRST = 1 << 14, /* of a ring outside the shard... */
	RING_BYTES_MAX = 1 << 17,   /* ...twice that of the one before, up to this */
	CALLS_BEFORE_SHARD = 32,    /* a thread that calls less often is not worth a page */
};

__thread struct gr_rcu_caller gr_rcu_caller;

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
	s->head = s->run = s->pass = s->closed = s->open = s->open_bytes = 0;
	s->full_at = s->ring0.mask + 1;
	s->orphan = false;
}

/* The thread ends: its shards are the queues' to free, once they are empty. */
static void leave_at_exit(void *arg)
{
	struct gr_rcu_caller *me = &gr_rcu_caller;
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
static struct gr_rcu_shard *unused_shard(struct gr_rcu_caller *me)
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

/* NULL is no error: the stack does. Never waits, because a handler may be here. */
static GR_COLD struct gr_rcu_shard *make_shard(struct gr_rcu_queue *q)
{
	struct gr_rcu_caller *me = &gr_rcu_caller;
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
	if (gr_mutex_trylock(&q->lock)) { /* or a handler of whom holds it: then the next time */
		s = unused_shard(me);
		if (s) {
			reset_shard(s);
			s->next = q->shards;
			/* ORDER: what we called before is on the stack. S3 of those calls is done.
			 */
			s->shared_until = gr_load_relaxed(&q->closed) + 2;
			gr_store_release(&s->queue, q);
			gr_store_release(&q->shards,
					 s); /* for the runner, which reads without lock */
		}
		gr_mutex_unlock(&q->lock);
	}
	gr_signals_restore(&saved);
	return s;
}

static struct gr_rcu_shard *find_shard(struct gr_rcu_queue *q)
{
	for (struct gr_rcu_shard *s = gr_rcu_caller.shards; s; s = s->next_of_thread) {
		if (gr_load_relaxed(&s->queue) == q) {
			gr_rcu_caller.last = s;
			return s;
		}
	}
	return make_shard(q);
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

/* What the queue's count must be told of. */
struct due {
	size_t n, bytes;
};

/* False: use the stack. */
static inline bool put(struct gr_rcu_queue *q, struct gr_rcu_shard *s, gr_rcu_entry e,
		       struct due *due)
{
	size_t tail, bytes = due->bytes;
	bool ok = false;

	if (GR_UNLIKELY(gr_load_relaxed(&s->busy))) {
		return false; /* we are a handler, in the middle of this thread's call */
	}
	gr_store_relaxed(&s->busy, 1u);
	gr_barrier();
	tail = gr_load_relaxed(&s->tail);
	/* Acquire: ORDER, what follows the close is later than its take. */
	if (GR_LIKELY((int32_t)(gr_load_acquire(&q->closed) - s->shared_until) >= 0) &&
	    (GR_LIKELY(tail != s->full_at) || make_room(s, tail))) {
		struct gr_rcu_ring *r = s->put;

		if (GR_UNLIKELY(gr_load_relaxed(&r->entry[(tail - 1) & r->mask]) == e) &&
		    tail != r->first) {
			check_previous(s, tail);
		}
		gr_store_relaxed(&r->entry[tail & r->mask], e);
		if (bytes != 0) {
			bytes += gr_load_relaxed(&s->bytes);
			gr_store_relaxed(&s->bytes, bytes);
		}
		gr_store_release(&s->tail, tail + 1); /* S1 */
		due->n = tail + 1 - s->reported;
		due->bytes = gr_load_relaxed(&s->bytes) - s->reported_bytes;
		if (GR_LIKELY(due->n < q->grain && due->bytes < q->grain_bytes)) {
			due->n = 0;
		} else {
			s->reported += due->n;
			s->reported_bytes += due->bytes;
		}
		ok = true;
	}
	gr_barrier();
	gr_store_relaxed(&s->busy, 0u);
	return ok;
}

static GR_COLD void push(struct gr_rcu_queue *q, struct gr_rcu_head *head, enum gr_rcu_class class,
			 size_t bytes)
{
	struct gr_rcu_head *old = gr_load_relaxed(&q->incoming);

	/* Before the push: who takes the stack knows how many it holds at most. */
	gr_add_relaxed(&q->pushed, (size_t)1);
	gr_add_relaxed(&q->pushed_bytes, bytes);
	do {
		if (old == head) {
			gr_die("gr_rcu_call() for a head that is already queued");
		}
		head->next = (struct gr_rcu_head *)((uintptr_t)old | class);
	} while (!gr_cas_acq_rel(&q->incoming, &old, head)); /* S2 */
}

/* ORDER. Again if a handler came between: it may have pushed after a later close. */
static void use_stack_for_a_while(struct gr_rcu_queue *q, struct gr_rcu_shard *s)
{
	uint32_t seen;

	do {
		seen = gr_load_acquire(&q->closed);
		gr_store_relaxed(&s->shared_until, seen + 2);
		gr_barrier();
	} while (gr_load_relaxed(&q->closed) != seen);
}

static inline void call(struct gr_rcu_queue *q, struct gr_rcu_head *head,
			void (*func)(struct gr_rcu_head *head), enum gr_rcu_class class,
			size_t bytes)
{
	struct gr_rcu_shard *s = gr_rcu_caller.last;
	struct due due = { 1, bytes };
	bool in_ring;

	gr_rcu_check_queued(head);
	gr_store_relaxed(&head->func, func);
	if (GR_UNLIKELY(!s || gr_load_relaxed(&s->queue) != q)) {
		s = find_shard(q);
	}
	in_ring = GR_LIKELY(s != NULL) && put(q, s, (uintptr_t)head | class, &due);
	if (GR_UNLIKELY(!in_ring)) {
		push(q, head, class, bytes);
		gr_fence(); /* S4: the push, before the look at closed. Pairs with O1. */
		if (s) {
			use_stack_for_a_while(q, s);
		}
	}
	/* S3: the entry, before the look at sleeping. Pairs with W1 and W2. */
	if (GR_LIKELY(gr_load_relaxed(&gr_rcu_callers_fence_is_light))) {
		gr_barrier();
	} else {
		gr_fence();
	}
	if (GR_UNLIKELY(gr_load_relaxed(&q->sleeping) > GR_RCU_PACING)) {
		gr_rcu_queue_wake(q, false);
	}
	if (GR_UNLIKELY(due.n != 0)) {
		gr_rcu_queue_report(q, due.n, due.bytes);
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
