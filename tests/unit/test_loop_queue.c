/* SPDX-License-Identifier: MIT */
/* RCU callbacks of queues without a thread, run by a loop. */
#include "harness.h"
#include <errno.h>
#include <guestram/loop.h>
#include <guestram/rcu_queue.h>
#include <pthread.h>
#include <sys/wait.h>

#define LOAD(p)	  __atomic_load_n(p, __ATOMIC_ACQUIRE)
#define ADD(p, v) __atomic_fetch_add(p, v, __ATOMIC_ACQ_REL)

enum { CALLS = 1000, MS = 1000000 };

static struct gr_loop *loop;
static struct gr_rcu_queue *queue;
static struct gr_loop_handler *handler;
static struct gr_rcu_head heads[CALLS];
static pthread_t runner;
static uint64_t ran;

static void start(void)
{
	const struct gr_rcu_queue_params params = { .size = sizeof(params),
						    .flags = GR_RCU_QUEUE_NO_THREAD };
	struct gr_error err = { .msg = "" };
	int rc = gr_rcu_queue_create(&params, &queue, &err);

	if (rc == -ENOTSUP) {
		SKIP("no queues without a thread here: %s", err.msg);
	}
	ASSERT_EQ(rc, 0);
	ASSERT_EQ(gr_loop_create(NULL, &loop, NULL), 0);
	if (gr_loop_add_queue(loop, queue, &handler, &err) < 0) {
		FAIL("%s", err.msg);
	}
}

static void finish(void)
{
	gr_loop_del_sync(handler);
	gr_rcu_queue_free(queue);
	gr_loop_free(loop);
}

static int step(uint64_t timeout_ns)
{
	int rc = gr_loop_step(loop, timeout_ns, NULL);

	ASSERT_GE(rc, 0);
	return rc;
}

static void *run_loop(void *opaque)
{
	(void)opaque;
	ASSERT_EQ(gr_loop_run(loop, NULL), 0);
	return NULL;
}

static void count_on_the_loops_thread(struct gr_rcu_head *head)
{
	(void)head;
	ASSERT(pthread_equal(pthread_self(), runner));
	ADD(&ran, 1);
}

TEST(callbacks_of_a_queue_without_a_thread_run_on_the_loops_thread)
{
	start();
	ASSERT_EQ(pthread_create(&runner, NULL, run_loop, NULL), 0);
	test_watch_progress(&ran, 30);
	for (int i = 0; i < CALLS; i++) {
		gr_rcu_call(queue, &heads[i], count_on_the_loops_thread);
		if (i % 100 == 0) { /* from sleep, too */
			while (LOAD(&ran) <= (uint64_t)i) {
				sleep_ms(1);
			}
		}
	}
	while (LOAD(&ran) < CALLS) {
		sleep_ms(1);
	}
	gr_loop_stop(loop);
	ASSERT_EQ(pthread_join(runner, NULL), 0);
	finish();
}

static void count(struct gr_rcu_head *head)
{
	(void)head;
	ADD(&ran, 1);
}

static uint64_t inside, go_on;

static void *read_on(void *opaque)
{
	gr_rcu_read_lock();
	ADD(&inside, 1);
	while (LOAD(&go_on) == 0) {
		sleep_ms(1);
	}
	gr_rcu_read_unlock();
	return opaque;
}

TEST(they_wait_for_readers_and_the_loop_does_not)
{
	pthread_t reader;

	start();
	ASSERT_EQ(pthread_create(&reader, NULL, read_on, NULL), 0);
	while (LOAD(&inside) == 0) {
		sleep_ms(1);
	}
	gr_rcu_call(queue, &heads[0], count);
	for (int i = 0; i < 10; i++) {
		(void)step(5 * MS); /* hears of the call, and asks for the grace period */
	}
	ASSERT_EQ(LOAD(&ran), 0u);
	ADD(&go_on, 1);
	while (LOAD(&ran) == 0) {
		(void)step(GR_LOOP_NEVER);
	}
	ASSERT_EQ(pthread_join(reader, NULL), 0);
	(void)step(0);
	ASSERT_EQ(step(20 * MS), 0); /* nothing left: it sleeps */
	finish();
}

static void take_long(struct gr_rcu_head *head)
{
	(void)head;
	sleep_ms(1);
	ADD(&ran, 1);
}

TEST(a_full_queue_leaves_others_their_turns)
{
	enum { LONG = 50 };

	start();
	for (int i = 0; i < LONG; i++) {
		gr_rcu_call(queue, &heads[i], take_long);
	}
	for (uint64_t before = 0; before < LONG; before = LOAD(&ran)) {
		(void)step(GR_LOOP_NEVER);
		/* Each takes longer than a slice. */
		ASSERT_LE(LOAD(&ran), before + 1);
	}
	finish();
}

static void add_one_with_a_thread(void *opaque)
{
	(void)opaque;
	ASSERT_EQ(gr_rcu_queue_create(NULL, &queue, NULL), 0);
	ASSERT_EQ(gr_loop_create(NULL, &loop, NULL), 0);
	(void)!gr_loop_add_queue(loop, queue, &handler, NULL);
}

TEST(a_queue_that_has_a_thread_is_refused)
{
	char text[400];
	int status = test_in_child(add_one_with_a_thread, NULL, text, sizeof(text));

	ASSERT_HAS(text, "is for queues without a thread");
	ASSERT(WIFSIGNALED(status));
}

TEST_MAIN()
