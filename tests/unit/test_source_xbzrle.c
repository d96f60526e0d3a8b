/* SPDX-License-Identifier: MIT */
/* Differences instead of pages: what the cache says must be what the destination has. */
#include "migrate/page_cache.h"
#include "migrate/source.h"
#include "move.h"
#include "track/tracker.h"
#include <guestram/ram_change.h>

enum { MIB = 1 << 20, PAGES = 512, RAM_BYTES = PAGES * MOVE_PAGE };

/* A machine whose guest stores between two rounds, as the test says, and never else. */
struct story {
	struct move m;
	struct gr_ram_block *block;
	void (*tell)(struct story *s, uint64_t round);
	struct move_guest guest; /* no threads */
	struct gr_source_ops ops;
	uint64_t rounds; /* after so many it ends */
};

static void store(struct story *s, uint64_t offset, const void *data, size_t bytes)
{
	ASSERT_EQ(gr_ram_write(s->m.from, gr_gpa(offset), data, bytes, NULL), 0);
}

static void store_byte(struct story *s, uint64_t offset, uint8_t value)
{
	store(s, offset, &value, 1);
}

static void store_random(struct story *s, uint64_t page, uint64_t seed)
{
	uint64_t words[MOVE_PAGE / 8];

	for (size_t i = 0; i < GR_ARRAY_SIZE(words); i++) {
		words[i] = test_rand(&seed);
	}
	store(s, page * MOVE_PAGE, words, sizeof(words));
}

static void store_zero(struct story *s, uint64_t page)
{
	static const uint8_t zero[MOVE_PAGE];

	store(s, page * MOVE_PAGE, zero, MOVE_PAGE);
}

static void story_begin(struct story *s, uint64_t cache_bytes)
{
	s->m.from = move_ram();
	s->m.to = move_ram();
	s->guest.ram = s->m.from;
	s->ops = move_guest_ops(&s->guest);
	s->m.ops = &s->ops;
	s->m.params.downtime_ns_max = 1; /* never by itself, but when nothing is left */
	s->m.params.rounds_max = s->rounds;
	s->m.params.xbzrle_cache_bytes = cache_bytes;
	s->block = move_add(s->m.from, "ram", RAM_BYTES, 0, GR_RAM_MEMFD);
	move_fill(s->block, 1, 0);
	move_guest_start(&s->guest);
}

/* Runs it to its end, which must be a good one. */
static void story_run(struct story *s)
{
	uint64_t told = 0;
	pthread_t thread;

	move_prepare(&s->m);
	ASSERT_EQ(pthread_create(&thread, NULL, move_receive, &s->m), 0);
	do {
		struct gr_source *source = s->m.source;

		/* All pages of the round have been sent; what is stored now is of the next one. */
		if (source->phase == GR_SOURCE_HARVEST && source->rounds > told) {
			told = source->rounds;
			s->tell(s, told);
		}
		s->m.rc = gr_source_step(source, &s->m.err);
	} while (s->m.rc > 0);
	gr_channel_end_writing(s->m.ch[0]);
	pthread_join(thread, NULL);
	move_finish(&s->m);
	if (s->m.rc != 0 || s->m.to_rc != 0) {
		FAIL("source %d '%s', destination %d '%s'", s->m.rc, s->m.err.msg, s->m.to_rc,
		     s->m.to_err.msg);
	}
	ASSERT_EQ(move_compare(s->m.from, s->m.to), 0u);
	ASSERT_EQ(s->m.stats.xbzrle_pages, s->m.to_stats.xbzrle_pages);
}

static void story_end(struct story *s)
{
	move_guest_stop(&s->guest);
	gr_ram_free(s->m.from);
	gr_ram_free(s->m.to);
}

static void ten_pages_each_round(struct story *s, uint64_t round)
{
	for (uint64_t page = 0; page < 10; page++) {
		uint64_t at = page * 7 * MOVE_PAGE + round;

		store_byte(s, at, (uint8_t)~s->block->host[at]);
	}
}

static void ten_pages(bool plain)
{
	struct story s = { .tell = ten_pages_each_round, .rounds = 5 };

	s.m.to_params.plain = plain; /* as a QEMU */
	story_begin(&s, MIB);
	story_run(&s);
	ASSERT_EQ(s.m.stats.xbzrle_cache_bytes, (uint64_t)MIB);
	/* Told after rounds 1 to 5; those of the second go whole, then three rounds and the last
	 * one. */
	ASSERT_EQ(s.m.stats.xbzrle_misses, 10u);
	ASSERT_EQ(s.m.stats.normal_pages, PAGES + 10u);
	ASSERT_EQ(s.m.stats.xbzrle_pages, 40u);
	ASSERT_LE(s.m.stats.xbzrle_bytes, 40u * 4);
	ASSERT_EQ(s.m.stats.xbzrle_unchanged_pages, 0u);
	ASSERT_EQ(s.m.stats.final_pages, 10u);
	story_end(&s);
}

TEST(pages_that_change_again_go_as_differences_from_the_third_round_on)
{
	ten_pages(false);
}

TEST(a_destination_that_knows_no_extension_takes_differences)
{
	ten_pages(true);
}

static void zero_and_back(struct story *s, uint64_t round)
{
	store_byte(s, 500 * MOVE_PAGE, (uint8_t)round); /* so that no round is empty */
	for (uint64_t page = 0; page < 64; page++) {
		if (round == 1) {
			store_random(s, page, page + 100);
		} else if (round == 2) {
			store_zero(s, page);
		} else if (round == 3) {
			/* But for a byte as it was before it was zero. */
			store_random(s, page, page + 100);
			store_byte(s, page * MOVE_PAGE + 77, 1);
		}
	}
	if (round == 2) {
		ASSERT_EQ(gr_ram_discard(s->block, 0, 8 * (uint64_t)MOVE_PAGE, NULL), 0);
	}
}

TEST(what_was_sent_as_zero_is_zero_for_the_differences_after_it)
{
	struct story s = { .tell = zero_and_back, .rounds = 5 };

	story_begin(&s, MIB);
	story_run(&s);
	ASSERT_GE(s.m.stats.xbzrle_overflows, 64u); /* against zeros all of it has changed */
	story_end(&s);
}

/* A guest that stores the moment after a page was copied: while pages behind it are re-armed. */
struct busy_guest {
	struct gr_tracker base;
	struct story *story;
	unsigned int stores;
};

static int store_elsewhere(struct gr_tracker *t, struct gr_ram_block *block, uint64_t offset,
			   uint64_t bytes, struct gr_error *err)
{
	struct busy_guest *b = (struct busy_guest *)(void *)t;

	(void)block, (void)bytes, (void)err;
	if (offset == 9 * MOVE_PAGE && b->story->m.source->rounds == 3) {
		store_byte(b->story, 5, 0xee);
		b->stores++;
	}
	return 0;
}

static void busy_destroy(struct gr_tracker *t)
{
	free(t);
}

static void two_pages(struct story *s, uint64_t round)
{
	if (round < 4) {
		store_byte(s, 100, (uint8_t)round);
		store_byte(s, 9 * MOVE_PAGE, (uint8_t)round);
	}
	store_byte(s, 500 * MOVE_PAGE, (uint8_t)round);
}

TEST(the_cache_keeps_what_was_sent_not_what_the_page_has_become)
{
	static const struct gr_tracker_ops tracker_ops = {
		.name = "busy guest",
		.covers = GR_WRITERS_MAPPING,
		.destroy = busy_destroy,
		.rearm = store_elsewhere,
	};
	struct story s = { .tell = two_pages, .rounds = 6 };
	struct busy_guest *tracker = calloc(1, sizeof(*tracker));

	story_begin(&s, MIB);
	tracker->base.ops = &tracker_ops;
	tracker->story = &s;
	s.m.params.writers = GR_WRITERS_MAPPING | GR_WRITERS_MARKED;
	ASSERT_EQ(gr_track_create(s.m.from, &s.m.track, NULL), 0);
	ASSERT_EQ(gr_track_use_tracker(s.m.track, &tracker->base, NULL), 0);
	story_run(&s);
	ASSERT_EQ(tracker->stores, 1u);
	story_end(&s);
	gr_track_free(s.m.track);
}

static void swap_blocks(struct story *s, uint64_t round)
{
	struct gr_ram_block *block;

	store_byte(s, 500 * MOVE_PAGE, (uint8_t)round);
	if (round == 1) {
		block = move_add(s->m.from, "dimm", 64 * MOVE_PAGE, 1ull << 32, GR_RAM_MEMFD);
		move_fill(block, 5, 0);
	} else if (round == 2) {
		store_byte(s, 1ull << 32, 1);
	} else if (round == 3) {
		gr_rcu_read_lock();
		block = gr_ram_block_by_id_rcu(s->m.from, "dimm");
		gr_ram_block_get(block);
		gr_rcu_read_unlock();
		ASSERT_EQ(gr_ram_block_del(block, NULL), 0);
		gr_ram_block_put(block);
		gr_rcu_synchronize();
		/* At the same addresses, with what the other one had, but for a byte. */
		block = move_add(s->m.from, "dimm", 64 * MOVE_PAGE, 1ull << 32, GR_RAM_MEMFD);
		move_fill(block, 5, 0);
		store_byte(s, (1ull << 32) + 9, 1);
	}
}

TEST(a_block_in_the_place_of_another_one_is_not_compared_with_it)
{
	struct story s = { .tell = swap_blocks, .rounds = 5 };

	story_begin(&s, 4 * MIB);
	story_run(&s);
	story_end(&s);
}

/* The same block, with what it had; the destination has thrown it away meanwhile. */
static void leave_and_return(struct story *s, uint64_t round)
{
	static struct gr_ram_block *block;

	store_byte(s, 500 * MOVE_PAGE, (uint8_t)round);
	if (round == 1) {
		block = move_add(s->m.from, "dimm", 64 * MOVE_PAGE, 1ull << 32, GR_RAM_MEMFD);
		move_fill(block, 5, 0);
	} else if (round == 2) {
		store_byte(s, 1ull << 32, 1);
	} else if (round == 3 || round == 4) {
		ASSERT_EQ(gr_ram_block_set_migratable(block, round == 4, NULL), 0);
	}
}

TEST(a_block_that_left_and_comes_again_is_not_compared_with_what_it_was)
{
	struct story s = { .tell = leave_and_return, .rounds = 6 };

	story_begin(&s, 4 * MIB);
	story_run(&s);
	story_end(&s);
}

static void rewrite(struct story *s, uint64_t round)
{
	store_byte(s, 500 * MOVE_PAGE, (uint8_t)round);
	if (round == 1 || round == 2) {
		store_random(s, 3, round);
		store_random(s, 4, 1);
	} else {
		store_byte(s, 3 * MOVE_PAGE + 8, (uint8_t)round);
	}
}

TEST(too_much_change_goes_whole_and_no_change_does_not_go)
{
	struct story s = { .tell = rewrite, .rounds = 5 };

	story_begin(&s, MIB);
	story_run(&s);
	ASSERT_EQ(s.m.stats.xbzrle_overflows, 1u);	 /* page 3 in round 3 */
	ASSERT_EQ(s.m.stats.xbzrle_unchanged_pages, 1u); /* page 4 in round 3 */
	ASSERT_EQ(s.m.stats.xbzrle_misses, 3u);
	ASSERT_EQ(s.m.stats.xbzrle_pages, 4u + 3u); /* page 500 four times, page 3 three times */
	story_end(&s);
}

/* Threads that write all the time, a cache that is much too small, hotplug beside it. */
TEST(a_writing_guest_arrives_whatever_the_cache)
{
	static const uint64_t caches[] = { 1, 16 * MOVE_PAGE, 128 * MOVE_PAGE, 64 * MIB };

	for (size_t i = 0; i < GR_ARRAY_SIZE(caches); i++) {
		struct move_guest g = { .bytes = MIB, .writers = 2, .seed = test_seed() };
		struct gr_source_ops ops = move_guest_ops(&g);
		struct move m = {
			.from = move_ram(),
			.to = move_ram(),
			.ops = &ops,
			.params = { .downtime_ns_max = 1,
				    .rounds_max = 12,
				    .xbzrle_cache_bytes = caches[i] },
		};

		g.ram = m.from;
		move_fill(move_add(m.from, "ram", 2 * MIB, 0, GR_RAM_MEMFD), 1, 2);
		move_guest_start(&g);
		move_must_succeed(&m);
		ASSERT_EQ(move_compare(m.from, m.to), 0u);
		move_guest_stop(&g);
		gr_ram_free(m.from);
		gr_ram_free(m.to);
	}
}

TEST(a_cache_gives_up_what_two_rounds_have_not_used_and_nothing_else)
{
	struct gr_page_cache c;
	uint8_t *page;

	ASSERT_EQ(gr_page_cache_init(&c, 8 * MOVE_PAGE, MOVE_PAGE, NULL), 0);
	ASSERT_EQ(gr_page_cache_bytes(&c), 8u * MOVE_PAGE);
	/* Pages that follow each other fill it to the last one. */
	for (uint64_t i = 0; i < 8; i++) {
		page = gr_page_cache_add(&c, 5, i * MOVE_PAGE, 2);
		ASSERT(page);
		memset(page, (int)i + 1, MOVE_PAGE);
	}
	ASSERT(!gr_page_cache_add(&c, 5, 8 * MOVE_PAGE, 2));
	ASSERT(!gr_page_cache_add(&c, 5, 8 * MOVE_PAGE, 3));
	for (uint64_t i = 0; i < 8; i++) {
		page = gr_page_cache_find(&c, 5, i * MOVE_PAGE, i == 4 ? 2 : 3);
		ASSERT(page);
		ASSERT_EQ(page[0], i + 1);
		ASSERT_EQ(page[MOVE_PAGE - 1], i + 1);
	}
	ASSERT(!gr_page_cache_find(&c, 6, 0, 3));
	/* Page 4 was not used in round 3: it alone gives way in round 4. */
	ASSERT(gr_page_cache_add(&c, 5, 8 * MOVE_PAGE, 4));
	ASSERT(!gr_page_cache_find(&c, 5, 4 * MOVE_PAGE, 4));
	ASSERT(!gr_page_cache_add(&c, 5, 10 * MOVE_PAGE, 4));
	gr_page_cache_destroy(&c);
}

TEST(a_range_of_zeros_reaches_just_its_pages_short_or_longer_than_the_cache)
{
	static const uint64_t ends[] = { 6, 1 << 20 };

	for (size_t k = 0; k < GR_ARRAY_SIZE(ends); k++) {
		struct gr_page_cache c;

		ASSERT_EQ(gr_page_cache_init(&c, 64 * MOVE_PAGE, MOVE_PAGE, NULL), 0);
		for (uint64_t i = 0; i < 8; i++) {
			memset(gr_page_cache_add(&c, 5, i * MOVE_PAGE, 1), 1, MOVE_PAGE);
			memset(gr_page_cache_add(&c, 6, i * MOVE_PAGE, 1), 1, MOVE_PAGE);
		}
		gr_page_cache_zero(&c, 5, 2 * MOVE_PAGE, (ends[k] - 2) * MOVE_PAGE);
		for (uint64_t i = 0; i < 8; i++) {
			ASSERT_EQ(gr_page_cache_find(&c, 5, i * MOVE_PAGE, 1)[7],
				  i < 2 || i >= ends[k]);
			ASSERT_EQ(gr_page_cache_find(&c, 6, i * MOVE_PAGE, 1)[7], 1);
		}
		gr_page_cache_destroy(&c);
	}
}

TEST(a_cache_that_cannot_be_had_is_refused)
{
	struct move m = { .from = move_ram() };
	struct gr_error err = { 0 };

	m.params.size = sizeof(m.params);
	m.params.xbzrle_cache_bytes = UINT64_MAX;
	move_channels(m.ch);
	ASSERT_EQ(gr_source_create(m.from, NULL, m.ch[0], &m.params, NULL, &m.source, &err),
		  -ENOMEM);
	ASSERT_HAS(err.msg, "XBZRLE cache");
	(void)gr_channel_close(m.ch[0], NULL);
	(void)gr_channel_close(m.ch[1], NULL);
	gr_ram_free(m.from);
}

TEST_MAIN()
