/* SPDX-License-Identifier: MIT */
/* Pages that come as runs, as ranges or compressed: the reader delivers the same pages. */
#include "reader_kit.h"
#include <errno.h>

TEST(a_run_of_pages_comes_as_runs_and_never_waits_for_more_than_its_own_bytes)
{
	struct kit_bytes b = { 0 };
	struct kit_source s;
	struct gr_stream_reader *r;
	struct gr_stream_record rec;
	uint32_t got = 0, records = 0;

	kit_config(&b);
	kit_start(&b);
	kit_be64(&b, 0x400000 | 4);
	kit_str8(&b, "r");
	kit_be64(&b, 0x400000);
	kit_eos(&b);
	kit_part(&b, 2);
	for (uint32_t i = 0; i < 1000; i++) {
		kit_page(&b, i ? NULL : "r", (uint64_t)(i * 7 % 1000) << 12, i);
	}
	/* More than what is here would be an error: the reader must deliver before it asks. */
	s = (struct kit_source){ .data = b.p, .n = b.n, .error_at_end = -EIO };
	r = reader_of(&s);
	for (int i = 0; i < 4; i++) {
		ASSERT_EQ(gr_stream_next(r, &rec, NULL), 1);
	}
	while (got < 1000) {
		next_is(r, &rec, GR_STREAM_PAGES);
		for (uint32_t i = 0; i < rec.pages.count; i++, got++) {
			struct kit_bytes one = { 0 };

			ASSERT_EQ(rec.pages.offsets[i], (uint64_t)(got * 7 % 1000) << 12);
			kit_page(&one, NULL, 0, got);
			ASSERT_MEM_EQ(rec.pages.data + 4096 * (size_t)i, one.p + 8, 4096);
			kit_free(&one);
		}
		records++;
	}
	ASSERT_LT(records, 40u);
	ASSERT_EQ(gr_stream_next(r, &rec, NULL), -EIO);
	gr_stream_reader_free(r);
	kit_free(&b);
}

#ifdef GR_HAVE_ZLIB
/* Pages of two blocks, each as compress says; where not, as pages. */
static struct kit_trace three_pages(bool compressed, size_t piece_max)
{
	struct kit_bytes b = { 0 };
	struct kit_source s = { .piece_max = piece_max };
	struct kit_trace t;

	in_part(&b);
	kit_page(&b, "a", 0x3000, 1);
	for (uint32_t i = 0; i < 3; i++) {
		const char *id = i == 0 ? "bb" : NULL;

		if (compressed) {
			kit_compressed(&b, id, i << 12, i, 4096);
		} else {
			kit_page(&b, id, i << 12, i);
		}
	}
	kit_page(&b, NULL, 0x7000, 4);
	kit_eos(&b);
	kit_tail(&b);
	s.data = b.p;
	s.n = b.n;
	t = kit_trace(&s, 0);
	kit_free(&b);
	return t;
}

static void compressed_is(struct kit_bytes *b, int rc, const char *what)
{
	struct kit_trace t;

	kit_eos(b);
	kit_tail(b);
	t = kit_trace_bytes(b, 0);
	ASSERT_EQ(t.rc, rc);
	if (rc < 0) {
		ASSERT_HAS(t.err.msg, "block 'a', page 0x3000");
		ASSERT_HAS(t.err.msg, what);
	}
	kit_free(b);
}
#endif

TEST(compressed_pages_are_delivered_as_pages)
{
#ifdef GR_HAVE_ZLIB
	struct kit_trace plain = three_pages(false, 0);

	ASSERT_EQ(plain.rc, 0);
	for (size_t max = 0; max < 9000; max += max < 20 ? 1 : 397) {
		struct kit_trace t = three_pages(true, max);

		if (t.rc != 0) {
			FAIL("%s", t.err.msg);
		}
		ASSERT_EQ(t.pages, 5u);
		ASSERT_EQ(t.hash, plain.hash);
	}
#else
	SKIP("built without zlib");
#endif
}

TEST(compressed_pages_that_are_not_one_whole_page_are_refused)
{
#ifdef GR_HAVE_ZLIB
	static const char what[] = "not one page";
	struct kit_bytes b = { 0 };

	in_part(&b);
	kit_compressed(&b, "a", 0x3000, 1, 4096);
	compressed_is(&b, 0, NULL);
	in_part(&b);
	kit_compressed(&b, "a", 0x3000, 1, 4095); /* too short */
	compressed_is(&b, -EBADMSG, what);
	in_part(&b);
	kit_compressed(&b, "a", 0x3000, 1, 4096);
	b.p[b.n - 1] ^= 1; /* the checksum */
	compressed_is(&b, -EBADMSG, what);
	in_part(&b);
	kit_compressed(&b, "a", 0x3000, 1, 4000);
	b.p[b.n - 4 - 4000 - 5 - 2 - 1] += 1; /* a byte behind the end of it */
	kit_u8(&b, 0);
	compressed_is(&b, -EBADMSG, what);
	in_part(&b);
	kit_compressed(&b, "a", 0x3000, 1, 4096);
	b.p[b.n - 4 - 4096 - 5] = 0; /* not the last block: more is to come, and does not */
	compressed_is(&b, -EBADMSG, what);
	/* a run of deflate that would be 64 KiB of zeros */
	in_part(&b);
	kit_be64(&b, 0x3000 | 0x100);
	kit_str8(&b, "a");
	kit_be32(&b, 75);
	kit_raw(&b, "\x78\x9c\xed\xc1\x01\x0d\x00\x00\x00\xc2\xa0\xf7\x4f\x6d\x0e\x37\xa0", 17);
	for (int i = 0; i < 58; i++) {
		kit_u8(&b, 0);
	}
	compressed_is(&b, -EBADMSG, what);
#else
	SKIP("built without zlib");
#endif
}

/* Pages 1 to 14 of "a", as a range or each by itself, between other records. */
static void fourteen_pages(struct kit_bytes *b, bool range)
{
	enum { HEADER_BYTES = 8 };

	kit_two_blocks(b);
	kit_part(b, 2);
	kit_page(b, "bb", 0, 99);
	if (range) {
		kit_be64(b, 0x1000 | 0xc00);
		kit_str8(b, "a");
		kit_be64(b, 14 << 12);
	}
	for (uint32_t i = 1; i <= 14; i++) {
		struct kit_bytes page = { 0 };

		kit_page(&page, i == 1 ? "a" : NULL, (uint64_t)i << 12, i);
		if (range) {
			kit_raw(b, page.p + page.n - 4096, 4096);
		} else {
			kit_raw(b, page.p, page.n);
		}
		kit_free(&page);
	}
	kit_page(b, NULL, 0xf000, 15); /* the same block */
	kit_eos(b);
	kit_tail(b);
}

TEST(a_range_of_pages_is_its_pages_wherever_they_are_received)
{
	static const size_t pieces[] = { 0, 1, 61, 4096, 4103, 4104, 12000 };
	struct kit_bytes pages = { 0 }, range = { 0 };
	struct kit_trace want;

	fourteen_pages(&pages, false);
	fourteen_pages(&range, true);
	want = kit_trace_bytes(&pages, KIT_EXTENSIONS);
	ASSERT_EQ(want.rc, 0);
	ASSERT_EQ(want.pages, 16u);
	for (size_t i = 0; i < GR_ARRAY_SIZE(pieces); i++) {
		for (int memory = 0; memory < 2; memory++) {
			struct kit_source s = { .data = range.p,
						.n = range.n,
						.piece_max = pieces[i] };
			struct kit_trace got =
				kit_trace(&s, KIT_EXTENSIONS | (memory ? KIT_MEMORY : 0));

			ASSERT_EQ(got.rc, 0);
			ASSERT_EQ(got.pages, want.pages);
			ASSERT_EQ(got.hash, want.hash);
		}
	}
	kit_free(&pages);
	kit_free(&range);
}

TEST(a_range_that_breaks_off_says_where_whatever_it_is_received_into)
{
	struct kit_bytes b = { 0 };

	fourteen_pages(&b, true);
	for (size_t n = b.n - 15 * 4104; n < b.n - 4104; n += 611) {
		struct kit_bytes part = { .p = b.p, .n = n };
		struct kit_trace plain = kit_trace_bytes(&part, KIT_EXTENSIONS);
		struct kit_trace memory = kit_trace_bytes(&part, KIT_EXTENSIONS | KIT_MEMORY);
		char where[32];

		ASSERT_EQ(plain.rc, -EPIPE);
		(void)snprintf(where, sizeof(where), "byte %zu: ", n);
		ASSERT_HAS(plain.err.msg, where);
		ASSERT_STR_EQ(plain.err.msg, memory.err.msg);
	}
	kit_free(&b);
}

static uint8_t *count_asked(void *opaque, struct gr_stream_block *block, uint64_t offset)
{
	unsigned int *asked = opaque;

	(void)block, (void)offset;
	(*asked)++;
	return NULL;
}

TEST(no_memory_is_asked_for_pages_of_a_range_that_is_refused)
{
	struct kit_bytes b = { 0 };
	struct gr_stream_memory memory = { .page = count_asked };
	struct gr_stream_reader *r;
	struct gr_stream_record rec;
	unsigned int asked = 0;
	struct kit_source s;
	struct gr_error err;
	int rc;

	memory.opaque = &asked;
	kit_two_blocks(&b);
	kit_part(&b, 2);
	kit_be64(&b, 0xf000 | 0xc00);
	kit_str8(&b, "a");
	kit_be64(&b, 2 << 12); /* one page too many */
	for (int i = 0; i < 8192; i++) {
		kit_u8(&b, 0xee);
	}
	s = (struct kit_source){ .data = b.p, .n = b.n };
	r = reader_of(&s);
	gr_stream_reader_allow_extensions(r);
	gr_stream_reader_set_memory(r, &memory);
	while ((rc = gr_stream_next(r, &rec, &err)) > 0) {
		ASSERT((int)rec.kind != GR_STREAM_PAGES);
	}
	ASSERT_EQ(rc, -EBADMSG);
	ASSERT_HAS(err.msg, "block 'a', page 0xf000");
	ASSERT_EQ(asked, 0u);
	gr_stream_reader_free(r);
	kit_free(&b);
}

TEST_MAIN()
