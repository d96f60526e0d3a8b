/* SPDX-License-Identifier: MIT */
#include "bench/mru_list.h"
#include <stddef.h>

struct mru_block *mru_find(struct mru_list *list, uint64_t addr)
{
	struct mru_block *b = __atomic_load_n(&list->mru, __ATOMIC_CONSUME);

	if (b && addr - b->offset < b->max_bytes) {
		return b;
	}
	for (b = __atomic_load_n(&list->first, __ATOMIC_CONSUME); b;
	     b = __atomic_load_n(&b->next, __ATOMIC_CONSUME)) {
		if (addr - b->offset < b->max_bytes) {
			__atomic_store_n(&list->mru, b, __ATOMIC_RELAXED);
			return b;
		}
	}
	return NULL;
}

struct mru_block *mru_range_check(struct mru_block *block, uint64_t addr)
{
	return addr - block->offset < block->max_bytes ? block : NULL;
}
