/* SPDX-License-Identifier: MIT */
/*
 * The rules and why they are right: debt.h. Orders of memory:
 *
 *   A consumer that harvested a page's mark finds its debt: gr_debt_fetched() records before
 *   it marks, the mark is an acq_rel OR and the harvest an acq_rel exchange of that word.
 *   A consumer that finds no debt where there was some may read the page: the drop is a
 *   release after clear() returned, the look an acquire.
 */
#include "track/debt.h"
#include "base/atomic.h"
#include "track/report.h"
#include <endian.h>
#include <errno.h>
#include <string.h>

enum {
	WORD_PAGES = 64,
	PIECE_WORDS = 512, /* one clear() at a time: 128 MiB of 4 KiB pages, 4 KiB of stack */
};

int gr_debt_init(struct gr_debt *debt, uint64_t pages, struct gr_error *err)
{
	size_t words = GR_DIV_ROUND_UP(pages, WORD_PAGES);
	uint64_t *mem = calloc(words ? words : 1, sizeof(*mem));

	if (!mem) {
		return gr_error_set(err, -ENOMEM, "no memory for the debt of %llu pages",
				    (unsigned long long)pages);
	}
	debt->pages = pages;
	debt->words = mem;
	return 0;
}

void gr_debt_destroy(struct gr_debt *debt)
{
	free(debt->words);
	debt->words = NULL;
	debt->pages = 0;
}

void gr_debt_reset(struct gr_debt *debt)
{
	size_t words = GR_DIV_ROUND_UP(debt->pages, WORD_PAGES);

	for (size_t w = 0; w < words; w++) {
		/* A write only where needed: what was never touched stays without memory. */
		if (gr_load_relaxed(&debt->words[w])) {
			gr_store_relaxed(&debt->words[w], 0);
		}
	}
}

/* The bits of word w that lie in [page, end). */
static uint64_t word_mask(uint64_t w, uint64_t page, uint64_t end)
{
	uint64_t base = w * WORD_PAGES, mask = ~0ull;

	if (page > base) {
		mask &= ~0ull << (page - base);
	}
	if (end < base + WORD_PAGES) {
		mask &= ~0ull >> (base + WORD_PAGES - end);
	}
	return mask;
}

static void check_range(const struct gr_debt *debt, uint64_t page, uint64_t pages)
{
	GR_ASSERT(page <= debt->pages && pages <= debt->pages - page);
}

void gr_debt_record(struct gr_debt *debt, uint64_t page, const void *words_le, uint64_t pages)
{
	const unsigned char *src = words_le;
	uint64_t end = page + pages;

	check_range(debt, page, pages);
	GR_ASSERT(GR_IS_ALIGNED(page, (uint64_t)WORD_PAGES));
	for (uint64_t w = page / WORD_PAGES; w * WORD_PAGES < end; w++, src += sizeof(uint64_t)) {
		uint64_t bits;

		memcpy(&bits, src, sizeof(bits));
		bits = le64toh(bits) & word_mask(w, page, end);
		if (bits) {
			gr_or_acq_rel(&debt->words[w], bits);
		}
	}
}

bool gr_debt_due(const struct gr_debt *debt, uint64_t page, uint64_t pages)
{
	uint64_t end = page + pages;

	check_range(debt, page, pages);
#ifdef GR_MUTANT_REARM_OWN_SET
	return pages > 0;
#endif
	if (pages == 0) {
		return false;
	}
	for (uint64_t w = page / WORD_PAGES; w * WORD_PAGES < end; w++) {
		/* Pairs with the release in drop(): nothing here means clear() has returned. */
		if (gr_load_acquire(&debt->words[w]) & word_mask(w, page, end)) {
			return true;
		}
	}
	return false;
}

static void drop(struct gr_debt *debt, uint64_t first_word, const uint64_t *mask_le, size_t words)
{
	for (size_t i = 0; i < words; i++) {
		if (mask_le[i]) {
			/* Pairs with the acquire in gr_debt_due(). */
			gr_and_acq_rel(&debt->words[first_word + i], ~le64toh(mask_le[i]));
		}
	}
}

/* Fills mask_le with what has debt in these words and in [page, end); false: nothing. */
static bool collect(const struct gr_debt *debt, uint64_t first_word, size_t words, uint64_t page,
		    uint64_t end, uint64_t *mask_le)
{
	uint64_t any = 0;

	for (size_t i = 0; i < words; i++) {
		uint64_t w = first_word + i;
		uint64_t bits = gr_load_acquire(&debt->words[w]);

#ifdef GR_MUTANT_REARM_OWN_SET
		bits = ~0ull;
#endif
		bits &= word_mask(w, page, end);
		any |= bits;
		mask_le[i] = htole64(bits);
	}
	return any != 0;
}

int gr_debt_rearm(struct gr_debt *debt, uint64_t page, uint64_t pages,
		  int (*clear)(void *opaque, uint64_t page, uint64_t pages, const uint64_t *mask_le,
			       struct gr_error *err),
		  void *opaque, struct gr_error *err)
{
	uint64_t end = page + pages;
	uint64_t mask_le[PIECE_WORDS];
	uint64_t word = page / WORD_PAGES;

	check_range(debt, page, pages);
	while (word * WORD_PAGES < end) {
		size_t words =
			GR_MIN(GR_DIV_ROUND_UP(end, WORD_PAGES) - word, (uint64_t)PIECE_WORDS);
		size_t from = 0, to = words;
		uint64_t first;
		int ret;

		if (collect(debt, word, words, page, end, mask_le)) {
			while (!mask_le[from]) {
				from++;
			}
			while (!mask_le[to - 1]) {
				to--;
			}
			first = (word + from) * WORD_PAGES;
#ifdef GR_MUTANT_DEBT_DROP_FIRST
			drop(debt, word + from, mask_le + from, to - from);
#endif
			ret = clear(opaque, first,
				    GR_MIN((to - from) * WORD_PAGES, debt->pages - first),
				    mask_le + from, err);
			if (ret < 0) {
				return ret;
			}
			drop(debt, word + from, mask_le + from, to - from);
		}
		word += words;
	}
	return 0;
}
