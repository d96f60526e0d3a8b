/* SPDX-License-Identifier: MIT */
/*
 * The decoders behind gr_xbzrle_decode(): one algorithm, compiled for what processors have.
 */
#ifndef GR_STREAM_XBZRLE_DECODE_H
#define GR_STREAM_XBZRLE_DECODE_H

#include "base/compiler.h"
#include <stddef.h>
#include <stdint.h>

struct gr_xbzrle_decoder {
	const char *name; /* "avx512", "plain" */
	int (*decode)(uint8_t *page, const uint8_t *payload, size_t payload_bytes,
		      size_t page_bytes);
};

/**
 * @param i Which.
 * @return The i-th best decoder that this processor can run, or NULL. There is at least one.
 */
const struct gr_xbzrle_decoder *gr_xbzrle_decoder(unsigned int i);

#endif
