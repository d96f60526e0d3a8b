/* SPDX-License-Identifier: MIT */
/*
 * The peer of bench/lookup: a RAM list as QEMU has it, written anew from its description. Blocks
 * hang in a linked list, biggest first; in front of it stands one pointer to the most
 * recently used block, which all threads share and every miss writes. Inline, as there.
 */
#ifndef BENCH_MRU_LIST_H
#define BENCH_MRU_LIST_H

#include <stddef.h>
#include <stdint.h>

struct mru_block {
	uint64_t offset, max_bytes;
	struct mru_block *next;
	char rest[400]; /* QEMU's blocks have names, flags and bitmaps in them */
};

/* In QEMU's RAMList, too, the list's head stands right behind the shared pointer: in its line. */
struct mru_list {
	struct mru_block *mru __attribute__((aligned(64)));
	struct mru_block *first;
};

/* The least there is to do: is the address in the block that a pointer says? */
static inline struct mru_block *mru_range_check(struct mru_block *const *cached, uint64_t addr)
{
	struct mru_block *b = __atomic_load_n(cached, __ATOMIC_CONSUME);
	uint64_t offset = b ? __atomic_load_n(&b->offset, __ATOMIC_RELAXED) : 0;

	return b && addr - offset < __atomic_load_n(&b->max_bytes, __ATOMIC_RELAXED) ? b : NULL;
}

/* In a read-side section. */
static inline struct mru_block *mru_find(struct mru_list *list, uint64_t addr)
{
	struct mru_block *b = mru_range_check(&list->mru, addr);

	if (b) {
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

#endif
