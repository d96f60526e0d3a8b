/* SPDX-License-Identifier: MIT */
/* The length of a block, within the room that it has had from the start. */
#include "base/atomic.h"
#include "ram/ram.h"
#include <errno.h>

static int check_locked(struct gr_ram *ram, const struct gr_ram_block *block, uint64_t used,
			struct gr_error *err) GR_REQUIRES(ram->lock)
{
	const struct gr_ram_index *index = gr_rcu_dereference_protected(ram->index);
	int ret = gr_ram_changeable_locked(ram, block, err);

	if (ret < 0) {
		return ret;
	}
	if (used == 0 || used % ram->page_bytes != 0 || used > block->max_bytes) {
		return gr_error_set(err, -EINVAL,
				    "block '%s': length %#llx is no multiple of the page size %u from "
				    "one page to %#llx",
				    block->id, (unsigned long long)used, ram->page_bytes,
				    (unsigned long long)block->max_bytes);
	}
	for (unsigned int i = 0; i < index->regions; i++) {
		const struct gr_ram_region *r = &index->region[i];

		if (r->block == block && r->block_offset + r->bytes > used) {
			return gr_error_set(err, -EBUSY,
					    "block '%s': the region at %#llx shows what lies behind %#llx",
					    block->id, (unsigned long long)r->gpa.v,
					    (unsigned long long)used);
		}
	}
	return 0;
}

static int resize_locked(struct gr_ram *ram, struct gr_ram_block *block, uint64_t used,
			 struct gr_error *err) GR_REQUIRES(ram->lock)
{
	uint64_t old = gr_ram_block_used_bytes(block);
	int ret = check_locked(ram, block, used, err);

	if (ret < 0 || used == old) {
		return ret;
	}
	ret = gr_ram_notify_resize_locked(ram, block, old, used, err);
	if (ret < 0) {
		return ret;
	}
	gr_store_release(&block->used_bytes_atomic, used); /* pairs with gr_ram_block_used_bytes() */
	(void)gr_add_acq_rel(&ram->version, 1);
#ifndef GR_MUTANT_RESIZE_GROWS_CLEAN
	if (used > old) {
		gr_ram_mark(block, old, used - old);
	}
#endif
	return 0;
}

int gr_ram_block_resize(struct gr_ram_block *block, uint64_t used_bytes, struct gr_error *err)
{
	struct gr_ram *ram = block->ram;
	int ret;

	gr_mutex_lock(&ram->lock);
	ret = resize_locked(ram, block, used_bytes, err);
	gr_mutex_unlock(&ram->lock);
	return ret;
}
