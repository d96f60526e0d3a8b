/* SPDX-License-Identifier: MIT */
#include "base/memory.h"
#include <errno.h>
#include <sys/mman.h>
#include <unistd.h>

#ifndef MAP_NORESERVE
#	define MAP_NORESERVE 0
#endif

size_t gr_page_bytes(void)
{
	return (size_t)sysconf(_SC_PAGESIZE);
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
	size_t total = bytes + align;
	uint8_t *p =
		mmap(NULL, total, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	size_t front;

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

void *gr_memory_map(size_t bytes, size_t guard, size_t align, int fd)
{
	int flags = fd >= 0 ? MAP_SHARED : MAP_PRIVATE | MAP_ANONYMOUS;
	uint8_t *p = reserve(bytes + guard, align);

	if (p && mmap(p, bytes, PROT_READ | PROT_WRITE, flags | MAP_FIXED | MAP_NORESERVE, fd, 0) ==
			 MAP_FAILED) {
		int saved_errno = errno;

		(void)munmap(p, bytes + guard);
		errno = saved_errno;
		return NULL;
	}
	return p;
}

void gr_memory_unmap(void *memory, size_t bytes)
{
	(void)munmap(memory, bytes);
}

void *gr_aligned_alloc(size_t align, size_t bytes)
{
	return aligned_alloc(align, bytes);
}

void gr_aligned_free(void *memory)
{
	free(memory);
}
