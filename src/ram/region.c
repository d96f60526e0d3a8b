/* SPDX-License-Identifier: MIT */
/* Where the guest sees blocks. */
#include "base/atomic.h"
#include "ram/ram.h"
#include <errno.h>

int gr_ram_region_check(const struct gr_ram *ram, const struct gr_ram_index *index,
			struct gr_ram_region *region, struct gr_error *err)
{
	const struct gr_ram_block *block = region->block;
	unsigned long long gpa = region->gpa.v, bytes = region->bytes, at = region->block_offset;
	uint64_t used = gr_ram_block_used_bytes(block), end;
	const struct gr_ram_region *other;

	if (bytes == 0) {
		return gr_error_set(err, -EINVAL, "region of block '%s' at %#llx is empty", block->id,
				    gpa);
	}
	if ((gpa | bytes | at) % ram->page_bytes != 0) {
		return gr_error_set(err, -EINVAL,
				    "region of block '%s': %#llx bytes at %#llx from offset %#llx are "
				    "not all multiples of the page size %u",
				    block->id, bytes, gpa, at, ram->page_bytes);
	}
	if (at > used || bytes > used - at) {
		return gr_error_set(err, -EINVAL,
				    "region of block '%s': %#llx bytes from offset %#llx reach beyond "
				    "its %#llx bytes",
				    block->id, bytes, at, (unsigned long long)used);
	}
	if (__builtin_add_overflow(region->gpa.v, region->bytes, &end)) {
		return gr_error_set(err, -EINVAL,
				    "region of block '%s': %#llx bytes at %#llx leave the address space",
				    block->id, bytes, gpa);
	}
	other = gr_ram_index_region_from(index, gpa);
	if (other && other->gpa.v < end) {
		return gr_error_set(err, -EEXIST,
				    "region of block '%s': %#llx bytes at %#llx overlap the region of "
				    "block '%s' at %#llx",
				    block->id, bytes, gpa, other->block->id,
				    (unsigned long long)other->gpa.v);
	}
	region->readonly = region->readonly || (gr_ram_block_flags(block) & GR_RAM_READONLY);
	return 0;
}

static int region_add_locked(struct gr_ram *ram, struct gr_ram_region *region,
			     struct gr_error *err) GR_REQUIRES(ram->lock)
{
	const struct gr_ram_index *old = gr_rcu_dereference_protected(ram->index);
	struct gr_ram_index *index;
	int ret;

	if (region->block->ram != ram || !gr_ram_block_listed(region->block)) {
		return gr_error_set(err, -ENOENT, "block '%s' is not on the list",
				    region->block->id);
	}
	if (old->regions >= GR_RAM_BLOCKS_MAX) {
		return gr_error_set(err, -ENOSPC, "more than %d regions", GR_RAM_BLOCKS_MAX);
	}
	ret = gr_ram_region_check(ram, old, region, err);
	if (ret < 0) {
		return ret;
	}
	index = gr_ram_index_edit(old, &(struct gr_ram_edit){ .add_region = region });
	if (!index) {
		return gr_error_set(err, -ENOMEM, "region of block '%s': no memory",
				    region->block->id);
	}
	ret = gr_ram_notify_add_locked(ram, NULL, region, err);
	if (ret < 0) {
		gr_ram_index_free(index);
		return ret;
	}
	gr_ram_index_free_later(ram, gr_ram_index_publish_locked(ram, index));
	return 0;
}

int gr_ram_region_add(struct gr_ram *ram, const struct gr_ram_region *region, struct gr_error *err)
{
	struct gr_ram_region copy = *region;
	int ret;

	gr_mutex_lock(&ram->lock);
	ret = region_add_locked(ram, &copy, err);
	gr_mutex_unlock(&ram->lock);
	return ret;
}

static int region_del_locked(struct gr_ram *ram, gr_gpa_t gpa, struct gr_error *err)
	GR_REQUIRES(ram->lock)
{
	struct gr_ram_index *old = gr_rcu_dereference_protected(ram->index);
	const struct gr_ram_region *found = gr_ram_index_region_from(old, gpa.v);
	struct gr_ram_index *index;

	if (!found || found->gpa.v != gpa.v) {
		return gr_error_set(err, -ENOENT, "no region starts at %#llx",
				    (unsigned long long)gpa.v);
	}
	index = gr_ram_index_edit(old, &(struct gr_ram_edit){ .del_region = found });
	if (!index) {
		return gr_error_set(err, -ENOMEM, "removing the region at %#llx: no memory",
				    (unsigned long long)gpa.v);
	}
	(void)gr_ram_index_publish_locked(ram, index);
	gr_ram_notify_region_del_locked(ram, found);
	gr_ram_index_free_later(ram, old);
	return 0;
}

int gr_ram_region_del(struct gr_ram *ram, gr_gpa_t gpa, struct gr_error *err)
{
	int ret;

	gr_mutex_lock(&ram->lock);
	ret = region_del_locked(ram, gpa, err);
	gr_mutex_unlock(&ram->lock);
	return ret;
}
