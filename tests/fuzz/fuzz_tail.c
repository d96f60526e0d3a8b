/* SPDX-License-Identifier: MIT */
/* The device tail: completeness, the description, the list of devices, our own sections. */
#include "fuzz.h"
#include "stream_kit.h"

static void walk_own(struct gr_tail *t)
{
	struct gr_tail_section s;
	size_t cursor = 0, before = 0;

	while (gr_tail_section_next(t, &cursor, &s, NULL) > 0) {
		kit_check(cursor > before && cursor <= t->bytes);
		kit_check(s.data >= t->data && s.data + s.data_bytes <= t->data + t->bytes);
		before = cursor;
	}
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
	struct gr_tail at_once, in_two;
	struct gr_tail_device *d;
	size_t count, text_bytes, half = n ? data[0] % n : 0;

	gr_tail_init(&at_once, 0);
	gr_tail_init(&in_two, 0);
	kit_check(gr_tail_append(&at_once, data, n, NULL) == 0);
	kit_check(gr_tail_append(&in_two, data, half, NULL) == 0);
	(void)gr_tail_is_complete(&in_two);
	kit_check(gr_tail_append(&in_two, data + half, n - half, NULL) == 0);
	kit_check(gr_tail_is_complete(&at_once) == gr_tail_is_complete(&in_two));
	kit_check(gr_tail_sections_bytes(&at_once) == gr_tail_sections_bytes(&in_two));
	if (gr_tail_is_complete(&at_once)) {
		kit_check(gr_tail_description(&at_once, &text_bytes) != NULL);
		kit_check(gr_tail_sections_bytes(&at_once) + 6 + text_bytes == n);
		if (gr_tail_devices(&at_once, &d, &count, NULL) == 0) {
			for (size_t i = 0; i < count; i++) {
				kit_check(d[i].name[0] && d[i].data_at + d[i].data_bytes <= n);
			}
			if (gr_tail_is_accounted(&at_once)) {
				kit_check(count == 0 ? gr_tail_sections_bytes(&at_once) == 0
						     : d[count - 1].located);
			}
			free(d);
		}
	} else {
		kit_check(!gr_tail_is_accounted(&at_once));
	}
	/* Also where it is not ours: bounds are checked without trust in that. */
	walk_own(&at_once);
	gr_tail_destroy(&at_once);
	gr_tail_destroy(&in_two);
	return 0;
}
