/* SPDX-License-Identifier: MIT */
/*
 * The encoders behind gr_xbzrle_encode(): one algorithm, compiled for what processors have.
 */
#ifndef GR_STREAM_XBZRLE_ENCODE_H
#define GR_STREAM_XBZRLE_ENCODE_H

#include "base/compiler.h"
#include <sys/types.h>

struct gr_xbzrle_encoder {
	const char *name; /* "avx512", "avx2", "sse2", "plain" */
	ssize_t (*encode)(const uint8_t *old, const uint8_t *page, size_t page_bytes, uint8_t *out,
			  size_t room);
};

/**
 * @param i Which.
 * @return The i-th best encoder that this processor can run, or NULL. There is at least one.
 */
const struct gr_xbzrle_encoder *gr_xbzrle_encoder(unsigned int i);

#endif
