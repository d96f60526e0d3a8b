/* SPDX-License-Identifier: MIT */
#include "track/report.h"
#include "base/compiler.h"
#include "track/debt.h"
#include <endian.h>
#include <string.h>
#ifdef GR_MUTANT_DEBT_RECORD_LATE
#	include <unistd.h>
#endif

enum {
	WORD_PAGES = 64,
	SECTION_PAGES = 1 << 20, /* most pages marked in one read-side section: some 0.1 ms */
};

void gr_report_range(struct gr_ram_block *block, uint64_t offset, uint64_t bytes)
{
	struct gr_dirty *dirty = gr_ram_dirty(block->ram);
	uint64_t page_bytes = gr_ram_page_bytes(block->ram);
	uint64_t end, page, pages;

	if (bytes == 0 || offset >= block->max_bytes) {
		return;
	}
	end = offset + GR_MIN(bytes, block->max_bytes - offset);
	page = (block->offset.v + offset) / page_bytes;
	pages = GR_DIV_ROUND_UP(block->offset.v + end, page_bytes) - page;
	while (pages > 0) {
		uint64_t n = GR_MIN(pages, (uint64_t)SECTION_PAGES);

		gr_rcu_read_lock();
		gr_dirty_mark_range(dirty, page, n);
		gr_rcu_read_unlock();
		page += n;
		pages -= n;
	}
}

/* Words that line up with the dirty memory's own. */
static uint64_t report_words(struct gr_ram_block *block, uint64_t page,
			     const unsigned char *words_le, uint64_t pages)
{
	struct gr_dirty *dirty = gr_ram_dirty(block->ram);
	uint64_t bits = 0;

	while (pages > 0) {
		uint64_t n = GR_MIN(pages, (uint64_t)SECTION_PAGES);

		gr_rcu_read_lock();
		bits += gr_dirty_or_le(dirty, page, words_le, n);
		gr_rcu_read_unlock();
		words_le += n / 8;
		page += n;
		pages -= n;
	}
	return bits;
}

static uint64_t load_word(const unsigned char *words_le, uint64_t w, uint64_t pages)
{
	uint64_t bits, left = pages - w * WORD_PAGES;

	memcpy(&bits, words_le + w * sizeof(bits), sizeof(bits));
	bits = le64toh(bits);
	return left < WORD_PAGES ? bits & ~(~0ull << left) : bits;
}

/* Run by run: another page size, or a region that starts between two words. */
static uint64_t report_runs(struct gr_ram_block *block, uint64_t offset,
			    const unsigned char *words_le, uint64_t pages, uint64_t page_bytes)
{
	uint64_t bits = 0, words = GR_DIV_ROUND_UP(pages, WORD_PAGES);

	for (uint64_t w = 0; w < words; w++) {
		uint64_t left = load_word(words_le, w, pages);

		bits += (uint64_t)__builtin_popcountll(left);
		while (left) {
			unsigned int first = (unsigned int)__builtin_ctzll(left);
			uint64_t ones = ~(left >> first);
			unsigned int n = ones ? (unsigned int)__builtin_ctzll(ones) : WORD_PAGES;

			gr_report_range(block, offset + (w * WORD_PAGES + first) * page_bytes,
					n * page_bytes);
			if (first + n >= WORD_PAGES) {
				break;
			}
			left &= ~0ull << (first + n);
		}
	}
	return bits;
}

uint64_t gr_report_le(struct gr_ram_block *block, uint64_t offset, const void *words_le,
		      uint64_t pages, uint64_t page_bytes)
{
	uint64_t page = (block->offset.v + offset) / page_bytes;

	GR_ASSERT(offset <= block->max_bytes);
	GR_ASSERT(GR_IS_ALIGNED(offset, page_bytes));
	if (page_bytes == gr_ram_page_bytes(block->ram) && page % WORD_PAGES == 0) {
		pages = GR_MIN(pages, (block->max_bytes - offset) / page_bytes);
		return report_words(block, page, words_le, pages);
	}
	return report_runs(block, offset, words_le, pages, page_bytes);
}

uint64_t gr_debt_fetched(struct gr_debt *debt, uint64_t page, struct gr_ram_block *block,
			 uint64_t offset, const void *words_le, uint64_t pages, uint64_t page_bytes)
{
#ifdef GR_MUTANT_DEBT_RECORD_LATE
	uint64_t n = gr_report_le(block, offset, words_le, pages, page_bytes);

	usleep(300);
	gr_debt_record(debt, page, words_le, pages);
	return n;
#else
	gr_debt_record(debt, page, words_le, pages);
	return gr_report_le(block, offset, words_le, pages, page_bytes);
#endif
}
