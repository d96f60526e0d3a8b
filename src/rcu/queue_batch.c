/* SPDX-License-Identifier: MIT */
/*
 * Batches: callbacks on their way through a grace period. The protocol heads queue.h; B1 and
 * B2 are there. All but the announcements happens under q->lock, which is short: it is
 * never held while anything is called or waited for.
 */
#include "base/futex.h"
#include "base/hook.h"
#include "base/memory.h"
#include "rcu/queue.h"
#include <string.h>

static struct gr_rcu_head *untag(const struct gr_rcu_head *next)
{
	return gr_rcu_entry_head((uintptr_t)next);
}

void gr_rcu_list_append(struct gr_rcu_list *list, struct gr_rcu_head *head)
{
	head->next = NULL;
	if (list->first) {
		list->last->next = head;
	} else {
		list->first = head;
	}
	list->last = head;
}

static void join_lists(struct gr_rcu_list *to, const struct gr_rcu_list *more)
{
	if (!more->first) {
		return;
	}
	if (to->first) {
		to->last->next = more->first;
		to->last = more->last;
	} else {
		*to = *more;
	}
}

bool gr_rcu_queue_untaken(struct gr_rcu_queue *q)
{
	if (gr_load_acquire(&q->incoming)) {
		return true;
	}
	for (struct gr_rcu_shard *s = q->shards; s; s = s->next) {
		if (gr_load_acquire(&s->tail) != s->open || gr_load_acquire(&s->over)) {
			return true;
		}
	}
	return false;
}

bool gr_rcu_queue_has_callbacks(struct gr_rcu_queue *q)
{
	struct gr_signals saved;
	bool any;

	gr_signals_block(&saved);
	gr_mutex_lock(&q->lock);
	any = q->opened != q->finished || gr_rcu_queue_untaken(q);
	gr_mutex_unlock(&q->lock);
	gr_signals_restore(&saved);
	return any;
}

/* What was a stack, turned round and sorted behind what the lists have. Returns how many. */
static size_t sort_stack(struct gr_rcu_queue *q, struct gr_rcu_head *head,
			 struct gr_rcu_list *lists)
{
	struct gr_rcu_list chain[GR_RCU_CLASSES] = { { NULL, NULL }, { NULL, NULL } };
	size_t most = gr_load_relaxed(&q->pushed) - q->taken, n = 0;

	while (head) {
		struct gr_rcu_head *next = untag(head->next);
		/* Without a lock there is one class, and one order. */
		unsigned class = q->params.lock ? (uintptr_t)head->next & 1 : GR_RCU_LOCKED;

		if (n++ == most) {
			gr_die("%s: more callbacks than calls: a head was queued twice", q->name);
		}
		if (!chain[class].first) {
			chain[class].last = head;
		}
		head->next = chain[class].first;
		chain[class].first = head;
		head = next;
	}
	q->taken += n;
	for (int c = 0; c < GR_RCU_CLASSES; c++) {
		join_lists(&lists[c], &chain[c]);
	}
	return n;
}

static bool has_open_over(const struct gr_rcu_shard *s)
{
	return s->open_over[GR_RCU_LOCKED].first || s->open_over[GR_RCU_FREE].first;
}

/* Acquire: the heads, over_at and the entries below it. Pairs with S2. */
static struct gr_rcu_head *detach(struct gr_rcu_head **stack)
{
	return gr_xchg_acq_rel(stack, (struct gr_rcu_head *)NULL);
}

/*
 * Bytes are counted before their call can be seen, and read at once after the calls are: no call's
 * are left behind, where a queue that is empty would be over its limit; and those of calls that
 * come just now are all that a batch may have too many of.
 */
static void take_bytes(struct gr_rcu_batch *b, const size_t *counted, size_t *taken)
{
	size_t bytes = gr_load_relaxed(counted);

	b->bytes += bytes - *taken;
	*taken = bytes;
}

/* Up to tail; what is over comes after it. */
static size_t take_shard(struct gr_rcu_queue *q, struct gr_rcu_shard *s, size_t tail,
			 struct gr_rcu_batch *b, bool *ret_all)
{
	struct gr_rcu_head *over = NULL;
	size_t n;

	if (has_open_over(s)) {
		*ret_all = false; /* ORDER */
		return 0;
	}
	if (GR_UNLIKELY(gr_load_acquire(&s->over) != NULL)) {
		tail = gr_load_relaxed(&s->over_at);
		over = detach(&s->over);
	}
	take_bytes(b, &s->bytes, &s->open_bytes);
	n = tail - s->open;
	s->open = tail;
	return n + sort_stack(q, over, s->open_over);
}

static size_t take_shards_and_incoming(struct gr_rcu_queue *q, struct gr_rcu_batch *b,
				       bool *ret_all)
{
	struct gr_rcu_head *incoming;
	size_t n = 0;

	for (struct gr_rcu_shard *s = q->shards; s; s = s->next) {
		n += take_shard(q, s, gr_load_acquire(&s->tail), b, ret_all); /* pairs with S1 */
	}
	incoming = detach(&q->incoming); /* after the tails: see ORDER */
#ifdef GR_MUTANT_RCU_BYTES_AFTER_WALK
	GR_HOOK("take: detached");
	n += sort_stack(q, incoming, b->list);
	take_bytes(b, &q->pushed_bytes, &q->taken_bytes);
	return n;
#endif
	take_bytes(b, &q->pushed_bytes, &q->taken_bytes);
	GR_HOOK("take: detached");
	return n + sort_stack(q, incoming, b->list);
}

void gr_rcu_queue_open(struct gr_rcu_queue *q, uint64_t cookie)
{
	if (q->opened == q->closed) {
		q->opened++;
		q->open_batch.after = q->after_next;
		q->after_next = (struct gr_rcu_list){ NULL, NULL };
	}
	q->open_batch.cookie = cookie;
}

bool gr_rcu_queue_take(struct gr_rcu_queue *q)
{
	struct gr_rcu_batch *b = &q->open_batch;
	bool joins = q->opened != q->closed, all = true;
	size_t n;

#ifndef GR_MUTANT_RCU_TAKE_JOINS_LATE
	if (joins && gr_rcu_domain_get_state(q->params.domain) != b->cookie) {
		return false;
	}
	joins = false;
#endif
	GR_HOOK("take: may join");
	n = take_shards_and_incoming(q, b, &all);
	b->count += n;
	if (n != 0 && !joins) {
		/* B1: a full fence, then the sequence. */
		gr_rcu_queue_open(q, gr_rcu_domain_get_state(q->params.domain));
	}
	return all;
}

void gr_rcu_queue_close(struct gr_rcu_queue *q)
{
	GR_ASSERT(q->opened != q->closed && q->closed == q->finished);
	q->batch = q->open_batch;
	q->open_batch = (struct gr_rcu_batch){ .count = 0 };
	q->has_locked = q->batch.list[GR_RCU_LOCKED].first || q->batch.after.first;
	for (struct gr_rcu_shard *s = q->shards; s; s = s->next) {
		s->closed = s->open;
		s->pass = s->run;
		memcpy(s->closed_over, s->open_over, sizeof(s->open_over));
		memset(s->open_over, 0, sizeof(s->open_over));
		q->has_locked |= s->closed_over[GR_RCU_LOCKED].first != NULL;
	}
	q->cursor = q->shards;
	gr_store_release(&q->closed, q->opened);
}

/* The rings that the runner has left behind, and the slots of the one where it is. */
static void give_slots_back(struct gr_rcu_shard *s)
{
	struct gr_rcu_ring *r = s->oldest;

	while (r != s->get) {
		struct gr_rcu_ring *next = gr_load_relaxed(&r->next);

		if (r->bytes != 0) {
			gr_pages_free(r, r->bytes);
		}
		r = next;
	}
	s->oldest = s->get;
	gr_store_release(&s->head, s->closed); /* B2 */
}

static bool is_abandoned(struct gr_rcu_shard *s)
{
	return s->orphan && gr_load_relaxed(&s->tail) == s->closed && !gr_load_relaxed(&s->over) &&
	       !has_open_over(s);
}

bool gr_rcu_queue_finish(struct gr_rcu_queue *q, uint32_t batch, bool no_wait)
{
	struct gr_rcu_shard **where = &q->shards, *s;
	struct gr_signals saved;

	gr_signals_block(&saved);
	if (!no_wait) {
		gr_mutex_lock(&q->lock);
	} else if (!gr_mutex_trylock(&q->lock)) {
		gr_signals_restore(&saved);
		return false;
	}
	if (q->closed != batch || q->finished == batch) {
		gr_mutex_unlock(&q->lock);
		gr_signals_restore(&saved);
		return true; /* somebody else did */
	}
	while ((s = *where)) {
		give_slots_back(s);
		if (is_abandoned(s)) {
			gr_store_relaxed(where, s->next);
			gr_rcu_shard_free(s);
		} else {
			where = &s->next;
		}
	}
	gr_add_relaxed(&q->stats.batches, (uint64_t)1);
	/* Release: what the callbacks did, for barriers. Pairs with gr_rcu_is_running(). */
	gr_store_release(&q->finished, batch);
	gr_mutex_unlock(&q->lock);
	gr_signals_restore(&saved);
	gr_rcu_queue_announce(q);
	return true;
}

void gr_rcu_queue_announce(struct gr_rcu_queue *q)
{
	(void)gr_add_acq_rel(&q->done, 1u);
	gr_fence(); /* the bump, before the look. Pairs with the fence in queue_barrier.c. */
	if (gr_load_relaxed(&q->done_waiters) != 0) {
		gr_futex_wake(&q->done, GR_FUTEX_ALL);
	}
}
