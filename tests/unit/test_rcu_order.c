/* SPDX-License-Identifier: MIT */
/*
 * Interleavings of grace periods and callbacks that a model found first (models/README.md),
 * replayed: a thread is stopped at a named place of the library (base/hook.h) while others do the
 * worst they can.
 */
#include "rcu_kit.h"
#include <errno.h>
#include <guestram/rcu_qs.h>
#include <guestram/rcu_queue.h>
#ifndef _WIN32
#	include <sys/resource.h>
#	include <sys/wait.h>
#	include <unistd.h>
#endif
#include <stdlib.h>

void gr_test_hook(const char *place); /* the library's, but for us */

/* The thread that comes to the place first, once it is set, waits there for `go_on`. */
static struct stop {
	const char *place; /* (a) */
	struct gr_event stopped, go_on;
} at_ask, at_wait, at_take, at_fork;

/* What to do once, at which place, in the thread that comes there. */
static const char *do_at; /* (a) */
static void (*do_what)(void);

static void maybe_do(const char *place)
{
	const char *wanted = __atomic_load_n(&do_at, __ATOMIC_ACQUIRE);

	if (wanted && strcmp(wanted, place) == 0 &&
	    __atomic_compare_exchange_n(&do_at, &wanted, NULL, false, __ATOMIC_ACQ_REL,
					__ATOMIC_RELAXED)) {
		do_what();
	}
}

static void do_once_at(const char *place, void (*what)(void))
{
	do_what = what;
	__atomic_store_n(&do_at, place, __ATOMIC_RELEASE);
}

static void maybe_stop(struct stop *s, const char *place)
{
	const char *wanted = __atomic_load_n(&s->place, __ATOMIC_ACQUIRE);

	if (wanted && strcmp(wanted, place) == 0 &&
	    __atomic_compare_exchange_n(&s->place, &wanted, NULL, false, __ATOMIC_ACQ_REL,
					__ATOMIC_RELAXED)) {
		gr_event_set(&s->stopped);
		gr_event_wait(&s->go_on);
	}
}

static struct gr_rcu_reader *hot_reader; /* (a) */
static uint32_t asked_at_m1;		 /* (a) its need_qs then */

void gr_test_hook(const char *place)
{
	struct gr_rcu_reader *r = __atomic_load_n(&hot_reader, __ATOMIC_ACQUIRE);

	if (r && strcmp(place, "grace period: M1 next") == 0) {
		STORE(&asked_at_m1, LOAD(&r->need_qs));
	}
	maybe_stop(&at_ask, place);
	maybe_stop(&at_wait, place);
	maybe_stop(&at_take, place);
	maybe_stop(&at_fork, place);
	maybe_do(place);
}

static void arm(struct stop *s, const char *place)
{
	gr_event_init(&s->stopped, false);
	gr_event_init(&s->go_on, false);
	__atomic_store_n(&s->place, place, __ATOMIC_RELEASE);
}

/* A thread that does one thing after the other, when it is told. */
struct actor {
	struct gr_event ready, go;
	struct gr_rcu_reader *reader;
	pthread_t thread;
};

static void report_ready(struct actor *a)
{
	a->reader = &gr_rcu_self;
	gr_event_set(&a->ready);
	gr_event_wait(&a->go);
	gr_event_reset(&a->go);
}

static void start(struct actor *a, void *(*fn)(void *))
{
	gr_event_init(&a->ready, false);
	gr_event_init(&a->go, false);
	a->thread = spawn(fn, a);
	gr_event_wait(&a->ready);
	gr_event_reset(&a->ready);
}

static void step(struct actor *a)
{
	gr_event_set(&a->go);
	gr_event_wait(&a->ready);
	gr_event_reset(&a->ready);
}

static void finish(struct actor *a)
{
	gr_event_set(&a->go);
	pthread_join(a->thread, NULL);
}

static void *synchronizer(void *arg)
{
	(void)arg;
	gr_rcu_synchronize();
	return NULL;
}

/* ---- the family of a reader that was asked ---------------------------------------------- */

static void *online_then_cold(void *arg)
{
	struct actor *a = arg;

	gr_rcu_qs_register_thread();
	report_ready(a);
	gr_rcu_thread_offline(); /* looks for a request: there is none yet */
	gr_rcu_read_lock();
	report_ready(a);
	gr_rcu_read_unlock(); /* no fence before this look: the driver must know */
	gr_rcu_qs_unregister_thread();
	return NULL;
}

TEST(a_thread_that_goes_offline_and_into_a_section_before_it_is_asked_may_miss_the_request)
{
	struct actor reader;
	pthread_t driver;

	start(&reader, online_then_cold);
	arm(&at_ask, "ask: chosen");
	driver = spawn(synchronizer, NULL);
	gr_event_wait(&at_ask.stopped);
	step(&reader);
	gr_event_set(&at_ask.go_on);
	while (stats().sleeps == 0) {
		sched_yield();
	}
	if (gr_heavy_fence_available()) {
		ASSERT_EQ(stats().flag_fences, 1u);
	} else {
		while (stats().rescans == 0) {
			sched_yield();
		}
	}
	finish(&reader);
	pthread_join(driver, NULL);
}

/* ---- one process-wide fence for both -------------------------------------------------------- */

static void *hot_in_a_section(void *arg) GR_NO_TSA
{
	struct actor *a = arg;

	become_hot();
	gr_rcu_read_lock();
	report_ready(a);
	gr_rcu_read_unlock();
	return NULL;
}

/* So the request must come before the fence. */
TEST(a_hot_reader_is_asked_before_the_fence_and_costs_no_other)
{
	struct gr_rcu_stats before, after;
	struct actor reader;
	pthread_t driver;

	if (!gr_heavy_fence_available()) {
		SKIP("no process-wide fence here: no reader is hot");
	}
	start(&reader, hot_in_a_section);
	before = stats();
	__atomic_store_n(&hot_reader, reader.reader, __ATOMIC_RELEASE);
	driver = spawn(synchronizer, NULL);
	while (stats().sleeps == before.sleeps) {
		sched_yield();
	}
	finish(&reader);
	pthread_join(driver, NULL);
	after = stats();
	ASSERT_EQ(LOAD(&asked_at_m1), 1u);
	ASSERT_EQ(after.requests - before.requests, 1u);
	ASSERT_EQ(after.entry_fences - before.entry_fences, 1u);
	ASSERT_EQ(after.flag_fences - before.flag_fences, 0u);
}

/* ---- a batch that is joined while its grace period begins -------------------------------- */

static void *in_a_section(void *arg) GR_NO_TSA
{
	struct actor *a = arg;

	gr_rcu_read_lock();
	report_ready(a);
	gr_rcu_read_unlock();
	return NULL;
}

static struct gr_rcu_queue *queue;

static void *barrier(void *arg)
{
	(void)arg;
	gr_rcu_barrier(queue);
	return NULL;
}

struct call {
	struct gr_rcu_head head;
	uint32_t ran; /* (a) */
};

static void run(struct gr_rcu_head *head)
{
	STORE(&((struct call *)(void *)head)->ran, 1u);
}

TEST(a_call_that_joins_a_batch_whose_grace_period_has_begun_waits_for_the_next)
{
	static struct call first, second;
	struct actor old, new;
	pthread_t waiter;

	ASSERT_EQ(gr_rcu_queue_create(NULL, &queue, NULL), 0);
	start(&old, in_a_section);

	/* The worker has opened a batch. */
	arm(&at_wait, "next batch: opened");
	gr_rcu_call(queue, &first.head, run);
	gr_event_wait(&at_wait.stopped);

	/* The barrier finds that it may join it: no grace period runs. */
	arm(&at_take, "take: may join");
	waiter = spawn(barrier, NULL);
	gr_event_wait(&at_take.stopped);

	/* One begins, and has looked for readers. A section of later, and a call on top of it: */
	gr_event_set(&at_wait.go_on);
	wait_until_asked(old.reader);
	start(&new, in_a_section);
	gr_rcu_call(queue, &second.head, run);

	/* The barrier takes it. The section was not waited for by the grace period that ends now.
	 */
	gr_event_set(&at_take.go_on);
	finish(&old);
	while (LOAD(&new.reader->need_qs) == 0 && LOAD(&second.ran) == 0) {
		sched_yield();
	}
	ASSERT_EQ(LOAD(&second.ran), 0u);
	finish(&new);
	pthread_join(waiter, NULL);
	ASSERT_EQ(LOAD(&first.ran), 1u);
	ASSERT_EQ(LOAD(&second.ran), 1u);
	gr_rcu_queue_free(queue);
}

#ifndef _WIN32
/* ---- a shard that runs over while fork looks at it ----------------------------------------- */

enum { BEFORE_FORK = 100, MEANWHILE = 2000 };

static struct call called[BEFORE_FORK + MEANWHILE];

static void *call_before_and_meanwhile(void *arg)
{
	struct actor *a = arg;

	for (int i = 0; i < BEFORE_FORK + MEANWHILE; i++) {
		if (i == BEFORE_FORK) {
			report_ready(a);
		}
		gr_rcu_call(NULL, &called[i].head, run);
	}
	report_ready(a);
	return NULL;
}

static pid_t child;

static void *forker(void *arg)
{
	(void)arg;
	child = fork();
	if (child == 0) {
		gr_rcu_barrier(NULL);
		for (int i = 0; i < BEFORE_FORK; i++) {
			ASSERT_EQ(LOAD(&called[i].ran), 1u);
		}
		gr_rcu_barrier(NULL); /* nothing is left, and nothing runs again */
		_exit(0);
	}
	return NULL;
}

TEST(a_child_has_what_was_called_before_though_the_shard_runs_over_meanwhile)
{
	struct rlimit limit, none;
	struct actor caller;
	pthread_t t;
	int status;

	SKIP_FORK_AMONG_THREADS_UNDER_SANITIZERS();
	gr_rcu_call(NULL, &called[0].head, run);
	gr_rcu_barrier(NULL); /* there is a worker */
	ASSERT_EQ(getrlimit(RLIMIT_AS, &limit), 0);
	gr_rcu_read_lock(); /* nothing runs */
	start(&caller, call_before_and_meanwhile);
	arm(&at_fork, "fork: half noted");
	t = spawn(forker, NULL);
	gr_event_wait(&at_fork.stopped);
	none = limit;
	none.rlim_cur = 1 << 20;
	ASSERT_EQ(setrlimit(RLIMIT_AS, &none), 0); /* no larger ring */
	step(&caller);
	ASSERT_EQ(setrlimit(RLIMIT_AS, &limit), 0);
	gr_event_set(&at_fork.go_on);
	pthread_join(t, NULL);
	gr_rcu_read_unlock();
	ASSERT(child > 0);
	ASSERT_EQ(waitpid(child, &status, 0), child);
	ASSERT(WIFEXITED(status));
	ASSERT_EQ(WEXITSTATUS(status), 0);
	finish(&caller);
	gr_rcu_barrier(NULL);
	for (int i = 0; i < BEFORE_FORK + MEANWHILE; i++) {
		ASSERT_EQ(LOAD(&called[i].ran), 1u);
	}
}
#endif
/* ---- quiet times ------------------------------------------------------------------------------
 */

static bool begun;

static void *begin_quiet_time(void *arg)
{
	gr_rcu_quiet_begin();
	STORE(&begun, true);
	gr_event_set(&at_wait.stopped); /* if it has not waited */
	return arg;
}

static void *idle_warm(void *arg)
{
	struct actor *a = arg;

	become_hot();
	report_ready(a);
	return NULL;
}

TEST(a_quiet_time_begins_when_grace_periods_are_done_fencing)
{
	struct actor reader;
	pthread_t driver, beginner;
	bool early;

	if (!gr_heavy_fence_available()) {
		SKIP("no process-wide fence here");
	}
	gr_rcu_quiet_begin(); /* readers become WARM */
	gr_rcu_quiet_end();
	start(&reader, idle_warm);
	arm(&at_ask, "grace period: M1 next");
	driver = spawn(synchronizer, NULL);
	gr_event_wait(&at_ask.stopped);
	arm(&at_wait, "quiet: waits");
	beginner = spawn(begin_quiet_time, NULL);
	gr_event_wait(&at_wait.stopped);
	early = LOAD(&begun);
	gr_event_set(&at_wait.go_on);
	gr_event_set(&at_ask.go_on);
	pthread_join(beginner, NULL);
	pthread_join(driver, NULL);
	ASSERT(!early);
	gr_rcu_quiet_end();
	finish(&reader);
}

/* ---- bytes ------------------------------------------------------------------------------------
 */

enum { SMALL = 1000, LARGE = 1000000, BEFORE_SHARD = 40 };

static uint64_t queued_bytes(void)
{
	struct gr_rcu_queue_stats s;

	gr_rcu_queue_stats_get(queue, &s);
	return s.bytes;
}

static void make_queue_without_thread(void)
{
	struct gr_rcu_queue_params params = {
		.size = sizeof(params),
		.flags = GR_RCU_QUEUE_NO_THREAD,
	};

	int ret = gr_rcu_queue_create(&params, &queue, NULL);

	if (ret == -ENOTSUP) {
		SKIP("no queues without a thread on this system");
	}
	ASSERT_EQ(ret, 0);
}

static struct call large;

static void *call_large(void *arg)
{
	gr_rcu_call_sized(queue, &large.head, run, LARGE);
	return arg;
}

static void call_large_elsewhere(void)
{
	pthread_join(spawn(call_large, NULL), NULL);
}

TEST(bytes_are_taken_with_their_calls)
{
	static struct call small;

	make_queue_without_thread();
	gr_rcu_call_sized(queue, &small.head, run, SMALL);
	do_once_at("take: detached", call_large_elsewhere);
	(void)gr_rcu_queue_poll(queue, 0, 0);
	gr_rcu_synchronize();
	ASSERT_EQ(gr_rcu_queue_poll(queue, 1, 0), 1u);
	ASSERT_EQ(LOAD(&small.ran), 1u);
	ASSERT_EQ(LOAD(&large.ran), 0u);
	ASSERT_EQ(queued_bytes(), LARGE);
	gr_rcu_queue_free(queue);
}

/* ---- a fork while a call is under way whose handler has called ------------------------------- */

static struct call handlers;

static void *fork_and_look(void *arg)
{
	int status;
	pid_t pid = fork();

	ASSERT(pid >= 0);
	if (pid == 0) {
		gr_rcu_barrier(NULL);
		_exit(LOAD(&handlers.ran) == 1 ? 0 : 1);
	}
	ASSERT_EQ(waitpid(pid, &status, 0), pid);
	ASSERT_EQ(status, 0);
	return arg;
}

static void call_and_fork_elsewhere(void)
{
	gr_rcu_call(NULL, &handlers.head, run);
	pthread_join(spawn(fork_and_look, NULL), NULL);
}

TEST(a_child_has_what_a_handler_called_in_the_middle_of_its_threads_call)
{
	enum { CALLS = 100 }; /* enough for a shard */
	static struct call calls[CALLS];

	SKIP_FORK_AMONG_THREADS_UNDER_SANITIZERS();
	for (int i = 0; i < CALLS; i++) {
		if (i == CALLS - 1) {
			do_once_at("call: put", call_and_fork_elsewhere);
		}
		gr_rcu_call(NULL, &calls[i].head, run);
	}
	gr_rcu_barrier(NULL);
	ASSERT_EQ(LOAD(&handlers.ran), 1u);
	for (int i = 0; i < CALLS; i++) {
		ASSERT_EQ(LOAD(&calls[i].ran), 1u);
	}
}

static void *run_all(void *arg)
{
	gr_rcu_barrier(queue);
	return arg;
}

static void run_all_elsewhere(void)
{
	pthread_join(spawn(run_all, NULL), NULL);
}

TEST(no_bytes_are_left_behind_when_their_call_has_run)
{
	static struct call before[BEFORE_SHARD], last;

	make_queue_without_thread();
	for (int i = 0; i < BEFORE_SHARD; i++) { /* until the thread has a shard of its own */
		gr_rcu_call_sized(queue, &before[i].head, run, SMALL);
	}
	do_once_at("call: put", run_all_elsewhere);
	gr_rcu_call_sized(queue, &last.head, run, LARGE);
	ASSERT_EQ(LOAD(&last.ran), 1u);
	ASSERT_EQ(queued_bytes(), 0u);
	gr_rcu_queue_free(queue);
}

#ifndef _WIN32
/* ---- handlers that fork ----------------------------------------------------------------------
 */

static pid_t forked = -1; /* by the handler */
static struct gr_event has_forked = GR_EVENT_INIT(false);

static void fork_in_handler(int sig)
{
	(void)sig;
	forked = fork();
	if (forked > 0) {
		gr_event_set(&has_forked);
	}
}

static void be_interrupted(void)
{
	(void)raise(SIGUSR1);
}

static void interrupt_at(const char *place)
{
	struct sigaction sa = { .sa_handler = fork_in_handler };

	ASSERT_EQ(sigaction(SIGUSR1, &sa, NULL), 0);
	do_once_at(place, be_interrupted);
}

static void wait_for_child(pid_t pid)
{
	int status;

	ASSERT(pid > 0);
	while (waitpid(pid, &status, 0) < 0) {
		ASSERT_EQ(errno, EINTR);
	}
	ASSERT_EQ(status, 0);
}

static void *leave_when_forked(void *arg) GR_NO_TSA
{
	struct actor *a = arg;

	gr_rcu_read_lock();
	gr_event_set(&a->ready);
	gr_event_wait(&has_forked);
	gr_rcu_read_unlock();
	return NULL;
}

static void *read_once(void *arg)
{
	gr_rcu_read_lock();
	gr_rcu_read_unlock();
	return arg;
}

/* Threads come and go, and each grace period waits for whom it shall. */
static void check_grace_periods(void)
{
	struct actor reader;
	uint64_t cookie;

	pthread_join(spawn(read_once, NULL), NULL);
	start(&reader, in_a_section);
	cookie = gr_rcu_start_poll();
	wait_until_asked(reader.reader);
	ASSERT(!gr_rcu_poll_state(cookie));
	finish(&reader);
	gr_rcu_cond_synchronize(cookie);
	gr_rcu_synchronize_expedited();
}

TEST(a_handler_may_fork_in_the_middle_of_its_threads_walk_over_the_readers)
{
	struct actor reader;

	SKIP_FORK_AMONG_THREADS_UNDER_SANITIZERS();
	gr_event_init(&reader.ready, false);
	reader.thread = spawn(leave_when_forked, &reader);
	gr_event_wait(&reader.ready);
	gr_rcu_register_thread();
	interrupt_at("ask: chosen");
	gr_rcu_synchronize();
	check_grace_periods();
	if (forked == 0) {
		_exit(0);
	}
	pthread_join(reader.thread, NULL);
	wait_for_child(forked);
}

TEST(a_handler_that_interrupts_a_fork_may_fork)
{
	pid_t pid;

	SKIP_FORK_AMONG_THREADS_UNDER_SANITIZERS();
	interrupt_at("fork: locked");
	pid = fork();
	check_grace_periods();
	if (pid == 0 || forked == 0) {
		_exit(0);
	}
	wait_for_child(pid);
	wait_for_child(forked);
}
#endif

/* ---- domains that go -------------------------------------------------------------------------
 */

static struct gr_rcu_domain *short_lived;

static void *read_in_domain(void *arg)
{
	struct actor *a = arg;

	gr_rcu_domain_read_lock(short_lived);
	a->reader = gr_rcu_domain_reader(short_lived);
	gr_event_set(&a->ready);
	gr_event_wait(&a->go);
	gr_rcu_domain_read_unlock(short_lived); /* stops where it has reported */
	return NULL;
}

static void *synchronize_domain(void *arg)
{
	gr_rcu_domain_synchronize(short_lived);
	return arg;
}

/* The statistics were touched there: AddressSanitizer sees it, others by what lies there then. */
TEST(a_domain_may_go_as_soon_as_a_grace_period_has_waited_for_its_readers)
{
	enum { TRIES = 100 };
	unsigned char *tried[TRIES];
	struct actor reader;
	pthread_t driver;

	ASSERT_EQ(gr_rcu_domain_create(NULL, &short_lived, NULL), 0);
	gr_event_init(&reader.ready, false);
	gr_event_init(&reader.go, false);
	reader.thread = spawn(read_in_domain, &reader);
	gr_event_wait(&reader.ready);
	driver = spawn(synchronize_domain, NULL);
	wait_until_asked(reader.reader);
	arm(&at_ask, "report: done");
	gr_event_set(&reader.go);
	gr_event_wait(&at_ask.stopped);
	while (!gr_rcu_domain_poll_state(short_lived, 2)) {
		/* Not woken yet: that is what the reader is about to do. */
		gr_rcu_nudge_driver(short_lived);
		sched_yield();
	}
	pthread_join(driver, NULL);
	gr_rcu_domain_free(short_lived);
	for (int i = 0; i < TRIES; i++) {
		tried[i] = malloc(sizeof(struct gr_rcu_domain));
		memset(tried[i], 0x5a, sizeof(struct gr_rcu_domain));
	}
	gr_event_set(&at_ask.go_on);
	pthread_join(reader.thread, NULL);
	for (int i = 0; i < TRIES; i++) {
		for (size_t j = 0; j < sizeof(struct gr_rcu_domain); j++) {
			ASSERT_EQ(tried[i][j], 0x5a);
		}
		free(tried[i]);
	}
}

TEST_MAIN()
