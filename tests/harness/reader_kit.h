/* SPDX-License-Identifier: MIT */
/* For tests of the reader of streams: its records one by one, and beginnings of streams. */
#ifndef READER_KIT_H
#define READER_KIT_H

#include "harness.h"
#include "stream_kit.h"

static inline struct gr_stream_reader *reader_of(struct kit_source *s)
{
	struct gr_stream_source src = { kit_readv, s };
	struct gr_stream_reader *r;

	ASSERT_EQ(gr_stream_reader_create(&src, &r, NULL), 0);
	return r;
}

static inline void next_is(struct gr_stream_reader *r, struct gr_stream_record *rec,
			   enum gr_stream_record_kind kind)
{
	struct gr_error err = { 0 };
	int rc = gr_stream_next(r, rec, &err);

	if (rc != 1) {
		FAIL("no record: %d %s", rc, err.msg);
	}
	ASSERT_EQ((int)rec->kind, (int)kind);
}

static inline void in_part(struct kit_bytes *b)
{
	kit_two_blocks(b);
	kit_part(b, 2);
}

/* The configuration with x-ignore-shared in it, and START up to the list. */
static inline void shared_start(struct kit_bytes *b)
{
	static const char subsection[] =
		"\5\32configuration/capabilities\0\0\0\1\0\0\0\1\17x-ignore-shared";

	kit_config(b);
	kit_raw(b, subsection, sizeof(subsection) - 1);
	kit_start(b);
}

static inline void announce_entry(struct kit_bytes *b, const char *id, uint64_t incarnation,
				  uint64_t used, uint64_t max)
{
	kit_str8(b, id);
	kit_be64(b, incarnation);
	kit_be64(b, used);
	kit_be64(b, max);
	kit_be32(b, 4096);
	kit_be32(b, 5);
	kit_be64(b, 0x100000);
}

#endif
