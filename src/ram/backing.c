/* SPDX-License-Identifier: MIT */
/*
 * Where a block's bytes are. Our own mappings end in a page that nobody can touch, so that
 * a device that runs over the end of guest memory faults here instead of writing into the
 * next thing; blocks of 2 MiB and more start at a multiple of that, for huge pages.
 */
#include "base/compiler.h"
#include "ram/ram.h"
#include <errno.h>
#include <fcntl.h>
#include <linux/magic.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <unistd.h>

#define HUGE_BYTES ((uint64_t)2 << 20)

static uint64_t host_page_bytes(void)
{
	return (uint64_t)sysconf(_SC_PAGESIZE);
}

/* Address space for a block and its guard page, nothing mapped in it. NULL: none left. */
static uint8_t *reserve(uint64_t bytes, uint64_t guard)
{
	uint64_t align = bytes >= HUGE_BYTES ? HUGE_BYTES : guard;
	uint64_t total = bytes + guard + align;
	uint8_t *p = mmap(NULL, total, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	uint64_t front;

	if (p == MAP_FAILED) {
		return NULL;
	}
	front = GR_ROUND_UP((uintptr_t)p, align) - (uintptr_t)p;
	if (front != 0) {
		(void)munmap(p, front);
	}
	if (align != front) {
		(void)munmap(p + front + bytes + guard, align - front);
	}
	return p + front;
}

/* An fd whose length nobody can change: no process that has it can make us fault. */
static int sealed_memfd(const char *id, uint64_t bytes, struct gr_error *err)
{
	char name[64];
	int fd, ret;

	(void)snprintf(name, sizeof(name), "guestram:%.40s", id);
	fd = memfd_create(name, MFD_CLOEXEC | MFD_ALLOW_SEALING);
	if (fd < 0) {
		return gr_error_set(err, -errno, "block '%s': memfd_create: %s", id, strerror(errno));
	}
	if (ftruncate(fd, (off_t)bytes) != 0 ||
	    fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL) != 0) {
		ret = gr_error_set(err, -errno, "block '%s': memfd of %llu bytes: %s", id,
				   (unsigned long long)bytes, strerror(errno));
		(void)close(fd);
		return ret;
	}
	return fd;
}

static int map_own(struct gr_block *block, bool memfd, struct gr_error *err)
{
	uint64_t guard = host_page_bytes(), bytes = GR_ROUND_UP(block->pub.max_bytes, guard);
	const char *id = block->pub.id;
	int flags = memfd ? MAP_SHARED : MAP_PRIVATE | MAP_ANONYMOUS;
	int fd = -1, ret;
	uint8_t *host;

	if (memfd) {
		fd = sealed_memfd(id, bytes, err);
		if (fd < 0) {
			return fd;
		}
	}
	host = reserve(bytes, guard);
	if (!host || mmap(host, bytes, PROT_READ | PROT_WRITE, flags | MAP_FIXED | MAP_NORESERVE,
			  fd, 0) == MAP_FAILED) {
		ret = gr_error_set(err, -ENOMEM, "block '%s': cannot map %llu bytes: %s", id,
				   (unsigned long long)bytes, strerror(errno));
		if (host) {
			(void)munmap(host, bytes + guard);
		}
		if (fd >= 0) {
			(void)close(fd);
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
	uint64_t page = host_page_bytes();
	const char *id = block->pub.id;
	uintptr_t end;
	struct stat st;
	struct statfs fs;

	if (!desc->host || (uintptr_t)desc->host % page != 0 ||
	    __builtin_add_overflow((uintptr_t)desc->host, block->pub.max_bytes, &end)) {
		return gr_error_set(err, -EINVAL,
				    "block '%s': host address %p is null, not a multiple of %llu, or "
				    "too high for %llu bytes",
				    id, desc->host, (unsigned long long)page,
				    (unsigned long long)block->pub.max_bytes);
	}
	block->pub.page_bytes = page;
	if (desc->fd >= 0) {
		if (fstat(desc->fd, &st) != 0 || !S_ISREG(st.st_mode)) {
			return gr_error_set(err, -EINVAL,
					    "block '%s': fd %d is not memory or a file (-1 means none)",
					    id, desc->fd);
		}
		if (fstatfs(desc->fd, &fs) == 0 && fs.f_type == HUGETLBFS_MAGIC) {
			block->pub.page_bytes = (uint64_t)fs.f_bsize;
		}
	}
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
		(void)munmap(block->pub.host, block->map_bytes);
		if (block->pub.fd >= 0) {
			(void)close(block->pub.fd);
		}
	} else if (block->release) {
		block->release(block->pub.host, block->pub.max_bytes, block->opaque);
	}
}
