/* SPDX-License-Identifier: MIT */
#include "base/memory.h"
#include "base/uapi.h"
#include <errno.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/uio.h>
#include <unistd.h>

/* How often a page may be refused for passing reasons. */
enum { TRIES_MAX = 100000 };

bool gr_memory_may_overcommit(const char *path)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	char mode = '0';

	if (fd >= 0) {
		if (read(fd, &mode, 1) != 1) {
			mode = '0';
		}
		(void)close(fd);
	}
	return mode != '2'; /* 2: everything is counted, whatever it was mapped with */
}

int gr_memory_advise(void *host, size_t bytes, enum gr_memory_advice advice)
{
	static const int madvice[] = {
		[GR_MEMORY_THP] = MADV_HUGEPAGE,
		[GR_MEMORY_NO_DUMP] = MADV_DONTDUMP,
		[GR_MEMORY_NO_FORK] = MADV_DONTFORK,
		[GR_MEMORY_MERGE] = MADV_MERGEABLE,
	};
	int ret = advice == GR_MEMORY_LOCK ? mlock(host, bytes) :
					     madvise(host, bytes, madvice[advice]);

	if (ret == 0) {
		return 0;
	}
	/* A kernel without huge pages or merging. */
	return errno == EINVAL ? -ENOTSUP : -errno;
}

int gr_memory_bind(void *host, size_t bytes, unsigned int policy, uint64_t nodes)
{
	unsigned long mask[64 / (8 * sizeof(unsigned long))];

	for (size_t i = 0; i < GR_ARRAY_SIZE(mask); i++) {
		mask[i] = (unsigned long)(nodes >> (i * 8 * sizeof(unsigned long)) % 64);
	}
	/* One more than there are bits: the kernel takes one off. Pages there already are moved. */
	return syscall(SYS_mbind, host, bytes, policy, mask, 65UL,
		       GR_MPOL_MF_STRICT | GR_MPOL_MF_MOVE) == 0 ?
		       0 :
		       -errno;
}

/* The kernel reports by these what would have been SIGBUS. */
static int lack(const struct gr_memory *m, int code)
{
	if (code != EFAULT) {
		return -code;
	}
	return m->fd >= 0 ? -ENOSPC : -ENOMEM;
}

int gr_memory_populate(const struct gr_memory *m, size_t offset, size_t bytes)
{
	int advice = (m->flags & GR_MEMORY_READONLY) ? GR_MADV_POPULATE_READ :
							GR_MADV_POPULATE_WRITE;

	for (int tries = 0; madvise(m->host + offset, bytes, advice) != 0; tries++) {
		if (errno == EINVAL) {
			return gr_memory_populate_by_copy(m, offset, bytes);
		}
		if ((errno != EINTR && errno != EAGAIN) || tries == TRIES_MAX) {
			return lack(m, errno);
		}
	}
	return 0;
}

/*
 * The kernel is asked to copy a byte of each page onto itself: where it cannot have the page, it
 * says so and raises no signal. In files that others may be storing to, the file system is asked
 * for the space instead.
 */
int gr_memory_populate_by_copy(const struct gr_memory *m, size_t offset, size_t bytes)
{
	struct iovec iov[256];

	if (m->flags & GR_MEMORY_READONLY) {
		return 0; /* what is not written takes no memory that could lack */
	}
	if (m->fd >= 0 && (m->flags & GR_MEMORY_SHARED)) {
		while (fallocate(m->fd, 0, (off_t)(m->offset + offset), (off_t)bytes) != 0) {
			if (errno != EINTR) {
				return -errno;
			}
		}
		return 0;
	}
	while (bytes != 0) {
		size_t n = GR_MIN(bytes / m->page_bytes, GR_ARRAY_SIZE(iov));
		ssize_t got;

		for (size_t i = 0; i < n; i++) {
			iov[i] = (struct iovec){ m->host + offset + i * m->page_bytes, 1 };
		}
		got = process_vm_readv(getpid(), iov, n, iov, n, 0);
		if (got <= 0) {
			return lack(m, got < 0 ? errno : EFAULT);
		}
		offset += (size_t)got * m->page_bytes;
		bytes -= (size_t)got * m->page_bytes;
	}
	return 0;
}

int gr_memory_discard(const struct gr_memory *m, uint64_t offset, uint64_t bytes, bool locked)
{
	bool shared = m->flags & GR_MEMORY_SHARED, by_file = shared && m->fd >= 0;
	int ret;

	do {
		if (by_file) {
			ret = fallocate(m->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
					(off_t)(m->offset + offset), (off_t)bytes);
		} else if (shared) {
			ret = madvise(m->host + offset, (size_t)bytes, MADV_REMOVE);
		} else {
			ret = madvise(m->host + offset, (size_t)bytes,
				      locked ? GR_MADV_DONTNEED_LOCKED : MADV_DONTNEED);
		}
	} while (ret != 0 && errno == EINTR);
#ifndef GR_MUTANT_DISCARD_LOCKED_INVALID
	/* The range is sound, so it is the memory that will not: somebody has locked it. */
	if (ret != 0 && errno == EINVAL && !by_file) {
		return -ENOTSUP;
	}
#endif
	return ret == 0 ? 0 : -errno;
}
