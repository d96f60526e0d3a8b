/* SPDX-License-Identifier: MIT */
/*
 * Tests that aim at single steps of the grace period (src/rcu/grace_period.c), where chance
 * alone would need hours: the store buffer, a reader between load and store of its state, a
 * request that meets a reader who just leaves. All pass on the library; tests/mutants shows
 * that each can fail.
 */
#include "concurrent.h"

/* The reader's window between the load and the store of its state (see below). */
static void at_yield_point(void);
#define GR_RCU_YIELD_POINT() at_yield_point()

#include "base/atomic.h"
#include "rcu_kit.h"

static __thread void (*yield_hook)(void);

static void at_yield_point(void)
{
	if (yield_hook) {
		yield_hook();
	}
}

/* ---- the store buffer ---------------------------------------------------------------- */

enum { LONG_LOOK = 10000 };

/* Plain memory that is never freed: a wrong reader is to report, not to crash. */
struct flagged {
	uint32_t dead; /* (a) */
};
enum { FLAGGED = 64 };
static struct flagged flagged[FLAGGED], *current_flagged = &flagged[0];
static uint64_t seen_dead;

/* Reader and updater meet before each shot, so that each is at the critical place. */
static struct {
	uint32_t ready; /* (a) the reader's round */
	uint32_t go;	/* (a) the updater's */
	bool stop;
} shot;
static __thread uint32_t my_round;

static void wait_for_round(uint32_t *word, uint32_t round)
{
	for (unsigned n = 0; __atomic_load_n(word, __ATOMIC_ACQUIRE) != round; n++) {
		if (n > 2000) {
			sched_yield();
		}
		if (LOAD(&shot.stop)) {
			return;
		}
	}
}

static void aim(void)
{
	yield_hook = NULL;
	my_round++;
	prepare_slow_stores();
	__atomic_store_n(&shot.ready, my_round, __ATOMIC_RELEASE);
	wait_for_round(&shot.go, my_round);
	make_stores_slow();
}

enum shot_kind { HOT_READER, BETWEEN_LOAD_AND_STORE, BECOMING_HOT, BECOMING_QUIET, COMING_ONLINE };

static void litmus_section(enum shot_kind kind) GR_NO_TSA
{
	struct flagged *f;
	uint32_t dead = 0;

	if (kind == COMING_ONLINE) {
		gr_rcu_thread_online();
	} else {
		gr_rcu_read_lock();
	}
	f = gr_rcu_dereference(current_flagged);
	for (int i = 0; i < LONG_LOOK; i++) {
		dead |= LOAD(&f->dead);
	}
	if (kind == COMING_ONLINE) {
		gr_rcu_thread_offline();
	} else {
		gr_rcu_read_unlock();
	}
	if (dead) {
		STORE(&seen_dead, seen_dead + 1);
	}
}

static void *litmus_reader(void *arg)
{
	enum shot_kind kind = *(enum shot_kind *)arg;

	stay_on_cpu(1);
	become_hot();
	if (kind == COMING_ONLINE) {
		gr_rcu_qs_register_thread();
		gr_rcu_thread_offline();
	}
	while (!LOAD(&shot.stop)) {
		if (kind == BETWEEN_LOAD_AND_STORE) {
			yield_hook = aim; /* inside gr_rcu_read_lock() */
		} else if (kind == BECOMING_HOT) {
			gr_rcu_park();
			gr_rcu_make_eager_for_test(&gr_rcu_self);
			aim();
		} else {
			aim();
		}
		litmus_section(kind);
	}
	return NULL;
}

static void run_litmus(enum shot_kind kind)
{
	double seconds = test_seconds(1.0);
	uint64_t end = now_ns() + (uint64_t)(seconds * 1e9), rnd = test_seed();
	uint32_t round = 0;
	pthread_t t;

	if (kind == BECOMING_QUIET) { /* from now on readers are WARM */
		gr_rcu_quiet_begin();
		gr_rcu_quiet_end();
	}
	pthread_create(&t, NULL, litmus_reader, &kind);
	stay_on_cpu(0);
	gr_rcu_register_thread(); /* a quicker driver: no signals to block */
	while (now_ns() < end && !LOAD(&seen_dead)) {
		struct flagged *old = current_flagged, *new = &flagged[++round % FLAGGED];
		uint64_t delay = test_rand(&rnd) % 40;

		wait_for_round(&shot.ready, round);
		if (kind == BETWEEN_LOAD_AND_STORE) {
			gr_rcu_synchronize(); /* passes while the reader stands there */
		}
		STORE(&new->dead, 0);
		__atomic_store_n(&shot.go, round, __ATOMIC_RELEASE);
		while (delay-- > 0) {
			gr_cpu_relax();
		}
		if (kind == BECOMING_QUIET) {
			gr_rcu_quiet_begin();
		}
		gr_rcu_assign_pointer(current_flagged, new);
		gr_rcu_synchronize();
		STORE(&old->dead, 1);
		if (kind == BECOMING_QUIET) {
			gr_rcu_quiet_end();
		}
	}
	STORE(&shot.stop, true);
	pthread_join(t, NULL);
	test_diag("%u shots", round);
	ASSERT_EQ(seen_dead, 0u);
}

TEST(a_hot_section_is_seen_although_its_store_is_still_buffered)
{
	run_litmus(HOT_READER);
}

TEST(a_reader_between_load_and_store_of_its_state_is_not_overtaken)
{
	run_litmus(BETWEEN_LOAD_AND_STORE);
}

TEST(a_reader_that_is_just_becoming_hot_is_seen)
{
	run_litmus(BECOMING_HOT);
}

TEST(a_warm_section_is_seen_while_quiet_times_begin)
{
	run_litmus(BECOMING_QUIET);
}

TEST(a_thread_that_just_comes_online_is_seen)
{
	run_litmus(COMING_ONLINE);
}

/* ---- requests ------------------------------------------------------------------------ */

/*
 * A reader leaves its section at about the moment in which the driver gives up spinning and
 * sets the request; then it does nothing more, so that a request that both sides missed
 * is never noticed later.
 */
static struct {
	uint32_t round;	 /* (a) the driver's: a section of this round is wanted */
	uint32_t inside; /* (a) the reader's */
	uint32_t done;	 /* (a) the driver's: synchronize returned */
	uint64_t ended;	 /* (a) as done, for the watch */
	bool stop;
} leave;

/* The driver has found us inside. A glance at its private mark: only to aim better. */
static void wait_until_awaited(void)
{
	if (test_under_tsan()) {
		spin_ns(20000);
		return;
	}
	for (unsigned n = 0; LOAD(&gr_rcu_self.awaited) == 0; n++) {
		if (n > 2000) {
			sched_yield();
		}
	}
}

static void wait_until_done(uint32_t round)
{
	while (LOAD(&leave.done) != round) {
		sched_yield();
	}
}

static void *leaving_reader(void *arg)
{
	uint64_t rnd = test_seed() + (uintptr_t)arg;
	uint32_t mine = 0;

	stay_on_cpu(1);
	become_hot();
	for (;;) {
		while (LOAD(&leave.round) == mine) {
			if (LOAD(&leave.stop)) {
				return NULL;
			}
			sched_yield();
		}
		mine++;
		gr_rcu_read_lock();
		__atomic_store_n(&leave.inside, mine, __ATOMIC_RELEASE);
		if (mine % 4 == 0) {
			wait_until_asked(&gr_rcu_self);
			gr_rcu_read_unlock();
			wait_until_done(mine);
			continue;
		}
		prepare_slow_stores();
		wait_until_awaited();
		for (uint64_t n = 200 + test_rand(&rnd) % 800; n > 0; n--) {
			gr_cpu_relax(); /* it spins for some microseconds, then requests */
		}
		make_stores_slow();
		gr_rcu_read_unlock();
		wait_until_done(mine);
	}
}

TEST(a_request_is_not_missed_by_a_reader_that_is_just_leaving)
{
	double seconds = test_seconds(1.0);
	uint64_t end = now_ns() + (uint64_t)(seconds * 1e9);
	struct gr_rcu_stats s;
	uint32_t n = 0;
	pthread_t t;

	test_watch_progress(&leave.ended, 4);
	pthread_create(&t, NULL, leaving_reader, NULL);
	stay_on_cpu(0);
	gr_rcu_register_thread();
	do {
		n++;
		STORE(&leave.round, n);
		while (__atomic_load_n(&leave.inside, __ATOMIC_ACQUIRE) != n) {
			sched_yield();
		}
		gr_rcu_synchronize();
		STORE(&leave.done, n);
		STORE(&leave.ended, (uint64_t)n);
		gr_rcu_stats_get(NULL, &s);
	} while (now_ns() < end || s.requests == 0); /* a busy machine needs longer */
	STORE(&leave.stop, true);
	pthread_join(t, NULL);
	gr_rcu_stats_get(NULL, &s);
	test_diag("%u grace periods; %" PRIu64 " requests, %" PRIu64 " reported, %" PRIu64
		  " claimed, %" PRIu64 " sleeps, %" PRIu64 " wakes",
		  n, s.requests, s.reports, s.claims, s.sleeps, s.reader_wakes);
	ASSERT_EQ(s.requests, s.reports + s.claims);
}

/* ---- the fences, counted ---------------------------------------------------------------- */

/*
 * What the shots above show only when they hit: that the driver runs each process-wide fence.
 * These do not depend on who runs when.
 */
static struct gr_event standing = GR_EVENT_INIT(false), walk_on = GR_EVENT_INIT(false);

static void stand_still(void)
{
	yield_hook = NULL;
	gr_event_set(&standing);
	gr_event_wait(&walk_on);
}

static void *standing_reader(void *arg)
{
	(void)arg;
	become_hot();
	yield_hook = stand_still; /* inside gr_rcu_read_lock() */
	gr_rcu_read_lock();
	gr_rcu_read_unlock();
	return NULL;
}

TEST(each_grace_period_fences_for_a_hot_reader_between_load_and_store_of_its_state)
{
	struct gr_rcu_stats before, after;
	pthread_t t;

	if (!gr_heavy_fence_available()) {
		SKIP("no process-wide fence here: no reader is hot");
	}
	pthread_create(&t, NULL, standing_reader, NULL);
	gr_event_wait(&standing);
	gr_rcu_stats_get(NULL, &before);
	for (int i = 0; i < 3; i++) {
		gr_rcu_synchronize();
	}
	gr_rcu_stats_get(NULL, &after);
	gr_event_set(&walk_on);
	pthread_join(t, NULL);
	ASSERT_EQ(after.grace_periods - before.grace_periods, 3u);
	ASSERT_EQ(after.entry_fences - before.entry_fences, 3u);
}

/* A WARM reader stands there when quiet times begin: the fence must be at their beginning. */
TEST(quiet_times_begin_with_a_fence_for_a_reader_between_load_and_store_of_its_state)
{
	uint64_t fences;
	pthread_t t;

	if (!gr_heavy_fence_available()) {
		SKIP("no process-wide fence here: no reader is warm");
	}
	gr_rcu_quiet_begin();
	gr_rcu_quiet_end();
	pthread_create(&t, NULL, standing_reader, NULL);
	gr_event_wait(&standing);
	fences = gr_heavy_fence_count();
	gr_rcu_quiet_begin();
	ASSERT_EQ(gr_heavy_fence_count() - fences, 1u);
	gr_rcu_synchronize();
	ASSERT_EQ(gr_heavy_fence_count() - fences, 1u);
	gr_rcu_quiet_end();
	gr_event_set(&walk_on);
	pthread_join(t, NULL);
}

static void *busy_reader(void *arg)
{
	bool *stop = arg;

	stay_on_cpu(1);
	become_hot();
	gr_event_set(&standing);
	while (!LOAD(stop)) {
		gr_rcu_read_lock();
		gr_rcu_read_unlock();
	}
	return NULL;
}

/* Both must run at the same moment, once in half a minute. */
TEST(a_hot_reader_that_reports_at_once_costs_no_fence)
{
	uint64_t end = now_ns() + 30000000000ull, fences;
	struct gr_rcu_stats s;
	bool stop = false;
	pthread_t t;

	if (!gr_heavy_fence_available() || sysconf(_SC_NPROCESSORS_ONLN) < 2) {
		SKIP("no process-wide fence here, or nobody beside us");
	}
	stay_on_cpu(0);
	pthread_create(&t, NULL, busy_reader, &stop);
	gr_event_wait(&standing);
	do {
		fences = gr_heavy_fence_count();
		gr_rcu_synchronize();
	} while (gr_heavy_fence_count() != fences && now_ns() < end);
	ASSERT_EQ(gr_heavy_fence_count(), fences);
	STORE(&stop, true);
	pthread_join(t, NULL);
	gr_rcu_stats_get(NULL, &s);
	ASSERT_EQ(s.requests, s.grace_periods);
	ASSERT_EQ(s.requests, s.reports + s.claims);
}

/* Stays until the driver sleeps: who leaves as soon as it is asked may spare the fence. */
static void *asked_reader(void *arg)
{
	const struct gr_rcu_stats *before = arg;

	gr_rcu_read_lock();
	gr_event_set(&standing);
	while (stats().sleeps == before->sleeps) {
		sched_yield();
	}
	gr_rcu_read_unlock();
	return NULL;
}

TEST(a_cold_reader_that_must_report_is_fenced_with_the_request)
{
	struct gr_rcu_stats before, after;
	pthread_t t;

	if (!gr_heavy_fence_available()) {
		SKIP("no process-wide fence here: the driver looks again instead");
	}
	before = stats();
	pthread_create(&t, NULL, asked_reader, &before);
	gr_event_wait(&standing);
	gr_rcu_synchronize();
	pthread_join(t, NULL);
	after = stats();
	ASSERT_EQ(after.grace_periods - before.grace_periods, 1u);
	ASSERT_EQ(after.requests - before.requests, 1u);
	ASSERT_EQ(after.entry_fences - before.entry_fences, 0u);
	ASSERT_EQ(after.flag_fences - before.flag_fences, 1u);
}

TEST_MAIN()
