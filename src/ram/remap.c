/* SPDX-License-Identifier: MIT */
/*
 * New memory for broken pages, and memory into its file. A broken page is given back like a
 * discarded one, which leaves the mapping as it is, with what others have registered on it
 * (userfaultfd, policies). Where that is not possible the piece is mapped again.
 */
#include "ram/ram.h"
#include <errno.h>
#include <string.h>

/* Whole pages that contain the bytes. */
static int whole_pages(const struct gr_ram_block *block, uint64_t *offset, uint64_t *bytes,
		       struct gr_error *err)
{
	uint64_t page = block->page_bytes, end;

	if (*offset > block->max_bytes || *bytes > block->max_bytes - *offset) {
		return gr_error_set(err, -EINVAL, "block '%s' has no %#llx bytes at %#llx",
				    block->id, (unsigned long long)*bytes,
				    (unsigned long long)*offset);
	}
	end = GR_ROUND_UP(*offset + *bytes, page);
	*offset -= *offset % page;
	*bytes = end - *offset;
	return 0;
}

static int replace(struct gr_ram_block *block, uint64_t offset, uint64_t bytes,
		   struct gr_error *err)
{
	const struct gr_memory *m = &gr_block(block)->memory;
	int ret = gr_memory_discard(m, offset, bytes, gr_ram_block_flags(block) & GR_RAM_LOCK);

	if (ret == 0) {
		return 0;
	}
	if (block->host) { /* else it is mapped when it is used, and was not the trouble */
		ret = gr_memory_map_again(m, (size_t)offset, (size_t)bytes);
	}
	if (ret < 0) {
		return gr_error_set(err, ret, "block '%s': %#llx new bytes from %#llx on: %s",
				    block->id, (unsigned long long)bytes,
				    (unsigned long long)offset, strerror(-ret));
	}
	return gr_policy_again(gr_block(block), (size_t)offset, (size_t)bytes, err);
}

static int remap_locked(struct gr_ram_block *block, uint64_t offset, uint64_t bytes,
			struct gr_error *err) GR_REQUIRES(block->ram->discard_lock)
{
	int ret = gr_ram_discard_begins_locked(block, offset, bytes, err);

	if (ret < 0) {
		return ret;
	}
	ret = replace(block, offset, bytes, err);
	gr_ram_discard_ended_locked(block, offset, bytes);
	gr_ram_mark_sliced(block, offset, GR_MIN(bytes, block->max_bytes - offset));
	return ret;
}

int gr_ram_remap(struct gr_ram_block *block, uint64_t offset, uint64_t bytes, struct gr_error *err)
{
	int ret = whole_pages(block, &offset, &bytes, err);

	if (ret < 0 || bytes == 0) {
		return ret;
	}
	if (block->backing == GR_RAM_CALLER) {
		return gr_error_set(err, -ENOTSUP, "block '%s' is the caller's memory to replace",
				    block->id);
	}
	if ((gr_ram_block_flags(block) & (GR_RAM_HOST_READONLY | GR_RAM_PRIVATE)) ==
	    GR_RAM_HOST_READONLY) {
		return gr_error_set(err, -EROFS,
				    "block '%s' is a file for reading: its memory cannot be replaced",
				    block->id);
	}
	/* Not while a piece is being discarded: the two would undo each other. */
	gr_mutex_lock(&block->ram->discard_lock);
	ret = remap_locked(block, offset, bytes, err);
	gr_mutex_unlock(&block->ram->discard_lock);
	return ret;
}

int gr_ram_sync(struct gr_ram_block *block, uint64_t offset, uint64_t bytes, struct gr_error *err)
{
	int ret = whole_pages(block, &offset, &bytes, err);

	if (ret < 0 || bytes == 0 || block->fd < 0) {
		return ret;
	}
	ret = block->host ? gr_memory_write_back(block->host + offset, (size_t)bytes) :
			    gr_file_write_back(block->fd);
	return ret == 0 ? 0 :
			  gr_error_set(err, ret, "block '%s': writing %#llx bytes from %#llx back: %s",
				       block->id, (unsigned long long)bytes,
				       (unsigned long long)offset, strerror(-ret));
}
