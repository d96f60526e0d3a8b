/* SPDX-License-Identifier: MIT */
#include "bitmap/bits.h"
#include "base/atomic.h"
#include "base/memory.h"
#include <assert.h>
#include <errno.h>
#include <string.h>

static_assert(offsetof(struct gr_bits_chunk, sum) % GR_CACHE_LINE == 0, "sum shares a line");
static_assert(offsetof(struct gr_bits_chunk, top) % GR_CACHE_LINE == 0, "top shares a line");
static_assert(offsetof(struct gr_bits_chunk, whole) % GR_CACHE_LINE == 0, "whole shares a line");

static size_t chunk_stride(void)
{
	return GR_ROUND_UP(sizeof(struct gr_bits_chunk), gr_page_bytes());
}

int gr_bits_chunks_create(struct gr_bits_chunk **chunk, size_t n)
{
	size_t stride = chunk_stride();
	unsigned char *mapping;

	if (n == 0) {
		return 0;
	}
	mapping = gr_pages_alloc(n * stride);
	if (!mapping) {
		return -ENOMEM;
	}
	for (size_t i = 0; i < n; i++) {
		chunk[i] = (void *)(mapping + i * stride);
	}
	chunk[0]->together = n;
	return 0;
}

void gr_bits_chunks_free(struct gr_bits_chunk **chunk, size_t n)
{
	for (size_t i = 0, together; i < n; i += together) {
		together = chunk[i]->together;
		GR_ASSERT(together > 0 && together <= n - i);
		gr_pages_free(chunk[i], together * chunk_stride());
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
	gr_bits_chunks_free(bits->chunk, bits->chunks_made);
	gr_pages_free(bits->chunk, DIRECTORY_BYTES);
	memset(bits, 0, sizeof(*bits));
}

int gr_bits_grow(struct gr_bits *bits, size_t chunks)
{
	size_t made = bits->chunks_made;

	GR_ASSERT(chunks <= GR_BITS_CHUNKS_MAX);
	if (made < chunks) {
		if (gr_bits_chunks_create(bits->chunk + made, chunks - made) != 0) {
			return -ENOMEM;
		}
		bits->chunks_made = chunks;
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

static uint64_t bit(unsigned int n)
{
	return (uint64_t)1 << (n % 64);
}

static bool is_whole(const struct gr_bits_chunk *c, unsigned int v)
{
	return (c->whole[v / 64] & bit(v)) != 0;
}

static unsigned int or_word(struct gr_bits_chunk *c, unsigned int w, uint64_t mask)
{
	uint64_t fresh = mask & ~c->leaf[w];
	unsigned int v = w / 64;

	if (is_whole(c, v)) {
		return 0;
	}
	c->leaf[w] |= mask;
	c->sum[v] |= bit(w);
	c->top[v / 64] |= bit(v);
	return (unsigned int)__builtin_popcountll(fresh);
}

/* Forget the leaves below sum word v; returns how many pages they had. */
static unsigned int drop_leaves(struct gr_bits_chunk *c, unsigned int v)
{
	unsigned int had = 0;

	for (uint64_t y = c->sum[v]; y; y &= y - 1) {
		uint64_t *leaf = &c->leaf[v * 64 + (unsigned int)__builtin_ctzll(y)];

		had += (unsigned int)__builtin_popcountll(*leaf);
		*leaf = 0;
	}
	c->sum[v] = 0;
	return had;
}

static unsigned int or_whole(struct gr_bits_chunk *c, unsigned int v)
{
	unsigned int had;

	if (is_whole(c, v)) {
		return 0;
	}
	had = drop_leaves(c, v);
	c->whole[v / 64] |= bit(v);
	c->top[v / 64] |= bit(v);
	return GR_BITS_SUM_PAGES - had;
}

/* Some of the pages of a whole bit are about to go: the same set, with bits of their own. */
static void split_whole(struct gr_bits_chunk *c, unsigned int v)
{
	memset(&c->leaf[v * 64], 0xff, 64 * sizeof(c->leaf[0]));
	c->sum[v] = ~(uint64_t)0;
	c->whole[v / 64] &= ~bit(v);
}

void gr_bits_or_words(struct gr_bits *bits, size_t chunk, unsigned int v, uint64_t mask,
		      const uint64_t *words)
{
	struct gr_bits_chunk *c = bits->chunk[chunk];
	unsigned int fresh = 0;

	GR_DEBUG_ASSERT(chunk < chunks_of(bits) && v < GR_BITS_SUMS && mask);
	if (mask == ~(uint64_t)0) {
		uint64_t all = mask;

		for (unsigned int i = 0; i < 64; i++) {
			all &= words[i];
		}
		if (all == ~(uint64_t)0) {
			bits->pages += or_whole(c, v);
			return;
		}
	}
	if (is_whole(c, v)) {
		return;
	}
	for (uint64_t y = mask; y; y &= y - 1) {
		unsigned int i = (unsigned int)__builtin_ctzll(y);
		uint64_t *leaf = &c->leaf[v * 64 + i];

		fresh += (unsigned int)__builtin_popcountll(words[i] & ~*leaf);
		*leaf |= words[i];
	}
	c->sum[v] |= mask;
	c->top[v / 64] |= bit(v);
	bits->pages += fresh;
}

uint64_t gr_bits_word(const struct gr_bits *bits, uint64_t page)
{
	const struct gr_bits_chunk *c;
	unsigned int w = (unsigned int)(page / 64 % GR_BITS_LEAVES);

	if (page / GR_BITS_CHUNK_PAGES >= chunks_of(bits)) {
		return 0;
	}
	c = bits->chunk[page / GR_BITS_CHUNK_PAGES];
	return is_whole(c, w / 64) ? ~(uint64_t)0 : c->leaf[w];
}

void gr_bits_or_word(struct gr_bits *bits, uint64_t page, uint64_t word)
{
	if (word && page / GR_BITS_CHUNK_PAGES < chunks_of(bits)) {
		bits->pages += or_word(bits->chunk[page / GR_BITS_CHUNK_PAGES],
				       (unsigned int)(page / 64 % GR_BITS_LEAVES), word);
	}
}

void gr_bits_or_whole(struct gr_bits *bits, size_t chunk, unsigned int v)
{
	bits->pages += or_whole(bits->chunk[chunk], v);
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
		struct gr_bits_chunk *c = bits->chunk[page / GR_BITS_CHUNK_PAGES];
		unsigned int first = (unsigned int)(page % 64);
		uint64_t n = GR_MIN(end - page, (uint64_t)64 - first);

		if (page % GR_BITS_SUM_PAGES == 0 && end - page >= GR_BITS_SUM_PAGES) {
			n = GR_BITS_SUM_PAGES;
			fresh += or_whole(c, (unsigned int)(page / n % GR_BITS_SUMS));
		} else {
			fresh += or_word(c, (unsigned int)(page / 64 % GR_BITS_LEAVES),
					 gr_bits_mask(first, first + (unsigned int)n - 1));
		}
		page += n;
	}
	bits->pages += fresh;
	return fresh;
}

void gr_bits_fill(struct gr_bits *bits)
{
	size_t n = chunks_of(bits);

	gr_bits_clear(bits);
	for (size_t i = 0; i < n; i++) {
		memset(bits->chunk[i]->top, 0xff, sizeof(bits->chunk[i]->top));
		memset(bits->chunk[i]->whole, 0xff, sizeof(bits->chunk[i]->whole));
	}
	bits->pages = (uint64_t)n * GR_BITS_CHUNK_PAGES;
}

void gr_bits_clear(struct gr_bits *bits)
{
	size_t n = chunks_of(bits);

	for (size_t i = 0; i < n && bits->pages != 0; i++) {
		struct gr_bits_chunk *c = bits->chunk[i];

		for (unsigned int t = 0; t < GR_BITS_TOPS; t++) {
			for (uint64_t x = c->top[t] & ~c->whole[t]; x; x &= x - 1) {
				bits->pages -= drop_leaves(
					c, t * 64 + (unsigned int)__builtin_ctzll(x));
			}
			if (c->top[t]) {
				bits->pages -= (uint64_t)__builtin_popcountll(c->whole[t]) *
					       GR_BITS_SUM_PAGES;
				c->whole[t] = 0;
				c->top[t] = 0;
			}
		}
	}
	GR_DEBUG_ASSERT(bits->pages == 0);
}

void gr_bits_or(struct gr_bits *dst, const struct gr_bits *src)
{
	size_t n = chunks_of(src);

	for (size_t i = 0; i < n; i++) {
		const struct gr_bits_chunk *c = src->chunk[i];

		for (unsigned int t = 0; t < GR_BITS_TOPS; t++) {
			for (uint64_t x = c->top[t]; x; x &= x - 1) {
				unsigned int v = t * 64 + (unsigned int)__builtin_ctzll(x);

				if (is_whole(c, v)) {
					gr_bits_or_whole(dst, i, v);
				} else {
					gr_bits_or_words(dst, i, v, c->sum[v], &c->leaf[v * 64]);
				}
			}
		}
	}
}

/* Bits strictly above n. */
static uint64_t above(unsigned int n)
{
	return ~(uint64_t)1 << (n % 64);
}

/* The first set page of a chunk at or after p, GR_BITS_CHUNK_PAGES if there is none. */
static unsigned int next_in_chunk(const struct gr_bits_chunk *c, unsigned int p)
{
	unsigned int w = p / 64, v = w / 64, t = v / 64;
	uint64_t x;

	if (is_whole(c, v)) {
		return p;
	}
	x = c->leaf[w] & ~(uint64_t)0 << (p % 64);
	if (x) {
		return w * 64 + (unsigned int)__builtin_ctzll(x);
	}
	x = c->sum[v] & above(w);
	if (!x) {
		/* Strictly after v: its own word has been looked at. */
		x = c->top[t] & above(v);
		while (!x && ++t < GR_BITS_TOPS) {
			x = c->top[t];
		}
		if (!x) {
			return GR_BITS_CHUNK_PAGES;
		}
		v = t * 64 + (unsigned int)__builtin_ctzll(x);
		if (is_whole(c, v)) {
			return v * GR_BITS_SUM_PAGES;
		}
		x = c->sum[v];
	}
	w = v * 64 + (unsigned int)__builtin_ctzll(x);
	return w * 64 + (unsigned int)__builtin_ctzll(c->leaf[w]);
}

static unsigned int clear_in_word(struct gr_bits_chunk *c, unsigned int w, uint64_t mask)
{
	uint64_t gone = c->leaf[w] & mask;
	unsigned int v = w / 64;

	c->leaf[w] &= ~mask;
	if (c->leaf[w] == 0) {
		c->sum[v] &= ~bit(w);
		if (c->sum[v] == 0) {
			c->top[v / 64] &= ~bit(v);
		}
	}
	return (unsigned int)__builtin_popcountll(gone);
}

/*
 * Clear what is set from page p of a chunk on, at most up to the end of the first whole bit or
 * word, and not beyond `end`; returns where it stopped.
 */
static unsigned int clear_some(struct gr_bits_chunk *c, unsigned int p, uint64_t end,
			       uint64_t *gone)
{
	unsigned int v, w, last;

	p = next_in_chunk(c, p);
	if (p >= end) {
		return p;
	}
	v = p / GR_BITS_SUM_PAGES;
	w = p / 64;
	if (is_whole(c, v)) {
		if (p % GR_BITS_SUM_PAGES == 0 && end - p >= GR_BITS_SUM_PAGES) {
			c->whole[v / 64] &= ~bit(v);
			c->top[v / 64] &= ~bit(v);
			*gone += GR_BITS_SUM_PAGES;
			return p + GR_BITS_SUM_PAGES;
		}
		split_whole(c, v);
	}
	last = (unsigned int)GR_MIN(end - (uint64_t)w * 64, (uint64_t)64) - 1;
	*gone += clear_in_word(c, w, gr_bits_mask(p % 64, last));
	return w * 64 + 64;
}

uint64_t gr_bits_clear_range(struct gr_bits *bits, uint64_t page, uint64_t pages)
{
	uint64_t end = cut_range(bits, page, pages), gone = 0;

	while (page < end) {
		struct gr_bits_chunk *c = bits->chunk[page / GR_BITS_CHUNK_PAGES];
		uint64_t base = page - page % GR_BITS_CHUNK_PAGES;
		uint64_t cut = GR_MIN(end - base, (uint64_t)GR_BITS_CHUNK_PAGES);

		page = base + clear_some(c, (unsigned int)(page - base), cut, &gone);
	}
	bits->pages -= gone;
	return gone;
}

static bool find_set(const struct gr_bits *bits, uint64_t from, uint64_t *ret_page)
{
	size_t n = chunks_of(bits);
	unsigned int p = (unsigned int)(from % GR_BITS_CHUNK_PAGES);

	for (uint64_t i = from / GR_BITS_CHUNK_PAGES; i < n; i++, p = 0) {
		p = next_in_chunk(bits->chunk[i], p);
		if (p < GR_BITS_CHUNK_PAGES) {
			*ret_page = i * GR_BITS_CHUNK_PAGES + p;
			return true;
		}
	}
	return false;
}

/* The first clear bit at or after `from`; the number of covered pages if there is none. */
static uint64_t find_clear(const struct gr_bits *bits, uint64_t from)
{
	uint64_t covered = (uint64_t)chunks_of(bits) * GR_BITS_CHUNK_PAGES;
	uint64_t at = from;

	while (at < covered) {
		const struct gr_bits_chunk *c = bits->chunk[at / GR_BITS_CHUNK_PAGES];
		uint64_t x;

		if (is_whole(c, (unsigned int)(at / GR_BITS_SUM_PAGES % GR_BITS_SUMS))) {
			at += GR_BITS_SUM_PAGES - at % GR_BITS_SUM_PAGES;
			continue;
		}
		x = ~c->leaf[at / 64 % GR_BITS_LEAVES] & ~(uint64_t)0 << (at % 64);
		if (x) {
			return at - at % 64 + (unsigned int)__builtin_ctzll(x);
		}
		at += 64 - at % 64;
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

uint64_t gr_bits_count(const struct gr_bits *bits, uint64_t page, uint64_t pages)
{
	uint64_t end = cut_range(bits, page, pages), n = 0, first, run;

	while (page < end && gr_bits_next_run(bits, page, &first, &run) && first < end) {
		n += GR_MIN(run, end - first);
		page = first + run;
	}
	return n;
}
