/* SPDX-License-Identifier: MIT */
/*
 * How trackers hand over what they found. A report is an ordinary mark: the dirty memory
 * gives it to every consumer. Read-side sections are entered here and kept short; the
 * caller holds a reference to the block and is in no section.
 */
#ifndef GR_TRACK_REPORT_H
#define GR_TRACK_REPORT_H

#include <guestram/ram.h>

struct gr_debt;

/*
 * Bytes of a block were written. Widened to whole pages of the guest, cut at the block's
 * room.
 */
void gr_report_range(struct gr_ram_block *block, uint64_t offset, uint64_t bytes);

/*
 * A bitmap from the kernel: little-endian words, bit 0 of the first is the page at `offset` of
 * the block, a page being page_bytes (the kernel's, which need not be the guest's). `offset`
 * is any multiple of both page sizes. Returns how many bits were set.
 */
uint64_t gr_report_le(struct gr_ram_block *block, uint64_t offset, const void *words_le,
		      uint64_t pages, uint64_t page_bytes);

/*
 * The same for a tracker with debt: records the debt first, then marks. `page` is where the
 * bitmap starts in the debt set (a multiple of 64), `offset` where in the block.
 */
uint64_t gr_debt_fetched(struct gr_debt *debt, uint64_t page, struct gr_ram_block *block,
			 uint64_t offset, const void *words_le, uint64_t pages,
			 uint64_t page_bytes);

#endif
