/* SPDX-License-Identifier: MIT */
/* Limits of callback queues: memory is bounded, and nobody hangs for it. */
#include "harness.h"
#include <guestram/event.h>
#include <guestram/rcu.h>
#include <pthread.h>
#include <sched.h>
#include <stdlib.h>
#include <time.h>

#define LOAD(p)	    __atomic_load_n(p, __ATOMIC_RELAXED)
#define STORE(p, v) __atomic_store_n(p, v, __ATOMIC_RELAXED)
#define ADD(p, v)   __atomic_fetch_add(p, v, __ATOMIC_RELAXED)

static struct gr_rcu_queue *queue;

static void make_queue(const struct gr_rcu_queue_params *params)
{
	ASSERT_EQ(gr_rcu_queue_create(params, &queue, NULL), 0);
}

static struct gr_rcu_queue_stats stats(void)
{
	struct gr_rcu_queue_stats s;

	gr_rcu_queue_stats_get(queue, &s);
	return s;
}

static uint64_t ran;

static void count_run(struct gr_rcu_head *head)
{
	(void)head;
	ADD(&ran, 1);
}

static void free_run(struct gr_rcu_head *head)
{
	free(head);
	ADD(&ran, 1);
}

/* ---- a flood against a slow reader --------------------------------------------------------- */

enum { PRODUCERS = 4, EACH = 5000, BYTES = 4096, SLOW_MS = 20 };
static struct gr_event inside = GR_EVENT_INIT(false);
static bool stop;

/* Its first section lasts until somebody had to wait. */
static void *slow_reader(void *arg)
{
	(void)arg;
	gr_rcu_read_lock();
	gr_event_set(&inside);
	while (stats().limit_waits == 0) {
		sleep_ms(1);
	}
	gr_rcu_read_unlock();
	while (!LOAD(&stop)) {
		gr_rcu_read_lock();
		sleep_ms(SLOW_MS);
		gr_rcu_read_unlock();
	}
	return NULL;
}

static void *flood(void *arg)
{
	(void)arg;
	for (int i = 0; i < EACH; i++) {
		struct gr_rcu_head *head = malloc(BYTES);

		gr_rcu_call_sized(queue, head, free_run, BYTES);
	}
	return NULL;
}

static void flood_against_slow_reader(const struct gr_rcu_queue_params *params)
{
	pthread_t r, t[PRODUCERS];

	make_queue(params);
	pthread_create(&r, NULL, slow_reader, NULL);
	gr_event_wait(&inside);
	for (int i = 0; i < PRODUCERS; i++) {
		pthread_create(&t[i], NULL, flood, NULL);
	}
	for (int i = 0; i < PRODUCERS; i++) {
		pthread_join(t[i], NULL);
	}
	STORE(&stop, true);
	pthread_join(r, NULL);
	gr_rcu_barrier(queue);
	test_diag("high water %" PRIu64 " callbacks, %" PRIu64 " bytes; %" PRIu64 " waits, %" PRIu64
		  " passes",
		  stats().high_water, stats().high_water_bytes, stats().limit_waits,
		  stats().limit_passes);
	ASSERT_EQ(LOAD(&ran), (uint64_t)PRODUCERS * EACH);
}

/*
 * Whoever finds the limit passed waits, with one callback queued. Each may go on once for
 * each GR_RCU_LIMIT_WAIT_NS that it waited in vain: on a very slow machine a pass is no error.
 */
TEST(a_flood_is_bounded_by_the_limit_on_callbacks)
{
	struct gr_rcu_queue_params p = { .size = sizeof(p), .hard_count = 2000 };

	flood_against_slow_reader(&p);
	ASSERT_LE(stats().high_water, 2000u + 2u * PRODUCERS * 64 + stats().limit_passes);
	gr_rcu_queue_free(queue);
}

TEST(a_flood_is_bounded_by_the_limit_on_bytes)
{
	struct gr_rcu_queue_params p = { .size = sizeof(p), .hard_bytes = 4 << 20 };

	flood_against_slow_reader(&p);
	ASSERT_LE(stats().high_water_bytes, (4u << 20) +
						    2u * PRODUCERS * ((4u << 20) / 64 + BYTES) +
						    stats().limit_passes * BYTES);
	gr_rcu_queue_free(queue);
}

/* ---- who must not wait does not ------------------------------------------------------------ */

static const struct gr_rcu_queue_params tiny = { .size = sizeof(tiny), .hard_count = 10 };

TEST(calls_in_a_section_never_wait)
{
	static struct gr_rcu_head heads[5000];

	make_queue(&tiny);
	gr_rcu_read_lock();
	for (int i = 0; i < 5000; i++) {
		gr_rcu_call(queue, &heads[i], count_run);
	}
	ASSERT_EQ(LOAD(&ran), 0u);
	ASSERT_GE(stats().limit_passes, 4000u);
	ASSERT_EQ(stats().limit_waits, 0u);
	gr_rcu_read_unlock();
	gr_rcu_queue_free(queue);
	ASSERT_EQ(LOAD(&ran), 5000u);
}

static struct gr_rcu_head more[5000];

static void call_many(struct gr_rcu_head *head)
{
	(void)head;
	for (int i = 0; i < 5000; i++) {
		gr_rcu_call(queue, &more[i], count_run);
	}
}

TEST(calls_in_a_callback_never_wait)
{
	struct gr_rcu_head head;

	make_queue(&tiny);
	gr_rcu_call(queue, &head, call_many);
	gr_rcu_queue_free(queue);
	ASSERT_EQ(LOAD(&ran), 5000u);
}

static pthread_mutex_t big = PTHREAD_MUTEX_INITIALIZER;
static __thread bool i_hold_big;

static void big_lock(void *opaque)
{
	(void)opaque;
	pthread_mutex_lock(&big);
	i_hold_big = true;
}

static void big_unlock(void *opaque)
{
	(void)opaque;
	i_hold_big = false;
	pthread_mutex_unlock(&big);
}

static bool big_is_mine(void *opaque)
{
	(void)opaque;
	return i_hold_big;
}

TEST(calls_with_the_queues_lock_held_never_wait)
{
	const struct gr_rcu_queue_params p = {
		.size = sizeof(p),
		.lock = big_lock,
		.unlock = big_unlock,
		.is_locked = big_is_mine,
		.hard_count = 10,
	};

	make_queue(&p);
	big_lock(NULL);
	for (int i = 0; i < 5000; i++) {
		gr_rcu_call(queue, &more[i], count_run);
	}
	ASSERT_EQ(stats().limit_waits, 0u);
	big_unlock(NULL);
	gr_rcu_queue_free(queue);
	ASSERT_EQ(LOAD(&ran), 5000u);
}

static pthread_mutex_t theirs = PTHREAD_MUTEX_INITIALIZER;

static void takes_their_lock(struct gr_rcu_head *head)
{
	pthread_mutex_lock(&theirs);
	pthread_mutex_unlock(&theirs);
	count_run(head);
}

/* The library cannot know: the call waits for a callback that waits for the caller. */
TEST(a_cycle_through_a_lock_of_the_callers_is_slow_and_does_not_hang)
{
	make_queue(&tiny);
	pthread_mutex_lock(&theirs);
	for (int i = 0; i < 15; i++) {
		gr_rcu_call(queue, &more[i], takes_their_lock);
	}
	pthread_mutex_unlock(&theirs);
	ASSERT_GE(stats().limit_passes, 1u);
	gr_rcu_queue_free(queue);
	ASSERT_EQ(LOAD(&ran), 15u);
}

/* ---- numbers -----------------------------------------------------------------------------------
 */

TEST(statistics_add_up)
{
	struct gr_rcu_queue_params p = { .size = sizeof(p) };

	make_queue(&p);
	gr_rcu_read_lock();
	for (int i = 0; i < 1000; i++) {
		gr_rcu_call_sized(queue, &more[i], count_run, 100);
	}
	ASSERT_EQ(stats().length, 1000u);
	ASSERT_EQ(stats().bytes, 100000u);
	ASSERT_EQ(stats().run, 0u);
	gr_rcu_read_unlock();
	gr_rcu_barrier(queue);
	ASSERT_EQ(stats().length, 0u);
	ASSERT_EQ(stats().bytes, 0u);
	ASSERT_EQ(stats().run, 1000u);
	ASSERT_GE(stats().batches, 1u);
	ASSERT_EQ(stats().high_water, 1000u);
	gr_rcu_queue_free(queue);
}

TEST_MAIN()
