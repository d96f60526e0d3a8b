/* SPDX-License-Identifier: MIT */
#include "harness.h"
#include "stream/reader.h"
#include <errno.h>

enum { PAGE = 4096 };

/* The sender's side, as plain as it can be: the reference for the decoder. */
static size_t encode(const uint8_t *old, const uint8_t *new, uint8_t *out)
{
	size_t i = 0, n = 0;

	while (i < PAGE) {
		size_t skip = 0, copy = 0;

		while (i + skip < PAGE && old[i + skip] == new[i + skip]) {
			skip++;
		}
		while (i + skip + copy < PAGE && old[i + skip + copy] != new[i + skip + copy]) {
			copy++;
		}
		if (copy == 0) {
			break;
		}
		for (int k = 0; k < 2; k++) {
			size_t v = k ? copy : skip;

			if (v < 0x80) {
				out[n++] = (uint8_t)v;
			} else {
				out[n++] = (uint8_t)((v & 0x7f) | 0x80);
				out[n++] = (uint8_t)(v >> 7);
			}
		}
		memcpy(out + n, new + i + skip, copy);
		n += copy;
		i += skip + copy;
	}
	return n;
}

TEST(what_was_encoded_decodes_to_the_new_page)
{
	static uint8_t old[PAGE], new[PAGE], got[PAGE], delta[3 * PAGE];
	uint64_t s = test_seed();

	for (int round = 0; round < 2000; round++) {
		unsigned int changes = (unsigned int)(test_rand(&s) % 300);
		size_t n;

		for (size_t i = 0; i < PAGE; i++) {
			old[i] = (uint8_t)test_rand(&s);
		}
		memcpy(new, old, PAGE);
		while (changes--) {
			size_t at = (size_t)(test_rand(&s) % PAGE), len = (size_t)(test_rand(&s) % 40);

			for (size_t i = at; i < PAGE && i < at + len; i++) {
				new[i] = (uint8_t)(new[i] + 1);
			}
		}
		n = encode(old, new, delta);
		memcpy(got, old, PAGE);
		ASSERT_EQ(gr_xbzrle_check(delta, n, PAGE), 0);
		ASSERT_EQ(gr_xbzrle_decode(got, delta, n, PAGE), 0);
		ASSERT_MEM_EQ(got, new, PAGE);
	}
}

TEST(the_whole_page_and_its_last_byte_can_be_changed)
{
	static uint8_t page[PAGE], delta[PAGE + 3] = { 0, 0x80, 0x20 };
	static const uint8_t last[] = { 0xff, 0x1f, 1, 7 };

	memset(delta + 3, 9, PAGE);
	ASSERT_EQ(gr_xbzrle_decode(page, delta, sizeof(delta), PAGE), 0);
	ASSERT_EQ(page[0], 9);
	ASSERT_EQ(page[PAGE - 1], 9);
	ASSERT_EQ(gr_xbzrle_decode(page, last, sizeof(last), PAGE), 0);
	ASSERT_EQ(page[PAGE - 1], 7);
	ASSERT_EQ(page[PAGE - 2], 9);
}

TEST(nothing_changes_nothing)
{
	uint8_t page[4] = { 1, 2, 3, 4 };

	ASSERT_EQ(gr_xbzrle_decode(page, NULL, 0, 4), 0);
	ASSERT_MEM_EQ(page, "\1\2\3\4", 4);
}

TEST(a_wrong_delta_is_refused_and_leaves_the_page)
{
	static const struct {
		const char *why;
		uint8_t bytes[8];
		size_t n;
	} bad[] = {
		{ "one byte", { 0 }, 1 },
		{ "skip without bytes", { 5 }, 1 },
		{ "nothing to copy", { 5, 0 }, 2 },
		{ "copy of 0 with bytes", { 5, 0, 1 }, 3 },
		{ "bytes missing", { 0, 3, 1, 2 }, 4 },
		{ "trailing skip", { 0, 1, 1, 2 }, 4 },
		{ "second skip is 0", { 0, 1, 1, 0, 1, 2 }, 6 },
		{ "number of three bytes", { 0x80, 0x80, 1, 1, 1 }, 5 },
		{ "number cut off", { 0, 0x80 }, 2 },
		{ "skip past the end", { 17, 1, 1 }, 3 },
		{ "skip far past the end", { 0xff, 0x7f, 1, 1 }, 4 },
		{ "copy past the end", { 15, 2, 1, 1 }, 4 },
		{ "good, then past the end", { 0, 1, 9, 15, 1, 9 }, 6 },
	};

	for (size_t i = 0; i < GR_ARRAY_SIZE(bad); i++) {
		uint8_t page[16 + 64] = { 0 };

		if (gr_xbzrle_decode(page, bad[i].bytes, bad[i].n, 16) != -EBADMSG) {
			FAIL("accepted: %s", bad[i].why);
		}
		for (size_t k = 0; k < sizeof(page); k++) {
			if (page[k]) {
				FAIL("written: %s", bad[i].why);
			}
		}
	}
}

TEST(noise_never_writes_outside_of_the_page)
{
	static uint8_t room[PAGE + 512], delta[64];
	uint64_t s = test_seed();
	unsigned int good = 0;

	for (int round = 0; round < 200000; round++) {
		size_t n = test_rand(&s) % 16;

		for (size_t i = 0; i < n; i++) {
			delta[i] = (uint8_t)(test_rand(&s) % (round & 1 ? 256 : 5));
		}
		good += gr_xbzrle_decode(room + 256, delta, n, 32) == 0;
	}
	ASSERT_GT(good, 100u);
	for (size_t i = 0; i < sizeof(room); i++) {
		if (i < 256 || i >= 256 + 32) {
			ASSERT_EQ(room[i], 0);
		}
	}
}

TEST_MAIN()
