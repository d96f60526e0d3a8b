/* SPDX-License-Identifier: MIT */
#include "bitmap/bits.h"
#include <string.h>

static const uint64_t ones = ~(uint64_t)0;

static unsigned int word_in_line(uint64_t page)
{
	return (unsigned int)(page / GR_BITS_PER_WORD % GR_BITS_LINE_WORDS);
}

/* ---- groups ---------------------------------------------------------------------------- */

/* How many pages these lines have. */
static unsigned int pages_in(const struct gr_bits *bits, const struct gr_bits_group *g,
			     uint64_t lines)
{
	unsigned int pages = gr_bits_in(g->whole & lines) * GR_BITS_LINE_PAGES;

	for (uint64_t x = g->any & ~g->whole & lines; x; x &= x - 1) {
		const struct gr_bits_line *line = gr_bits_stored(bits, g, gr_bits_first(x));

		for (unsigned int w = 0; w < GR_BITS_LINE_WORDS; w++) {
			pages += gr_bits_in(line->word[w]);
		}
	}
	return pages;
}

/* What follows from `any` and `whole`. */
static void settle(struct gr_bits *bits, struct gr_bits_chunk *c, unsigned int group)
{
	struct gr_bits_group *g = &c->group[group];

	if ((g->any & ~g->whole) == 0) {
		gr_bits_release(bits, g);
	}
	if (g->any) {
		c->top |= gr_bits_bit(group);
	} else {
		c->top &= ~gr_bits_bit(group);
	}
}

/* Both return how many pages changed. */
static unsigned int set_lines(struct gr_bits *bits, struct gr_bits_chunk *c, unsigned int group,
			      uint64_t lines)
{
	struct gr_bits_group *g = &c->group[group];
	unsigned int had = pages_in(bits, g, lines);

	g->any |= lines;
	g->whole |= lines;
	settle(bits, c, group);
	return gr_bits_in(lines) * GR_BITS_LINE_PAGES - had;
}

static unsigned int clear_lines(struct gr_bits *bits, struct gr_bits_chunk *c, unsigned int group,
				uint64_t lines)
{
	struct gr_bits_group *g = &c->group[group];
	unsigned int had = pages_in(bits, g, lines);

	g->any &= ~lines;
	g->whole &= ~lines;
	settle(bits, c, group);
	return had;
}

/* The line of a page, with words of its own. */
static struct gr_bits_line *line_for(struct gr_bits *bits, struct gr_bits_group *g, uint64_t page)
{
	uint64_t bit = gr_bits_bit(gr_bits_line_of(page));
	struct gr_bits_line *line;

	gr_bits_make_room(bits, g, bit);
	line = gr_bits_stored(bits, g, gr_bits_line_of(page));
	if ((g->any & ~g->whole & bit) == 0) {
		memset(line, g->whole & bit ? 0xff : 0, sizeof(*line));
	}
	g->whole &= ~bit;
	return line;
}

static unsigned int set_word(struct gr_bits *bits, uint64_t page, uint64_t mask)
{
	struct gr_bits_chunk *c = gr_bits_chunk_of(bits, page);
	struct gr_bits_group *g = &c->group[gr_bits_group_of(page)];
	uint64_t *word, fresh;

	if (g->whole & gr_bits_bit(gr_bits_line_of(page))) {
		return 0;
	}
	word = &line_for(bits, g, page)->word[word_in_line(page)];
	fresh = mask & ~*word;
	*word |= mask;
	g->any |= gr_bits_bit(gr_bits_line_of(page));
	c->top |= gr_bits_bit(gr_bits_group_of(page));
	return gr_bits_in(fresh);
}

static bool is_empty(const struct gr_bits_line *line)
{
	uint64_t some = 0;

	for (unsigned int w = 0; w < GR_BITS_LINE_WORDS; w++) {
		some |= line->word[w];
	}
	return some == 0;
}

static unsigned int clear_word(struct gr_bits *bits, uint64_t page, uint64_t mask)
{
	struct gr_bits_chunk *c = gr_bits_chunk_of(bits, page);
	struct gr_bits_group *g = &c->group[gr_bits_group_of(page)];
	struct gr_bits_line *line = line_for(bits, g, page);
	uint64_t *word = &line->word[word_in_line(page)];
	uint64_t gone = *word & mask;

	*word &= ~mask;
	if (is_empty(line)) {
		g->any &= ~gr_bits_bit(gr_bits_line_of(page));
		settle(bits, c, gr_bits_group_of(page));
	}
	return gr_bits_in(gone);
}

/* ---- sets ------------------------------------------------------------------------------ */

/* *to = from, or *to |= from; returns how many pages are new. */
static unsigned int copy_line(struct gr_bits_line *to, const struct gr_bits_line *from)
{
	unsigned int fresh = 0;

	for (unsigned int w = 0; w < GR_BITS_LINE_WORDS; w++) {
		to->word[w] = from->word[w];
		if (from->word[w]) {
			fresh += gr_bits_in(from->word[w]);
		}
	}
	return fresh;
}

static unsigned int or_line(struct gr_bits_line *to, const struct gr_bits_line *from)
{
	unsigned int fresh = 0;

	for (unsigned int w = 0; w < GR_BITS_LINE_WORDS; w++) {
		fresh += gr_bits_in(from->word[w] & ~to->word[w]);
		to->word[w] |= from->word[w];
	}
	return fresh;
}

void gr_bits_or_batch(struct gr_bits *bits, size_t chunk, unsigned int group,
		      const struct gr_bits_batch *batch)
{
	struct gr_bits_chunk *c = &bits->chunk[chunk];
	struct gr_bits_group *g = &c->group[group];
	const struct gr_bits_line *from = batch->line;
	uint64_t part;

	GR_DEBUG_ASSERT(chunk < gr_bits_chunks(bits) && (batch->whole | batch->part));
	if (batch->whole) {
		bits->pages += set_lines(bits, c, group, batch->whole);
	}
	part = batch->part & ~g->whole;
	if (part == 0) {
		return;
	}
	c->top |= gr_bits_bit(group);
	if (g->stored == 0 && part == batch->part) { /* as most often */
		gr_bits_store(bits, g, part, from);
		g->any |= part;
		bits->pages += batch->part_pages;
		return;
	}
	gr_bits_make_room(bits, g, part);
	for (uint64_t x = batch->part; x; x &= x - 1, from++) {
		unsigned int i = gr_bits_first(x);

		if (part & g->any & gr_bits_bit(i)) {
			bits->pages += or_line(gr_bits_stored(bits, g, i), from);
		} else if (part & gr_bits_bit(i)) {
			bits->pages += copy_line(gr_bits_stored(bits, g, i), from);
		}
	}
	g->any |= part;
}

uint64_t gr_bits_word(const struct gr_bits *bits, uint64_t page)
{
	const struct gr_bits_group *g;
	unsigned int line = gr_bits_line_of(page);

	if (page / GR_BITS_CHUNK_PAGES >= gr_bits_chunks(bits)) {
		return 0;
	}
	g = &gr_bits_chunk_of(bits, page)->group[gr_bits_group_of(page)];
	if (g->whole & gr_bits_bit(line)) {
		return ones;
	}
	return g->any & gr_bits_bit(line) ? gr_bits_stored(bits, g, line)->word[word_in_line(page)]
					  : 0;
}

void gr_bits_or_word(struct gr_bits *bits, uint64_t page, uint64_t word)
{
	if (word && page / GR_BITS_CHUNK_PAGES < gr_bits_chunks(bits)) {
		bits->pages += set_word(bits, page, word);
	}
}

/*
 * The lines of page's group that lie in page..end, if page is the first of one and there are any;
 * or 0, and the bits of its word that do. Returns where they end.
 */
static uint64_t next_piece(uint64_t page, uint64_t end, uint64_t *ret_lines, uint64_t *ret_mask)
{
	unsigned int first = (unsigned int)(page % GR_BITS_PER_WORD), line = gr_bits_line_of(page);
	uint64_t lines =
		GR_MIN((end - page) / GR_BITS_LINE_PAGES, (uint64_t)GR_BITS_GROUP_LINES - line);
	uint64_t n = GR_MIN(end - page, (uint64_t)GR_BITS_PER_WORD - first);

	if (page % GR_BITS_LINE_PAGES == 0 && lines != 0) {
		*ret_lines = gr_bits_mask(line, line + (unsigned int)lines - 1);
		return page + lines * GR_BITS_LINE_PAGES;
	}
	*ret_lines = 0;
	*ret_mask = gr_bits_mask(first, first + (unsigned int)n - 1);
	return page + n;
}

uint64_t gr_bits_set_range(struct gr_bits *bits, uint64_t page, uint64_t pages)
{
	uint64_t end = gr_bits_cut(bits, page, pages), fresh = 0, lines, mask, next;

	for (; page < end; page = next) {
		next = next_piece(page, end, &lines, &mask);
		fresh += lines ? set_lines(bits, gr_bits_chunk_of(bits, page),
					   gr_bits_group_of(page), lines)
			       : set_word(bits, page, mask);
	}
	bits->pages += fresh;
	return fresh;
}

void gr_bits_fill(struct gr_bits *bits)
{
	size_t n = gr_bits_chunks(bits);

	gr_bits_clear(bits);
	for (size_t i = 0; i < n; i++) {
		struct gr_bits_chunk *c = &bits->chunk[i];

		for (unsigned int group = 0; group < GR_BITS_GROUPS; group++) {
			c->group[group] = (struct gr_bits_group){ .any = ones, .whole = ones };
		}
		c->top = ones;
	}
	bits->pages = (uint64_t)n * GR_BITS_CHUNK_PAGES;
}

void gr_bits_clear(struct gr_bits *bits)
{
	size_t n = bits->pages ? gr_bits_chunks(bits) : 0;

	for (size_t i = 0; i < n; i++) {
		struct gr_bits_chunk *c = &bits->chunk[i];

		for (uint64_t x = c->top; x; x &= x - 1) {
			c->group[gr_bits_first(x)] = (struct gr_bits_group){ 0 };
		}
		c->top = 0;
	}
	bits->pages = 0;
	gr_bits_release_all(bits);
}

void gr_bits_or(struct gr_bits *dst, const struct gr_bits *src)
{
	size_t n = src->pages ? gr_bits_chunks(src) : 0;
	struct gr_bits_batch batch;

	for (size_t i = 0; i < n; i++) {
		const struct gr_bits_chunk *c = &src->chunk[i];

		for (uint64_t x = c->top; x; x &= x - 1) {
			const struct gr_bits_group *g = &c->group[gr_bits_first(x)];
			unsigned int lines = 0;

			batch.whole = g->whole;
			batch.part = g->any & ~g->whole;
			batch.part_pages = pages_in(src, g, batch.part);
			for (uint64_t y = batch.part; y; y &= y - 1) {
				batch.line[lines++] = *gr_bits_stored(src, g, gr_bits_first(y));
			}
			gr_bits_or_batch(dst, i, gr_bits_first(x), &batch);
		}
	}
}

uint64_t gr_bits_clear_range(struct gr_bits *bits, uint64_t page, uint64_t pages)
{
	uint64_t end = gr_bits_cut(bits, page, pages), gone = 0, lines, mask, at;

	while (page < end && gone < bits->pages && gr_bits_find_set(bits, page, &at) && at < end) {
		/* From the line's first page on, if that is in the range: it goes as a whole. */
		page = GR_MAX(page, at - at % GR_BITS_LINE_PAGES);
		if (page % GR_BITS_LINE_PAGES != 0 || end - page < GR_BITS_LINE_PAGES) {
			page = at;
		}
		at = page;
		page = next_piece(at, end, &lines, &mask);
		gone += lines ? clear_lines(bits, gr_bits_chunk_of(bits, at), gr_bits_group_of(at),
					    lines)
			      : clear_word(bits, at, mask);
	}
	bits->pages -= gone;
	if (bits->pages == 0) {
		gr_bits_release_all(bits);
	}
	return gone;
}
