/* SPDX-License-Identifier: MIT */
/* Memory by the page, from the system. */
#ifndef GR_BASE_MEMORY_H
#define GR_BASE_MEMORY_H

#include "base/compiler.h"

/* Bytes of a page of this host: 4 KiB to 64 KiB. */
size_t gr_page_bytes(void);

/* Zeroes that cost address space only, until they are touched. NULL: none left. */
void *gr_pages_alloc(size_t bytes);
void gr_pages_free(void *pages, size_t bytes);

/*
 * bytes (whole pages) of private zeroes or, if fd is not -1, of that file, shared; the start is
 * aligned, and behind the end are `guard` bytes that nobody can touch. NULL with errno.
 */
void *gr_memory_map(size_t bytes, size_t guard, size_t align, int fd);
/* bytes: guard included. */
void gr_memory_unmap(void *memory, size_t bytes);

/*
 * A new file of `bytes` zeroes in memory, closed on exec, whose length nobody can change: no
 * process that has it can make us fault. The fd or a negative errno; -ENOTSUP where the system
 * has none.
 */
int gr_memory_file(const char *name, uint64_t bytes);
/* Bytes of a page of the memory or file that fd is; a negative errno if it is neither. */
int64_t gr_memory_file_page_bytes(int fd);
void gr_memory_file_close(int fd);

/* For gr_aligned_free() only. bytes is a multiple of align. NULL: no memory. */
void *gr_aligned_alloc(size_t align, size_t bytes);
void gr_aligned_free(void *memory);

#endif
