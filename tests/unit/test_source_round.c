/* SPDX-License-Identifier: MIT */
/*
 * What a round sends while the guest goes on. The test is the guest: between any two steps of the
 * source it writes one of two patterns into pages before and behind the cursor, and the trackers
 * are asked in every step. Both memories must be the same at the end, whoever tracks, and whatever
 * else is on.
 */
#include "../contract/fake_log.h"
#include "migrate/source.h"
#include "move.h"
#include <fcntl.h>
#include <guestram/multifd.h>
#include <sys/mman.h>

enum { PIECE = 512, PAGES = 3 * PIECE, OTHER_PAGES = 128, ROUNDS = 4, OTHER_AT = 1 << 28 };

enum tracker { SOFTWARE, UFFD_WP, UFFD_SYNC, LOG, LOG_MANUAL, LOG_ALL_SET };
enum with { NOTHING, XBZRLE, CHANNELS, SHARED, BLOCKS, PLAIN };

struct round {
	struct move m;
	enum tracker tracker;
	enum with with;
	struct gr_ram_block *block, *other;
	struct fake_log *log;
	uint64_t rounds_max;
	uint64_t seed, behind, before; /* stores, by where the source was */
	uint64_t deferred_first;       /* pages, in the first round */
	uint64_t returns;	       /* of the cursor, in the first round */
	bool grown, marked;
	struct gr_multifd channels[2];
	struct gr_channel *further[2][2];
};

static int stands_still(void *opaque, struct gr_error *err)
{
	(void)opaque, (void)err;
	return 0;
}

static void goes_on(void *opaque)
{
	(void)opaque;
}

static int has_no_state(void *opaque, struct gr_state_writer *writer, struct gr_error *err)
{
	(void)opaque, (void)writer, (void)err;
	return 0;
}

/* One of two patterns, so that differences are short and a page may be what it was before. */
static void store(struct round *r, uint64_t page)
{
	uint64_t word = test_rand(&r->seed) % 2 ? UINT64_C(0x5555555555555555)
						: UINT64_C(0xaaaaaaaaaaaaaaaa);
	uint8_t *at = r->block->host + page * MOVE_PAGE + 64;

	if (r->log) {
		fake_store(r->log, page, word);
	} else {
		gr_copy_to_guest(at, &word, sizeof(word));
		if (r->tracker == SOFTWARE) {
			gr_ram_mark(r->block, page * MOVE_PAGE, sizeof(word));
		}
	}
}

static void use_tracker(struct round *r)
{
	static const enum gr_tracker_kind kinds[] = {
		[UFFD_WP] = GR_TRACKER_UFFD_WP, [UFFD_SYNC] = GR_TRACKER_UFFD_SYNC
	};
	struct gr_error err;

	r->m.params.writers = GR_WRITERS_MARKED;
	if (r->tracker == SOFTWARE) {
		return;
	}
	ASSERT_EQ(gr_track_create(r->m.from, &r->m.track, &err), 0);
	if (r->tracker >= LOG) {
		r->m.params.writers = GR_WRITERS_KVM_VCPUS;
		r->log = fake_log_use_set(r->m.track, r->tracker != LOG, r->tracker == LOG_ALL_SET);
		return;
	}
	r->m.params.writers = GR_WRITERS_STORES;
	if (gr_track_use(r->m.track, kinds[r->tracker], NULL, &err) < 0) {
		SKIP("%s", err.msg);
	}
}

static void widen(struct round *r)
{
	for (unsigned int i = 0; i < 2; i++) {
		struct gr_channel *ch[2];

		move_channels(ch);
		r->further[0][i] = ch[0];
		r->further[1][i] = ch[1];
	}
	for (unsigned int side = 0; side < 2; side++) {
		r->channels[side] = (struct gr_multifd){ .channels = r->further[side], .count = 2 };
	}
	r->m.params.multifd = &r->channels[0];
	r->m.to_params.multifd = &r->channels[1];
}

/* Memory that both have, of a file that has no name any more when they do. */
static void share(struct round *r)
{
	int fd = memfd_create("shared", MFD_CLOEXEC);
	struct gr_ram_block_desc desc = { .size = sizeof(desc),
					  .id = "other",
					  .used_bytes = OTHER_PAGES * MOVE_PAGE,
					  .backing = GR_RAM_FD,
					  .flags = GR_RAM_SHARED,
					  .mapped = true,
					  .gpa = gr_gpa(OTHER_AT),
					  .fd = fd };

	ASSERT_EQ(ftruncate(fd, OTHER_PAGES * MOVE_PAGE), 0);
	ASSERT_EQ(gr_ram_block_add(r->m.from, &desc, &r->other, NULL), 0);
	ASSERT_EQ(gr_ram_block_add(r->m.to, &desc, NULL, NULL), 0);
	(void)close(fd);
	r->m.params.ignore_shared = r->m.to_params.ignore_shared = true;
}

static void begin(struct round *r)
{
	static const struct gr_source_ops ops = { .pause = stands_still,
						  .resume = goes_on,
						  .save = has_no_state };

	r->seed = test_seed();
	r->m.from = move_ram();
	r->m.to = move_ram();
	r->block = move_add(r->m.from, "guest", PAGES * MOVE_PAGE, 0, GR_RAM_MEMFD);
	move_fill(r->block, r->seed, 5);
	if (r->with == SHARED) {
		share(r);
	} else {
		r->other = move_add(r->m.from, "other", OTHER_PAGES * MOVE_PAGE, OTHER_AT,
				    GR_RAM_ANONYMOUS);
		move_fill(r->other, r->seed, 3);
	}
	use_tracker(r);
	if (r->with == CHANNELS) {
		widen(r);
	}
	r->m.params.xbzrle_cache_bytes = r->with == XBZRLE ? PAGES * MOVE_PAGE : 0;
	r->m.params.plain = r->with == PLAIN;
	r->m.params.look_ns = 1;
	/* Batches of some 40 pages: a round has many steps, between which the guest writes. */
	r->m.params.bandwidth_bytes_per_s_max = 17000000;
	r->m.params.downtime_ns_max = 1; /* the rounds end it */
	r->m.params.rounds_max = r->rounds_max != 0 ? r->rounds_max : ROUNDS;
	r->m.ops = &ops;
	move_prepare(&r->m);
}

/* Blocks come, are written, and go while a round is on its way: one that was put off, before its turn. */
static void change_blocks(struct round *r)
{
	const struct gr_source *s = r->m.source;

	if (s->rounds == 1 && s->cursor > PAGES / 4 && !r->grown) {
		move_fill(move_add(r->m.from, "new", OTHER_PAGES * MOVE_PAGE,
				   2 * (uint64_t)OTHER_AT, GR_RAM_MEMFD),
			  r->seed, 0);
		r->grown = true;
	} else if (s->rounds == 1 && !r->marked) {
		gr_ram_mark(r->other, 7 * MOVE_PAGE, 1); /* so that it is put off */
		r->marked = true;
		r->before++;
	} else if (s->catches_up && r->other) {
		ASSERT_GT(gr_dirty_epoch_count(s->consumer, r->other->offset.v / MOVE_PAGE,
					       OTHER_PAGES),
			  (uint64_t)0);
		r->other = NULL;
		ASSERT_EQ(gr_ram_block_del_by_id(r->m.from, "other", NULL), 0);
		r->before += OTHER_PAGES; /* its successor's marks are where its own were */
		move_fill(move_add(r->m.from, "last", OTHER_PAGES * MOVE_PAGE, OTHER_AT,
				   GR_RAM_ANONYMOUS),
			  r->seed, 0);
	}
}

static bool is_to_be_sent(const struct round *r, uint64_t page)
{
	uint64_t first, pages;

	return gr_dirty_epoch_next(r->m.source->consumer, page, &first, &pages) && first == page;
}

/* The guest's turn: pages of the middle piece, which wait for the second round, and some that were sent. */
static void write_some(struct round *r)
{
	uint64_t first = r->block->offset.v / MOVE_PAGE, cursor = r->m.source->cursor, page;

	for (unsigned int i = 0; i < 4; i++) {
		page = i % 2 && cursor > first
			       ? test_rand(&r->seed) % GR_MIN(cursor - first, (uint64_t)PAGES)
			       : PIECE + test_rand(&r->seed) % PIECE;
		page = i == 0 ? 2 * PIECE - 1 : page;
		r->before += is_to_be_sent(r, first + page);
		r->behind += !is_to_be_sent(r, first + page);
		store(r, page);
	}
	if (r->with == BLOCKS) {
		change_blocks(r);
	} else if (r->with == SHARED) {
		gr_ram_mark(r->other, 0, OTHER_PAGES * MOVE_PAGE); /* is never sent */
	}
}

/* All but the middle piece has gone when that is returned to. */
static void check_return(const struct round *r)
{
	struct gr_dirty_consumer *c = r->m.source->consumer;
	uint64_t first = r->block->offset.v / MOVE_PAGE;

	ASSERT_EQ(gr_dirty_epoch_count(c, first, PIECE), (uint64_t)0);
	ASSERT_EQ(gr_dirty_epoch_count(c, first + 2 * PIECE, PIECE), (uint64_t)0);
	ASSERT_GT(gr_dirty_epoch_count(c, first + PIECE, PIECE), (uint64_t)PIECE / 4);
}

/* Step by step; the guest writes until there are some rounds. */
static int step_by_step(struct round *r)
{
	struct gr_source *s = r->m.source;
	uint64_t round, cursor;
	int rc;

	do {
		round = s->rounds;
		cursor = s->cursor;
		if (s->phase == GR_SOURCE_ROUND && !s->switch_next && s->rounds < ROUNDS) {
			write_some(r);
		}
		rc = gr_source_step(s, &r->m.err);
		gr_source_stats(s, &r->m.stats);
		ASSERT_LE(r->m.stats.remaining_bytes, r->m.stats.total_bytes);
		if (round == 1 && s->rounds == 1 && s->cursor < cursor) {
			r->returns++;
			check_return(r);
		}
		if (round == 1 && s->rounds == 2) {
			r->deferred_first = r->m.stats.deferred_pages;
		}
	} while (rc > 0);
	return rc;
}

static void end(struct round *r)
{
	for (unsigned int i = 0; i < 2 && r->with == CHANNELS; i++) {
		(void)gr_channel_close(r->further[0][i], NULL);
		(void)gr_channel_close(r->further[1][i], NULL);
	}
	gr_track_free(r->m.track);
	gr_ram_free(r->m.from);
	gr_ram_free(r->m.to);
}

static void rounds(struct round *r)
{
	pthread_t receiver;

	begin(r);
	ASSERT_EQ(pthread_create(&receiver, NULL, move_receive, &r->m), 0);
	r->m.rc = step_by_step(r);
	gr_channel_end_writing(r->m.ch[0]);
	pthread_join(receiver, NULL);
	move_finish(&r->m);
	if (r->m.rc != 0 || r->m.to_rc != 0) {
		FAIL("source %d '%s', destination %d '%s'", r->m.rc, r->m.err.msg, r->m.to_rc,
		     r->m.to_err.msg);
	}
	ASSERT_EQ(move_compare(r->m.from, r->m.to), 0u);
	ASSERT_GT(r->behind, 0u);
	ASSERT_GT(r->before, 0u);
	/* Some of the middle piece; what was sent before is not among it. In the first round alone. */
	if (r->tracker < LOG_MANUAL) {
		ASSERT_GT(r->deferred_first, 0u);
	}
	ASSERT_LE(r->deferred_first, r->tracker < LOG_MANUAL ? r->before : 0u);
	ASSERT_EQ(r->m.stats.deferred_pages, r->deferred_first);
	/* That piece goes last. */
	ASSERT_EQ(r->returns, r->tracker < LOG_MANUAL ? 1u : 0u);
	/* Whatever waited: of the stopped guest goes what it has stored to. */
	ASSERT_LE(r->m.stats.final_pages, r->before + r->behind);
	ASSERT_GE(r->m.stats.rounds, r->rounds_max == 1 ? 2u : 3u);
	end(r);
}

static void all_of(enum with with)
{
	for (enum tracker t = SOFTWARE; t <= LOG_ALL_SET; t++) {
		/* These track the one block that was there at first. */
		if (with != BLOCKS || t < LOG) {
			struct round r = { .tracker = t, .with = with };

			rounds(&r);
		}
	}
}

TEST(pages_that_are_written_while_they_wait_arrive_with_marks)
{
	struct round r = { .tracker = SOFTWARE };

	rounds(&r);
}

TEST(pages_that_are_written_while_they_wait_arrive_with_uffd_wp)
{
	struct round r = { .tracker = UFFD_WP };

	rounds(&r);
}

TEST(pages_that_are_written_while_they_wait_arrive_with_uffd_sync)
{
	struct round r = { .tracker = UFFD_SYNC };

	rounds(&r);
}

TEST(pages_that_are_written_while_they_wait_arrive_with_a_log_that_protects)
{
	struct round r = { .tracker = LOG };

	rounds(&r);
}

/* It names what it has named until that is re-armed: all that waits, written to or not. */
TEST(a_log_that_repeats_itself_is_not_asked_in_mid_round)
{
	struct round manual = { .tracker = LOG_MANUAL }, all_set = { .tracker = LOG_ALL_SET };

	rounds(&manual);
	rounds(&all_set);
}

/* The one round goes while the guest runs, and of the stopped guest what it has stored to. */
TEST(with_a_single_round_little_is_left_for_the_stopped_guest)
{
	for (enum tracker t = SOFTWARE; t <= LOG_ALL_SET; t++) {
		struct round r = { .tracker = t, .rounds_max = 1 };

		rounds(&r);
		ASSERT_LT(r.m.stats.final_pages, PAGES / 2);
	}
}

TEST(differences_of_pages_that_have_waited_arrive)
{
	all_of(XBZRLE);
}

TEST(pages_that_have_waited_arrive_on_further_channels)
{
	all_of(CHANNELS);
}

TEST(pages_that_have_waited_arrive_beside_shared_memory)
{
	all_of(SHARED);
}

TEST(pages_that_have_waited_arrive_while_blocks_come_and_go)
{
	all_of(BLOCKS);
}

TEST(pages_that_have_waited_arrive_as_at_a_qemu)
{
	all_of(PLAIN);
}

TEST_MAIN()
