/* SPDX-License-Identifier: MIT */
/* Draining with the lock held, asynchronous barriers, queues without a thread. */
#include "harness.h"
#include <guestram/event.h>
#include <guestram/rcu.h>
#include <guestram/rcu_control.h>
#include <guestram/rcu_domain.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <time.h>

#define LOAD(p)	    __atomic_load_n(p, __ATOMIC_RELAXED)
#define STORE(p, v) __atomic_store_n(p, v, __ATOMIC_RELAXED)
#define ADD(p, v)   __atomic_fetch_add(p, v, __ATOMIC_RELAXED)

static struct gr_rcu_queue *queue;
static struct gr_rcu_head heads[50000];
static uint64_t ran;

static void count_run(struct gr_rcu_head *head)
{
	(void)head;
	ADD(&ran, 1);
}

static void make_queue(const struct gr_rcu_queue_params *params)
{
#ifdef GR_PLATFORM_POSIX
	if (params && params->flags & GR_RCU_QUEUE_NO_THREAD) {
		SKIP("no queues without a thread on this platform");
	}
#endif
	ASSERT_EQ(gr_rcu_queue_create(params, &queue, NULL), 0);
}

static void dies_saying(void (*fn)(void *), const char *words)
{
	char text[1024];
	int status = test_in_child(fn, NULL, text, sizeof(text));

	ASSERT(WIFSIGNALED(status));
	ASSERT_EQ(WTERMSIG(status), SIGABRT);
	ASSERT_HAS(text, words);
}

/* ---- drain -------------------------------------------------------------------------------------
 */

static pthread_mutex_t big = PTHREAD_MUTEX_INITIALIZER;
static __thread bool i_hold_big;

static void big_lock(void *opaque)
{
	(void)opaque;
	ASSERT(!i_hold_big);
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

static const struct gr_rcu_queue_params with_big_lock = {
	.size = sizeof(with_big_lock),
	.lock = big_lock,
	.unlock = big_unlock,
	.is_locked = big_is_mine,
};

static bool stop;
static uint64_t sections;

/* As a vCPU thread that takes the monitor's lock for an access to a device. */
static void *lock_in_sections(void *arg)
{
	(void)arg;
	while (!LOAD(&stop)) {
		gr_rcu_read_lock();
		big_lock(NULL);
		big_unlock(NULL);
		gr_rcu_read_unlock();
		ADD(&sections, 1);
	}
	return NULL;
}

static void needs_lock(struct gr_rcu_head *head)
{
	ASSERT(i_hold_big);
	count_run(head);
}

static void takes_lock(struct gr_rcu_head *head)
{
	big_lock(NULL);
	big_unlock(NULL);
	count_run(head);
}

TEST(drain_runs_everything_with_the_lock_held_while_sections_wait_for_the_lock)
{
	uint64_t queued = 0;
	pthread_t r;

	test_watch_progress(&ran, 50);
	make_queue(&with_big_lock);
	pthread_create(&r, NULL, lock_in_sections, NULL);
	big_lock(NULL);
	for (int round = 0; round < 200; round++) {
		int n = round % 5 * 40;

		for (int i = 0; i < n; i++) {
			if (i % 3 == 0) {
				gr_rcu_call_nolock(queue, &heads[i], takes_lock);
			} else {
				gr_rcu_call(queue, &heads[i], needs_lock);
			}
		}
		queued += (uint64_t)n;
		gr_rcu_drain(queue);
		ASSERT(i_hold_big);
		ASSERT_EQ(LOAD(&ran), queued);
	}
	big_unlock(NULL);
	STORE(&stop, true);
	pthread_join(r, NULL);
	gr_rcu_queue_free(queue);
}

static bool others_had_it;

static void *take_once(void *arg)
{
	(void)arg;
	big_lock(NULL);
	STORE(&others_had_it, true);
	big_unlock(NULL);
	return NULL;
}

TEST(an_idle_drain_keeps_the_lock)
{
	pthread_t t;

	make_queue(&with_big_lock);
	big_lock(NULL);
	pthread_create(&t, NULL, take_once, NULL);
	sleep_ms(5);
	for (int i = 0; i < 1000; i++) {
		gr_rcu_drain(queue);
	}
	ASSERT(!LOAD(&others_had_it));
	big_unlock(NULL);
	pthread_join(t, NULL);
	gr_rcu_queue_free(queue);
}

static void drain_without_lock(void *arg)
{
	(void)arg;
	make_queue(&with_big_lock);
	gr_rcu_drain(queue);
}

static void barrier_with_lock(void *arg)
{
	(void)arg;
	make_queue(&with_big_lock);
	big_lock(NULL);
	gr_rcu_barrier(queue);
}

static void drain_again(struct gr_rcu_head *head)
{
	(void)head;
	gr_rcu_drain(queue);
}

static void drain_in_callback(void *arg)
{
	(void)arg;
	make_queue(&with_big_lock);
	gr_rcu_call(queue, &heads[0], drain_again);
	gr_rcu_barrier(queue);
}

static void poll_of_a_queue_with_a_thread(void *arg)
{
	(void)arg;
	make_queue(NULL);
	(void)gr_rcu_queue_poll(queue, 0, 0);
}

TEST(misuse_dies_with_a_message)
{
	dies_saying(drain_without_lock, "without the queue's lock");
	dies_saying(barrier_with_lock, "with the queue's lock held");
	dies_saying(drain_in_callback, "in a callback of the same queue");
	dies_saying(poll_of_a_queue_with_a_thread, "without a thread");
}

/* ---- asynchronous barriers ------------------------------------------------------------------ */

static uint64_t ran_at_barrier;
static struct gr_event barrier_over = GR_EVENT_INIT(false);

static void note_barrier(struct gr_rcu_head *head)
{
	(void)head;
	STORE(&ran_at_barrier, LOAD(&ran));
	gr_event_set(&barrier_over);
}

TEST(an_asynchronous_barrier_calls_back_after_what_was_queued_before)
{
	struct gr_rcu_head b;

	make_queue(NULL);
	for (uint64_t round = 1; round <= 100; round++) {
		gr_event_reset(&barrier_over);
		gr_rcu_read_lock();
		for (int i = 0; i < 500; i++) {
			gr_rcu_call(queue, &heads[i], count_run);
		}
		gr_rcu_barrier_async(queue, &b, note_barrier); /* in a section: it does not wait */
		gr_rcu_read_unlock();
		for (int i = 500; i < 600; i++) {
			gr_rcu_call(queue, &heads[i], count_run);
		}
		gr_event_wait(&barrier_over);
		ASSERT_GE(LOAD(&ran_at_barrier), round * 600 - 100);
		gr_rcu_barrier(queue);
	}
	gr_rcu_queue_free(queue);
}

TEST(an_idle_asynchronous_barrier_costs_no_grace_period)
{
	struct gr_rcu_stats before, after;
	struct gr_rcu_head b;

	make_queue(NULL);
	gr_rcu_stats_get(NULL, &before);
	gr_rcu_read_lock(); /* it would never come */
	for (int i = 0; i < 100; i++) {
		gr_event_reset(&barrier_over);
		gr_rcu_barrier_async(queue, &b, note_barrier);
		gr_event_wait(&barrier_over);
	}
	gr_rcu_read_unlock();
	gr_rcu_stats_get(NULL, &after);
	ASSERT_EQ(after.grace_periods, before.grace_periods);
	gr_rcu_queue_free(queue);
}

/* ---- without a thread ------------------------------------------------------------------------ */

static const struct gr_rcu_queue_params no_thread = {
	.size = sizeof(no_thread),
	.flags = GR_RCU_QUEUE_NO_THREAD,
};

static bool is_readable(void)
{
	struct pollfd p = { gr_rcu_queue_fd(queue), POLLIN, 0 };

	return poll(&p, 1, 0) == 1;
}

static void wait_readable(void)
{
	struct pollfd p = { gr_rcu_queue_fd(queue), POLLIN, 0 };

	while (poll(&p, 1, -1) != 1) {
	}
}

static pthread_t owner;

static void runs_on_owner(struct gr_rcu_head *head)
{
	ASSERT(pthread_equal(pthread_self(), owner));
	count_run(head);
}

TEST(the_owner_runs_callbacks_when_the_fd_says_so)
{
	make_queue(&no_thread);
	owner = pthread_self();
	ASSERT(!is_readable());
	gr_rcu_read_lock();
	for (int i = 0; i < 100; i++) {
		gr_rcu_call(queue, &heads[i], runs_on_owner);
	}
	gr_rcu_read_unlock();
	while (LOAD(&ran) < 100) {
		wait_readable();
		ASSERT_LE(gr_rcu_queue_poll(queue, 30, 0), 30u);
	}
	(void)gr_rcu_queue_poll(queue, 0, 0);
	ASSERT(!is_readable()); /* nothing is left to do */
	gr_rcu_queue_free(queue);
}

static struct gr_event reader_in = GR_EVENT_INIT(false), reader_out = GR_EVENT_INIT(false);

static void *stay_in_section(void *arg)
{
	(void)arg;
	gr_rcu_read_lock();
	gr_event_set(&reader_in);
	gr_event_wait(&reader_out);
	gr_rcu_read_unlock();
	return NULL;
}

TEST(a_poll_never_waits_for_readers)
{
	pthread_t r;

	make_queue(&no_thread);
	owner = pthread_self();
	pthread_create(&r, NULL, stay_in_section, NULL);
	gr_event_wait(&reader_in);
	gr_rcu_call(queue, &heads[0], runs_on_owner);
	for (int i = 0; i < 50; i++) {
		ASSERT_EQ(gr_rcu_queue_poll(queue, 0, 1000000), 0u);
	}
	ASSERT(!is_readable()); /* no busy loop while the reader takes its time */
	gr_event_set(&reader_out);
	wait_readable();
	while (LOAD(&ran) == 0) {
		(void)gr_rcu_queue_poll(queue, 0, 0);
		sched_yield();
	}
	pthread_join(r, NULL);
	gr_rcu_queue_free(queue);
}

enum { CALLERS = 2, EACH = 25000 };

static void *call_each(void *arg)
{
	struct gr_rcu_head *mine = arg;

	for (int i = 0; i < EACH; i++) {
		gr_rcu_call(queue, &mine[i], runs_on_owner);
		if (i % 64 == 0) {
			sched_yield(); /* so that the owner falls asleep often */
		}
	}
	return NULL;
}

TEST(no_call_is_left_behind_when_the_owner_sleeps_on_the_fd)
{
	pthread_t t[CALLERS];

	make_queue(&no_thread);
	owner = pthread_self();
	test_watch_progress(&ran, 50);
	for (int i = 0; i < CALLERS; i++) {
		pthread_create(&t[i], NULL, call_each, &heads[i * EACH]);
	}
	while (LOAD(&ran) < (uint64_t)CALLERS * EACH) {
		wait_readable();
		(void)gr_rcu_queue_poll(queue, 1000, 0);
	}
	for (int i = 0; i < CALLERS; i++) {
		pthread_join(t[i], NULL);
	}
	gr_rcu_queue_free(queue);
}

TEST(a_barrier_runs_the_callbacks_of_a_queue_that_nobody_polls)
{
	make_queue(&no_thread);
	for (uint64_t round = 1; round <= 20; round++) {
		for (int i = 0; i < 100; i++) {
			gr_rcu_call(queue, &heads[i], count_run);
		}
		gr_rcu_barrier(queue);
		ASSERT_EQ(LOAD(&ran), round * 100);
	}
	for (int i = 0; i < 100; i++) {
		gr_rcu_call(queue, &heads[i], count_run);
	}
	gr_rcu_queue_free(queue);
	ASSERT_EQ(LOAD(&ran), 2100u);
}

/* Whatever the classes in a batch are: one that has only such as need no lock ends, too. */
TEST(a_drain_runs_the_callbacks_of_a_queue_that_nobody_polls)
{
	struct gr_rcu_queue_params p = with_big_lock;
	uint64_t queued = 0;

	p.flags = GR_RCU_QUEUE_NO_THREAD;
	test_watch_progress(&ran, 50);
	make_queue(&p);
	big_lock(NULL);
	for (int round = 0; round < 30; round++) {
		for (int i = 0; i < 60; i++) {
			if (round % 3 == 0 || (round % 3 == 1 && i % 2)) {
				gr_rcu_call_nolock(queue, &heads[i], takes_lock);
			} else {
				gr_rcu_call(queue, &heads[i], needs_lock);
			}
		}
		queued += 60;
		gr_rcu_drain(queue);
		ASSERT(i_hold_big);
		ASSERT_EQ(LOAD(&ran), queued);
	}
	big_unlock(NULL);
	gr_rcu_queue_free(queue);
}

/* ---- domains --------------------------------------------------------------------------------- */

TEST(a_queue_waits_for_the_readers_of_its_domain_only)
{
	struct gr_rcu_domain *d = NULL;
	struct gr_rcu_queue_params p = { .size = sizeof(p) };

	ASSERT_EQ(gr_rcu_domain_create(NULL, &d, NULL), 0);
	p.domain = d;
	make_queue(&p);
	gr_rcu_read_lock(); /* of the default domain */
	gr_rcu_call(queue, &heads[0], count_run);
	gr_rcu_barrier(queue);
	ASSERT_EQ(LOAD(&ran), 1u);
	gr_rcu_read_unlock();

	gr_rcu_domain_read_lock(d);
	gr_rcu_call(queue, &heads[1], count_run);
	sleep_ms(20);
	ASSERT_EQ(LOAD(&ran), 1u);
	gr_rcu_domain_read_unlock(d);
	gr_rcu_queue_free(queue);
	ASSERT_EQ(LOAD(&ran), 2u);
	gr_rcu_domain_free(d);
}

TEST_MAIN()
