/* SPDX-License-Identifier: MIT */
/* What POSIX knows of it is little. */
#include "base/memory.h"
#include <errno.h>
#include <fcntl.h>
#include <sys/mman.h>

bool gr_memory_may_overcommit(const char *path)
{
	(void)path;
	return true;
}

int gr_memory_advise(void *host, size_t bytes, enum gr_memory_advice advice)
{
	if (advice != GR_MEMORY_LOCK) {
		return -ENOTSUP;
	}
	return mlock(host, bytes) == 0 ? 0 : -errno;
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

/* A file is given its space; other memory is touched, and is there or ends the process. */
int gr_memory_populate_by_copy(const struct gr_memory *m, size_t offset, size_t bytes)
{
	if (m->flags & GR_MEMORY_READONLY) {
		return 0;
	}
	if (m->fd >= 0 && (m->flags & GR_MEMORY_SHARED)) {
		return -posix_fallocate(m->fd, (off_t)(m->offset + offset), (off_t)bytes);
	}
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
