/* SPDX-License-Identifier: MIT */
/*
 * A further channel of a move. The first byte says how: bits 0..1 the compression, bit 2 pages of
 * 64 KiB. Then a greeting, a header, and what is unpacked into as many pages as fit. What has been
 * let through keeps its promises; what is unpacked stays in its pages.
 */
#include "fuzz.h"
#include "stream/multifd.h"
#include "stream/multifd_codec.h"
#include "stream_kit.h"

enum { BLOCK_BYTES = 1 << 20, PAGES = 3 };

static void unpack(const uint8_t *data, size_t n, enum gr_multifd_compression compression)
{
	struct gr_multifd_codec codec = { 0 };
	struct iovec iov[PAGES];
	struct gr_error err;

	if (compression == GR_MULTIFD_NONE ||
	    gr_multifd_codec_open(&codec, compression, false, 0, &err) < 0) {
		return;
	}
	for (int i = 0; i < PAGES; i++) {
		iov[i] = (struct iovec){ malloc(4096), 4096 }; /* a sanitizer sees a byte beyond */
		kit_check(iov[i].iov_base != NULL);
	}
	/* A channel is one stream: the second packet goes on where the first one ended. */
	for (int round = 0; round < 2; round++) {
		size_t half = round == 0 ? n / 2 : n - n / 2;

		if (gr_multifd_unpack(&codec, data, half, iov, PAGES, &err) < 0) {
			kit_check(err.msg[0] != '\0');
			break;
		}
		data += half;
	}
	for (int i = 0; i < PAGES; i++) {
		free(iov[i].iov_base);
	}
	gr_multifd_codec_close(&codec);
}

static void check_header(const struct gr_multifd_header *h, uint32_t page_bytes)
{
	uint32_t count = h->pages + h->zero_pages;

	kit_check(h->pages <= GR_MULTIFD_PAGES_MAX && count <= GR_MULTIFD_DATA_BYTES / page_bytes);
	kit_check(h->payload_bytes <= GR_MULTIFD_PAYLOAD_BYTES_MAX);
	kit_check((h->payload_bytes == 0) == (h->pages == 0));
	kit_check((count == 0) == (h->block[0] == '\0'));
	kit_check(memchr(h->block, '\0', sizeof(h->block)) != NULL);
	for (uint32_t i = 0; i < count; i++) {
		kit_check(h->offsets[i] % page_bytes == 0);
		kit_check(h->offsets[i] <= BLOCK_BYTES - page_bytes);
	}
}

/* What we write of it is read as the same. */
static void there_and_back(const struct gr_multifd_header *h, uint32_t page_bytes)
{
	uint8_t raw[GR_MULTIFD_HEADER_BYTES_MAX];
	struct gr_multifd_header again;

	gr_multifd_header_put(h, page_bytes, raw);
	kit_check(gr_multifd_header_parse(raw, page_bytes, &again, NULL) == 0);
	kit_check(again.pages == h->pages && again.zero_pages == h->zero_pages);
	kit_check(again.sync == h->sync && again.number == h->number);
	kit_check(again.payload_bytes == h->payload_bytes);
	kit_check(strcmp(again.block, h->block) == 0);
	kit_check(memcmp(again.offsets, h->offsets,
			 (h->pages + h->zero_pages) * sizeof(h->offsets[0])) == 0);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
	struct gr_multifd_greeting greeting;
	struct gr_multifd_header h;
	uint32_t page_bytes = n && data[0] & 4 ? 65536 : 4096;
	size_t head = 1 + GR_MULTIFD_GREETING_BYTES + gr_multifd_header_bytes(page_bytes);
	struct gr_error err;

	if (n < head) {
		return 0;
	}
	kit_check(gr_multifd_greeting_parse(data + 1, &greeting, &err) <= 0);
	if (gr_multifd_header_parse(data + 1 + GR_MULTIFD_GREETING_BYTES, page_bytes, &h, &err) ==
		    0 &&
	    gr_multifd_header_check(&h, BLOCK_BYTES, page_bytes, &err) == 0) {
		check_header(&h, page_bytes);
		there_and_back(&h, page_bytes);
	}
	unpack(data + head, n - head, data[0] & 3);
	return 0;
}
