/* SPDX-License-Identifier: MIT */
/*
 * Sets of page numbers as bitmaps of three levels: a leaf bit is a page, a sum bit says that
 * a leaf word may be non-zero, a top bit that a sum word may be. Finding what is set costs
 * what is set, not what exists. A chunk covers 2 Mi pages (8 GiB of 4 KiB pages) and never
 * moves.
 *
 * Below a top bit there is a second thing: a whole bit says that all 4096 pages of a sum word
 * are set, whatever their own bits are. So a terabyte that is set as a whole costs a few
 * hundred words and no memory for its leaves.
 *
 * Two users share the shape. The live bitmap (dirty.h) is written by many threads with atomic
 * operations and its summaries may say too much. struct gr_bits below is private to one
 * thread or lock, plain memory, and its summaries and its count are exact; where a whole
 * bit is set the sum word and the leaves below are zero.
 */
#ifndef GR_BITMAP_BITS_H
#define GR_BITMAP_BITS_H

#include "base/compiler.h"

enum {
	GR_BITS_PER_WORD = 64,
	GR_BITS_LEAVES = 32768,
	GR_BITS_SUMS = GR_BITS_LEAVES / GR_BITS_PER_WORD,
	GR_BITS_TOPS = GR_BITS_SUMS / GR_BITS_PER_WORD,
	GR_BITS_SUM_PAGES = GR_BITS_PER_WORD * GR_BITS_PER_WORD,
	GR_BITS_CHUNK_PAGES = GR_BITS_LEAVES * GR_BITS_PER_WORD,
	/* 512 TiB of 4 KiB pages: more than a process can map. */
	GR_BITS_CHUNKS_MAX = 65536,
};

#define GR_BITS_PAGES_MAX ((uint64_t)GR_BITS_CHUNKS_MAX * GR_BITS_CHUNK_PAGES)

/* The levels lie on different cache lines; markers of 2 MiB of guest share one. */
struct gr_bits_chunk {
	uint64_t leaf[GR_BITS_LEAVES];
	uint64_t sum[GR_BITS_SUMS];
	uint64_t top[GR_BITS_TOPS];
	uint64_t whole[GR_BITS_TOPS];
	size_t together; /* (c) in the first chunk of a mapping: how many it has; 0 in the others */
} GR_ALIGNED(GR_CACHE_LINE);

/*
 * Fills chunk[0..n-1] with zeroed, page-aligned chunks, which cost nothing until they are
 * touched. One mapping for all of them, so that a terabyte is added in one system call.
 * 0 or -ENOMEM.
 */
int gr_bits_chunks_create(struct gr_bits_chunk **chunk, size_t n);
/* Of n chunks: whole mappings. */
void gr_bits_chunks_free(struct gr_bits_chunk **chunk, size_t n);

/*
 * A private set. Its owner (a thread, or whoever holds a lock) uses it; only its growth comes
 * from elsewhere: gr_bits_grow() may run while the owner reads, because the directory has
 * room for every chunk there can be, and `chunks` is published last.
 */
struct gr_bits {
	struct gr_bits_chunk **chunk; /* (c) the array; its entries appear before `chunks` counts them */
	size_t chunks;		      /* (a) how many there are; only grows */
	size_t chunks_made;	      /* (l) of who grows: some may be spare after a failure */
	uint64_t pages;		      /* (o) how many bits are set */
};

int gr_bits_init(struct gr_bits *bits);
void gr_bits_destroy(struct gr_bits *bits);
/* 0 or -ENOMEM; what is set stays. Serialised by the caller's lock. */
int gr_bits_grow(struct gr_bits *bits, size_t chunks);

/*
 * OR the leaf words of sum word v of a chunk in: those that `mask` names, none of them zero;
 * words[] has all 64 places. Words that are all ones together become a whole bit.
 */
void gr_bits_or_words(struct gr_bits *bits, size_t chunk, unsigned int v, uint64_t mask,
		      const uint64_t *words);
/* The 64 pages from `page`, a multiple of 64, as a word; what is not covered is 0 or left out. */
uint64_t gr_bits_word(const struct gr_bits *bits, uint64_t page);
void gr_bits_or_word(struct gr_bits *bits, uint64_t page, uint64_t word);
/* Set all pages of sum word v of a chunk. */
void gr_bits_or_whole(struct gr_bits *bits, size_t chunk, unsigned int v);
/* Ranges beyond the covered pages are cut off. Both return how many bits changed. */
uint64_t gr_bits_set_range(struct gr_bits *bits, uint64_t page, uint64_t pages);
uint64_t gr_bits_clear_range(struct gr_bits *bits, uint64_t page, uint64_t pages);
/* Every covered page; costs a line per chunk. */
void gr_bits_fill(struct gr_bits *bits);
/* Costs what is set. */
void gr_bits_clear(struct gr_bits *bits);
/* dst |= src; dst covers at least as much. Costs what src has. */
void gr_bits_or(struct gr_bits *dst, const struct gr_bits *src);
/* How many of these pages are set. */
uint64_t gr_bits_count(const struct gr_bits *bits, uint64_t page, uint64_t pages);
/* The next run of set bits at or after `from`, merged across words and chunks. */
bool gr_bits_next_run(const struct gr_bits *bits, uint64_t from, uint64_t *ret_first,
		      uint64_t *ret_pages);

/* Bits first to last of a word, both included. */
static inline uint64_t gr_bits_mask(unsigned int first, unsigned int last)
{
	return (~(uint64_t)0 << first) & (~(uint64_t)0 >> (63 - last));
}

#endif
