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

static void drop(struct gr_ram_table_entry *entries, unsigned int count)
{
	for (unsigned int i = 0; i < count; i++) {
		gr_ram_block_put(entries[i].block);
		entries[i] = (struct gr_ram_table_entry){ .fd = -1 };
	}
}

static unsigned int writable_entries(const struct gr_ram_table_entry *entries, unsigned int count)
{
	unsigned int n = 0;

	for (unsigned int i = 0; i < count; i++) {
		n += !entries[i].readonly;
	}
	return n;
}

/* All entries, or none; they keep their blocks. */
static int fill_all(struct gr_ram *ram, struct gr_ram_table_entry *entries,
		    unsigned int entries_max, unsigned int *ret_entries, struct gr_error *err)
{
	GR_RCU_READ_GUARD();
	const struct gr_ram_index *index = gr_rcu_dereference(ram->index);

	if (index->regions > entries_max) {
		return gr_error_set(err, -ENOSPC, "%u regions do not fit in a table of %u",
				    index->regions, entries_max);
	}
	for (unsigned int i = 0; i < index->regions; i++) {
		int ret = fill(&entries[i], &index->region[i], err);

		if (ret < 0) {
			drop(entries, i);
			return ret;
		}
		gr_ram_block_get(entries[i].block);
	}
	*ret_entries = index->regions;
	return 0;
}

/*
 * A table that is given out and a tracker that starts (gr_ram_tables_forbid()) each count themselves
 * first and look for the other then, with a fence between: at least one of the two sees the other,
 * and is refused.
 */
int gr_ram_table_get(struct gr_ram *ram, struct gr_ram_table_entry *entries,
		     unsigned int entries_max, unsigned int *ret_entries, struct gr_error *err)
{
	unsigned int n = 0, writable;
	int ret = fill_all(ram, entries, entries_max, &n, err);

	if (ret < 0) {
		return ret;
	}
	writable = writable_entries(entries, n);
	(void)gr_add_relaxed(&ram->tables, writable);
	gr_fence(); /* pairs with the one in gr_ram_tables_forbid() */
	if (writable > 0 && gr_load_relaxed(&ram->tables_forbidden) > 0) {
		gr_ram_table_put(entries, n);
		return gr_error_set(err, -EBUSY,
				    "no memory for another process: what it writes would be seen by no "
				    "tracker (start tracking with GR_WRITERS_REPORTING if it reports)");
	}
	*ret_entries = n;
	return 0;
}

void gr_ram_table_put(struct gr_ram_table_entry *entries, unsigned int count)
{
	if (count > 0) {
		/* Before the blocks, which keep the machine. Releases what was done with them. */
		(void)gr_sub_acq_rel(&entries[0].block->ram->tables,
				     writable_entries(entries, count));
	}
	drop(entries, count);
}

int gr_ram_tables_forbid(struct gr_ram *ram, struct gr_error *err)
{
	uint32_t tables;

	(void)gr_add_relaxed(&ram->tables_forbidden, 1u);
	gr_fence(); /* pairs with the one in gr_ram_table_get() */
	tables = gr_load_acquire(&ram->tables); /* pairs with the release in gr_ram_table_put() */
	if (tables == 0) {
		return 0;
	}
	gr_ram_tables_allow(ram);
	return gr_error_set(err, -EINVAL,
			    "tracking refused: another process has a memory table of %u regions "
			    "(gr_ram_table_get()), and no tracker sees what it writes; put it back, or "
			    "start with GR_WRITERS_REPORTING if it reports that itself",
			    tables);
}

void gr_ram_tables_allow(struct gr_ram *ram)
{
	(void)gr_sub_acq_rel(&ram->tables_forbidden, 1u);
}
