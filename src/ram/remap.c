/* SPDX-License-Identifier: MIT */
/*
 * New memory for broken pages, and memory into its file. A broken page is given back like a
 * discarded one, which leaves the mapping as it is, with what others have registered on it
 * (userfaultfd, policies). Where that is not possible the piece is mapped again.
 */
#include "ram/ram.h"
#include <errno.h>
#include <string.h>

/* Whole pages, the host's and the guest's, that contain the bytes. Blocks are whole pages of the
 * guest's; if the host's are larger, their mapping is whole ones of those. */
static int whole_pages(const struct gr_ram_block *block, uint64_t *offset, uint64_t *bytes,
		       struct gr_error *err)
{
	uint64_t page = GR_MAX(block->page_bytes, (uint64_t)block->ram->page_bytes), end;

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

static int replace_locked(struct gr_ram_block *block, uint64_t offset, uint64_t bytes,
			  struct gr_error *err) GR_REQUIRES(block->ram->discard_lock)
{
	const struct gr_memory *m = &gr_block(block)->memory;
	int ret = gr_ram_give_back_locked(block, offset, bytes);

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

/*
 * For whoever has the old memory mapped or pinned it is like a discard and what is plugged again after
 * it: the one who pins forbids it, the one who listens lets go of the old and takes the new.
 */
static int remap_locked(struct gr_ram_block *block, uint64_t offset, uint64_t bytes,
			struct gr_error *err) GR_REQUIRES(block->ram->discard_lock)
{
	int ret = 0, heard = 0;

#ifndef GR_MUTANT_REMAP_UNDER_PINS
	ret = gr_ram_discard_unforbidden_locked(block, 1u << GR_RAM_NO_DISCARDS, err);
#endif
	if (ret == 0) {
#ifdef GR_MUTANT_REMAP_SHOWS_BROKEN
		ret = gr_ram_discard_begins_locked(block, offset, bytes, false, err);
#else
		ret = gr_ram_discard_begins_locked(block, offset, bytes, true, err);
#endif
	}
	if (ret < 0) {
		return ret;
	}
#ifndef GR_MUTANT_REMAP_UNTOLD
	gr_ram_tell_memory_goes_locked(block, offset, bytes);
#endif
	ret = replace_locked(block, offset, bytes, err);
	gr_ram_discard_ended_locked(block, offset, bytes);
#ifndef GR_MUTANT_REMAP_UNMARKED
	gr_ram_mark(block, offset, GR_MIN(bytes, block->max_bytes - offset)); /* O1 */
#endif
#ifndef GR_MUTANT_REMAP_UNTOLD
	heard = gr_ram_tell_memory_came_locked(block, offset, bytes, ret == 0 ? err : NULL);
#endif
	return ret == 0 ? heard : ret;
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
