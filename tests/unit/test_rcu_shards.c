/* SPDX-License-Identifier: MIT */
/* Producers: order, signal handlers, rings that grow, threads and queues that come and go. */
#include "harness.h"
#include "rcu/queue.h"
#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/resource.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <unistd.h>

#define LOAD(p)	    __atomic_load_n(p, __ATOMIC_RELAXED)
#define STORE(p, v) __atomic_store_n(p, v, __ATOMIC_RELAXED)
#define ADD(p, v)   __atomic_fetch_add(p, v, __ATOMIC_RELAXED)

static struct gr_rcu_queue *make_queue(const struct gr_rcu_queue_params *params)
{
	struct gr_rcu_queue *q = NULL;

	ASSERT_EQ(gr_rcu_queue_create(params, &q, NULL), 0);
	return q;
}

static uint64_t ran;

static void count_run(struct gr_rcu_head *head)
{
	(void)head;
	ADD(&ran, 1);
}

static unsigned shards_of_this_thread(void)
{
	unsigned n = 0;

	for (struct gr_rcu_shard *s = gr_rcu_caller.shards; s; s = s->next_of_thread) {
		n++;
	}
	return n;
}

/* ---- order ------------------------------------------------------------------------------- */

/* A thread has two sources of calls: itself and its signal handler. */
enum { MAIN, HANDLER, SOURCES, CALLERS = 2 };

struct numbered {
	struct gr_rcu_head head;
	uint32_t caller, source, number;
	uint32_t others; /* calls of the other source that had returned before this one began */
	bool interrupts; /* a call: then only what is called later is in order with it */
	bool ran;
};

static struct caller {
	uint32_t called[SOURCES]; /* (a) calls that have returned */
	uint32_t next[SOURCES];	  /* the runner's */
	uint32_t allotted;	  /* of the handler's nodes */
	struct numbered *nodes[SOURCES];
	uint32_t max[SOURCES];
} caller[CALLERS];
static __thread struct caller *me;
static struct gr_rcu_queue *order_queue;

static void check_order(struct gr_rcu_head *head)
{
	struct numbered *n = (struct numbered *)(void *)head;
	struct caller *c = &caller[n->caller];

	uint32_t next = c->next[n->source];

	ASSERT(!n->ran);
	n->ran = true;
	if (!n->interrupts) {
		ASSERT_LE(n->number, next);
		ASSERT_GE(c->next[1 - n->source], n->others);
	}
	while (next < c->max[n->source] && c->nodes[n->source][next].ran) {
		next++;
	}
	STORE(&c->next[n->source], next);
}

static bool in_a_call(void)
{
	for (struct gr_rcu_shard *s = gr_rcu_caller.shards; s; s = s->next_of_thread) {
		if (s->queue == gr_rcu_queue_or_default(order_queue) && s->busy) {
			return true;
		}
	}
	return false;
}

static bool call_next(struct caller *c, unsigned source)
{
	uint32_t i = c->called[source];
	struct numbered *n = &c->nodes[source][i];

	if (i == c->max[source]) {
		return false;
	}
	n->caller = (uint32_t)(c - caller);
	n->source = source;
	n->number = i;
	n->others = LOAD(&c->called[1 - source]);
	n->interrupts = source == HANDLER && in_a_call();
	gr_rcu_call(order_queue, &n->head, check_order);
	STORE(&c->called[source], i + 1);
	return true;
}

static void on_signal(int sig)
{
	int saved_errno = errno;

	(void)sig;
	if (me) {
		(void)call_next(me, HANDLER);
	}
	errno = saved_errno;
}

static void set_up_callers(uint32_t own, uint32_t handlers)
{
	for (unsigned c = 0; c < CALLERS; c++) {
		caller[c].max[MAIN] = own;
		caller[c].max[HANDLER] = handlers;
		for (int s = 0; s < SOURCES; s++) {
			caller[c].nodes[s] = calloc(caller[c].max[s] + 1, sizeof(struct numbered));
		}
	}
}

static void check_all_ran(void)
{
	for (unsigned c = 0; c < CALLERS; c++) {
		for (int s = 0; s < SOURCES; s++) {
			ASSERT_EQ(caller[c].next[s], caller[c].called[s]);
		}
	}
}

static bool finished[CALLERS];

static void *call_all(void *arg)
{
	struct caller *c = arg;
	sigset_t all;

	me = c;
	while (call_next(c, MAIN)) {
	}
	STORE(&finished[c - caller], true);
	while (LOAD(&c->next[MAIN]) != c->max[MAIN]) {
		sched_yield(); /* alive as long as somebody sends us signals */
	}
	/* What a thread calls after its exit hook is no longer in order with what it called before. */
	sigfillset(&all);
	pthread_sigmask(SIG_BLOCK, &all, NULL);
	return NULL;
}

/* The section keeps everything queued for a while: rings must grow. */
static void order_with_rings_that_grow(uint32_t each)
{
	pthread_t t[CALLERS];

	set_up_callers(each, 0);
	gr_rcu_read_lock();
	for (int i = 0; i < CALLERS; i++) {
		pthread_create(&t[i], NULL, call_all, &caller[i]);
	}
	while (LOAD(&caller[0].called[MAIN]) < each / 2) {
		sched_yield();
	}
	gr_rcu_read_unlock();
	for (int i = 0; i < CALLERS; i++) {
		pthread_join(t[i], NULL);
	}
	gr_rcu_barrier(order_queue);
	check_all_ran();
}

TEST(each_threads_callbacks_run_in_its_order_through_rings_that_grow)
{
	order_with_rings_that_grow(test_under_tsan() ? 50000 : 400000);
}

static void *call_a_little(void *arg)
{
	struct caller *c = arg;

	while (call_next(c, MAIN)) {
	}
	return NULL;
}

/* While batches are taken as fast as can be: from what is common to all into a ring. */
TEST(a_thread_that_gets_a_shard_keeps_its_order)
{
	for (int i = 0; i < (test_under_tsan() ? 200 : 3000); i++) {
		struct caller *c = &caller[0];
		pthread_t t;

		memset(c, 0, sizeof(*c));
		c->max[MAIN] = 60;
		c->nodes[MAIN] = calloc(60, sizeof(struct numbered));
		pthread_create(&t, NULL, call_a_little, c);
		while (LOAD(&c->called[MAIN]) < 60) {
			gr_rcu_barrier(NULL);
		}
		pthread_join(t, NULL);
		gr_rcu_barrier(NULL);
		ASSERT_EQ(c->next[MAIN], 60u);
		free(c->nodes[MAIN]);
	}
}

/* The stack takes over where there is no memory for a ring, and hands back. */
TEST(order_is_kept_where_there_is_no_memory_for_larger_rings)
{
	struct rlimit limit;
	pthread_t t;

	if (test_under_tsan() || test_under_asan()) {
		SKIP("the sanitizer needs the memory that this test takes away");
	}
	set_up_callers(200000, 0);
	ASSERT_EQ(getrlimit(RLIMIT_AS, &limit), 0);
	gr_rcu_call(NULL, &caller[1].nodes[MAIN][0].head, count_run);
	gr_rcu_barrier(NULL);
	pthread_create(&t, NULL, call_all, &caller[0]);
	while (LOAD(&caller[0].called[MAIN]) < 1000) {
		sched_yield();
	}
	limit.rlim_cur = 1 << 20; /* less than there is: no more */
	ASSERT_EQ(setrlimit(RLIMIT_AS, &limit), 0);
	for (int i = 0; i < 20 && !LOAD(&finished[0]); i++) {
		gr_rcu_read_lock(); /* rings run full */
		usleep(2000);
		gr_rcu_read_unlock();
	}
	pthread_join(t, NULL);
	limit.rlim_cur = limit.rlim_max;
	ASSERT_EQ(setrlimit(RLIMIT_AS, &limit), 0);
	gr_rcu_barrier(NULL);
	test_diag("%zu calls by way of the stack", gr_rcu_queue_or_default(NULL)->pushed);
	check_all_ran();
}

/*
 * A handler calls in the middle of its thread's call: none is lost, and what is called later runs
 * later, whichever way both took. What had been called before runs before what is called between
 * two calls.
 */
TEST(handlers_may_call_in_the_middle_of_their_threads_call)
{
	struct sigaction sa = { .sa_handler = on_signal, .sa_flags = SA_RESTART };
	struct itimerval timer = { { 0, 20 }, { 0, 20 } }, off = { { 0, 0 }, { 0, 0 } };
	bool slow = test_under_tsan();
	pthread_t t[CALLERS];
	sigset_t mask;

	set_up_callers(slow ? 100000 : 3000000, slow ? 5000 : 100000);
	sigaction(SIGALRM, &sa, NULL);
	for (int i = 0; i < CALLERS; i++) {
		pthread_create(&t[i], NULL, call_all, &caller[i]);
	}
	sigemptyset(&mask);
	sigaddset(&mask, SIGALRM);
	pthread_sigmask(SIG_BLOCK, &mask, NULL);
	setitimer(ITIMER_REAL, &timer, NULL);
	while (!LOAD(&finished[0]) || !LOAD(&finished[1])) {
		gr_rcu_barrier(NULL); /* many short batches */
		sched_yield();
	}
	setitimer(ITIMER_REAL, &off, NULL);
	for (int i = 0; i < CALLERS; i++) {
		pthread_join(t[i], NULL);
	}
	gr_rcu_barrier(NULL);
	test_diag("%u and %u handlers called", caller[0].called[HANDLER],
		  caller[1].called[HANDLER]);
	check_all_ran();
}

/* ---- threads and queues that come and go ------------------------------------------------- */

enum { PER_THREAD = 500 };

static void *call_and_end(void *arg)
{
	struct gr_rcu_head *heads = arg;

	for (int i = 0; i < PER_THREAD; i++) {
		gr_rcu_call(NULL, &heads[i], count_run);
	}
	return NULL;
}

TEST(threads_that_end_leave_their_callbacks_behind)
{
	enum { THREADS = 200 };
	struct gr_rcu_head *heads = calloc(THREADS * PER_THREAD, sizeof(*heads));
	struct gr_rcu_queue *q = gr_rcu_queue_or_default(NULL);
	unsigned left = 0;

	gr_rcu_read_lock();
	for (int i = 0; i < THREADS; i++) {
		pthread_t t;

		pthread_create(&t, NULL, call_and_end, &heads[i * PER_THREAD]);
		pthread_join(t, NULL);
	}
	ASSERT_EQ(LOAD(&ran), 0u);
	gr_rcu_read_unlock();
	gr_rcu_barrier(NULL);
	ASSERT_EQ(LOAD(&ran), (uint64_t)THREADS * PER_THREAD);
	for (struct gr_rcu_shard *s = q->shards; s; s = s->next) {
		left++;
	}
	ASSERT_EQ(left, 0u); /* and their shards went with them */
	free(heads);
}

static pthread_key_t late_key;

static void call_late(void *arg)
{
	static int rounds;

	if (++rounds < 4) {
		pthread_setspecific(late_key, arg); /* until the last round: after all hooks */
	}
	call_and_end((struct gr_rcu_head *)arg + rounds * PER_THREAD);
}

static void *end_late(void *arg)
{
	pthread_setspecific(late_key, arg);
	call_and_end(arg);
	return NULL;
}

TEST(destructors_of_thread_specific_data_may_call)
{
	struct gr_rcu_head *heads;
	pthread_t t;

	if (test_under_tsan()) {
		SKIP("ThreadSanitizer's own state may be gone in the last round");
	}
	heads = calloc(5 * PER_THREAD, sizeof(*heads));
	pthread_key_create(&late_key, call_late);
	pthread_create(&t, NULL, end_late, heads);
	pthread_join(t, NULL);
	gr_rcu_barrier(NULL);
	ASSERT_EQ(LOAD(&ran), 5u * PER_THREAD);
	free(heads);
}

TEST(a_thread_uses_a_freed_queues_shard_again)
{
	static struct gr_rcu_head heads[PER_THREAD];

	for (int i = 0; i < 300; i++) {
		struct gr_rcu_queue *q = make_queue(NULL);

		for (int k = 0; k < PER_THREAD; k++) {
			gr_rcu_call(q, &heads[k], count_run);
		}
		gr_rcu_queue_free(q);
		ASSERT_EQ(LOAD(&ran), (uint64_t)PER_THREAD * (unsigned)(i + 1));
	}
	ASSERT_LE(shards_of_this_thread(), 1u);
}

TEST(a_thread_may_feed_many_queues_in_turn)
{
	enum { QUEUES = 20, ROUNDS = 200 };
	static struct gr_rcu_head heads[QUEUES][ROUNDS];
	struct gr_rcu_queue *q[QUEUES];

	for (int i = 0; i < QUEUES; i++) {
		q[i] = make_queue(NULL);
	}
	for (int r = 0; r < ROUNDS; r++) {
		for (int i = 0; i < QUEUES; i++) {
			gr_rcu_call(q[i], &heads[i][r], count_run);
		}
	}
	for (int i = 0; i < QUEUES; i++) {
		gr_rcu_queue_free(q[i]);
	}
	ASSERT_EQ(LOAD(&ran), (uint64_t)QUEUES * ROUNDS);
}

/* ---- classes ------------------------------------------------------------------------------- */

static pthread_mutex_t big = PTHREAD_MUTEX_INITIALIZER;
static bool big_held; /* (a) by the worker */

static void big_lock(void *opaque)
{
	(void)opaque;
	pthread_mutex_lock(&big);
	STORE(&big_held, true);
}

static void big_unlock(void *opaque)
{
	(void)opaque;
	STORE(&big_held, false);
	pthread_mutex_unlock(&big);
}

static const struct gr_rcu_queue_params with_big_lock = {
	.size = sizeof(with_big_lock),
	.lock = big_lock,
	.unlock = big_unlock,
};

struct one_class {
	struct gr_rcu_head head;
	unsigned number;
};
static unsigned next_of_class[GR_RCU_CLASSES];

static void wants_lock(struct gr_rcu_head *head)
{
	ASSERT(LOAD(&big_held));
	ASSERT_EQ(((struct one_class *)(void *)head)->number, next_of_class[GR_RCU_LOCKED]);
	next_of_class[GR_RCU_LOCKED]++;
}

static void takes_lock_itself(struct gr_rcu_head *head)
{
	ASSERT(!LOAD(&big_held));
	big_lock(NULL);
	ASSERT_EQ(((struct one_class *)(void *)head)->number, next_of_class[GR_RCU_FREE]);
	next_of_class[GR_RCU_FREE]++;
	big_unlock(NULL);
}

TEST(callbacks_that_need_no_lock_run_without_it_among_those_that_do)
{
	enum { N = 20000 };
	static struct one_class node[N];
	struct gr_rcu_queue *q = make_queue(&with_big_lock);
	unsigned n[GR_RCU_CLASSES] = { 0, 0 };
	uint64_t seed = test_seed();

	for (int i = 0; i < N; i++) {
		bool free_class = test_rand(&seed) % 3 == 0;

		node[i].number = n[free_class]++;
		if (free_class) {
			gr_rcu_call_nolock(q, &node[i].head, takes_lock_itself);
		} else {
			gr_rcu_call(q, &node[i].head, wants_lock);
		}
	}
	gr_rcu_barrier(q);
	ASSERT_EQ(next_of_class[GR_RCU_LOCKED], n[0]);
	ASSERT_EQ(next_of_class[GR_RCU_FREE], n[1]);
	gr_rcu_queue_free(q);
}

/* Also where nothing else is queued: nobody waits for the lock just to end the batch. */
TEST(callbacks_that_need_no_lock_run_while_somebody_else_holds_it)
{
	static struct gr_rcu_head heads[200];
	struct gr_rcu_queue *q = make_queue(&with_big_lock);

	pthread_mutex_lock(&big);
	for (uint64_t i = 0; i < 200; i++) {
		gr_rcu_call_nolock(q, &heads[i], count_run);
		if (i % 20 == 0) {
			gr_rcu_barrier(q);
			ASSERT_EQ(LOAD(&ran), i + 1);
		}
	}
	gr_rcu_queue_free(q);
	pthread_mutex_unlock(&big);
	ASSERT_EQ(LOAD(&ran), 200u);
}

struct large {
	char front[4000];
	struct gr_rcu_head rcu;
	char back[(1 << 20) - 4000];
};

/* Not from statm: that counts the kernel's pages, of which an emulated program may not know the size. */
static size_t resident_bytes(void)
{
	FILE *f = fopen("/proc/self/status", "r");
	unsigned long kib = 0;
	char line[256];

	ASSERT(f);
	while (fgets(line, sizeof(line), f) && sscanf(line, "VmRSS: %lu kB", &kib) != 1) {
	}
	(void)fclose(f);
	ASSERT_NE(kib, 0u);
	return (size_t)kib << 10;
}

TEST(gr_rcu_free_gives_the_memory_back_after_the_section)
{
	size_t before, held;

	if (test_under_tsan() || test_under_asan()) {
		SKIP("the sanitizer keeps freed memory");
	}
	before = resident_bytes();
	gr_rcu_read_lock();
	for (int i = 0; i < 100; i++) {
		struct large *l = malloc(sizeof(*l));

		memset(l, 1, sizeof(*l));
		gr_rcu_free(l, rcu);
	}
	held = resident_bytes();
	gr_rcu_read_unlock();
	gr_rcu_barrier(NULL);
	ASSERT_GE(held, before + (90u << 20));
	ASSERT_LE(resident_bytes(), before + (20u << 20));
}

TEST(gr_rcu_free_of_small_objects_leaks_nothing)
{
	for (int i = 0; i < 20000; i++) {
		struct numbered *n = malloc(sizeof(*n));

		gr_rcu_free(n, head);
	}
	gr_rcu_barrier(NULL);
	/* Under AddressSanitizer leaks are found, double frees crash. */
}

/* ---- misuse ---------------------------------------------------------------------------------- */

static void fill_shard(struct gr_rcu_head *heads, int n)
{
	for (int i = 0; i < n; i++) {
		gr_rcu_call(NULL, &heads[i], count_run);
	}
	gr_rcu_barrier(NULL);
	gr_rcu_barrier(NULL);
}

static void same_head_twice_in_a_ring(void *arg)
{
	static struct gr_rcu_head heads[100];

	(void)arg;
	fill_shard(heads, 100);
	fill_shard(heads, 100);
	fill_shard(heads, 100);
	gr_rcu_read_lock();
	gr_rcu_call(NULL, &heads[0], count_run);
	gr_rcu_call(NULL, &heads[0], count_run);
	gr_rcu_read_unlock();
}

static void same_head_again_after_another(void *arg)
{
	static struct gr_rcu_head heads[3];

	(void)arg;
	gr_rcu_read_lock();
	gr_rcu_call(NULL, &heads[0], count_run);
	gr_rcu_call(NULL, &heads[1], count_run);
	gr_rcu_call(NULL, &heads[0], count_run);
	gr_rcu_read_unlock();
	gr_rcu_barrier(NULL);
}

static void same_head_again_in_a_ring(void *arg)
{
	static struct gr_rcu_head heads[100];

	(void)arg;
	fill_shard(heads, 100);
	fill_shard(heads, 100);
	fill_shard(heads, 100);
	gr_rcu_read_lock();
	gr_rcu_call(NULL, &heads[0], count_run);
	gr_rcu_call(NULL, &heads[1], count_run);
	gr_rcu_call(NULL, &heads[0], count_run);
	gr_rcu_read_unlock();
	gr_rcu_barrier(NULL);
}

static void free_the_default_queue(void *arg)
{
	(void)arg;
	gr_rcu_queue_free(gr_rcu_queue_or_default(NULL));
}

/*
 * What is found without the checking build are symptoms, and they depend on where the calls went: a
 * thread that is slow to run may use the stack. So it may take some tries.
 */
static void dies_saying(void (*fn)(void *), const char *words)
{
	char text[1024];
	int status = 0;

	for (int i = 0; i < 20 && !WIFSIGNALED(status); i++) {
		status = test_in_child(fn, NULL, text, sizeof(text));
	}
	ASSERT(WIFSIGNALED(status));
	ASSERT_EQ(WTERMSIG(status), SIGABRT);
	ASSERT_HAS(text, words);
}

#ifdef GR_RCU_CHECKS /* finds it at the second call, the others when it runs */
static const char queued_twice[] = "already queued";
#else
static const char queued_twice[] = "queued twice";
#endif

TEST(queueing_a_head_twice_dies_with_a_message)
{
	if (test_under_tsan()) {
		SKIP("what this test does is a data race");
	}
	dies_saying(same_head_twice_in_a_ring, "already queued");
	dies_saying(same_head_again_after_another, queued_twice);
	dies_saying(same_head_again_in_a_ring, queued_twice);
	dies_saying(free_the_default_queue, "default queue");
}

TEST(a_threads_noted_queue_is_its_own)
{
	struct gr_rcu_queue *q = make_queue(NULL);

	ASSERT_PTR_EQ(gr_rcu_get_thread_queue(), NULL);
	gr_rcu_set_thread_queue(q);
	ASSERT_PTR_EQ(gr_rcu_get_thread_queue(), q);
	gr_rcu_set_thread_queue(NULL);
	gr_rcu_queue_free(q);
}

TEST_MAIN()
