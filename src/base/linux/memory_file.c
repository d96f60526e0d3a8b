/* SPDX-License-Identifier: MIT */
#include "base/memory.h"
#include <errno.h>
#include <fcntl.h>
#include <linux/magic.h>
#include <stdio.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <unistd.h>

int gr_memory_file(const char *name, uint64_t bytes, size_t page_bytes)
{
	unsigned int huge = page_bytes <= gr_page_bytes() ? 0 :
			    MFD_HUGETLB | (unsigned int)__builtin_ctzll(page_bytes) << 26;
	int fd = memfd_create(name, MFD_CLOEXEC | MFD_ALLOW_SEALING | huge);

	if (fd < 0) {
		return -errno;
	}
	if (ftruncate(fd, (off_t)bytes) != 0 ||
	    fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL) != 0) {
		int code = -errno;

		(void)close(fd);
		return code;
	}
	return fd;
}

int64_t gr_memory_file_page_bytes(int fd)
{
	struct stat st;
	struct statfs fs;

	if (fstat(fd, &st) != 0 || !S_ISREG(st.st_mode)) {
		return -EINVAL;
	}
	if (fstatfs(fd, &fs) == 0 && (uint32_t)fs.f_type == HUGETLBFS_MAGIC) {
		return fs.f_bsize;
	}
	return (int64_t)gr_page_bytes();
}

bool gr_memory_file_is_memory(int fd)
{
	struct statfs fs;

	return fstatfs(fd, &fs) == 0 && ((uint32_t)fs.f_type == TMPFS_MAGIC ||
					 (uint32_t)fs.f_type == HUGETLBFS_MAGIC);
}

int gr_file_open_again(int fd)
{
	char path[40];
	int again;

	(void)snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
	again = open(path, O_RDWR | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
	return again >= 0 ? again : -errno;
}

void gr_memory_file_close(int fd)
{
	(void)close(fd);
}
