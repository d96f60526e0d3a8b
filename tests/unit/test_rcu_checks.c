/* SPDX-License-Identifier: MIT */
/*
 * The checking build: built with GR_RCU_CHECKS, as is the RCU it is linked with, whatever the rest
 * is. Each misuse dies with words that say what and where; what is right does not.
 */
#include "base/thread_info.h"
#include "rcu_kit.h"
#include <guestram/log.h>
#include <guestram/rcu_check.h>
#include <guestram/rcu_stall.h>
#include <guestram/rculist.h>
#include <stdlib.h>
#include <unistd.h>

static int value = 42;
static int *published = &value;

static char reported[8][512];
static uint64_t reports;

static void keep(const char *text, void *opaque)
{
	uint64_t n = ADD(&reports, 1);

	ASSERT_PTR_EQ(opaque, reported);
	(void)snprintf(reported[n % 8], sizeof(reported[0]), "%s", text);
}

/* ---- dereference ---------------------------------------------------------------------------- */

static void dereference_outside(void *arg) GR_NO_TSA
{
	(void)arg;
	gr_rcu_read_lock();
	gr_rcu_read_unlock();
	(void)*gr_rcu_dereference(published);
}

TEST(a_pointer_that_is_followed_outside_every_section_is_reported_with_the_place)
{
	dies_saying(dereference_outside,
		    "gr_rcu_dereference(published) outside a read-side section");
	dies_saying(dereference_outside, "test_rcu_checks.c:");
}

TEST(sections_of_every_kind_count)
{
	struct gr_rcu_domain_params params = { .size = sizeof(params), .name = "other" };
	struct gr_rcu_domain *d;
	struct gr_rcu_reader r;
	struct gr_error err;

	ASSERT_EQ(gr_rcu_domain_create(&params, &d, &err), 0);
	gr_rcu_set_check_handler(keep, reported);
	gr_rcu_read_lock();
	gr_rcu_read_lock();
	gr_rcu_read_unlock();
	ASSERT_EQ(*gr_rcu_dereference(published), 42);
	gr_rcu_read_unlock();
	gr_rcu_domain_read_lock(d);
	ASSERT_EQ(*gr_rcu_dereference(published), 42);
	gr_rcu_domain_read_unlock(d);
	gr_rcu_reader_init(&r, d, "mine");
	gr_rcu_read_lock_on(&r);
	ASSERT_EQ(*gr_rcu_dereference(published), 42);
	gr_rcu_read_unlock_on(&r);
	gr_rcu_reader_destroy(&r);
	gr_rcu_qs_register_thread();
	ASSERT_EQ(*gr_rcu_dereference(published), 42);
	gr_rcu_thread_offline();
	ASSERT_EQ(reports, 0u);
	(void)gr_rcu_dereference(published); /* offline */
	ASSERT_EQ(reports, 1u);
	gr_rcu_qs_unregister_thread();
	(void)gr_rcu_dereference_check(published, value == 42); /* "the writers' lock is mine" */
	(void)gr_rcu_dereference_protected(published);
	ASSERT_EQ(reports, 1u);
	(void)gr_rcu_dereference_check(published, value != 42);
	ASSERT_EQ(reports, 2u);
	gr_rcu_domain_free(d);
}

static void warn(void *arg)
{
	(void)arg;
	GR_RCU_LOCKDEP_WARN(value != 42, "never said");
	GR_RCU_LOCKDEP_WARN(value == 42, "the value is what it must not be");
}

TEST(a_condition_that_must_never_hold_is_reported_when_it_does)
{
	dies_saying(warn, "the value is what it must not be, at ");
}

/* ---- where sections begin and end -------------------------------------------------------------
 */

static struct gr_rcu_reader traveller;

static void *end_it_here(void *arg)
{
	(void)arg;
	gr_rcu_read_unlock_on(&traveller);
	return NULL;
}

static void section_changes_threads(void *arg)
{
	(void)arg;
	gr_rcu_reader_init(&traveller, NULL, "traveller");
	gr_rcu_read_lock_on(&traveller);
	pthread_join(spawn(end_it_here, NULL), NULL);
}

TEST(a_section_that_ends_on_another_thread_is_reported)
{
	if (gr_thread_id() == 0) {
		SKIP("threads have no numbers on this system");
	}
	dies_saying(section_changes_threads, "a section of RCU reader traveller that thread");
	dies_saying(section_changes_threads, "ends on thread");
}

static struct gr_event inside = GR_EVENT_INIT(false), leave = GR_EVENT_INIT(false);
static struct gr_rcu_stall_report seen;

__attribute__((noinline)) static void begin_the_section(void) GR_NO_TSA
{
	gr_rcu_read_lock();
	__asm__ volatile("" ::: "memory");
}

static void *slow_reader(void *arg) GR_NO_TSA
{
	(void)arg;
	begin_the_section();
	gr_event_set(&inside);
	gr_event_wait(&leave);
	gr_rcu_read_unlock();
	return NULL;
}

static void stop_at_first(const struct gr_rcu_stall_report *r, void *opaque)
{
	(void)opaque;
	if (r->event == GR_RCU_STALL_WAITS && seen.age_ns == 0) {
		seen = *r;
		gr_event_set(&leave);
	}
}

TEST(a_stall_warning_says_where_and_when_the_section_began)
{
	pthread_t t;

	gr_rcu_set_stall_ns(20000000);
	gr_rcu_set_stall_handler(stop_at_first, NULL);
	t = spawn(slow_reader, NULL);
	gr_event_wait(&inside);
	gr_rcu_synchronize();
	pthread_join(t, NULL);
	ASSERT_LT((uintptr_t)seen.site - test_code_of(begin_the_section), 1024u);
	ASSERT_GE(seen.section_ns, 20000000u);
}

/* ---- callbacks ---------------------------------------------------------------------------------
 */

static struct gr_rcu_head twice;

static void nothing(struct gr_rcu_head *head)
{
	(void)head;
}

static void other(struct gr_rcu_head *head)
{
	(void)head;
}

static void queue_twice(void *arg) GR_NO_TSA
{
	(void)arg;
	gr_rcu_read_lock(); /* so that the first one waits still */
	gr_rcu_call(NULL, &twice, nothing);
	gr_rcu_call(NULL, &twice, other);
}

TEST(a_head_that_is_queued_a_second_time_is_reported_with_the_first_call)
{
	dies_saying(queue_twice, "already queued, by the call at test_rcu_checks(");
}

static void write_to_queued(void *arg) GR_NO_TSA
{
	(void)arg;
	gr_rcu_read_lock();
	gr_rcu_call(NULL, &twice, nothing);
	twice.func = other;
	gr_rcu_read_unlock();
	gr_rcu_barrier(NULL);
}

TEST(a_head_that_is_written_to_while_it_is_queued_is_reported_with_the_call)
{
	dies_saying(write_to_queued, "was written to after the call at test_rcu_checks(");
}

static struct gr_rcu_head *next_seen;
static unsigned requeued;

static void queue_again(struct gr_rcu_head *head)
{
	next_seen = head->next;
	if (ADD(&requeued, 1u) < 999) {
		gr_rcu_call(NULL, head, queue_again);
	}
}

TEST(a_callback_may_queue_its_own_head_again_and_finds_its_link_poisoned)
{
	gr_rcu_call(NULL, &twice, queue_again);
	while (LOAD(&requeued) < 1000) {
		gr_rcu_barrier(NULL);
	}
	gr_rcu_barrier(NULL);
	ASSERT(next_seen != NULL);
	ASSERT((uintptr_t)next_seen % 8 != 0); /* no object lies there */
}

static char logged[512];

static void keep_line(enum gr_log_level level, const char *msg, void *opaque)
{
	(void)level;
	(void)opaque;
	(void)snprintf(logged, sizeof(logged), "%s", msg);
}

static void sleep_long(struct gr_rcu_head *head)
{
	(void)head;
	sleep_ms(20);
}

TEST(a_callback_that_takes_longer_than_its_budget_is_logged)
{
	gr_log_set_handler(keep_line, NULL);
	gr_rcu_set_callback_budget_ns(0);
	gr_rcu_call(NULL, &twice, sleep_long);
	gr_rcu_barrier(NULL);
	ASSERT_STR_EQ(logged, "");
	gr_rcu_set_callback_budget_ns(10000000);
	gr_rcu_call(NULL, &twice, sleep_long);
	gr_rcu_barrier(NULL);
	ASSERT_HAS(logged, "RCU: callback test_rcu_checks(");
	ASSERT_HAS(logged, "took ");
}

/* ---- locks
 * --------------------------------------------------------------------------------------- */

static pthread_mutex_t big = PTHREAD_MUTEX_INITIALIZER;

static void lock_big(const char *name)
{
	pthread_mutex_lock(&big);
	gr_rcu_lock_acquired(&big, name);
}

static void unlock_big(void)
{
	gr_rcu_lock_released(&big);
	pthread_mutex_unlock(&big);
}

static void take_in_section(const char *name) GR_NO_TSA
{
	gr_rcu_read_lock();
	lock_big(name);
	unlock_big();
	gr_rcu_read_unlock();
}

static void wait_with_lock(const char *name)
{
	lock_big(name);
	gr_rcu_synchronize();
	unlock_big();
}

static void lock_in_section_and_wait(void *arg)
{
	(void)arg;
	take_in_section("iothread");
	wait_with_lock("iothread");
}

static void wait_and_lock_in_section(void *arg)
{
	(void)arg;
	wait_with_lock("iothread");
	take_in_section("iothread");
}

static void lock_in_callback(struct gr_rcu_head *head)
{
	(void)head;
	lock_big("device");
	unlock_big();
}

/* Another queue's callbacks are not waited for. */
static void lock_in_callback_and_wait_for_others(void)
{
	struct gr_rcu_queue *q;

	ASSERT_EQ(gr_rcu_queue_create(NULL, &q, NULL), 0);
	gr_rcu_call(q, &twice, lock_in_callback);
	gr_rcu_barrier(q);
	lock_big("device");
	gr_rcu_barrier(NULL);
	unlock_big();
	gr_rcu_queue_free(q);
}

static void lock_in_callback_and_wait(void *arg)
{
	(void)arg;
	gr_rcu_call(NULL, &twice, lock_in_callback);
	gr_rcu_barrier(NULL);
	lock_big("device");
	gr_rcu_barrier(NULL); /* nothing is queued: harmless, this time */
}

TEST(a_lock_taken_in_sections_and_held_while_waiting_is_reported_in_either_order)
{
	dies_saying(lock_in_section_and_wait, "possible deadlock: lock iothread is taken inside");
	dies_saying(wait_and_lock_in_section, "held while waiting for a grace period (gr_rcu_sync");
	dies_saying(lock_in_callback_and_wait,
		    "possible deadlock: lock device is taken in a callback");
}

TEST(locks_that_cannot_meet_are_not_reported)
{
	struct gr_rcu_domain_params params = { .size = sizeof(params), .name = "other" };
	struct gr_rcu_domain *d;
	struct gr_error err;

	ASSERT_EQ(gr_rcu_domain_create(&params, &d, &err), 0);
	gr_rcu_set_check_handler(keep, reported);
	take_in_section("reader's");
	wait_with_lock("writer's");
	gr_rcu_domain_read_lock(d); /* another domain's sections */
	lock_big("writer's");
	unlock_big();
	gr_rcu_domain_read_unlock(d);
	lock_big("reader's");
	unlock_big();
	gr_rcu_synchronize();
	ASSERT_EQ(reports, 0u);
	lock_big("reader's");
	gr_rcu_domain_synchronize(d);
	unlock_big();
	ASSERT_EQ(reports, 0u);
	wait_with_lock("reader's");
	ASSERT_EQ(reports, 1u);
	wait_with_lock("reader's"); /* said once */
	ASSERT_EQ(reports, 1u);
	gr_rcu_domain_free(d);
	lock_in_callback_and_wait_for_others();
	ASSERT_EQ(reports, 1u);
}

TEST(what_is_known_of_a_domain_goes_with_it)
{
	enum { TRIES = 64 };
	struct gr_rcu_domain *d, *more[TRIES];

	gr_rcu_set_check_handler(keep, reported);
	ASSERT_EQ(gr_rcu_domain_create(NULL, &d, NULL), 0);
	gr_rcu_domain_read_lock(d);
	lock_big("device");
	unlock_big();
	gr_rcu_domain_read_unlock(d);
	gr_rcu_domain_free(d);
	for (int i = 0; i < TRIES; i++) { /* one of them may lie where it was */
		ASSERT_EQ(gr_rcu_domain_create(NULL, &more[i], NULL), 0);
		lock_big("device");
		gr_rcu_domain_synchronize(more[i]);
		unlock_big();
	}
	ASSERT_EQ(reports, 0u);
	for (int i = 0; i < TRIES; i++) {
		gr_rcu_domain_free(more[i]);
	}
}

/* ---- as in other builds
 * ---------------------------------------------------------------------------- */

static struct gr_event go = GR_EVENT_INIT(false);

static void *use_in_thread(void *arg)
{
	gr_event_wait(&go);
	for (int i = 0; i < 1000; i++) {
		struct gr_rcu_head *head = malloc(sizeof(*head));

		gr_rcu_read_lock();
		ASSERT_EQ(*gr_rcu_dereference(published), 42);
		gr_rcu_read_unlock();
		gr_rcu_call(NULL, head, (void (*)(struct gr_rcu_head *))(uintptr_t)arg);
	}
	return NULL;
}

static void free_head(struct gr_rcu_head *head)
{
	free(head);
}

TEST(many_threads_at_once_and_a_fork_find_nothing_to_report)
{
	pthread_t t[4];
	int status;
	pid_t pid;

	gr_rcu_set_check_handler(keep, reported);
	for (int i = 0; i < 4; i++) {
		t[i] = spawn(use_in_thread, (void *)(uintptr_t)free_head);
	}
	gr_event_set(&go);
	for (int i = 0; i < 4; i++) {
		pthread_join(t[i], NULL);
	}
	gr_rcu_barrier(NULL);
	ASSERT_EQ(reports, 0u);
	SKIP_FORK_AMONG_THREADS_UNDER_SANITIZERS();
	gr_rcu_read_lock();
	pid = fork();
	gr_rcu_read_unlock(); /* on a thread that has another number there */
	use_in_thread((void *)(uintptr_t)free_head);
	gr_rcu_barrier(NULL);
	ASSERT_EQ(reports, 0u);
	if (pid == 0) {
		_exit(0);
	}
	ASSERT_EQ(waitpid(pid, &status, 0), pid);
	ASSERT_EQ(status, 0);
}

/* ---- handlers -------------------------------------------------------------------------------- */

enum { FROM_HANDLERS = 20000 };
static struct gr_rcu_head of_handlers[FROM_HANDLERS];
static unsigned called;
static bool stop;

static void call_in_handler(int sig)
{
	(void)sig;
	if (called < FROM_HANDLERS) {
		gr_rcu_call(NULL, &of_handlers[called++], nothing);
	}
}

static void *interrupt(void *arg)
{
	while (!LOAD(&stop)) {
		(void)pthread_kill(*(pthread_t *)arg, SIGUSR1);
		sched_yield();
	}
	return NULL;
}

TEST(handlers_may_call_in_the_middle_of_a_call_and_of_malloc)
{
	struct sigaction sa = { .sa_handler = call_in_handler, .sa_flags = SA_RESTART };
	pthread_t me = pthread_self(), t;
	uint64_t end = now_ns() + 2000000000u;

	gr_rcu_set_check_handler(keep, reported);
	ASSERT_EQ(sigaction(SIGUSR1, &sa, NULL), 0);
	gr_rcu_call(NULL, &twice, nothing);
	gr_rcu_barrier(NULL); /* there is a worker */
	t = spawn(interrupt, &me);
	while (LOAD(&called) < FROM_HANDLERS && now_ns() < end) {
		gr_rcu_call(NULL, malloc(sizeof(struct gr_rcu_head)), free_head);
	}
	STORE(&stop, true);
	pthread_join(t, NULL);
	gr_rcu_barrier(NULL);
	test_diag("%u calls by handlers", called);
	ASSERT_EQ(reports, 0u);
}

/* ---- lists ----------------------------------------------------------------------------------- */

static struct gr_rcu_list list = GR_RCU_LIST_INIT, other_list = GR_RCU_LIST_INIT;

static void insert_at_once(void *arg)
{
	struct gr_rcu_list_node node;

	(void)arg;
	gr_rcu_list_insert_head(&list, &node);
	gr_rcu_list_del(&node);
	gr_rcu_list_insert_tail(&other_list, &node);
}

TEST(a_node_that_is_inserted_again_before_a_grace_period_is_reported)
{
	struct gr_rcu_list_node node;

	dies_saying(insert_at_once, "is inserted again, and no grace period has ended");
	gr_rcu_list_insert_head(&list, &node);
	gr_rcu_list_del(&node);
	gr_rcu_synchronize();
	gr_rcu_list_insert_head(&other_list, &node);
	gr_rcu_list_del(&node);
	gr_rcu_list_node_init(&node); /* "nobody has seen it" */
	gr_rcu_list_insert_head(&list, &node);
	gr_rcu_list_del(&node);
}

TEST_MAIN()
