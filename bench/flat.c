/* SPDX-License-Identifier: MIT */
#include "bench/flat.h"
#include "bench/harness.h"
#include <stdlib.h>
#include <string.h>

static uint64_t *words(uint64_t n)
{
	uint64_t *w = aligned_alloc(4096, n * 8);

	if (!w) {
		bench_die("no memory for a flat bitmap");
	}
	/* Touched, as after the first round, when every page was dirty. */
	memset(w, 0, n * 8);
	return w;
}

struct flat *flat_create(uint64_t pages)
{
	struct flat *f = malloc(sizeof(*f));
	uint64_t pieces = (pages + FLAT_PIECE_PAGES - 1) / FLAT_PIECE_PAGES;

	if (!f) {
		bench_die("no memory");
	}
	f->pages = pieces * FLAT_PIECE_PAGES;
	f->live = malloc(pieces * sizeof(*f->live));
	for (uint64_t i = 0; f->live && i < pieces; i++) {
		f->live[i] = words(FLAT_PIECE_WORDS);
	}
	f->sent = words(f->pages / 64);
	return f;
}

void flat_free(struct flat *f)
{
	for (uint64_t i = 0; i < f->pages / FLAT_PIECE_PAGES; i++) {
		free(f->live[i]);
	}
	free(f->live);
	free(f->sent);
	free(f);
}

static uint64_t mask(uint64_t page, uint64_t n)
{
	return (n == 64 ? ~(uint64_t)0 : ((uint64_t)1 << n) - 1) << (page % 64);
}

void flat_mark_range(struct flat *f, uint64_t page, uint64_t pages)
{
	while (pages > 0) {
		uint64_t n = 64 - page % 64 < pages ? 64 - page % 64 : pages;
		uint64_t *word = &f->live[page / FLAT_PIECE_PAGES][page / 64 % FLAT_PIECE_WORDS];

		__atomic_fetch_or(word, mask(page, n), __ATOMIC_SEQ_CST);
		page += n;
		pages -= n;
	}
}

uint64_t flat_harvest(struct flat *f)
{
	uint64_t fresh = 0;

	for (uint64_t i = 0; i < f->pages / FLAT_PIECE_PAGES; i++) {
		uint64_t *live = f->live[i], *sent = f->sent + i * FLAT_PIECE_WORDS;

		for (uint64_t w = 0; w < FLAT_PIECE_WORDS; w++) {
			uint64_t bits;

			if (__atomic_load_n(&live[w], __ATOMIC_RELAXED) == 0) {
				continue;
			}
			bits = __atomic_exchange_n(&live[w], 0, __ATOMIC_SEQ_CST);
			fresh += (uint64_t)__builtin_popcountll(bits & ~sent[w]);
			sent[w] |= bits;
		}
	}
	return fresh;
}

/* The first bit at or after `from` that is set, or, with flip all ones, clear. */
static uint64_t find(const struct flat *f, uint64_t from, uint64_t flip)
{
	uint64_t x;

	if (from >= f->pages) {
		return f->pages;
	}
	x = (f->sent[from / 64] ^ flip) & ~(uint64_t)0 << (from % 64);
	for (uint64_t w = from / 64;;) {
		if (x) {
			return w * 64 + (uint64_t)__builtin_ctzll(x);
		}
		if (++w == f->pages / 64) {
			return f->pages;
		}
		x = f->sent[w] ^ flip;
	}
}

bool flat_next(const struct flat *f, uint64_t from, uint64_t *ret_first, uint64_t *ret_pages)
{
	*ret_first = find(f, from, 0);
	*ret_pages = find(f, *ret_first, ~(uint64_t)0) - *ret_first;
	return *ret_first < f->pages;
}

void flat_clear(struct flat *f, uint64_t page, uint64_t pages)
{
	while (pages > 0) {
		uint64_t n = 64 - page % 64 < pages ? 64 - page % 64 : pages;

		f->sent[page / 64] &= ~mask(page, n);
		page += n;
		pages -= n;
	}
}
