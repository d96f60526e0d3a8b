/* SPDX-License-Identifier: MIT */
/*
 * What the destination was sent last of the pages that change most: what XBZRLE's differences
 * are made against. Set-associative; a page gives way only if no round has used it since the one
 * before last, so that a working set larger than the cache does not empty it. A page is known by
 * its block's incarnation and its place there: a block that goes and comes again is another one.
 *
 * Plain memory, taken as it is used; one thread.
 */
#ifndef GR_MIGRATE_PAGE_CACHE_H
#define GR_MIGRATE_PAGE_CACHE_H

#include <guestram/error.h>
#include <guestram/types.h>

enum { GR_PAGE_CACHE_WAYS = 4 };

struct gr_page_cache {
	struct gr_page_cache_tag *tags;
	uint8_t *pages;
	uint64_t sets;
	uint64_t page_bytes;
};

/**
 * @param c          The caller's memory.
 * @param bytes      Of the pages; rounded down to whole sets, one at least.
 * @param page_bytes Of a page.
 * @param err        May be NULL.
 * @return 0 or -ENOMEM.
 */
GR_MUST_CHECK int gr_page_cache_init(struct gr_page_cache *c, uint64_t bytes, uint64_t page_bytes,
				     struct gr_error *err);

/** @param c Initialised or zero. */
void gr_page_cache_destroy(struct gr_page_cache *c);

/** @param c Initialised or zero. @return Bytes of the pages that it has room for. */
uint64_t gr_page_cache_bytes(const struct gr_page_cache *c);

/**
 * @param c           The cache.
 * @param incarnation The block's.
 * @param offset      In the block, in bytes.
 * @param round       Of now: the page stays for this round and the next.
 * @return What was sent of it, to be overwritten with what is sent now; or NULL.
 */
uint8_t *gr_page_cache_find(struct gr_page_cache *c, uint64_t incarnation, uint64_t offset,
			    uint64_t round);

/**
 * Take a page in that gr_page_cache_find() has not found.
 * @param c           The cache.
 * @param incarnation The block's.
 * @param offset      In the block, in bytes.
 * @param round       Of now.
 * @return Where to put what is sent of it, or NULL: all that could give way is in use.
 */
uint8_t *gr_page_cache_add(struct gr_page_cache *c, uint64_t incarnation, uint64_t offset,
			   uint64_t round);

/** @param c Initialised or zero; empty again. */
void gr_page_cache_clear(struct gr_page_cache *c);

/**
 * The destination was told that a range is zero: so are its pages that are here.
 * @param c           The cache.
 * @param incarnation The block's.
 * @param offset      In the block, in bytes.
 * @param bytes       A multiple of the page size.
 */
void gr_page_cache_zero(struct gr_page_cache *c, uint64_t incarnation, uint64_t offset,
			uint64_t bytes);

#endif
