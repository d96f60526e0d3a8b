/* SPDX-License-Identifier: MIT */
#include "stream/inflate.h"
#include <errno.h>
#include <stdlib.h>
#include <string.h>

size_t gr_deflated_bytes_max(size_t n)
{
	return n + (n >> 12) + (n >> 14) + (n >> 25) + 13;
}

#ifdef GR_HAVE_ZLIB
#	define ZLIB_CONST
#	include <zlib.h>

struct gr_inflate {
	z_stream z;
};

static int prepare(struct gr_inflate **state)
{
	struct gr_inflate *s = *state;

	if (s) {
		return inflateReset(&s->z) == Z_OK ? 0 : -EBADMSG;
	}
	s = calloc(1, sizeof(*s));
	if (!s || inflateInit(&s->z) != Z_OK) {
		free(s);
		return -ENOMEM;
	}
	*state = s;
	return 0;
}

int gr_inflate_page(struct gr_inflate **state, const uint8_t *data, size_t bytes, uint8_t *page,
		    size_t page_bytes)
{
	int rc = prepare(state);
	z_stream *z;

	if (rc < 0) {
		return rc;
	}
	z = &(*state)->z;
	z->next_in = data;
	z->avail_in = (uInt)bytes;
	z->next_out = page;
	z->avail_out = (uInt)page_bytes;
	switch (inflate(z, Z_FINISH)) {
	case Z_STREAM_END:
#	ifdef GR_MUTANT_INFLATE_ANY_LENGTH
		return 0;
#	endif
		return z->avail_in == 0 && z->avail_out == 0 ? 0 : -EBADMSG;
	case Z_MEM_ERROR:
		return -ENOMEM;
	default:
		return -EBADMSG;
	}
}

void gr_inflate_free(struct gr_inflate *state)
{
	if (state) {
		(void)inflateEnd(&state->z);
		free(state);
	}
}

#else

int gr_inflate_page(struct gr_inflate **state, const uint8_t *data, size_t bytes, uint8_t *page,
		    size_t page_bytes)
{
	(void)state, (void)data, (void)bytes, (void)page, (void)page_bytes;
	return -EOPNOTSUPP;
}

void gr_inflate_free(struct gr_inflate *state)
{
	(void)state;
}

#endif
