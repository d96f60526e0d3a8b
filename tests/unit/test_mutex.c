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

static struct gr_owned_mutex owned = GR_OWNED_MUTEX_INIT(GR_RANK_DIRTY);

static void *count_owned(void *arg)
{
	(void)arg;
	for (int i = 0; i < 20000; i++) {
		ASSERT(!gr_owned_mutex_is_mine(&owned));
		gr_owned_mutex_lock(&owned);
		ASSERT(gr_owned_mutex_is_mine(&owned));
		counter++;
		gr_owned_mutex_unlock(&owned);
	}
	return NULL;
}

TEST(a_mutex_that_knows_its_owner_lets_one_thread_in_at_a_time)
{
	pthread_t t[4];

	for (int i = 0; i < 4; i++) {
		pthread_create(&t[i], NULL, count_owned, NULL);
	}
	for (int i = 0; i < 4; i++) {
		pthread_join(t[i], NULL);
	}
	ASSERT_EQ(counter, 80000);
	ASSERT(gr_owned_mutex_trylock(&owned));
	ASSERT(!gr_owned_mutex_trylock(&owned));
	gr_owned_mutex_unlock(&owned);
}

#ifndef _WIN32
static void *hold_owned(void *arg)
{
	gr_owned_mutex_lock(&owned);
	pthread_barrier_wait(arg);
	pthread_barrier_wait(arg);
	gr_owned_mutex_unlock(&owned);
	return NULL;
}

static void in_child_of_fork(void *arg) GR_NO_TSA
{
	bool mine = arg == NULL;

	gr_owned_mutex_after_fork_in_child(&owned);
	ASSERT_EQ(gr_owned_mutex_is_mine(&owned), mine);
	if (mine) {
		gr_owned_mutex_unlock(&owned);
	}
	gr_owned_mutex_lock(&owned);
}

static int status_of_child(void *arg)
{
	char text[512];

	return test_in_child(in_child_of_fork, arg, text, sizeof(text));
}

TEST(in_a_fork_child_it_stays_locked_if_the_forking_thread_has_it)
{
	pthread_barrier_t both;
	pthread_t t;

	SKIP_FORK_AMONG_THREADS_UNDER_SANITIZERS();
	gr_owned_mutex_lock(&owned);
	ASSERT_EQ(status_of_child(NULL), 0);
	gr_owned_mutex_unlock(&owned);
	pthread_barrier_init(&both, NULL, 2);
	pthread_create(&t, NULL, hold_owned, &both);
	pthread_barrier_wait(&both);
	ASSERT_EQ(status_of_child(&both), 0);
	pthread_barrier_wait(&both);
	pthread_join(t, NULL);
}

#endif

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
