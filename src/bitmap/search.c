/* SPDX-License-Identifier: MIT */
/* What a private set has, in order: from each level to the next lower one that has something. */
#include "bitmap/bits.h"

static const uint64_t ones = ~(uint64_t)0;

/* Bits strictly above n. */
static uint64_t above(unsigned int n)
{
	return ones << 1 << (n % 64);
}

/* The first page of a line of g that is set, at or after `from`; GR_BITS_LINE_PAGES: none is. */
static unsigned int next_in_line(const struct gr_bits *bits, const struct gr_bits_group *g,
				 unsigned int line, unsigned int from)
{
	const struct gr_bits_line *l;
	uint64_t x = ones << (from % 64);

	if (g->whole & gr_bits_bit(line)) {
		return from;
	}
	if ((g->any & gr_bits_bit(line)) == 0) {
		return GR_BITS_LINE_PAGES;
	}
	l = gr_bits_stored(bits, g, line);
	for (unsigned int w = from / 64; w < GR_BITS_LINE_WORDS; w++, x = ones) {
		x &= l->word[w];
		if (x) {
			return w * 64 + gr_bits_first(x);
		}
	}
	return GR_BITS_LINE_PAGES;
}

/* The same in a chunk; GR_BITS_CHUNK_PAGES: none is. */
static unsigned int next_in_chunk(const struct gr_bits *bits, const struct gr_bits_chunk *c,
				  unsigned int from)
{
	unsigned int group = gr_bits_group_of(from), line = gr_bits_line_of(from);
	const struct gr_bits_group *g = &c->group[group];
	uint64_t x = 0;

	if (c->top & gr_bits_bit(group)) {
		unsigned int p = next_in_line(bits, g, line, from % GR_BITS_LINE_PAGES);

		if (p < GR_BITS_LINE_PAGES) {
			return from - from % GR_BITS_LINE_PAGES + p;
		}
		x = g->any & above(line);
	}
	if (!x) {
		x = c->top & above(group);
		if (!x) {
			return GR_BITS_CHUNK_PAGES;
		}
		group = gr_bits_first(x);
		g = &c->group[group];
		x = g->any;
	}
	line = gr_bits_first(x);
	return group * GR_BITS_GROUP_PAGES + line * GR_BITS_LINE_PAGES +
	       next_in_line(bits, g, line, 0);
}

bool gr_bits_find_set(const struct gr_bits *bits, uint64_t from, uint64_t *ret_page)
{
	size_t n = gr_bits_chunks(bits);
	unsigned int p = (unsigned int)(from % GR_BITS_CHUNK_PAGES);

	for (uint64_t i = from / GR_BITS_CHUNK_PAGES; i < n; i++, p = 0) {
		if (bits->chunk[i].top == 0) {
			continue;
		}
		p = next_in_chunk(bits, &bits->chunk[i], p);
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
	uint64_t covered = (uint64_t)gr_bits_chunks(bits) * GR_BITS_CHUNK_PAGES;
	uint64_t at = from;

	while (at < covered) {
		const struct gr_bits_group *g =
			&gr_bits_chunk_of(bits, at)->group[gr_bits_group_of(at)];
		uint64_t x;

		if (g->whole & gr_bits_bit(gr_bits_line_of(at))) {
			at += g->whole == ones ? GR_BITS_GROUP_PAGES - at % GR_BITS_GROUP_PAGES
					       : GR_BITS_LINE_PAGES - at % GR_BITS_LINE_PAGES;
			continue;
		}
		x = ~gr_bits_word(bits, at) & ones << (at % 64);
		if (x) {
			return at - at % 64 + gr_bits_first(x);
		}
		at += 64 - at % 64;
	}
	return covered;
}

bool gr_bits_next_run(const struct gr_bits *bits, uint64_t from, uint64_t *ret_first,
		      uint64_t *ret_pages)
{
	uint64_t first;

	if (bits->pages == 0 || !gr_bits_find_set(bits, from, &first)) {
		return false;
	}
	*ret_first = first;
	*ret_pages = find_clear(bits, first) - first;
	return true;
}

uint64_t gr_bits_count(const struct gr_bits *bits, uint64_t page, uint64_t pages)
{
	uint64_t end = gr_bits_cut(bits, page, pages), n = 0, first, run;

	while (page < end && gr_bits_next_run(bits, page, &first, &run) && first < end) {
		n += GR_MIN(run, end - first);
		page = first + run;
	}
	return n;
}
