/* SPDX-License-Identifier: MIT */
/* The reader of QEMU's stream: what is good is delivered, in whatever pieces it comes. */
#include "reader_kit.h"
#include <errno.h>

/*
 * The beginning of a stream of a 16 MiB pc-i440fx-7.2, as QEMU 7.2 lays it out: header,
 * configuration, START with six blocks, then PART with two zero pages.
 */
static const uint8_t golden[] = {
	0x51, 0x45, 0x56, 0x4d, 0, 0, 0, 3, 0x07, 0, 0, 0, 0x0d, 'p', 'c', '-', 'i', '4', '4', '0',
	'f', 'x', '-', '7', '.', '2',
	/* 0x1a START */
	0x01, 0, 0, 0, 2, 3, 'r', 'a', 'm', 0, 0, 0, 0, 0, 0, 0, 4,
	/* 0x2b total and list */
	0, 0, 0, 0, 0x01, 0x08, 0x20, 0x04, 6, 'p', 'c', '.', 'r', 'a', 'm', 0, 0, 0, 0, 1, 0, 0, 0,
	20, '/', 'r', 'o', 'm', '@', 'e', 't', 'c', '/', 'a', 'c', 'p', 'i', '/', 't', 'a', 'b',
	'l', 'e', 's', 0, 0, 0, 0, 0, 2, 0, 0, 7, 'p', 'c', '.', 'b', 'i', 'o', 's', 0, 0, 0, 0, 0,
	4, 0, 0, 6, 'p', 'c', '.', 'r', 'o', 'm', 0, 0, 0, 0, 0, 2, 0, 0, 21, '/', 'r', 'o', 'm',
	'@', 'e', 't', 'c', '/', 't', 'a', 'b', 'l', 'e', '-', 'l', 'o', 'a', 'd', 'e', 'r', 0, 0,
	0, 0, 0, 0, 0x10, 0, 18, '/', 'r', 'o', 'm', '@', 'e', 't', 'c', '/', 'a', 'c', 'p', 'i',
	'/', 'r', 's', 'd', 'p', 0, 0, 0, 0, 0, 0, 0x10, 0,
	/* EOS, footer */
	0, 0, 0, 0, 0, 0, 0, 0x10, 0x7e, 0, 0, 0, 2,
	/* 0xc4 PART, zero page 0 with id, zero page 0x1000 of the same block */
	0x02, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 2, 6, 'p', 'c', '.', 'r', 'a', 'm', 0, 0, 0, 0, 0, 0,
	0, 0x10, 0x22, 0
};

TEST(the_beginning_of_qemus_stream_is_understood)
{
	struct kit_source s = { .data = golden, .n = sizeof(golden) };
	struct gr_stream_reader *r = reader_of(&s);
	struct gr_stream_record rec;
	struct gr_error err = { 0 };

	next_is(r, &rec, GR_STREAM_CONFIG);
	ASSERT_STR_EQ(rec.config.machine, "pc-i440fx-7.2");
	ASSERT_EQ(rec.config.raw_bytes, (size_t)0x1a);
	ASSERT_MEM_EQ(rec.config.raw, golden, 0x1a);
	ASSERT_EQ(rec.config.page_bytes, 4096u);
	next_is(r, &rec, GR_STREAM_RAM_START);
	ASSERT_EQ(rec.byte_offset, (uint64_t)0x1a);
	ASSERT_EQ(rec.ram_start.section_id, 2u);
	next_is(r, &rec, GR_STREAM_BLOCKS);
	ASSERT_EQ(rec.byte_offset, (uint64_t)0x2b);
	ASSERT_EQ(rec.blocks.total_bytes, (uint64_t)0x1082000);
	ASSERT_EQ(rec.blocks.count, 6u);
	ASSERT_STR_EQ(gr_stream_reader_block(r, 0)->id, "pc.ram");
	ASSERT_EQ(gr_stream_reader_block(r, 0)->used_bytes, (uint64_t)0x1000000);
	ASSERT_STR_EQ(gr_stream_reader_block(r, 5)->id, "/rom@etc/acpi/rsdp");
	next_is(r, &rec, GR_STREAM_EOS);
	ASSERT_EQ((int)rec.eos.section, (int)GR_SECTION_START);
	next_is(r, &rec, GR_STREAM_ZERO);
	ASSERT_EQ(rec.byte_offset, (uint64_t)0xc4 + 5);
	ASSERT_EQ(rec.zero.block, 0u);
	ASSERT_EQ(rec.zero.offset, 0u);
	ASSERT_EQ(rec.zero.bytes, 0x2000u);
	ASSERT_EQ(gr_stream_next(r, &rec, &err), -EPIPE);
	ASSERT_HAS(err.msg, "byte 226: the stream ends inside section 'ram'");
	gr_stream_reader_free(r);
}

/* A good stream that uses everything QEMU sends. */
static void everything(struct kit_bytes *b)
{
	kit_config(b);
	kit_u8(b, 8); /* OPEN_RETURN_PATH, PING 1 */
	kit_be16(b, 1);
	kit_be16(b, 0);
	kit_u8(b, 8);
	kit_be16(b, 2);
	kit_be16(b, 4);
	kit_be32(b, 1);
	kit_start(b);
	kit_be64(b, 0x18000 | 4);
	kit_str8(b, "a");
	kit_be64(b, 0x10000);
	kit_str8(b, "bb");
	kit_be64(b, 0x8000);
	kit_eos(b);
	kit_part(b, 2);
	kit_page(b, "a", 0x3000, 1);
	kit_page(b, NULL, 0x4000, 2);
	kit_page(b, NULL, 0xf000, 3);
	kit_zero(b, NULL, 0x1000, 0);
	kit_zero(b, NULL, 0x2000, 0);
	kit_page(b, "bb", 0x7000, 4);
	kit_page(b, "bb", 0x6000, 5); /* the id again */
	kit_eos(b);
	kit_part(b, 2); /* an empty one */
	kit_eos(b);
	kit_part(b, 2);
	kit_zero(b, NULL, 0x5000, 7); /* CONTINUE across sections, fill not 0 */
	kit_be64(b, 0x7000 | 0x60);   /* XBZRLE | CONTINUE */
	kit_u8(b, 1);
	kit_be16(b, 3);
	kit_raw(b, "\5\1\11", 3);
	kit_eos(b);
	kit_part(b, 3);
	kit_page(b, "a", 0, 6);
	kit_eos(b);
	kit_u8(b, 8); /* SWITCHOVER_START of QEMU 10 */
	kit_be16(b, 11);
	kit_be16(b, 0);
	kit_tail(b);
}

TEST(everything_that_qemu_sends_is_delivered)
{
	struct kit_bytes b = { 0 };
	struct kit_trace t;

	everything(&b);
	t = kit_trace_bytes(&b, 0);
	if (t.rc != 0) {
		FAIL("%s", t.err.msg);
	}
	ASSERT_EQ(t.pages, 6u);
	ASSERT_EQ(t.zeros, 3u);
	ASSERT_EQ(t.deltas, 1u);
	ASSERT_EQ(t.eos, 5u);
	ASSERT_EQ(t.commands, 3u);
	kit_free(&b);
}

TEST(short_reads_of_any_length_give_the_same_records)
{
	struct kit_bytes b = { 0 };
	struct kit_trace whole, pieces;

	everything(&b);
	whole = kit_trace_bytes(&b, 0);
	ASSERT_EQ(whole.rc, 0);
	for (size_t max = 1; max < 9000; max += max < 20 ? 1 : 97) {
		struct kit_source s = { .data = b.p, .n = b.n, .piece_max = max, .seed = max };

		pieces = kit_trace(&s, max & 1 ? KIT_NO_STAGING : 0);
		if (pieces.rc != 0 || pieces.hash != whole.hash) {
			FAIL("pieces of up to %zu: %d %s", max, pieces.rc, pieces.err.msg);
		}
	}
	kit_free(&b);
}

TEST(every_proper_prefix_is_refused)
{
	struct kit_bytes b = { 0 };

	everything(&b);
	for (size_t n = 0; n < b.n; n++) {
		/* inside of pages one byte is like the other */
		struct kit_source s = { .data = b.p, .n = n, .piece_max = n & 1 ? 4500 : 0 };
		struct kit_trace t;

		if (n > 1000 && n < b.n - 1000 && n % 61) {
			continue;
		}
		t = kit_trace(&s, 0);
		if (t.rc >= 0) {
			FAIL("%zu of %zu bytes were accepted", n, b.n);
		}
		ASSERT_EQ(t.rc, -EPIPE);
		ASSERT_HAS(t.err.msg, "byte ");
	}
	kit_free(&b);
}

TEST(every_flipped_bit_is_an_error_or_a_stream)
{
	struct kit_bytes b = { 0 };
	size_t stride = test_under_tsan() ? 7 : 1; /* one thread only: nothing for TSan to see */
	unsigned int errors = 0;

	everything(&b);
	for (size_t bit = 0; bit < 8 * b.n; bit += stride) {
		struct kit_trace t;

		if (bit / 8 > 500 && bit / 8 < b.n - 500 && bit % 257) {
			continue;
		}
		b.p[bit / 8] ^= (uint8_t)(1 << bit % 8);
		t = kit_trace_bytes(&b, bit & 1 ? KIT_EXTENSIONS : 0);
		errors += t.rc < 0;
		b.p[bit / 8] ^= (uint8_t)(1 << bit % 8);
	}
	ASSERT_GT(errors, 500u / stride);
	kit_free(&b);
}

TEST(every_record_is_delivered_before_the_byte_after_it_is_needed)
{
	struct kit_bytes b = { 0 };
	struct kit_trace whole;

	everything(&b);
	whole = kit_trace_bytes(&b, 0);
	/* Cut behind each record: everything before the cut must have come out. */
	for (uint64_t want = 1; want < whole.records - 1; want++) {
		struct kit_source s = { .data = b.p, .n = b.n };
		struct gr_stream_reader *r = reader_of(&s);
		struct gr_stream_record rec;
		uint64_t cut, got = 0;

		gr_stream_reader_disable_staging(r);
		for (uint64_t i = 0; i < want; i++) {
			ASSERT_EQ(gr_stream_next(r, &rec, NULL), 1);
		}
		cut = gr_stream_reader_offset(r);
		gr_stream_reader_free(r);
		/* the first one needs one byte more: whether a configuration follows */
		cut += want == 1;
		s = (struct kit_source){ .data = b.p, .n = (size_t)cut, .error_at_end = -EIO };
		r = reader_of(&s);
		while (gr_stream_next(r, &rec, NULL) == 1) {
			got++;
		}
		ASSERT_GT(got, 0u);
		ASSERT_EQ(gr_stream_reader_offset(r), want == 1 ? cut - 1 : cut);
		gr_stream_reader_free(r);
	}
	kit_free(&b);
}

TEST(with_x_ignore_shared_each_block_of_the_list_has_an_address)
{
	struct gr_stream_source src;
	struct gr_stream_reader *r;
	struct gr_stream_record rec;
	struct kit_bytes b = { 0 };
	struct kit_source s;

	shared_start(&b);
	kit_be64(&b, 0x18000 | 4);
	kit_str8(&b, "a");
	kit_be64(&b, 0x10000);
	kit_be64(&b, 0x100000);
	kit_str8(&b, "bb");
	kit_be64(&b, 0x8000);
	kit_be64(&b, 0);
	kit_eos(&b);
	kit_part(&b, 3);
	kit_zero(&b, "bb", 0x7000, 0);
	kit_eos(&b);
	kit_tail(&b);
	s = (struct kit_source){ .data = b.p, .n = b.n };
	src = (struct gr_stream_source){ kit_readv, &s };
	ASSERT_EQ(gr_stream_reader_create(&src, &r, NULL), 0);
	gr_stream_reader_allow_ignore_shared(r);
	ASSERT_EQ(gr_stream_next(r, &rec, NULL), 1);
	ASSERT(rec.kind == GR_STREAM_CONFIG && rec.config.ignore_shared);
	ASSERT_EQ(gr_stream_next(r, &rec, NULL), 1);
	ASSERT_EQ(gr_stream_next(r, &rec, NULL), 1);
	ASSERT(rec.kind == GR_STREAM_BLOCKS);
	ASSERT_EQ(gr_stream_reader_block(r, 0)->gpa, 0x100000u);
	ASSERT_EQ(gr_stream_reader_block(r, 1)->gpa, 0u);
	ASSERT_EQ(gr_stream_reader_block(r, 1)->used_bytes, 0x8000u);
	gr_stream_reader_free(r);
	for (size_t n = 0; n <= b.n; n++) {
		struct kit_source cut = { .data = b.p, .n = n };
		struct kit_trace t = kit_trace(&cut, KIT_SHARED);

		ASSERT_EQ(t.rc, n == b.n ? 0 : -EPIPE);
	}
	kit_free(&b);
}

TEST(an_announcement_is_the_complete_new_list)
{
	struct kit_bytes b = { 0 };
	struct kit_source s;
	struct gr_stream_reader *r;
	struct gr_stream_record rec;
	int mine;

	kit_two_blocks(&b);
	kit_part(&b, 2);
	kit_be64(&b, (2 << 12) | 0x800); /* a goes on, c is new, bb is gone */
	announce_entry(&b, "a", 11, 0x10000, 0x20000);
	announce_entry(&b, "c", 12, 0x1000, 0x1000);
	kit_page(&b, "c", 0, 1);
	kit_be64(&b, (2 << 12) | 0x800); /* a is another block of that name, d is new */
	announce_entry(&b, "a", 13, 0x1000, 0x1000);
	announce_entry(&b, "d", 14, 0x1000, 0x1000);
	kit_be64(&b, 0x0 | 0x420); /* CONTINUE: no block is current after an announcement */
	s = (struct kit_source){ .data = b.p, .n = b.n };
	r = reader_of(&s);
	gr_stream_reader_allow_extensions(r);
	for (int i = 0; i < 4; i++) {
		ASSERT_EQ(gr_stream_next(r, &rec, NULL), 1);
	}
	gr_stream_reader_block(r, 0)->user = &mine;
	gr_stream_reader_block(r, 1)->user = &mine;
	next_is(r, &rec, GR_STREAM_ANNOUNCE);
	ASSERT_EQ(rec.blocks.count, 3u);
	ASSERT_EQ(rec.blocks.total_bytes, (uint64_t)0x11000);
	ASSERT(gr_stream_reader_block(r, 0)->alive);
	ASSERT_PTR_EQ(gr_stream_reader_block(r, 0)->user, &mine);
	ASSERT_EQ(gr_stream_reader_block(r, 0)->incarnation, (uint64_t)11);
	ASSERT_EQ(gr_stream_reader_block(r, 0)->max_bytes, (uint64_t)0x20000);
	ASSERT_EQ(gr_stream_reader_block(r, 0)->gpa, (uint64_t)0x100000);
	ASSERT_EQ(gr_stream_reader_block(r, 0)->flags, 5u);
	ASSERT(!gr_stream_reader_block(r, 1)->alive);
	ASSERT_PTR_EQ(gr_stream_reader_block(r, 1)->user, &mine);
	ASSERT_STR_EQ(gr_stream_reader_block(r, 2)->id, "c");
	gr_stream_reader_block(r, 1)->user = NULL; /* bb: let go */
	next_is(r, &rec, GR_STREAM_PAGES);
	ASSERT_EQ(rec.pages.block, 2u);
	next_is(r, &rec, GR_STREAM_ANNOUNCE);
	ASSERT(!gr_stream_reader_block(r, 0)->alive); /* the old a, its user still there */
	ASSERT_PTR_EQ(gr_stream_reader_block(r, 0)->user, &mine);
	ASSERT_STR_EQ(gr_stream_reader_block(r, 1)->id, "a"); /* bb's entry was free */
	ASSERT_EQ(gr_stream_reader_block(r, 1)->incarnation, (uint64_t)13);
	ASSERT(!gr_stream_reader_block(r, 2)->alive);
	ASSERT_STR_EQ(gr_stream_reader_block(r, 3)->id, "d");
	ASSERT_EQ(gr_stream_next(r, &rec, NULL), -EBADMSG);
	gr_stream_reader_free(r);
	kit_free(&b);
}

TEST(an_announcement_says_which_file_a_block_is)
{
	struct kit_bytes b = { 0 };
	struct gr_stream_record rec;
	struct gr_stream_reader *r;
	struct kit_source s;
	const struct gr_stream_block *entry;

	in_part(&b);
	kit_be64(&b, (2 << 12) | 0x800);
	announce_entry(&b, "a", 1, 0x10000, 0x10000);
	b.p[b.n - 12] |= 0x80; /* the flags' highest bit: what follows is there */
	for (int i = 0; i < 16; i++) {
		kit_u8(&b, (uint8_t)(0xb0 + i));
	}
	kit_be64(&b, 0x11);
	kit_be64(&b, 0x22);
	kit_be64(&b, 0x3000);
	announce_entry(&b, "bb", 2, 0x2000, 0x2000);
	s = (struct kit_source){ .data = b.p, .n = b.n };
	r = reader_of(&s);
	gr_stream_reader_allow_extensions(r);
	do {
		ASSERT_EQ(gr_stream_next(r, &rec, NULL), 1);
	} while (rec.kind != GR_STREAM_ANNOUNCE);
	entry = gr_stream_reader_block(r, 0);
	ASSERT_EQ(entry->flags, 5u);
	ASSERT_EQ(entry->file.boot[0], 0xb0);
	ASSERT_EQ(entry->file.boot[15], 0xbf);
	ASSERT_EQ(entry->file.device, (uint64_t)0x11);
	ASSERT_EQ(entry->file.inode, (uint64_t)0x22);
	ASSERT_EQ(entry->file_offset, (uint64_t)0x3000);
	ASSERT_EQ(gr_stream_reader_block(r, 1)->file.boot[0], 0); /* nothing was said of it */
	gr_stream_reader_free(r);
	kit_free(&b);
}

TEST(the_page_size_of_the_configuration_holds)
{
	struct kit_bytes b = { 0 };
	struct kit_trace t;
	static uint8_t page[65536];

	kit_raw(&b, "QEVM\0\0\0\3\7\0\0\0\1p", 14);
	kit_raw(&b, "\5\36configuration/target-page-bits\0\0\0\1\0\0\0\20", 40);
	kit_start(&b);
	kit_be64(&b, 0x100000 | 4);
	kit_str8(&b, "a");
	kit_be64(&b, 0x100000);
	kit_eos(&b);
	kit_part(&b, 2);
	for (unsigned int i = 0; i < 16; i++) {
		kit_be64(&b, (i << 16) | 8 | (i ? 0x20 : 0));
		if (i == 0) {
			kit_str8(&b, "a");
		}
		memset(page, (int)i, sizeof(page));
		kit_raw(&b, page, sizeof(page));
	}
	kit_eos(&b);
	kit_tail(&b);
	t = kit_trace_bytes(&b, 0);
	if (t.rc != 0) {
		FAIL("%s", t.err.msg);
	}
	ASSERT_EQ(t.pages, 16u);
	for (size_t max = 1; max < 300000; max = max * 3 + 1) {
		struct kit_source s = { .data = b.p, .n = b.n, .piece_max = max };

		ASSERT_EQ(kit_trace(&s, 0).hash, t.hash);
	}
	kit_free(&b);
}

TEST(a_stream_without_configuration_section_is_accepted)
{
	struct kit_bytes b = { 0 };
	struct kit_trace t;

	kit_raw(&b, "QEVM\0\0\0\3", 8);
	kit_start(&b);
	kit_be64(&b, 4);
	kit_eos(&b);
	kit_tail(&b);
	t = kit_trace_bytes(&b, 0);
	ASSERT_EQ(t.rc, 0);
	kit_free(&b);
}

TEST(thousands_of_blocks_are_found_quickly)
{
	enum { N = 20000 };
	struct kit_bytes b = { 0 };
	struct kit_trace t;
	char id[16];

	kit_config(&b);
	kit_start(&b);
	kit_be64(&b, (uint64_t)N * 4096 | 4);
	for (int i = 0; i < N; i++) {
		(void)snprintf(id, sizeof(id), "block%d", i);
		kit_str8(&b, id);
		kit_be64(&b, 4096);
	}
	kit_eos(&b);
	kit_part(&b, 2);
	for (int i = 0; i < N; i++) {
		(void)snprintf(id, sizeof(id), "block%d", i * 7919 % N);
		kit_zero(&b, id, 0, 0);
	}
	kit_eos(&b);
	kit_tail(&b);
	t = kit_trace_bytes(&b, 0);
	ASSERT_EQ(t.rc, 0);
	ASSERT_EQ(t.zeros, (uint64_t)N);
	kit_free(&b);
}

TEST_MAIN()
