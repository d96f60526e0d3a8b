/* SPDX-License-Identifier: MIT */
#include "base/poll.h"
#include <errno.h>
#include <sys/stat.h>

int gr_poll(struct pollfd *fds, size_t n, int timeout_ms)
{
	int found = poll(fds, (nfds_t)n, timeout_ms);

	if (found < 0) {
		return errno == EINTR ? 0 : -errno;
	}
	return found;
}

int gr_poll_check(int fd)
{
	struct stat st;

	if (fstat(fd, &st) < 0) {
		return -errno;
	}
	return S_ISREG(st.st_mode) || S_ISDIR(st.st_mode) ? -EPERM : 0;
}
