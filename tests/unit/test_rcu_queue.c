/* SPDX-License-Identifier: MIT */
#include "harness.h"
#include "rcu/rcu_internal.h"
#include <errno.h>
#include <guestram/event.h>
#include <guestram/rcu.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define LOAD(p)	    __atomic_load_n(p, __ATOMIC_RELAXED)
#define STORE(p, v) __atomic_store_n(p, v, __ATOMIC_RELAXED)
#define ADD(p, v)   __atomic_fetch_add(p, v, __ATOMIC_RELAXED)

static uint64_t now_ns(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (uint64_t)ts.tv_sec * 1000000000u + (uint64_t)ts.tv_nsec;
}

static void spin_ns(uint64_t ns)
{
	uint64_t end = now_ns() + ns;

	while (now_ns() < end) {
	}
}

static struct gr_rcu_queue *make_queue(const struct gr_rcu_queue_params *params)
{
	struct gr_error err = { 0, "" };
	struct gr_rcu_queue *q = NULL;
	int ret = gr_rcu_queue_create(params, &q, &err);

	ASSERT_STR_EQ(err.msg, "");
	ASSERT_EQ(ret, 0);
	return q;
}

static uint64_t ran;

static void count_run(struct gr_rcu_head *head)
{
	(void)head;
	ADD(&ran, 1);
}

TEST(callbacks_run_before_the_barrier_returns_on_either_kind_of_queue)
{
	static struct gr_rcu_head heads[1000];
	struct gr_rcu_queue *q = make_queue(NULL);

	for (int round = 0; round < 20; round++) {
		struct gr_rcu_queue *where = round % 2 ? q : NULL;

		for (int i = 0; i < 1000; i++) {
			gr_rcu_call(where, &heads[i], count_run);
		}
		gr_rcu_barrier(where);
		ASSERT_EQ(LOAD(&ran), 1000u * (uint64_t)(round + 1));
	}
	gr_rcu_queue_free(q);
	gr_rcu_queue_free(NULL);
}

TEST(bad_parameters_are_refused)
{
	struct gr_rcu_queue_params p = { .size = 7 };
	struct gr_rcu_queue *q = (void *)&p;
	struct gr_error err;

	ASSERT_EQ(gr_rcu_queue_create(&p, &q, &err), -EINVAL);
	ASSERT_HAS(err.msg, "7 bytes");
	p.size = sizeof(p);
	p.lock = free;
	ASSERT_EQ(gr_rcu_queue_create(&p, &q, &err), -EINVAL);
	ASSERT_HAS(err.msg, "lock and unlock");
	ASSERT_EQ(gr_rcu_queue_create(&p, &q, NULL), -EINVAL);
	ASSERT_PTR_EQ(q, &p);
}

TEST(a_callback_does_not_run_while_an_older_section_is_open)
{
	struct gr_rcu_head head;

	gr_rcu_read_lock();
	gr_rcu_call(NULL, &head, count_run);
	sleep_ms(20);
	ASSERT_EQ(LOAD(&ran), 0u);
	gr_rcu_read_unlock();
	gr_rcu_barrier(NULL);
	ASSERT_EQ(LOAD(&ran), 1u);
}

TEST(an_idle_barrier_costs_no_grace_period)
{
	struct gr_rcu_stats before, after;
	struct gr_rcu_head head;

	gr_rcu_barrier(NULL);
	gr_rcu_call(NULL, &head, count_run);
	gr_rcu_barrier(NULL);
	gr_rcu_stats_get(NULL, &before);
	for (int i = 0; i < 1000; i++) {
		gr_rcu_barrier(NULL);
	}
	gr_rcu_stats_get(NULL, &after);
	ASSERT_EQ(after.grace_periods, before.grace_periods);
}

static struct gr_event in_callback = GR_EVENT_INIT(false);

static void slow_callback(struct gr_rcu_head *head)
{
	gr_event_set(&in_callback);
	sleep_ms(10);
	count_run(head);
}

/* More than once: on a busy machine the callback may be over before the barrier begins. */
TEST(barrier_waits_for_a_callback_that_is_running)
{
	struct gr_rcu_head head;

	for (uint64_t round = 1; round <= 20; round++) {
		gr_event_reset(&in_callback);
		gr_rcu_call(NULL, &head, slow_callback);
		gr_event_wait(&in_callback);
		gr_rcu_barrier(NULL);
		ASSERT_EQ(LOAD(&ran), round);
	}
}

/* ---- order, re-queueing, concurrency ---------------------------------------------------- */

enum { CALLERS = 4, EACH = 20000 };
struct numbered {
	struct gr_rcu_head head;
	unsigned caller, number;
};
static unsigned next_number[CALLERS];

static void check_order(struct gr_rcu_head *head)
{
	struct numbered *n = (struct numbered *)(void *)head;

	ASSERT_EQ(n->number, next_number[n->caller]);
	next_number[n->caller]++;
	free(n);
}

static void *call_in_order(void *arg)
{
	unsigned me = (unsigned)(uintptr_t)arg;

	for (unsigned i = 0; i < EACH; i++) {
		struct numbered *n = malloc(sizeof(*n));

		n->caller = me;
		n->number = i;
		gr_rcu_call(NULL, &n->head, check_order);
		if (i % 1000 == 999) {
			gr_rcu_barrier(NULL);
			/* The callback's plain write is ordered before the barrier's return. */
			ASSERT_EQ(next_number[me], i + 1);
		}
	}
	return NULL;
}

TEST(each_callers_callbacks_run_in_its_order_and_barriers_cover_them)
{
	pthread_t t[CALLERS];

	for (uintptr_t i = 0; i < CALLERS; i++) {
		pthread_create(&t[i], NULL, call_in_order, (void *)i);
	}
	for (int i = 0; i < CALLERS; i++) {
		pthread_join(t[i], NULL);
	}
	for (int i = 0; i < CALLERS; i++) {
		ASSERT_EQ(next_number[i], (unsigned)EACH);
	}
}

static unsigned requeues_left = 2000;
static struct gr_rcu_queue *requeue_on;
static struct gr_event requeued_out = GR_EVENT_INIT(false);

static void requeue(struct gr_rcu_head *head)
{
	if (--requeues_left > 0) {
		gr_rcu_call(requeue_on, head, requeue);
	} else {
		gr_event_set(&requeued_out);
	}
}

TEST(a_callback_may_queue_itself_again_and_barriers_still_return)
{
	struct gr_rcu_head head;

	gr_rcu_call(NULL, &head, requeue);
	for (int i = 0; i < 50; i++) {
		gr_rcu_barrier(NULL);
	}
	gr_event_wait(&requeued_out);
	ASSERT_EQ(requeues_left, 0u);
}

TEST(freeing_a_queue_runs_what_its_callbacks_queue)
{
	struct gr_rcu_head head;

	requeues_left = 50;
	requeue_on = make_queue(NULL);
	gr_rcu_call(requeue_on, &head, requeue);
	gr_rcu_queue_free(requeue_on);
	ASSERT_EQ(requeues_left, 0u);
}

static void *churn_queues(void *arg)
{
	(void)arg;
	for (int i = 0; i < 100; i++) {
		struct gr_rcu_queue *q = make_queue(NULL);
		struct gr_rcu_head head[3];

		for (int k = 0; k < i % 4; k++) {
			gr_rcu_call(q, &head[k], count_run);
		}
		if (i % 3 == 0) {
			gr_rcu_barrier(q);
		}
		gr_rcu_queue_free(q);
	}
	return NULL;
}

TEST(queues_come_and_go_with_barriers_from_many_threads)
{
	pthread_t t[CALLERS];

	for (int i = 0; i < CALLERS; i++) {
		pthread_create(&t[i], NULL, churn_queues, NULL);
	}
	for (int i = 0; i < CALLERS; i++) {
		pthread_join(t[i], NULL);
	}
	ASSERT_EQ(LOAD(&ran), CALLERS * 150u);
}

/* ---- the caller's lock -------------------------------------------------------------------- */

static struct {
	pthread_mutex_t m;
	bool held;	  /* by the worker */
	uint64_t since;	  /* ns */
	uint64_t longest; /* ns */
	unsigned slices, in_slice, most_in_slice;
} big = { .m = PTHREAD_MUTEX_INITIALIZER };

static void big_lock(void *opaque)
{
	ASSERT_PTR_EQ(opaque, &big);
	ASSERT(!gr_rcu_read_ongoing());
	pthread_mutex_lock(&big.m);
	big.held = true;
	big.since = now_ns();
	big.slices++;
	big.in_slice = 0;
}

static void big_unlock(void *opaque)
{
	uint64_t held = now_ns() - big.since;

	ASSERT_PTR_EQ(opaque, &big);
	big.longest = held > big.longest ? held : big.longest;
	big.held = false;
	pthread_mutex_unlock(&big.m);
}

static void needs_the_lock(struct gr_rcu_head *head)
{
	ASSERT(big.held);
	big.in_slice++;
	big.most_in_slice = big.in_slice > big.most_in_slice ? big.in_slice : big.most_in_slice;
	count_run(head);
}

static void takes_10_us(struct gr_rcu_head *head)
{
	needs_the_lock(head);
	spin_ns(10000);
}

static const struct gr_rcu_queue_params with_big_lock = {
	.size = sizeof(struct gr_rcu_queue_params),
	.name = "big lock",
	.lock = big_lock,
	.unlock = big_unlock,
	.opaque = &big,
};

TEST(the_lock_is_held_while_callbacks_run_and_in_slices_of_64)
{
	static struct gr_rcu_head heads[10000];
	struct gr_rcu_queue *q = make_queue(&with_big_lock);

	for (int i = 0; i < 10000; i++) {
		gr_rcu_call(q, &heads[i], needs_the_lock);
	}
	gr_rcu_queue_free(q);
	ASSERT_EQ(LOAD(&ran), 10000u);
	ASSERT_LE(big.most_in_slice, (unsigned)GR_RCU_SLICE_CALLBACKS);
	ASSERT_GE(big.slices, 10000u / GR_RCU_SLICE_CALLBACKS);
}

static bool enough; /* (a) turns of the lock */

static void takes_10_us_again(struct gr_rcu_head *head)
{
	takes_10_us(head);
	if (!LOAD(&enough)) {
		gr_rcu_call(requeue_on, head, takes_10_us_again);
	}
}

/* There is work until the other thread has had its turns: how long that takes is no matter. */
TEST(the_lock_is_passed_on_between_slices)
{
	static struct gr_rcu_head heads[10000]; /* 100 ms of callbacks, again and again */
	uint64_t worst = 0, wait;

	requeue_on = make_queue(&with_big_lock);
	for (int i = 0; i < 10000; i++) {
		gr_rcu_call(requeue_on, &heads[i], takes_10_us_again);
	}
	while (LOAD(&ran) == 0) {
		sched_yield();
	}
	for (int turns = 0; turns < 5; turns++) {
		wait = now_ns();
		pthread_mutex_lock(&big.m);
		wait = now_ns() - wait;
		worst = wait > worst ? wait : worst;
		pthread_mutex_unlock(&big.m);
		sleep_ms(1);
	}
	STORE(&enough, true);
	gr_rcu_queue_free(requeue_on); /* joins the worker: big is ours now */
	test_diag("longest wait %" PRIu64 " us; %u slices, longest %" PRIu64 " us", worst / 1000,
		  big.slices, big.longest / 1000);
	ASSERT_GE(LOAD(&ran), 10000u);
	/* A slice is 200 us, one callback takes 10 or more, and one starts just before the end. */
	ASSERT_LE(big.most_in_slice, GR_RCU_SLICE_NS / 10000u + 1);
}

static struct gr_event reader_in = GR_EVENT_INIT(false);

/* Readers may take the lock inside a section: the worker must not hold it while it waits. */
static void *section_then_lock(void *arg)
{
	(void)arg;
	gr_rcu_read_lock();
	gr_event_set(&reader_in);
	sleep_ms(5);
	pthread_mutex_lock(&big.m);
	pthread_mutex_unlock(&big.m);
	gr_rcu_read_unlock();
	return NULL;
}

TEST(the_lock_is_not_held_while_the_worker_waits_for_readers)
{
	struct gr_rcu_queue *q = make_queue(&with_big_lock);
	struct gr_rcu_head head;

	for (int i = 0; i < 20; i++) {
		pthread_t t;

		gr_event_reset(&reader_in);
		pthread_create(&t, NULL, section_then_lock, NULL);
		gr_event_wait(&reader_in);
		gr_rcu_call(q, &head, needs_the_lock);
		gr_rcu_barrier(q);
		pthread_join(t, NULL);
	}
	gr_rcu_queue_free(q);
}

static struct gr_rcu_queue *other_queue;

static void barrier_of_other_queue(struct gr_rcu_head *head)
{
	static struct gr_rcu_head inner;

	gr_rcu_read_lock();
	gr_rcu_read_unlock();
	gr_rcu_call(other_queue, &inner, count_run);
	gr_rcu_barrier(other_queue);
	gr_rcu_synchronize();
	count_run(head);
}

TEST(a_callback_may_wait_for_another_queue)
{
	struct gr_rcu_head head;

	other_queue = make_queue(NULL);
	gr_rcu_call(NULL, &head, barrier_of_other_queue);
	gr_rcu_barrier(NULL);
	ASSERT_EQ(LOAD(&ran), 2u);
	gr_rcu_queue_free(other_queue);
}

/* ---- latency, memory, misuse ---------------------------------------------------------------- */

static struct gr_event ran_event = GR_EVENT_INIT(false);

static void set_event(struct gr_rcu_head *head)
{
	(void)head;
	gr_event_set(&ran_event);
}

static int by_value(const void *a, const void *b)
{
	uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;

	return (x > y) - (x < y);
}

/* How soon is for the benchmarks and the diagnostics: a busy machine may take any time. */
TEST(from_idle_a_callback_runs_without_anybody_waiting_for_it)
{
	uint64_t ns[50];
	struct gr_rcu_head head;

	for (int i = 0; i < 50; i++) {
		sleep_ms(2);
		gr_event_reset(&ran_event);
		ns[i] = now_ns();
		gr_rcu_call(NULL, &head, set_event);
		gr_event_wait(&ran_event);
		ns[i] = now_ns() - ns[i];
	}
	qsort(ns, 50, sizeof(ns[0]), by_value);
	test_diag("idle to executed: median %" PRIu64 " us, 90%% %" PRIu64 " us", ns[25] / 1000,
		  ns[45] / 1000);
}

/* From now on no thread can be made in this process; skips where that cannot be had. */
static void take_threads_away(void)
{
	struct rlimit limit;
	pthread_t t;

	if (test_under_tsan() || test_under_asan()) {
		SKIP("the sanitizer's own threads need what this test takes away");
	}
	/* The limit does not bind root. Only the soft one: it can be raised again. */
	if (getrlimit(RLIMIT_NPROC, &limit) != 0 ||
	    setrlimit(RLIMIT_NPROC, &(struct rlimit){ 1, limit.rlim_max }) != 0 ||
	    (getuid() == 0 && setuid(65534) != 0)) {
		SKIP("cannot limit threads: %s", strerror(errno));
	}
	if (pthread_create(&t, NULL, churn_queues, NULL) == 0) {
		pthread_join(t, NULL);
		SKIP("threads can be made in spite of RLIMIT_NPROC");
	}
}

static void set_soft_limit_of_threads(bool none)
{
	struct rlimit limit;

	ASSERT_EQ(getrlimit(RLIMIT_NPROC, &limit), 0);
	limit.rlim_cur = none ? 1 : limit.rlim_max;
	ASSERT_EQ(setrlimit(RLIMIT_NPROC, &limit), 0);
}

TEST(without_a_thread_for_the_worker_the_barrier_runs_the_callbacks)
{
	struct gr_rcu_head heads[10];

	take_threads_away();
	for (int i = 0; i < 10; i++) {
		gr_rcu_call(NULL, &heads[i], count_run);
	}
	ASSERT_EQ(LOAD(&ran), 0u);
	gr_rcu_barrier(NULL);
	ASSERT_EQ(LOAD(&ran), 10u);
}

/* Nobody waits: the callbacks themselves must lead to another try. */
TEST(a_worker_that_could_not_be_started_is_started_by_a_later_call)
{
	struct gr_rcu_head heads[3];

	take_threads_away();
	gr_rcu_call(NULL, &heads[0], count_run);
	gr_rcu_call(NULL, &heads[1], count_run);
	ASSERT_EQ(LOAD(&ran), 0u);
	set_soft_limit_of_threads(false);
	gr_rcu_call(NULL, &heads[2], set_event);
	gr_event_wait(&ran_event);
	ASSERT_EQ(LOAD(&ran), 2u);
}

static struct gr_rcu_queue *outer_queue;

static void barrier_of_other_then_own(struct gr_rcu_head *head)
{
	barrier_of_other_queue(head); /* runs the other queue's callbacks in this thread... */
	gr_rcu_barrier(outer_queue);  /* ...which is still in a callback of this one */
}

static void barrier_in_callback_without_threads(void *arg)
{
	static struct gr_rcu_head head;

	(void)arg;
	set_soft_limit_of_threads(true);
	outer_queue = make_queue(NULL);
	other_queue = make_queue(NULL);
	gr_rcu_call(outer_queue, &head, barrier_of_other_then_own);
	gr_rcu_barrier(outer_queue);
}

static void dies_saying(void (*fn)(void *), const char *words);

TEST(barrier_in_a_callback_of_the_same_queue_dies_though_another_queue_ran_meanwhile)
{
	take_threads_away();
	set_soft_limit_of_threads(false); /* or this child could not be made */
	dies_saying(barrier_in_callback_without_threads, "in a callback of the same queue");
}

static void barrier_in_section(void *arg) GR_NO_TSA
{
	(void)arg;
	gr_rcu_read_lock();
	gr_rcu_barrier(NULL);
}

static void barrier_here(struct gr_rcu_head *head)
{
	(void)head;
	gr_rcu_barrier(NULL);
}

static void barrier_in_callback(void *arg)
{
	static struct gr_rcu_head head;

	(void)arg;
	gr_rcu_call(NULL, &head, barrier_here);
	gr_rcu_barrier(NULL);
}

static void leave_open(struct gr_rcu_head *head) GR_NO_TSA
{
	(void)head;
	gr_rcu_read_lock();
}

static void section_left_open(void *arg)
{
	static struct gr_rcu_head head;

	(void)arg;
	gr_rcu_call(NULL, &head, leave_open);
	gr_rcu_barrier(NULL);
}

static void same_head_twice(void *arg)
{
	static struct gr_rcu_head first, head;
	uint64_t cookie;

	(void)arg;
	gr_rcu_read_lock();
	cookie = gr_rcu_get_state();
	gr_rcu_call(NULL, &first, count_run);
	while (gr_rcu_get_state() == cookie) { /* until the worker waits for us, and takes no more */
		sched_yield();
	}
	gr_rcu_call(NULL, &head, count_run);
	gr_rcu_call(NULL, &head, count_run);
	gr_rcu_read_unlock();
}

static void dies_saying(void (*fn)(void *), const char *words)
{
	char text[1024];
	int status = test_in_child(fn, NULL, text, sizeof(text));

	ASSERT(WIFSIGNALED(status));
	ASSERT_EQ(WTERMSIG(status), SIGABRT);
	ASSERT_HAS(text, words);
}

TEST(misuse_dies_with_a_message)
{
	dies_saying(barrier_in_section, "gr_rcu_barrier() inside a read-side section");
	dies_saying(barrier_in_callback, "in a callback of the same queue");
	dies_saying(section_left_open, "callback returned inside a read-side section");
	dies_saying(same_head_twice, "already queued");
}

TEST_MAIN()
