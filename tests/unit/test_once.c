/* SPDX-License-Identifier: MIT */
#include "harness.h"
#include <guestram/event.h>
#include <pthread.h>
#include <time.h>

static struct gr_once once;
static int runs, written;

static void slow_init(void)
{
	__atomic_fetch_add(&runs, 1, __ATOMIC_RELAXED);
	nanosleep(&(struct timespec){ 0, 2000000 }, NULL);
	written = 42; /* plain: the once must order it */
}

static void *caller(void *arg)
{
	(void)arg;
	gr_once(&once, slow_init);
	ASSERT_EQ(written, 42);
	gr_once(&once, slow_init);
	return NULL;
}

TEST(runs_once_and_everybody_waits_for_it)
{
	for (int round = 0; round < 20; round++) {
		pthread_t t[16];

		once = (struct gr_once)GR_ONCE_INIT;
		runs = written = 0;
		for (int i = 0; i < 16; i++) {
			pthread_create(&t[i], NULL, caller, NULL);
		}
		for (int i = 0; i < 16; i++) {
			pthread_join(t[i], NULL);
		}
		ASSERT_EQ(runs, 1);
	}
}

TEST_MAIN()
