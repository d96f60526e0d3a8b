/* SPDX-License-Identifier: MIT */
/*
 * Where received pages go. The receive loop (migrate/receive.h) parses and answers the
 * source; a sink has the memory: a machine's RAM (migrate/ram_sink.c) or an image file.
 *
 * All calls come from the thread that drives the receive loop, outside any read-side
 * section, in this order:
 *
 *     config  blocks  { pages | zero | page_read | blocks }*  finish
 *
 * With further channels (migrate/multifd_receive.h) their threads call page_memory, stored, pages and
 * zero as well, each for pages that no other one is busy with; none while blocks or finish
 * runs. But a QEMU 7.2 may send a page twice, on two channels at once: with the same bytes, or
 * the page has been written meanwhile and comes again. Which of the two stays does not matter. A sink that is not parallel is called by one thread at a time all the same.
 *
 * A call that fails ends the migration with its error, before which the loop puts the byte
 * of the stream, the block and the page. Everything a call is given dies with its return.
 */
#ifndef GR_MIGRATE_SINK_H
#define GR_MIGRATE_SINK_H

#include "stream/reader.h"
#include "stream/tail.h"
#include <guestram/error.h>

struct gr_sink_ops {
	bool parallel; /* calls for different pages may overlap */

	/**
	 * The stream has begun. May be NULL.
	 * @param sink   The sink's opaque.
	 * @param config Machine name, page size, and the bytes as they came.
	 * @param err    May be NULL.
	 * @return 0, or a negative errno to refuse.
	 */
	int (*config)(void *sink, const struct gr_stream_record *config, struct gr_error *err);

	/**
	 * The block list is there, or has changed. Look at every entry of the reader's table:
	 * an entry that is alive and has no user is new (give it one), an entry that is dead
	 * and has a user is gone (let go of it, set user to NULL; do this first, the new
	 * blocks may want the same ids and addresses). An entry that goes on with its user may say
	 * another length: refuse it, or all that comes for it is checked against that.
	 *
	 * With a peer of ours the first call comes when the announcement is in, so that
	 * incarnation, GPA, page size and flags are known.
	 *
	 * @param sink   The sink's opaque.
	 * @param reader Has the table.
	 * @param err    May be NULL.
	 * @return 0, or a negative errno to refuse.
	 */
	int (*blocks)(void *sink, struct gr_stream_reader *reader, struct gr_error *err);

	/**
	 * Pages with their bytes.
	 * @param sink    The sink's opaque.
	 * @param block   The table's entry; its user is what blocks() put there.
	 * @param count   Pages, 1..GR_STREAM_RUN_PAGES_MAX.
	 * @param offsets Bytes in the block of each page; in any order, may repeat.
	 * @param data    The pages, one after the other.
	 * @param ret_bad On failure: index of the page that failed. Set to 0 before the call.
	 * @param err     May be NULL.
	 * @return 0 or a negative errno.
	 */
	int (*pages)(void *sink, struct gr_stream_block *block, uint32_t count,
		     const uint64_t *offsets, const uint8_t *data, uint32_t *ret_bad,
		     struct gr_error *err);

	/**
	 * A range that is zero.
	 * @param sink   The sink's opaque.
	 * @param block  The table's entry.
	 * @param offset Bytes in the block.
	 * @param bytes  A multiple of the page size.
	 * @param err    May be NULL.
	 * @return 0 or a negative errno.
	 */
	int (*zero)(void *sink, struct gr_stream_block *block, uint64_t offset, uint64_t bytes,
		    struct gr_error *err);

	/**
	 * Where the bytes of a page may be received at once, if nothing speaks against it. May be
	 * NULL, and is not asked of a sink that is not parallel: then all go through pages().
	 * @param sink   The sink's opaque.
	 * @param block  The table's entry.
	 * @param offset Bytes in the block; inside.
	 * @return One page, to be followed by stored() when the bytes are in, or by torn(); NULL: use
	 *         pages().
	 */
	uint8_t *(*page_memory)(void *sink, struct gr_stream_block *block, uint64_t offset);

	/**
	 * Bytes are in, where page_memory() said. NULL if that is.
	 * @param sink   The sink's opaque.
	 * @param block  The table's entry.
	 * @param offset Bytes in the block.
	 * @param bytes  A multiple of the page size.
	 */
	void (*stored)(void *sink, struct gr_stream_block *block, uint64_t offset, uint64_t bytes);

	/**
	 * The stream broke off while bytes came where page_memory() said: some may be in. NULL if that is.
	 * @param sink   The sink's opaque.
	 * @param block  The table's entry.
	 * @param offset Bytes in the block.
	 * @param bytes  A multiple of the page size.
	 */
	void (*torn)(void *sink, struct gr_stream_block *block, uint64_t offset, uint64_t bytes);

	/**
	 * Whether system calls that write to the block's memory fail now with EFAULT while stores go through
	 * (gr_stream_read_guest()). NULL: never.
	 * @param sink  The sink's opaque.
	 * @param block The table's entry.
	 * @return Whether it is so.
	 */
	bool (*stores_only)(void *sink, struct gr_stream_block *block);

	/**
	 * What the sink has for a page now, for a difference to be applied to. NULL: streams
	 * with differences are refused.
	 * @param sink   The sink's opaque.
	 * @param block  The table's entry.
	 * @param offset Bytes in the block.
	 * @param page   Filled, one page.
	 * @param err    May be NULL.
	 * @return 0 or a negative errno.
	 */
	int (*page_read)(void *sink, struct gr_stream_block *block, uint64_t offset, uint8_t *page,
			 struct gr_error *err);

	/**
	 * Everything has come: make it safe, load the devices. Only if this returns 0 does
	 * the source hear of success.
	 * @param sink The sink's opaque.
	 * @param tail The device tail; complete, or allowed not to be.
	 * @param err  May be NULL.
	 * @return 0 or a negative errno.
	 */
	int (*finish)(void *sink, struct gr_tail *tail, struct gr_error *err);
};

struct gr_sink {
	const struct gr_sink_ops *ops;
	void *opaque;
};

#endif
