/* SPDX-License-Identifier: MIT */
/*
 * Markers. Any number of threads set bits in the live bitmap while one harvester at a time
 * (harvest.c) takes them out; nobody waits.
 *
 * Invariants
 * I1 Every write to a live word is an acquire-release read-modify-write; there is no plain
 *    store, not even of all ones. So the writes to one word form a chain in which each one
 *    synchronises with the next.
 * I2 Set bottom-up: leaf, then sum, then top. The harvester clears top-down.
 * I3 A marker concludes nothing about a summary from a leaf that was set already: it looks.
 *
 * Argument, levels (L1). Take a marker's OR of a leaf word and a harvester's exchange of it.
 * If the OR is first, the exchange takes the bit. If the exchange is first, the OR
 * synchronises with it, and the harvester had cleared the sum word before: the marker's look
 * at the sum sees it cleared, or newer, and sets it (or finds it set again since). The same
 * holds one level up. When the marker only loaded the leaf bit, the value it read was
 * written by an OR that is before the exchange (the bit is taken if the harvester comes here
 * at all: if it does not, it found the sum bit clear, and this marker finds that too) or
 * after it (as above). So a mark that has returned is in the next harvest, whoever else
 * stands still half way.
 *
 * A whole bit stands for all pages of a sum word. It lies directly below the top, and what is said
 * here of leaf and sum holds for whole and top: set before the top, taken after it.
 *
 * A sum bit stands for a line of 8 leaf words, each of which has its own chain; a harvest that
 * cleared it comes to all of them.
 *
 * Argument, bytes (L2). The marker stored to the page, then looks at the leaf. If it ORed,
 * the exchange that takes the bit synchronises with the OR. If it found the bit set, the
 * harvester that clears this bit runs the process-wide fence afterwards, and the marker's
 * store is before its own side of that fence, because its look was before the clear: the
 * bytes are visible to who reads after the fence. That is Dekker's pattern with its cost on
 * one side (C++ P1202). Without a process-wide fence `map->inlined` is 0 and both sides
 * have a fence of their own.
 *
 * Growth (L5). A chunk has the same address in every map. A marker loads the map after it
 * found its block, and the block was published after the map that covers it (O3).
 *
 * gr_dirty_mark() itself is inline, in guestram/dirty.h: it makes the same three looks, and comes
 * here if one of them finds a bit clear, if the marker needs a fence, or if the page is wrong.
 *
 * Models: models/dirty_mark.pml (and dirty_grow.pml for L5); docs/dirty-memory.md tells which
 * mutations they and the tests must find.
 */
#include "base/atomic.h"
#include "base/endian.h"
#include "base/hook.h"
#include "bitmap/dirty.h"
#include <assert.h>
#include <string.h>

/* What the inline half in guestram/dirty.h takes for granted. */
#define SAME_PLACE(type, member) (offsetof(struct type, member) == offsetof(struct type##_, member))
static_assert(offsetof(struct gr_dirty, map) == 0, "a marker finds the map first");
static_assert(SAME_PLACE(gr_dirty_map, chunks) && SAME_PLACE(gr_dirty_map, inlined) &&
		      SAME_PLACE(gr_dirty_map, chunk),
	      "the map has two layouts");
static_assert(SAME_PLACE(gr_dirty_chunk, leaf) && SAME_PLACE(gr_dirty_chunk, sum) &&
		      SAME_PLACE(gr_dirty_chunk, head) &&
		      sizeof(struct gr_dirty_chunk) == sizeof(struct gr_dirty_chunk_) &&
		      offsetof(struct gr_dirty_head, top) == 0,
	      "a chunk has two layouts");
static_assert((int)GR_DIRTY_LINE_PAGES_ == (int)GR_BITS_LINE_PAGES &&
		      (int)GR_DIRTY_GROUP_PAGES_ == (int)GR_BITS_GROUP_PAGES &&
		      (int)GR_DIRTY_CHUNK_PAGES_ == (int)GR_BITS_CHUNK_PAGES,
	      "the levels differ");

enum { GROUP_WORDS = GR_BITS_GROUP_PAGES / GR_BITS_PER_WORD };

static inline unsigned int leaf_in_chunk(uint64_t page)
{
	return (unsigned int)(page / GR_BITS_PER_WORD % GR_DIRTY_LEAVES);
}

/* The sum word of leaf word w, and w's bit there. */
static inline unsigned int sum_of(unsigned int w)
{
	return w / GROUP_WORDS;
}

static inline uint64_t sum_bit(unsigned int w)
{
	return gr_bits_bit(w / GR_BITS_LINE_WORDS);
}

/* L2: the store to the page, before the look at the leaf. Partner: the fence in harvest.c. */
static inline void light_fence(const struct gr_dirty_map *map)
{
	if (GR_UNLIKELY(map->inlined == 0)) {
		gr_fence();
	} else {
		gr_barrier();
	}
}

static inline const struct gr_dirty_map *marker_map(struct gr_dirty *dirty, uint64_t page,
						    uint64_t pages)
	GR_REQUIRES_SHARED(gr_rcu_section);
static inline const struct gr_dirty_map *marker_map(struct gr_dirty *dirty, uint64_t page,
						    uint64_t pages)
{
	/* L5: pairs with the publication in gr_dirty_grow(). */
	const struct gr_dirty_map *map = gr_rcu_dereference(dirty->map);
	uint64_t covered = (uint64_t)map->chunks * GR_BITS_CHUNK_PAGES;

	GR_ASSERT(page < covered && pages <= covered - page);
	GR_HOOK("mark: map loaded");
	light_fence(map);
	return map;
}

/* Set bits of a leaf word, unless they are. */
static inline void mark_leaf(const struct gr_dirty_chunk *c, unsigned int w, uint64_t mask)
{
	/* I3, L1: acquire, pairs with the RMW that set the bits, before the look at the sum. */
	if ((gr_load_acquire(&c->leaf[w]) & mask) != mask) {
		/* L1, L2: pairs with the taking in take_lines(). */
		(void)gr_or_acq_rel(&c->leaf[w], mask);
	}
}

/* Set summary bits of sum word v, after all leaf words below them (I2). */
static inline void mark_sums(const struct gr_dirty_chunk *c, unsigned int v, uint64_t mask)
{
	uint64_t top_mask = gr_bits_bit(v);

	/* L1: as in mark_leaf(), one level up; pairs with the exchange in take_all(). */
	if ((gr_load_acquire(&c->sum[v]) & mask) != mask) {
		(void)gr_or_acq_rel(&c->sum[v], mask);
	}
	GR_HOOK("mark: sum set");
	/* Nothing is looked at after the top: relaxed. Pairs with the exchange in take_top(). */
	if ((gr_load_relaxed(&c->head->top) & top_mask) == 0) {
		(void)gr_or_acq_rel(&c->head->top, top_mask);
	}
}

/* Set whole bits: leaves and their summary in one. */
static inline void mark_whole(const struct gr_dirty_chunk *c, uint64_t mask)
{
#ifdef GR_MUTANT_MARK_WHOLE_TOP_DOWN
	(void)gr_or_acq_rel(&c->head->top, mask);
	GR_HOOK("mark: half way");
#endif
	/* L1, L2: as in mark_leaf(); pairs with the taking in take_wholes(). */
	if ((gr_load_acquire(&c->head->whole) & mask) != mask) {
		(void)gr_or_acq_rel(&c->head->whole, mask);
	}
#ifndef GR_MUTANT_MARK_WHOLE_TOP_DOWN
	GR_HOOK("mark: half way");
	/* As in mark_sums(). */
	if ((gr_load_relaxed(&c->head->top) & mask) != mask) {
		(void)gr_or_acq_rel(&c->head->top, mask);
	}
#endif
}

void gr_dirty_mark_slow(struct gr_dirty *dirty, uint64_t page)
{
	const struct gr_dirty_map *map = marker_map(dirty, page, 1);
	const struct gr_dirty_chunk *c = &map->chunk[page / GR_BITS_CHUNK_PAGES];
	unsigned int w = leaf_in_chunk(page);

#ifdef GR_MUTANT_MARK_TOP_DOWN
	mark_sums(c, sum_of(w), sum_bit(w));
	GR_HOOK("mark: half way");
	mark_leaf(c, w, gr_bits_bit((unsigned int)(page % 64)));
#elif defined(GR_MUTANT_MARK_TRUSTS_LEAF)
	/* A set leaf bit taken as proof of the summary: breaks I3. */
	if (gr_load_acquire(&c->leaf[w]) & (uint64_t)1 << (page % 64)) {
		return;
	}
	mark_leaf(c, w, gr_bits_bit((unsigned int)(page % 64)));
	GR_HOOK("mark: half way");
	mark_sums(c, sum_of(w), sum_bit(w));
#else
	mark_leaf(c, w, gr_bits_bit((unsigned int)(page % 64)));
	GR_HOOK("mark: half way");
	mark_sums(c, sum_of(w), sum_bit(w));
#endif
}

void gr_dirty_mark_range(struct gr_dirty *dirty, uint64_t page, uint64_t pages)
{
	const struct gr_dirty_map *map;
	uint64_t end;

	if (pages == 0) {
		return;
	}
	map = marker_map(dirty, page, pages);
	end = page + pages;
	while (page < end) {
		const struct gr_dirty_chunk *c = &map->chunk[page / GR_BITS_CHUNK_PAGES];
		unsigned int v = (unsigned int)(page / GR_BITS_GROUP_PAGES % GR_BITS_GROUPS);
		uint64_t sum_end =
			GR_MIN(end, page - page % GR_BITS_GROUP_PAGES + GR_BITS_GROUP_PAGES);
		uint64_t sums = 0;

		if (page % GR_BITS_GROUP_PAGES == 0 && end - page >= GR_BITS_GROUP_PAGES) {
			uint64_t n = GR_MIN((end - page) / GR_BITS_GROUP_PAGES,
					    (uint64_t)GR_BITS_GROUPS - v);

			mark_whole(c, gr_bits_mask(v, v + (unsigned int)n - 1));
			page += n * GR_BITS_GROUP_PAGES;
			continue;
		}
#ifdef GR_MUTANT_MARK_RANGE_SUM_EARLY
		mark_sums(c, v, ~(uint64_t)0);
#endif
		/* All leaf words of one sum word, then the sum word. */
		while (page < sum_end) {
			unsigned int first = (unsigned int)(page % 64);
			unsigned int n = (unsigned int)GR_MIN(sum_end - page, (uint64_t)64 - first);
			unsigned int w = leaf_in_chunk(page);

			GR_HOOK("mark range: before leaf");
			mark_leaf(c, w, gr_bits_mask(first, first + n - 1));
			sums |= sum_bit(w);
			page += n;
		}
#ifndef GR_MUTANT_MARK_RANGE_SUM_EARLY
		mark_sums(c, v, sums);
#endif
	}
}

uint64_t gr_dirty_or_le(struct gr_dirty *dirty, uint64_t page, const void *words, uint64_t pages)
{
	const struct gr_dirty_map *map;
	const unsigned char *in = words;
	uint64_t end, set = 0;

	GR_ASSERT(page % 64 == 0);
	if (pages == 0) {
		return 0;
	}
	map = marker_map(dirty, page, pages);
	end = page + pages;
	while (page < end) {
		const struct gr_dirty_chunk *c = &map->chunk[page / GR_BITS_CHUNK_PAGES];
		unsigned int v = (unsigned int)(page / GR_BITS_GROUP_PAGES % GR_BITS_GROUPS);
		uint64_t sum_end =
			GR_MIN(end, page - page % GR_BITS_GROUP_PAGES + GR_BITS_GROUP_PAGES);
		uint64_t sums = 0;

		for (; page < sum_end; page += 64, in += sizeof(uint64_t)) {
			unsigned int w = leaf_in_chunk(page);
			uint64_t x;

			memcpy(&x, in, sizeof(x));
			x = gr_le64(x);
			if (end - page < 64) {
				x &= gr_bits_mask(0, (unsigned int)(end - page) - 1);
			}
			if (x) {
				mark_leaf(c, w, x);
				sums |= sum_bit(w);
				set += gr_bits_in(x);
			}
		}
		if (sums) {
			mark_sums(c, v, sums);
		}
	}
	return set;
}
