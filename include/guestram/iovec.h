/* SPDX-License-Identifier: MIT */
/**
 * guestram/iovec.h - struct iovec and ssize_t: the system's, or their like on Windows.
 */
#ifndef GUESTRAM_IOVEC_H
#define GUESTRAM_IOVEC_H

#include <stddef.h>
#include <sys/types.h>

#ifdef _WIN32
/** A piece of memory, as POSIX has it. */
struct iovec {
	void *iov_base; /**< where */
	size_t iov_len; /**< bytes */
};
#else
#	include <sys/uio.h>
#endif

#endif
