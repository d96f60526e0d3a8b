/* SPDX-License-Identifier: MIT */
/*
 * A further channel that is looked at while it goes by: greeting, headers, and how many bytes
 * belong to each. Bytes come in any pieces and are kept by nobody; only a header that comes in two
 * is put together here. Offsets in blocks are not checked: who passes on may not know the blocks
 * yet.
 */
#ifndef GR_STREAM_MULTIFD_SCAN_H
#define GR_STREAM_MULTIFD_SCAN_H

#include "stream/multifd.h"

/* Zero-initialise. One thread. */
struct gr_multifd_scan {
	uint32_t page_bytes; /* of the target: to be set when the greeting is over, before the rest
			      */
	bool greeted;
	uint8_t id;		/* of the greeting */
	uint64_t bytes;		/* that were looked at */
	uint64_t payload_bytes; /* still to come of the packet */
	uint64_t needed;	/* where the last packet ends that has pages, or says SYNC */
	uint64_t normal_pages, zero_pages, syncs; /* in the headers so far */
	size_t raw_bytes;
	uint8_t raw[GR_MULTIFD_HEADER_BYTES_MAX]; /* a header as far as it has come */
};

/**
 * Look at what has come.
 * @param s    The channel. Before it is greeted, no more than gr_multifd_scan_room().
 * @param data The next bytes.
 * @param n    How many.
 * @param err  May be NULL; names the byte of the channel.
 * @return 0 or a negative errno, after which the channel is not to be followed.
 * @errors As gr_multifd_greeting_parse() and gr_multifd_header_look().
 */
GR_MUST_CHECK int gr_multifd_scan(struct gr_multifd_scan *s, const uint8_t *data, size_t n,
				  struct gr_error *err);

/**
 * @param s    The channel.
 * @param most What one would like to read.
 * @return How much to read at most: the greeting comes alone.
 */
size_t gr_multifd_scan_room(const struct gr_multifd_scan *s, size_t most);

/**
 * Whether the channel may end here.
 * @param s   The channel.
 * @param err May be NULL; names the byte.
 * @return 0, or -EPIPE inside of something.
 */
GR_MUST_CHECK int gr_multifd_scan_end(const struct gr_multifd_scan *s, struct gr_error *err);

#endif
