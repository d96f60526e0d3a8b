/* SPDX-License-Identifier: MIT */
/*
 * Copies of pages that were about to be written, until the disk takes them: a ring of pages of
 * fixed size, and a list of pieces that found no room and are kept where they are.
 *
 * Threads that save before a write put pages in; one thread, the writer, takes them out. What is
 * between head and tail is the writer's to read, and nobody else's.
 */
#ifndef GR_IMAGE_SNAPSHOT_BUFFER_H
#define GR_IMAGE_SNAPSHOT_BUFFER_H

#include "base/mutex.h"
#include "base/signals.h"
#include "migrate/holes.h"
#include <guestram/copy_before_write.h>

struct gr_snapshot_copy {
	const struct gr_ram_block *block;
	uint64_t offset;
};

struct gr_snapshot_buffer {
	uint64_t page_bytes;	     /* (c) */
	uint64_t slots;		     /* (c) copy n is in slot n % slots */
	uint8_t *pages;		     /* (c) slots of them */
	struct gr_snapshot_copy *of; /* (c) what is in each slot */

	struct gr_mutex lock;
	struct gr_holes holes;			  /* (lock) */
	uint64_t head, tail;			  /* (lock) copies taken out, put in */
	uint64_t most;				  /* (lock) at once so far */
	uint64_t zero_pages;			  /* (lock) that needed no copy */
	struct gr_cbw_piece *kept;		  /* (lock) a ring */
	uint64_t kept_room, kept_head, kept_tail; /* (lock) */
};

/**
 * @param b          Zeroed.
 * @param page_bytes Of the guest.
 * @param bytes      Room for copies: whole pages of it are used.
 * @param err        May be NULL.
 * @return 0 or -ENOMEM.
 */
GR_MUST_CHECK int gr_snapshot_buffer_init(struct gr_snapshot_buffer *b, uint64_t page_bytes,
					  uint64_t bytes, struct gr_error *err);
/** @param b Initialised, or zeroed. */
void gr_snapshot_buffer_destroy(struct gr_snapshot_buffer *b);

/* The lock: taken while a store waits, so no signal handler that stores may run while it is held.
 */
void gr_snapshot_buffer_lock(struct gr_snapshot_buffer *b, struct gr_signals *saved)
	GR_ACQUIRE(b->lock);
void gr_snapshot_buffer_unlock(struct gr_snapshot_buffer *b, const struct gr_signals *saved)
	GR_RELEASE(b->lock);

/** @return Whether somebody waits for room. */
static inline bool gr_snapshot_buffer_keeps_locked(const struct gr_snapshot_buffer *b)
	GR_REQUIRES(b->lock)
{
	return b->kept_head < b->kept_tail;
}

/**
 * Copy a piece; zeroes take no room.
 * @param b     The buffer.
 * @param piece What to copy. All of it, or nothing if there is not enough room.
 * @return 0, or -ENOBUFS no room, or what reading it said.
 */
GR_MUST_CHECK int gr_snapshot_buffer_put_locked(struct gr_snapshot_buffer *b,
						const struct gr_cbw_piece *piece)
	GR_REQUIRES(b->lock);

/** Note a piece that stays where it is. @return 0 or -ENOMEM. */
GR_MUST_CHECK int gr_snapshot_buffer_keep_locked(struct gr_snapshot_buffer *b,
						 const struct gr_cbw_piece *piece)
	GR_REQUIRES(b->lock);

/**
 * The oldest piece that was kept, copied now: it is to be released.
 * @param b     The buffer.
 * @param piece Filled.
 * @return 1, 0 there is none or no room, or what reading it said.
 */
GR_MUST_CHECK int gr_snapshot_buffer_admit(struct gr_snapshot_buffer *b,
					   struct gr_cbw_piece *piece);

/**
 * How many copies there are, the oldest first at *ret_head.
 * @return Copies, readable until gr_snapshot_buffer_drop().
 */
uint64_t gr_snapshot_buffer_count(struct gr_snapshot_buffer *b, uint64_t *ret_head);

static inline const struct gr_snapshot_copy *
gr_snapshot_buffer_copy(const struct gr_snapshot_buffer *b, uint64_t n)
{
	return &b->of[n % b->slots];
}

static inline const uint8_t *gr_snapshot_buffer_page(const struct gr_snapshot_buffer *b, uint64_t n)
{
	return b->pages + n % b->slots * b->page_bytes;
}

/** The oldest copies are not needed any more: there is room. */
void gr_snapshot_buffer_drop(struct gr_snapshot_buffer *b, uint64_t count);

#endif
