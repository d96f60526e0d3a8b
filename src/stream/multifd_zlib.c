/* SPDX-License-Identifier: MIT */
#include "stream/multifd_codec.h"

#ifdef GR_HAVE_ZLIB
#	include <errno.h>
#	include <zlib.h>

static int zlib_open(void **ret_state, bool pack, int level)
{
	z_stream *z = calloc(1, sizeof(*z));

	if (!z) {
		return -ENOMEM;
	}
	if ((pack ? deflateInit(z, level) : inflateInit(z)) != Z_OK) {
		free(z);
		return -EINVAL;
	}
	*ret_state = z;
	return 0;
}

static int zlib_pack(void *state, const uint8_t *in, size_t n, bool flush, uint8_t **out,
		     size_t *room)
{
	z_stream *z = state;
	int rc;

	z->next_in = (Bytef *)(uintptr_t)in;
	z->avail_in = (uInt)n;
	z->next_out = *out;
	z->avail_out = (uInt)*room;
	rc = deflate(z, flush ? Z_SYNC_FLUSH : Z_NO_FLUSH);
	*out = z->next_out;
	*room = z->avail_out;
	/* Room left: everything is out. */
	return rc != Z_OK || z->avail_in > 0 || z->avail_out == 0 ? -ENOSPC : 0;
}

static int zlib_unpack(void *state, const uint8_t **in, size_t *left, uint8_t *out, size_t room,
		       size_t *ret_bytes)
{
	z_stream *z = state;
	int rc = Z_OK;

	z->next_in = (Bytef *)(uintptr_t)*in;
	z->avail_in = (uInt)*left;
	z->next_out = out;
	z->avail_out = (uInt)room;
	while (rc == Z_OK && z->avail_in > 0 && z->avail_out > 0) {
		rc = inflate(z, Z_SYNC_FLUSH);
	}
	*in = z->next_in;
	*left = z->avail_in;
	*ret_bytes = room - z->avail_out;
	/* Output that did not fit last time comes without input. */
	if (rc == Z_OK && z->avail_out > 0) {
		rc = inflate(z, Z_SYNC_FLUSH);
		*ret_bytes = room - z->avail_out;
	}
	return rc == Z_OK || rc == Z_BUF_ERROR ? 0 : -EBADMSG;
}

static void zlib_close(void *state, bool pack)
{
	(void)(pack ? deflateEnd(state) : inflateEnd(state));
	free(state);
}

static const struct gr_multifd_codec_ops zlib_ops = { zlib_open, zlib_pack, zlib_unpack,
						      zlib_close };
const struct gr_multifd_codec_ops *const gr_multifd_zlib = &zlib_ops;
#else
const struct gr_multifd_codec_ops *const gr_multifd_zlib = NULL;
#endif
