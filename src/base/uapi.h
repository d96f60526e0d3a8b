/* SPDX-License-Identifier: MIT */
/*
 * Kernel constants that are newer than the oldest headers we build with, or whose header
 * is not everywhere. Features are probed at run time, never by version.
 */
#ifndef GR_BASE_UAPI_H
#define GR_BASE_UAPI_H

#include <linux/ioctl.h>
#include <stdint.h>
#include <sys/syscall.h>

/* membarrier(2): linux/membarrier.h, since Linux 4.14. */
#define GR_MEMBARRIER_CMD_QUERY				0
#define GR_MEMBARRIER_CMD_PRIVATE_EXPEDITED		(1 << 3)
#define GR_MEMBARRIER_CMD_REGISTER_PRIVATE_EXPEDITED	(1 << 4)

/* madvise(2): asm-generic/mman-common.h */
#define GR_MADV_POPULATE_READ	22 /* 5.14 */
#define GR_MADV_POPULATE_WRITE	23 /* 5.14 */
#define GR_MADV_DONTNEED_LOCKED 24 /* 5.18 */

/* mbind(2): linux/mempolicy.h */
#define GR_MPOL_MF_STRICT (1u << 0)
#define GR_MPOL_MF_MOVE	  (1u << 1)

/* userfaultfd: linux/userfaultfd.h */
#define GR_UFFD_USER_MODE_ONLY		      1		  /* 5.11 */
#define GR_UFFD_FEATURE_PAGEFAULT_FLAG_WP     (1ull << 0) /* 5.7, anonymous memory */
#define GR_UFFD_FEATURE_WP_HUGETLBFS_SHMEM    (1ull << 12) /* 5.19 */
#define GR_UFFD_FEATURE_WP_UNPOPULATED	      (1ull << 13) /* 6.4 */
#define GR_UFFD_FEATURE_POISON		      (1ull << 14) /* 6.6 */
#define GR_UFFD_FEATURE_WP_ASYNC	      (1ull << 15) /* 6.7 */
#define GR_USERFAULTFD_IOC_NEW		      _IO(0xAA, 0x00) /* /dev/userfaultfd, 6.1 */

/* PAGEMAP_SCAN on /proc/PID/pagemap: linux/fs.h, 6.7 */
struct gr_page_region {
	uint64_t start;
	uint64_t end;
	uint64_t categories;
};

struct gr_pm_scan_arg {
	uint64_t size;
	uint64_t flags;
	uint64_t start;
	uint64_t end;
	uint64_t walk_end;
	uint64_t vec;
	uint64_t vec_len;
	uint64_t max_pages;
	uint64_t category_inverted;
	uint64_t category_mask;
	uint64_t category_anyof_mask;
	uint64_t return_mask;
};
_Static_assert(sizeof(struct gr_page_region) == 24, "layout of the kernel's page_region");
_Static_assert(sizeof(struct gr_pm_scan_arg) == 96, "layout of the kernel's pm_scan_arg");

#define GR_PAGEMAP_SCAN		  _IOWR('f', 16, struct gr_pm_scan_arg)
#define GR_PAGE_IS_WPALLOWED	  (1ull << 0)
#define GR_PAGE_IS_WRITTEN	  (1ull << 1)
#define GR_PAGE_IS_FILE		  (1ull << 2)
#define GR_PAGE_IS_PRESENT	  (1ull << 3)
#define GR_PAGE_IS_SWAPPED	  (1ull << 4)
#define GR_PAGE_IS_PFNZERO	  (1ull << 5)
#define GR_PAGE_IS_HUGE		  (1ull << 6)
#define GR_PM_SCAN_WP_MATCHING	  (1ull << 0)
#define GR_PM_SCAN_CHECK_WPASYNC  (1ull << 1)

#endif
