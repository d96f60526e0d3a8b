/* SPDX-License-Identifier: MIT */
/*
 * XBZRLE: the first byte says how long the page is, the rest is a delta, and a page as well. Each
 * decoder does what the model does, and each encoder's delta brings the page back.
 */
#include "fuzz.h"
#include "stream/reader.h"
#include "stream/xbzrle_decode.h"
#include "stream/xbzrle_encode.h"
#include "stream_kit.h"
#include "xbzrle_model.h"
#include <errno.h>

enum { UNIT = 64, UNITS_MAX = 512 };

/* Of exactly that length, so that a sanitizer sees what goes beyond it. */
static uint8_t *copy_of(const uint8_t *p, size_t n)
{
	uint8_t *copy = malloc(n ? n : 1);

	kit_check(copy != NULL);
	if (n) {
		memcpy(copy, p, n);
	}
	return copy;
}

static void encode_and_decode(const uint8_t *old, const uint8_t *page, size_t page_bytes)
{
	const struct gr_xbzrle_encoder *e;
	uint8_t *out = copy_of(page, page_bytes), *got, *model;

	for (unsigned int k = 0; (e = gr_xbzrle_encoder(k)) != NULL; k++) {
		ssize_t n = e->encode(old, page, page_bytes, out, page_bytes);

		if (n < 0) {
			kit_check(n == -E2BIG);
			continue;
		}
		got = copy_of(old, page_bytes);
		model = copy_of(old, page_bytes);
		kit_check(model_xbzrle_decode(model, out, (size_t)n, page_bytes));
		kit_check(memcmp(model, page, page_bytes) == 0);
		kit_check(gr_xbzrle_decode(got, out, (size_t)n, page_bytes) == 0);
		kit_check(memcmp(got, page, page_bytes) == 0);
		free(model);
		free(got);
	}
	free(out);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
	static const uint8_t fresh[UNIT * UNITS_MAX];
	size_t page_bytes = n ? (size_t)UNIT << data[0] % 10 : UNIT;
	const struct gr_xbzrle_decoder *d;
	uint8_t *want = copy_of(fresh, page_bytes), *delta, *page;
	bool valid;

	data += n ? 1 : 0;
	n -= n ? 1 : 0;
	delta = copy_of(data, n);
	valid = model_xbzrle_decode(want, delta, n, page_bytes);
	kit_check(gr_xbzrle_check(delta, n, page_bytes) == (valid ? 0 : -EBADMSG));
	for (unsigned int k = 0; (d = gr_xbzrle_decoder(k)) != NULL; k++) {
		page = copy_of(fresh, page_bytes);
		kit_check(d->decode(page, delta, n, page_bytes) == (valid ? 0 : -EBADMSG));
		kit_check(memcmp(page, valid ? want : fresh, page_bytes) == 0);
		free(page);
	}
	encode_and_decode(fresh, want, page_bytes); /* whatever was written of it */
	memset(want, 0, page_bytes);
	memcpy(want, data, GR_MIN(n, page_bytes));
	encode_and_decode(fresh, want, page_bytes);
	free(want);
	free(delta);
	return 0;
}
