/* SPDX-License-Identifier: MIT */
/* Streams that the reader must refuse, saying what is wrong with them and where. */
#include "reader_kit.h"
#include <errno.h>

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
		HOSTILE("\0\0\0\0\0\0\x20\4\1a\0\0\0\0\0\0\x10\0\2bb\0\0\0\0\0\0\x10\0", -EBADMSG,
			"a block's id"),
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

static void announced(struct kit_bytes *b)
{
	in_part(b);
	kit_be64(b, (1 << 12) | 0x800);
	announce_entry(b, "a", 1, 0x10000, 0x10000);
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

TEST_MAIN()
