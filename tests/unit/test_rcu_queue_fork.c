/* SPDX-License-Identifier: MIT */
/*
 * fork() and callback queues. Callbacks leave their mark in memory, so the child can tell which
 * have run: each that was queued before runs once, here or before, but at most one per
 * queue that another thread was in the middle of.
 */
#include "harness.h"
#include "rcu/queue.h"
#include <errno.h>
#include <guestram/event.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#define LOAD(p)	    __atomic_load_n(p, __ATOMIC_RELAXED)
#define ACQUIRE(p)  __atomic_load_n(p, __ATOMIC_ACQUIRE)
#define STORE(p, v) __atomic_store_n(p, v, __ATOMIC_RELAXED)
#define ADD(p, v)   __atomic_fetch_add(p, v, __ATOMIC_RELAXED)

enum { CALLERS = 2, EACH = 300000, FORKS = 40 };

struct marked {
	struct gr_rcu_head head;
	unsigned ran;
};
static struct marked *node[CALLERS];
static uint32_t called[CALLERS]; /* (a) */
static struct gr_rcu_queue *queue;
static bool stop;

static void mark(struct gr_rcu_head *head)
{
	struct marked *m = (struct marked *)(void *)head;

	ASSERT_EQ(m->ran, 0u);
	m->ran++;
}

static void *call_until_stop(void *arg)
{
	unsigned me = (unsigned)(uintptr_t)arg;

	for (uint32_t i = 0; i < EACH && !LOAD(&stop); i++) {
		gr_rcu_call(queue, &node[me][i].head, mark);
		__atomic_store_n(&called[me], i + 1, __ATOMIC_RELEASE);
		if (i % 512 == 0) {
			sched_yield();
		}
	}
	return NULL;
}

/* Pages that fork must copy the tables of: it takes its time. */
static void be_large(void)
{
	size_t bytes = 256 << 20;
	char *p = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	ASSERT(p != MAP_FAILED);
	for (size_t i = 0; i < bytes; i += 4096) {
		p[i] = 1;
	}
}

static void check_in_child(const uint32_t *were_called)
{
	unsigned lost = 0;

	gr_rcu_barrier(queue);
	for (unsigned c = 0; c < CALLERS; c++) {
		for (uint32_t i = 0; i < were_called[c]; i++) {
			ASSERT_LE(node[c][i].ran, 1u);
			lost += node[c][i].ran == 0;
		}
	}
	ASSERT_LE(lost, 1u);
}

static void wait_for_child(pid_t pid)
{
	int status;

	ASSERT(pid > 0);
	while (waitpid(pid, &status, 0) < 0) {
		ASSERT_EQ(errno, EINTR);
	}
	ASSERT(WIFEXITED(status));
	ASSERT_EQ(WEXITSTATUS(status), 0);
}

static void note_called(uint32_t *ret)
{
	for (unsigned c = 0; c < CALLERS; c++) {
		ret[c] = ACQUIRE(&called[c]);
	}
}

static void fork_among_callers(const struct gr_rcu_queue_params *params)
{
	uint32_t before[CALLERS];
	pthread_t t[CALLERS];

	SKIP_FORK_AMONG_THREADS_UNDER_SANITIZERS();
	be_large();
	ASSERT_EQ(gr_rcu_queue_create(params, &queue, NULL), 0);
	for (uintptr_t c = 0; c < CALLERS; c++) {
		node[c] = calloc(EACH, sizeof(struct marked));
		pthread_create(&t[c], NULL, call_until_stop, (void *)c);
	}
	for (int i = 0; i < FORKS; i++) {
		pid_t pid;

		note_called(before);
		pid = fork();
		if (pid == 0) {
			check_in_child(before);
			pid = fork(); /* the child of a child, once everything stands still */
			if (pid == 0) {
				check_in_child(before);
				_exit(0);
			}
			wait_for_child(pid);
			_exit(0);
		}
		wait_for_child(pid);
	}
	STORE(&stop, true);
	for (int c = 0; c < CALLERS; c++) {
		pthread_join(t[c], NULL);
	}
	note_called(before);
	gr_rcu_barrier(queue);
	for (unsigned c = 0; c < CALLERS; c++) {
		for (uint32_t i = 0; i < before[c]; i++) {
			ASSERT_EQ(node[c][i].ran, 1u);
		}
	}
	gr_rcu_queue_free(queue);
}

TEST(a_child_runs_each_callback_once_that_was_queued_before)
{
	fork_among_callers(NULL);
}

static pthread_mutex_t big = PTHREAD_MUTEX_INITIALIZER;

static void big_lock(void *opaque)
{
	(void)opaque;
	pthread_mutex_lock(&big);
}

static void big_unlock(void *opaque)
{
	(void)opaque;
	pthread_mutex_unlock(&big);
}

/* As a monitor forks: with its lock held, so that the child has it. */
TEST(a_child_of_a_fork_with_the_queues_lock_held_runs_each_callback_once)
{
	const struct gr_rcu_queue_params p = {
		.size = sizeof(p),
		.lock = big_lock,
		.unlock = big_unlock,
	};

	SKIP_FORK_AMONG_THREADS_UNDER_SANITIZERS();
	ASSERT_EQ(gr_rcu_queue_create(&p, &queue, NULL), 0);
	node[0] = calloc(1000, sizeof(struct marked));
	for (int round = 0; round < 20; round++) {
		pid_t pid;

		for (int i = 0; i < 1000; i++) {
			node[0][i].ran = 0;
			if (i % 2) {
				gr_rcu_call(queue, &node[0][i].head, mark);
			} else {
				gr_rcu_call_nolock(queue, &node[0][i].head, mark);
			}
		}
		pthread_mutex_lock(&big);
		pid = fork();
		pthread_mutex_unlock(&big);
		gr_rcu_barrier(queue);
		for (int i = 0, lost = 0; i < 1000; i++) {
			lost += node[0][i].ran == 0;
			ASSERT_LE(lost, pid == 0);
		}
		if (pid == 0) {
			_exit(0);
		}
		wait_for_child(pid);
	}
	gr_rcu_queue_free(queue);
}

/*
 * The monitor's own handler takes its lock before a fork, and was there before ours: so it runs
 * when the door is closed already, while the worker is in the middle of a slice.
 */
static bool handler_on;
static struct gr_event in_slice = GR_EVENT_INIT(false), slice_may_end = GR_EVENT_INIT(false);

static void lock_before_fork(void)
{
	if (LOAD(&handler_on)) {
		gr_event_set(&slice_may_end);
		pthread_mutex_lock(&big);
	}
}

static void unlock_after_fork(void)
{
	if (LOAD(&handler_on)) {
		pthread_mutex_unlock(&big);
	}
}

__attribute__((constructor(101))) static void add_handler(void)
{
	(void)pthread_atfork(lock_before_fork, unlock_after_fork, unlock_after_fork);
}

static void wait_in_slice(struct gr_rcu_head *head)
{
	mark(head);
	gr_event_set(&in_slice);
	gr_event_wait(&slice_may_end);
}

static void *drain_it(void *arg)
{
	(void)arg;
	big_lock(NULL);
	gr_rcu_drain(queue);
	big_unlock(NULL);
	return NULL;
}

static void fork_in_a_slice(bool drains)
{
	const struct gr_rcu_queue_params p = {
		.size = sizeof(p),
		.lock = big_lock,
		.unlock = big_unlock,
	};
	unsigned lost = 0;
	pid_t pid;

	SKIP_FORK_AMONG_THREADS_UNDER_SANITIZERS();
	ASSERT_EQ(gr_rcu_queue_create(&p, &queue, NULL), 0);
	node[0] = calloc(100, sizeof(struct marked));
	for (int i = 0; i < 100; i++) {
		gr_rcu_call(queue, &node[0][i].head, i == 10 ? wait_in_slice : mark);
	}
	if (drains) {
		pthread_t t;

		pthread_create(&t, NULL, drain_it, NULL);
		pthread_detach(t);
	}
	gr_event_wait(&in_slice);
	STORE(&handler_on, true);
	pid = fork();
	STORE(&handler_on, false);
	gr_rcu_barrier(queue);
	for (int i = 0; i < 100; i++) {
		lost += node[0][i].ran == 0;
	}
	ASSERT_EQ(lost, 0u);
	if (pid == 0) {
		_exit(0);
	}
	wait_for_child(pid);
}

TEST(a_fork_handler_may_take_the_lock_that_is_held_for_callbacks)
{
	fork_in_a_slice(false);
}

TEST(a_fork_handler_may_take_the_lock_that_is_held_by_a_drain)
{
	fork_in_a_slice(true);
}

/* ---- in a callback ------------------------------------------------------------------------- */

static unsigned ran_here;
static pid_t child = -1;

static void fork_or_count(struct gr_rcu_head *head)
{
	(void)head;
	if (++ran_here == 50) {
		child = fork();
	}
	if (ran_here == 100 && child == 0) {
		_exit(0); /* the child's one thread is the worker, and went on */
	}
}

TEST(a_callback_may_fork_and_the_child_goes_on_as_the_worker)
{
	static struct gr_rcu_head heads[100];

	SKIP_FORK_AMONG_THREADS_UNDER_SANITIZERS();
	for (int round = 0; round < 2; round++) {
		ran_here = 0;
		for (int i = 0; i < 100; i++) {
			gr_rcu_call(NULL, &heads[i], fork_or_count);
		}
		gr_rcu_barrier(NULL);
		ASSERT_EQ(ran_here, 100u);
		wait_for_child(child);
	}
}

/* ---- without a thread ------------------------------------------------------------------------ */

static uint64_t polled;

static void count_polled(struct gr_rcu_head *head)
{
	(void)head;
	polled++;
}

static void poll_until(uint64_t n)
{
	while (polled < n) {
		struct pollfd p = { gr_rcu_queue_fd(queue), POLLIN, 0 };

		ASSERT_EQ(poll(&p, 1, -1), 1);
		(void)gr_rcu_queue_poll(queue, 0, 0);
	}
}

TEST(parent_and_child_each_have_an_fd_of_their_own)
{
	const struct gr_rcu_queue_params p = { .size = sizeof(p), .flags = GR_RCU_QUEUE_NO_THREAD };
	static struct gr_rcu_head heads[200];

#ifdef GR_PLATFORM_POSIX
	SKIP("no queues without a thread on this platform");
#endif
	SKIP_FORK_AMONG_THREADS_UNDER_SANITIZERS();
	ASSERT_EQ(gr_rcu_queue_create(&p, &queue, NULL), 0);
	for (int round = 0; round < 20; round++) {
		pid_t pid;

		polled = 0;
		for (int i = 0; i < 100; i++) {
			gr_rcu_call(queue, &heads[i], count_polled);
		}
		(void)gr_rcu_queue_poll(queue, 0, 0); /* asks for a grace period, probably */
		pid = fork();
		poll_until(100);
		for (int i = 100; i < 200; i++) {
			gr_rcu_call(queue, &heads[i], count_polled);
		}
		poll_until(200);
		if (pid == 0) {
			_exit(0);
		}
		wait_for_child(pid);
	}
	gr_rcu_queue_free(queue);
}

/* ---- what is counted --------------------------------------------------------------------------
 */

static struct gr_event inside = GR_EVENT_INIT(false), go_on = GR_EVENT_INIT(false);

static void stop_inside(struct gr_rcu_head *head)
{
	(void)head;
	gr_event_set(&inside);
	gr_event_wait(&go_on);
}

/* Its bytes would keep the child's queue over its limit for ever. */
TEST(a_callback_that_a_child_has_lost_is_no_longer_counted)
{
	static struct gr_rcu_head head;
	pid_t pid;

	SKIP_FORK_AMONG_THREADS_UNDER_SANITIZERS();
	ASSERT_EQ(gr_rcu_queue_create(NULL, &queue, NULL), 0);
	gr_rcu_call_sized(queue, &head, stop_inside, 1 << 20);
	gr_event_wait(&inside);
	pid = fork();
	if (pid == 0) {
		gr_rcu_barrier(queue);
		ASSERT_EQ(LOAD(&queue->count), 0);
		ASSERT_EQ(LOAD(&queue->bytes), 0);
		_exit(0);
	}
	gr_event_set(&go_on);
	wait_for_child(pid);
	gr_rcu_barrier(queue);
	ASSERT_EQ(LOAD(&queue->count), 0);
	ASSERT_EQ(LOAD(&queue->bytes), 0);
	gr_rcu_queue_free(queue);
}

TEST_MAIN()
