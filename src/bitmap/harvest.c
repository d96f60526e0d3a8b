/* SPDX-License-Identifier: MIT */
/*
 * The harvester: takes the live bits out, top-down, and hands each word to the consumer that
 * asked and to the pending set of every other one. One at a time, under the harvest lock,
 * which markers never take. Invariants and argument are in mark.c; what is added here:
 *
 * H1 Clear top-down: top, then sum (or whole), then leaf, each by an exchange. A top word may be
 *    tested first: take_top() says why. A sum is always exchanged. A leaf or a whole that is
 * skipped because a load found it zero has no place in the chain of L1: a marker's OR after the
 * load need not see the summaries cleared. It does where all threads see stores in one order and an
 *    exchange is a full fence (GR_LOOK_BEFORE_EXCHANGE: x86): the summaries were cleared before the
 *    load, the load is before the OR, and the marker looks after it. Elsewhere each is exchanged.
 * H2 After the last live word was cleared, before the lock is
 * dropped and before the caller reads a page: one process-wide fence for all chunks and all
 * consumers (O2, L2). None if no bit was taken: then nobody reads on the strength of a cleared bit.
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

/*
 * Each exchange waits for its cache line, and nothing passes an exchange: so the lines of many
 * groups, or heads of many chunks, are asked for in one go, level by level. By loads, not by
 * prefetches, which processors drop when they miss the page's translation too, and here they do.
 * The values that are loaded mean nothing.
 */
enum { AHEAD = 64 };
/* Of a group that has more lines they come in order, which the processor sees for itself. */
enum { LINES_AHEAD = 8 };

/* A group whose top bit was taken. */
struct group {
	const struct gr_dirty_chunk *c;
	size_t chunk;
	unsigned int v;
	uint64_t lines; /* its sum word, when that was taken */
};

struct harvest {
	struct gr_dirty *dirty;
	struct gr_bits *to;		      /* the asking consumer's epoch, may be NULL */
	const struct gr_dirty_consumer *skip; /* whose pending set gets nothing */
	bool took;
	unsigned int groups;
	struct group group[AHEAD];
	struct gr_bits_batch batch;
};

/* H3: every consumer learns of every bit. This is all there is of fan-out. */
static void fan_out(struct harvest *h, size_t chunk, unsigned int v)
{
	struct gr_dirty *d = h->dirty;

	h->took = true;
	if (h->to) {
		gr_bits_or_batch(h->to, chunk, v, &h->batch);
	}
#ifdef GR_MUTANT_HARVEST_NO_FAN_OUT_WHOLE
	if (h->batch.part == 0) {
		return;
	}
#endif
#ifndef GR_MUTANT_HARVEST_NO_FAN_OUT
	for (unsigned int i = 0; i < d->consumers; i++) {
		if (d->consumer[i] != h->skip) {
			gr_bits_or_batch(&d->consumer[i]->pend, chunk, v, &h->batch);
		}
	}
#else
	(void)d;
#endif
}

/* H1: the words of a line that have to be exchanged. */
static unsigned int words_to_take(const uint64_t *from)
{
	unsigned int words = 0;

	/* No branches: which word it is that has something, nobody can predict. */
	for (unsigned int w = 0; w < GR_BITS_LINE_WORDS; w++) {
		words |= (unsigned int)(gr_load_acquire(&from[w]) != 0) << w;
	}
	return GR_LOOK_BEFORE_EXCHANGE ? words : (1u << GR_BITS_LINE_WORDS) - 1;
}

/* Returns how many pages the line had. */
static unsigned int take_line(uint64_t *from, struct gr_bits_line *to)
{
	unsigned int pages = 0;

	*to = (struct gr_bits_line){ { 0 } };
	for (unsigned int x = words_to_take(from); x; x &= x - 1) {
		unsigned int w = gr_bits_first(x);

		/* Pairs with the OR in mark_leaf(): the bytes of who ORed are visible now (L2). */
		to->word[w] = gr_xchg_acq_rel(&from[w], 0);
		pages += to->word[w] == ~(uint64_t)0 ? 64 : gr_bits_in(to->word[w]);
	}
	return pages;
}

/* The lines of a group that its sum word named. */
static void take_lines(struct harvest *h, const struct group *g)
{
	struct gr_bits_batch *b = &h->batch;
	struct gr_bits_line *to = b->line;

	b->whole = 0;
	b->part = 0;
	b->part_pages = 0;
	for (uint64_t y = g->lines; y; y &= y - 1) {
		unsigned int i = gr_bits_first(y);
		unsigned int line = g->v * GR_BITS_GROUP_LINES + i;
		unsigned int pages = take_line(&g->c->leaf[line * GR_BITS_LINE_WORDS], to);

		if (pages == GR_BITS_LINE_PAGES) {
			b->whole |= gr_bits_bit(i);
		} else if (pages) {
			b->part |= gr_bits_bit(i);
			b->part_pages += pages;
			to++;
		}
	}
	if (b->whole | b->part) {
		fan_out(h, g->chunk, g->v);
	}
}

static void take_wholes(struct harvest *h, const struct gr_dirty_chunk *c, size_t chunk)
{
	uint64_t x = ~(uint64_t)0;

	if (GR_LOOK_BEFORE_EXCHANGE) {
		x = gr_load_acquire(&c->head->whole);
	}
	if (x) {
		/* Pairs with the OR in mark_whole(), as a leaf's (L1, L2). */
		x = gr_xchg_acq_rel(&c->head->whole, 0);
	}
	for (; x; x &= x - 1) {
		h->batch.whole = ~(uint64_t)0;
		h->batch.part = 0;
		fan_out(h, chunk, gr_bits_first(x));
	}
}

static void ask_for_leaves(const struct group *g)
{
	if (gr_bits_in(g->lines) > LINES_AHEAD) {
		return;
	}
	for (uint64_t y = g->lines; y; y &= y - 1) {
		unsigned int line = g->v * GR_BITS_GROUP_LINES + gr_bits_first(y);

		(void)gr_load_relaxed(&g->c->leaf[line * GR_BITS_LINE_WORDS]);
	}
}

/* H1: what the groups have that have come together, sums before leaves. */
static void take_all(struct harvest *h)
{
	for (unsigned int n = 0; n < h->groups; n++) {
		struct group *g = &h->group[n];

#ifdef GR_MUTANT_HARVEST_BOTTOM_UP
		/* The leaf words first, then the summary that led to them: breaks H1. */
		g->lines = gr_load_acquire(&g->c->sum[g->v]);
#else
		/* H1: before the leaf words. Pairs with the look in mark_sums(). */
		g->lines = gr_xchg_acq_rel(&g->c->sum[g->v], 0);
#endif
	}
	GR_HOOK("harvest: sum taken");
	for (unsigned int n = 0; n < h->groups; n++) {
		ask_for_leaves(&h->group[n]);
	}
	for (unsigned int n = 0; n < h->groups; n++) {
		take_lines(h, &h->group[n]);
	}
	GR_HOOK("harvest: leaf taken");
#ifdef GR_MUTANT_HARVEST_BOTTOM_UP
	for (unsigned int n = 0; n < h->groups; n++) {
		(void)gr_xchg_acq_rel(&h->group[n].c->sum[h->group[n].v], 0);
	}
#endif
	h->groups = 0;
}

/* A group whose turn comes when there are enough of them. */
static void take_later(struct harvest *h, const struct gr_dirty_chunk *c, size_t chunk,
		       unsigned int v)
{
	(void)gr_load_relaxed(&c->sum[v]);
	if (h->to) {
		(void)gr_load_relaxed(&h->to->chunk[chunk].group[v].any);
	}
	h->group[h->groups++] = (struct group){ .c = c, .chunk = chunk, .v = v };
	if (h->groups == AHEAD) {
		take_all(h);
	}
}

static uint64_t take_top(struct harvest *h, const struct gr_dirty_chunk *c, size_t chunk)
{
	/*
	 * The test is safe on any machine here: a marker whose bit this load missed has not
	 * returned, or its bit is found by the next harvest, as if this one had come a little
	 * earlier.
	 */
	uint64_t x = gr_load_relaxed(&c->head->top);

	if (x) {
		/* H1; pairs with the ORs of the top in mark.c. */
		x = gr_xchg_acq_rel(&c->head->top, 0);
		GR_HOOK("harvest: top taken");
		take_wholes(h, c, chunk);
	}
	return x;
}

static void ask_for_heads(const struct harvest *h, const struct gr_dirty_map *map, size_t first)
{
	for (size_t i = first; i < GR_MIN(first + AHEAD, map->chunks); i++) {
		(void)gr_load_relaxed(&map->chunk[i].head->top);
		if (h->to) {
			/* What is beside `top`, which 32-bit hosts do not align to 8 bytes. */
			(void)gr_load_relaxed(&h->to->chunk[i].group);
		}
	}
}

static void take_chunks(struct harvest *h, const struct gr_dirty_map *map)
{
	ask_for_heads(h, map, 0);
	for (size_t first = 0; first < map->chunks; first += AHEAD) {
		unsigned int n = (unsigned int)GR_MIN((size_t)AHEAD, map->chunks - first);
		uint64_t top[AHEAD];

		for (unsigned int i = 0; i < n; i++) {
			top[i] = take_top(h, &map->chunk[first + i], first + i);
		}
		ask_for_heads(h, map, first + AHEAD);
		for (unsigned int i = 0; i < n; i++) {
			for (uint64_t x = top[i]; x; x &= x - 1) {
				take_later(h, &map->chunk[first + i], first + i, gr_bits_first(x));
			}
		}
	}
	take_all(h);
}

/*
 * Trust no summary. For the child of a fork(), which lacks the markers that were half way
 * up when it was made: nobody will ever set their summaries.
 */
static void take_everything(struct harvest *h, const struct gr_dirty_map *map)
{
	for (size_t i = 0; i < map->chunks; i++) {
		const struct gr_dirty_chunk *c = &map->chunk[i];

		(void)gr_xchg_acq_rel(&c->head->top, 0);
		take_wholes(h, c, i);
		for (unsigned int v = 0; v < GR_BITS_GROUPS; v++) {
			struct group g = { .c = c, .chunk = i, .v = v, .lines = ~(uint64_t)0 };

			(void)gr_xchg_acq_rel(&c->sum[v], 0);
			take_lines(h, &g);
		}
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
	const struct gr_dirty_map *map = gr_rcu_dereference_protected(dirty->map);
	struct harvest h;
#ifdef GR_MUTANT_HARVEST_TRUSTS_SUMMARIES_AFTER_FORK
	bool forked = false;
#else
	bool forked = dirty->forked;
#endif

	gr_mutex_assert_held(&dirty->lock);
	dirty->forked = false;
	h.dirty = dirty; /* its arrays are as they come */
	h.to = to;
	h.skip = skip;
	h.took = false;
	h.groups = 0;
#ifdef GR_MUTANT_HARVEST_FENCE_FIRST
	gr_heavy_fence();
#endif
	if (GR_UNLIKELY(forked)) {
		take_everything(&h, map);
	} else {
		take_chunks(&h, map);
	}
	GR_HOOK("harvest: all taken");
#ifndef GR_MUTANT_HARVEST_FENCE_FIRST
	if (h.took) {
		heavy_fence_locked(dirty);
	}
#endif
}
