/* SPDX-License-Identifier: MIT */
#include "image/direct.h"
#include "base/atomic.h"
#include "image/file.h"
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

/* Where the kernel does not tell: enough for every disk with sectors of up to 4 KiB. */
enum { ALIGN_BYTES = 4096 };

/* What the kernel (6.1) says requests have to be multiples of; 0: it knows that there is no way. */
static uint32_t alignment(int fd)
{
#ifdef STATX_DIOALIGN
	struct statx st;

	if (statx(fd, "", AT_EMPTY_PATH, STATX_DIOALIGN, &st) == 0 &&
	    (st.stx_mask & STATX_DIOALIGN) != 0) {
		if (st.stx_dio_offset_align == 0) {
			return 0;
		}
		return GR_MAX(st.stx_dio_offset_align, st.stx_dio_mem_align);
	}
#else
	(void)fd;
#endif
	return ALIGN_BYTES;
}

void gr_direct_open(struct gr_direct *d, int fd, bool want, bool writable)
{
	char path[32];

	*d = (struct gr_direct){ .fd = fd, .direct_fd = -1 };
	if (!want) {
		return;
	}
	d->align = alignment(fd);
	if (!GR_IS_POWER_OF_TWO(d->align)) {
		d->why = -EOPNOTSUPP;
		return;
	}
	/* The same file, whatever has its name by now. */
	(void)snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
	d->direct_fd = open(path, (writable ? O_RDWR : O_RDONLY) | O_DIRECT | O_CLOEXEC);
	if (d->direct_fd < 0) {
		d->why = -errno;
	}
}

void gr_direct_close(struct gr_direct *d)
{
	if (d->direct_fd >= 0) {
		(void)close(d->direct_fd);
		d->direct_fd = -1;
	}
}

bool gr_direct_is_on(const struct gr_direct *d)
{
	/* A hint: who is late finds out by himself. */
	return d->direct_fd >= 0 && gr_load_relaxed(&d->refused) == 0;
}

void gr_direct_why(const struct gr_direct *d, char *buf, size_t bytes)
{
	int why = d->direct_fd < 0 ? d->why : gr_load_relaxed(&d->refused);

	if (why == 0) {
		buf[0] = '\0';
	} else if (why == -EINVAL || why == -EOPNOTSUPP) {
		(void)snprintf(buf, bytes, "its file system has no direct I/O");
	} else {
		(void)snprintf(buf, bytes, "direct I/O: %s", strerror(-why));
	}
}

static int transfer(int fd, bool out, uint8_t *buf, size_t n, uint64_t at)
{
	return out ? gr_file_pwrite(fd, buf, n, at) : gr_file_pread(fd, buf, n, at);
}

/* The middle of a request. A file system may take O_DIRECT and refuse each request. */
static int transfer_aligned(struct gr_direct *d, bool out, uint8_t *buf, size_t n, uint64_t at)
{
	int rc = transfer(d->direct_fd, out, buf, n, at);

	if (rc == -EINVAL || rc == -EOPNOTSUPP) {
		gr_store_relaxed(&d->refused, rc);
		return transfer(d->fd, out, buf, n, at);
	}
	return rc;
}

static int split(struct gr_direct *d, bool out, uint8_t *buf, size_t n, uint64_t at)
{
	uint64_t first, end;
	int rc = 0;

	if (!gr_direct_is_on(d)) {
		return transfer(d->fd, out, buf, n, at);
	}
	first = GR_ROUND_UP(at, (uint64_t)d->align);
	end = (at + n) & ~((uint64_t)d->align - 1);
	if (first >= end || !GR_IS_ALIGNED((uintptr_t)buf + (first - at), d->align)) {
		return transfer(d->fd, out, buf, n, at);
	}
	if (first > at) {
		rc = transfer(d->fd, out, buf, first - at, at);
	}
	if (rc == 0) {
		rc = transfer_aligned(d, out, buf + (first - at), end - first, first);
	}
	if (rc == 0 && end < at + n) {
		rc = transfer(d->fd, out, buf + (end - at), at + n - end, end);
	}
	return rc;
}

int gr_direct_pread(struct gr_direct *d, void *buf, size_t n, uint64_t at)
{
	return split(d, false, buf, n, at);
}

int gr_direct_pwrite(struct gr_direct *d, const void *buf, size_t n, uint64_t at)
{
	return split(d, true, (uint8_t *)(uintptr_t)buf, n, at);
}
