/* SPDX-License-Identifier: MIT */
/* The regions for another process. */
#include "base/atomic.h"
#include "ram/ram.h"
#include <errno.h>

static int fill(struct gr_ram_table_entry *e, const struct gr_ram_region *r, struct gr_error *err)
{
	struct gr_ram_block *block = r->block;

	if (block->fd < 0 || (gr_ram_block_flags(block) & GR_RAM_PRIVATE)) {
		return gr_error_set(err, -ENOTSUP,
				    "block '%s' (at %#llx) cannot be shared with another process: %s",
				    block->id, (unsigned long long)r->gpa.v,
				    block->fd < 0 ? "it has no fd" : "it is private");
	}
	*e = (struct gr_ram_table_entry){
		.gpa = r->gpa, .bytes = r->bytes, .block = block, .fd = block->fd,
		.host = block->host ? block->host + r->block_offset : NULL,
		.fd_offset = block->fd_offset + r->block_offset, .readonly = r->readonly,
	};
	return 0;
}

int gr_ram_table_get(struct gr_ram *ram, struct gr_ram_table_entry *entries,
		     unsigned int entries_max, unsigned int *ret_entries, struct gr_error *err)
{
	GR_RCU_READ_GUARD();
	const struct gr_ram_index *index = gr_rcu_dereference(ram->index);
	int ret;

	if (index->regions > entries_max) {
		return gr_error_set(err, -ENOSPC, "%u regions do not fit in a table of %u",
				    index->regions, entries_max);
	}
	for (unsigned int i = 0; i < index->regions; i++) {
		ret = fill(&entries[i], &index->region[i], err);
		if (ret < 0) {
			gr_ram_table_put(entries, i);
			return ret;
		}
		gr_ram_block_get(entries[i].block);
	}
	*ret_entries = index->regions;
	return 0;
}

void gr_ram_table_put(struct gr_ram_table_entry *entries, unsigned int count)
{
	for (unsigned int i = 0; i < count; i++) {
		gr_ram_block_put(entries[i].block);
		entries[i] = (struct gr_ram_table_entry){ .fd = -1 };
	}
}
