/* SPDX-License-Identifier: MIT */
/**
 * guestram/copy_before_write.h - memory as it is now, saved while its writers go on.
 *
 * A copy before write protects all blocks at one moment. From then on the owner saves the content
 * of that moment, in its own time: it walks, and whoever wants to store to a page that is not saved
 * yet waits until the owner has been shown the old content. A live snapshot is built on it; guest
 * pauses are as long as gr_cbw_start() takes, and the stalls of single stores as long as a copy.
 *
 *     static enum gr_cbw_verdict before_write(void *opaque, const struct gr_cbw_piece *piece)
 *     {
 *             copy piece->bytes from piece->host into the buffer;
 *             return GR_CBW_SAVED;                         // or KEEP: the buffer is full
 *     }
 *
 *     ... stop whoever writes; devices are drained ...
 *     gr_cbw_start(ram, &params, &cbw, &err);              // this moment
 *     ... let them go on ...
 *     while ((ret = gr_cbw_next(cbw, 1 << 20, &piece, &err)) > 0) {
 *             save piece.bytes from piece.host;
 *             gr_cbw_release(cbw, &piece);
 *     }
 *     ret = gr_cbw_end(cbw, &err);                         // 0: each page was saved, once
 *
 * Each page is shown once: by gr_cbw_next() or to before_write(). From then until it is released it
 * is the owner's, and its content is that of the start. Released is what before_write() answers
 * with SAVED, and what gr_cbw_release() gets.
 *
 * The blocks are those that are there at the start and take part in migrations, at their lengths of
 * that moment. What is plugged or grows later is not part of it. A block that is unplugged
 * is: its memory stays until the end. Memory that is given back (gr_ram_discard(), gr_ram_depopulate())
 * is shown to before_write() first; if the owner has a page and keeps it, giving it back is -EBUSY. So is
 * memory that the host reported broken and gr_ram_remap() replaces, but without its content, which
 * nobody can read any more (gr_cbw_piece.host is NULL): a snapshot has to say so or be given up.
 *
 * Threads: next, release and stats from any threads at once. before_write() is called by a thread of
 * the library's, or by gr_cbw_serve(), and by threads that give memory back; perhaps by several at once.
 *
 * Caveats: before_write() runs while somebody waits, perhaps in the middle of gr_ram_write(), that is, in a
 * read-side section. So neither it nor what KEEP waits for may wait for a grace period, store to the
 * machine's memory, change its blocks, or take a lock that is held over a store to it. A file that a
 * waiting read() holds a lock of must not be what the owner needs to get on: save to files of your own.
 * Not seen, as by any tracker (guestram/track.h): other mappings, other processes, write() on the
 * fd, and DMA into pages that were pinned before the start: drain and put back iovecs before it. What
 * the library knows of is refused until the end: blocks that map the same bytes of a file, memory tables.
 * Signal handlers may store to the machine's memory, except in threads that call gr_cbw_serve() and
 * where the owner's before_write() needs a lock that the interrupted code holds.
 * Memory can be in the hands of one userfaultfd: not together with GR_TRACKER_UFFD_WP or _SYNC on the
 * same machine. Merging of equal pages (GR_RAM_MERGE) is off until the end.
 */
#ifndef GUESTRAM_COPY_BEFORE_WRITE_H
#define GUESTRAM_COPY_BEFORE_WRITE_H

#include <guestram/error.h>
#include <guestram/ram.h>
#include <guestram/types.h>

GR_BEGIN_DECLS

struct gr_cbw;

/** Pages of one block. */
struct gr_cbw_piece {
	struct gr_ram_block *block; /**< stays until gr_cbw_end() */
	uint64_t offset;	    /**< in the block, bytes */
	uint64_t bytes;		    /**< how many */
	const uint8_t *host;	    /**< the content; as at the start until it is released. NULL: the
				     *   host's memory failed and is being replaced; it is lost */
};

/** What before_write() answers. */
enum gr_cbw_verdict {
	GR_CBW_SAVED,	/**< saved: the write may go on */
	GR_CBW_KEEP,	/**< not yet: it waits until gr_cbw_release() of this piece */
	GR_CBW_ABANDON, /**< give up: all writes go on, next and end say -ECANCELED */
};

/** What gr_cbw_start() shall do. Zero what you do not set. */
struct gr_cbw_params {
	size_t size;	      /**< sizeof(struct gr_cbw_params) */
	unsigned int writers; /**< who writes this machine's memory (enum gr_writers) */
	/** A page that is not saved is about to be written or given back: one page of the block's
	 *  memory. Perhaps before gr_cbw_start() returns. */
	enum gr_cbw_verdict (*before_write)(void *opaque, const struct gr_cbw_piece *piece);
	void *opaque;	      /**< for before_write() */
	/** No thread: the owner waits for gr_cbw_fd() and calls gr_cbw_serve(). */
	bool no_thread;
};

/**
 * How long stores waited, from when the fault was read until their page was open. The writer itself
 * sees two switches of threads more.
 */
struct gr_cbw_stalls {
	uint64_t count;
	uint64_t ns_total;
	uint64_t ns_max;
	uint64_t ns_p99; /**< 99 of 100 were not longer; at most an eighth too much */
};

/** Counters. */
struct gr_cbw_stats {
	uint64_t bytes;		 /**< what there is to save */
	uint64_t walked_bytes;	 /**< taken by gr_cbw_next() */
	uint64_t written_bytes;	 /**< shown to before_write() */
	uint64_t lost_bytes;	 /**< of these, what it was told of without content */
	uint64_t released_bytes; /**< saved, and open again */
	uint64_t kept;		 /**< pieces answered with KEEP */
	struct gr_cbw_stalls stalls;	  /**< for pages saved at once, or in the hands of the walk */
	struct gr_cbw_stalls kept_stalls; /**< for pages that were kept */
};

/**
 * Protect all memory: what it holds now is what will be shown.
 *
 * @param ram     The machine's RAM.
 * @param params  Copied.
 * @param ret_cbw Set on success only.
 * @param err     May be NULL.
 * @return 0 or a negative errno; on failure nothing is protected.
 * @errors  -EINVAL a writer that this cannot stop, with the reason: outside ones never, and without
 *          privilege only GR_WRITERS_STORES can be; a block in a file on a disk; two blocks that map the
 *          same bytes of a file; a memory table that is out (gr_ram_table_get()). -ENOTSUP this machine
 *          does not offer it, with the reason. -EBUSY another userfaultfd has the memory, or a removed
 *          block that is still referenced maps the same bytes as one that is there. -ENOMEM.
 * @context Outside a read-side section. For a state of one moment nobody writes, gives memory back or
 *          plugs blocks while it runs. Per GiB some 25 ms where pages of 4 KiB are there, and 3 ms
 *          where none are (measured on one processor of a 2020s server, for memfd and anonymous
 *          memory alike). To end an unfinished one takes twice that.
 */
GR_EXPORT GR_MUST_CHECK int gr_cbw_start(struct gr_ram *ram, const struct gr_cbw_params *params,
					 struct gr_cbw **ret_cbw, struct gr_error *err)
	GR_EXCLUDES(gr_rcu_section);

/**
 * Take the next pages that nobody has been shown.
 * @param cbw       The copy.
 * @param bytes_max How many bytes at most; a page of the block's memory at least.
 * @param piece     Filled; read it, then gr_cbw_release() it.
 * @param err       May be NULL.
 * @return 1, or 0 when nothing is left, or a negative errno.
 * @errors  -ECANCELED it was abandoned.
 * @context Any thread.
 */
GR_EXPORT GR_MUST_CHECK int gr_cbw_next(struct gr_cbw *cbw, uint64_t bytes_max,
					struct gr_cbw_piece *piece, struct gr_error *err);

/**
 * A piece is saved: who waits to write it goes on. Pieces of several pages may be released in parts.
 * @param cbw   The copy.
 * @param piece From gr_cbw_next(), or one that before_write() kept, or whole pages of one. Dies if it is
 *              not the owner's.
 * @context Any thread. Not from within before_write().
 */
GR_EXPORT void gr_cbw_release(struct gr_cbw *cbw, const struct gr_cbw_piece *piece);

/**
 * Give up, as if before_write() had said so: all writes go on at once; next and end will say -ECANCELED.
 * @param cbw The copy.
 * @context Any thread, any number of times. What is done from within before_write() is to answer ABANDON.
 */
GR_EXPORT void gr_cbw_abandon(struct gr_cbw *cbw);

/** @param cbw A copy with no_thread. @return What becomes readable when somebody waits.
 *  @context Any thread. */
GR_EXPORT int gr_cbw_fd(const struct gr_cbw *cbw);
/**
 * Call before_write() for some of those who wait.
 * @param cbw A copy with no_thread.
 * @return How many faults were served; 0: nobody waits.
 * @context One thread at a time. Does not sleep by itself.
 */
GR_EXPORT unsigned int gr_cbw_serve(struct gr_cbw *cbw);

/** @param cbw The copy. @param stats Filled. @context Any thread. */
GR_EXPORT void gr_cbw_stats(struct gr_cbw *cbw, struct gr_cbw_stats *stats);

/**
 * End it, finished or not, and free it. Everybody who waits goes on. before_write() is not called any
 * more when it returns.
 * @param cbw The copy; may be NULL.
 * @param err May be NULL.
 * @return 0: each page was shown and released while its content was that of the start, but for those
 *         that the owner was told are lost. Else a negative errno.
 * @errors  -ECANCELED it was abandoned, or not all was released.
 * @context Outside a read-side section, not from within before_write(); no other thread uses it.
 *          Before gr_ram_free().
 */
GR_EXPORT int gr_cbw_end(struct gr_cbw *cbw, struct gr_error *err) GR_EXCLUDES(gr_rcu_section);

GR_END_DECLS
#endif
