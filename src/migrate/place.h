/* SPDX-License-Identifier: MIT */
/*
 * Puts bytes into pages that are not there yet, in the cheapest way the machine has:
 * UFFDIO_COPY allocates and fills a page at once, without clearing it first and without a
 * fault per page.
 *
 * The ranges are registered with userfaultfd for write protection of nothing at all: that
 * is enough for UFFDIO_COPY, and a thread that touches a page which has not come yet gets a
 * fresh one as ever (with registration for missing pages it would sleep for ever). Where
 * the kernel has no write protection for a kind of memory, pwrite() to the memfd or plain
 * stores do it.
 *
 * Plain stores are also the way into private memory that wants transparent huge pages: the first
 * one brings a huge page, where UFFDIO_COPY would fill it with small ones for good.
 */
#ifndef GR_MIGRATE_PLACE_H
#define GR_MIGRATE_PLACE_H

#include "base/compiler.h"
#include <guestram/ram.h>

struct gr_placer {
	int uffd; /* -1: not to be had */
	uint64_t host_page_bytes;
	bool huge; /* who asks for transparent huge pages gets them */
};

/* How one block's absent pages are filled. */
enum gr_place_how {
	GR_PLACE_STORE,	 /* memcpy() */
	GR_PLACE_PWRITE, /* to the memfd */
	GR_PLACE_UFFD,
};

/** @param p The caller's memory. Never fails: there is always a way. */
void gr_placer_init(struct gr_placer *p);

/** @param p Initialised. */
void gr_placer_destroy(struct gr_placer *p);

/**
 * Find the best way for a block and prepare it.
 * @param p          The placer.
 * @param block      Kept alive by the caller.
 * @param page_bytes The guest's page size.
 * @return What to hand to the others.
 */
enum gr_place_how gr_placer_begin(struct gr_placer *p, const struct gr_ram_block *block,
				  uint64_t page_bytes);

/**
 * Undo gr_placer_begin(); before the machine runs.
 * @param p     The placer.
 * @param block The block.
 * @param how   What begin returned.
 */
void gr_placer_end(struct gr_placer *p, const struct gr_ram_block *block, enum gr_place_how how);

/**
 * Fill pages that are believed absent; those that are there after all are overwritten.
 * @param p          The placer.
 * @param block      The block.
 * @param how        What begin returned.
 * @param offset     First byte in the block.
 * @param data       The bytes.
 * @param bytes      How many: whole pages.
 * @param page_bytes The guest's page size.
 */
void gr_placer_fill(struct gr_placer *p, const struct gr_ram_block *block, enum gr_place_how how,
		    uint64_t offset, const uint8_t *data, uint64_t bytes, uint64_t page_bytes);

#endif
