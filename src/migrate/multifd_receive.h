/* SPDX-License-Identifier: MIT */
/*
 * Further channels at the receiving end (QEMU's multifd): a thread for each reads its packets and
 * gives the pages to the sink. Bytes of pages that are there are read into them; those of fresh
 * ones go through a buffer of 512 KiB, which the sink's placing takes them from.
 *
 * Order. A page may come on one channel in one round and on another channel, or on the main one,
 * in the next. So at the end of each round every channel says SYNC, and so does the main one
 * in its way; whoever has come there waits for all the others:
 *
 *   channel thread   packets ... SYNC: park ........................ go on
 *   main thread      records ... sync(): all parked?  change the blocks  release()
 *
 * What came before the meeting is in its place before anything that comes after it, and the
 * list of blocks changes only while all are parked. Before the first release() no page is
 * taken. Partners: park() and sync() hold the lock around what they tell each other.
 *
 * Whatever fails on a channel is kept with the channel's name; the main thread's reading ends, so
 * that it finds out.
 */
#ifndef GR_MIGRATE_MULTIFD_RECEIVE_H
#define GR_MIGRATE_MULTIFD_RECEIVE_H

#include "migrate/progress.h"
#include "migrate/sink.h"
#include <guestram/multifd.h>

struct gr_multifd_receive;

/**
 * @param params   Copied; its channels are borrowed.
 * @param sink     Copied.
 * @param main     The main channel; its reading ends when a further one fails.
 * @param progress Counts go there.
 * @param ret_m    Set on success only.
 * @param err      May be NULL.
 * @return 0, -EINVAL, -ENOTSUP (compression) or -ENOMEM.
 */
GR_MUST_CHECK int gr_multifd_receive_create(const struct gr_multifd *params,
					    const struct gr_sink *sink, struct gr_channel *main,
					    struct gr_progress *progress,
					    struct gr_multifd_receive **ret_m,
					    struct gr_error *err);

/**
 * Start the threads.
 * @param m          The channels.
 * @param page_bytes Of the stream.
 * @param err        May be NULL.
 * @return 0 or a negative errno.
 */
GR_MUST_CHECK int gr_multifd_receive_start(struct gr_multifd_receive *m, uint32_t page_bytes,
					   struct gr_error *err);

/**
 * The main thread has come to a meeting: wait for all channels.
 * @param m   The channels.
 * @param err May be NULL.
 * @return 0: all are parked until gr_multifd_receive_release(); or a negative errno.
 * @errors what failed on a channel; -EPIPE one has ended without SYNC; -ECANCELED.
 */
GR_MUST_CHECK int gr_multifd_receive_sync(struct gr_multifd_receive *m, struct gr_error *err);

/**
 * Take over the list of blocks. Before the first release, or while all are parked.
 * @param m      The channels.
 * @param reader Has the table; the sink has set its users.
 * @param err    May be NULL.
 * @return 0 or -ENOMEM.
 */
GR_MUST_CHECK int gr_multifd_receive_blocks(struct gr_multifd_receive *m,
					    struct gr_stream_reader *reader, struct gr_error *err);

/** Let the parked ones go on. @param m The channels. */
void gr_multifd_receive_release(struct gr_multifd_receive *m);

/** Around the main thread's calls of the sink, as gr_packet_context_enter(). @param m The channels. */
void gr_multifd_receive_enter_sink(struct gr_multifd_receive *m);
/** @param m Its sink was entered. */
void gr_multifd_receive_leave_sink(struct gr_multifd_receive *m);

/**
 * @param m   The channels.
 * @param err Filled if something failed.
 * @return What failed first on a channel, or 0.
 */
int gr_multifd_receive_failed(struct gr_multifd_receive *m, struct gr_error *err);

/** @param m The channels. @return Bytes read from them so far. */
uint64_t gr_multifd_receive_bytes(const struct gr_multifd_receive *m);

/** Break all channels and wake who waits. @param m The channels. @context Any thread. */
void gr_multifd_receive_abort(struct gr_multifd_receive *m);

/** Abort and wait for the threads: nothing is placed any more. @param m The channels. */
void gr_multifd_receive_break(struct gr_multifd_receive *m);

/**
 * All pages have come: wake the threads and wait for them; nothing is placed any more. The channels
 * stay open for their peers until they are closed: a QEMU 7.2 writes an empty packet behind a SYNC that
 * rides on pages, and a write that fails there fails a move whose destination has everything.
 * @param m The channels.
 */
void gr_multifd_receive_end(struct gr_multifd_receive *m);

/** Breaks what has not ended. @param m May be NULL. */
void gr_multifd_receive_free(struct gr_multifd_receive *m);

/** For tests. @param m The channels. @return How many are parked. */
unsigned int gr_multifd_receive_parked(struct gr_multifd_receive *m);

#endif
