/* SPDX-License-Identifier: MIT */
/* What a destination makes of a stream: bytes placed, marks made, cut or damaged streams refused.
 */
#include "destination_kit.h"
#include <unistd.h>

static void whole(struct gr_ram *from, const uint8_t *data, size_t bytes, bool ours)
{
	static const size_t pieces[] = { 0, 1, 7, 4096, 5000 };

	for (size_t i = 0; i < sizeof(pieces) / sizeof(pieces[0]); i++) {
		struct move_loaded loaded = { 0 };
		struct gr_destination_ops ops = { .load = move_load, .opaque = &loaded };
		struct feed f = {
			.data = data, .bytes = bytes, .read_max = pieces[i], .ops = &ops
		};
		struct gr_ram *to = move_ram();

		feed(&f, to);
		if (f.rc != 0) {
			FAIL("in pieces of %zu: %s", pieces[i], f.err.msg);
		}
		ASSERT_EQ(move_compare(from, to), 0u);
		ASSERT_STR_EQ(loaded.order, "firstsecond");
		ASSERT_EQ(loaded.first, 42u);
		ASSERT_EQ(shut_of(&f), 0);
		(void)ours;
		ASSERT(f.stats.state == GR_MIGRATE_COMPLETED);
		gr_ram_free(to);
	}
}

TEST(whole_streams_are_taken_in_any_pieces)
{
	both_dialects(whole);
}

static void prefix(const uint8_t *data, size_t bytes)
{
	struct move_loaded loaded = { 0 };
	struct gr_destination_ops ops = { .load = move_load, .opaque = &loaded };
	struct feed f = { .data = data, .bytes = bytes, .ops = &ops };
	struct gr_ram *to = move_ram();

	feed(&f, to);
	if (f.rc >= 0) {
		FAIL("a stream cut at byte %zu is accepted", bytes);
	}
	ASSERT_EQ(loaded.calls, 0u);
	ASSERT(f.stats.state == GR_MIGRATE_FAILED);
	ASSERT_NE(shut_of(&f), 0);
	ASSERT_HAS(f.err.msg, "byte");
	gr_ram_free(to);
}

static void prefixes(struct gr_ram *from, const uint8_t *data, size_t bytes, bool ours)
{
	uint64_t seed = test_seed();

	(void)from, (void)ours;
	for (size_t n = 0; n < 200; n++) {
		prefix(data, n);
		prefix(data, bytes - 1 - n);
		prefix(data, test_rand(&seed) % bytes);
	}
}

TEST(every_proper_prefix_is_refused_and_the_source_hears_no_success)
{
	both_dialects(prefixes);
}

static void flips(struct gr_ram *from, const uint8_t *data, size_t bytes, bool ours)
{
	uint64_t seed = test_seed();
	uint8_t *copy = malloc(bytes);

	(void)from, (void)ours;
	ASSERT(copy);
	for (int i = 0; i < 400; i++) {
		struct feed f = { .data = copy, .bytes = bytes };
		struct gr_ram *to = move_ram();
		/* Half of them in the first bytes, where the structure is. */
		size_t at = test_rand(&seed) % (i % 2 ? bytes : 300);

		memcpy(copy, data, bytes);
		copy[at] ^= (uint8_t)(1u << test_rand(&seed) % 8);
		feed(&f, to);
		ASSERT_EQ(f.rc < 0, f.stats.state == GR_MIGRATE_FAILED);
		gr_ram_free(to);
	}
	free(copy);
}

TEST(flipped_bits_are_an_error_or_other_bytes_never_a_crash)
{
	both_dialects(flips);
}

TEST(an_error_says_what_was_placed)
{
	struct made s;
	struct feed f = { 0 };
	struct gr_ram *to = move_ram();

	make(&s);
	make_start(&s, name, RAM_BYTES);
	for (unsigned int i = 0; i < 5; i++) {
		write_page(&s, name, i, 1);
	}
	/* Beyond the end: the writer does not know the lengths. */
	write_page(&s, name, RAM_PAGES, 1);
	make_end(&s, &f);
	feed(&f, to);
	ASSERT_EQ(f.rc, -EBADMSG);
	ASSERT_HAS(f.err.msg, "byte ");
	ASSERT_HAS(f.err.msg, "'ram'");
	ASSERT_HAS(f.err.msg, "RAM is incomplete, pages placed: ram 5 of 64");
	unmake(&s);
	gr_ram_free(to);
}

TEST(a_block_that_stays_at_home_is_not_filled)
{
	struct gr_ram_block_desc desc = { .size = sizeof(desc),
					  .id = name,
					  .fd = -1,
					  .used_bytes = RAM_BYTES,
					  .flags = GR_RAM_NO_MIGRATE };
	struct made s;
	struct feed f = { 0 };
	struct gr_ram *to = move_ram();

	ASSERT_EQ(gr_ram_block_add(to, &desc, NULL, NULL), 0);
	make(&s);
	make_start(&s, name, RAM_BYTES);
	make_end(&s, &f);
	feed(&f, to);
	ASSERT_EQ(f.rc, -EINVAL);
	ASSERT_HAS(f.err.msg, "no part");
	unmake(&s);
	gr_ram_free(to);
}

TEST(the_second_content_of_a_page_wins_and_zeros_clear)
{
	struct made s;
	struct feed f = { 0 };
	struct gr_ram *to = move_ram();
	struct gr_ram_block *b;

	b = move_add(to, name, RAM_BYTES, 0, GR_RAM_MEMFD);
	memset(b->host + 9 * MOVE_PAGE, 7, MOVE_PAGE);
	make(&s);
	make_start(&s, name, RAM_BYTES);
	write_page(&s, name, 3, 1);
	write_page(&s, name, 3, 2);
	write_page(&s, name, 4, 1);
	ASSERT_EQ(gr_stream_write_zero(s.w, name, 4 * MOVE_PAGE, NULL), 0);
	ASSERT_EQ(gr_stream_write_zero(s.w, name, 9 * MOVE_PAGE, NULL), 0);
	ASSERT_EQ(gr_stream_write_zero(s.w, name, 10 * MOVE_PAGE, NULL), 0);
	make_end(&s, &f);
	feed(&f, to);
	ASSERT_EQ(f.rc, 0);
	ASSERT_EQ(b->host[3 * MOVE_PAGE], 2);
	ASSERT_EQ(b->host[4 * MOVE_PAGE], 0);
	ASSERT_EQ(b->host[9 * MOVE_PAGE + 4095], 0);
	/* Page 10 was never there, and is not now. */
	ASSERT_EQ(lseek(b->fd, (off_t)b->fd_offset + 10 * MOVE_PAGE, SEEK_DATA), -1);
	unmake(&s);
	gr_ram_free(to);
}

TEST(differences_apply_to_what_is_there)
{
	/* skip 2, 3 bytes */
	static const uint8_t delta[] = { 2, 3, 'a', 'b', 'c' };
	struct made s;
	struct feed f = { 0 };
	struct gr_ram *to = move_ram();
	struct gr_ram_block *b = move_add(to, name, RAM_BYTES, 0, GR_RAM_MEMFD);

	make(&s);
	make_start(&s, name, RAM_BYTES);
	write_page(&s, name, 3, 1);
	ASSERT_EQ(gr_stream_write_xbzrle(s.w, name, 3 * MOVE_PAGE, delta, sizeof(delta), NULL), 0);
	ASSERT_EQ(gr_stream_write_xbzrle(s.w, name, 5 * MOVE_PAGE, delta, sizeof(delta), NULL), 0);
	make_end(&s, &f);
	feed(&f, to);
	ASSERT_EQ(f.rc, 0);
	ASSERT_EQ(f.stats.xbzrle_pages, 2u);
	ASSERT_MEM_EQ(b->host + 3 * MOVE_PAGE, "\1\1abc\1", 6);
	ASSERT_MEM_EQ(b->host + 5 * MOVE_PAGE, "\0\0abc\0", 6);
	unmake(&s);
	gr_ram_free(to);
}

TEST(what_arrives_is_dirty_for_consumers_here)
{
	struct made s;
	struct feed f = { 0 };
	struct gr_ram *to = move_ram();
	struct gr_dirty_consumer *c;
	uint64_t pages, first, n;

	move_add(to, name, RAM_BYTES, 0, GR_RAM_MEMFD);
	ASSERT_EQ(gr_dirty_consumer_add(gr_ram_dirty(to), "backup", GR_DIRTY_START_CLEAN, &c, NULL),
		  0);
	make(&s);
	make_start(&s, name, RAM_BYTES);
	write_page(&s, name, 3, 1);
	write_page(&s, name, 4, 1);
	ASSERT_EQ(gr_stream_write_zero(s.w, name, 4 * MOVE_PAGE, NULL), 0);
	make_end(&s, &f);
	feed(&f, to);
	ASSERT_EQ(f.rc, 0);
	ASSERT_EQ(gr_dirty_epoch_begin(c, &pages, NULL), 0);
	ASSERT_EQ(pages, 2u);
	ASSERT(gr_dirty_epoch_next(c, 0, &first, &n));
	ASSERT_EQ(first, 3u);
	ASSERT_EQ(n, 2u);
	gr_dirty_consumer_del(c);
	unmake(&s);
	gr_ram_free(to);
}

/* What came of it is in memory already, and no record tells of it. */
TEST(the_pages_of_a_range_that_breaks_off_are_dirty_for_consumers_here)
{
	enum { FIRST = 16, RANGE_PAGES = 8 };
	static uint8_t data[RANGE_PAGES * MOVE_PAGE];
	struct gr_stream_block_desc d = { .id = name,
					  .used_bytes = RAM_BYTES,
					  .max_bytes = RAM_BYTES,
					  .incarnation = 5,
					  .page_bytes = MOVE_PAGE };
	struct gr_channel_file no_file = { .fd = -1 };
	struct made s;
	struct feed f = { 0 };
	struct gr_ram *to = move_ram();
	struct gr_ram_block *b = move_add(to, name, RAM_BYTES, 0, GR_RAM_MEMFD);
	struct gr_dirty_consumer *c;
	uint64_t pages, first, n;

	memset(data, 0x11, sizeof(data));
	memset(b->host, 0xee, RAM_BYTES);
	ASSERT_EQ(gr_dirty_consumer_add(gr_ram_dirty(to), "backup", GR_DIRTY_START_CLEAN, &c, NULL),
		  0);
	make(&s);
	ASSERT_EQ(gr_stream_write_command(s.w, GR_COMMAND_OPEN_RETURN_PATH, NULL, 0, NULL), 0);
	ASSERT_EQ(gr_stream_write_ping(s.w, GR_PING_FEATURES, NULL), 0);
	make_start(&s, name, RAM_BYTES);
	ASSERT_EQ(gr_stream_write_announce(s.w, &d, 1, NULL), 0);
	ASSERT_EQ(gr_stream_write_page_range(s.w, name, FIRST * MOVE_PAGE, data, sizeof(data),
					     &no_file, NULL),
		  0);
	ASSERT_EQ(gr_stream_flush(s.w, NULL), 0);
	f.data = gr_channel_memory_written(s.ch, &f.bytes);
	f.bytes -= 3 * MOVE_PAGE + 7;
	feed(&f, to);
	ASSERT_EQ(f.rc, -EPIPE);
	ASSERT_EQ(b->host[(FIRST + 3) * MOVE_PAGE], 0x11);
	ASSERT_EQ(gr_dirty_epoch_begin(c, &pages, NULL), 0);
	ASSERT_EQ(pages, (uint64_t)RANGE_PAGES);
	ASSERT(gr_dirty_epoch_next(c, 0, &first, &n));
	ASSERT_EQ(first, (uint64_t)FIRST);
	ASSERT_EQ(n, (uint64_t)RANGE_PAGES);
	gr_dirty_consumer_del(c);
	unmake(&s);
	gr_ram_free(to);
}

TEST_MAIN()
