/* SPDX-License-Identifier: MIT */
/*
 * The receive loop: a stream from a channel into a sink, with the answers that the source
 * waits for. Ends with SHUT on the return path if there is one: 0 after the sink's finish()
 * succeeded, 1 if anything failed.
 *
 *     gr_receive_create(channel, &sink, &params, &receive, err);
 *     while ((rc = gr_receive_step(receive, err)) > 0)
 *             ...
 *     gr_receive_free(receive);
 *
 * One thread creates, steps and frees; cancel and stats from any thread.
 */
#ifndef GR_MIGRATE_RECEIVE_H
#define GR_MIGRATE_RECEIVE_H

#include "migrate/sink.h"
#include <guestram/channel.h>
#include <guestram/migrate.h>

struct gr_receive;

/* Zero what you do not set. */
struct gr_receive_params {
	const char *machine;	 /* expected machine name, copied; NULL: any */
	const uint8_t *uuid;	 /* refuse another one, 16 bytes, copied; NULL: any */
	bool allow_unterminated; /* accept a tail without its description */
	bool ignore_shared;	 /* the source must have x-ignore-shared on */
	bool switchover_ack;	 /* tell the source that it may switch over... */
	bool (*switchover_ready)(void *opaque); /* ...when this says so; NULL: at once */
	void *opaque;				/* for that */
	bool plain;		 /* answer as a QEMU does: no extensions will come */
	size_t tail_bytes_max;	 /* refuse a longer device tail; 0: 1 GiB */
	const struct gr_multifd *multifd; /* further channels, copied; NULL: none */
};

/**
 * @param channel     Borrowed.
 * @param sink        Copied; its opaque must live until gr_receive_free().
 * @param params      May be NULL; copied.
 * @param ret_receive Set on success only.
 * @param err         May be NULL.
 * @return 0 or -ENOMEM.
 */
GR_MUST_CHECK int gr_receive_create(struct gr_channel *channel, const struct gr_sink *sink,
				    const struct gr_receive_params *params,
				    struct gr_receive **ret_receive, struct gr_error *err);

/**
 * Take one record, or do one of the steps at the end.
 *
 * @param receive The loop.
 * @param err     May be NULL.
 * @return 1 there is more, 0 complete and acknowledged, or a negative errno, which every
 *         later call repeats.
 * @errors -ECANCELED; -EBADMSG, -EPIPE, -EOPNOTSUPP as gr_stream_next(), naming the byte;
 *         -EINVAL another machine; what the channel or the sink said.
 * @context The driving thread, outside a read-side section. Blocks for the channel.
 */
GR_MUST_CHECK int gr_receive_step(struct gr_receive *receive, struct gr_error *err);

/**
 * Have the loop end with -ECANCELED; breaks the channel. Without effect once the source
 * was told of success.
 * @param receive The loop.
 * @context Any thread.
 */
void gr_receive_cancel(struct gr_receive *receive);

/**
 * @param receive   The loop.
 * @param ret_stats Filled: state, counts, times.
 * @context Any thread.
 */
void gr_receive_stats(struct gr_receive *receive, struct gr_migrate_stats *ret_stats);

/**
 * For error messages and tables of the sink's owner.
 * @param receive The loop.
 * @return The reader; its block table has the users that the sink set.
 * @context The driving thread.
 */
struct gr_stream_reader *gr_receive_reader(struct gr_receive *receive);

/** @param receive May be NULL. The sink's users in the block table are the sink's business. */
void gr_receive_free(struct gr_receive *receive);

#endif
