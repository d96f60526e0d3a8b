/* SPDX-License-Identifier: MIT */
/*
 * A file that is read and written around the page cache (O_DIRECT) where its file system and the
 * alignment of the request allow it, and through it otherwise. Of a request whose ends are not
 * aligned the middle goes around it.
 *
 * Any threads at once.
 */
#ifndef GR_IMAGE_DIRECT_H
#define GR_IMAGE_DIRECT_H

#include <guestram/types.h>

struct gr_direct {
	int fd;		/* (c) through the page cache; borrowed */
	int direct_fd;	/* (c) around it; -1: there is no way */
	uint32_t align; /* (c) of memory, length and place */
	int why;	/* (c) why there is none: a negative errno, or 0: nobody asked */
	int refused;	/* (a) what the file system said later, whereupon it is left alone */
};

/**
 * Find out what the file can do. Never fails: there is always the page cache.
 * @param d        The caller's memory.
 * @param fd       Open; stays the caller's.
 * @param want     Try it at all.
 * @param writable fd is.
 */
void gr_direct_open(struct gr_direct *d, int fd, bool want, bool writable);

/** @param d Opened. Leaves fd alone. */
void gr_direct_close(struct gr_direct *d);

/** @return 0, -EPIPE the file ends before n bytes, or what pread(2) says. */
GR_MUST_CHECK int gr_direct_pread(struct gr_direct *d, void *buf, size_t n, uint64_t at);

/** @return 0 or what pwrite(2) says. */
GR_MUST_CHECK int gr_direct_pwrite(struct gr_direct *d, const void *buf, size_t n, uint64_t at);

/** @return Whether requests go around the page cache. */
bool gr_direct_is_on(const struct gr_direct *d);

/**
 * Why not, in words; "" if they do, or if nobody wanted it.
 * @param d     Opened.
 * @param buf   Filled.
 * @param bytes Its size.
 */
void gr_direct_why(const struct gr_direct *d, char *buf, size_t bytes);

#endif
