/* SPDX-License-Identifier: MIT */
#include "harness.h"
#include "stream/json.h"
#include "stream_kit.h"
#include <errno.h>

static struct gr_tail tail_of(const void *data, size_t n)
{
	struct gr_tail t;

	gr_tail_init(&t, 0);
	ASSERT_EQ(gr_tail_append(&t, data, n, NULL), 0);
	return t;
}

TEST(a_tail_is_complete_exactly_with_its_last_byte)
{
	struct kit_bytes b = { 0 };
	struct gr_error err = { 0 };
	struct gr_tail t;

	kit_tail(&b);
	gr_tail_init(&t, 0);
	for (size_t i = 0; i < b.n; i++) {
		ASSERT(!gr_tail_is_complete(&t));
		ASSERT_EQ(gr_tail_finish(&t, false, &err), -EPIPE);
		ASSERT_HAS(err.msg, "byte ");
		ASSERT_EQ(gr_tail_append(&t, b.p + i, 1, NULL), 0);
	}
	ASSERT(gr_tail_is_complete(&t));
	ASSERT_EQ(gr_tail_finish(&t, false, NULL), 0);
	ASSERT_EQ(gr_tail_append(&t, " ", 1, NULL), 0);
	ASSERT(!gr_tail_is_complete(&t));
	gr_tail_destroy(&t);
	kit_free(&b);
}

TEST(unterminated_tails_are_accepted_only_when_asked_for)
{
	struct gr_tail t = tail_of("\4devices", 8);

	ASSERT_EQ(gr_tail_finish(&t, false, NULL), -EPIPE);
	ASSERT_EQ(gr_tail_finish(&t, true, NULL), 0);
	ASSERT_EQ(gr_tail_sections_bytes(&t), 8u);
	gr_tail_destroy(&t);
	gr_tail_init(&t, 0);
	ASSERT_EQ(gr_tail_finish(&t, true, NULL), -EPIPE); /* nothing at all */
	gr_tail_destroy(&t);
}

TEST(data_that_looks_like_a_description_does_not_hide_the_real_one)
{
	struct kit_bytes b = { 0 };
	struct gr_tail t;
	size_t n;

	for (uint32_t i = 0; i < 3; i++) { /* ends behind, at, and before the last byte */
		kit_u8(&b, 0);
		kit_u8(&b, 6);
		kit_be32(&b, i == 0 ? 100000 : i == 1 ? 0 : 8);
		kit_raw(&b, "{\"no json", 9);
	}
	n = b.n;
	kit_tail(&b);
	gr_put_be32(b.p + 15 + 2, (uint32_t)(b.n - 15 - 6)); /* the second one: to the end */
	t = tail_of(b.p, b.n);
	ASSERT(gr_tail_is_complete(&t));
	ASSERT_GT(gr_tail_sections_bytes(&t), n);
	gr_tail_destroy(&t);
	kit_free(&b);
}

TEST(any_number_of_look_alikes_does_not_hide_the_real_description)
{
	struct kit_bytes b = { 0 };
	struct gr_tail t;

	for (uint32_t i = 0; i < 10 * GR_TAIL_CANDIDATES_MAX; i++) {
		kit_u8(&b, 0);
		kit_u8(&b, 6);
		kit_be32(&b, 1 << 20); /* all of them end far behind */
		kit_raw(&b, "{", 1);
	}
	kit_tail(&b);
	t = tail_of(b.p, b.n);
	ASSERT(gr_tail_is_complete(&t));
	gr_tail_destroy(&t);
	gr_tail_init(&t, 0);
	for (size_t i = 0; i < b.n; i++) {
		ASSERT(!gr_tail_is_complete(&t));
		ASSERT_EQ(gr_tail_append(&t, b.p + i, 1, NULL), 0);
	}
	ASSERT(gr_tail_is_complete(&t));
	gr_tail_destroy(&t);
	kit_free(&b);
}

TEST(a_tail_has_a_maximum)
{
	struct gr_tail t;
	struct gr_error err = { 0 };
	static uint8_t data[1000];

	gr_tail_init(&t, 2500);
	ASSERT_EQ(gr_tail_append(&t, data, 1000, NULL), 0);
	ASSERT_EQ(gr_tail_append(&t, data, 1000, NULL), 0);
	ASSERT_EQ(gr_tail_append(&t, data, 1000, &err), -EFBIG);
	ASSERT_HAS(err.msg, "2500");
	ASSERT_EQ(t.bytes, 2000u);
	ASSERT_EQ(gr_tail_append(&t, data, 500, NULL), 0);
	gr_tail_destroy(&t);
}

/* Sections of QEMU's kind: no lengths, and data that looks like footers. */
static void section(struct kit_bytes *b, uint32_t id, const char *name, uint32_t instance,
		    const void *data, size_t n)
{
	kit_u8(b, 4);
	kit_be32(b, id);
	kit_str8(b, name);
	kit_be32(b, instance);
	kit_be32(b, id + 40);
	kit_raw(b, data, n);
	kit_u8(b, 0x7e);
	kit_be32(b, id);
}

static void description(struct kit_bytes *b, const char *json)
{
	kit_u8(b, 0);
	kit_u8(b, 6);
	kit_be32(b, (uint32_t)strlen(json));
	kit_raw(b, json, strlen(json));
}

TEST(devices_are_listed_and_their_sections_found)
{
	struct kit_bytes b = { 0 };
	struct gr_tail_device *d;
	struct gr_tail t;
	size_t n;

	section(&b, 0, "timer", 0, "abc", 3);
	section(&b, 7, "cpu", 1, "\x7e\0\0\0\7\x7e\0\0\0\7\4", 11);
	section(&b, 9, "0000:00:01.0/piix3", 0, "", 0);
	description(
		&b,
		"{\"page_size\": 4096, \"devices\": ["
		"{\"name\": \"timer\", \"instance_id\": 0, \"fields\": [{\"a\": [1, -2.5e3]}]},"
		"{\"instance_id\": 1, \"name\": \"c\\u0070u\"},"
		"{\"name\":\"0000:00:01.0\\/piix3\",\"instance_id\":0,\"x\":null,\"y\":true}]}");
	t = tail_of(b.p, b.n);
	ASSERT(!gr_tail_is_ours(&t));
	ASSERT_EQ(gr_tail_devices(&t, &d, &n, NULL), 0);
	ASSERT_EQ(n, 3u);
	ASSERT_STR_EQ(d[0].name, "timer");
	ASSERT_STR_EQ(d[1].name, "cpu");
	ASSERT_STR_EQ(d[2].name, "0000:00:01.0/piix3");
	ASSERT(d[0].located && d[1].located && d[2].located);
	ASSERT_EQ(d[0].data_bytes, 3u);
	ASSERT_MEM_EQ(t.data + d[0].data_at, "abc", 3);
	ASSERT_EQ(d[1].data_bytes, 11u);
	ASSERT_EQ(d[1].version, 47u);
	ASSERT_EQ(d[2].data_bytes, 0u);
	ASSERT_EQ(d[2].instance_id, 0u);
	free(d);
	gr_tail_destroy(&t);
	kit_free(&b);
}

TEST(a_section_that_cannot_be_found_is_listed_all_the_same)
{
	struct kit_bytes b = { 0 };
	struct gr_tail_device *d;
	struct gr_tail t;
	size_t n;

	section(&b, 0, "timer", 0, "abc", 3);
	description(&b, "{\"devices\": [{\"name\": \"timer\", \"instance_id\": 0},"
			"{\"name\": \"ghost\", \"instance_id\": 0}]}");
	t = tail_of(b.p, b.n);
	ASSERT_EQ(gr_tail_devices(&t, &d, &n, NULL), 0);
	ASSERT_EQ(n, 2u);
	ASSERT(!d[0].located && !d[1].located);
	free(d);
	gr_tail_destroy(&t);
	kit_free(&b);
}

TEST(descriptions_without_proper_devices_are_refused)
{
	static const char *const bad[] = {
		"{}",
		"{\"devices\": 1}",
		"{\"devices\": [1]}",
		"{\"devices\": [{\"name\": \"x\"}]}",
		"{\"devices\": [{\"name\": 1, \"instance_id\": 0}]}",
		"{\"devices\": [{\"name\": \"x\", \"instance_id\": -1}]}",
		"{\"devices\": [{\"name\": \"x\", \"instance_id\": 4294967296}]}",
		"{\"devices\": [{\"name\": \"\", \"instance_id\": 0}]}",
	};

	for (size_t i = 0; i < GR_ARRAY_SIZE(bad); i++) {
		struct kit_bytes b = { 0 };
		struct gr_error err = { 0 };
		struct gr_tail_device *d;
		struct gr_tail t;
		size_t n;

		description(&b, bad[i]);
		t = tail_of(b.p, b.n);
		ASSERT(gr_tail_is_complete(&t));
		if (gr_tail_devices(&t, &d, &n, &err) != -EBADMSG) {
			FAIL("accepted: %s", bad[i]);
		}
		gr_tail_destroy(&t);
		kit_free(&b);
	}
}

TEST(what_is_not_json_does_not_end_a_tail)
{
	static const char *const good[] = {
		"{}",
		"{\"a\": []}",
		"{\"a\":{\"b\":[1,2,{}]}, \"c\" : \"\\\"\\u00e9\\n\" }\n",
		"{\"n\": [0, -0, 1.5, 1e9, -1.25E-7, true, false, null]}",
	};
	static const char *const bad[] = {
		"{",
		"{\"a\"}",
		"{\"a\":}",
		"{\"a\":1,}",
		"{,}",
		"{\"a\":[1,]}",
		"{\"a\":[1}",
		"{\"a\":01}",
		"{\"a\":1.}",
		"{\"a\":+1}",
		"{\"a\":1e}",
		"{a:1}",
		"{\"a\":\"\n\"}",
		"{\"a\":\"\\x\"}",
		"{\"a\":\"\\u12g4\"}",
		"{\"a\":tru}",
		"{} {}",
		"{\"a\":\"",
		"{\"a\":'1'}",
		"{\"a\":-}",
	};
	char deep[2 * 200 + 8] = "{\"a\":";

	for (size_t i = 0; i < GR_ARRAY_SIZE(good) + GR_ARRAY_SIZE(bad); i++) {
		bool is_good = i < GR_ARRAY_SIZE(good);
		const char *text = is_good ? good[i] : bad[i - GR_ARRAY_SIZE(good)];
		struct gr_json j = gr_json(text, strlen(text));

		if (gr_json_skip_last(&j) != is_good) {
			FAIL("judged wrong: %s", text);
		}
	}
	for (size_t depth = 10; depth < 200; depth += 60) {
		struct gr_json j;

		memset(deep + 5, '[', depth);
		memset(deep + 5 + depth, ']', depth);
		deep[5 + 2 * depth] = '}';
		j = gr_json(deep, 6 + 2 * depth);
		ASSERT_EQ(gr_json_skip_last(&j), depth < GR_JSON_DEPTH_MAX);
	}
}

TEST(our_own_tails_are_recognised_and_walked)
{
	struct gr_tail_builder b;
	struct gr_tail_section s;
	struct gr_tail_device *d;
	const uint8_t *data;
	size_t n, cursor = 0, count;
	struct gr_tail t;

	gr_tail_builder_init(&b, 4096);
	gr_tail_builder_add(&b, 1, "cpu", 0, 3, "registers", 9);
	gr_tail_builder_add(&b, 1, "cpu", 1, 3, NULL, 0);
	gr_tail_builder_add(&b, 2, "device thread", 0, 1, "\x7e\0\0\0\2", 5);
	ASSERT_EQ(gr_tail_builder_finish(&b, &data, &n, NULL), 0);
	t = tail_of(data, n);
	gr_tail_builder_destroy(&b);
	ASSERT(gr_tail_is_complete(&t));
	ASSERT(gr_tail_is_ours(&t));
	ASSERT_EQ(gr_tail_section_next(&t, &cursor, &s, NULL), 1);
	ASSERT_EQ(s.section_id, 1u);
	ASSERT_EQ(s.version, 3u);
	ASSERT_EQ(s.name_bytes, 3u);
	ASSERT_EQ(s.data_bytes, 9u);
	ASSERT_MEM_EQ(s.data, "registers", 9);
	ASSERT_EQ(gr_tail_section_next(&t, &cursor, &s, NULL), 1);
	ASSERT_EQ(s.instance_id, 1u);
	ASSERT_EQ(s.data_bytes, 0u);
	ASSERT_EQ(gr_tail_section_next(&t, &cursor, &s, NULL), 1);
	ASSERT_EQ(s.data_bytes, 5u);
	ASSERT_EQ(gr_tail_section_next(&t, &cursor, &s, NULL), 0);
	ASSERT_EQ(gr_tail_devices(&t, &d, &count, NULL), 0);
	ASSERT_EQ(count, 3u);
	ASSERT(d[2].located);
	ASSERT_EQ(d[2].data_bytes, 4u + 5u); /* with our length */
	free(d);
	gr_tail_destroy(&t);
}

TEST(an_empty_tail_of_ours_is_complete)
{
	struct gr_tail_builder b;
	struct gr_tail_section s;
	const uint8_t *data;
	size_t n, cursor = 0;
	struct gr_tail t;

	gr_tail_builder_init(&b, 4096);
	ASSERT_EQ(gr_tail_builder_finish(&b, &data, &n, NULL), 0);
	t = tail_of(data, n);
	gr_tail_builder_destroy(&b);
	ASSERT(gr_tail_is_ours(&t));
	ASSERT_EQ(gr_tail_section_next(&t, &cursor, &s, NULL), 0);
	gr_tail_destroy(&t);
}

TEST(a_name_that_json_would_not_bear_is_refused)
{
	static const char *const bad[] = { "", "a\"b", "a\\b", "a\nb" };

	for (size_t i = 0; i < GR_ARRAY_SIZE(bad); i++) {
		struct gr_tail_builder b;
		struct gr_error err = { 0 };
		const uint8_t *data;
		size_t n;

		gr_tail_builder_init(&b, 4096);
		gr_tail_builder_add(&b, 1, bad[i], 0, 1, "x", 1);
		gr_tail_builder_add(&b, 1, "good", 0, 1, "x", 1);
		ASSERT_EQ(gr_tail_builder_finish(&b, &data, &n, &err), -EINVAL);
		gr_tail_builder_destroy(&b);
	}
}

TEST(a_damaged_tail_of_ours_is_refused_not_followed)
{
	struct gr_tail_builder b;
	const uint8_t *data;
	size_t n;

	gr_tail_builder_init(&b, 4096);
	gr_tail_builder_add(&b, 1, "cpu", 0, 3, "registers", 9);
	gr_tail_builder_add(&b, 2, "dev", 0, 3, "more", 4);
	ASSERT_EQ(gr_tail_builder_finish(&b, &data, &n, NULL), 0);
	for (size_t bit = 0; bit < 8 * n; bit++) {
		struct gr_tail t = tail_of(data, n);
		struct gr_tail_section s;
		size_t cursor = 0, seen = 0;
		struct gr_error err = { 0 };
		int rc = 0;

		t.data[bit / 8] ^= (uint8_t)(1 << bit % 8);
		while (gr_tail_is_ours(&t) &&
		       (rc = gr_tail_section_next(&t, &cursor, &s, &err)) > 0) {
			ASSERT_LE(cursor, n);
			seen += s.data_bytes;
		}
		ASSERT(rc == 0 || (rc == -EBADMSG && strstr(err.msg, "byte ")));
		ASSERT_LE(seen, n);
		gr_tail_destroy(&t);
	}
	gr_tail_builder_destroy(&b);
}

TEST_MAIN()
