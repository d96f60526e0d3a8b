/* SPDX-License-Identifier: MIT */
/*
 * Tails of our own machines: QEMU's frame, a be32 length in front of each device's data,
 * and "writer": "guestram" in the description.
 */
#include "stream/json.h"
#include "stream/tail.h"
#include <errno.h>
#include <stdio.h>

static const char writer_name[] = "guestram";

void gr_tail_builder_init(struct gr_tail_builder *b, uint32_t page_bytes)
{
	memset(b, 0, sizeof(*b));
	gr_tail_init(&b->tail, 0);
	gr_tail_init(&b->json, GR_TAIL_DESCRIPTION_BYTES_MAX);
	b->page_bytes = page_bytes;
}

void gr_tail_builder_destroy(struct gr_tail_builder *b)
{
	gr_tail_destroy(&b->tail);
	gr_tail_destroy(&b->json);
}

static void put(struct gr_tail_builder *b, struct gr_tail *to, const void *data, size_t n)
{
	if (b->err.code == 0) {
		(void)!gr_tail_append(to, data, n, &b->err);
	}
}

static void put_be32(struct gr_tail_builder *b, uint32_t v)
{
	uint8_t out[4];

	gr_put_be32(out, v);
	put(b, &b->tail, out, sizeof(out));
}

static bool is_plain(const char *name)
{
	size_t n = 0;

	for (; name[n]; n++) {
		if (name[n] < ' ' || name[n] > '~' || name[n] == '"' || name[n] == '\\') {
			return false;
		}
	}
	return n > 0 && n <= GR_STREAM_ID_BYTES_MAX;
}

void gr_tail_builder_add(struct gr_tail_builder *b, uint32_t section_id, const char *name,
			 uint32_t instance_id, uint32_t version, const void *data, size_t n)
{
	static const uint8_t full = GR_SECTION_FULL, footer = GR_SECTION_FOOTER;
	char json[GR_STREAM_ID_BYTES_MAX + 128];
	uint8_t name_bytes = (uint8_t)strlen(name);
	int len;

	if (b->err.code == 0 && (!is_plain(name) || n > UINT32_MAX)) {
		(void)gr_error_set(&b->err, -EINVAL,
				   "device '%s': the name or %zu bytes cannot be sent", name, n);
	}
	if (b->err.code) {
		return;
	}
	put(b, &b->tail, &full, 1);
	put_be32(b, section_id);
	put(b, &b->tail, &name_bytes, 1);
	put(b, &b->tail, name, name_bytes);
	put_be32(b, instance_id);
	put_be32(b, version);
	put_be32(b, (uint32_t)n);
	put(b, &b->tail, data, n);
	put(b, &b->tail, &footer, 1);
	put_be32(b, section_id);
	len = snprintf(json, sizeof(json),
		       "%s{\"name\": \"%s\", \"instance_id\": %u, \"version\": %u, \"size\": %zu}",
		       b->count ? ", " : "", name, instance_id, version, n + 4);
	put(b, &b->json, json, (size_t)len);
	b->count++;
}

void gr_tail_builder_pass(struct gr_tail_builder *b, const uint8_t *data, size_t n,
			  size_t sections_bytes)
{
	GR_ASSERT(b->count == 0 && !b->end);
	put(b, &b->tail, data, sections_bytes);
	b->end = data + sections_bytes;
	b->end_bytes = n - sections_bytes;
}

static void put_end(struct gr_tail_builder *b)
{
	static const uint8_t frame[2] = { GR_SECTION_EOF, GR_SECTION_DESCRIPTION };
	char head[128];
	int n = snprintf(head, sizeof(head),
			 "{\"page_size\": %u, \"writer\": \"%s\", \"devices\": [", b->page_bytes,
			 writer_name);

	put(b, &b->tail, frame, sizeof(frame));
	put_be32(b, (uint32_t)((size_t)n + b->json.bytes + 2));
	put(b, &b->tail, head, (size_t)n);
	put(b, &b->tail, b->json.data, b->json.bytes);
	put(b, &b->tail, "]}", 2);
}

int gr_tail_builder_finish(struct gr_tail_builder *b, const uint8_t **ret_data, size_t *ret_bytes,
			   struct gr_error *err)
{
	if (b->end) {
		put(b, &b->tail, b->end, b->end_bytes);
	} else {
		put_end(b);
	}
	if (b->err.code) {
		if (err) {
			*err = b->err;
		}
		return b->err.code;
	}
	*ret_data = b->tail.data;
	*ret_bytes = b->tail.bytes;
	return 0;
}

bool gr_tail_is_ours(struct gr_tail *t)
{
	bool first = true, more = true;
	const char *text, *key;
	struct gr_json j;
	size_t n;

	text = gr_tail_description(t, &n);
	if (!text) {
		return false;
	}
	j = gr_json(text, n);
	if (!gr_json_enter(&j, '{')) {
		return false;
	}
	while (gr_json_key(&j, &first, &more, &key, &n) && more) {
		char value[sizeof(writer_name)];

		if (n == strlen("writer") && memcmp(key, "writer", n) == 0) {
			return gr_json_string(&j, value, sizeof(value)) &&
			       strcmp(value, writer_name) == 0;
		}
		if (!gr_json_skip(&j)) {
			return false;
		}
	}
	return false;
}

static int bad(size_t at, const char *what, struct gr_error *err)
{
	return gr_error_set(err, -EBADMSG, "device state, byte %zu: %s", at, what);
}

int gr_tail_section_next(struct gr_tail *t, size_t *cursor, struct gr_tail_section *section,
			 struct gr_error *err)
{
	size_t at = *cursor, end = gr_tail_sections_bytes(t), left = end - at, name, data;
	const uint8_t *p;

	if (left == 0) {
		return 0;
	}
	p = t->data + at;
	if (p[0] != GR_SECTION_FULL || left < 6) {
		return bad(at, "no device section begins here", err);
	}
	name = p[5];
	if (name == 0 || left - 6 < name || left - 6 - name < 12) {
		return bad(at, "the header of a device section is cut off", err);
	}
	data = gr_get_be32(p + 6 + name + 8);
	left -= 6 + name + 12;
	if (left < 5 || data > left - 5) {
		return bad(at, "a device section is longer than the device state", err);
	}
	section->section_id = gr_get_be32(p + 1);
	section->name = (const char *)p + 6;
	section->name_bytes = name;
	section->instance_id = gr_get_be32(p + 6 + name);
	section->version = gr_get_be32(p + 6 + name + 4);
	section->data = p + 6 + name + 12;
	section->data_bytes = data;
	p = section->data + data;
	if (p[0] != GR_SECTION_FOOTER || gr_get_be32(p + 1) != section->section_id) {
		return bad((size_t)(p - t->data), "the footer of the device section is missing",
			   err);
	}
	*cursor = (size_t)(p + 5 - t->data);
	return 1;
}
