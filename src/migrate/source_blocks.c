/* SPDX-License-Identifier: MIT */
#include "migrate/source_blocks.h"
#include "ram/ram.h"
#include <errno.h>
#include <guestram/rcu.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { FIRST_CAPACITY = 16, TRIES_MAX = 64 };

void gr_source_blocks_destroy(struct gr_source_blocks *t)
{
	free(t->entries);
	*t = (struct gr_source_blocks){ .ignore_shared = t->ignore_shared,
					   .promised = t->promised,
					   .tells_files = t->tells_files };
}

static void copy_block(struct gr_source_block *e, const struct gr_ram_block *block, const char *id,
		       uint64_t page_bytes, uint32_t wire_index, bool ignored)
{
	e->first_page = block->offset.v / page_bytes;
	e->used_bytes = gr_ram_block_used_bytes(block);
	e->pages = e->used_bytes / page_bytes;
	e->max_bytes = block->max_bytes;
	e->incarnation = block->incarnation;
	e->gpa = UINT64_MAX;
	e->page_bytes = (uint32_t)block->page_bytes;
	e->flags = gr_ram_block_flags(block) & (GR_RAM_READONLY | GR_RAM_NO_MIGRATE);
	e->flags |= ignored ? (uint32_t)GR_RAM_SHARED : 0;
	e->ignored = ignored;
	e->file = gr_block(block)->file;
	e->file_offset = block->fd_offset;
	e->wire_index = wire_index;
	(void)snprintf(e->id, sizeof(e->id), "%s", id);
}

/* Counts on when there is no more room. The id is read once: it may go meanwhile. */
static void take(struct gr_source_blocks *t, const struct gr_ram_block *block, const char *id,
		 uint64_t page_bytes)
{
	if ((gr_ram_block_flags(block) & GR_RAM_NO_MIGRATE) != 0 || id[0] == '\0') {
		return;
	}
	if (t->count < t->capacity) {
		copy_block(&t->entries[t->count], block, id, page_bytes, t->count,
			   t->ignore_shared && gr_ram_block_is_shared_file(block, t->promised));
	}
	t->count++;
}

/*
 * Walks on behind *last, at most so many blocks, in one section; *last is the last one then, with a
 * reference, or NULL at the end. False: the list has changed since the walk began, and what *last
 * leads to may be gone. (If it has not, *last is on the list, and what follows it stays for this
 * section: who removes it changes the version before the memory can go.)
 */
static bool walk_some(struct gr_source_blocks *t, struct gr_ram *ram, struct gr_ram_block **last,
		      struct gr_section_watch *watch)
{
	uint64_t page_bytes = gr_ram_page_bytes(ram);
	struct gr_ram_block *block = *last, *end = NULL;
	bool same;

	gr_section_enter(watch);
	same = gr_ram_version(ram) == t->version;
#ifdef GR_MUTANT_BLOCKS_WALK_ON
	same = true;
#endif
	for (int i = 0; same && i < GR_SECTION_STEPS; i++) {
		block = gr_ram_block_next_rcu(ram, block);
		if (!block) {
			break;
		}
		gr_section_step(watch);
		take(t, block, gr_rcu_dereference(block->id), page_bytes);
	}
	if (same && block) {
		gr_ram_block_get(block);
		end = block;
	}
	gr_section_leave(watch);
	gr_ram_block_put(*last);
	*last = end;
	return same;
}

static int by_size(const void *a, const void *b)
{
	const struct gr_source_block *x = a, *y = b;

	return (x->max_bytes < y->max_bytes) - (x->max_bytes > y->max_bytes);
}

/*
 * The list stands still while we have its mutex: plugging waits for us, some milliseconds if there are
 * tens of thousands of blocks, and readers and grace periods do not.
 */
static void take_all(struct gr_source_blocks *t, struct gr_ram *ram)
{
	const struct gr_ram_index *index;

	t->count = 0;
	gr_mutex_lock(&ram->lock);
	t->version = gr_ram_version(ram);
	index = gr_rcu_dereference_protected(ram->index);
	for (unsigned int i = 0; i < index->blocks; i++) {
		const struct gr_ram_block *block = index->by_offset[i].block;

		take(t, block, gr_rcu_dereference_protected(block->id), gr_ram_page_bytes(ram));
	}
	gr_mutex_unlock(&ram->lock);
	if (t->count <= t->capacity) {
		qsort(t->entries, t->count, sizeof(*t->entries), by_size);
		for (uint32_t i = 0; i < t->count; i++) {
			t->entries[i].wire_index = i;
		}
	}
}

/*
 * By pieces, from the start again if the list changes in between: a block that went and came again
 * would be in the table twice. A list that changes too often for that is held still.
 */
static void walk(struct gr_source_blocks *t, struct gr_ram *ram, struct gr_section_watch *watch)
{
	struct gr_ram_block *last = NULL;
	bool whole = false;

	for (int tries = 0; !whole && tries < TRIES_MAX; tries++) {
		t->count = 0;
		t->version = gr_ram_version(ram);
		do {
			whole = walk_some(t, ram, &last, watch);
		} while (whole && last);
#ifndef GR_MUTANT_BLOCKS_WALK_ON
		whole = whole && gr_ram_version(ram) == t->version;
#endif
	}
	if (!whole) {
		take_all(t, ram);
	}
}

static int by_page(const void *a, const void *b)
{
	const struct gr_source_block *x = a, *y = b;

	return (x->first_page > y->first_page) - (x->first_page < y->first_page);
}

/* Where the guest sees each block: the region that shows it from its first byte on. */
static void find_gpas(struct gr_source_blocks *t, struct gr_ram *ram,
		      struct gr_section_watch *watch)
{
	uint64_t page_bytes = gr_ram_page_bytes(ram);
	struct gr_ram_region region;
	struct gr_source_block *e;
	gr_gpa_t at = gr_gpa(0);
	bool more = true;

	while (more) {
		gr_section_enter(watch);
		for (int i = 0; i < GR_SECTION_STEPS; i++) {
			more = gr_ram_region_next_rcu(ram, at, &region);
			if (!more) {
				break;
			}
			gr_section_step(watch);
			at = gr_gpa(region.gpa.v + region.bytes);
			e = (struct gr_source_block *)(uintptr_t)gr_source_blocks_at(
				t, region.block->offset.v / page_bytes);
			if (e && e->incarnation == region.block->incarnation &&
			    region.block_offset == 0 && e->gpa == UINT64_MAX) {
				e->gpa = region.gpa.v;
			}
			if (at.v == 0) {
				more = false;
				break;
			}
		}
		gr_section_leave(watch);
	}
}

/* The other side took the block with the length that it was told: it cannot have another one. */
static int check_lengths(const struct gr_source_blocks *told, const struct gr_source_blocks *now,
			 struct gr_error *err)
{
	for (uint32_t i = 0; i < now->count; i++) {
		const struct gr_source_block *e = &now->entries[i];
		const struct gr_source_block *old = gr_source_blocks_at(told, e->first_page);

		if (old && old->incarnation == e->incarnation && old->used_bytes != e->used_bytes) {
			return gr_error_set(err, -EBUSY,
					    "block '%s' was resized during the move, from %llu to %llu "
					    "bytes",
					    e->id, (unsigned long long)old->used_bytes,
					    (unsigned long long)e->used_bytes);
		}
	}
	return 0;
}

int gr_source_blocks_fill(struct gr_source_blocks *t, struct gr_ram *ram,
			  struct gr_section_watch *watch, struct gr_error *err)
{
	struct gr_source_blocks n = { .ignore_shared = t->ignore_shared,
				      .promised = t->promised,
				      .tells_files = t->tells_files,
				      .capacity = GR_MAX(t->count + 4, (uint32_t)FIRST_CAPACITY) };
	int ret;

	do {
		free(n.entries);
		n.capacity = GR_MAX(n.capacity, n.count + n.count / 4);
		n.entries = calloc(n.capacity, sizeof(*n.entries));
		if (!n.entries) {
			return gr_error_set(err, -ENOMEM, "no memory for the block list");
		}
		walk(&n, ram, watch);
	} while (n.count > n.capacity);
	qsort(n.entries, n.count, sizeof(*n.entries), by_page);
	ret = check_lengths(t, &n, err);
	if (ret < 0) {
		free(n.entries);
		return ret;
	}
	for (uint32_t i = 0; i < n.count; i++) {
		n.total_pages += n.entries[i].ignored ? 0 : n.entries[i].pages;
	}
	find_gpas(&n, ram, watch);
	free(t->entries);
	*t = n;
	return 0;
}

const struct gr_source_block *gr_source_blocks_at(const struct gr_source_blocks *t, uint64_t page)
{
	uint32_t low = 0, high = t->count;

	while (low < high) {
		uint32_t mid = low + (high - low) / 2;
		const struct gr_source_block *e = &t->entries[mid];

		if (e->first_page + e->pages <= page) {
			low = mid + 1;
		} else {
			high = mid;
		}
	}
	return low < t->count ? &t->entries[low] : NULL;
}

int gr_source_blocks_describe(const struct gr_source_blocks *t,
			      struct gr_stream_block_desc **ret_descs, struct gr_error *err)
{
	struct gr_stream_block_desc *descs = calloc(GR_MAX(t->count, 1u), sizeof(*descs));

	if (!descs) {
		return gr_error_set(err, -ENOMEM, "no memory for the block list");
	}
	for (uint32_t i = 0; i < t->count; i++) {
		const struct gr_source_block *e = &t->entries[i];

		descs[e->wire_index] = (struct gr_stream_block_desc){
			.id = e->id,
			.used_bytes = e->used_bytes,
			.max_bytes = e->max_bytes,
			.incarnation = e->incarnation,
			.gpa = e->gpa,
			.page_bytes = e->page_bytes,
			.flags = e->flags,
			.file = t->tells_files && e->ignored ? &e->file : NULL,
			.file_offset = e->file_offset,
		};
	}
	*ret_descs = descs;
	return 0;
}
