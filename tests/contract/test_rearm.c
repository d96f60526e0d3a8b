/* SPDX-License-Identifier: MIT */
/*
 * O4 with two consumers over one log, stores placed at each moment that hurts. The driver,
 * the debt set and the reports are the real ones; only the kernel is not.
 */
#include "base/atomic.h"
#include "fake_log.h"
#include <errno.h>
#include <time.h>

enum { PAGES = 200, P = 70 };

struct rig {
	struct gr_ram *ram;
	struct gr_track *track;
	struct fake_log *log;
	struct oracle a, b;
};

static struct rig *make_rig(bool manual_protect)
{
	struct rig *r = calloc(1, sizeof(*r));
	struct gr_ram_block_desc desc = {
		.size = sizeof(desc), .id = "guest", .used_bytes = PAGES * ORACLE_PAGE, .fd = -1
	};

	ASSERT(r);
	ASSERT_EQ(gr_ram_create(NULL, &r->ram, NULL), 0);
	ASSERT_EQ(gr_ram_block_add(r->ram, &desc, NULL, NULL), 0);
	ASSERT_EQ(gr_track_create(r->ram, &r->track, NULL), 0);
	r->log = fake_log_use(r->track, manual_protect);
	ASSERT_EQ(gr_track_start(r->track, GR_WRITERS_KVM_VCPUS, NULL), 0);
	oracle_start(&r->a, "A", r->ram, r->track);
	oracle_start(&r->b, "B", r->ram, r->track);
	r->log->opaque = r;
	/* The first full copies are not the point. */
	oracle_round(&r->a);
	oracle_round(&r->b);
	return r;
}

static void check_and_free(struct rig *r)
{
	r->log->after_get = r->log->before_clear = NULL;
	oracle_check(&r->a);
	oracle_check(&r->b);
	gr_track_free(r->track);
	gr_ram_free(r->ram);
	free(r);
}

/* A thread, and whether it gets through in the time given: a lock may hold it up. */
struct aside {
	pthread_t thread;
	struct rig *rig;
	void (*fn)(struct rig *r);
	bool started;
};

static void *aside_main(void *opaque)
{
	struct aside *s = opaque;

	s->fn(s->rig);
	return NULL;
}

static void aside_start(struct aside *s, struct rig *r, void (*fn)(struct rig *r))
{
	s->rig = r;
	s->fn = fn;
	s->started = true;
	ASSERT_EQ(pthread_create(&s->thread, NULL, aside_main, s), 0);
}

static bool aside_ends_within_ms(struct aside *s, long ms)
{
	struct timespec until;

	clock_gettime(CLOCK_REALTIME, &until);
	until.tv_nsec += ms * 1000000;
	until.tv_sec += until.tv_nsec / 1000000000;
	until.tv_nsec %= 1000000000;
	s->started = pthread_timedjoin_np(s->thread, NULL, &until) != 0;
	return !s->started;
}

static void aside_join(struct aside *s)
{
	if (s->started) {
		ASSERT_EQ(pthread_join(s->thread, NULL), 0);
	}
}

/* ---- scripts -------------------------------------------------------------------------- */

TEST(a_page_that_was_rearmed_and_not_written_again_is_not_reported_again)
{
	struct rig *r = make_rig(true);

	fake_store(r->log, P, 1);
	oracle_round(&r->a);
	ASSERT_EQ(r->a.epoch_pages, 1u);
	oracle_round(&r->a);
	ASSERT_EQ(r->a.epoch_pages, 0u);
	oracle_round(&r->b);
	ASSERT_EQ(r->b.epoch_pages, 1u);
	oracle_round(&r->b);
	ASSERT_EQ(r->b.epoch_pages, 0u);
	check_and_free(r);
}

TEST(one_clear_serves_both_consumers)
{
	struct rig *r = make_rig(true);

	fake_store(r->log, P, 1);
	fake_store(r->log, P + 1, 1);
	oracle_round(&r->a);
	ASSERT_EQ(r->log->clears, 1u);
	oracle_round(&r->b);
	ASSERT_EQ(r->log->clears, 1u);
	check_and_free(r);
}

/*
 * B's turn comes after A has re-armed the page and the guest has written it again: B must
 * not clear what nobody has fetched.
 */
TEST(the_second_consumer_does_not_wipe_a_store_that_the_first_must_still_hear_of)
{
	struct rig *r = make_rig(true);

	fake_store(r->log, P, 1);
	oracle_sync(&r->a);
	oracle_sync(&r->b);
	oracle_begin(&r->a);
	oracle_read_epoch(&r->a);
	oracle_commit(&r->a);
	fake_store(r->log, P, 2);
	oracle_begin(&r->b);
	oracle_read_epoch(&r->b);
	oracle_commit(&r->b);
	check_and_free(r);
}

static void store_before_clear(struct fake_log *f)
{
	f->before_clear = NULL;
	fake_store(f, P, 2); /* the page is writable still: no trace */
}

TEST(a_store_between_the_fetch_and_the_clear_is_read)
{
	struct rig *r = make_rig(true);

	fake_store(r->log, P, 1);
	oracle_sync(&r->a);
	oracle_begin(&r->a);
	r->log->before_clear = store_before_clear;
	oracle_read_epoch(&r->a);
	oracle_commit(&r->a);
	check_and_free(r);
}

static void b_reads(struct rig *r)
{
	oracle_read_epoch(&r->b);
	oracle_commit(&r->b);
}

static struct aside other;

static void let_b_read_then_store(struct fake_log *f)
{
	struct rig *r = f->opaque;

	f->before_clear = NULL;
	aside_start(&other, r, b_reads);
	/* B has to wait for this very clear; give one who does not the time to be wrong. */
	(void)aside_ends_within_ms(&other, 100);
	fake_store(f, P, 2);
}

TEST(nobody_reads_a_page_while_another_consumer_is_about_to_clear_it)
{
	struct rig *r = make_rig(true);

	fake_store(r->log, P, 1);
	oracle_sync(&r->a);
	oracle_begin(&r->a);
	oracle_begin(&r->b);
	ASSERT_EQ(r->b.epoch_pages, 1u);
	r->log->before_clear = let_b_read_then_store;
	oracle_read_epoch(&r->a);
	oracle_commit(&r->a);
	aside_join(&other);
	check_and_free(r);
}

static void b_final_round(struct rig *r)
{
	oracle_round(&r->b);
}

static void let_b_finish(struct fake_log *f)
{
	struct rig *r = f->opaque;

	f->after_get = NULL;
	aside_start(&other, r, b_final_round);
	(void)aside_ends_within_ms(&other, 100);
}

/* The guest has stopped. A holds the only trace of its last store in its hands. */
TEST(no_sync_returns_while_a_report_is_on_its_way)
{
	struct rig *r = make_rig(false);

	fake_store(r->log, P, 1);
	r->log->after_get = let_b_finish;
	oracle_sync(&r->a);
	aside_join(&other);
	/* B's last round is over; it had to know. */
	ASSERT_EQ(r->b.epoch_pages, 1u);
	ASSERT_MEM_EQ(oracle_copy_of(&r->b, r->log->block), r->log->block->host,
		      (size_t)PAGES * ORACLE_PAGE);
	check_and_free(r);
}

TEST(the_debt_of_an_aborted_epoch_stays_for_whoever_comes_next)
{
	struct rig *r = make_rig(true);

	fake_store(r->log, P, 1);
	oracle_sync(&r->a);
	ASSERT(gr_debt_due(&r->log->debt, P, 1));
	oracle_begin(&r->a);
	ASSERT_EQ(gr_dirty_epoch_abort(r->a.consumer), 0);
	oracle_round(&r->b);
	ASSERT(!gr_debt_due(&r->log->debt, P, 1));
	oracle_round(&r->a);
	ASSERT_EQ(r->a.epoch_pages, 1u);
	check_and_free(r);
}

/* ---- threads -------------------------------------------------------------------------- */

struct storm {
	struct rig *rig;
	uint64_t seed;
	double seconds;
	uint32_t stop; /* (a) */
};

static double now(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (double)ts.tv_sec + (double)ts.tv_nsec / 1e9;
}

/* Pages retire one after the other, so that what was lost is not healed by a later store. */
static void *storm_guest(void *opaque)
{
	struct storm *s = opaque;
	uint64_t rnd = s->seed, stores = 0;
	double begin = now(), part;

	while ((part = (now() - begin) / s->seconds) < 1) {
		uint64_t retired = (uint64_t)(part * PAGES);

		fake_store(s->rig->log, retired + test_rand(&rnd) % (PAGES - retired),
			   test_rand(&rnd));
		stores++;
		if (stores % 16 == 0) {
			usleep(50); /* the others want the kernel too */
		}
	}
	return NULL;
}

static void *storm_consumer(void *opaque)
{
	struct storm *s = opaque;

	while (!gr_load_acquire(&s->stop)) { /* pairs with the release in the test */
		oracle_round(&s->rig->b);
	}
	return NULL;
}

TEST(two_consumers_of_one_log_both_end_with_the_guests_bytes)
{
	struct rig *r = make_rig(true);
	struct storm s[2] = { { .rig = r, .seed = test_seed(), .seconds = test_seconds(1.0) } };
	pthread_t guest[2], consumer;
	double begin = now();

	s[1] = s[0];
	s[1].seed++;
	for (int i = 0; i < 2; i++) {
		ASSERT_EQ(pthread_create(&guest[i], NULL, storm_guest, &s[i]), 0);
	}
	ASSERT_EQ(pthread_create(&consumer, NULL, storm_consumer, &s[0]), 0);
	while (now() - begin < s[0].seconds) {
		oracle_round(&r->a);
	}
	for (int i = 0; i < 2; i++) {
		ASSERT_EQ(pthread_join(guest[i], NULL), 0);
	}
	gr_store_release(&s[0].stop, 1); /* pairs with the acquire in storm_consumer() */
	ASSERT_EQ(pthread_join(consumer, NULL), 0);
	check_and_free(r);
}

TEST_MAIN()
