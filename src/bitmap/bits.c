/* SPDX-License-Identifier: MIT */
#include "bitmap/bits.h"
#include "base/atomic.h"
#include "base/memory.h"
#include <assert.h>
#include <errno.h>
#include <string.h>

static_assert(offsetof(struct gr_bits_chunk, sum) % GR_CACHE_LINE == 0, "sum shares a line");
static_assert(offsetof(struct gr_bits_chunk, top) % GR_CACHE_LINE == 0, "top shares a line");

struct gr_bits_chunk *gr_bits_chunk_create(void)
{
	return gr_pages_alloc(sizeof(struct gr_bits_chunk));
}

void gr_bits_chunk_free(struct gr_bits_chunk *chunk)
{
	if (chunk) {
		gr_pages_free(chunk, sizeof(*chunk));
	}
}

#define DIRECTORY_BYTES (GR_BITS_CHUNKS_MAX * sizeof(struct gr_bits_chunk *))

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
	for (size_t i = 0; i < bits->chunks_made; i++) {
		gr_bits_chunk_free(bits->chunk[i]);
	}
	gr_pages_free(bits->chunk, DIRECTORY_BYTES);
	memset(bits, 0, sizeof(*bits));
}

int gr_bits_grow(struct gr_bits *bits, size_t chunks)
{
	GR_ASSERT(chunks <= GR_BITS_CHUNKS_MAX);
	while (bits->chunks_made < chunks) {
		struct gr_bits_chunk *c = gr_bits_chunk_create();

		if (!c) {
			return -ENOMEM;
		}
		bits->chunk[bits->chunks_made++] = c;
	}
	if (chunks > gr_load_relaxed(&bits->chunks)) {
		/* The entries before the count; pairs with the acquire in chunks_of(). */
		gr_store_release(&bits->chunks, chunks);
	}
	return 0;
}

static size_t chunks_of(const struct gr_bits *bits)
{
	return gr_load_acquire(&bits->chunks); /* pairs with the release in gr_bits_grow() */
}

static unsigned int or_word(struct gr_bits_chunk *c, unsigned int w, uint64_t mask)
{
	uint64_t fresh = mask & ~c->leaf[w];
	unsigned int v = w / 64;

	c->leaf[w] |= mask;
	c->sum[v] |= (uint64_t)1 << (w % 64);
	c->top[v / 64] |= (uint64_t)1 << (v % 64);
	return (unsigned int)__builtin_popcountll(fresh);
}

unsigned int gr_bits_or_word(struct gr_bits *bits, size_t chunk, unsigned int word, uint64_t mask)
{
	unsigned int fresh;

	GR_DEBUG_ASSERT(chunk < chunks_of(bits) && word < GR_BITS_LEAVES && mask);
	fresh = or_word(bits->chunk[chunk], word, mask);
	bits->pages += fresh;
	return fresh;
}

/* Cuts a range to what is covered; returns its last page + 1, which is `page` if nothing is left. */
static uint64_t cut_range(const struct gr_bits *bits, uint64_t page, uint64_t pages)
{
	uint64_t covered = (uint64_t)chunks_of(bits) * GR_BITS_CHUNK_PAGES;

	if (page >= covered) {
		return page;
	}
	return page + GR_MIN(pages, covered - page);
}

uint64_t gr_bits_set_range(struct gr_bits *bits, uint64_t page, uint64_t pages)
{
	uint64_t end = cut_range(bits, page, pages), fresh = 0;

	while (page < end) {
		unsigned int first = (unsigned int)(page % 64);
		uint64_t n = GR_MIN(end - page, (uint64_t)64 - first);
		unsigned int word = (unsigned int)(page / 64 % GR_BITS_LEAVES);

		fresh += or_word(bits->chunk[page / GR_BITS_CHUNK_PAGES], word,
				 gr_bits_mask(first, first + (unsigned int)n - 1));
		page += n;
	}
	bits->pages += fresh;
	return fresh;
}

void gr_bits_fill(struct gr_bits *bits)
{
	size_t n = chunks_of(bits);

	for (size_t i = 0; i < n; i++) {
		memset(bits->chunk[i], 0xff, sizeof(*bits->chunk[i]));
	}
	bits->pages = (uint64_t)n * GR_BITS_CHUNK_PAGES;
}

void gr_bits_clear(struct gr_bits *bits)
{
	size_t n = chunks_of(bits);

	for (size_t i = 0; i < n && bits->pages != 0; i++) {
		struct gr_bits_chunk *c = bits->chunk[i];

		for (unsigned int t = 0; t < GR_BITS_TOPS; t++) {
			for (uint64_t x = c->top[t]; x; x &= x - 1) {
				unsigned int v = t * 64 + (unsigned int)__builtin_ctzll(x);

				for (uint64_t y = c->sum[v]; y; y &= y - 1) {
					c->leaf[v * 64 + (unsigned int)__builtin_ctzll(y)] = 0;
				}
				c->sum[v] = 0;
			}
			c->top[t] = 0;
		}
	}
	bits->pages = 0;
}

void gr_bits_or(struct gr_bits *dst, const struct gr_bits *src)
{
	size_t n = chunks_of(src);
	uint64_t fresh = 0;

	for (size_t i = 0; i < n; i++) {
		const struct gr_bits_chunk *c = src->chunk[i];

		for (unsigned int t = 0; t < GR_BITS_TOPS; t++) {
			for (uint64_t x = c->top[t]; x; x &= x - 1) {
				unsigned int v = t * 64 + (unsigned int)__builtin_ctzll(x);

				for (uint64_t y = c->sum[v]; y; y &= y - 1) {
					unsigned int w = v * 64 + (unsigned int)__builtin_ctzll(y);

					fresh += or_word(dst->chunk[i], w, c->leaf[w]);
				}
			}
		}
	}
	dst->pages += fresh;
}

/* The first non-zero leaf word at or after w, GR_BITS_LEAVES if there is none. */
static unsigned int next_word(const struct gr_bits_chunk *c, unsigned int w)
{
	unsigned int v = w / 64, t = v / 64;
	uint64_t y = c->sum[v] & ~(uint64_t)0 << (w % 64), x;

	if (y) {
		return v * 64 + (unsigned int)__builtin_ctzll(y);
	}
	/* Strictly after v: its own word has been looked at. */
	x = c->top[t] & (~(uint64_t)1 << (v % 64));
	while (!x && ++t < GR_BITS_TOPS) {
		x = c->top[t];
	}
	if (!x) {
		return GR_BITS_LEAVES;
	}
	v = t * 64 + (unsigned int)__builtin_ctzll(x);
	return v * 64 + (unsigned int)__builtin_ctzll(c->sum[v]);
}

static uint64_t clear_in_word(struct gr_bits_chunk *c, unsigned int w, uint64_t mask)
{
	uint64_t gone = c->leaf[w] & mask;
	unsigned int v = w / 64;

	c->leaf[w] &= ~mask;
	if (c->leaf[w] == 0) {
		c->sum[v] &= ~((uint64_t)1 << (w % 64));
		if (c->sum[v] == 0) {
			c->top[v / 64] &= ~((uint64_t)1 << (v % 64));
		}
	}
	return (uint64_t)__builtin_popcountll(gone);
}

uint64_t gr_bits_clear_range(struct gr_bits *bits, uint64_t page, uint64_t pages)
{
	uint64_t end = cut_range(bits, page, pages), gone = 0;

	while (page < end) {
		struct gr_bits_chunk *c = bits->chunk[page / GR_BITS_CHUNK_PAGES];
		uint64_t base = page - page % GR_BITS_CHUNK_PAGES;
		unsigned int w = next_word(c, (unsigned int)(page / 64 % GR_BITS_LEAVES));
		uint64_t at = base + (uint64_t)w * 64; /* == next chunk when there is no word */

		if (w < GR_BITS_LEAVES && at < end) {
			unsigned int first = at < page ? (unsigned int)(page % 64) : 0;
			unsigned int last = (unsigned int)(GR_MIN(end - at, (uint64_t)64) - 1);

			gone += clear_in_word(c, w, gr_bits_mask(first, last));
			at += 64;
		}
		page = at;
	}
	bits->pages -= gone;
	return gone;
}

static bool find_set(const struct gr_bits *bits, uint64_t from, uint64_t *ret_page)
{
	size_t n = chunks_of(bits);
	unsigned int bit = (unsigned int)(from % 64);
	unsigned int w = (unsigned int)(from / 64 % GR_BITS_LEAVES);

	for (uint64_t i = from / GR_BITS_CHUNK_PAGES; i < n; i++, w = 0, bit = 0) {
		const struct gr_bits_chunk *c = bits->chunk[i];
		uint64_t x = c->leaf[w] & ~(uint64_t)0 << bit;

		if (!x) {
			w = w + 1 < GR_BITS_LEAVES ? next_word(c, w + 1) : GR_BITS_LEAVES;
			if (w == GR_BITS_LEAVES) {
				continue;
			}
			x = c->leaf[w];
		}
		*ret_page = i * GR_BITS_CHUNK_PAGES + (uint64_t)w * 64 +
			    (unsigned int)__builtin_ctzll(x);
		return true;
	}
	return false;
}

/* The first clear bit at or after `from`; the number of covered pages if there is none. */
static uint64_t find_clear(const struct gr_bits *bits, uint64_t from)
{
	uint64_t covered = (uint64_t)chunks_of(bits) * GR_BITS_CHUNK_PAGES;

	for (uint64_t at = from - from % 64; at < covered; at += 64) {
		const struct gr_bits_chunk *c = bits->chunk[at / GR_BITS_CHUNK_PAGES];
		uint64_t x = ~c->leaf[at / 64 % GR_BITS_LEAVES];

		if (at < from) {
			x &= ~(uint64_t)0 << (from % 64);
		}
		if (x) {
			return at + (unsigned int)__builtin_ctzll(x);
		}
	}
	return covered;
}

bool gr_bits_next_run(const struct gr_bits *bits, uint64_t from, uint64_t *ret_first,
		      uint64_t *ret_pages)
{
	uint64_t first;

	if (bits->pages == 0 || !find_set(bits, from, &first)) {
		return false;
	}
	*ret_first = first;
	*ret_pages = find_clear(bits, first) - first;
	return true;
}
