/* SPDX-License-Identifier: MIT */
/*
 * Further channels at the sending end (QEMU's multifd). The main thread fills jobs, of one packet
 * each; whichever channel is free takes the next one. The pages go out from where they are, or
 * packed from a copy.
 *
 *     job = gr_multifd_send_job(m, err);       waits for a free one
 *     fill job->header and job->pages
 *     gr_multifd_send_give(m, job);
 *     ...
 *     gr_multifd_send_sync(m, err);            everything is out, every channel has said SYNC
 *
 * Order: sync() has every job of before on its channel before any channel says SYNC, and returns
 * when all have. So what is sent after it, on whatever channel, is behind a SYNC, and the receiving
 * end places it later (migrate/multifd_receive.h).
 *
 * O2: a job's pages are read after it was given, so after they were harvested; when its done() is
 * called nobody looks at them any more.
 */
#ifndef GR_MIGRATE_MULTIFD_SEND_H
#define GR_MIGRATE_MULTIFD_SEND_H

#include "stream/channel.h"
#include "stream/multifd.h"

struct gr_multifd_send;

/* One packet on its way. */
struct gr_multifd_job {
	struct gr_multifd_header header;	 /* pages, zero pages, block, offsets */
	const void *pages[GR_MULTIFD_PAGES_MAX]; /* where those with bytes are */
	/* Shows those that are in it: they go out by reference, and are read when the peer reads them
	 * (see gr_source_file_of() for when that will do). */
	struct gr_channel_file file;
	uint8_t *own; /* room for GR_MULTIFD_DATA_BYTES: pages that were copied may be there */
	void (*done)(
		struct gr_multifd_job *job); /* sent or given up; any thread; NULL: nothing to do */
	void *opaque;
	uint64_t cookie;
	struct gr_multifd_job *next; /* private */
};

/**
 * @param params Copied; channels are borrowed.
 * @param page_bytes Of the target.
 * @param ret_m  Set on success only.
 * @param err    May be NULL.
 * @return 0, -EINVAL, -ENOTSUP (compression) or -ENOMEM.
 */
GR_MUST_CHECK int gr_multifd_send_create(const struct gr_multifd *params, uint32_t page_bytes,
					 struct gr_multifd_send **ret_m, struct gr_error *err);

/** Start the threads; each greets the peer. @param m The channels. @param err May be NULL. @return
 * 0 or an errno. */
GR_MUST_CHECK int gr_multifd_send_start(struct gr_multifd_send *m, struct gr_error *err);

/**
 * Wait for a job that is free.
 * @param m       The channels.
 * @param ret_job Empty but for own; to be given.
 * @param err     May be NULL; names the channel that has failed.
 * @return 0 or what failed on a channel.
 */
GR_MUST_CHECK int gr_multifd_send_job(struct gr_multifd_send *m, struct gr_multifd_job **ret_job,
				      struct gr_error *err);

/** Have it sent. @param m The channels. @param job Filled. */
void gr_multifd_send_give(struct gr_multifd_send *m, struct gr_multifd_job *job);

/** @param m The channels. @param err May be NULL. @return 0: all is out, with a SYNC behind it; or
 * what failed. */
GR_MUST_CHECK int gr_multifd_send_sync(struct gr_multifd_send *m, struct gr_error *err);

/** @param m The channels. @return Bytes written to them so far. */
uint64_t gr_multifd_send_bytes(const struct gr_multifd_send *m);

/** Break all channels and wake who waits. @param m The channels. @context Any thread. */
void gr_multifd_send_abort(struct gr_multifd_send *m);

/** End the threads. What was not sent is given up. @param m The channels. */
void gr_multifd_send_stop(struct gr_multifd_send *m);

/** Stops. @param m May be NULL. */
void gr_multifd_send_free(struct gr_multifd_send *m);

#endif
