/* SPDX-License-Identifier: MIT */
/*
 * XBZRLE: a page as the difference to the content that both ends already have. Pairs of
 * "skip so many bytes, overwrite so many"; lengths are ULEB128 of at most two bytes.
 * Svard et al., VEE 2011.
 */
#include "stream/reader.h"
#include <errno.h>

/* A run's length at p: two bytes can be read. No branch: whether it has one or two cannot be guessed. */
static inline size_t get_length(const uint8_t *p, size_t *ret)
{
	size_t two = p[0] >> 7;

	*ret = (p[0] & 0x7fu) | ((size_t)p[1] << 7 & -two);
	return 1 + two;
}

typedef uint8_t chunk __attribute__((vector_size(16)));
enum { CHUNK = sizeof(chunk), SHORT = 2 * CHUNK };

/* Nearly all runs are short, and none can be guessed: their bytes are put among what is there already. */
static inline void copy(uint8_t *to, const uint8_t *from, size_t n, size_t room)
{
	static const uint8_t masks[2 * SHORT] = {
		0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff,
		0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff,
		0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff,
	};

	if (n > SHORT || room < SHORT) {
		memcpy(to, from, n);
		return;
	}
	for (size_t i = 0; i < SHORT; i += CHUNK) {
		chunk old, new, mask;

		memcpy(&old, to + i, CHUNK);
		memcpy(&new, from + i, CHUNK);
		memcpy(&mask, masks + SHORT - n + i, CHUNK);
		old = (old & ~mask) | (new & mask);
		memcpy(to + i, &old, CHUNK);
	}
}

/* What gr_xbzrle_check() has let pass. */
void gr_xbzrle_apply(uint8_t *page, const uint8_t *payload, size_t payload_bytes, size_t page_bytes)
{
	size_t in = 0, out = 0, skip, n;

	while (in < payload_bytes) {
		in += get_length(payload + in, &skip);
		in += get_length(payload + in, &n);
		out += skip;
		copy(page + out, payload + in, n, GR_MIN(payload_bytes - in, page_bytes - out));
		in += n;
		out += n;
	}
}

int gr_xbzrle_check(const uint8_t *payload, size_t payload_bytes, size_t page_bytes)
{
	size_t in = 0, out = 0, skip, n;

	while (in < payload_bytes) {
		bool first = in == 0;

		/* Something always follows a length. */
		if (payload_bytes - in < 2 || (payload[in] & payload[in + 1]) >> 7) {
			return -EBADMSG;
		}
		in += get_length(payload + in, &skip);
		if (payload_bytes - in < 2 || (payload[in] & payload[in + 1]) >> 7) {
			return -EBADMSG;
		}
		in += get_length(payload + in, &n);
#ifdef GR_MUTANT_XBZRLE_LENGTH
		if (n == 0 || (skip == 0 && !first) || n > payload_bytes - in || n > page_bytes) {
			return -EBADMSG;
		}
#else
		if (n == 0 || (skip == 0 && !first) || n > payload_bytes - in ||
		    skip > page_bytes - out || n > page_bytes - out - skip) {
			return -EBADMSG;
		}
#endif
		in += n;
		out += skip + n;
	}
	return 0;
}

int gr_xbzrle_decode(uint8_t *page, const uint8_t *payload, size_t payload_bytes, size_t page_bytes)
{
	int code = gr_xbzrle_check(payload, payload_bytes, page_bytes);

	if (code == 0) {
		gr_xbzrle_apply(page, payload, payload_bytes, page_bytes);
	}
	return code;
}
