/* SPDX-License-Identifier: MIT */
/*
 * What the description says about the devices, and where their sections are. A section of
 * QEMU's has no length; but it begins with its name, which the description lists in order,
 * and between two of them stands "footer, header of the next", nine and more known bytes.
 */
#include "stream/json.h"
#include "stream/tail.h"
#include <errno.h>

enum { FOOTER_BYTES = 5, HEADER_BYTES = 5 /* type and section id */ };

static bool key_is(const char *key, size_t n, const char *word)
{
	return n == strlen(word) && memcmp(key, word, n) == 0;
}

/* One member of "devices". */
static bool parse_device(struct gr_json *j, struct gr_tail_device *d)
{
	bool first = true, more = true, has_name = false, has_instance = false;
	const char *key;
	size_t n;

	if (!gr_json_enter(j, '{')) {
		return false;
	}
	for (;;) {
		bool good;

		if (!gr_json_key(j, &first, &more, &key, &n)) {
			return false;
		}
		if (!more) {
			return has_name && has_instance && d->name[0];
		}
		if (key_is(key, n, "name")) {
			good = has_name = gr_json_string(j, d->name, sizeof(d->name));
		} else if (key_is(key, n, "instance_id")) {
			good = has_instance = gr_json_u32(j, &d->instance_id);
		} else {
			good = gr_json_skip(j);
		}
		if (!good) {
			return false;
		}
	}
}

struct device_list {
	struct gr_tail_device *p;
	size_t n, capacity;
};

/* 0, -EBADMSG, -ENOMEM or -E2BIG. */
static int parse_devices(struct gr_json *j, struct device_list *list)
{
	bool first = true, more = true;

	if (!gr_json_enter(j, '[')) {
		return -EBADMSG;
	}
	for (;;) {
		if (!gr_json_element(j, &first, &more)) {
			return -EBADMSG;
		}
		if (!more) {
			return 0;
		}
		if (list->n == GR_TAIL_DEVICES_MAX) {
			return -E2BIG;
		}
		if (list->n == list->capacity) {
			size_t capacity = 2 * list->capacity + 16;
			struct gr_tail_device *grown = realloc(list->p, capacity * sizeof(*grown));

			if (!grown) {
				return -ENOMEM;
			}
			list->p = grown;
			list->capacity = capacity;
		}
		memset(&list->p[list->n], 0, sizeof(list->p[list->n]));
		if (!parse_device(j, &list->p[list->n])) {
			return -EBADMSG;
		}
		list->n++;
	}
}

/* The object at the top, down to "devices". */
static int parse_description(struct gr_json *j, struct device_list *list)
{
	bool first = true, more = true, found = false;
	const char *key;
	size_t n;

	if (!gr_json_enter(j, '{')) {
		return -EBADMSG;
	}
	for (;;) {
		if (!gr_json_key(j, &first, &more, &key, &n)) {
			return -EBADMSG;
		}
		if (!more) {
			return found ? 0 : -EBADMSG;
		}
		if (key_is(key, n, "devices") && !found) {
			int code = parse_devices(j, list);

			if (code < 0) {
				return code;
			}
			found = true;
		} else if (!gr_json_skip(j)) {
			return -EBADMSG;
		}
	}
}

/* Whether the section of d begins here: name and instance behind type and id. */
static bool header_at(const struct gr_tail *t, size_t at, size_t end,
		      const struct gr_tail_device *d)
{
	size_t n = strlen(d->name);
	const uint8_t *p = t->data + at;

	return end - at >= HEADER_BYTES + 1 + n + 8 && p[0] == GR_SECTION_FULL &&
	       p[HEADER_BYTES] == n && memcmp(p + HEADER_BYTES + 1, d->name, n) == 0 &&
	       gr_get_be32(p + HEADER_BYTES + 1 + n) == d->instance_id;
}

static bool footer_at(const struct gr_tail *t, size_t at, uint32_t section_id)
{
	return t->data[at] == GR_SECTION_FOOTER && gr_get_be32(t->data + at + 1) == section_id;
}

/* Finds where the section of d, which begins at `at`, ends; next == NULL: it is the last. */
static size_t find_end(const struct gr_tail *t, size_t at, size_t end,
		       const struct gr_tail_device *d, const struct gr_tail_device *next)
{
	uint32_t id = gr_get_be32(t->data + at + 1);

	if (!next) {
		return end - d->data_at >= FOOTER_BYTES && footer_at(t, end - FOOTER_BYTES, id)
			       ? end
			       : 0;
	}
	for (size_t p = d->data_at; end - p >= FOOTER_BYTES; p++) {
		if (footer_at(t, p, id) && header_at(t, p + FOOTER_BYTES, end, next)) {
			return p + FOOTER_BYTES;
		}
	}
	return 0;
}

static void locate(const struct gr_tail *t, size_t end, struct device_list *list)
{
	size_t at = 0;

	for (size_t i = 0; i < list->n; i++) {
		struct gr_tail_device *d = &list->p[i];
		size_t name = strlen(d->name), next;

		if (!header_at(t, at, end, d)) {
			return;
		}
		d->data_at = at + HEADER_BYTES + 1 + name + 8;
		next = find_end(t, at, end, d, i + 1 < list->n ? d + 1 : NULL);
		if (next == 0) {
			return;
		}
		d->located = true;
		d->section_at = at;
		d->version = gr_get_be32(t->data + d->data_at - 4);
		d->data_bytes = next - FOOTER_BYTES - d->data_at;
		at = next;
	}
}

int gr_tail_devices(struct gr_tail *t, struct gr_tail_device **ret_devices, size_t *ret_count,
		    struct gr_error *err)
{
	struct device_list list = { NULL, 0, 0 };
	const char *text;
	struct gr_json j;
	size_t n;
	int code;

	text = gr_tail_description(t, &n);
	if (!text) {
		return gr_error_set(err, -ENODATA, "device state: there is no description");
	}
	j = gr_json(text, n);
	code = parse_description(&j, &list);
	if (code < 0) {
		free(list.p);
		return gr_error_set(err, code, "device state: the description cannot be read: %s",
				    code == -ENOMEM  ? "out of memory"
				    : code == -E2BIG ? "too many devices"
						     : "it has no proper list of devices");
	}
	locate(t, t->description, &list);
	for (size_t i = 0; i < list.n; i++) {
		if (!list.p[i].located) {
			list.p[i].data_at = 0;
		}
	}
	*ret_devices = list.p;
	*ret_count = list.n;
	return 0;
}

bool gr_tail_is_accounted(struct gr_tail *t)
{
	struct gr_tail_device *devices;
	size_t n;
	bool all;

	if (!gr_tail_is_complete(t) || gr_tail_devices(t, &devices, &n, NULL) < 0) {
		return false;
	}
	/* They are found one behind the other, and the last one up to the description. */
	all = n > 0 ? devices[n - 1].located : t->description == 0;
	free(devices);
	return all;
}
