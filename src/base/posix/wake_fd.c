/* SPDX-License-Identifier: MIT */
#include "base/wake_fd.h"
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <unistd.h>
#ifdef GR_HAVE_EVENTFD
#	include <sys/eventfd.h>
#endif

int gr_wake_fd_open(int *ret_fd, int *ret_write_fd)
{
#ifdef GR_HAVE_EVENTFD
	*ret_fd = *ret_write_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	return *ret_fd < 0 ? -errno : 0;
#else
	int fds[2];

	if (pipe(fds) < 0) {
		return -errno;
	}
	for (int i = 0; i < 2; i++) {
		(void)fcntl(fds[i], F_SETFD, FD_CLOEXEC);
		(void)fcntl(fds[i], F_SETFL, O_NONBLOCK);
	}
	*ret_fd = fds[0];
	*ret_write_fd = fds[1];
	return 0;
#endif
}

void gr_wake_fd_close(int fd, int write_fd)
{
	(void)close(fd);
	if (write_fd != fd) {
		(void)close(write_fd);
	}
}

void gr_wake_fd_ring(int write_fd)
{
	const uint64_t one = 1; /* an eventfd wants eight bytes; a pipe takes them too */
	int saved_errno = errno;

	(void)!write(write_fd, &one, sizeof(one)); /* full means readable: as good */
	errno = saved_errno;
}

bool gr_wake_fd_silence(int fd)
{
	int saved_errno = errno;
	uint64_t buf[8]; /* an eventfd gives eight bytes and is empty */
	bool rung = false;
	ssize_t n;

	do {
		n = read(fd, buf, sizeof(buf));
		rung |= n > 0;
	} while (n == (ssize_t)sizeof(buf));
	errno = saved_errno;
	return rung;
}
