/* SPDX-License-Identifier: MIT */
#include "image/file.h"
#include "base/compiler.h"
#include <errno.h>
#include <fcntl.h>
#include <unistd.h>

int gr_file_pread(int fd, void *buf, size_t n, uint64_t at)
{
	uint8_t *to = buf;

	while (n > 0) {
		ssize_t got = pread(fd, to, n, (off_t)at);

		if (got < 0 && errno == EINTR) {
			continue;
		}
		if (got <= 0) {
			return got < 0 ? -errno : -EPIPE;
		}
		to += got;
		at += (uint64_t)got;
		n -= (size_t)got;
	}
	return 0;
}

int gr_file_pwrite(int fd, const void *buf, size_t n, uint64_t at)
{
	const uint8_t *from = buf;

	while (n > 0) {
		ssize_t put = pwrite(fd, from, n, (off_t)at);

		if (put < 0 && errno == EINTR) {
			continue;
		}
		if (put < 0) {
			return -errno;
		}
		from += put;
		at += (uint64_t)put;
		n -= (size_t)put;
	}
	return 0;
}

int gr_file_zero(int fd, uint64_t at, uint64_t n)
{
	static const uint8_t zeros[64 << 10];

	if (fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)at, (off_t)n) == 0) {
		return 0;
	}
	if (errno != EOPNOTSUPP && errno != ENOSYS && errno != EINTR) {
		return -errno;
	}
	for (uint64_t done = 0; done < n; done += sizeof(zeros)) {
		int rc = gr_file_pwrite(fd, zeros, GR_MIN(n - done, (uint64_t)sizeof(zeros)),
					at + done);

		if (rc < 0) {
			return rc;
		}
	}
	return 0;
}
