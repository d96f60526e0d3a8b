/* SPDX-License-Identifier: MIT */
/* What an XBZRLE delta means, read byte by byte: the oracle for the decoders. */
#ifndef XBZRLE_MODEL_H
#define XBZRLE_MODEL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* ULEB128 of one byte or two. */
static inline bool model_number(const uint8_t *p, size_t n, size_t *in, size_t *ret)
{
	if (*in >= n) {
		return false;
	}
	*ret = p[(*in)++];
	if (*ret < 0x80) {
		return true;
	}
	if (*in >= n || p[*in] >= 0x80) {
		return false;
	}
	*ret = (*ret & 0x7f) | (size_t)p[(*in)++] << 7;
	return true;
}

/* False: the delta is wrong, and the page is half changed. */
static inline bool model_xbzrle_decode(uint8_t *page, const uint8_t *p, size_t n, size_t page_bytes)
{
	size_t in = 0, out = 0, skip, bytes;

	for (bool first = true; in < n; first = false) {
		if (!model_number(p, n, &in, &skip) || !model_number(p, n, &in, &bytes) ||
		    (skip == 0 && !first) || bytes == 0) {
			return false;
		}
		for (out += skip; bytes > 0; bytes--) {
			if (in >= n || out >= page_bytes) {
				return false;
			}
			page[out++] = p[in++];
		}
	}
	return true;
}

#endif
