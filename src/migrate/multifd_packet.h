/* SPDX-License-Identifier: MIT */
/*
 * Packets of one further channel: read, checked, given to the sink. Nothing of a packet is placed
 * before its header and all its offsets have been checked; a page's bytes are read where they
 * belong if the page is there, with the next header behind them in the same system call.
 *
 * One thread uses a reader; all readers of a move share a context, whose blocks change only while
 * none of them is at work.
 */
#ifndef GR_MIGRATE_MULTIFD_PACKET_H
#define GR_MIGRATE_MULTIFD_PACKET_H

#include "base/mutex.h"
#include "migrate/sink.h"
#include "stream/multifd.h"
#include "stream/multifd_codec.h"

/* What the channels of a move share. */
struct gr_packet_context {
	struct gr_sink sink;			 /* (c) */
	enum gr_multifd_compression compression; /* (c) what was agreed */
	uint32_t page_bytes;			 /* (c) once the first reader is there */
	struct gr_mutex sink_lock;	/* held around calls of a sink that is not parallel */
	struct gr_stream_block *blocks; /* copies of the table's entries that are alive */
	uint32_t count;
};

struct gr_packet_reader {
	struct gr_packet_context *context;	  /* (c) */
	struct gr_channel *channel;		  /* (c) borrowed */
	struct gr_multifd_header header;	  /* of the packet that came last */
	uint8_t raw[GR_MULTIFD_HEADER_BYTES_MAX]; /* the next header, as far as it has come */
	size_t raw_bytes;
	uint64_t packets;
	uint8_t *stage;	 /* pages that cannot be read in place: GR_MULTIFD_DATA_BYTES */
	uint8_t *packed; /* GR_MULTIFD_PAYLOAD_BYTES_MAX, if the move is compressed */
	struct gr_multifd_codec codec;
	struct iovec iov[GR_MULTIFD_PAGES_MAX + 1];   /* where the pages go */
	uint64_t in_place[GR_MULTIFD_PAGES_MAX / 64]; /* a bit per page: not by way of the stage */
	uint32_t block;				      /* index of the last one found */
};

/** @param c The caller's memory. @param sink Copied. @param compression What was agreed. */
void gr_packet_context_init(struct gr_packet_context *c, const struct gr_sink *sink,
			    enum gr_multifd_compression compression);
/** @param c Initialised. */
void gr_packet_context_destroy(struct gr_packet_context *c);

/**
 * @param c      The context; no reader is at work.
 * @param reader Has the table.
 * @param err    May be NULL.
 * @return 0 or -ENOMEM.
 */
GR_MUST_CHECK int gr_packet_context_blocks(struct gr_packet_context *c,
					   struct gr_stream_reader *reader, struct gr_error *err);

/**
 * Around all calls of the sink that others may be busy with: excludes them if it is not parallel.
 * @param c The context.
 */
void gr_packet_context_enter(struct gr_packet_context *c);
/** @param c Entered. */
void gr_packet_context_leave(struct gr_packet_context *c);

/** @param r context and channel are set, the rest is zero. @param err May be NULL. @return 0 or an
 * errno. */
GR_MUST_CHECK int gr_packet_reader_init(struct gr_packet_reader *r, struct gr_error *err);
/** @param r Zeroed or initialised. */
void gr_packet_reader_destroy(struct gr_packet_reader *r);

/** @param r The reader. @param ret_g Filled. @param err May be NULL. @return 0 or a negative errno.
 */
GR_MUST_CHECK int gr_packet_greeting(struct gr_packet_reader *r, struct gr_multifd_greeting *ret_g,
				     struct gr_error *err);

/**
 * Read the next header into r->header.
 * @param r   The reader; the pages of the last packet were taken.
 * @param err May be NULL.
 * @return 1, 0 the channel has ended, or a negative errno.
 */
GR_MUST_CHECK int gr_packet_next(struct gr_packet_reader *r, struct gr_error *err);

/**
 * Take the pages of r->header.
 * @param r   The reader.
 * @param err May be NULL; names block and page.
 * @return 0 or a negative errno.
 */
GR_MUST_CHECK int gr_packet_take(struct gr_packet_reader *r, struct gr_error *err);

#endif
