/* SPDX-License-Identifier: MIT */
#include "stream/multifd.h"
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>

static int bad(struct gr_error *err, const char *what)
{
	return gr_error_set(err, -EBADMSG, "%s", what);
}

static int check_magic(const uint8_t *raw, const char *what, struct gr_error *err)
{
	if (gr_get_be32(raw) != GR_MULTIFD_MAGIC) {
		return gr_error_set(err, -EBADMSG, "%s begins with 0x%08x, not with 0x%08x", what,
				    gr_get_be32(raw), GR_MULTIFD_MAGIC);
	}
	if (gr_get_be32(raw + 4) != GR_MULTIFD_VERSION) {
		return gr_error_set(err, -EBADMSG, "%s of version %u, not %u", what,
				    gr_get_be32(raw + 4), GR_MULTIFD_VERSION);
	}
	return 0;
}

static void put_magic(uint8_t *raw)
{
	gr_put_be32(raw, GR_MULTIFD_MAGIC);
	gr_put_be32(raw + 4, GR_MULTIFD_VERSION);
}

void gr_multifd_greeting_put(const struct gr_multifd_greeting *g, uint8_t *raw)
{
	memset(raw, 0, GR_MULTIFD_GREETING_BYTES);
	put_magic(raw);
	memcpy(raw + 8, g->uuid, sizeof(g->uuid));
	raw[24] = g->id;
}

int gr_multifd_greeting_parse(const uint8_t *raw, struct gr_multifd_greeting *ret_g,
			      struct gr_error *err)
{
	int rc = check_magic(raw, "a greeting that", err);

	if (rc == 0) {
		memcpy(ret_g->uuid, raw + 8, sizeof(ret_g->uuid));
		ret_g->id = raw[24];
	}
	return rc;
}

static uint32_t flags_of(const struct gr_multifd_header *h)
{
	uint32_t flags = h->sync ? GR_MULTIFD_SYNC : 0;

	/* A packet that only says SYNC is not of any method. */
	return h->pages + h->zero_pages == 0 ? flags : flags | (uint32_t)h->compression << 1;
}

void gr_multifd_header_put(const struct gr_multifd_header *h, uint32_t page_bytes, uint8_t *raw)
{
	memset(raw, 0, gr_multifd_header_bytes(page_bytes));
	put_magic(raw);
	gr_put_be32(raw + 8, flags_of(h));
	gr_put_be32(raw + 12, gr_multifd_pages_max(page_bytes));
	gr_put_be32(raw + 16, h->pages);
	gr_put_be32(raw + 20, h->payload_bytes);
	gr_put_be64(raw + 24, h->number);
	gr_put_be32(raw + 32, h->zero_pages);
	memcpy(raw + 64, h->block, sizeof(h->block));
	for (uint32_t i = 0; i < h->pages + h->zero_pages; i++) {
		gr_put_be64(raw + GR_MULTIFD_FIXED_BYTES + (size_t)8 * i, h->offsets[i]);
	}
}

static int parse_flags(uint32_t flags, struct gr_multifd_header *h, struct gr_error *err)
{
	uint32_t method = (flags & GR_MULTIFD_METHODS) >> 1;

	if (flags & GR_MULTIFD_DEVICE_STATE) {
		return gr_error_set(err, -EOPNOTSUPP,
				    "a packet with the state of a device, which "
				    "cannot be received on a further channel");
	}
	if (flags & ~(uint32_t)(GR_MULTIFD_SYNC | GR_MULTIFD_METHODS)) {
		return gr_error_set(err, -EBADMSG, "a packet with the flags 0x%x", flags);
	}
	if ((method & (method - 1)) != 0) {
		return gr_error_set(err, -EOPNOTSUPP, "a packet compressed by method %u", method);
	}
	h->sync = (flags & GR_MULTIFD_SYNC) != 0;
	h->compression = (enum gr_multifd_compression)method;
	return 0;
}

static int parse_payload(uint32_t said, uint32_t page_bytes, struct gr_multifd_header *h,
			 struct gr_error *err)
{
	h->payload_bytes = h->pages * page_bytes;
	if (h->compression == GR_MULTIFD_NONE || h->pages == 0) {
		return 0;
	}
#ifndef GR_MUTANT_MULTIFD_PAYLOAD
	if (said == 0 || said > GR_MULTIFD_PAYLOAD_BYTES_MAX) {
		return gr_error_set(err, -EBADMSG, "a packet of %u pages in %u bytes", h->pages,
				    said);
	}
#endif
	h->payload_bytes = said;
	return 0;
}

/*
 * Packets have room for 512 KiB, so the room that a sender says tells the size of its pages; where
 * that is another one the headers are of another length, too. A packet without pages may say none.
 */
static int check_room(uint32_t room, uint32_t page_bytes, struct gr_error *err)
{
	uint32_t max = gr_multifd_pages_max(page_bytes);

#ifdef GR_MUTANT_MULTIFD_ROOM
	return 0;
#endif
	if (room == 0 || room == max) {
		return 0;
	}
	return gr_error_set(
		err, -EOPNOTSUPP,
		"a packet with room for %u pages, which makes them %u bytes, and not %u as in the "
		"stream",
		room, GR_MULTIFD_DATA_BYTES / room, page_bytes);
}

int gr_multifd_header_look(const uint8_t *raw, uint32_t page_bytes,
			   struct gr_multifd_header *ret_h, struct gr_error *err)
{
	uint32_t max = gr_multifd_pages_max(page_bytes), count;
	int rc = check_magic(raw, "a packet that", err);

	if (rc == 0) {
		rc = parse_flags(gr_get_be32(raw + 8), ret_h, err);
	}
	if (rc == 0) {
		rc = check_room(gr_get_be32(raw + 12), page_bytes, err);
	}
	if (rc < 0) {
		return rc;
	}
	ret_h->pages = gr_get_be32(raw + 16);
	ret_h->zero_pages = gr_get_be32(raw + 32);
#ifndef GR_MUTANT_MULTIFD_PAGES
	if (ret_h->pages > max || ret_h->zero_pages > max - ret_h->pages) {
		return gr_error_set(err, -EBADMSG,
				    "a packet of %u pages and %u zero pages, at most %u",
				    ret_h->pages, ret_h->zero_pages, max);
	}
#endif
	ret_h->number = gr_get_be64(raw + 24);
	rc = parse_payload(gr_get_be32(raw + 20), page_bytes, ret_h, err);
	if (rc < 0) {
		return rc;
	}
	count = ret_h->pages + ret_h->zero_pages;
	ret_h->block[0] = '\0';
	if (count == 0) {
		return 0;
	}
	memcpy(ret_h->block, raw + 64, sizeof(ret_h->block));
	if (ret_h->block[0] == '\0' || !memchr(ret_h->block, '\0', sizeof(ret_h->block))) {
		return bad(err, "a packet whose block has no name, or one that does not end");
	}
	for (uint32_t i = 0; i < GR_MIN(count, (uint32_t)GR_MULTIFD_PAGES_MAX); i++) {
		ret_h->offsets[i] = gr_get_be64(raw + GR_MULTIFD_FIXED_BYTES + (size_t)8 * i);
	}
	return 0;
}

int gr_multifd_header_parse(const uint8_t *raw, uint32_t page_bytes,
			    struct gr_multifd_header *ret_h, struct gr_error *err)
{
	int rc = gr_multifd_header_look(raw, page_bytes, ret_h, err);
	unsigned int method = rc < 0 ? 0 : (unsigned int)ret_h->compression;

	if (method > GR_MULTIFD_ZSTD) {
		return gr_error_set(err, -EOPNOTSUPP, "a packet compressed by method %u%s", method,
				    method == 4	   ? " (qpl)"
				    : method == 8  ? " (uadk)"
				    : method == 16 ? " (qatzip)"
						   : "");
	}
	return rc;
}

int gr_multifd_header_check(const struct gr_multifd_header *h, uint64_t used_bytes,
			    uint32_t page_bytes, struct gr_error *err)
{
#ifndef GR_MUTANT_MULTIFD_BOUNDS
	for (uint32_t i = 0; i < h->pages + h->zero_pages; i++) {
		uint64_t offset = h->offsets[i];

		if (!GR_IS_ALIGNED(offset, (uint64_t)page_bytes) || page_bytes > used_bytes ||
		    offset > used_bytes - page_bytes) {
			return gr_error_set(err, -EBADMSG,
					    "block '%s', page 0x%" PRIx64
					    ": not a page of a block of 0x%" PRIx64 " bytes",
					    h->block, offset, used_bytes);
		}
	}
#endif
	return 0;
}

enum gr_multifd_dialect gr_multifd_dialect_of(const char *machine)
{
	const char *version = strrchr(machine, '-');
	unsigned int major, minor;

	if (!version || sscanf(version, "-%3u.%3u", &major, &minor) != 2 || major >= 9) {
		return GR_MULTIFD_9_0;
	}
	return major == 8 && minor >= 1 ? GR_MULTIFD_8_1 : GR_MULTIFD_7_2;
}

int gr_multifd_check(const struct gr_multifd *params, struct gr_error *err)
{
	if (params->count == 0 || params->count > GR_MULTIFD_CHANNELS_MAX || !params->channels) {
		return gr_error_set(err, -EINVAL, "%u further channels; 1 to %d can be",
				    params->count, GR_MULTIFD_CHANNELS_MAX);
	}
	return gr_multifd_supports(params->compression, err);
}
