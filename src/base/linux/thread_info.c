/* SPDX-License-Identifier: MIT */
#include "base/thread_info.h"
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <sys/syscall.h>
#include <unistd.h>

uint32_t gr_thread_id(void)
{
	return (uint32_t)syscall(SYS_gettid);
}

void gr_thread_name(uint32_t id, char *name, size_t bytes)
{
	int saved_errno = errno, fd;
	char path[64];
	ssize_t n = 0;

	(void)snprintf(path, sizeof(path), "/proc/self/task/%u/comm", id);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd >= 0) {
		n = read(fd, name, bytes - 1);
		close(fd);
	}
	if (n > 0 && name[n - 1] == '\n') {
		n--;
	}
	if (n <= 0) {
		name[0] = '?'; /* it ended meanwhile, or there is no /proc */
		n = 1;
	}
	name[n] = '\0';
	errno = saved_errno;
}
