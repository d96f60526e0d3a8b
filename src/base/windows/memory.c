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

unsigned int gr_cpus(void)
{
	SYSTEM_INFO info;

	GetSystemInfo(&info);
	return info.dwNumberOfProcessors;
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

int gr_memory_map(struct gr_memory *m)
{
	uint8_t *p;

	/* Huge pages are for privileged processes only, so the alignment is of no use. */
	if (m->fd >= 0 || m->page_bytes > gr_page_bytes() ||
	    (m->flags & ~(unsigned int)GR_MEMORY_NO_RESERVE)) {
		return -ENOTSUP;
	}
	/* Reserved and not committed: nobody can touch the end. */
	p = VirtualAlloc(NULL, m->bytes + m->guard, MEM_RESERVE, PAGE_NOACCESS);
	if (p && !VirtualAlloc(p, m->bytes, MEM_COMMIT, PAGE_READWRITE)) {
		(void)VirtualFree(p, 0, MEM_RELEASE);
		p = NULL;
	}
	m->host = p;
	return p ? 0 : -ENOMEM;
}

int gr_memory_map_again(const struct gr_memory *m, size_t offset, size_t bytes)
{
	/* Decommitted and committed again: other pages, of zeroes. */
	if (!VirtualFree(m->host + offset, bytes, MEM_DECOMMIT) ||
	    !VirtualAlloc(m->host + offset, bytes, MEM_COMMIT, PAGE_READWRITE)) {
		return -ENOMEM;
	}
	return 0;
}

void gr_memory_unmap(const struct gr_memory *m)
{
	gr_pages_free(m->host, m->bytes);
}

bool gr_memory_may_overcommit(const char *path)
{
	(void)path;
	return false;
}

bool gr_memory_is_counted(const struct gr_memory *m)
{
	(void)m;
	return true;
}

bool gr_memory_file_is_memory(int fd)
{
	(void)fd;
	return false;
}

int gr_file_open_again(int fd)
{
	(void)fd;
	return -ENOTSUP;
}

int gr_memory_advise(void *host, size_t bytes, enum gr_memory_advice advice)
{
	(void)host;
	(void)bytes;
	(void)advice;
	return -ENOTSUP;
}

int gr_memory_bind(void *host, size_t bytes, unsigned int policy, uint64_t nodes)
{
	(void)host;
	(void)bytes;
	(void)policy;
	(void)nodes;
	return -ENOTSUP;
}

int gr_memory_populate(const struct gr_memory *m, size_t offset, size_t bytes)
{
	return gr_memory_populate_by_copy(m, offset, bytes);
}

/* Committed memory is there: a touch only makes it be there now. */
int gr_memory_populate_by_copy(const struct gr_memory *m, size_t offset, size_t bytes)
{
	for (size_t at = 0; at < bytes; at += m->page_bytes) {
		volatile uint8_t *p = m->host + offset + at;

		*p = *p;
	}
	return 0;
}

int gr_memory_discard(const struct gr_memory *m, uint64_t offset, uint64_t bytes, bool locked)
{
	(void)m;
	(void)offset;
	(void)bytes;
	(void)locked;
	return -ENOTSUP;
}

int gr_memory_write_back(void *host, size_t bytes)
{
	(void)host;
	(void)bytes;
	return -ENOTSUP;
}

int gr_memory_file(const char *name, uint64_t bytes, size_t page_bytes)
{
	(void)name;
	(void)bytes;
	(void)page_bytes;
	return -ENOTSUP;
}

int gr_file_open(const char *path, const char *name, bool readonly, enum gr_file_origin *ret_origin)
{
	(void)path;
	(void)name;
	(void)readonly;
	(void)ret_origin;
	return -ENOTSUP;
}

int gr_file_lock(int fd, bool exclusive)
{
	(void)fd;
	(void)exclusive;
	return -ENOTSUP;
}

void gr_file_unlock(int fd)
{
	(void)fd;
}

void gr_file_remove(const char *path)
{
	(void)path;
}

void gr_file_identify(int fd, struct gr_file_identity *ret_identity)
{
	(void)fd;
	*ret_identity = (struct gr_file_identity){ 0 };
}

int gr_file_duplicate(int fd)
{
	(void)fd;
	return -ENOTSUP;
}

int64_t gr_file_bytes(int fd)
{
	(void)fd;
	return -ENOTSUP;
}

int gr_file_set_bytes(int fd, uint64_t bytes)
{
	(void)fd;
	(void)bytes;
	return -ENOTSUP;
}

int gr_file_write_back(int fd)
{
	(void)fd;
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
