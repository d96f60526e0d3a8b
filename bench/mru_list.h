/* SPDX-License-Identifier: MIT */
/*
 * The peer of bench/lookup: a RAM list as QEMU has it, written anew from its description. Blocks
 * hang in a linked list, biggest first; in front of it stands one pointer to the most
 * recently used block, which all threads share and every miss writes.
 */
#ifndef BENCH_MRU_LIST_H
#define BENCH_MRU_LIST_H

#include <stdint.h>

struct mru_block {
	uint64_t offset, max_bytes;
	struct mru_block *next;
	char rest[400]; /* QEMU's blocks have names, flags and bitmaps in them */
};

struct mru_list {
	struct mru_block *first;
	struct mru_block *mru __attribute__((aligned(64)));
};

/* In a read-side section. */
struct mru_block *mru_find(struct mru_list *list, uint64_t addr);
/* The least there is to do: is the address in this block? */
struct mru_block *mru_range_check(struct mru_block *block, uint64_t addr);

#endif
