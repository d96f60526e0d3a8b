/* SPDX-License-Identifier: MIT */
/*
 * The harvester: takes the live bits out, top-down, and hands each word to the consumer that
 * asked and to the pending set of every other one. One at a time, under the harvest lock,
 * which markers never take. Invariants and argument are in mark.c; what is added here:
 *
 * H1 Clear top-down: top, then sum, then leaf, each by an exchange. Only a top word may be
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

struct harvest {
	struct gr_dirty *dirty;
	struct gr_bits *to;		   /* the asking consumer's epoch, may be NULL */
	const struct gr_dirty_consumer *skip; /* whose pending set gets nothing */
	size_t chunk;
	bool took;
};

/* H3: every consumer learns of every bit. */
static void fan_out(struct harvest *h, unsigned int w, uint64_t bits)
{
	struct gr_dirty *d = h->dirty;

	if (h->to) {
		(void)gr_bits_or_word(h->to, h->chunk, w, bits);
	}
#ifndef GR_MUTANT_HARVEST_NO_FAN_OUT
	for (unsigned int i = 0; i < d->consumers; i++) {
		if (d->consumer[i] != h->skip) {
			(void)gr_bits_or_word(&d->consumer[i]->pend, h->chunk, w, bits);
		}
	}
#else
	(void)d;
#endif
}

static void take_leaf(struct harvest *h, struct gr_bits_chunk *c, unsigned int w)
{
	/* Pairs with the OR in mark_leaf(): the bytes of who ORed are visible now (L2). */
	uint64_t bits = gr_xchg_acq_rel(&c->leaf[w], 0);

	if (bits) {
		h->took = true;
		fan_out(h, w, bits);
	}
}

static void take_sum(struct harvest *h, struct gr_bits_chunk *c, unsigned int v)
{
#ifdef GR_MUTANT_HARVEST_BOTTOM_UP
	/* The leaf words first, then the summary that led to them: breaks H1. */
	for (uint64_t y = gr_load_acquire(&c->sum[v]); y; y &= y - 1) {
		take_leaf(h, c, v * 64 + (unsigned int)__builtin_ctzll(y));
	}
	GR_HOOK("harvest: leaf taken");
	(void)gr_xchg_acq_rel(&c->sum[v], 0);
#else
	/* H1: before the leaf words. Pairs with the look in mark_sums(). */
	uint64_t y = gr_xchg_acq_rel(&c->sum[v], 0);

	GR_HOOK("harvest: sum taken");
	for (; y; y &= y - 1) {
		take_leaf(h, c, v * 64 + (unsigned int)__builtin_ctzll(y));
	}
	GR_HOOK("harvest: leaf taken");
#endif
}

static void take_top(struct harvest *h, struct gr_bits_chunk *c, unsigned int t)
{
	uint64_t x;

	/*
	 * The test is safe here alone: a marker whose bit this load missed has not returned,
	 * or its bit is found by the next harvest, as if this one had come a little earlier.
	 */
	if (gr_load_relaxed(&c->top[t]) == 0) {
		return;
	}
	x = gr_xchg_acq_rel(&c->top[t], 0); /* H1; pairs with the OR of the top in mark_sums() */
	GR_HOOK("harvest: top taken");
	for (; x; x &= x - 1) {
		take_sum(h, c, t * 64 + (unsigned int)__builtin_ctzll(x));
	}
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
	for (unsigned int v = 0; v < GR_BITS_SUMS; v++) {
		(void)gr_xchg_acq_rel(&c->sum[v], 0);
	}
	for (unsigned int w = 0; w < GR_BITS_LEAVES; w++) {
		take_leaf(h, c, w); /* an exchange of each, tested or not: L1 needs it */
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

		if (GR_UNLIKELY(forked)) {
			take_everything(&h, c);
			continue;
		}
		for (unsigned int t = 0; t < GR_BITS_TOPS; t++) {
			take_top(&h, c, t);
		}
	}
	GR_HOOK("harvest: all taken");
#ifndef GR_MUTANT_HARVEST_FENCE_FIRST
	if (h.took) {
		heavy_fence_locked(dirty);
	}
#endif
}
