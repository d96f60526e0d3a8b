/* SPDX-License-Identifier: MIT */
/*
 * Compression of pages on a further channel. Each channel is one compressed stream for the whole
 * move; after each packet it is flushed, so that what has come can be unpacked. zlib and zstd
 * are the system's libraries, if the build has them.
 *
 * Packing: the bytes must not change meanwhile, so the caller hands over copies. Unpacking writes
 * exactly the pages asked for, whatever the input would become.
 */
#ifndef GR_STREAM_MULTIFD_CODEC_H
#define GR_STREAM_MULTIFD_CODEC_H

#include "base/compiler.h"
#include <guestram/error.h>
#include <guestram/iovec.h>
#include <guestram/multifd.h>

struct gr_multifd_codec_ops {
	int (*open)(void **ret_state, bool pack, int level);
	/* Packs n bytes; the last ones of a packet with flush. Advances *out and *room. */
	int (*pack)(void *state, const uint8_t *in, size_t n, bool flush, uint8_t **out,
		    size_t *room);
	/* Unpacks until the room is full or nothing is left. Advances both. */
	int (*unpack)(void *state, const uint8_t **in, size_t *left, uint8_t *out, size_t room,
		      size_t *ret_bytes);
	void (*close)(void *state, bool pack);
};

/* NULL where the library is missing. */
extern const struct gr_multifd_codec_ops *const gr_multifd_zlib, *const gr_multifd_zstd;

struct gr_multifd_codec {
	const struct gr_multifd_codec_ops *ops;
	void *state;
	bool pack;
};

/**
 * @param c           The caller's memory; closed or zeroed.
 * @param compression Not GR_MULTIFD_NONE.
 * @param pack        Or unpack.
 * @param level       0: 1, the fastest.
 * @param err         May be NULL.
 * @return 0, -ENOTSUP or -ENOMEM.
 */
GR_MUST_CHECK int gr_multifd_codec_open(struct gr_multifd_codec *c,
					enum gr_multifd_compression compression, bool pack,
					int level, struct gr_error *err);

/** @param c Open, closed or zeroed. */
void gr_multifd_codec_close(struct gr_multifd_codec *c);

/**
 * Pack a packet.
 * @param c         Open for packing.
 * @param in        The pages, copies.
 * @param n         Bytes.
 * @param out       Filled.
 * @param room      Bytes there.
 * @param ret_bytes How many came out.
 * @param err       May be NULL.
 * @return 0 or a negative errno.
 */
GR_MUST_CHECK int gr_multifd_pack(struct gr_multifd_codec *c, const uint8_t *in, size_t n,
				  uint8_t *out, size_t room, size_t *ret_bytes,
				  struct gr_error *err);

/**
 * Unpack a packet.
 * @param c    Open for unpacking.
 * @param in   What came.
 * @param n    Bytes.
 * @param iov  Where the pages go.
 * @param iovs Entries; all are filled, or it is an error.
 * @param err  May be NULL.
 * @return 0 or -EBADMSG: not a stream of this method, or not exactly these bytes.
 */
GR_MUST_CHECK int gr_multifd_unpack(struct gr_multifd_codec *c, const uint8_t *in, size_t n,
				    const struct iovec *iov, unsigned int iovs,
				    struct gr_error *err);

#endif
