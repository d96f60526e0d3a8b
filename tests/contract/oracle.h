/* SPDX-License-Identifier: MIT */
/*
 * The memory-difference oracle of the tracker tests: a consumer keeps a copy of every block
 * and refreshes it as a migration does (sync, begin, re-arm, read, commit). When the writers
 * have stopped and one more round is done, each copy must equal the memory, byte for byte.
 * Whatever lost a store on the way, tracker, driver or dirty memory, shows here.
 */
#ifndef ORACLE_H
#define ORACLE_H

#include "harness.h"
#include "ram/copy.h"
#include <guestram/track.h>
#include <pthread.h>
#include <stdlib.h>
#include <unistd.h>

enum { ORACLE_PAGE = 4096, ORACLE_COPIES_MAX = 8192 };

struct oracle_copy {
	uint64_t incarnation;
	uint8_t *bytes;
};

struct oracle {
	const char *name;
	struct gr_ram *ram;
	struct gr_track *track;
	struct gr_dirty_consumer *consumer;
	uint64_t epoch_pages;  /* of the last begin */
	uint64_t pages_copied; /* in all */
	uint64_t rounds;
	unsigned int copies;
	struct oracle_copy copy[ORACLE_COPIES_MAX];
};

static inline void oracle_start(struct oracle *o, const char *name, struct gr_ram *ram,
				struct gr_track *track)
{
	memset(o, 0, sizeof(*o));
	o->name = name;
	o->ram = ram;
	o->track = track;
	ASSERT_EQ(gr_dirty_consumer_add(gr_ram_dirty(ram), name, GR_DIRTY_START_FULL, &o->consumer,
					NULL),
		  0);
}

static inline uint8_t *oracle_copy_of(struct oracle *o, const struct gr_ram_block *block)
{
	for (unsigned int i = o->copies; i-- > 0;) {
		if (o->copy[i].incarnation == block->incarnation) {
			return o->copy[i].bytes;
		}
	}
	ASSERT_LT(o->copies, (unsigned int)ORACLE_COPIES_MAX);
	o->copy[o->copies].incarnation = block->incarnation;
	o->copy[o->copies].bytes = malloc(block->max_bytes);
	ASSERT(o->copy[o->copies].bytes);
	/* Not what memory begins with: a page that is never copied is a difference. */
	memset(o->copy[o->copies].bytes, 0xa5, block->max_bytes);
	return o->copy[o->copies++].bytes;
}

static inline void oracle_sync(struct oracle *o)
{
	struct gr_error err;

	if (gr_track_sync(o->track, &err) < 0) {
		FAIL("%s: sync: %s", o->name, err.msg);
	}
}

static inline void oracle_begin(struct oracle *o)
{
	ASSERT_EQ(gr_dirty_epoch_begin(o->consumer, &o->epoch_pages, NULL), 0);
}

static inline void oracle_rearm(struct oracle *o, struct gr_ram_block *block, uint64_t offset,
				uint64_t bytes)
{
	struct gr_error err;

	if (gr_track_rearm(o->track, block, offset, bytes, &err) < 0) {
		FAIL("%s: rearm: %s", o->name, err.msg);
	}
}

static inline void oracle_read(struct oracle *o, struct gr_ram_block *block, uint64_t offset,
			       uint64_t bytes)
{
#ifndef GR_MUTANT_ORACLE_READS_FIRST
	oracle_rearm(o, block, offset, bytes);
#endif
	gr_copy_from_guest(oracle_copy_of(o, block) + offset, block->host + offset, bytes);
#ifdef GR_MUTANT_ORACLE_READS_FIRST
	oracle_rearm(o, block, offset, bytes);
#endif
	o->pages_copied += bytes / ORACLE_PAGE;
}

/* What nobody can write has no copy. */
static inline bool oracle_copies(const struct gr_ram_block *block)
{
	return !(gr_ram_block_flags(block) & GR_RAM_HOST_READONLY);
}

/* Reads the part of a run that lies in one block, or skips what is in none. */
static inline uint64_t oracle_read_some(struct oracle *o, uint64_t page, uint64_t pages)
{
	uint64_t skip = 64 - page % 64, n, offset, used;
	struct gr_ram_block *block;

	gr_rcu_read_lock();
	block = gr_ram_block_find_rcu(o->ram, gr_ram_addr(page * ORACLE_PAGE));
	if (block) {
		gr_ram_block_get(block);
	}
	gr_rcu_read_unlock();
	if (!block) {
		return skip < pages ? skip : pages;
	}
	offset = page * ORACLE_PAGE - block->offset.v;
	used = gr_ram_block_used_bytes(block);
	n = skip < pages ? skip : pages;
	if (offset < used) {
		n = (used - offset) / ORACLE_PAGE;
		n = n < pages ? n : pages;
		if (oracle_copies(block)) {
			oracle_read(o, block, offset, n * ORACLE_PAGE);
		}
	}
	gr_ram_block_put(block);
	return n;
}

/* The pages of the open epoch. */
static inline void oracle_read_epoch(struct oracle *o)
{
	uint64_t first, pages;

	/* A full start has every page covered, far beyond the blocks: look each run up once. */
	for (uint64_t at = 0; gr_dirty_epoch_next(o->consumer, at, &first, &pages);) {
		for (at = first; at < first + pages;) {
			at += oracle_read_some(o, at, first + pages - at);
		}
	}
}

static inline void oracle_commit(struct oracle *o)
{
	ASSERT_EQ(gr_dirty_epoch_commit(o->consumer), 0);
	o->rounds++;
}

static inline void oracle_round(struct oracle *o)
{
	oracle_sync(o);
	oracle_begin(o);
	oracle_read_epoch(o);
	oracle_commit(o);
}

/* After the writers have stopped: a last round, then the comparison. Ends the oracle. */
static inline void oracle_check(struct oracle *o)
{
	struct gr_ram_block *block;
	unsigned int blocks = 0;

	oracle_round(o);
	gr_rcu_read_lock();
	gr_ram_for_each_block_rcu(block, o->ram) {
		const uint8_t *copy;

		if (!oracle_copies(block)) {
			continue;
		}
		copy = oracle_copy_of(o, block);
		for (uint64_t at = 0; at < gr_ram_block_used_bytes(block); at += ORACLE_PAGE) {
			if (memcmp(copy + at, block->host + at, ORACLE_PAGE) != 0) {
				FAIL("%s: page %llu of block '%s' differs", o->name,
				     (unsigned long long)(at / ORACLE_PAGE), block->id);
			}
		}
		blocks++;
	}
	gr_rcu_read_unlock();
	ASSERT_GT(blocks, 0u);
	test_diag("%s: %llu rounds, %llu pages copied, %u blocks equal", o->name,
		  (unsigned long long)o->rounds, (unsigned long long)o->pages_copied, blocks);
	gr_dirty_consumer_del(o->consumer);
	for (unsigned int i = 0; i < o->copies; i++) {
		free(o->copy[i].bytes);
	}
}

#endif
