/* SPDX-License-Identifier: MIT */
/*
 * Where a block goes in the RAM address space: the smallest gap that fits, at its start.
 * Offsets are multiples of 64 guest pages, so that the words of a kernel's dirty bitmap and
 * ours line up (gr_dirty_or_le()).
 */
#include "bitmap/bits.h"
#include "ram/ram.h"
#include <errno.h>

uint64_t gr_ram_addr_max(const struct gr_ram *ram)
{
	return GR_BITS_PAGES_MAX * ram->page_bytes; /* at most 2^37 pages of at most 2^21 bytes */
}

int gr_ram_place(const struct gr_ram *ram, const struct gr_ram_index *index, uint64_t bytes,
		 gr_ram_addr_t *ret_offset, struct gr_error *err)
{
	uint64_t align = (uint64_t)ram->page_bytes * 64, max = gr_ram_addr_max(ram);
	uint64_t start = 0, best = 0, best_gap = UINT64_MAX;

	if (bytes == 0) {
		return gr_error_set(err, -EINVAL, "room for zero bytes of RAM address space");
	}
	for (unsigned int i = 0; i <= index->blocks; i++) {
		const struct gr_ram_span *next = i < index->blocks ? &index->by_offset[i] : NULL;
		uint64_t gap = (next ? next->start : max) - start;

		if (gap >= bytes && gap < best_gap) {
			best = start;
			best_gap = gap;
		}
		if (next) {
			start = GR_ROUND_UP(next->start + next->bytes, align);
		}
	}
	if (best_gap == UINT64_MAX) {
		return gr_error_set(err, -ENOSPC,
				    "no gap of %llu bytes in the RAM address space of %llu",
				    (unsigned long long)bytes, (unsigned long long)max);
	}
	*ret_offset = gr_ram_addr(best);
	return 0;
}

int gr_ram_find_offset(struct gr_ram *ram, uint64_t bytes, gr_ram_addr_t *ret_offset,
		       struct gr_error *err)
{
	int ret;

	gr_mutex_lock(&ram->lock);
	ret = gr_ram_place(ram, gr_rcu_dereference_protected(ram->index), bytes, ret_offset, err);
	gr_mutex_unlock(&ram->lock);
	return ret;
}
