/* SPDX-License-Identifier: MIT */
/*
 * Reading a block's memory without bringing back what was thrown away. A look at a page that has no
 * memory can give it some (files in memory, huge pages), and where no huge page is left it ends the
 * process. So who reads memory that nobody asked for, as a migration does, keeps discards away for
 * the moment, asks what is there, and reads that.
 */
#ifndef GR_RAM_UNTOUCHED_H
#define GR_RAM_UNTOUCHED_H

#include "ram/ram.h"

/* No memory of the machine is thrown away in between: for a short look, not for a write to a channel. */
static inline void gr_ram_look_begin(struct gr_ram_block *block) GR_ACQUIRE(block->ram->discard_lock)
{
	gr_mutex_lock(&block->ram->discard_lock);
}

static inline void gr_ram_look_end(struct gr_ram_block *block) GR_RELEASE(block->ram->discard_lock)
{
	gr_mutex_unlock(&block->ram->discard_lock);
}

/* How often a piece of the block was thrown away so far: what is known of its holes is as old. */
static inline uint64_t gr_ram_discards_locked(const struct gr_ram_block *block)
	GR_REQUIRES(block->ram->discard_lock)
{
	return gr_block(block)->discards;
}

/* populate.c: is the byte at offset plugged? The same is true up to *ret_end, at most end. */
bool gr_ram_plugged_locked(const struct gr_ram_block *block, uint64_t offset, uint64_t end,
			   uint64_t *ret_end) GR_REQUIRES(block->ram->discard_lock);

/*
 * populate.c: for who has read these bytes without keeping discards away. What was unplugged meanwhile
 * may have got memory by that; it is given back.
 */
void gr_ram_forget_unplugged(struct gr_ram_block *block, uint64_t offset, uint64_t bytes);

#endif
