/* SPDX-License-Identifier: MIT */
/*
 * Where a block's bytes are. Our own mappings end in a page that nobody can touch, so that
 * a device that runs over the end of guest memory faults here instead of writing into the
 * next thing; blocks of 2 MiB and more start at a multiple of that, for huge pages.
 */
#include "ram/ram.h"
#include <errno.h>
#include <stdio.h>
#include <string.h>

#define HUGE_BYTES	 ((size_t)2 << 20)
#define OVERCOMMIT_PATH	 "/proc/sys/vm/overcommit_memory"

static int open_memfd(struct gr_block *block, const struct gr_ram_block_desc *desc,
		      struct gr_error *err)
{
	uint64_t bytes = GR_ROUND_UP(block->pub.max_bytes, block->pub.page_bytes);
	char name[64];
	int fd;

	(void)snprintf(name, sizeof(name), "guestram:%.40s", desc->id);
	fd = gr_memory_file(name, bytes, (size_t)block->pub.page_bytes);
	if (fd < 0) {
		return gr_error_set(err, fd,
				    "block '%s': no memfd of %llu bytes in pages of %llu: %s", desc->id,
				    (unsigned long long)bytes,
				    (unsigned long long)block->pub.page_bytes, strerror(-fd));
	}
	block->pub.fd = fd;
	return 0;
}

static unsigned int memory_flags(const struct gr_ram_block_desc *desc)
{
	bool shared = desc->backing == GR_RAM_ANONYMOUS ? desc->flags & GR_RAM_SHARED :
							  !(desc->flags & GR_RAM_PRIVATE);

	return (shared ? GR_MEMORY_SHARED : 0u) |
	       ((desc->flags & GR_RAM_NO_RESERVE) ? GR_MEMORY_NO_RESERVE : 0u) |
	       ((desc->flags & GR_RAM_HOST_READONLY) ? GR_MEMORY_READONLY : 0u) |
	       ((desc->flags & GR_RAM_PERSISTENT) ? GR_MEMORY_SYNC : 0u);
}

static int map(struct gr_block *block, const struct gr_ram_block_desc *desc, struct gr_error *err)
{
	size_t page = (size_t)block->pub.page_bytes;
	size_t bytes = GR_ROUND_UP((size_t)block->pub.max_bytes, page);
	size_t align = GR_MAX(page, (size_t)desc->align_bytes);
	struct gr_memory *m = &block->memory;
	int ret;

	*m = (struct gr_memory){
		.bytes = bytes, .guard = gr_page_bytes(), .page_bytes = page,
		.align = GR_MAX(align, bytes >= HUGE_BYTES ? HUGE_BYTES : page),
		.fd = block->pub.fd, .offset = block->pub.fd_offset, .flags = memory_flags(desc),
	};
	if ((m->flags & GR_MEMORY_NO_RESERVE) && gr_memory_is_counted(m) &&
	    !gr_memory_may_overcommit(OVERCOMMIT_PATH)) {
		return gr_error_set(err, -ENOTSUP,
				    "block '%s': GR_RAM_NO_RESERVE, but this system reserves all memory "
				    "(" OVERCOMMIT_PATH ")",
				    desc->id);
	}
	ret = gr_memory_map(m);
	if (ret < 0) {
		return gr_error_set(err, ret, "block '%s': cannot map %zu bytes in pages of %zu: %s%s",
				    desc->id, bytes, page, strerror(-ret),
				    page > gr_page_bytes() ? " (are so many huge pages free?)" :
				    (m->flags & GR_MEMORY_SYNC) && ret == -EOPNOTSUPP ?
							     " (not on persistent memory)" :
							     "");
	}
	block->own_memory = true;
	block->pub.host = m->host;
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
	block->memory = (struct gr_memory){
		.host = desc->host, .bytes = (size_t)block->pub.max_bytes,
		.page_bytes = (size_t)page, .fd = block->pub.fd, .offset = block->pub.fd_offset,
		.flags = block->pub.fd >= 0 && !(desc->flags & GR_RAM_PRIVATE) ? GR_MEMORY_SHARED : 0u,
	};
	return 0;
}

enum { WINDOWS_BY_DEFAULT = 64, WINDOWS_MAX = 1 << 20 };

static int make_windows(struct gr_block *block, const struct gr_ram_block_desc *desc,
			struct gr_error *err)
{
	uint64_t page = block->pub.page_bytes;
	uint64_t bytes = desc->window_bytes ? desc->window_bytes : GR_MAX(HUGE_BYTES, page);
	unsigned int n = desc->windows_max ? desc->windows_max : WINDOWS_BY_DEFAULT;

	if (!GR_IS_POWER_OF_TWO(bytes) || bytes < page || bytes > SIZE_MAX / 4 || n > WINDOWS_MAX) {
		return gr_error_set(err, -EINVAL,
				    "block '%s': %u windows of %llu bytes: not whole pages of %llu, no "
				    "power of two, or too many",
				    desc->id, n, (unsigned long long)bytes, (unsigned long long)page);
	}
	block->memory = (struct gr_memory){
		.page_bytes = (size_t)page, .align = (size_t)page, .fd = block->pub.fd,
		.offset = block->pub.fd_offset, .flags = memory_flags(desc),
	};
	block->windows = gr_windows_create(&block->memory, GR_ROUND_UP(block->pub.max_bytes, page),
					   (size_t)bytes, n);
	return block->windows ? 0 : gr_error_set(err, -ENOMEM, "block '%s': no memory", desc->id);
}

static int make(struct gr_block *block, const struct gr_ram_block_desc *desc, struct gr_error *err)
{
	int ret = 0;

	if (desc->backing == GR_RAM_CALLER) {
		return take_callers(block, desc, err);
	}
	block->pub.page_bytes = desc->page_bytes ? desc->page_bytes : gr_page_bytes();
	if (desc->backing == GR_RAM_MEMFD) {
		ret = open_memfd(block, desc, err);
	} else if (desc->backing != GR_RAM_ANONYMOUS) {
		ret = gr_backing_open(block, desc, err);
	}
	if (ret < 0) {
		return ret;
	}
	return desc->backing == GR_RAM_ON_DEMAND ? make_windows(block, desc, err) :
						   map(block, desc, err);
}

int gr_backing_map(struct gr_block *block, const struct gr_ram_block_desc *desc,
		   struct gr_error *err)
{
	int ret;

	block->pub.fd = -1;
	block->lock_fd = -1;
	block->pub.backing = desc->backing;
	ret = make(block, desc, err);
	if (ret == 0 && block->pub.host) {
		ret = gr_policy_apply(block, desc, err);
	}
	if (ret < 0) {
		gr_backing_undo(block);
		gr_backing_unmap(block);
		return ret;
	}
	if (desc->backing != GR_RAM_MEMFD) {
		gr_file_identify(block->pub.fd, &block->file);
	}
	block->release = desc->release;
	block->opaque = desc->opaque;
	return 0;
}

static void unlock(struct gr_block *block)
{
	if (block->lock_fd >= 0) {
		gr_memory_file_close(block->lock_fd); /* and its lock with it */
		block->lock_fd = -1;
	} else {
		gr_file_unlock(block->pub.fd);
	}
	block->file_locked = false;
}

void gr_backing_undo(struct gr_block *block)
{
	/* Without the lock others may have the file by now, and stores to it would raise SIGBUS. */
	if (!block->file_locked) {
		return;
	}
	if (block->made_path) {
		gr_file_remove(block->made_path);
	}
	if (block->made_longer) {
		(void)gr_file_set_bytes(block->pub.fd, 0);
	}
	unlock(block);
}

void gr_backing_keep(struct gr_block *block)
{
	free(block->made_path);
	block->made_path = NULL;
	if (block->file_locked) {
		unlock(block);
	}
}

void gr_backing_unmap(struct gr_block *block)
{
	free(block->made_path);
	gr_windows_free(block->windows);
	if (block->own_memory) {
		gr_memory_unmap(&block->memory);
	}
	if (block->pub.fd >= 0 && block->pub.backing != GR_RAM_CALLER) {
		gr_memory_file_close(block->pub.fd);
	}
	if (block->release) {
		block->release(block->pub.host, block->pub.max_bytes, block->opaque);
	}
}
