/* SPDX-License-Identifier: MIT */
#include "harness.h"
#include "stream/channel.h"
#include "stream/return_path.h"
#include "stream/writer.h"
#include "stream_kit.h"
#include <errno.h>

struct written {
	struct gr_channel *ch;
	struct gr_stream_writer *w;
};

static struct written begin(const struct gr_memory_script *script)
{
	struct written t;

	ASSERT_EQ(gr_channel_memory(script, &t.ch, NULL), 0);
	ASSERT_EQ(gr_stream_writer_create(t.ch, &t.w, NULL), 0);
	return t;
}

static void end(struct written *t)
{
	gr_stream_writer_free(t->w);
	ASSERT_EQ(gr_channel_close(t->ch, NULL), 0);
}

static void wrote(struct written *t, const void *expected, size_t n)
{
	const uint8_t *got;
	size_t got_bytes;

	ASSERT_EQ(gr_stream_flush(t->w, NULL), 0);
	got = gr_channel_memory_written(t->ch, &got_bytes);
	ASSERT_EQ(got_bytes, n);
	ASSERT_MEM_EQ(got, expected, n);
	ASSERT_EQ(gr_stream_writer_bytes(t->w), (uint64_t)n);
}

/* The hand-made description of QEMU's layout: docs/wire-format.md has it with comments. */
static const uint8_t golden[] =
	"QEVM\0\0\0\3\7\0\0\0\15pc-i440fx-7.2"
	"\1\0\0\0\2\3ram\0\0\0\0\0\0\0\4"
	"\0\0\0\0\1\2\0\4\6pc.ram\0\0\0\0\1\0\0\0\24/rom@etc/acpi/tables\0\0\0\0\0\2\0\0"
	"\0\0\0\0\0\0\0\20\x7e\0\0\0\2"
	"\2\0\0\0\2"
	"\0\0\0\0\0\0\0\2\6pc.ram\0"
	"\0\0\0\0\0\0\x10\x22\0"
	"\0\0\0\0\0\0\0\20\x7e\0\0\0\2"
	"\3\0\0\0\2\0\0\0\0\0\0\0\20\x7e\0\0\0\2";

TEST(the_layout_is_qemus_byte_for_byte)
{
	static const struct gr_stream_block_desc blocks[] = {
		{ .id = "pc.ram", .used_bytes = 0x1000000 },
		{ .id = "/rom@etc/acpi/tables", .used_bytes = 0x20000 },
	};
	struct written t = begin(NULL);

	ASSERT_EQ(gr_stream_write_config(t.w, "pc-i440fx-7.2", 4096, NULL), 0);
	ASSERT_EQ(gr_stream_write_start(t.w, 2, blocks, 2, NULL), 0);
	ASSERT_EQ(gr_stream_write_eos(t.w, NULL), 0);
	ASSERT_EQ(gr_stream_write_section(t.w, GR_SECTION_PART, NULL), 0);
	ASSERT_EQ(gr_stream_write_zero(t.w, "pc.ram", 0, NULL), 0);
	ASSERT_EQ(gr_stream_write_zero(t.w, "pc.ram", 0x1000, NULL), 0);
	ASSERT_EQ(gr_stream_write_eos(t.w, NULL), 0);
	ASSERT_EQ(gr_stream_write_section(t.w, GR_SECTION_END, NULL), 0);
	ASSERT_EQ(gr_stream_write_eos(t.w, NULL), 0);
	wrote(&t, golden, sizeof(golden) - 1);
	end(&t);
}

TEST(with_x_ignore_shared_the_blocks_have_addresses)
{
	static const uint8_t expected[] =
		"QEVM\0\0\0\3\7\0\0\0\1m\5\32configuration/capabilities\0\0\0\1\0\0\0\1"
		"\17x-ignore-shared\5\22configuration/uuid\0\0\0\1" "0123456789abcdef"
		"\1\0\0\0\2\3ram\0\0\0\0\0\0\0\4\0\0\0\0\0\0\x30\4"
		"\1a\0\0\0\0\0\0\x20\0\0\0\0\1\0\0\0\0\1b\0\0\0\0\0\0\x10\0\0\0\0\0\0\0\0\0";
	static const struct gr_stream_block_desc blocks[] = {
		{ .id = "a", .used_bytes = 0x2000, .gpa = 0x100000000 },
		{ .id = "b", .used_bytes = 0x1000, .gpa = UINT64_MAX },
	};
	struct written t = begin(NULL);

	ASSERT_EQ(gr_stream_write_config(t.w, "m", 4096, NULL), 0);
	ASSERT_EQ(gr_stream_write_ignore_shared(t.w, NULL), 0);
	ASSERT_EQ(gr_stream_write_uuid(t.w, (const uint8_t *)"0123456789abcdef", NULL), 0);
	ASSERT_EQ(gr_stream_write_start(t.w, 2, blocks, 2, NULL), 0);
	wrote(&t, expected, sizeof(expected) - 1);
	end(&t);
}

TEST(commands_have_qemus_layout)
{
	static const uint8_t expected[] = "\10\0\1\0\0\10\0\2\0\4\x47\x52\0\1";
	struct written t = begin(NULL);

	ASSERT_EQ(gr_stream_write_command(t.w, GR_COMMAND_OPEN_RETURN_PATH, NULL, 0, NULL), 0);
	ASSERT_EQ(gr_stream_write_ping(t.w, GR_PING_FEATURES, NULL), 0);
	wrote(&t, expected, sizeof(expected) - 1);
	end(&t);
}

TEST(another_page_size_is_told)
{
	static const uint8_t expected[] =
		"QEVM\0\0\0\3\7\0\0\0\1m\5\36configuration/target-page-bits\0\0\0\1\0\0\0\20";
	struct written t = begin(NULL);
	char long_name[300];

	ASSERT_EQ(gr_stream_write_config(t.w, "m", 65536, NULL), 0);
	wrote(&t, expected, sizeof(expected) - 1);
	ASSERT_EQ(gr_stream_write_config(t.w, "m", 2048, NULL), -EINVAL);
	ASSERT_EQ(gr_stream_write_config(t.w, "m", 6000, NULL), -EINVAL);
	memset(long_name, 'x', sizeof(long_name));
	long_name[256] = '\0';
	ASSERT_EQ(gr_stream_write_config(t.w, long_name, 4096, NULL), -EINVAL);
	end(&t);
}

/* Everything the writer can say, against bytes put together by hand, in any pieces. */
static void check_pages(const struct gr_memory_script *script)
{
	enum { N = 150 };
	static const struct gr_stream_block_desc blocks[] = {
		{ .id = "a", .used_bytes = 0x100000 }, { .id = "bb", .used_bytes = 0x1000 }
	};
	const struct gr_channel_file no_file = { .fd = -1 };
	struct written t = begin(script);
	struct kit_bytes e = { 0 };
	static uint8_t ram[N][4096];
	const void *pages[N];
	uint64_t offsets[N];

	kit_config(&e);
	kit_start(&e);
	kit_be64(&e, 0x101000 | 4);
	kit_str8(&e, "a");
	kit_be64(&e, 0x100000);
	kit_str8(&e, "bb");
	kit_be64(&e, 0x1000);
	kit_eos(&e);
	kit_part(&e, 2);
	for (unsigned int i = 0; i < N; i++) {
		struct kit_bytes one = { 0 };

		offsets[i] = (uint64_t)(i * 11 % N) << 12;
		pages[i] = ram[i];
		kit_page(&one, NULL, 0, i);
		memcpy(ram[i], one.p + 8, 4096);
		kit_free(&one);
		kit_page(&e, i ? NULL : "a", offsets[i], i);
	}
	kit_page(&e, "bb", 0, 0);
	kit_zero(&e, NULL, 0, 0);
	kit_be64(&e, 0x60);
	kit_raw(&e, "\1\0\3\5\1\11", 6);
	kit_eos(&e);
	kit_part(&e, 2);
	kit_zero(&e, NULL, 0, 0); /* still the same block */
	kit_be64(&e, 0x3400);
	kit_str8(&e, "a");
	kit_be64(&e, 0x5000);
	kit_be64(&e, 0x9c20);
	kit_be64(&e, 2 << 12);
	kit_raw(&e, ram[3], 2 * 4096);
	kit_be64(&e, (1 << 12) | 0x800);
	kit_str8(&e, "a");
	kit_be64(&e, 77);
	kit_be64(&e, 0x100000);
	kit_be64(&e, 0x200000);
	kit_be32(&e, 4096);
	kit_be32(&e, 3);
	kit_be64(&e, 0x40000000);
	kit_zero(&e, "a", 0x1000, 0); /* named again after an announcement */
	kit_eos(&e);
	kit_tail(&e);

	ASSERT_EQ(gr_stream_write_config(t.w, "test", 4096, NULL), 0);
	ASSERT_EQ(gr_stream_write_start(t.w, 2, blocks, 2, NULL), 0);
	ASSERT_EQ(gr_stream_write_eos(t.w, NULL), 0);
	ASSERT_EQ(gr_stream_write_section(t.w, GR_SECTION_PART, NULL), 0);
	ASSERT_EQ(gr_stream_write_pages(t.w, "a", offsets, pages, N, NULL), 0);
	ASSERT_EQ(gr_stream_write_pages(t.w, "bb", offsets, pages, 1, NULL), 0);
	ASSERT_EQ(gr_stream_write_zero(t.w, "bb", 0, NULL), 0);
	ASSERT_EQ(gr_stream_write_xbzrle(t.w, "bb", 0, "\5\1\11", 3, NULL), 0);
	ASSERT_EQ(gr_stream_write_eos(t.w, NULL), 0);
	ASSERT_EQ(gr_stream_write_section(t.w, GR_SECTION_PART, NULL), 0);
	ASSERT_EQ(gr_stream_write_zero(t.w, "bb", 0, NULL), 0);
	ASSERT_EQ(gr_stream_write_zero_range(t.w, "a", 0x3000, 0x5000, NULL), 0);
	ASSERT_EQ(gr_stream_write_page_range(t.w, "a", 0x9000, ram[3], 2 * 4096, &no_file, NULL), 0);
	{
		struct gr_stream_block_desc d = { .id = "a",
						  .used_bytes = 0x100000,
						  .max_bytes = 0x200000,
						  .incarnation = 77,
						  .page_bytes = 4096,
						  .flags = 3,
						  .gpa = 0x40000000 };

		ASSERT_EQ(gr_stream_write_announce(t.w, &d, 1, NULL), 0);
	}
	ASSERT_EQ(gr_stream_write_zero(t.w, "a", 0x1000, NULL), 0);
	ASSERT_EQ(gr_stream_write_eos(t.w, NULL), 0);
	{
		struct kit_bytes tail = { 0 };

		kit_tail(&tail);
		ASSERT_EQ(gr_stream_write_raw(t.w, tail.p, tail.n, NULL), 0);
		kit_free(&tail);
	}
	wrote(&t, e.p, e.n);
	kit_free(&e);
	end(&t);
}

TEST(pages_and_records_have_the_expected_bytes_through_short_writes)
{
	struct gr_memory_script pieces = { .write_max = 1000, .eintr_every = 5 };

	check_pages(NULL);
	check_pages(&pieces);
	pieces.write_max = 1;
	check_pages(&pieces);
}

TEST(large_raw_pieces_keep_their_order)
{
	static uint8_t big[300000];
	struct written t = begin(NULL);
	struct kit_bytes e = { 0 };

	for (size_t i = 0; i < sizeof(big); i++) {
		big[i] = (uint8_t)(i * 13 + (i >> 9));
	}
	for (size_t n = 1; n <= sizeof(big); n *= 7) {
		ASSERT_EQ(gr_stream_write_raw(t.w, big, n, NULL), 0);
		kit_raw(&e, big, n);
	}
	wrote(&t, e.p, e.n);
	kit_free(&e);
	end(&t);
}

TEST(nothing_is_sent_before_the_flush_and_one_failure_stays)
{
	struct gr_memory_script script = { .write_error = -ENOSPC, .write_fail_at = 10 };
	struct written t = begin(&script);
	struct gr_error err = { 0 };
	size_t n;

	ASSERT_EQ(gr_stream_write_config(t.w, "m", 4096, NULL), 0);
	(void)gr_channel_memory_written(t.ch, &n);
	ASSERT_EQ(n, 0u);
	ASSERT_EQ(gr_stream_flush(t.w, NULL), 0); /* one call took all of it */
	ASSERT_EQ(gr_stream_write_raw(t.w, "x", 1, NULL), 0);
	ASSERT_EQ(gr_stream_flush(t.w, &err), -ENOSPC);
	ASSERT_HAS(err.msg, "memory: write");
	memset(&err, 0, sizeof(err));
	ASSERT_EQ(gr_stream_write_raw(t.w, "x", 1, &err), -ENOSPC);
	ASSERT_HAS(err.msg, "memory: write");
	ASSERT_EQ(gr_stream_flush(t.w, &err), -ENOSPC);
	end(&t);
}

TEST(what_cannot_be_sent_is_refused)
{
	struct gr_stream_block_desc d = { .id = "", .used_bytes = 4096 };
	struct written t = begin(NULL);
	struct gr_error err = { 0 };
	char id[300];

	ASSERT_EQ(gr_stream_write_start(t.w, 2, &d, 1, &err), -EINVAL);
	memset(id, 'x', sizeof(id));
	id[256] = '\0';
	d.id = id;
	ASSERT_EQ(gr_stream_write_start(t.w, 2, &d, 1, &err), -EINVAL);
	id[255] = '\0';
	d.used_bytes = 100;
	ASSERT_EQ(gr_stream_write_start(t.w, 2, &d, 1, &err), -EINVAL);
	d.used_bytes = 4096;
	ASSERT_EQ(gr_stream_write_start(t.w, 2, &d, 1, &err), 0);
	ASSERT_EQ(gr_stream_write_zero(t.w, id, 0, &err), 0);
	ASSERT_EQ(gr_stream_write_zero(t.w, "", 0, &err), -EINVAL);
	ASSERT_EQ(gr_stream_write_xbzrle(t.w, id, 0, id, 5000, &err), -EINVAL);
	end(&t);
}

TEST(the_return_path_carries_every_message)
{
	static const struct gr_return_path_message out[] = {
		{ GR_RETURN_FEATURES, 1, 6 },	{ GR_RETURN_PONG, GR_PING_FEATURES, 0 },
		{ GR_RETURN_RESUME_ACK, 1, 0 }, { GR_RETURN_SWITCHOVER_ACK, 0, 0 },
		{ GR_RETURN_SHUT, 0, 0 },
	};
	static const uint8_t expected[] = "\x47\x52\0\x08\0\0\0\1\0\0\0\6\0\2\0\4\x47\x52\0\1"
					  "\0\6\0\4\0\0\0\1\0\7\0\0\0\1\0\4\0\0\0\0";
	struct gr_channel *ch;
	const uint8_t *bytes;
	size_t n;

	ASSERT_EQ(gr_channel_memory(NULL, &ch, NULL), 0);
	for (size_t i = 0; i < GR_ARRAY_SIZE(out); i++) {
		ASSERT_EQ(gr_return_path_write(ch, &out[i], NULL), 0);
	}
	bytes = gr_channel_memory_written(ch, &n);
	ASSERT_EQ(n, sizeof(expected) - 1);
	ASSERT_MEM_EQ(bytes, expected, n);
	ASSERT_EQ(gr_channel_close(ch, NULL), 0);

	for (size_t max = 1; max < 30; max++) {
		struct gr_memory_script script = { .data = expected,
						   .bytes = sizeof(expected) - 1,
						   .read_max = max };
		struct gr_return_path_reader r = { 0 };
		struct gr_return_path_message m;

		ASSERT_EQ(gr_channel_memory(&script, &ch, NULL), 0);
		for (size_t i = 0; i < GR_ARRAY_SIZE(out); i++) {
			ASSERT_EQ(gr_return_path_next(&r, ch, &m, NULL), 1);
			ASSERT_EQ((int)m.type, (int)out[i].type);
			ASSERT_EQ(m.value, out[i].value);
			ASSERT_EQ(m.flags, out[i].flags);
		}
		ASSERT_EQ(gr_return_path_next(&r, ch, &m, NULL), 0);
		ASSERT_EQ(gr_channel_close(ch, NULL), 0);
	}
}

TEST(a_hostile_return_path_is_refused)
{
	static const struct {
		const char *bytes;
		size_t n;
		int code;
		const char *words;
	} cases[] = {
		{ "\0\0\0\0", 4, -EOPNOTSUPP, "unknown type 0" },
		{ "\xff\xff\xff\xff", 4, -EOPNOTSUPP, "unknown type 65535" },
		{ "\0\1\0\5", 4, -EBADMSG, "SHUT with 5 bytes" },
		{ "\0\2\xff\xff", 4, -EBADMSG, "PONG with 65535 bytes" },
		{ "\0\4\0\14", 4, -EOPNOTSUPP, "REQ_PAGES" },
		{ "\0\5\0\14", 4, -EOPNOTSUPP, "RECV_BITMAP" },
		{ "\0\1\0\4\0", 5, -EPIPE, "byte 5" },
		{ "\0", 1, -EPIPE, "byte 1" },
	};

	for (size_t i = 0; i < GR_ARRAY_SIZE(cases); i++) {
		struct gr_memory_script script = { .data = (const uint8_t *)cases[i].bytes,
						   .bytes = cases[i].n };
		struct gr_return_path_reader r = { 0 };
		struct gr_return_path_message m;
		struct gr_error err = { 0 };
		struct gr_channel *ch;

		ASSERT_EQ(gr_channel_memory(&script, &ch, NULL), 0);
		ASSERT_EQ(gr_return_path_next(&r, ch, &m, &err), cases[i].code);
		ASSERT_HAS(err.msg, cases[i].words);
		ASSERT_EQ(gr_channel_close(ch, NULL), 0);
	}
}

TEST_MAIN()
