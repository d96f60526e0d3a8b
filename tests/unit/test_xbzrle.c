/* SPDX-License-Identifier: MIT */
#include "harness.h"
#include "stream/reader.h"
#include "stream/xbzrle_decode.h"
#include "stream/xbzrle_encode.h"
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
			size_t at = (size_t)(test_rand(&s) % PAGE),
			       len = (size_t)(test_rand(&s) % 40);

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

/* More runs than a decoder keeps in mind, and the last one is wrong. */
TEST(a_delta_that_is_wrong_at_its_end_leaves_the_page)
{
	enum { RUNS = PAGE / 2 };
	static uint8_t page[PAGE], delta[3 * RUNS];
	const struct gr_xbzrle_decoder *d;

	for (unsigned int k = 0; (d = gr_xbzrle_decoder(k)) != NULL; k++) {
		/* at once, after some, after many: each run skips a byte and writes one */
		for (size_t runs = 1; runs <= RUNS; runs += runs < 8 ? 1 : 127) {
			for (size_t i = 0; i < runs; i++) {
				memcpy(delta + 3 * i, "\1\1\7", 3);
			}
			memset(page, 0, PAGE);
			ASSERT_EQ(d->decode(page, delta, 3 * runs, PAGE), 0);
			for (size_t i = 0; i < PAGE; i++) {
				ASSERT_EQ(page[i], i % 2 == 1 && i < 2 * runs ? 7 : 0);
			}
			memset(page, 0, PAGE);
			delta[3 * runs - 2] = 0; /* nothing to write */
			ASSERT_EQ(d->decode(page, delta, 3 * runs, PAGE), -EBADMSG);
			if (runs > 1) { /* the last but one does not fit */
				ASSERT_EQ(d->decode(page, delta, 3 * runs - 3, 2 * runs - 3),
					  -EBADMSG);
			}
			for (size_t i = 0; i < PAGE; i++) {
				ASSERT_EQ(page[i], 0);
			}
		}
	}
}

TEST(noise_never_writes_outside_of_the_page)
{
	static uint8_t room[PAGE + 512], delta[64];
	uint64_t s = test_seed();
	const struct gr_xbzrle_decoder *d;
	unsigned int good = 0;
	int valid;

	for (int round = 0; round < 200000; round++) {
		size_t n = test_rand(&s) % 16;

		for (size_t i = 0; i < n; i++) {
			delta[i] = (uint8_t)(test_rand(&s) % (round & 1 ? 256 : 5));
		}
		valid = gr_xbzrle_check(delta, n, 32);
		good += valid == 0;
		for (unsigned int k = 0; (d = gr_xbzrle_decoder(k)) != NULL; k++) {
			ASSERT_EQ(d->decode(room + 256, delta, n, 32), valid);
		}
	}
	ASSERT_GT(good, 100u);
	for (size_t i = 0; i < sizeof(room); i++) {
		if (i < 256 || i >= 256 + 32) {
			ASSERT_EQ(room[i], 0);
		}
	}
}

/* Pages as guests make them: a few words, a stretch, a pattern, noise, all of it. */
static void change(uint8_t *page, size_t bytes, unsigned int how, uint64_t *s)
{
	unsigned int n = (unsigned int)(test_rand(s) % 40);

	switch (how % 6) {
	case 0: /* nothing */
		return;
	case 1:
		for (; n > 0; n--) {
			page[test_rand(s) % bytes] ^= (uint8_t)(1 + test_rand(s) % 255);
		}
		return;
	case 2:
		for (; n > 0; n--) {
			size_t at = (size_t)(test_rand(s) % bytes),
			       len = (size_t)(test_rand(s) % 200);

			for (size_t i = at; i < bytes && i < at + len; i++) {
				page[i] = (uint8_t)(page[i] + 1);
			}
		}
		return;
	case 3: /* every n-th byte: gaps of each length */
		for (size_t i = n; i < bytes; i += 1 + n % 9) {
			page[i] ^= 1;
		}
		return;
	case 4: /* the ends */
		page[0] ^= 1;
		page[bytes - 1] ^= 1;
		return;
	default:
		for (size_t i = 0; i < bytes; i++) {
			page[i] ^= (uint8_t)test_rand(s);
		}
	}
}

TEST(every_encoder_writes_what_every_decoder_turns_into_the_new_page_and_the_same_as_the_others)
{
	const struct gr_xbzrle_decoder *d;
	enum { LARGE = 65536 };
	static uint8_t old[LARGE], new[LARGE], got[LARGE], delta[LARGE + 64];
	static const size_t sizes[] = { 64, 4096, 8192, 16384, LARGE };
	const struct gr_xbzrle_encoder *e;
	uint64_t s = test_seed();

	for (unsigned int round = 0; round < 3000; round++) {
		size_t bytes = sizes[round % 50 == 0 ? 4 : round % 3];
		size_t room = round % 7 == 0 ? (size_t)(test_rand(&s) % bytes) : bytes - 1;
		ssize_t first = 0;

		for (size_t i = 0; i < bytes; i++) {
			old[i] = new[i] = (uint8_t)test_rand(&s);
		}
		change(new, bytes, round, &s);
		for (unsigned int i = 0; (e = gr_xbzrle_encoder(i)) != NULL; i++) {
			ssize_t n;

			memset(delta, 0x5a, sizeof(delta));
			n = e->encode(old, new, bytes, delta, room);
			first = i == 0 ? n : first;
			ASSERT_EQ(n, first);
			ASSERT_EQ(delta[room], 0x5a); /* not written beyond */
			ASSERT_EQ(n == 0, memcmp(old, new, bytes) == 0);
			if (n <= 0) {
				ASSERT(n == 0 || n == -E2BIG);
				continue;
			}
			ASSERT_EQ(gr_xbzrle_check(delta, (size_t)n, bytes), 0);
			for (unsigned int k = 0; (d = gr_xbzrle_decoder(k)) != NULL; k++) {
				memcpy(got, old, bytes);
				ASSERT_EQ(d->decode(got, delta, (size_t)n, bytes), 0);
				ASSERT_MEM_EQ(got, new, bytes);
			}
		}
	}
}

TEST(the_encoders_are_those_that_this_processor_has_the_plain_one_last)
{
	const struct gr_xbzrle_encoder *e = NULL;
	unsigned int n = 0;

	while (gr_xbzrle_encoder(n)) {
		e = gr_xbzrle_encoder(n++);
		printf("# %s\n", e->name);
	}
	ASSERT_GE(n, 1u);
	ASSERT_STR_EQ(e->name, "plain");
#if defined(__x86_64__)
	ASSERT_GE(n, 2u);
#endif
}

TEST(a_delta_is_as_long_as_it_must_be)
{
	static uint8_t old[PAGE], new[PAGE], delta[PAGE];

	/* first byte: skip 0, count 1, byte */
	new[0] = 1;
	ASSERT_EQ(gr_xbzrle_encode(old, new, PAGE, delta, PAGE), 3);
	ASSERT_MEM_EQ(delta, "\0\1\1", 3);
	/* far away: two bytes of skip */
	new[0] = 0;
	new[4095] = 7;
	ASSERT_EQ(gr_xbzrle_encode(old, new, PAGE, delta, PAGE), 4);
	ASSERT_MEM_EQ(delta, "\xff\x1f\1\7", 4);
	/* across units of 64: one run */
	memset(new, 0, PAGE);
	memset(new + 60, 9, 100);
	ASSERT_EQ(gr_xbzrle_encode(old, new, PAGE, delta, PAGE), 102);
	/* a gap of three is sent along, one of four is skipped */
	memset(new, 0, PAGE);
	new[10] = new[14] = 1;
	ASSERT_EQ(gr_xbzrle_encode(old, new, PAGE, delta, PAGE), 2 + 5);
	new[14] = 0;
	new[15] = 1;
	ASSERT_EQ(gr_xbzrle_encode(old, new, PAGE, delta, PAGE), 3 + 3);
	/* the last byte that has room, and one less */
	ASSERT_EQ(gr_xbzrle_encode(old, new, PAGE, delta, 6), 6);
	ASSERT_EQ(gr_xbzrle_encode(old, new, PAGE, delta, 5), -E2BIG);
}

TEST(what_the_format_cannot_say_is_too_much_and_long_ways_are_taken_in_steps)
{
	enum { LARGE = 65536 };
	static uint8_t old[LARGE], new[LARGE], delta[LARGE], got[LARGE];

	/* every distance around multiples of the longest number, also just behind a step */
	for (size_t k = 1; k < 4; k++) {
		for (size_t at = k * 0x3fff - 4; at < k * 0x3fff + 8; at++) {
			ssize_t n;

			memset(new, 0, LARGE);
			new[at] = 1;
			n = gr_xbzrle_encode(old, new, LARGE, delta, LARGE);
			ASSERT_GT(n, 0);
			memset(got, 0, LARGE);
			ASSERT_EQ(gr_xbzrle_decode(got, delta, (size_t)n, LARGE), 0);
			ASSERT_MEM_EQ(got, new, LARGE);
		}
	}
	memset(new, 0, LARGE);
	memset(new + 5, 1, 0x3fff);
	ASSERT_GT(gr_xbzrle_encode(old, new, LARGE, delta, LARGE), 0x3fff);
	memset(new + 5, 1, 0x4000);
	ASSERT_EQ(gr_xbzrle_encode(old, new, LARGE, delta, LARGE), -E2BIG);
}

TEST(a_page_is_zero_if_each_byte_is)
{
	static uint64_t page[PAGE / 8];

	ASSERT(gr_is_zero(page, PAGE));
	for (size_t i = 0; i < PAGE; i++) {
		((uint8_t *)page)[i] = 0x80;
		ASSERT(!gr_is_zero(page, PAGE));
		((uint8_t *)page)[i] = 0;
	}
	ASSERT(gr_is_zero(page, 64));
}

TEST_MAIN()
