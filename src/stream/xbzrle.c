/* SPDX-License-Identifier: MIT */
/*
 * XBZRLE: a page as the difference to the content that both ends already have. Pairs of
 * "skip so many bytes, overwrite so many"; lengths are ULEB128 of at most two bytes.
 * Svard et al., VEE 2011.
 */
#include "stream/reader.h"
#include <errno.h>

/* A run's length at p: bytes of the number (1 or 2), or 0 if it is none. */
static size_t get_length(const uint8_t *p, size_t left, size_t *ret)
{
	if (left < 2) {
		return 0; /* something always follows a length */
	}
	if (p[0] < 0x80) {
		*ret = p[0];
		return 1;
	}
	if (p[1] & 0x80) {
		return 0;
	}
	*ret = (size_t)(p[0] & 0x7f) | (size_t)p[1] << 7;
	return 2;
}

/* Walks the delta; page == NULL: only looks. */
static int walk(uint8_t *page, const uint8_t *payload, size_t n, size_t page_bytes)
{
	size_t in = 0, out = 0;

	while (in < n) {
		size_t skip, copy, used;

		used = get_length(payload + in, n - in, &skip);
		if (used == 0 || (skip == 0 && in != 0)) {
			return -EBADMSG;
		}
		in += used;
		used = get_length(payload + in, n - in, &copy);
		if (used == 0 || copy == 0) {
			return -EBADMSG;
		}
		in += used;
#ifdef GR_MUTANT_XBZRLE_LENGTH
		if (copy > n - in || copy > page_bytes) {
			return -EBADMSG;
		}
#else
		if (copy > n - in || skip > page_bytes - out || copy > page_bytes - out - skip) {
			return -EBADMSG;
		}
#endif
		out += skip;
		if (page) {
			memcpy(page + out, payload + in, copy);
		}
		out += copy;
		in += copy;
	}
	return 0;
}

int gr_xbzrle_check(const uint8_t *payload, size_t payload_bytes, size_t page_bytes)
{
	return walk(NULL, payload, payload_bytes, page_bytes);
}

int gr_xbzrle_decode(uint8_t *page, const uint8_t *payload, size_t payload_bytes, size_t page_bytes)
{
	int code = walk(NULL, payload, payload_bytes, page_bytes);

	return code < 0 ? code : walk(page, payload, payload_bytes, page_bytes);
}
