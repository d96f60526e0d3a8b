/* SPDX-License-Identifier: MIT */
/*
 * The return path: short messages from the destination back to the source, on the same
 * duplex channel. be16 type, be16 length, data.
 */
#ifndef GR_STREAM_RETURN_PATH_H
#define GR_STREAM_RETURN_PATH_H

#include "stream/wire.h"
#include <guestram/channel.h>
#include <guestram/error.h>

struct gr_return_path_message {
	enum gr_return_path_type type; /* SHUT, PONG, FEATURES, RESUME_ACK or SWITCHOVER_ACK */
	uint32_t value;		       /* error of SHUT, value of PONG, version of FEATURES */
	uint32_t flags;		       /* of FEATURES */
};

/* Bytes that came and are not yet a message. Zero-initialise. One thread. */
struct gr_return_path_reader {
	uint8_t buf[4 + GR_STREAM_RETURN_BYTES_MAX];
	size_t bytes;
	uint64_t byte_offset; /* of buf in the return path */
};

/**
 * Send one message.
 * @param ch  A duplex channel; the only writer on this end.
 * @param msg What.
 * @param err May be NULL.
 * @return 0 or a negative errno.
 */
GR_MUST_CHECK int gr_return_path_write(struct gr_channel *ch,
				       const struct gr_return_path_message *msg,
				       struct gr_error *err);

/**
 * Parse one message; pure.
 * @param data What came.
 * @param n    Bytes of it.
 * @param msg  Filled when more than 0 is returned.
 * @param err  May be NULL.
 * @return Bytes of the message, 0 if it is not complete, or a negative errno.
 * @errors -EBADMSG wrong length; -EOPNOTSUPP a message of postcopy or an unknown one (named).
 */
GR_MUST_CHECK ssize_t gr_return_path_parse(const uint8_t *data, size_t n,
					   struct gr_return_path_message *msg,
					   struct gr_error *err);

/**
 * Wait for one message.
 * @param r   Keeps what came beyond the message.
 * @param ch  The channel.
 * @param msg Filled when 1 is returned.
 * @param err May be NULL.
 * @return 1, 0 if the peer ended between messages, or a negative errno.
 * @errors As gr_return_path_parse() and gr_channel_readv(); -EPIPE an end inside a message.
 */
GR_MUST_CHECK int gr_return_path_next(struct gr_return_path_reader *r, struct gr_channel *ch,
				      struct gr_return_path_message *msg, struct gr_error *err);

#endif
