/* SPDX-License-Identifier: MIT */
/*
 * Dirty memory as a whole: creation, growth, end. Growth copies pointers and never bits
 * (after S. Hajnoczi's DirtyMemoryBlocks of 2015), so a marker that still uses the old map
 * marks the same words as one that uses the new map; RCU is needed for one thing only,
 * freeing the old array of pointers. Model: models/dirty_grow.pml.
 */
#include "bitmap/dirty.h"
#include "base/atomic.h"
#include "base/heavy_fence.h"
#include "base/hook.h"
#include "base/memory.h"
#include <assert.h>
#include <errno.h>
#include <stdint.h>
#include <string.h>

static_assert((uint64_t)GR_BITS_CHUNKS_MAX *
			      (GR_DIRTY_LEAVES * sizeof(uint64_t) +
			       GR_BITS_GROUPS * sizeof(uint64_t) + sizeof(struct gr_dirty_head)) <=
		      PTRDIFF_MAX,
	      "mapping_bytes() does not wrap");

/* Of one mapping: the heads of n chunks, then their sums, then their leaves. */
static size_t sums_at(size_t n)
{
	return GR_ROUND_UP(n * sizeof(struct gr_dirty_head), (size_t)GR_CACHE_LINE);
}

static size_t leaves_at(size_t n)
{
	return GR_ROUND_UP(sums_at(n) + n * GR_BITS_GROUPS * sizeof(uint64_t), gr_page_bytes());
}

static size_t mapping_bytes(size_t n)
{
	return leaves_at(n) + n * GR_DIRTY_LEAVES * sizeof(uint64_t);
}

/* Zeroes, which cost nothing until they are touched. 0 or -ENOMEM. */
static int chunks_create(struct gr_dirty_chunk *chunk, size_t n)
{
	unsigned char *mapping = n ? gr_pages_alloc(mapping_bytes(n)) : NULL;

	if (n && !mapping) {
		return -ENOMEM;
	}
	if (mapping) {
		/*
		 * A wish, for those of 64 GiB and more. With pages of 4 KiB each line that a
		 * harvest of few pages in much memory touches is a miss of the translation as well.
		 */
		(void)gr_memory_advise(mapping, mapping_bytes(n), GR_MEMORY_THP);
	}
	for (size_t i = 0; i < n; i++) {
		chunk[i].head = (struct gr_dirty_head *)(void *)mapping + i;
		chunk[i].sum = (uint64_t *)(void *)(mapping + sums_at(n)) + i * GR_BITS_GROUPS;
		chunk[i].leaf = (uint64_t *)(void *)(mapping + leaves_at(n)) + i * GR_DIRTY_LEAVES;
		chunk[i].together = i == 0 ? n : 0;
	}
	return 0;
}

static void chunks_free(struct gr_dirty_chunk *chunk, size_t n)
{
	for (size_t i = 0, together; i < n; i += together) {
		together = chunk[i].together;
		GR_ASSERT(together > 0 && together <= n - i);
		gr_pages_free(chunk[i].head, mapping_bytes(together));
	}
}

static struct gr_dirty_map *map_alloc(size_t chunks)
{
	struct gr_dirty_map *map = calloc(1, sizeof(*map) + chunks * sizeof(map->chunk[0]));

	if (map) {
		map->chunks = chunks;
		map->inlined = gr_heavy_fence_available() ? chunks : 0;
	}
	return map;
}

/* The map and its chunks from `first` on. */
static void map_free(struct gr_dirty_map *map, size_t first)
{
	if (map) {
		chunks_free(map->chunk + first, map->chunks - first);
		free(map);
	}
}

static void reclaim_map(struct gr_rcu_head *head)
{
	free(gr_container_of(head, struct gr_dirty_map, rcu)); /* its chunks live on */
}

/* A map that has what old has (may be NULL) and new chunks up to so many. NULL: no memory. */
static struct gr_dirty_map *map_extend(const struct gr_dirty_map *old, size_t chunks)
{
	size_t have = old ? old->chunks : 0;
	struct gr_dirty_map *map = map_alloc(chunks);

	if (!map) {
		return NULL;
	}
	for (size_t i = 0; i < have; i++) {
#ifdef GR_MUTANT_GROW_COPIES_WORDS
		(void)chunks_create(&map->chunk[i], 1);
		*map->chunk[i].head = *old->chunk[i].head;
		memcpy(map->chunk[i].sum, old->chunk[i].sum, GR_BITS_GROUPS * sizeof(uint64_t));
		memcpy(map->chunk[i].leaf, old->chunk[i].leaf, GR_DIRTY_LEAVES * sizeof(uint64_t));
#else
		map->chunk[i] = old->chunk[i];
#endif
	}
	if (chunks_create(map->chunk + have, chunks - have) != 0) {
		free(map);
		return NULL;
	}
	return map;
}

static int too_many(uint64_t pages, struct gr_error *err)
{
	return gr_error_set(err, -ENOMEM,
			    "dirty memory: %llu pages are more than the %llu it can cover",
			    (unsigned long long)pages, (unsigned long long)GR_BITS_PAGES_MAX);
}

int gr_dirty_create(uint64_t pages, struct gr_dirty **ret_dirty, struct gr_error *err)
{
	struct gr_dirty_map *map;
	struct gr_dirty *d;

	if (pages > GR_BITS_PAGES_MAX) {
		return too_many(pages, err);
	}
	d = calloc(1, sizeof(*d));
	map = d ? map_extend(NULL, (size_t)GR_DIV_ROUND_UP(pages, GR_BITS_CHUNK_PAGES)) : NULL;
	if (!map) {
		free(d);
		return gr_error_set(err, -ENOMEM, "dirty memory: no memory for %llu pages",
				    (unsigned long long)pages);
	}
	gr_mutex_init(&d->lock, GR_RANK_DIRTY);
	d->pages = (uint64_t)map->chunks * GR_BITS_CHUNK_PAGES;
	gr_rcu_assign_pointer(d->map, map);
	if (gr_dirty_fork_list(d) != 0) {
		map_free(map, 0);
		gr_mutex_destroy(&d->lock);
		free(d);
		return gr_error_set(err, -ENOMEM, "dirty memory: no memory for fork handlers");
	}
	*ret_dirty = d;
	return 0;
}

void gr_dirty_free(struct gr_dirty *dirty)
{
	if (!dirty) {
		return;
	}
	if (dirty->consumers != 0) {
		gr_die("gr_dirty_free: consumer '%s' is still there", dirty->consumer[0]->name);
	}
	gr_dirty_fork_unlist(dirty);
	gr_rcu_synchronize(); /* a marker may still be on its way out of its section */
	map_free(gr_rcu_dereference_protected(dirty->map), 0);
	gr_mutex_destroy(&dirty->lock);
	free(dirty);
}

/* Growing the private sets first keeps a harvest from ever having to allocate. */
static bool consumers_grow_locked(struct gr_dirty *dirty, size_t chunks) GR_REQUIRES(dirty->lock)
{
	for (unsigned int i = 0; i < dirty->consumers; i++) {
		/* On failure some cover more than they need, which changes nothing. */
		if (gr_bits_grow(&dirty->consumer[i]->pend, chunks) != 0 ||
		    gr_bits_grow(&dirty->consumer[i]->set, chunks) != 0) {
			return false;
		}
	}
	return true;
}

int gr_dirty_grow(struct gr_dirty *dirty, uint64_t pages, struct gr_error *err)
{
	size_t chunks = (size_t)GR_DIV_ROUND_UP(pages, GR_BITS_CHUNK_PAGES);
	struct gr_dirty_map *old, *map = NULL;

	if (pages > GR_BITS_PAGES_MAX) {
		return too_many(pages, err);
	}
	gr_dirty_lock(dirty);
	old = gr_rcu_dereference_protected(dirty->map);
	if (chunks <= old->chunks) {
		gr_dirty_unlock(dirty);
		return 0;
	}
	if (consumers_grow_locked(dirty, chunks)) {
		map = map_extend(old, chunks);
	}
	if (!map) {
		gr_dirty_unlock(dirty);
		return gr_error_set(err, -ENOMEM, "dirty memory: no memory to grow to %llu pages",
				    (unsigned long long)pages);
	}
	GR_HOOK("grow: before publication");
	/* O3, L5: zeroed chunks before the map; pairs with the dereference in marker_map(). */
	gr_rcu_assign_pointer(dirty->map, map);
	/* Pairs with the acquire in gr_dirty_pages(): who reads it may mark that far. */
	gr_store_release(&dirty->pages, (uint64_t)chunks * GR_BITS_CHUNK_PAGES);
	gr_dirty_unlock(dirty);
#ifdef GR_MUTANT_GROW_NO_GRACE_PERIOD
	reclaim_map(&old->rcu);
#else
	gr_rcu_call(NULL, &old->rcu, reclaim_map);
#endif
	return 0;
}

uint64_t gr_dirty_pages(const struct gr_dirty *dirty)
{
	return gr_load_acquire(&dirty->pages); /* pairs with the release in gr_dirty_grow() */
}

/* Pages of the words of a line that have any. */
static uint64_t estimate_line(const uint64_t *leaf)
{
	uint64_t pages = 0;

	for (unsigned int w = 0; w < GR_BITS_LINE_WORDS; w++) {
		pages += gr_load_relaxed(&leaf[w]) ? GR_BITS_PER_WORD : 0;
	}
	return pages;
}

uint64_t gr_dirty_live_estimate(const struct gr_dirty *dirty)
{
	GR_RCU_READ_GUARD();
	const struct gr_dirty_map *map = gr_rcu_dereference(dirty->map);
	uint64_t pages = 0;

	for (size_t i = 0; i < map->chunks; i++) {
		const struct gr_dirty_chunk *c = &map->chunk[i];

		/* A snapshot of bits that change: nothing is concluded from them. */
		for (uint64_t x = gr_load_relaxed(&c->head->top); x; x &= x - 1) {
			unsigned int v = gr_bits_first(x);

			for (uint64_t y = gr_load_relaxed(&c->sum[v]); y; y &= y - 1) {
				unsigned int line = v * GR_BITS_GROUP_LINES + gr_bits_first(y);

				pages += estimate_line(&c->leaf[line * GR_BITS_LINE_WORDS]);
			}
		}
		pages += (uint64_t)gr_bits_in(gr_load_relaxed(&c->head->whole)) *
			 GR_BITS_GROUP_PAGES;
	}
	return pages;
}
