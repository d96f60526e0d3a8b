/* SPDX-License-Identifier: MIT */
#include "harness.h"
#include <guestram/event.h>
#include <pthread.h>
#include <sched.h>
#include <time.h>

enum { SETTERS = 3, WAITERS = 3 };

TEST(event_starts_as_told_and_set_and_reset_change_it)
{
	struct gr_event a = GR_EVENT_INIT(true), b = GR_EVENT_INIT(false), c;

	ASSERT(gr_event_is_set(&a));
	ASSERT(!gr_event_is_set(&b));
	gr_event_wait(&a);
	gr_event_reset(&a);
	gr_event_reset(&a);
	ASSERT(!gr_event_is_set(&a));
	gr_event_set(&a);
	gr_event_set(&a);
	gr_event_wait(&a);
	gr_event_init(&c, false);
	ASSERT(!gr_event_is_set(&c));
	gr_event_init(&c, true);
	ASSERT(gr_event_is_set(&c));
}

TEST(wait_timeout_tells_set_from_time_up_and_waits_its_time)
{
	struct gr_event ev = GR_EVENT_INIT(false);
	struct timespec a, b;

	clock_gettime(CLOCK_MONOTONIC, &a);
	ASSERT(!gr_event_wait_timeout(&ev, 20000000));
	clock_gettime(CLOCK_MONOTONIC, &b);
	ASSERT_GE((b.tv_sec - a.tv_sec) * 1000000000ll + (b.tv_nsec - a.tv_nsec), 20000000ll);
	ASSERT(!gr_event_wait_timeout(&ev, 0));
	gr_event_set(&ev);
	ASSERT(gr_event_wait_timeout(&ev, 0));
	ASSERT(gr_event_wait_timeout(&ev, UINT64_MAX));
}

/*
 * Every waiter consumes from a shared count in the documented pattern: reset, look, wait.
 * A lost wake-up leaves items behind with everybody asleep: the harness's time-out.
 */
static struct {
	struct gr_event work;
	unsigned long produced, consumed;
	unsigned long limit;
} torture;

static void *setter(void *arg)
{
	uint64_t rnd = test_seed() + (uintptr_t)arg;

	for (unsigned long i = 0; i < torture.limit; i++) {
		__atomic_fetch_add(&torture.produced, 1, __ATOMIC_RELAXED);
		gr_event_set(&torture.work);
		if (test_rand(&rnd) % 8 == 0) {
			sched_yield();
		}
	}
	return NULL;
}

static bool consume_one(void)
{
	unsigned long c = __atomic_load_n(&torture.consumed, __ATOMIC_RELAXED);

	while (c < __atomic_load_n(&torture.produced, __ATOMIC_RELAXED)) {
		if (__atomic_compare_exchange_n(&torture.consumed, &c, c + 1, false,
						__ATOMIC_RELAXED, __ATOMIC_RELAXED)) {
			return true;
		}
	}
	return false;
}

static void *waiter(void *arg)
{
	unsigned long all = torture.limit * SETTERS;

	(void)arg;
	while (__atomic_load_n(&torture.consumed, __ATOMIC_RELAXED) < all) {
		gr_event_reset(&torture.work);
		if (consume_one()) {
			continue;
		}
		if (__atomic_load_n(&torture.consumed, __ATOMIC_RELAXED) >= all) {
			break;
		}
		gr_event_wait(&torture.work);
	}
	gr_event_set(&torture.work); /* the others may be asleep with nothing left */
	return NULL;
}

TEST(no_wake_up_is_lost_among_several_setters_and_waiters)
{
	pthread_t t[SETTERS + WAITERS];

	gr_event_init(&torture.work, false);
	torture.limit = test_under_tsan() ? 20000 : 150000;
	for (uintptr_t i = 0; i < SETTERS + WAITERS; i++) {
		pthread_create(&t[i], NULL, i < SETTERS ? setter : waiter, (void *)i);
	}
	for (unsigned i = 0; i < SETTERS + WAITERS; i++) {
		pthread_join(t[i], NULL);
	}
	ASSERT_EQ(torture.consumed, torture.limit * SETTERS);
}

/* Two events used as a ball: every hand-over is a wait that must see the plain write. */
static struct gr_event ping = GR_EVENT_INIT(false), pong = GR_EVENT_INIT(false);
static uint64_t ball;
static unsigned long plain; /* only the events order it */

static void *returner(void *arg)
{
	unsigned long n = *(unsigned long *)arg;

	for (unsigned long i = 0; i < n; i++) {
		gr_event_wait(&ping);
		gr_event_reset(&ping);
		ASSERT_EQ(ball, 2 * i + 1);
		ASSERT_EQ(plain++, 2 * i + 1);
		__atomic_store_n(&ball, ball + 1, __ATOMIC_RELAXED); /* the watch looks too */
		gr_event_set(&pong);
	}
	return NULL;
}

TEST(a_wait_that_returns_sees_what_was_written_before_the_set)
{
	unsigned long n = test_under_tsan() ? 2000 : 20000;
	pthread_t t;

	test_watch_progress(&ball, 4);
	pthread_create(&t, NULL, returner, &n);
	for (unsigned long i = 0; i < n; i++) {
		ASSERT_EQ(ball, 2 * i);
		ASSERT_EQ(plain++, 2 * i);
		__atomic_store_n(&ball, ball + 1, __ATOMIC_RELAXED);
		gr_event_set(&ping);
		gr_event_wait(&pong);
		gr_event_reset(&pong);
	}
	pthread_join(t, NULL);
}

static void *wait_once(void *arg)
{
	gr_event_wait(arg);
	return NULL;
}

TEST(set_wakes_every_waiter_even_if_reset_follows_at_once)
{
	pthread_t t[8];

	for (int round = 0; round < (test_under_tsan() ? 20 : 200); round++) {
		struct gr_event ev = GR_EVENT_INIT(false);

		for (int i = 0; i < 8; i++) {
			pthread_create(&t[i], NULL, wait_once, &ev);
		}
		/* Those that sleep by now are let go by the first set. */
		nanosleep(&(struct timespec){ 0, 200000 }, NULL);
		gr_event_set(&ev);
		gr_event_reset(&ev);
		nanosleep(&(struct timespec){ 0, 100000 }, NULL);
		gr_event_set(&ev); /* those that were late */
		for (int i = 0; i < 8; i++) {
			pthread_join(t[i], NULL);
		}
	}
}

static uint64_t let_go;

/* Set, reset, and the next one waits before the first one has even woken up. */
TEST(a_wait_that_slept_returns_though_another_one_waits_already)
{
	pthread_t t;

	test_watch_progress(&let_go, 4);
	for (int round = 0; round < 200; round++) {
		struct gr_event ev = GR_EVENT_INIT(false);

		pthread_create(&t, NULL, wait_once, &ev);
		while ((__atomic_load_n(&ev.word, __ATOMIC_RELAXED) & 3) != GR_EVENT_WORD_BUSY) {
			sched_yield();
		}
		if (round % 2) {
			nanosleep(&(struct timespec){ 0, 200000 }, NULL); /* the kernel has it */
		}
		gr_event_set(&ev);
		gr_event_reset(&ev);
		ASSERT(!gr_event_wait_timeout(&ev, 1000));
		pthread_join(t, NULL);
		__atomic_add_fetch(&let_go, 1, __ATOMIC_RELAXED);
	}
}

TEST_MAIN()
