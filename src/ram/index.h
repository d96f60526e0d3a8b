/* SPDX-License-Identifier: MIT */
/*
 * The published index: an immutable picture of the list, made anew for each change. One
 * pointer publishes it, so that a reader never sees a block without its regions, or a change
 * half done.
 */
#ifndef GR_RAM_INDEX_H
#define GR_RAM_INDEX_H

#include <guestram/ram.h>

/* An id as it was when the index was made. */
struct gr_ram_named {
	const char *id;
	struct gr_ram_block *block;
};

struct gr_ram_index {
	struct gr_rcu_head rcu;
	uint32_t blocks;
	unsigned int hosts;
	unsigned int ids;
	unsigned int regions;
	struct gr_ram_span *by_host;	/* this process's address space; those that have one */
	struct gr_ram_named *by_id;	/* as strcmp() orders them; those that have one */
	struct gr_ram_region *region;	/* guest physical address space */
	struct gr_ram_span by_offset[]; /* RAM address space */
};

/* One change; what is not part of it is NULL. Deleting a block deletes its regions. */
struct gr_ram_edit {
	struct gr_ram_block *add_block;
	const struct gr_ram_region *add_region;
	const struct gr_ram_block *del_block;
	const struct gr_ram_region *del_region; /* one of the old index */
	struct gr_ram_block *rename;		/* gets `id` instead of the one it has */
	const char *id;				/* "": none */
};

/* The old index (may be NULL) with one change made. NULL when out of memory. */
struct gr_ram_index *gr_ram_index_edit(const struct gr_ram_index *old,
				       const struct gr_ram_edit *edit);
void gr_ram_index_free(struct gr_ram_index *index);

/* The span that contains an address, or NULL. */
const struct gr_ram_span *gr_ram_span_at(const struct gr_ram_span *spans, unsigned int n,
					 uint64_t addr);
/* The first region that ends behind an address: the one that contains it, or the next one. */
const struct gr_ram_region *gr_ram_index_region_from(const struct gr_ram_index *index,
						     uint64_t gpa);
struct gr_ram_block *gr_ram_index_by_id(const struct gr_ram_index *index, const char *id);

#endif
