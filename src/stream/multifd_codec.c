/* SPDX-License-Identifier: MIT */
#include "stream/multifd_codec.h"
#include <errno.h>

static const char *const names[] = {
	[GR_MULTIFD_NONE] = "none", [GR_MULTIFD_ZLIB] = "zlib", [GR_MULTIFD_ZSTD] = "zstd"
};

const char *gr_multifd_compression_name(enum gr_multifd_compression compression)
{
	return (unsigned int)compression < GR_ARRAY_SIZE(names) ? names[compression] : "?";
}

static const struct gr_multifd_codec_ops *ops_of(enum gr_multifd_compression compression)
{
	return compression == GR_MULTIFD_ZLIB	? gr_multifd_zlib
	       : compression == GR_MULTIFD_ZSTD ? gr_multifd_zstd
						: NULL;
}

int gr_multifd_supports(enum gr_multifd_compression compression, struct gr_error *err)
{
	if (compression == GR_MULTIFD_NONE || ops_of(compression)) {
		return 0;
	}
	if (compression != GR_MULTIFD_ZLIB && compression != GR_MULTIFD_ZSTD) {
		return gr_error_set(err, -ENOTSUP, "compression %d is not known", (int)compression);
	}
	return gr_error_set(
		err, -ENOTSUP, "this build has no %s: install %s (Debian) and configure again",
		names[compression], compression == GR_MULTIFD_ZLIB ? "zlib1g-dev" : "libzstd-dev");
}

int gr_multifd_codec_open(struct gr_multifd_codec *c, enum gr_multifd_compression compression,
			  bool pack, int level, struct gr_error *err)
{
	int rc = gr_multifd_supports(compression, err);

	if (rc < 0) {
		return rc;
	}
	c->ops = ops_of(compression);
	c->pack = pack;
	rc = c->ops->open(&c->state, pack, level ? level : 1);
	if (rc < 0) {
		c->ops = NULL;
		return gr_error_set(err, rc, "%s cannot be set up with level %d",
				    names[compression], level ? level : 1);
	}
	return 0;
}

void gr_multifd_codec_close(struct gr_multifd_codec *c)
{
	if (c->ops) {
		c->ops->close(c->state, c->pack);
	}
	c->ops = NULL;
}

int gr_multifd_pack(struct gr_multifd_codec *c, const uint8_t *in, size_t n, uint8_t *out,
		    size_t room, size_t *ret_bytes, struct gr_error *err)
{
	uint8_t *at = out;
	int rc = c->ops->pack(c->state, in, n, true, &at, &room);

	if (rc < 0) {
		return gr_error_set(err, rc, "pages cannot be compressed");
	}
	*ret_bytes = (size_t)(at - out);
	return 0;
}

int gr_multifd_unpack(struct gr_multifd_codec *c, const uint8_t *in, size_t n,
		      const struct iovec *iov, unsigned int iovs, struct gr_error *err)
{
	size_t left = n, got = 0;
	uint8_t beyond;
	int rc = 0;

	for (unsigned int i = 0; rc == 0 && i < iovs; i++) {
		rc = c->ops->unpack(c->state, &in, &left, iov[i].iov_base, iov[i].iov_len, &got);
		if (rc == 0 && got < iov[i].iov_len) {
			return gr_error_set(err, -EBADMSG, "compressed pages that end too early");
		}
	}
	/* What ends the packet has no bytes of pages; a bomb has. */
#ifndef GR_MUTANT_MULTIFD_BOMB
	if (rc == 0) {
		rc = c->ops->unpack(c->state, &in, &left, &beyond, 1, &got);
		if (rc == 0 && (got > 0 || left > 0)) {
			return gr_error_set(err, -EBADMSG,
					    "compressed pages that become more than there are");
		}
	}
#else
	(void)beyond;
#endif
	return rc < 0 ? gr_error_set(err, rc, "compressed pages that cannot be unpacked") : 0;
}
