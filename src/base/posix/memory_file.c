/* SPDX-License-Identifier: MIT */
/* A file in memory that cannot change its length is Linux's alone. */
#include "base/memory.h"
#include <errno.h>
#include <sys/stat.h>
#include <unistd.h>

int gr_memory_file(const char *name, uint64_t bytes, size_t page_bytes)
{
	(void)name;
	(void)bytes;
	(void)page_bytes;
	return -ENOTSUP;
}

int64_t gr_memory_file_page_bytes(int fd)
{
	struct stat st;

	return fstat(fd, &st) == 0 && S_ISREG(st.st_mode) ? (int64_t)gr_page_bytes() : -EINVAL;
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

void gr_memory_file_close(int fd)
{
	(void)close(fd);
}
