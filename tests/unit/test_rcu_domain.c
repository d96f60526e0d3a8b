/* SPDX-License-Identifier: MIT */
/* Domains, the readers that threads have in them, explicit readers. */
#include "rcu_kit.h"
#include <errno.h>
#include <guestram/rcu_domain.h>
#include <guestram/rcu_queue.h>
#include <stdlib.h>
#include <unistd.h>

static struct gr_rcu_domain *make_domain(const char *name)
{
	struct gr_rcu_domain_params params = { .size = sizeof(params), .name = name };
	struct gr_rcu_domain *d = NULL;
	struct gr_error err;

	ASSERT_EQ(gr_rcu_domain_create(&params, &d, &err), 0);
	return d;
}

static struct gr_event inside = GR_EVENT_INIT(false), go_on = GR_EVENT_INIT(false);
static bool finished, stop;

static void *synchronize_domain(void *arg)
{
	gr_rcu_domain_synchronize(arg);
	STORE(&finished, true);
	return NULL;
}

/* Somebody is inside; a wait in d does not return before we let him go. */
static void check_wait_lasts(struct gr_rcu_domain *d)
{
	pthread_t t;

	STORE(&finished, false);
	t = spawn(synchronize_domain, d);
	sleep_ms(10);
	ASSERT(!LOAD(&finished));
	gr_event_set(&go_on);
	pthread_join(t, NULL);
}

/* ---- domains ----------------------------------------------------------------------------- */

static void *hold_section_of(void *arg)
{
	struct gr_rcu_domain *d = arg;

	gr_rcu_domain_read_lock(d);
	gr_rcu_domain_read_lock(d);
	gr_rcu_domain_read_unlock(d); /* ends nothing */
	gr_event_set(&inside);
	gr_event_wait(&go_on);
	ASSERT(!LOAD(&finished));
	gr_rcu_domain_read_unlock(d);
	return NULL;
}

TEST(a_wait_is_for_the_sections_of_its_own_domain_only)
{
	struct gr_rcu_domain *a = make_domain("a"), *b = make_domain("b");
	pthread_t t = spawn(hold_section_of, a);

	gr_event_wait(&inside);
	gr_rcu_synchronize();
	gr_rcu_domain_synchronize(b);
	check_wait_lasts(a);
	pthread_join(t, NULL);
	gr_rcu_domain_free(a);
	gr_rcu_domain_free(b);
}

TEST(the_default_domain_is_one_too)
{
	gr_rcu_domain_read_lock(NULL);
	ASSERT(gr_rcu_read_ongoing());
	gr_rcu_read_unlock();
	ASSERT(gr_rcu_domain_poll_state(NULL, gr_rcu_get_state()) == false);
	gr_rcu_domain_synchronize(NULL);
	ASSERT_EQ(stats().grace_periods, 1u);
	gr_rcu_domain_free(NULL);
}

TEST(a_section_of_one_domain_may_wait_in_another)
{
	struct gr_rcu_domain *a = make_domain("a"), *b = make_domain("b");

	gr_rcu_domain_read_lock(a);
	gr_rcu_domain_synchronize(b);
	gr_rcu_synchronize();
	gr_rcu_domain_read_unlock(a);
	gr_rcu_read_lock();
	gr_rcu_domain_synchronize(a);
	gr_rcu_read_unlock();
	gr_rcu_domain_free(a);
	gr_rcu_domain_free(b);
}

enum { MANY = 40 };

static void *use_many(void *arg)
{
	struct gr_rcu_domain **d = arg;

	for (int round = 0; round < 3; round++) {
		for (int i = 0; i < MANY; i++) {
			gr_rcu_domain_read_lock(d[i]);
		}
		for (int i = 0; i < MANY; i++) {
			gr_rcu_domain_read_unlock(d[i]);
		}
	}
	return NULL;
}

TEST(a_thread_has_one_reader_in_each_of_many_domains_and_takes_them_along)
{
	struct gr_rcu_domain *d[MANY];
	pthread_t t[3];

	for (int i = 0; i < MANY; i++) {
		d[i] = make_domain("many");
	}
	use_many(d);
	for (int i = 0; i < 3; i++) {
		t[i] = spawn(use_many, d);
	}
	for (int i = 0; i < 3; i++) {
		pthread_join(t[i], NULL);
	}
	for (int i = 0; i < MANY; i++) {
		ASSERT_EQ(registered_readers(d[i]), 1u); /* our own */
		gr_rcu_domain_synchronize(d[i]);
		gr_rcu_domain_free(d[i]);
	}
}

static void *come_and_go(void *arg)
{
	(void)arg;
	while (!LOAD(&stop)) {
		struct gr_rcu_domain *d = make_domain("short");

		gr_rcu_domain_read_lock(d);
		gr_rcu_domain_read_unlock(d);
		gr_rcu_domain_synchronize(d);
		gr_rcu_domain_free(d);
	}
	return NULL;
}

TEST(domains_come_and_go_while_threads_use_and_leave_others)
{
	struct gr_rcu_domain *d[MANY];
	pthread_t keeper[2], t;

	for (int i = 0; i < MANY; i++) {
		d[i] = make_domain("kept");
	}
	for (int i = 0; i < 2; i++) {
		keeper[i] = spawn(come_and_go, NULL);
	}
	for (int i = 0; i < 30; i++) {
		t = spawn(use_many, d);
		pthread_join(t, NULL);
	}
	STORE(&stop, true);
	for (int i = 0; i < 2; i++) {
		pthread_join(keeper[i], NULL);
	}
	for (int i = 0; i < MANY; i++) {
		ASSERT_EQ(registered_readers(d[i]), 0u);
		gr_rcu_domain_free(d[i]);
	}
}

/* A key made after the library's: its destructor may run when the thread has left already. */
static pthread_key_t late_key;
static struct gr_rcu_domain *late_domain;

static void read_late(void *arg)
{
	(void)arg;
	gr_rcu_domain_read_lock(late_domain);
	gr_rcu_domain_read_unlock(late_domain);
}

static void *end_with_a_section(void *arg)
{
	gr_rcu_domain_read_lock(late_domain);
	gr_rcu_domain_read_unlock(late_domain);
	pthread_setspecific(late_key, &late_key);
	return arg;
}

TEST(a_domain_may_be_read_in_thread_exit_destructors)
{
	late_domain = make_domain("late");
	pthread_key_create(&late_key, read_late);
	for (int i = 0; i < 50; i++) {
		pthread_join(spawn(end_with_a_section, NULL), NULL);
	}
	ASSERT_EQ(registered_readers(late_domain), 0u);
	gr_rcu_domain_free(late_domain);
}

TEST(a_polled_grace_period_waits_for_no_other_domain)
{
	struct gr_rcu_domain *a = make_domain("a"), *b = make_domain("b");
	pthread_t t = spawn(hold_section_of, a);
	uint64_t of_a, of_b;

	gr_event_wait(&inside);
	of_a = gr_rcu_domain_start_poll(a);
	for (int i = 0; i < 10; i++) {
		of_b = gr_rcu_domain_start_poll(b);
		while (!gr_rcu_domain_poll_state(b, of_b)) {
			sched_yield();
		}
	}
	ASSERT(!gr_rcu_domain_poll_state(a, of_a));
	gr_event_set(&go_on);
	gr_rcu_domain_cond_synchronize(a, of_a);
	ASSERT(gr_rcu_domain_poll_state(a, of_a));
	pthread_join(t, NULL);
	gr_rcu_domain_free(a);
	gr_rcu_domain_free(b); /* with its thread */
}

TEST(each_grace_period_is_in_the_histogram_of_its_domain)
{
	struct gr_rcu_domain *d = make_domain("counted");
	struct gr_rcu_stats s;
	uint64_t sum = 0;

	for (int i = 0; i < 100; i++) {
		gr_rcu_domain_synchronize(d);
	}
	gr_rcu_stats_get(d, &s);
	for (int i = 0; i < GR_RCU_LATENCY_CLASSES; i++) {
		sum += s.latency[i];
	}
	ASSERT_EQ(s.grace_periods, 100u);
	ASSERT_EQ(sum, 100u);
	ASSERT_EQ(s.latency[0], 0u); /* less than 1 ns */
	ASSERT_EQ(stats().grace_periods, 0u);
	gr_rcu_domain_free(d);
}

TEST(parameters_of_a_wrong_size_are_refused)
{
	struct gr_rcu_domain_params params = { .size = 3 };
	struct gr_rcu_domain *d = NULL;
	struct gr_error err;

	ASSERT_EQ(gr_rcu_domain_create(&params, &d, &err), -EINVAL);
	ASSERT_HAS(err.msg, "parameters of 3 bytes");
	ASSERT_PTR_EQ(d, NULL);
	ASSERT_EQ(gr_rcu_domain_create(NULL, &d, NULL), 0);
	gr_rcu_domain_free(d);
}

/* ---- explicit readers --------------------------------------------------------------------- */

static struct gr_rcu_reader handle;

static void *hold_handle(void *arg)
{
	if (arg) {
		become_hot_on(&handle);
	}
	{
		GR_RCU_READ_GUARD_ON(&handle);
		ASSERT(gr_rcu_read_ongoing_on(&handle));
		ASSERT(!gr_rcu_read_ongoing());
		gr_event_set(&inside);
		gr_event_wait(&go_on);
		ASSERT(!LOAD(&finished));
	}
	ASSERT(!gr_rcu_read_ongoing_on(&handle));
	return NULL;
}

static void check_handle_in(struct gr_rcu_domain *d)
{
	for (uintptr_t hot = 0; hot < 2; hot++) {
		pthread_t t;

		gr_event_reset(&inside);
		gr_event_reset(&go_on);
		gr_rcu_reader_init(&handle, d, "handle");
		t = spawn(hold_handle, (void *)hot);
		gr_event_wait(&inside);
		check_wait_lasts(d);
		pthread_join(t, NULL);
		gr_rcu_park_on(&handle);
		ASSERT_EQ(handle.ctr, GR_RCU_COLD);
		gr_rcu_reader_destroy(&handle);
	}
}

TEST(explicit_readers_are_waited_for_in_their_domain)
{
	struct gr_rcu_domain *d = make_domain("handles");

	check_handle_in(NULL);
	check_handle_in(d);
	ASSERT_EQ(registered_readers(d), 0u);
	gr_rcu_domain_free(d);
}

/*
 * A relay: the reader goes round among threads, each of which runs some sections with it
 * and passes it on, as a coroutine does. Each published value is poisoned a grace period
 * after it was replaced.
 */
enum { RUNNERS = 3, CELLS = 16, GOOD = 0x600d };
static struct {
	uint64_t turn; /* (a) */
	uint32_t cell[CELLS];
	uint32_t *current;
} relay;

static void *run_relay(void *arg)
{
	uint64_t me = (uintptr_t)arg;

	while (!LOAD(&stop)) {
		if (__atomic_load_n(&relay.turn, __ATOMIC_ACQUIRE) % RUNNERS != me) {
			sched_yield();
			continue;
		}
		for (int i = 0; i < 20; i++) {
			const uint32_t *p;

			gr_rcu_read_lock_on(&handle);
			p = gr_rcu_dereference(relay.current);
			for (int k = 0; k < 20; k++) {
				ASSERT_EQ(LOAD(p), (uint32_t)GOOD);
			}
			gr_rcu_read_unlock_on(&handle);
		}
		__atomic_fetch_add(&relay.turn, 1, __ATOMIC_RELEASE);
	}
	return NULL;
}

TEST(an_explicit_reader_may_move_between_threads_between_its_sections)
{
	uint64_t rounds = 0, end = now_ns() + (uint64_t)(test_seconds(0.5) * 1e9);
	pthread_t t[RUNNERS];

	relay.current = &relay.cell[0];
	relay.cell[0] = GOOD;
	gr_rcu_reader_init(&handle, NULL, "relay");
	become_hot_on(&handle);
	for (uintptr_t i = 0; i < RUNNERS; i++) {
		t[i] = spawn(run_relay, (void *)i);
	}
	while (now_ns() < end || LOAD(&relay.turn) < 2 * RUNNERS) {
		uint32_t *old = relay.current, *new = &relay.cell[++rounds % CELLS];

		STORE(new, (uint32_t)GOOD);
		gr_rcu_assign_pointer(relay.current, new);
		gr_rcu_synchronize();
		STORE(old, 0xdeadu);
	}
	STORE(&stop, true);
	for (int i = 0; i < RUNNERS; i++) {
		pthread_join(t[i], NULL);
	}
	test_diag("%" PRIu64 " turns, %" PRIu64 " grace periods", relay.turn, rounds);
	gr_rcu_reader_destroy(&handle);
}

TEST(a_grace_period_waits_for_the_right_ones_among_many_readers)
{
	enum { N = 200 };
	static struct gr_rcu_reader r[N];
	struct gr_rcu_domain *d = make_domain("crowd");
	pthread_t t;

	for (int i = 0; i < N; i++) {
		gr_rcu_reader_init(&r[i], d, "crowd");
		gr_rcu_read_lock_on(&r[i]);
	}
	t = spawn(synchronize_domain, d);
	for (int i = 0; i < N; i++) {
		ASSERT(!LOAD(&finished));
		gr_rcu_read_unlock_on(&r[i]);
		if (i % 50 == 0) {
			sleep_ms(2);
		}
	}
	pthread_join(t, NULL);
	for (int i = 0; i < N; i++) {
		gr_rcu_reader_destroy(&r[i]);
	}
	gr_rcu_domain_free(d);
}

/* ---- fork -------------------------------------------------------------------------------------
 */

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

TEST(a_fork_child_keeps_its_own_readers_and_those_outside)
{
	struct gr_rcu_domain *d = make_domain("forked");
	struct gr_rcu_reader other;
	uint64_t cookie;
	pthread_t t, u;
	pid_t pid;

	SKIP_FORK_AMONG_THREADS_UNDER_SANITIZERS();
	gr_rcu_reader_init(&handle, d, "inside elsewhere");
	gr_rcu_reader_init(&other, d, "outside");
	t = spawn(hold_handle, NULL);
	gr_event_wait(&inside);
	gr_event_reset(&inside);
	u = spawn(hold_section_of, d);
	gr_event_wait(&inside);
	cookie = gr_rcu_domain_start_poll(d);
	gr_rcu_domain_read_lock(d);
	pid = fork();
	if (pid == 0) {
		gr_rcu_domain_read_unlock(d); /* our section is ours still */
		ASSERT_EQ(registered_readers(d), 2u);
		gr_rcu_read_lock_on(&other);
		gr_rcu_read_unlock_on(&other);
		gr_rcu_domain_cond_synchronize(d, cookie); /* theirs do not count here */
		cookie = gr_rcu_domain_start_poll(d);
		while (!gr_rcu_domain_poll_state(d, cookie)) {
			sched_yield();
		}
		gr_rcu_reader_destroy(&handle);
		gr_rcu_reader_destroy(&other);
		gr_rcu_domain_free(d);
		_exit(0);
	}
	wait_for_child(pid);
	ASSERT(!gr_rcu_domain_poll_state(d, cookie));
	gr_rcu_domain_read_unlock(d);
	gr_event_set(&go_on);
	pthread_join(t, NULL);
	pthread_join(u, NULL);
	gr_rcu_reader_destroy(&handle);
	gr_rcu_reader_destroy(&other);
	gr_rcu_domain_free(d);
}

/* ---- misuse -----------------------------------------------------------------------------------
 */

static void synchronize_inside(void *arg)
{
	struct gr_rcu_domain *d = make_domain("mine");

	(void)arg;
	gr_rcu_domain_read_lock(d);
	gr_rcu_domain_synchronize(d);
}

static void free_inside(void *arg)
{
	struct gr_rcu_domain *d = make_domain("mine");

	(void)arg;
	gr_rcu_domain_read_lock(d);
	gr_rcu_domain_free(d);
}

static void free_with_reader(void *arg)
{
	struct gr_rcu_domain *d = make_domain("mine");

	(void)arg;
	gr_rcu_reader_init(&handle, d, "left over");
	gr_rcu_domain_free(d);
}

static void unlock_domain_without_lock(void *arg)
{
	(void)arg;
	gr_rcu_domain_read_unlock(make_domain("mine"));
}

static void unlock_domain_twice(void *arg)
{
	struct gr_rcu_domain *d = make_domain("mine");

	(void)arg;
	gr_rcu_domain_read_lock(d);
	gr_rcu_domain_read_unlock(d);
	gr_rcu_domain_read_unlock(d);
}

static void destroy_inside(void *arg)
{
	(void)arg;
	gr_rcu_reader_init(&handle, NULL, "busy one");
	gr_rcu_read_lock_on(&handle);
	gr_rcu_reader_destroy(&handle);
}

static void lock_destroyed(void *arg)
{
	(void)arg;
	gr_rcu_reader_init(&handle, NULL, "x");
	gr_rcu_reader_destroy(&handle);
	gr_rcu_read_lock_on(&handle);
}

static void *end_inside(void *arg)
{
	gr_rcu_domain_read_lock(arg);
	return NULL;
}

static void thread_ends_inside(void *arg)
{
	(void)arg;
	pthread_join(spawn(end_inside, make_domain("mine")), NULL);
}

TEST(misuse_dies_with_a_message)
{
	dies_saying(synchronize_inside, "inside a read-side section");
	dies_saying(free_inside, "domain mine is freed with a reader inside a section");
	dies_saying(free_with_reader, "domain mine is freed before its reader left over");
	dies_saying(unlock_domain_without_lock, "in domain mine");
	dies_saying(unlock_domain_twice, "without gr_rcu_read_lock()");
	dies_saying(destroy_inside, "reader busy one is destroyed inside a section");
	dies_saying(lock_destroyed, "not initialised, or is gone");
	dies_saying(thread_ends_inside, "ends inside a read-side section of domain mine");
}

TEST_MAIN()
