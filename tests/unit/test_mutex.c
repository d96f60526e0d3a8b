/* SPDX-License-Identifier: MIT */
#include "harness.h"
#include "base/mutex.h"
#include <signal.h>
#include <stdlib.h>
#include <sys/wait.h>

static struct gr_mutex outer = GR_MUTEX_INIT(GR_RANK_RAM);
static struct gr_mutex inner = GR_MUTEX_INIT(GR_RANK_DIRTY);
static struct gr_mutex peer = GR_MUTEX_INIT(GR_RANK_DIRTY);
static long counter;

static void *count(void *arg)
{
	(void)arg;
	for (int i = 0; i < 20000; i++) {
		gr_mutex_lock(&outer);
		counter++;
		gr_mutex_unlock(&outer);
	}
	return NULL;
}

TEST(one_thread_at_a_time)
{
	pthread_t t[4];

	for (int i = 0; i < 4; i++) {
		pthread_create(&t[i], NULL, count, NULL);
	}
	for (int i = 0; i < 4; i++) {
		pthread_join(t[i], NULL);
	}
	ASSERT_EQ(counter, 80000);
}

static void *try_outer(void *ret)
{
	if (gr_mutex_trylock(&outer)) {
		*(bool *)ret = true;
		gr_mutex_unlock(&outer);
	}
	return NULL;
}

static bool others_can_take_outer(void)
{
	pthread_t t;
	bool got = false;

	pthread_create(&t, NULL, try_outer, &got);
	pthread_join(t, NULL);
	return got;
}

static int guarded(int a)
{
	GR_MUTEX_GUARD(&outer);
	ASSERT(!others_can_take_outer());
	gr_mutex_assert_held(&outer);
	return a + 1;
}

TEST(trylock_fails_while_held_and_the_guard_releases)
{
	ASSERT_EQ(guarded(1), 2);
	ASSERT(others_can_take_outer());
}

TEST(ranks_in_order_are_fine)
{
	gr_mutex_lock(&outer);
	gr_mutex_lock(&inner);
	gr_mutex_lock_peer(&peer);
	gr_mutex_assert_held(&outer);
	gr_mutex_unlock(&outer);
	gr_mutex_unlock(&peer);
	gr_mutex_unlock(&inner);
}

static void out_of_order(void *arg) GR_NO_TSA
{
	(void)arg;
	gr_mutex_lock(&inner);
	gr_mutex_lock(&outer);
}

static void same_rank(void *arg) GR_NO_TSA
{
	(void)arg;
	gr_mutex_lock(&inner);
	gr_mutex_lock(&peer);
}

static void not_held(void *arg) GR_NO_TSA
{
	(void)arg;
	gr_mutex_assert_held(&outer);
}

static void not_mine(void *arg) GR_NO_TSA
{
	(void)arg;
	gr_mutex_unlock(&outer);
}

static void dies_saying(void (*fn)(void *), const char *words)
{
	char text[512];
	int status = test_in_child(fn, NULL, text, sizeof(text));

	ASSERT(WIFSIGNALED(status));
	ASSERT_EQ(WTERMSIG(status), SIGABRT);
	ASSERT_HAS(text, words);
}

TEST(checking_builds_report_order_and_holder)
{
#ifdef GR_DEBUG_CHECKS
	dies_saying(out_of_order, "rank 30 is taken while one of rank 60 is held");
	dies_saying(same_rank, "rank 60 is taken while one of rank 60 is held");
	dies_saying(not_held, "should be held");
	dies_saying(not_mine, "does not hold it");
#else
	(void)dies_saying;
	(void)out_of_order;
	(void)same_rank;
	(void)not_held;
	(void)not_mine;
	SKIP("needs -Ddebug_checks=true");
#endif
}

TEST_MAIN()
