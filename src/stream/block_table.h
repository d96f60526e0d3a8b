/* SPDX-License-Identifier: MIT */
/*
 * The reader's block table: entries keep their index while they live, a hash finds them by
 * id. A new list is gathered apart and put in place only when all of it was checked.
 */
#ifndef GR_STREAM_BLOCK_TABLE_H
#define GR_STREAM_BLOCK_TABLE_H

#include "stream/reader.h"

enum { GR_BLOCK_NONE = UINT32_MAX };

struct gr_block_table {
	struct gr_stream_block *entries;
	uint32_t count, capacity;
	/* the list that is being read */
	struct gr_stream_block *pending;
	uint32_t pending_count, pending_capacity;
	/* open addressing, a power of two; 0 = free, else index + 1 */
	uint32_t *slots;
	uint32_t slot_count;
	uint64_t seed; /* a peer shall not be able to choose ids that collide */
};

void gr_block_table_init(struct gr_block_table *t);
void gr_block_table_destroy(struct gr_block_table *t);

/* Index of the living block, or GR_BLOCK_NONE. */
uint32_t gr_block_table_find(const struct gr_block_table *t, const char *id);

/* One more entry of the coming list: zeroed, or NULL if there is no memory. */
struct gr_stream_block *gr_block_table_pend(struct gr_block_table *t);

/*
 * Puts the list in place. All or nothing: 0; -EEXIST an id twice (ret_id says which);
 * -EINVAL the same incarnation with another max_bytes; -ENOSPC; -ENOMEM.
 */
int gr_block_table_commit(struct gr_block_table *t, const char **ret_id);

#endif
