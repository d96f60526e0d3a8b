/* SPDX-License-Identifier: MIT */
/* Whole reads and writes at a place in a file. Negative errno, no message: callers know
 * what the bytes were. */
#ifndef GR_IMAGE_FILE_H
#define GR_IMAGE_FILE_H

#include <guestram/types.h>

/** @return 0, -EPIPE the file ends before n bytes, or what pread(2) says. */
GR_MUST_CHECK int gr_file_pread(int fd, void *buf, size_t n, uint64_t at);

/** @return 0 or what pwrite(2) says. */
GR_MUST_CHECK int gr_file_pwrite(int fd, const void *buf, size_t n, uint64_t at);

/** Make a range read as zero, without space where the file system can. @return 0 or -errno. */
GR_MUST_CHECK int gr_file_zero(int fd, uint64_t at, uint64_t n);

#endif
