/* SPDX-License-Identifier: MIT */
#include "stream/multifd_codec.h"

#ifdef GR_HAVE_ZSTD
#	include <errno.h>
#	include <zstd.h>

static int zstd_open(void **ret_state, bool pack, int level)
{
	size_t rc;

	if (!pack) {
		/* Its windows have at most 128 MiB, the library's own limit for streams. */
		*ret_state = ZSTD_createDStream();
		return *ret_state ? 0 : -ENOMEM;
	}
	*ret_state = ZSTD_createCStream();
	if (!*ret_state) {
		return -ENOMEM;
	}
	rc = ZSTD_initCStream(*ret_state, level);
	if (ZSTD_isError(rc)) {
		(void)ZSTD_freeCStream(*ret_state);
		return -EINVAL;
	}
	return 0;
}

static int zstd_pack(void *state, const uint8_t *in, size_t n, bool flush, uint8_t **out,
		     size_t *room)
{
	ZSTD_inBuffer from = { in, n, 0 };
	ZSTD_outBuffer to = { *out, *room, 0 };
	size_t rc;

	do {
		rc = ZSTD_compressStream2(state, &to, &from,
					  flush ? ZSTD_e_flush : ZSTD_e_continue);
	} while (!ZSTD_isError(rc) && to.pos < to.size &&
		 (from.pos < from.size || (flush && rc > 0)));
	*out += to.pos;
	*room -= to.pos;
	return ZSTD_isError(rc) || from.pos < from.size || (flush && rc > 0) ? -ENOSPC : 0;
}

static int zstd_unpack(void *state, const uint8_t **in, size_t *left, uint8_t *out, size_t room,
		       size_t *ret_bytes)
{
	ZSTD_inBuffer from = { *in, *left, 0 };
	ZSTD_outBuffer to = { out, room, 0 };
	size_t rc, had_in, had_out;

	do {
		had_in = from.pos;
		had_out = to.pos;
		rc = ZSTD_decompressStream(state, &to, &from);
	} while (!ZSTD_isError(rc) && to.pos < to.size && (from.pos > had_in || to.pos > had_out));
	*in += from.pos;
	*left -= from.pos;
	*ret_bytes = to.pos;
	return ZSTD_isError(rc) ? -EBADMSG : 0;
}

static void zstd_close(void *state, bool pack)
{
	(void)(pack ? ZSTD_freeCStream(state) : ZSTD_freeDStream(state));
}

static const struct gr_multifd_codec_ops zstd_ops = { zstd_open, zstd_pack, zstd_unpack,
						      zstd_close };
const struct gr_multifd_codec_ops *const gr_multifd_zstd = &zstd_ops;
#else
const struct gr_multifd_codec_ops *const gr_multifd_zstd = NULL;
#endif
