/* SPDX-License-Identifier: MIT */
/*
 * Which pages nobody has ever touched, found without touching them. A hole reads as zero.
 *
 *   memfd                 SEEK_DATA / SEEK_HOLE: sees what any process put there, and swap.
 *                         The page map of one mapping would call pages absent that came in
 *                         through another one.
 *   private anonymous     the page map: nobody else can have filled a page.
 *   caller's, with an fd  a hole only if both say so: the mapping might be private.
 *   caller's, without     the page map if it is GR_RAM_PRIVATE; else never a hole: we cannot know.
 *
 * What was unplugged is not asked about here: whatever it looks like, it is not to be read
 * (ram/untouched.h).
 *
 * Asking is a read in the sense of O2: a sender asks after the harvest and the re-arm.
 */
#ifndef GR_MIGRATE_HOLES_H
#define GR_MIGRATE_HOLES_H

#include "base/compiler.h"
#include <guestram/ram.h>

enum { GR_HOLES_MAP_PAGES = 4096 };

/* Zero-initialise, then init. One thread. */
struct gr_holes {
	int pagemap_fd;	     /* -1: not to be had */
	uint64_t page_bytes; /* the guest's page size: a hole is whole pages of it */
	uint64_t host_page_bytes;
	uint64_t *map;		/* GR_HOLES_MAP_PAGES entries of the page map */
	unsigned char *in_core; /* as many answers of mincore() */
	bool walks_once;	/* set by who asks for each place of a block once, and keeps the holes */
	bool filled;		/* if so, the verdict ... */
	uint64_t walked;	/* ... on the block of this incarnation; 0: none yet */
};

/**
 * @param h          The caller's memory, of any content.
 * @param page_bytes The guest's page size.
 * @param err        May be NULL.
 * @return 0 or -ENOMEM.
 */
GR_MUST_CHECK int gr_holes_init(struct gr_holes *h, uint64_t page_bytes, struct gr_error *err);

/** @param h Initialised, or zeroed. */
void gr_holes_destroy(struct gr_holes *h);

/**
 * Look at a range of a block.
 * @param h       The finder.
 * @param block   Kept alive by the caller.
 * @param offset  From which byte of the block on; a multiple of the page size.
 * @param end     To which; a multiple of the page size, above offset.
 * @param ret_end Where the piece that begins at offset ends, at most end. The next piece
 *                may be of the same kind.
 * @return Whether [offset, *ret_end) is a hole. False also means "cannot say".
 */
bool gr_holes_next(struct gr_holes *h, const struct gr_ram_block *block, uint64_t offset,
		   uint64_t end, uint64_t *ret_end);

/**
 * Files of huge pages do not show their holes, and a load there takes a huge page, or ends the process
 * if none is left. read(2) does neither.
 * @param h     The finder.
 * @param block A block.
 * @return Whether gr_holes_read() is how to read it.
 */
static inline bool gr_holes_must_read(const struct gr_holes *h, const struct gr_ram_block *block)
{
	return block->page_bytes > h->host_page_bytes && block->fd >= 0 &&
	       !(gr_ram_block_flags(block) & GR_RAM_PRIVATE);
}

/**
 * Read a page of such a block.
 * @param h      The finder.
 * @param block  A block.
 * @param offset From which byte on.
 * @param page   Filled: h->page_bytes.
 * @return 0 or a negative errno.
 */
GR_MUST_CHECK int gr_holes_read(const struct gr_holes *h, const struct gr_ram_block *block,
				uint64_t offset, uint8_t *page);

#endif
