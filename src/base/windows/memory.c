/* SPDX-License-Identifier: MIT */
/*
 * Windows counts committed memory against what it could ever provide, touched or not: blocks and
 * bitmaps are paid for when they are made. There are no files in memory with an fd.
 */
#include "base/memory.h"
#include <errno.h>
#include <malloc.h>
#include <windows.h>

size_t gr_page_bytes(void)
{
	SYSTEM_INFO info;

	GetSystemInfo(&info);
	return info.dwPageSize;
}

void *gr_pages_alloc(size_t bytes)
{
	return VirtualAlloc(NULL, bytes, MEM_RESERVE | MEM_COMMIT, PAGE_READWRITE);
}

void gr_pages_free(void *pages, size_t bytes)
{
	(void)bytes;
	(void)VirtualFree(pages, 0, MEM_RELEASE);
}

void *gr_memory_map(size_t bytes, size_t guard, size_t align, int fd)
{
	uint8_t *p;

	(void)align; /* for huge pages, which Windows gives to privileged processes only */
	if (fd >= 0) {
		errno = ENOTSUP;
		return NULL;
	}
	/* Reserved and not committed: nobody can touch the end. */
	p = VirtualAlloc(NULL, bytes + guard, MEM_RESERVE, PAGE_NOACCESS);
	if (p && !VirtualAlloc(p, bytes, MEM_COMMIT, PAGE_READWRITE)) {
		(void)VirtualFree(p, 0, MEM_RELEASE);
		p = NULL;
	}
	if (!p) {
		errno = ENOMEM;
	}
	return p;
}

void gr_memory_unmap(void *memory, size_t bytes)
{
	gr_pages_free(memory, bytes);
}

int gr_memory_file(const char *name, uint64_t bytes)
{
	(void)name;
	(void)bytes;
	return -ENOTSUP;
}

int64_t gr_memory_file_page_bytes(int fd)
{
	(void)fd;
	return -ENOTSUP;
}

void gr_memory_file_close(int fd)
{
	(void)fd;
}

void *gr_aligned_alloc(size_t align, size_t bytes)
{
	return _aligned_malloc(bytes, align);
}

void gr_aligned_free(void *memory)
{
	_aligned_free(memory);
}
