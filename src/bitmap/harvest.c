/* SPDX-License-Identifier: MIT */
/*
 * The harvester: takes the live bits out, top-down, and hands each word to the consumer that
 * asked and to the pending set of every other one. One at a time, under the harvest lock,
 * which markers never take. Invariants and argument are in mark.c; what is added here:
 *
 * H1 Clear top-down: top, then sum (or whole), then leaf, each by an exchange. Only a top word may be
 *    tested before it is exchanged: a sum or a leaf that is skipped because a plain load
 *    found it zero would break the chain of L1.
 * H2 After the last live word was cleared, before the lock is dropped and before the caller
 *    reads a page: one process-wide fence for all chunks and all consumers (O2, L2). None
 *    if no bit was taken: then nobody reads on the strength of a cleared bit.
 * H3 Between two harvests a page dirtied since a consumer's last commit is in the live
 *    bitmap, in that consumer's pending set, or in its open epoch (L3). The fan-out below is
 *    the one place where bits leave the live bitmap, so it is the one place that keeps this.
 *
 * Each word is visited at most once, so a harvest ends however fast markers are.
 *
 * Models: models/dirty_mark.pml (H1, H2), models/dirty_epoch.pml (H2, H3).
 */
#include "base/atomic.h"
#include "base/heavy_fence.h"
#include "base/hook.h"
#include "bitmap/dirty.h"
#include <unistd.h>

enum { AHEAD = 64 }; /* chunks whose top words are loaded at once */

struct harvest {
	struct gr_dirty *dirty;
	struct gr_bits *to;		   /* the asking consumer's epoch, may be NULL */
	const struct gr_dirty_consumer *skip; /* whose pending set gets nothing */
	size_t chunk;
	bool took;
};

/* H3: every consumer learns of every bit. These two are all there is of fan-out. */
static void fan_out_words(struct harvest *h, unsigned int v, uint64_t mask, const uint64_t *words)
{
	struct gr_dirty *d = h->dirty;

	h->took = true;
	if (h->to) {
		gr_bits_or_words(h->to, h->chunk, v, mask, words);
	}
#ifndef GR_MUTANT_HARVEST_NO_FAN_OUT
	for (unsigned int i = 0; i < d->consumers; i++) {
		if (d->consumer[i] != h->skip) {
			gr_bits_or_words(&d->consumer[i]->pend, h->chunk, v, mask, words);
		}
	}
#else
	(void)d;
#endif
}

static void fan_out_whole(struct harvest *h, unsigned int v)
{
	struct gr_dirty *d = h->dirty;

	h->took = true;
	if (h->to) {
		gr_bits_or_whole(h->to, h->chunk, v);
	}
#ifndef GR_MUTANT_HARVEST_NO_FAN_OUT_WHOLE
	for (unsigned int i = 0; i < d->consumers; i++) {
		if (d->consumer[i] != h->skip) {
			gr_bits_or_whole(&d->consumer[i]->pend, h->chunk, v);
		}
	}
#else
	(void)d;
#endif
}

/* The leaf words of sum word v that y names. */
static void take_leaves(struct harvest *h, struct gr_bits_chunk *c, unsigned int v, uint64_t y)
{
	uint64_t words[64], mask = 0;

	for (; y; y &= y - 1) {
		unsigned int i = (unsigned int)__builtin_ctzll(y);

		/* Pairs with the OR in mark_leaf(): the bytes of who ORed are visible now (L2). */
		words[i] = gr_xchg_acq_rel(&c->leaf[v * 64 + i], 0);
		if (words[i]) {
			mask |= (uint64_t)1 << i;
		}
	}
	if (mask) {
		fan_out_words(h, v, mask, words);
	}
}

static void take_wholes(struct harvest *h, struct gr_bits_chunk *c, unsigned int t)
{
	/* Pairs with the OR in mark_whole(), as a leaf's (L1, L2). */
	for (uint64_t x = gr_xchg_acq_rel(&c->whole[t], 0); x; x &= x - 1) {
		fan_out_whole(h, t * 64 + (unsigned int)__builtin_ctzll(x));
	}
}

/*
 * Each exchange waits for its cache line, and nothing passes an exchange: so what comes next is
 * loaded before, all lines of a chunk at once. By loads, not by prefetches, which many processors
 * drop when the page's translation is missing, and here it is. Dense words come in order,
 * which the processor sees for itself. The values loaded mean nothing.
 */
static void load_ahead(const struct harvest *h, const struct gr_bits_chunk *c, unsigned int v,
			    uint64_t y)
{
	const struct gr_bits_chunk *to = h->to ? h->to->chunk[h->chunk] : NULL;

	if (__builtin_popcountll(y) > 8) {
		return;
	}
	for (; y; y &= y - 1) {
		unsigned int w = v * 64 + (unsigned int)__builtin_ctzll(y);

		(void)gr_load_relaxed(&c->leaf[w]);
		if (to) {
			(void)gr_load_relaxed(&to->leaf[w]);
		}
	}
	if (to) {
		(void)gr_load_relaxed(&to->sum[v]);
	}
}

#define for_each_sum(v, x)                                                                         \
	for (unsigned int t_ = 0; t_ < GR_BITS_TOPS; t_++)                                         \
		for (uint64_t x_ = (x)[t_];                                                        \
		     x_ && ((v) = t_ * 64 + (unsigned int)__builtin_ctzll(x_), true); x_ &= x_ - 1)

/* H1: all that the top words name, wholes and sums before leaves. */
static void take_below(struct harvest *h, struct gr_bits_chunk *c, const uint64_t *x)
{
	uint64_t y[GR_BITS_SUMS];
	unsigned int v;

	(void)gr_load_relaxed(&c->whole[0]); /* as in load_ahead() */
	for_each_sum(v, x)
	{
		(void)gr_load_relaxed(&c->sum[v]);
	}
	for (unsigned int t = 0; t < GR_BITS_TOPS; t++) {
		if (x[t]) {
			take_wholes(h, c, t);
		}
	}
	for_each_sum(v, x)
	{
#ifdef GR_MUTANT_HARVEST_BOTTOM_UP
		/* The leaf words first, then the summary that led to them: breaks H1. */
		y[v] = gr_load_acquire(&c->sum[v]);
#else
		/* H1: before the leaf words. Pairs with the look in mark_sums(). */
		y[v] = gr_xchg_acq_rel(&c->sum[v], 0);
#endif
		load_ahead(h, c, v, y[v]);
	}
	GR_HOOK("harvest: sum taken");
	for_each_sum(v, x)
	{
		take_leaves(h, c, v, y[v]);
	}
	GR_HOOK("harvest: leaf taken");
#ifdef GR_MUTANT_HARVEST_BOTTOM_UP
	for_each_sum(v, x)
	{
		(void)gr_xchg_acq_rel(&c->sum[v], 0);
	}
#endif
}

static void take_chunk(struct harvest *h, struct gr_bits_chunk *c)
{
	uint64_t x[GR_BITS_TOPS], any = 0;

	for (unsigned int t = 0; t < GR_BITS_TOPS; t++) {
		/*
		 * The test is safe here alone: a marker whose bit this load missed has not
		 * returned, or its bit is found by the next harvest, as if this one had come a
		 * little earlier.
		 */
		x[t] = gr_load_relaxed(&c->top[t]);
		if (x[t]) {
			/* H1; pairs with the ORs of the top in mark.c. */
			x[t] = gr_xchg_acq_rel(&c->top[t], 0);
		}
		any |= x[t];
	}
	if (!any) {
		return;
	}
	GR_HOOK("harvest: top taken");
	take_below(h, c, x);
}

/*
 * Trust no summary. For the child of a fork(), which lacks the markers that were half way
 * up when it was made: nobody will ever set their summaries.
 */
static void take_everything(struct harvest *h, struct gr_bits_chunk *c)
{
	for (unsigned int t = 0; t < GR_BITS_TOPS; t++) {
		(void)gr_xchg_acq_rel(&c->top[t], 0);
	}
	for (unsigned int t = 0; t < GR_BITS_TOPS; t++) {
		take_wholes(h, c, t);
	}
	for (unsigned int v = 0; v < GR_BITS_SUMS; v++) {
		(void)gr_xchg_acq_rel(&c->sum[v], 0);
	}
	for (unsigned int v = 0; v < GR_BITS_SUMS; v++) {
		take_leaves(h, c, v, ~(uint64_t)0); /* an exchange of each, tested or not: L1 needs it */
	}
}

/* O2, L2, H2: partner is light_fence() in mark.c. */
static void heavy_fence_locked(struct gr_dirty *dirty) GR_REQUIRES(dirty->lock)
{
#ifndef GR_MUTANT_HARVEST_NO_FENCE
	gr_heavy_fence();
#endif
	dirty->fences++;
}

/* As load_ahead(), for idle memory of any size. */
static void load_tops_ahead(const struct gr_dirty_map *map, size_t first)
{
	for (size_t i = first; i < GR_MIN(first + AHEAD, map->chunks); i++) {
		(void)gr_load_relaxed(&map->chunk[i]->top[0]);
	}
}

void gr_dirty_harvest_locked(struct gr_dirty *dirty, struct gr_bits *to,
			     const struct gr_dirty_consumer *skip)
{
	struct harvest h = { .dirty = dirty, .to = to, .skip = skip };
	const struct gr_dirty_map *map = gr_rcu_dereference_protected(dirty->map);
	pid_t pid = getpid();
#ifdef GR_MUTANT_HARVEST_TRUSTS_SUMMARIES_AFTER_FORK
	bool forked = false;
#else
	bool forked = pid != dirty->pid;
#endif

	gr_mutex_assert_held(&dirty->lock);
	dirty->pid = pid;
#ifdef GR_MUTANT_HARVEST_FENCE_FIRST
	gr_heavy_fence();
#endif
	for (h.chunk = 0; h.chunk < map->chunks; h.chunk++) {
		struct gr_bits_chunk *c = map->chunk[h.chunk];

		if (h.chunk % AHEAD == 0) {
			load_tops_ahead(map, h.chunk);
		}
		if (GR_UNLIKELY(forked)) {
			take_everything(&h, c);
		} else {
			take_chunk(&h, c);
		}
	}
	GR_HOOK("harvest: all taken");
#ifndef GR_MUTANT_HARVEST_FENCE_FIRST
	if (h.took) {
		heavy_fence_locked(dirty);
	}
#endif
}
