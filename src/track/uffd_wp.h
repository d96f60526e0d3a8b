/* SPDX-License-Identifier: MIT */
/* What the userfaultfd trackers and the feature probe share: opening and trying. */
#ifndef GR_TRACK_UFFD_WP_H
#define GR_TRACK_UFFD_WP_H

#include "base/uapi.h"
#include <guestram/error.h>

/* What tracking needs of the kernel. */
#define GR_UFFD_FEATURES_TRACK                                                    \
	(GR_UFFD_FEATURE_PAGEFAULT_FLAG_WP | GR_UFFD_FEATURE_WP_HUGETLBFS_SHMEM | \
	 GR_UFFD_FEATURE_WP_UNPOPULATED | GR_UFFD_FEATURE_WP_ASYNC)

/*
 * Open a userfaultfd that needs no privilege (user mode faults only), and agree on features.
 * @return The file descriptor or a negative errno; the message says what is missing.
 */
int gr_uffd_open(uint64_t features, struct gr_error *err);

/*
 * Open a userfaultfd for write faults that are served: of the kernel too, if we may, and of pages
 * that are not there yet, if this kernel knows them.
 * @return As gr_uffd_open().
 */
int gr_uffd_open_sync(bool *ret_kernel_faults, bool *ret_unpopulated, struct gr_error *err);

/* The same for touches of pages that are not there, in private memory and memfds. */
int gr_uffd_open_missing(bool *ret_kernel_faults, struct gr_error *err);

/* Open this process's page map. @return The file descriptor or a negative errno. */
int gr_pagemap_open(struct gr_error *err);

/*
 * Protect a page, write it, find it: whether asynchronous write protection works with this
 * kind of memory, for us, here. fd: a file of at least one page, or -1 for anonymous memory.
 */
int gr_uffd_wp_try(int uffd, int pagemap, int fd, struct gr_error *err);

#endif
