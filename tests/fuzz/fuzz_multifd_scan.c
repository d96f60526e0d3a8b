/* SPDX-License-Identifier: MIT */
/*
 * A further channel that goes by. Of the first byte bit 0 says pages of 64 KiB, the rest and the
 * second one in which pieces the others come. What is found does not depend on the pieces.
 */
#include "fuzz.h"
#include "stream/multifd_scan.h"
#include "stream_kit.h"

/* Everything, at most so much at once. */
static int scan(struct gr_multifd_scan *s, uint32_t page_bytes, const uint8_t *data, size_t n,
		size_t most, struct gr_error *err)
{
	int rc = 0;

	while (rc == 0 && n > 0) {
		size_t part = gr_multifd_scan_room(s, most);
		uint64_t before = s->bytes;

		part = GR_MIN(part, most);
		part = GR_MIN(part, n);
		rc = gr_multifd_scan(s, data, part, err);
		kit_check(rc < 0 || s->bytes == before + part);
		kit_check(s->needed <= s->bytes + s->payload_bytes);
		kit_check(s->payload_bytes <= GR_MULTIFD_PAYLOAD_BYTES_MAX);
		s->page_bytes = page_bytes;
		data += part;
		n -= part;
	}
	return rc;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
	static struct gr_multifd_scan whole, pieces;
	struct gr_error err = { 0 }, pieces_err = { 0 };
	uint32_t page_bytes = n && data[0] & 1 ? 65536 : 4096;
	int rc, pieces_rc;

	if (n < 2) {
		return 0;
	}
	memset(&whole, 0, sizeof(whole));
	memset(&pieces, 0, sizeof(pieces));
	rc = scan(&whole, page_bytes, data + 2, n - 2, n, &err);
	pieces_rc = scan(&pieces, page_bytes, data + 2, n - 2,
			 1u + (data[0] >> 1) + ((size_t)data[1] << 7), &pieces_err);
	kit_check(rc == pieces_rc);
	if (rc < 0) {
		kit_check(strncmp(err.msg, "byte ", 5) == 0 &&
			  strcmp(err.msg, pieces_err.msg) == 0);
		return 0;
	}
	kit_check(whole.bytes == n - 2 && pieces.bytes == whole.bytes);
	kit_check(whole.greeted == pieces.greeted && whole.id == pieces.id);
	kit_check(whole.payload_bytes == pieces.payload_bytes &&
		  whole.raw_bytes == pieces.raw_bytes);
	kit_check(memcmp(whole.raw, pieces.raw, whole.raw_bytes) == 0);
	kit_check(whole.needed == pieces.needed && whole.syncs == pieces.syncs);
	kit_check(whole.normal_pages == pieces.normal_pages &&
		  whole.zero_pages == pieces.zero_pages);
	kit_check(gr_multifd_scan_end(&whole, &err) == gr_multifd_scan_end(&pieces, &err));
	return 0;
}
