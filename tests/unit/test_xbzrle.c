/* SPDX-License-Identifier: MIT */
#include "harness.h"
#include "stream/reader.h"
#include "stream/xbzrle_decode.h"
#include "stream/xbzrle_encode.h"
#include "xbzrle_model.h"
#include <errno.h>
#include <sys/mman.h>

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

/* Memory that ends where nothing is: who reads or writes on is ended. */
static uint8_t *before_nothing(size_t bytes)
{
	size_t room = 65536;
	uint8_t *p =
		mmap(NULL, 2 * room, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	ASSERT(p != MAP_FAILED && bytes <= room);
	ASSERT_EQ(mprotect(p + room, room, PROT_NONE), 0);
	return p + room - bytes;
}

static size_t put_number(uint8_t *p, size_t v)
{
	p[0] = (uint8_t)(v < 0x80 ? v : v | 0x80);
	p[1] = (uint8_t)(v >> 7);
	return v < 0x80 ? 1 : 2;
}

/* Mostly right, of short runs or long ones; sometimes cut off or with a wrong byte. */
static size_t some_delta(uint8_t *delta, size_t page_bytes, uint64_t *s)
{
	static const size_t most[] = { 1, 3, 36, 36, 200 };
	size_t skip_max = most[test_rand(s) % 5], bytes_max = most[test_rand(s) % 5];
	size_t n = 0, out = 0;

	while (test_rand(s) % 64 != 0) {
		size_t skip = (size_t)(test_rand(s) % skip_max) + (n != 0);
		size_t bytes = (size_t)(test_rand(s) % bytes_max) + 1;

		if (page_bytes - out < skip + bytes) {
			break;
		}
		n += put_number(delta + n, skip);
		n += put_number(delta + n, bytes);
		out += skip + bytes;
		while (bytes-- > 0) {
			delta[n++] = (uint8_t)test_rand(s);
		}
	}
	if (n > 0 && test_rand(s) % 4 == 0) {
		delta[test_rand(s) % n] ^= (uint8_t)(1u << test_rand(s) % 8);
	}
	return n > 0 && test_rand(s) % 8 == 0 ? (size_t)(test_rand(s) % n) : n;
}

TEST(noise_does_what_it_says_or_nothing_and_only_in_the_page)
{
	enum { MOST = 1024, BEFORE = 64 };
	static uint8_t old[MOST], want[MOST], noise[2 * MOST];
	uint8_t *page_end = before_nothing(0), *delta_end = before_nothing(0);
	const struct gr_xbzrle_decoder *d;
	unsigned int good = 0, bad = 0;
	uint64_t s = test_seed();

	for (int round = 0; round < 30000; round++) {
		size_t page_bytes = 1 + (size_t)(test_rand(&s) % (round & 1 ? MOST : 100));
		size_t n = some_delta(noise, page_bytes, &s);
		uint8_t *page = page_end - page_bytes, *delta = delta_end - n;
		int valid;

		for (size_t i = 0; i < page_bytes; i++) {
			old[i] = want[i] = (uint8_t)test_rand(&s);
		}
		memcpy(delta, noise, n);
		valid = model_xbzrle_decode(want, delta, n, page_bytes) ? 0 : -EBADMSG;
		good += valid == 0;
		bad += valid != 0;
		ASSERT_EQ(gr_xbzrle_check(delta, n, page_bytes), valid);
		for (unsigned int k = 0; (d = gr_xbzrle_decoder(k)) != NULL; k++) {
			memcpy(page, old, page_bytes);
			memset(page - BEFORE, 0x5a, BEFORE);
			ASSERT_EQ(d->decode(page, delta, n, page_bytes), valid);
			ASSERT_MEM_EQ(page, valid == 0 ? want : old, page_bytes);
			for (size_t i = 1; i <= BEFORE; i++) {
				ASSERT_EQ(*(page - i), 0x5a);
			}
		}
	}
	ASSERT_GT(good, 1000u);
	ASSERT_GT(bad, 1000u);
}

/* Runs of each length at each distance from the end of the page, or of the delta: either is the
 * nearer one, as runs behind it say much in a few bytes of the page or little in many. */
TEST(what_is_copied_wide_ends_with_the_delta_and_with_the_page)
{
	static uint8_t want[300], delta[300];
	uint8_t *page_end = before_nothing(0), *delta_end = before_nothing(0);
	const struct gr_xbzrle_decoder *d;

	for (size_t bytes = 1; bytes <= 40; bytes++) {
		for (size_t behind = 0; behind <= 80; behind++) {
			size_t page_bytes = bytes + behind, n = put_number(delta, 0);
			uint8_t *page = page_end - page_bytes;

			n += put_number(delta + n, bytes);
			memset(delta + n, 7, bytes);
			n += bytes;
			/* how many of the bytes behind are said */
			for (size_t said = 0; said + 2 <= behind; said += 2) {
				memcpy(delta + n, "\1\1\11", 3);
				n += 3;
				memcpy(delta_end - n, delta, n);
				memset(want, 3, sizeof(want));
				ASSERT(model_xbzrle_decode(want, delta, n, page_bytes));
				for (unsigned int k = 0; (d = gr_xbzrle_decoder(k)) != NULL; k++) {
					memset(page, 3, page_bytes);
					ASSERT_EQ(d->decode(page, delta_end - n, n, page_bytes), 0);
					ASSERT_MEM_EQ(page, want, page_bytes);
				}
			}
		}
	}
}

/* The same of the encoders: a run of each length at each distance from the end of the page, into
 * room that just does, and into more. */
TEST(what_is_encoded_wide_ends_with_the_page_and_with_the_room)
{
	enum { BYTES = 128 };
	uint8_t *old = before_nothing(BYTES), *page = before_nothing(BYTES), got[BYTES];
	uint8_t *room_end = before_nothing(0);
	const struct gr_xbzrle_encoder *e;

	for (size_t bytes = 1; bytes <= 40; bytes++) {
		for (size_t behind = 0; behind <= 40; behind++) {
			size_t n = 2 + bytes;

			memset(page, 0, BYTES);
			memset(page + BYTES - behind - bytes, 7, bytes);
			for (unsigned int k = 0; (e = gr_xbzrle_encoder(k)) != NULL; k++) {
				for (size_t more = 0; more <= 64; more += 64) {
					uint8_t *out = room_end - n - more;

					ASSERT_EQ(e->encode(old, page, BYTES, out, n + more),
						  (ssize_t)n);
					memset(got, 0, BYTES);
					ASSERT_EQ(gr_xbzrle_decode(got, out, n, BYTES), 0);
					ASSERT_MEM_EQ(got, page, BYTES);
				}
				ASSERT_EQ(e->encode(old, page, BYTES, room_end - n + 1, n - 1),
					  -E2BIG);
			}
		}
	}
}

TEST(a_page_or_a_delta_of_4_gib_is_refused_not_cut_short)
{
	static const uint8_t delta[] = { 1, 1, 7 };
	const struct gr_xbzrle_decoder *d;
	uint8_t page[64] = { 0 };

	if (SIZE_MAX <= UINT32_MAX) {
		SKIP("nothing is as long here");
	}
	ASSERT_EQ(gr_xbzrle_check(delta, 3, UINT32_MAX), 0);
	ASSERT_EQ(gr_xbzrle_check(delta, 3, (size_t)UINT32_MAX + 1), -EBADMSG);
	ASSERT_EQ(gr_xbzrle_check(delta, (size_t)UINT32_MAX + 4, sizeof(page)), -EBADMSG);
	for (unsigned int k = 0; (d = gr_xbzrle_decoder(k)) != NULL; k++) {
		/* the delta, or the page, is never looked at beyond its first bytes */
		ASSERT_EQ(d->decode(page, delta, 3, (size_t)UINT32_MAX + 1), -EBADMSG);
		ASSERT_EQ(d->decode(page, delta, (size_t)UINT32_MAX + 4, sizeof(page)), -EBADMSG);
		ASSERT_EQ(page[1], 0);
		ASSERT_EQ(d->decode(page, delta, 3, UINT32_MAX), 0);
		ASSERT_EQ(page[1], 7);
		page[1] = 0;
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
