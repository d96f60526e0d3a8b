/* SPDX-License-Identifier: MIT */
#include "harness.h"
#include "stream_kit.h"
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

static struct gr_stream_reader *reader_of(struct kit_source *s)
{
	struct gr_stream_source src = { kit_readv, s };
	struct gr_stream_reader *r;

	ASSERT_EQ(gr_stream_reader_create(&src, &r, NULL), 0);
	return r;
}

static void next_is(struct gr_stream_reader *r, struct gr_stream_record *rec,
		    enum gr_stream_record_kind kind)
{
	struct gr_error err = { 0 };
	int rc = gr_stream_next(r, rec, &err);

	if (rc != 1) {
		FAIL("no record: %d %s", rc, err.msg);
	}
	ASSERT_EQ((int)rec->kind, (int)kind);
}

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

/* Hostile streams: what follows the good beginning, and what the refusal must say. */
struct hostile {
	const char *bytes;
	size_t n;
	int code;
	const char *words;
};
#define HOSTILE(bytes, code, words)                   \
	{                                             \
		bytes, sizeof(bytes) - 1, code, words \
	}

static void check_hostile(void (*begin)(struct kit_bytes *), const struct hostile *h, size_t count,
			  int flags)
{
	for (size_t i = 0; i < count; i++) {
		struct kit_bytes b = { 0 };
		struct kit_trace t;
		size_t start;

		begin(&b);
		start = b.n;
		kit_raw(&b, h[i].bytes, h[i].n);
		kit_raw(&b, (const uint8_t[8192]){ 0 }, 8192);
		t = kit_trace_bytes(&b, flags);
		if (t.rc != h[i].code || !strstr(t.err.msg, h[i].words)) {
			FAIL("case %zu (%s): %d '%s'", i, h[i].words, t.rc, t.err.msg);
		}
		ASSERT_EQ(strncmp(t.err.msg, "byte ", 5), 0);
		ASSERT_LE(strtoull(t.err.msg + 5, NULL, 10), (unsigned long long)b.n);
		ASSERT_GE(strtoull(t.err.msg + 5, NULL, 10) + 16, (unsigned long long)start);
		kit_free(&b);
	}
}

static void nothing(struct kit_bytes *b)
{
	(void)b;
}

static void in_start(struct kit_bytes *b)
{
	kit_config(b);
	kit_start(b);
}

static void in_part(struct kit_bytes *b)
{
	kit_two_blocks(b);
	kit_part(b, 2);
}

static void after_end(struct kit_bytes *b)
{
	kit_two_blocks(b);
	kit_part(b, 3);
	kit_eos(b);
}

TEST(hostile_headers_and_configurations_are_refused)
{
	static const struct hostile cases[] = {
		HOSTILE("QEVX\0\0\0\3", -EBADMSG, "not a migration stream"),
		HOSTILE("\x11\x22\x33\x44\0\0\0\1", -EOPNOTSUPP, "capability multifd"),
		HOSTILE("QEVM\0\0\0\2", -EOPNOTSUPP, "stream version 2"),
		HOSTILE("QEVM\0\0\0\3\7\0\0\1\0", -EBADMSG, "a machine name of 256 bytes"),
		HOSTILE("QEVM\0\0\0\3\7\xff\xff\xff\xff", -EBADMSG, "a machine name of 4294967295"),
		HOSTILE("QEVM\0\0\0\3\7\0\0\0\3p\0c", -EBADMSG, "contains a NUL"),
		HOSTILE("QEVM\0\0\0\3\7\0\0\0\1p\5\1x\0\0\0\1", -EBADMSG, "subsection 'x'"),
		HOSTILE("QEVM\0\0\0\3\7\0\0\0\1p\5\17configuration/x\0\0\0\1", -EOPNOTSUPP,
			"'configuration/x' is not known"),
		HOSTILE("QEVM\0\0\0\3\7\0\0\0\1p\5\36configuration/"
			"target-page-bits\0\0\0\1\0\0\0\13",
			-EBADMSG, "2^11"),
		HOSTILE("QEVM\0\0\0\3\7\0\0\0\1p\5\36configuration/"
			"target-page-bits\0\0\0\1\0\0\0\100",
			-EBADMSG, "2^64"),
		HOSTILE("QEVM\0\0\0\3\7\0\0\0\1p\5\36configuration/"
			"target-page-bits\0\0\0\2\0\0\0\14",
			-EOPNOTSUPP, "version 2"),
		HOSTILE("QEVM\0\0\0\3\7\0\0\0\1p\5\32configuration/capabilities\0\0\0\1"
			"\0\0\0\1\17x-ignore-shared",
			-EOPNOTSUPP, "'x-ignore-shared'"),
		HOSTILE("QEVM\0\0\0\3\7\0\0\0\1p\5\32configuration/capabilities\0\0\0\1\xff\0\0\0",
			-EBADMSG, "capabilities; at most"),
		HOSTILE("QEVM\0\0\0\3\7\0\0\0\1p\5\22configuration/uuid\0\0\0\1"
			"0123456789abcdef\5\22configuration/uuid\0\0\0\1",
			-EBADMSG, "comes twice"),
	};

	check_hostile(nothing, cases, GR_ARRAY_SIZE(cases), 0);
}

/* The configuration with x-ignore-shared in it, and START up to the list. */
static void shared_start(struct kit_bytes *b)
{
	static const char subsection[] = "\5\32configuration/capabilities\0\0\0\1\0\0\0\1\17x-ignore-shared";

	kit_config(b);
	kit_raw(b, subsection, sizeof(subsection) - 1);
	kit_start(b);
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

TEST(hostile_capabilities_and_addresses_are_refused)
{
	static const struct hostile configs[] = {
		HOSTILE("QEVM\0\0\0\3\7\0\0\0\1p\5\32configuration/capabilities\0\0\0\1"
			"\0\0\0\2\17x-ignore-shared\17x-ignore-shared",
			-EBADMSG, "comes twice"),
		HOSTILE("QEVM\0\0\0\3\7\0\0\0\1p\5\32configuration/capabilities\0\0\0\1"
			"\0\0\0\2\17x-ignore-shared\12mapped-ram",
			-EOPNOTSUPP, "'mapped-ram', which is not in use"),
	};
	static const struct hostile lists[] = {
		/* what one without addresses would send: the next id is read as one */
		HOSTILE("\0\0\0\0\0\0\x20\4\1a\0\0\0\0\0\0\x10\0\2bb\0\0\0\0\0\0\x10\0",
			-EBADMSG, "a block's id"),
		HOSTILE("\0\0\0\0\0\0\x10\4\1a\0\0\0\0\0\0\x20\0\0\0\0\0\0\0\0\0", -EBADMSG,
			"exceed the list's total"),
	};

	check_hostile(nothing, configs, GR_ARRAY_SIZE(configs), KIT_SHARED);
	check_hostile(shared_start, lists, GR_ARRAY_SIZE(lists), KIT_SHARED);
}

TEST(hostile_sections_are_refused_by_name)
{
	static const struct hostile cases[] = {
		HOSTILE("\1\0\0\0\3\5block\0\0\0\0\0\0\0\1", -EOPNOTSUPP, "section 'block'"),
		HOSTILE("\1\0\0\0\3\4v\x1b[m\0\0\0\0\0\0\0\1", -EOPNOTSUPP, "section 'v?[m'"),
		HOSTILE("\1\0\0\0\2\3ram\0\0\0\0\0\0\0\3", -EOPNOTSUPP, "version 3"),
		HOSTILE("\1\0\0\0\2\3ram\0\0\0\1\0\0\0\4", -EOPNOTSUPP, "instance 1"),
		HOSTILE("\1\0\0\0\2\0", -EBADMSG, "name is empty"),
		HOSTILE("\1\0\0\0\2\3r\0m", -EBADMSG, "contains a NUL"),
		HOSTILE("\2\0\0\0\2", -EBADMSG, "section 2, which never started"),
		HOSTILE("\4\0\0\0\7\012virtio-mem\0\0\0\0\0\0\0\1", -EOPNOTSUPP,
			"'virtio-mem' comes before"),
		HOSTILE("\0", -EBADMSG, "no section 'ram'"),
		HOSTILE("\6", -EBADMSG, "0x06 does not begin a section"),
		HOSTILE("\x7e\0\0\0\2", -EBADMSG, "0x7e does not begin a section"),
		HOSTILE("\10\0\7\0\4\0\0\0\1", -EOPNOTSUPP, "PACKAGED"),
		HOSTILE("\10\0\3\0\20", -EOPNOTSUPP, "POSTCOPY_ADVISE"),
		HOSTILE("\10\0\3\0\0\1\0\0\0\3\14dirty-bitmap\0\0\0\0\0\0\0\1", -EOPNOTSUPP,
			"section 'dirty-bitmap'"),
		HOSTILE("\10\0\6\0\20", -EOPNOTSUPP, "POSTCOPY_RAM_DISCARD"),
		HOSTILE("\10\0\10\0\0", -EOPNOTSUPP, "ENABLE_COLO"),
		HOSTILE("\10\0\14\0\0", -EOPNOTSUPP, "command 12"),
		HOSTILE("\10\0\2\0\5", -EBADMSG, "PING has 5 bytes"),
		HOSTILE("\10\0\1\xff\xff", -EBADMSG, "OPEN_RETURN_PATH has 65535 bytes"),
	};
	static const struct hostile later[] = {
		HOSTILE("\2\0\0\0\2", -EBADMSG, "goes on after its end"),
		HOSTILE("\1\0\0\0\2\3ram\0\0\0\0\0\0\0\4", -EBADMSG, "starts a second time"),
	};

	check_hostile(kit_config, cases, GR_ARRAY_SIZE(cases), 0);
	check_hostile(after_end, later, GR_ARRAY_SIZE(later), 0);
}

TEST(hostile_block_lists_are_refused)
{
	static const struct hostile cases[] = {
		HOSTILE("\0\0\0\0\0\1\0\4\1a\0\0\0\0\0\2\0\0", -EBADMSG, "exceed the list's total"),
		HOSTILE("\0\0\0\0\0\1\0\4\0", -EBADMSG, "id is empty"),
		HOSTILE("\0\0\0\0\0\1\0\4\3a\0b\0\0\0\0\0\1\0\0", -EBADMSG, "contains a NUL"),
		HOSTILE("\0\0\0\0\0\2\0\4\1a\0\0\0\0\0\1\0\0\1a\0\0\0\0\0\1\0\0", -EBADMSG,
			"block 'a' is in the list twice"),
		HOSTILE("\0\0\0\0\0\1\0\4\1a\0\0\0\0\0\0\0\0", -EBADMSG, "impossible length"),
		HOSTILE("\0\0\0\0\0\1\0\4\1a\0\0\0\0\0\0\10\0", -EBADMSG, "impossible length"),
		HOSTILE("\xff\xff\xff\xff\xff\xff\xf0\4\1a\xff\xff\xff\xff\xff\xff\xf0\0", -EBADMSG,
			"impossible length"),
		HOSTILE("\0\0\0\0\0\0\0\x10\x7e\0\0\0\2", -EBADMSG, "without a list of blocks"),
		HOSTILE("\0\0\0\0\0\0\0\x08\1a", -EBADMSG, "was not announced"),
	};

	check_hostile(in_start, cases, GR_ARRAY_SIZE(cases), 0);
}

TEST(hostile_page_records_are_refused_naming_block_and_page)
{
	static const struct hostile cases[] = {
		HOSTILE("\0\0\0\0\0\1\0\x08\1a", -EBADMSG, "block 'a', page 0x10000"),
		HOSTILE("\0\0\0\0\0\1\0\x02\1a\0", -EBADMSG, "block 'a', page 0x10000"),
		HOSTILE("\xff\xff\xff\xff\xff\xff\xf0\x08\2bb", -EBADMSG, "past the end, 0x8000"),
		HOSTILE("\0\0\0\0\0\0\x80\x42\2bb", -EBADMSG, "the flags 0x42"),
		HOSTILE("\0\0\0\0\0\0\x80\x40\2bb\1\0\0", -EBADMSG, "block 'bb', page 0x8000"),
		HOSTILE("\0\0\0\0\0\0\0\x08\1c", -EBADMSG, "block 'c', which was not announced"),
		HOSTILE("\0\0\0\0\0\0\0\x08\2a\0", -EBADMSG, "contains a NUL"),
		HOSTILE("\0\0\0\0\0\0\0\x28", -EBADMSG, "but there was none"),
		HOSTILE("\0\0\0\0\0\0\0\x00", -EBADMSG, "the flags 0x0"),
		HOSTILE("\0\0\0\0\0\0\0\x0a\1a", -EBADMSG, "the flags 0xa"),
		HOSTILE("\0\0\0\0\0\0\0\x01\1a", -EOPNOTSUPP, "FULL"),
		HOSTILE("\0\0\0\0\0\0\0\x80\1a", -EOPNOTSUPP, "HOOK"),
		HOSTILE("\0\0\0\0\0\0\1\0\1a\0\0\x10\x0f", -EBADMSG, "longer than any"),
		HOSTILE("\0\0\0\0\0\1\1\0\1a\0\0\0\7", -EBADMSG, "block 'a', page 0x10000"),
		HOSTILE("\0\0\0\0\0\0\4\x22\0", -EBADMSG, "pages of 1 KiB"),
		HOSTILE("\0\0\0\0\0\0\2\0", -EOPNOTSUPP, "MULTIFD_FLUSH"),
		HOSTILE("\0\0\0\0\0\0\4\0\1a", -EOPNOTSUPP, "ZERO_RANGE"),
		HOSTILE("\0\0\0\0\0\0\x0c\0\1a", -EOPNOTSUPP, "PAGE_RANGE"),
		HOSTILE("\0\0\0\0\0\0\x18\0", -EOPNOTSUPP, "ANNOUNCE"),
		HOSTILE("\0\0\0\0\0\1\0\4", -EBADMSG, "second list of blocks"),
		HOSTILE("\0\0\0\0\0\0\x10\x10", -EBADMSG, "the flags 0x10"),
		HOSTILE("\0\0\0\0\0\0\0\x10\x7e\0\0\0\3", -EBADMSG, "footer of section 3"),
		HOSTILE("\0\0\0\0\0\0\0\x10\x02\0\0\0\2", -EBADMSG, "instead of the footer"),
		HOSTILE("\0\0\0\0\0\0\0\x40\1a\2\0\0", -EBADMSG, "encoding that is not known"),
		HOSTILE("\0\0\0\0\0\0\0\x40\1a\1\x10\1", -EBADMSG, "longer than the page"),
		HOSTILE("\0\0\0\0\0\0\0\x40\1a\1\0\2\0\0", -EBADMSG, "does not decode"),
	};

	check_hostile(in_part, cases, GR_ARRAY_SIZE(cases), 0);
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

/* A page is followed, where another was predicted, by something hostile. */
static void in_run(struct kit_bytes *b)
{
	in_part(b);
	kit_page(b, "bb", 0, 1);
	for (uint32_t i = 1; i < 70; i++) {
		kit_page(b, NULL, (uint64_t)(i % 8) << 12, i);
	}
}

TEST(a_hostile_header_inside_of_a_run_is_refused_like_any_other)
{
	static const struct hostile cases[] = {
		HOSTILE("\0\0\0\0\0\0\x80\x28", -EBADMSG, "block 'bb', page 0x8000"),
		HOSTILE("\0\0\0\0\0\0\0\x2a", -EBADMSG, "the flags 0x2a"),
		HOSTILE("\0\0\0\0\0\0\0\x08\1x", -EBADMSG, "block 'x'"),
		HOSTILE("\0\0\0\0\0\0\0\x10\x7e\0\0\0\3", -EBADMSG, "footer of section 3"),
	};

	check_hostile(in_run, cases, GR_ARRAY_SIZE(cases), 0);
	check_hostile(in_run, cases, GR_ARRAY_SIZE(cases), KIT_NO_STAGING);
}

static void announce_entry(struct kit_bytes *b, const char *id, uint64_t incarnation, uint64_t used,
			   uint64_t max)
{
	kit_str8(b, id);
	kit_be64(b, incarnation);
	kit_be64(b, used);
	kit_be64(b, max);
	kit_be32(b, 4096);
	kit_be32(b, 5);
	kit_be64(b, 0x100000);
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

static void announced(struct kit_bytes *b)
{
	in_part(b);
	kit_be64(b, (1 << 12) | 0x800);
	announce_entry(b, "a", 1, 0x10000, 0x10000);
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

TEST(hostile_extensions_are_refused)
{
	static const struct hostile cases[] = {
		HOSTILE("\0\0\0\0\0\0\4\0\1a\0\0\0\0\0\0\0\0", -EBADMSG, "not whole pages"),
		HOSTILE("\0\0\0\0\0\0\4\0\1a\0\0\0\0\0\0\10\0", -EBADMSG, "not whole pages"),
		HOSTILE("\0\0\0\0\0\0\4\0\1a\0\0\0\0\0\1\x10\0", -EBADMSG, "block 'a', page 0x0"),
		HOSTILE("\0\0\0\0\0\0\xf4\0\1a\xff\xff\xff\xff\xff\xff\xf0\0", -EBADMSG,
			"block 'a', page 0xf000"),
		HOSTILE("\0\0\0\0\0\0\x28\0\1a", -EBADMSG, "impossible"),
		HOSTILE("\0\0\0\0\0\0\x0c\0\1a\0\0\0\0\0\0\0\0", -EBADMSG, "not whole pages"),
		HOSTILE("\0\0\0\0\0\0\x0c\0\1a\0\0\0\0\0\0\10\0", -EBADMSG, "not whole pages"),
		HOSTILE("\0\0\0\0\0\0\x0c\0\1a\0\0\0\0\0\1\x10\0", -EBADMSG, "block 'a', page 0x0"),
		HOSTILE("\0\0\0\0\0\0\xfc\0\1a\xff\xff\xff\xff\xff\xff\xf0\0", -EBADMSG,
			"block 'a', page 0xf000"),
		HOSTILE("\x7f\0\0\0\0\0\x08\0", -E2BIG, "blocks; at most 65536"),
	};
	struct kit_bytes b = { 0 };
	struct kit_trace t;

	check_hostile(in_part, cases, GR_ARRAY_SIZE(cases), KIT_EXTENSIONS);
	for (int i = 0; i < 7; i++) {
		static const char *const words[] = {
			"twice",      "impossible length",   "impossible: incarnation 0",
			"impossible", "changed its maximum", "impossible",
			"impossible",
		};

		kit_free(&b);
		announced(&b);
		kit_be64(&b, ((i == 0 ? 2u : 1u) << 12) | 0x800);
		kit_str8(&b, "a");
		kit_be64(&b, i == 2 ? 0 : 1);
		kit_be64(&b, i == 1 ? 0x800 : i == 3 ? 0x20000 : 0x10000);
		kit_be64(&b, i == 4 ? 0x30000 : 0x10000);
		kit_be32(&b, i == 5 ? 12288 : 4096);
		kit_be32(&b, 0);
		kit_be64(&b, i == 6 ? 0xfffffffffffff000u : 0);
		if (i == 0) {
			announce_entry(&b, "a", 2, 0x1000, 0x1000);
		}
		t = kit_trace_bytes(&b, KIT_EXTENSIONS);
		ASSERT_EQ(t.rc, -EBADMSG);
		ASSERT_HAS(t.err.msg, words[i]);
		ASSERT_HAS(t.err.msg, "block 'a'");
	}
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
