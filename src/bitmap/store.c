/* SPDX-License-Identifier: MIT */
/*
 * Where the lines of a private set lie. Those of one group are a block of 1, 2, 4 ... 64 lines, in
 * their order, without gaps: a line's place is how many stored ones are below it. When a block is
 * full its lines move to one twice as large. Blocks are cut from slabs of 64 lines, one order a
 * slab, and go back to a list of that order; when the set is empty all begins anew, so that a set
 * which is filled and emptied in turns uses the same few lines, from the first one upwards.
 *
 * There is always room. A group has one block, so that of order n no more than one per group is in
 * use at a time, and never more are cut: 2^n lines per group, a whole number of slabs per chunk.
 * All orders together are 127 lines per group, of which a chunk brings 128. That is address
 * space: memory is behind what was touched.
 *
 * Model: models/dirty_store.pml.
 */
#include "base/memory.h"
#include "bitmap/bits.h"
#include <assert.h>
#include <errno.h>
#include <stdint.h>
#include <string.h>

enum {
	SLAB_LINES = 1 << (GR_BITS_ORDERS - 1),
	STORE_LINES = GR_BITS_GROUPS * 2 * SLAB_LINES, /* of a chunk */
	CHUNK_BYTES = GR_BITS_GROUPS * sizeof(struct gr_bits_group) +
		      STORE_LINES * sizeof(struct gr_bits_line),
};

static_assert((int)SLAB_LINES == (int)GR_BITS_GROUP_LINES, "a group's lines are one block");
static_assert((int)GR_BITS_GROUPS % (int)SLAB_LINES == 0,
	      "a chunk's blocks of one order are whole slabs");
static_assert(sizeof(struct gr_bits_group) == 32, "two groups a cache line");
static_assert((uint64_t)GR_BITS_CHUNKS_MAX * STORE_LINES <= UINT32_MAX, "a block's number");
static_assert((uint64_t)GR_BITS_CHUNKS_MAX * CHUNK_BYTES <= PTRDIFF_MAX,
	      "mapping_bytes() does not wrap");

#define DIRECTORY_BYTES (GR_BITS_CHUNKS_MAX * sizeof(struct gr_bits_chunk))

static size_t mapping_bytes(size_t chunks)
{
	return GR_ROUND_UP(chunks * CHUNK_BYTES, gr_page_bytes());
}

int gr_bits_init(struct gr_bits *bits)
{
	memset(bits, 0, sizeof(*bits));
	bits->chunk = gr_pages_alloc(DIRECTORY_BYTES);
	return bits->chunk ? 0 : -ENOMEM;
}

void gr_bits_destroy(struct gr_bits *bits)
{
	if (!bits->chunk) {
		return;
	}
	for (size_t i = 0, n; i < bits->chunks_made; i += n) {
		n = bits->chunk[i].together;
		GR_ASSERT(n > 0 && n <= bits->chunks_made - i);
		gr_pages_free(bits->chunk[i].group, mapping_bytes(n));
	}
	gr_pages_free(bits->chunk, DIRECTORY_BYTES);
	memset(bits, 0, sizeof(*bits));
}

/* One mapping for n chunks, so that a terabyte is added in one system call: groups, then lines. */
static int chunks_create(struct gr_bits_chunk *chunk, size_t n)
{
	struct gr_bits_group *groups = gr_pages_alloc(mapping_bytes(n));
	struct gr_bits_line *lines;

	if (!groups) {
		return -ENOMEM;
	}
	lines = (void *)(groups + n * GR_BITS_GROUPS);
	for (size_t i = 0; i < n; i++) {
		chunk[i].group = groups + i * GR_BITS_GROUPS;
		chunk[i].store = lines + i * STORE_LINES;
	}
	chunk[0].together = n;
	return 0;
}

int gr_bits_grow(struct gr_bits *bits, size_t chunks)
{
	size_t made = bits->chunks_made;

	GR_ASSERT(chunks <= GR_BITS_CHUNKS_MAX);
	if (made < chunks) {
		if (chunks_create(bits->chunk + made, chunks - made) != 0) {
			return -ENOMEM;
		}
		bits->chunks_made = chunks;
	}
	if (chunks > gr_load_relaxed(&bits->chunks)) {
		/* The entries before the count; pairs with the acquire in gr_bits_chunks(). */
		gr_store_release(&bits->chunks, chunks);
	}
	return 0;
}

static struct gr_bits_line *line_at(const struct gr_bits *bits, uint32_t n)
{
	return &bits->chunk[n / STORE_LINES].store[n % STORE_LINES];
}

/* Of a block for so many lines, 1 to 64. */
static unsigned int order_of(unsigned int lines)
{
	return lines == 1 ? 0 : 32 - (unsigned int)__builtin_clz(lines - 1);
}

static void give_back(struct gr_bits *bits, uint32_t block, unsigned int order)
{
	line_at(bits, block)->word[0] = bits->block[order].free;
	bits->block[order].free = block + 1;
}

static uint32_t take_block(struct gr_bits *bits, unsigned int order)
{
	struct gr_bits_blocks *b = &bits->block[order];
	uint32_t block;

	if (b->free != 0) {
		block = b->free - 1;
		b->free = (uint32_t)line_at(bits, block)->word[0];
		return block;
	}
	if (b->next % SLAB_LINES == 0) {
		GR_ASSERT(bits->lines / STORE_LINES < gr_load_relaxed(&bits->chunks));
		b->next = bits->lines;
		bits->lines += SLAB_LINES;
		/* Who fills them is a harvest: each of its exchanges waits for the stores before
		 * it. */
		for (uint32_t i = 0; i < SLAB_LINES; i++) {
			(void)gr_load_relaxed(&line_at(bits, b->next + i)->word[0]);
		}
	}
	block = b->next;
	b->next += (uint32_t)1 << order;
	return block;
}

struct gr_bits_line *gr_bits_stored(const struct gr_bits *bits, const struct gr_bits_group *g,
				    unsigned int line)
{
	return line_at(bits, g->block) + gr_bits_in(g->stored & (gr_bits_bit(line) - 1));
}

void gr_bits_make_room(struct gr_bits *bits, struct gr_bits_group *g, uint64_t lines)
{
	uint64_t all = g->stored | lines;
	unsigned int from = gr_bits_in(g->stored), to = gr_bits_in(all);
	uint32_t old = g->block;

	if (from == to) {
		return;
	}
	if (from == 0 || order_of(from) != order_of(to)) {
		g->block = take_block(bits, order_of(to));
	}
	/* From the last on, since the block may be the same. */
	for (uint64_t x = all; from != 0;
	     x &= ~gr_bits_bit(63 - (unsigned int)__builtin_clzll(x))) {
		to--;
#ifdef GR_MUTANT_BITS_ROOM_WITHOUT_MOVE
		from--;
#else
		if (g->stored & gr_bits_bit(63 - (unsigned int)__builtin_clzll(x))) {
			from--;
			*line_at(bits, g->block + to) = *line_at(bits, old + from);
		}
#endif
	}
	if (g->stored != 0 && g->block != old) {
		give_back(bits, old, order_of(gr_bits_in(g->stored)));
	}
	g->stored = all;
}

void gr_bits_store(struct gr_bits *bits, struct gr_bits_group *g, uint64_t lines,
		   const struct gr_bits_line *from)
{
	unsigned int n = gr_bits_in(lines);
	struct gr_bits_line *to;

	g->block = take_block(bits, order_of(n));
	g->stored = lines;
	to = line_at(bits, g->block);
	for (unsigned int i = 0; i < n; i++) {
		to[i] = from[i];
	}
}

void gr_bits_release(struct gr_bits *bits, struct gr_bits_group *g)
{
	if (g->stored != 0) {
#ifndef GR_MUTANT_BITS_RELEASE_LEAKS
		give_back(bits, g->block, order_of(gr_bits_in(g->stored)));
#endif
		g->stored = 0;
	}
}

void gr_bits_release_all(struct gr_bits *bits)
{
	bits->lines = 0;
	memset(bits->block, 0, sizeof(bits->block));
}
