/* SPDX-License-Identifier: MIT */
/*
 * Sets of page numbers as bitmaps of three levels. A leaf bit is a page; 512 pages are a line,
 * which is what a cache fetches. A sum bit says that a line may have pages, and a top bit that a
 * sum word, which is 64 lines or a *group*, may. Finding what is set costs what is set, not what
 * exists, and of each level the lines that are touched for a few pages lie side by side but those
 * of the leaves. A chunk is the 64 groups of a top word: 2 Mi pages, 8 GiB of 4 KiB pages.
 *
 * Two users share the shape. The live bitmap (dirty.h) is written by many threads with atomic
 * operations, so each of its leaves has its own place, and its summaries may say too much.
 *
 * struct gr_bits below is private to one thread or lock, plain memory, and its summaries and its
 * count are exact. It stores the lines that it has and no others, packed, in the order in which
 * they came: what is sparse takes a line for each dirty one, and writing them is writing upwards. A
 * line that has all its pages is a bit of its group and is not stored at all.
 */
#ifndef GR_BITMAP_BITS_H
#define GR_BITMAP_BITS_H

#include "base/atomic.h"
#include "base/compiler.h"

enum {
	GR_BITS_PER_WORD = 64,
	GR_BITS_LINE_WORDS = GR_CACHE_LINE / 8,
	GR_BITS_LINE_PAGES = GR_BITS_LINE_WORDS * GR_BITS_PER_WORD,
	GR_BITS_GROUP_LINES = 64,
	GR_BITS_GROUP_PAGES = GR_BITS_GROUP_LINES * GR_BITS_LINE_PAGES,
	GR_BITS_GROUPS = 64, /* of a chunk */
	GR_BITS_CHUNK_LINES = GR_BITS_GROUPS * GR_BITS_GROUP_LINES,
	GR_BITS_CHUNK_PAGES = GR_BITS_GROUPS * GR_BITS_GROUP_PAGES,
	/*
	 * 512 TiB of 4 KiB pages: more than a process can map. On 32 bits 16 TiB: a private set for
	 * those is a mapping of 1 GiB.
	 */
	GR_BITS_CHUNKS_MAX = sizeof(void *) > 4 ? 65536 : 2048,
	GR_BITS_ORDERS = 7, /* blocks of 1, 2, 4 ... 64 lines */
};

#define GR_BITS_PAGES_MAX ((uint64_t)GR_BITS_CHUNKS_MAX * GR_BITS_CHUNK_PAGES)

struct gr_bits_line {
	uint64_t word[GR_BITS_LINE_WORDS];
} GR_ALIGNED(GR_CACHE_LINE);

/* 64 lines. any: has pages. whole: has all of them; what is stored for it means nothing. */
struct gr_bits_group {
	uint64_t any;
	uint64_t whole;
	uint64_t stored; /* has a place in the block; each of any & ~whole does */
	uint32_t block;	 /* its number: for as many lines as are stored, or the next power of 2 */
	uint32_t unused;
};

struct gr_bits_chunk {
	uint64_t top;		     /* (o) a bit: the group has pages */
	struct gr_bits_group *group; /* (c) GR_BITS_GROUPS */
	struct gr_bits_line *store;  /* (c) this chunk's share of the lines of all */
	size_t together; /* (c) in the first chunk of a mapping: how many it has; 0 in the others */
};

/*
 * A private set. Its owner (a thread, or whoever holds a lock) uses it; only its growth comes
 * from elsewhere: gr_bits_grow() may run while the owner reads, because the directory has
 * room for every chunk there can be, and `chunks` is published last.
 */
struct gr_bits {
	struct gr_bits_chunk
		*chunk;	    /* (c) the directory; entries appear before `chunks` counts them */
	size_t chunks;	    /* (a) how many there are; only grows */
	size_t chunks_made; /* (l) of who grows: some may be spare after a failure */
	uint64_t pages;	    /* (o) how many bits are set */
	uint32_t lines;	    /* (o) of the store, in use so far; back to 0 when the set is empty */
	struct gr_bits_blocks {
		uint32_t free; /* (o) the first one that was given back, + 1; 0: none */
		uint32_t next; /* (o) in the slab that is being cut; at a slab's border: none is */
	} block[GR_BITS_ORDERS]; /* of 2^n lines */
};

int gr_bits_init(struct gr_bits *bits);
void gr_bits_destroy(struct gr_bits *bits);
/* 0 or -ENOMEM; what is set stays. Serialised by the caller's lock. */
int gr_bits_grow(struct gr_bits *bits, size_t chunks);

/*
 * store.c: where lines lie. Finds a place for these lines of a group beside those that have one;
 * what is in a new place is undefined. Never fails: growth has made room for all there can be.
 */
void gr_bits_make_room(struct gr_bits *bits, struct gr_bits_group *g, uint64_t lines);
/* The same for a group of which nothing is stored, and stores them: packed in `from`. */
void gr_bits_store(struct gr_bits *bits, struct gr_bits_group *g, uint64_t lines,
		   const struct gr_bits_line *from);
/* No line of a group is stored any more. */
void gr_bits_release(struct gr_bits *bits, struct gr_bits_group *g);
/* None of any group is. The caller has forgotten the groups'. */
void gr_bits_release_all(struct gr_bits *bits);
/* A line of a group that is stored. */
struct gr_bits_line *gr_bits_stored(const struct gr_bits *bits, const struct gr_bits_group *g,
				    unsigned int line);

/* Pages of one group on their way from set to set. */
struct gr_bits_batch {
	uint64_t whole;		 /* lines that have all their pages */
	uint64_t part;		 /* others that have some: in `line`, packed */
	unsigned int part_pages; /* how many those have */
	struct gr_bits_line line[GR_BITS_GROUP_LINES];
};

/* OR them in. */
void gr_bits_or_batch(struct gr_bits *bits, size_t chunk, unsigned int group,
		      const struct gr_bits_batch *batch);
/* The 64 pages from `page`, a multiple of 64, as a word; what is not covered is 0 or left out. */
uint64_t gr_bits_word(const struct gr_bits *bits, uint64_t page);
void gr_bits_or_word(struct gr_bits *bits, uint64_t page, uint64_t word);
/* Ranges beyond the covered pages are cut off. Both return how many bits changed. */
uint64_t gr_bits_set_range(struct gr_bits *bits, uint64_t page, uint64_t pages);
uint64_t gr_bits_clear_range(struct gr_bits *bits, uint64_t page, uint64_t pages);
/* Every covered page; costs 2 KiB per chunk. */
void gr_bits_fill(struct gr_bits *bits);
/* Costs the groups that have something. */
void gr_bits_clear(struct gr_bits *bits);
/* dst |= src; dst covers at least as much. Costs what src has. */
void gr_bits_or(struct gr_bits *dst, const struct gr_bits *src);
/* search.c. How many of these pages are set. */
uint64_t gr_bits_count(const struct gr_bits *bits, uint64_t page, uint64_t pages);
/* The next run of set bits at or after `from`, merged across words and chunks. */
bool gr_bits_next_run(const struct gr_bits *bits, uint64_t from, uint64_t *ret_first,
		      uint64_t *ret_pages);
/* The first set bit at or after `from`. */
bool gr_bits_find_set(const struct gr_bits *bits, uint64_t from, uint64_t *ret_page);

static inline size_t gr_bits_chunks(const struct gr_bits *bits)
{
	return gr_load_acquire(&bits->chunks); /* pairs with the release in gr_bits_grow() */
}

static inline struct gr_bits_chunk *gr_bits_chunk_of(const struct gr_bits *bits, uint64_t page)
{
	return &bits->chunk[page / GR_BITS_CHUNK_PAGES];
}

/* A page's group in its chunk, and its line in its group. */
static inline unsigned int gr_bits_group_of(uint64_t page)
{
	return (unsigned int)(page / GR_BITS_GROUP_PAGES % GR_BITS_GROUPS);
}

static inline unsigned int gr_bits_line_of(uint64_t page)
{
	return (unsigned int)(page / GR_BITS_LINE_PAGES % GR_BITS_GROUP_LINES);
}

/* Cuts a range to what is covered; returns its last page + 1, which is `page` if nothing is left.
 */
static inline uint64_t gr_bits_cut(const struct gr_bits *bits, uint64_t page, uint64_t pages)
{
	uint64_t covered = (uint64_t)gr_bits_chunks(bits) * GR_BITS_CHUNK_PAGES;

	if (page >= covered) {
		return page;
	}
	return page + GR_MIN(pages, covered - page);
}

/* Bits first to last of a word, both included. */
static inline uint64_t gr_bits_mask(unsigned int first, unsigned int last)
{
	return (~(uint64_t)0 << first) & (~(uint64_t)0 >> (63 - last));
}

static inline uint64_t gr_bits_bit(unsigned int n)
{
	return (uint64_t)1 << (n % 64);
}

/* How many bits are set. Without an instruction for it, compilers call a function that is slower.
 */
static inline unsigned int gr_bits_in(uint64_t x)
{
#if defined(__x86_64__) && !defined(__POPCNT__)
	x -= x >> 1 & 0x5555555555555555u;
	x = (x & 0x3333333333333333u) + (x >> 2 & 0x3333333333333333u);
	x = (x + (x >> 4)) & 0x0f0f0f0f0f0f0f0fu;
	return (unsigned int)(x * 0x0101010101010101u >> 56);
#else
	return (unsigned int)__builtin_popcountll(x);
#endif
}

static inline unsigned int gr_bits_first(uint64_t x)
{
	return (unsigned int)__builtin_ctzll(x);
}

#endif
