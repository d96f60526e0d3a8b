/* SPDX-License-Identifier: MIT */
#include "base/memory.h"
#include <errno.h>
#include <sys/mman.h>
#include <unistd.h>
#ifdef GR_PLATFORM_LINUX
#	include <linux/mman.h> /* MAP_HUGE_SHIFT, MAP_SYNC */
#endif

#ifndef MAP_NORESERVE
#	define MAP_NORESERVE 0
#endif

size_t gr_page_bytes(void)
{
	return (size_t)sysconf(_SC_PAGESIZE);
}

unsigned int gr_cpus(void)
{
	long n = sysconf(_SC_NPROCESSORS_ONLN);

	return n > 0 ? (unsigned int)n : 1;
}

#if GR_ASAN
/* The leak checker looks for pointers in these pages too. */
void __lsan_register_root_region(const void *p, size_t bytes);
void __lsan_unregister_root_region(const void *p, size_t bytes);
#else
static inline void __lsan_register_root_region(const void *p, size_t bytes)
{
	(void)p;
	(void)bytes;
}

static inline void __lsan_unregister_root_region(const void *p, size_t bytes)
{
	(void)p;
	(void)bytes;
}
#endif

void *gr_pages_alloc(size_t bytes)
{
	void *p = mmap(NULL, bytes, PROT_READ | PROT_WRITE,
		       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

	if (p == MAP_FAILED) {
		return NULL;
	}
	__lsan_register_root_region(p, bytes);
	return p;
}

void gr_pages_free(void *pages, size_t bytes)
{
	__lsan_unregister_root_region(pages, bytes);
	(void)munmap(pages, bytes);
}

/* Address space with nothing mapped in it. NULL: none left. */
static uint8_t *reserve(size_t bytes, size_t align)
{
	size_t total, front;
	uint8_t *p;

	if (__builtin_add_overflow(bytes, align, &total)) {
		return NULL;
	}
	p = mmap(NULL, total, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (p == MAP_FAILED) {
		return NULL;
	}
	front = GR_ROUND_UP((uintptr_t)p, align) - (uintptr_t)p;
	if (front != 0) {
		(void)munmap(p, front);
	}
	if (align != front) {
		(void)munmap(p + front + bytes, align - front);
	}
	return p + front;
}

/* Of memory that has no file, or of one where this makes a difference. */
static int map_flags(const struct gr_memory *m)
{
	int flags = (m->flags & GR_MEMORY_SHARED) ? MAP_SHARED : MAP_PRIVATE;

	if (m->fd < 0) {
		flags |= MAP_ANONYMOUS;
	}
	if (m->flags & GR_MEMORY_NO_RESERVE) {
		flags |= MAP_NORESERVE;
	}
#ifdef GR_PLATFORM_LINUX
	if (m->fd < 0 && m->page_bytes > gr_page_bytes()) {
		flags |= MAP_HUGETLB | __builtin_ctzll(m->page_bytes) << MAP_HUGE_SHIFT;
	}
	if (m->flags & GR_MEMORY_SYNC) {
		/* Older kernels take the bits of MAP_SHARED_VALIDATE for those of MAP_SHARED. */
		flags = (flags & ~MAP_SHARED) | MAP_SHARED_VALIDATE | MAP_SYNC;
	}
#endif
	return flags;
}

static int protection(const struct gr_memory *m)
{
	return PROT_READ | ((m->flags & GR_MEMORY_READONLY) ? 0 : PROT_WRITE);
}

int gr_memory_map(struct gr_memory *m)
{
	uint8_t *p;

#ifndef GR_PLATFORM_LINUX
	if (m->page_bytes > gr_page_bytes() || (m->flags & GR_MEMORY_SYNC)) {
		return -ENOTSUP;
	}
#endif
	p = reserve(m->bytes + m->guard, m->align);
	if (!p) {
		return -ENOMEM;
	}
	if (mmap(p, m->bytes, protection(m), map_flags(m) | MAP_FIXED, m->fd, (off_t)m->offset) ==
	    MAP_FAILED) {
		int code = -errno;

		(void)munmap(p, m->bytes + m->guard);
		return code;
	}
	m->host = p;
	return 0;
}

int gr_memory_map_again(const struct gr_memory *m, size_t offset, size_t bytes)
{
#ifdef GR_MUTANT_REMAP_FROM_ZERO
	uint64_t in_file = offset;
#else
	uint64_t in_file = m->offset + offset;
#endif

	return mmap(m->host + offset, bytes, protection(m), map_flags(m) | MAP_FIXED, m->fd,
		    m->fd >= 0 ? (off_t)in_file : 0) == MAP_FAILED ?
		       -errno :
		       0;
}

bool gr_memory_is_counted(const struct gr_memory *m)
{
	return m->page_bytes <= gr_page_bytes() && (m->fd < 0 || !(m->flags & GR_MEMORY_SHARED));
}

void gr_memory_unmap(const struct gr_memory *m)
{
	(void)munmap(m->host, m->bytes + m->guard);
}

int gr_memory_write_back(void *host, size_t bytes)
{
	return msync(host, bytes, MS_SYNC) == 0 ? 0 : -errno;
}

void *gr_aligned_alloc(size_t align, size_t bytes)
{
	return aligned_alloc(align, bytes);
}

void gr_aligned_free(void *memory)
{
	free(memory);
}
