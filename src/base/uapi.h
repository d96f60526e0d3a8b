/* SPDX-License-Identifier: MIT */
/*
 * Kernel constants that are newer than the oldest headers we build with, or whose header
 * is not everywhere. Features are probed at run time, never by version.
 */
#ifndef GR_BASE_UAPI_H
#define GR_BASE_UAPI_H

#include <sys/syscall.h>

/* membarrier(2): linux/membarrier.h, since Linux 4.14. */
#define GR_MEMBARRIER_CMD_QUERY				0
#define GR_MEMBARRIER_CMD_PRIVATE_EXPEDITED		(1 << 3)
#define GR_MEMBARRIER_CMD_REGISTER_PRIVATE_EXPEDITED	(1 << 4)

#endif
