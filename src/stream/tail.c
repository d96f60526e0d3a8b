/* SPDX-License-Identifier: MIT */
/* Gathers a device tail and knows when its description is complete. */
#include "stream/tail.h"
#include "stream/json.h"
#include <errno.h>

enum {
	/* 00 06 be32 length, then at least "{}" */
	FRAME_BYTES = 6,
	/* what a candidate is recognised by: the frame and the first character */
	PATTERN_BYTES = FRAME_BYTES + 1,
	GROW_BYTES = 64 << 10,
};

void gr_tail_init(struct gr_tail *t, size_t bytes_max)
{
	memset(t, 0, sizeof(*t));
	t->bytes_max = bytes_max ? bytes_max : GR_TAIL_BYTES_MAX_DEFAULT;
}

void gr_tail_destroy(struct gr_tail *t)
{
	free(t->data);
	gr_tail_init(t, t->bytes_max);
}

/*
 * Notes places that look like the start of a description. Device data may look like it,
 * too, hence several; what ends before the last byte cannot be it and makes room. So does the
 * oldest one if need be: data comes before the description, whose text has no zero bytes.
 */
static void scan(struct gr_tail *t)
{
	while (t->bytes >= PATTERN_BYTES && t->scanned <= t->bytes - PATTERN_BYTES) {
		const uint8_t *p = t->data + t->scanned;
		size_t length, end;
		unsigned int kept = 0;

		if (p[0] != GR_SECTION_EOF || p[1] != GR_SECTION_DESCRIPTION || p[6] != '{') {
			t->scanned++;
			continue;
		}
		length = gr_get_be32(p + 2);
		end = t->scanned + FRAME_BYTES + length;
		for (unsigned int i = 0; i < t->candidate_count; i++) {
			if (t->candidates[i].end >= t->bytes) {
				t->candidates[kept++] = t->candidates[i];
			}
		}
		t->candidate_count = kept;
		if (length <= GR_TAIL_DESCRIPTION_BYTES_MAX && end >= t->bytes) {
			if (kept == GR_TAIL_CANDIDATES_MAX) {
				kept--;
				memmove(t->candidates, t->candidates + 1,
					kept * sizeof(t->candidates[0]));
				t->candidate_count = kept;
			}
			t->candidates[kept].start = t->scanned;
			t->candidates[kept].end = end;
			t->candidate_count++;
		}
		t->scanned++;
	}
}

int gr_tail_append(struct gr_tail *t, const void *data, size_t n, struct gr_error *err)
{
	size_t wanted, capacity;
	uint8_t *grown;

	if (__builtin_add_overflow(t->bytes, n, &wanted) || wanted > t->bytes_max) {
		return gr_error_set(err, -EFBIG, "device state: more than %zu bytes", t->bytes_max);
	}
	if (wanted > t->capacity) {
		capacity = GR_MAX(2 * t->capacity, wanted + GROW_BYTES);
		capacity = GR_MIN(capacity, t->bytes_max);
		grown = realloc(t->data, capacity);
		if (!grown) {
			return gr_error_set(err, -ENOMEM, "device state: no memory for %zu bytes",
					    capacity);
		}
		t->data = grown;
		t->capacity = capacity;
	}
	if (n) {
		memcpy(t->data + t->bytes, data, n);
	}
	t->bytes = wanted;
	t->checked = false;
	scan(t);
	return 0;
}

bool gr_tail_is_complete(struct gr_tail *t)
{
	if (t->checked) {
		return t->complete;
	}
	t->checked = true;
	t->complete = false;
	for (unsigned int i = 0; i < t->candidate_count && !t->complete; i++) {
		size_t text = t->candidates[i].start + FRAME_BYTES;
		struct gr_json j;

#ifdef GR_MUTANT_TAIL_END
		if (t->candidates[i].end > t->bytes + 1) {
			continue;
		}
		t->complete = true;
		t->description = t->candidates[i].start;
		break;
#endif
		if (t->candidates[i].end != t->bytes) {
			continue;
		}
		j = gr_json((const char *)t->data + text, t->bytes - text);
		if (gr_json_skip_last(&j)) {
			t->complete = true;
			t->description = t->candidates[i].start;
		}
	}
	return t->complete;
}

int gr_tail_finish(struct gr_tail *t, bool allow_unterminated, struct gr_error *err)
{
	if (gr_tail_is_complete(t) || (allow_unterminated && t->bytes > 0)) {
		return 0;
	}
	return gr_error_set(
		err, -EPIPE,
		"the stream ends at byte %zu of its device state, which is not complete: "
		"no description ends with the last byte",
		t->bytes);
}

const char *gr_tail_description(struct gr_tail *t, size_t *ret_bytes)
{
	if (!gr_tail_is_complete(t)) {
		return NULL;
	}
	*ret_bytes = t->bytes - t->description - FRAME_BYTES;
	return (const char *)t->data + t->description + FRAME_BYTES;
}

size_t gr_tail_sections_bytes(struct gr_tail *t)
{
	return gr_tail_is_complete(t) ? t->description : t->bytes;
}
