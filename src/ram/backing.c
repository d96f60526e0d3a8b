/* SPDX-License-Identifier: MIT */
/*
 * Where a block's bytes are. Our own mappings end in a page that nobody can touch, so that
 * a device that runs over the end of guest memory faults here instead of writing into the
 * next thing; blocks of 2 MiB and more start at a multiple of that, for huge pages.
 */
#include "base/memory.h"
#include "ram/ram.h"
#include <errno.h>
#include <stdio.h>
#include <string.h>

#define HUGE_BYTES ((size_t)2 << 20)

static int map_own(struct gr_block *block, bool file, struct gr_error *err)
{
	size_t guard = gr_page_bytes(), bytes = GR_ROUND_UP((size_t)block->pub.max_bytes, guard);
	size_t align = bytes >= HUGE_BYTES ? HUGE_BYTES : guard;
	const char *id = block->pub.id;
	char name[64];
	int fd = -1, ret;
	uint8_t *host;

	if (file) {
		(void)snprintf(name, sizeof(name), "guestram:%.40s", id);
		fd = gr_memory_file(name, bytes);
		if (fd < 0) {
			return gr_error_set(err, fd, "block '%s': no memfd of %zu bytes: %s", id,
					    bytes, strerror(-fd));
		}
	}
	host = gr_memory_map(bytes, guard, align, fd);
	if (!host) {
		ret = gr_error_set(err, -ENOMEM, "block '%s': cannot map %zu bytes: %s", id, bytes,
				   strerror(errno));
		if (fd >= 0) {
			gr_memory_file_close(fd);
		}
		return ret;
	}
	block->pub.host = host;
	block->pub.fd = fd;
	block->pub.page_bytes = guard;
	block->map_bytes = bytes + guard;
	return 0;
}

static int take_callers(struct gr_block *block, const struct gr_ram_block_desc *desc,
			struct gr_error *err)
{
	const char *id = block->pub.id;
	int64_t page = (int64_t)gr_page_bytes();
	uintptr_t end;

	if (!desc->host || (uintptr_t)desc->host % (uintptr_t)page != 0 ||
	    __builtin_add_overflow((uintptr_t)desc->host, block->pub.max_bytes, &end)) {
		return gr_error_set(err, -EINVAL,
				    "block '%s': host address %p is null, not a multiple of %llu, or "
				    "too high for %llu bytes",
				    id, desc->host, (unsigned long long)page,
				    (unsigned long long)block->pub.max_bytes);
	}
	if (desc->fd >= 0) {
		page = gr_memory_file_page_bytes(desc->fd);
		if (page < 0) {
			return gr_error_set(err, (int)page,
					    "block '%s': fd %d is not memory or a file (-1 means none)",
					    id, desc->fd);
		}
	}
	block->pub.page_bytes = (uint64_t)page;
	block->pub.host = desc->host;
	block->pub.fd = desc->fd >= 0 ? desc->fd : -1;
	block->pub.fd_offset = desc->fd >= 0 ? desc->fd_offset : 0;
	block->release = desc->release;
	block->opaque = desc->opaque;
	return 0;
}

int gr_backing_map(struct gr_block *block, const struct gr_ram_block_desc *desc,
		   struct gr_error *err)
{
	block->pub.fd = -1;
	block->pub.backing = desc->backing;
	switch (desc->backing) {
	case GR_RAM_MEMFD:
		return map_own(block, true, err);
	case GR_RAM_ANONYMOUS:
		return map_own(block, false, err);
	case GR_RAM_CALLER:
		return take_callers(block, desc, err);
	default:
		return gr_error_set(err, -EINVAL, "block '%s': unknown backing %d", block->pub.id,
				    (int)desc->backing);
	}
}

void gr_backing_unmap(struct gr_block *block)
{
	if (block->map_bytes != 0) {
		gr_memory_unmap(block->pub.host, block->map_bytes);
		if (block->pub.fd >= 0) {
			gr_memory_file_close(block->pub.fd);
		}
	} else if (block->release) {
		block->release(block->pub.host, block->pub.max_bytes, block->opaque);
	}
}
