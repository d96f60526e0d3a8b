/* SPDX-License-Identifier: MIT */
#include "stream/multifd_scan.h"
#include <errno.h>
#include <inttypes.h>
#include <string.h>

static size_t head_bytes(const struct gr_multifd_scan *s)
{
	return s->greeted ? gr_multifd_header_bytes(s->page_bytes) : GR_MULTIFD_GREETING_BYTES;
}

static int take_greeting(struct gr_multifd_scan *s, const uint8_t *raw, struct gr_error *err)
{
	struct gr_multifd_greeting g;
	int rc = gr_multifd_greeting_parse(raw, &g, err);

	if (rc == 0) {
		s->greeted = true;
		s->id = g.id;
	}
	return rc;
}

static int take_header(struct gr_multifd_scan *s, const uint8_t *raw, struct gr_error *err)
{
	struct gr_multifd_header h;
	int rc = gr_multifd_header_look(raw, s->page_bytes, &h, err);

	if (rc < 0) {
		return rc;
	}
	s->payload_bytes = h.payload_bytes;
	s->normal_pages += h.pages;
	s->zero_pages += h.zero_pages;
	s->syncs += h.sync;
	if (h.sync || h.pages + h.zero_pages > 0) {
		s->needed = s->bytes + h.payload_bytes;
	}
	return 0;
}

/* One greeting or header is whole; bytes is its end. */
static int take_head(struct gr_multifd_scan *s, const uint8_t *raw, struct gr_error *err)
{
	uint64_t at = s->bytes - head_bytes(s);
	int rc = s->greeted ? take_header(s, raw, err) : take_greeting(s, raw, err);

	if (rc < 0) {
		gr_error_prefix(err, "byte %" PRIu64 ": ", at);
	}
	return rc;
}

/* Part of a head, or all of it: then from where it is. Returns how much, or a negative errno. */
static ssize_t scan_head(struct gr_multifd_scan *s, const uint8_t *data, size_t n,
			 struct gr_error *err)
{
	size_t whole = head_bytes(s), part = GR_MIN(n, whole - s->raw_bytes);
	const uint8_t *raw = part == whole ? data : s->raw;
	int rc;

	s->bytes += part;
	if (part < whole) {
		memcpy(s->raw + s->raw_bytes, data, part);
		s->raw_bytes += part;
		if (s->raw_bytes < whole) {
			return (ssize_t)part;
		}
		s->raw_bytes = 0;
	}
	rc = take_head(s, raw, err);
	return rc < 0 ? rc : (ssize_t)part;
}

int gr_multifd_scan(struct gr_multifd_scan *s, const uint8_t *data, size_t n, struct gr_error *err)
{
	while (n > 0) {
		size_t part = (size_t)GR_MIN((uint64_t)n, s->payload_bytes);

		s->payload_bytes -= part;
		s->bytes += part;
		if (part == 0) {
			ssize_t head = scan_head(s, data, n, err);

			if (head < 0) {
				return (int)head;
			}
			part = (size_t)head;
		}
		data += part;
		n -= part;
	}
	return 0;
}

size_t gr_multifd_scan_room(const struct gr_multifd_scan *s, size_t most)
{
	return s->greeted ? most : GR_MULTIFD_GREETING_BYTES - s->raw_bytes;
}

int gr_multifd_scan_end(const struct gr_multifd_scan *s, struct gr_error *err)
{
	const char *inside = !s->greeted	    ? "its greeting"
			     : s->raw_bytes > 0	    ? "a header"
			     : s->payload_bytes > 0 ? "a packet's pages"
						    : NULL;

	return inside ? gr_error_set(err, -EPIPE, "byte %" PRIu64 ": it ends inside of %s",
				     s->bytes, inside)
		      : 0;
}
