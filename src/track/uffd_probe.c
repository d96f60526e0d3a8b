/* SPDX-License-Identifier: MIT */
/*
 * Opening a userfaultfd and the page map, and trying whether asynchronous write protection
 * works. Nothing here looks at versions.
 *
 * For asynchronous write protection we always ask for UFFD_USER_MODE_ONLY, privileged or not: an
 * unprivileged process may have nothing else (vm.unprivileged_userfaultfd = 0), and no fault is ever
 * handed to user space, so that the kernel resolves the faults of system calls by itself all the
 * same. Synchronous protection takes what it can get: with user mode only, a system call into
 * protected memory fails with EFAULT, and KVM_RUN too.
 */
#include "base/compiler.h"
#include "base/uapi.h"
#include "track/uffd_wp.h"
#include <errno.h>
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#define PAGEMAP_PATH "/proc/self/pagemap"

/* A userfaultfd without the API handshake. Containers may forbid one of the two ways. */
static int open_raw(int flags, struct gr_error *err)
{
	int fd, dev, code;

	flags |= O_CLOEXEC | O_NONBLOCK;
	fd = (int)syscall(SYS_userfaultfd, flags);
	if (fd >= 0) {
		return fd;
	}
	code = errno;
	dev = open("/dev/userfaultfd", O_RDWR | O_CLOEXEC);
	if (dev >= 0) {
		fd = ioctl(dev, GR_USERFAULTFD_IOC_NEW, flags);
		close(dev);
		if (fd >= 0) {
			return fd;
		}
	}
	return gr_error_set(err, -code, "userfaultfd: %s%s", strerror(code),
			    code == EPERM ? " (a seccomp filter forbids it?)" : "");
}

static const char *missing_name(uint64_t missing)
{
	if (missing & GR_UFFD_FEATURE_WP_ASYNC) {
		return "asynchronous write protection (WP_ASYNC, Linux 6.7)";
	}
	if (missing & GR_UFFD_FEATURE_WP_UNPOPULATED) {
		return "write protection of pages not yet there (WP_UNPOPULATED, Linux 6.4)";
	}
	if (missing & UFFD_FEATURE_MISSING_SHMEM) {
		return "missing pages of shared memory (MISSING_SHMEM, Linux 4.11)";
	}
	if (missing & GR_UFFD_FEATURE_WP_HUGETLBFS_SHMEM) {
		return "write protection of shared memory (WP_HUGETLBFS_SHMEM, Linux 5.19)";
	}
	return "write protection";
}

/* A descriptor takes one handshake, so a refusal is explained by asking with a fresh one. */
static int explain_refusal(uint64_t features, int code, struct gr_error *err)
{
	struct uffdio_api api = { .api = UFFD_API };
	int fd = open_raw(GR_UFFD_USER_MODE_ONLY, err);

	if (fd < 0) {
		return fd;
	}
	if (ioctl(fd, UFFDIO_API, &api) == 0 && (features & ~api.features)) {
		code = ENOTSUP;
		gr_error_set(err, -code, "userfaultfd: this kernel lacks %s",
			     missing_name(features & ~api.features));
	} else {
		gr_error_set(err, -code, "userfaultfd: UFFDIO_API: %s", strerror(code));
	}
	close(fd);
	return -code;
}

static int open_flags(int flags, uint64_t features, struct gr_error *err)
{
	struct uffdio_api api = { .api = UFFD_API, .features = features };
	int fd = open_raw(flags, err), code;

	if (fd < 0) {
		return fd;
	}
	if (ioctl(fd, UFFDIO_API, &api) < 0) {
		code = errno;
		close(fd);
		return explain_refusal(features, code, err);
	}
	return fd;
}

int gr_uffd_open(uint64_t features, struct gr_error *err)
{
	return open_flags(GR_UFFD_USER_MODE_ONLY, features, err);
}

int gr_uffd_open_sync(bool *ret_kernel_faults, bool *ret_unpopulated, struct gr_error *err)
{
	uint64_t needed = GR_UFFD_FEATURE_PAGEFAULT_FLAG_WP | GR_UFFD_FEATURE_WP_HUGETLBFS_SHMEM;
	struct gr_error why;
	int fd = -1;

	for (unsigned int i = 0; i < 4 && fd < 0; i++) {
		*ret_kernel_faults = i < 2;
		*ret_unpopulated = i % 2 == 0;
		fd = open_flags(*ret_kernel_faults ? 0 : GR_UFFD_USER_MODE_ONLY,
				needed | (*ret_unpopulated ? GR_UFFD_FEATURE_WP_UNPOPULATED : 0),
				&why);
	}
	/* The last refusal is of the least that will do. */
	return fd >= 0 ? fd : gr_error_set(err, fd, "%s", why.msg);
}

int gr_uffd_open_missing(bool *ret_kernel_faults, struct gr_error *err)
{
	struct gr_error why;
	int fd = -1;

	for (unsigned int i = 0; i < 2 && fd < 0; i++) {
		*ret_kernel_faults = i == 0;
		fd = open_flags(i == 0 ? 0 : GR_UFFD_USER_MODE_ONLY, UFFD_FEATURE_MISSING_SHMEM,
				&why);
	}
	return fd >= 0 ? fd : gr_error_set(err, fd, "%s", why.msg);
}

int gr_pagemap_open(struct gr_error *err)
{
	int fd = open(PAGEMAP_PATH, O_RDONLY | O_CLOEXEC), code = errno;

	if (fd < 0) {
		return gr_error_set(err, -code, PAGEMAP_PATH ": %s%s", strerror(code),
				    code == EACCES ? " (a process that has changed its user "
						     "must make itself dumpable again)"
						   : "");
	}
	return fd;
}

static int try_page(int uffd, int pagemap, volatile char *page, size_t bytes, struct gr_error *err)
{
	uint64_t start = (uint64_t)(uintptr_t)page;
	struct uffdio_register reg = { .range = { start, bytes }, .mode = UFFDIO_REGISTER_MODE_WP };
	struct uffdio_writeprotect wp = { .range = { start, bytes },
					  .mode = UFFDIO_WRITEPROTECT_MODE_WP };
	struct gr_page_region region;
	struct gr_pm_scan_arg scan = {
		.size = sizeof(scan),
		.flags = GR_PM_SCAN_WP_MATCHING | GR_PM_SCAN_CHECK_WPASYNC,
		.start = start,
		.end = start + bytes,
		.vec = (uint64_t)(uintptr_t)&region,
		.vec_len = 1,
		.category_mask = GR_PAGE_IS_WRITTEN,
		.return_mask = GR_PAGE_IS_WRITTEN,
	};
	int found;

	if (ioctl(uffd, UFFDIO_REGISTER, &reg) < 0) {
		return gr_error_set(err, -errno, "UFFDIO_REGISTER: %s", strerror(errno));
	}
	if (ioctl(uffd, UFFDIO_WRITEPROTECT, &wp) < 0) {
		return gr_error_set(err, -errno, "UFFDIO_WRITEPROTECT: %s", strerror(errno));
	}
	for (int written = 0; written <= 1; written++) {
		found = ioctl(pagemap, GR_PAGEMAP_SCAN, &scan);
		if (found < 0) {
			return gr_error_set(err, errno == ENOTTY ? -ENOTSUP : -errno,
					    "PAGEMAP_SCAN: %s", strerror(errno));
		}
		if (found != written) {
			return gr_error_set(err, -ENOTSUP,
					    "a page that was%s written is%s reported",
					    written ? "" : " not", written ? " not" : "");
		}
		*page = 1;
	}
	return 0;
}

int gr_uffd_wp_try(int uffd, int pagemap, int fd, struct gr_error *err)
{
	size_t bytes = (size_t)sysconf(_SC_PAGESIZE);
	int flags = fd < 0 ? MAP_PRIVATE | MAP_ANONYMOUS : MAP_SHARED, ret;
	void *page = mmap(NULL, bytes, PROT_READ | PROT_WRITE, flags, fd, 0);

	if (page == MAP_FAILED) {
		return gr_error_set(err, -errno, "mmap of one page: %s", strerror(errno));
	}
	ret = try_page(uffd, pagemap, page, bytes, err);
	munmap(page, bytes);
	return ret;
}
