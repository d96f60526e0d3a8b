/* SPDX-License-Identifier: MIT */
#include "rcu_kit.h"
#include <errno.h>
#include <guestram/event.h>
#include <guestram/rcu.h>
#include <pthread.h>
#include <sched.h>
#include <stdlib.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

/* ---- sections ------------------------------------------------------------------------- */

static void nest(int depth) GR_NO_TSA
{
	for (int i = 0; i < depth; i++) {
		gr_rcu_read_lock();
		ASSERT(gr_rcu_read_ongoing());
	}
	for (int i = 0; i < depth; i++) {
		ASSERT(gr_rcu_read_ongoing());
		gr_rcu_read_unlock();
	}
	ASSERT(!gr_rcu_read_ongoing());
}

TEST(sections_nest_65535_deep_cold_and_hot)
{
	ASSERT(!gr_rcu_read_ongoing());
	nest(2);
	nest(65535);
	become_hot();
	nest(2);
	nest(65535);
}

static int guarded_returns_early(int a)
{
	GR_RCU_READ_GUARD();
	if (a) {
		ASSERT(gr_rcu_read_ongoing());
		return 1;
	}
	return 2;
}

TEST(the_guard_ends_its_section_on_every_way_out)
{
	ASSERT_EQ(guarded_returns_early(1), 1);
	ASSERT(!gr_rcu_read_ongoing());
	ASSERT_EQ(guarded_returns_early(0), 2);
	ASSERT(!gr_rcu_read_ongoing());
}

/* ---- grace periods -------------------------------------------------------------------- */

static struct gr_event inside = GR_EVENT_INIT(false), go_on = GR_EVENT_INIT(false);
static bool synced;

static void *hold_a_section(void *arg)
{
	if (arg) {
		become_hot();
	}
	gr_rcu_read_lock();
	gr_event_set(&inside);
	gr_event_wait(&go_on);
	ASSERT(!LOAD(&synced));
	gr_rcu_read_unlock();
	return NULL;
}

static void *synchronizer(void *arg)
{
	(void)arg;
	gr_rcu_synchronize();
	STORE(&synced, true);
	return NULL;
}

static void check_synchronize_waits(void *hot)
{
	pthread_t r, s;

	gr_event_reset(&inside);
	gr_event_reset(&go_on);
	STORE(&synced, false);
	r = spawn(hold_a_section, hot);
	gr_event_wait(&inside);
	s = spawn(synchronizer, NULL);
	sleep_ms(20);
	ASSERT(!LOAD(&synced));
	gr_event_set(&go_on);
	pthread_join(r, NULL);
	pthread_join(s, NULL);
	ASSERT(LOAD(&synced));
}

TEST(synchronize_waits_for_an_open_section_cold_or_hot)
{
	static char hot;

	check_synchronize_waits(NULL);
	check_synchronize_waits(&hot);
}

static bool stop;

static void *overlap(void *arg) GR_NO_TSA
{
	(void)arg;
	while (!LOAD(&stop)) {
		gr_rcu_read_lock();
		gr_rcu_read_lock();
		usleep(20);
		gr_rcu_read_unlock(); /* the inner one ends nothing, the outer one reports */
		gr_rcu_read_unlock();
	}
	return NULL;
}

TEST(sections_that_always_overlap_do_not_hold_up_a_grace_period)
{
	pthread_t t[4];

	for (int i = 0; i < 4; i++) {
		t[i] = spawn(overlap, NULL);
	}
	for (int i = 0; i < 200; i++) {
		gr_rcu_synchronize();
	}
	STORE(&stop, true);
	for (int i = 0; i < 4; i++) {
		pthread_join(t[i], NULL);
	}
}

enum { MANY = 16 };
static pthread_barrier_t start_line;
static uint64_t synchronized;

static void *synchronize_rounds(void *arg)
{
	int rounds = *(int *)arg;

	for (int i = 0; i < rounds; i++) {
		pthread_barrier_wait(&start_line);
		gr_rcu_synchronize();
		__atomic_fetch_add(&synchronized, 1, __ATOMIC_RELAXED);
	}
	return NULL;
}

/* After each round everybody must be out: who is left asleep has nobody to wake it. */
TEST(many_threads_synchronize_at_once_and_none_is_left_asleep)
{
	int rounds = test_under_tsan() ? 300 : 3000;
	struct gr_rcu_stats s;
	pthread_t t[MANY], r;

	test_watch_progress(&synchronized, 4);
	pthread_barrier_init(&start_line, NULL, MANY);
	r = spawn(overlap, NULL);
	for (int i = 0; i < MANY; i++) {
		t[i] = spawn(synchronize_rounds, &rounds);
	}
	for (int i = 0; i < MANY; i++) {
		pthread_join(t[i], NULL);
	}
	STORE(&stop, true);
	pthread_join(r, NULL);
	s = stats();
	test_diag("%d callers, %" PRIu64 " grace periods, %" PRIu64 " served by another's",
		  MANY * rounds, s.grace_periods, s.merged);
	ASSERT_LT(s.grace_periods, (uint64_t)(MANY * rounds)); /* they share */
}

TEST(a_cookie_is_passed_by_a_whole_grace_period_only)
{
	uint64_t before = gr_rcu_get_state(), during;
	struct gr_rcu_stats s;
	pthread_t r, y;

	ASSERT(!gr_rcu_poll_state(before));
	r = spawn(hold_a_section, NULL);
	gr_event_wait(&inside);
	y = spawn(synchronizer, NULL);
	do { /* until it runs: then cookies are for the next one */
		during = gr_rcu_get_state();
	} while (during == before);
	ASSERT(!gr_rcu_poll_state(before));
	gr_event_set(&go_on);
	pthread_join(r, NULL);
	pthread_join(y, NULL);
	ASSERT(gr_rcu_poll_state(before));
	ASSERT(!gr_rcu_poll_state(during));
	gr_rcu_cond_synchronize(during);
	ASSERT(gr_rcu_poll_state(during));
	s = stats();
	gr_rcu_cond_synchronize(before);
	gr_rcu_cond_synchronize(during);
	ASSERT_EQ(stats().grace_periods, s.grace_periods);
}

TEST(start_poll_completes_by_itself_even_from_inside_a_section)
{
	uint64_t cookie;

	gr_rcu_read_lock();
	cookie = gr_rcu_start_poll();
	sleep_ms(10);
	ASSERT(!gr_rcu_poll_state(cookie));
	gr_rcu_read_unlock();
	while (!gr_rcu_poll_state(cookie)) {
		sched_yield();
	}
	for (int i = 0; i < 100; i++) {
		cookie = gr_rcu_start_poll();
		while (!gr_rcu_poll_state(cookie)) {
			sched_yield();
		}
	}
}

TEST(the_sequence_may_pass_2_to_the_31_32_and_63)
{
	static const uint64_t edges[] = { 1ull << 31, 1ull << 32, 1ull << 63, 0 };
	pthread_t r = spawn(overlap, NULL);

	for (size_t e = 0; e < sizeof(edges) / sizeof(edges[0]); e++) {
		gr_rcu_seq_set_for_test(&gr_rcu_default, edges[e] - 8);
		for (int i = 0; i < 10; i++) {
			uint64_t cookie = gr_rcu_get_state();

			ASSERT(!gr_rcu_poll_state(cookie));
			gr_rcu_synchronize();
			ASSERT(gr_rcu_poll_state(cookie));
		}
	}
	STORE(&stop, true);
	pthread_join(r, NULL);
}

/* ---- what a grace period costs ---------------------------------------------------------- */

static void *long_reader(void *arg)
{
	uint64_t n = *(uint64_t *)arg;

	become_hot();
	for (uint64_t i = 0; i < n; i++) {
		gr_rcu_read_lock();
		gr_event_set(&inside);
		sleep_ms(2);
		gr_rcu_read_unlock();
		sched_yield();
	}
	return NULL;
}

static void *fast_reader(void *arg)
{
	(void)arg;
	while (!LOAD(&stop)) {
		gr_rcu_read_lock();
		gr_rcu_read_unlock();
	}
	return NULL;
}

TEST(one_wake_and_two_fences_per_grace_period_whatever_other_readers_do)
{
	uint64_t n = 20, fences = gr_heavy_fence_count(), gps;
	pthread_t r, f = spawn(fast_reader, NULL);
	struct gr_rcu_stats s;

	r = spawn(long_reader, &n);
	for (uint64_t i = 0; i < n; i++) {
		gr_event_wait_timeout(&inside, 100000000);
		gr_event_reset(&inside);
		gr_rcu_synchronize();
	}
	pthread_join(r, NULL);
	STORE(&stop, true);
	pthread_join(f, NULL);
	s = stats();
	gps = s.grace_periods;
	test_diag("%" PRIu64 " grace periods: %" PRIu64 " wakes, %" PRIu64
		  " process-wide fences, %" PRIu64 " sleeps",
		  gps, s.reader_wakes, gr_heavy_fence_count() - fences, s.sleeps);
	ASSERT_LE(s.reader_wakes, gps);
	ASSERT_LE(gr_heavy_fence_count() - fences, 2 * gps);
	if (gr_heavy_fence_available()) {
		/* A cold reader may be looked for a few times; a fence ends that. */
		ASSERT_LE(s.sleeps, 5 * gps);
	}
}

static void *parked(void *arg)
{
	struct gr_event *done = arg;

	become_hot();
	gr_rcu_park();
	gr_event_set(&inside);
	gr_event_wait(done);
	return NULL;
}

static void *hot_idle(void *arg)
{
	struct gr_event *done = arg;

	become_hot();
	gr_event_set(&inside);
	gr_event_wait(done);
	return NULL;
}

static uint64_t fences_of_100_grace_periods(void *(*reader)(void *))
{
	struct gr_event done = GR_EVENT_INIT(false);
	uint64_t before;
	pthread_t t;

	gr_event_reset(&inside);
	t = spawn(reader, &done);
	gr_event_wait(&inside);
	before = gr_heavy_fence_count();
	for (int i = 0; i < 100; i++) {
		gr_rcu_synchronize();
	}
	before = gr_heavy_fence_count() - before;
	gr_event_set(&done);
	pthread_join(t, NULL);
	return before;
}

TEST(parked_threads_cost_no_process_wide_fence_and_hot_ones_one)
{
	ASSERT_EQ(fences_of_100_grace_periods(parked), 0u);
	ASSERT_EQ(fences_of_100_grace_periods(hot_idle), gr_heavy_fence_available() ? 100u : 0u);
}

/* ---- threads come and go ------------------------------------------------------------------ */

static void *short_life(void *arg)
{
	(void)arg;
	gr_rcu_read_lock();
	gr_rcu_read_unlock();
	return NULL;
}

static void *synchronize_until_stop(void *arg)
{
	(void)arg;
	while (!LOAD(&stop)) {
		gr_rcu_synchronize(); /* this thread never reads: it is not registered */
	}
	return NULL;
}

TEST(ten_thousand_threads_come_and_go_during_grace_periods)
{
	/* As many as a minute lasts for, where making threads is slow. */
	int n = test_under_tsan() || test_under_asan() ? 200 : 10000;
	uint64_t end = now_ns() + 60 * 1000000000ull;
	pthread_t s = spawn(synchronize_until_stop, NULL), t[4];

	for (int i = 0; i < n && (i < 200 || now_ns() < end); i += 4) {
		for (int k = 0; k < 4; k++) {
			t[k] = spawn(short_life, NULL);
		}
		for (int k = 0; k < 4; k++) {
			pthread_join(t[k], NULL);
		}
	}
	STORE(&stop, true);
	pthread_join(s, NULL);
	ASSERT_EQ(registered_readers(NULL), 0u);
}

/* Keys made before and after the library's own run their destructors on both sides of it. */
static pthread_key_t early_key, late_key;
static unsigned destructions;

static void read_at_the_end(void *arg) GR_NO_TSA
{
	(void)arg;
	gr_rcu_read_lock();
	gr_rcu_read_lock();
	ASSERT(gr_rcu_read_ongoing());
	gr_rcu_read_unlock();
	ASSERT(gr_rcu_read_ongoing());
	gr_rcu_read_unlock();
	ASSERT(!gr_rcu_read_ongoing());
	gr_rcu_park();
	gr_rcu_synchronize();
	__atomic_fetch_add(&destructions, 1, __ATOMIC_RELAXED);
}

static void read_again_and_again(void *arg)
{
	uintptr_t left = (uintptr_t)arg;

	read_at_the_end(NULL);
	if (left > 1) {
		pthread_setspecific(late_key, (void *)(left - 1));
	}
}

static void *read_then_end(void *arg)
{
	(void)arg;
	gr_rcu_read_lock();
	gr_rcu_read_unlock();
	pthread_setspecific(early_key, &destructions);
	pthread_setspecific(late_key, (void *)3);
	return NULL;
}

__attribute__((constructor(101))) static void make_early_key(void)
{
	pthread_key_create(&early_key, read_at_the_end);
}

TEST(thread_exit_destructors_may_read_before_and_after_ours)
{
	pthread_t s = spawn(synchronize_until_stop, NULL), t[4];

	pthread_key_create(&late_key, read_again_and_again);
	for (int i = 0; i < 50; i++) {
		for (int k = 0; k < 4; k++) {
			t[k] = spawn(read_then_end, NULL);
		}
		for (int k = 0; k < 4; k++) {
			pthread_join(t[k], NULL);
		}
	}
	STORE(&stop, true);
	pthread_join(s, NULL);
	ASSERT_EQ(destructions, 50u * 4 * 4);
	ASSERT_EQ(registered_readers(NULL), 0u);
}

TEST(explicit_registration_is_idempotent_and_leaving_is_not_for_ever)
{
	ASSERT_EQ(registered_readers(NULL), 0u);
	gr_rcu_register_thread();
	gr_rcu_register_thread();
	ASSERT_EQ(registered_readers(NULL), 1u);
	gr_rcu_unregister_thread();
	gr_rcu_unregister_thread();
	ASSERT_EQ(registered_readers(NULL), 0u);
	gr_rcu_read_lock();
	ASSERT_EQ(registered_readers(NULL), 1u);
	gr_rcu_read_unlock();
}

TEST(joining_a_thread_inside_a_section_while_others_synchronize_does_not_deadlock)
{
	pthread_t s = spawn(synchronize_until_stop, NULL);

	for (int i = 0; i < 200; i++) {
		gr_rcu_read_lock();
		pthread_join(spawn(short_life, NULL), NULL);
		gr_rcu_read_unlock();
	}
	STORE(&stop, true);
	pthread_join(s, NULL);
}

/* ---- signals -------------------------------------------------------------------------------- */

static unsigned *published;
static unsigned long handled;

static void section_in_handler(int sig) GR_NO_TSA
{
	const unsigned *p;

	(void)sig;
	gr_rcu_read_lock();
	p = gr_rcu_dereference(published);
	ASSERT_EQ(*p, 0x600du);
	gr_rcu_read_lock();
	gr_rcu_read_unlock();
	ASSERT_EQ(*p, 0x600du);
	gr_rcu_read_unlock();
	__atomic_fetch_add(&handled, 1, __ATOMIC_RELAXED);
}

static void *read_under_fire(void *arg)
{
	(void)arg;
	while (!LOAD(&stop)) {
		const unsigned *p;

		gr_rcu_read_lock();
		p = gr_rcu_dereference(published);
		ASSERT_EQ(*p, 0x600du);
		gr_rcu_read_unlock();
	}
	return NULL;
}

static void *idle_under_fire(void *arg) /* its first section is in the handler */
{
	(void)arg;
	while (!LOAD(&stop)) {
		usleep(100);
	}
	return NULL;
}

TEST(handlers_may_run_sections_anywhere)
{
	struct itimerval tick = { { 0, 100 }, { 0, 100 } }, off = { { 0, 0 }, { 0, 0 } };
	struct sigaction sa = { .sa_handler = section_in_handler };
	uint64_t end = (uint64_t)time(NULL) + 2;
	static unsigned cells[64];
	unsigned n = 0;
	pthread_t t[3];

	published = &cells[0];
	cells[0] = 0x600d;
	sigaction(SIGALRM, &sa, NULL);
	for (int i = 0; i < 3; i++) {
		t[i] = spawn(i < 2 ? read_under_fire : idle_under_fire, NULL);
	}
	setitimer(ITIMER_REAL, &tick, NULL);
	while ((uint64_t)time(NULL) < end || LOAD(&handled) <= 100ul) {
		unsigned *old = published;

		n = (n + 1) % 64;
		STORE(&cells[n], 0x600du);
		gr_rcu_assign_pointer(published, &cells[n]);
		gr_rcu_synchronize();
		STORE(old, 0xbadu);
	}
	setitimer(ITIMER_REAL, &off, NULL);
	STORE(&stop, true);
	for (int i = 0; i < 3; i++) {
		pthread_join(t[i], NULL);
	}
	test_diag("%lu handlers ran", handled);
	ASSERT_GT(handled, 100ul);
}

/* ---- fork ------------------------------------------------------------------------------------- */

static unsigned ran;

static void count_run(struct gr_rcu_head *head)
{
	__atomic_fetch_add(&ran, 1, __ATOMIC_RELAXED);
	free(head);
}

static void use_everything(void)
{
	unsigned before = LOAD(&ran);
	pthread_t r;

	STORE(&stop, false);
	become_hot();
	r = spawn(overlap, NULL);
	for (int i = 0; i < 50; i++) {
		gr_rcu_synchronize();
		gr_rcu_call(NULL, malloc(sizeof(struct gr_rcu_head)), count_run);
	}
	gr_rcu_barrier(NULL);
	ASSERT_GE(LOAD(&ran), before + 50);
	STORE(&stop, true);
	pthread_join(r, NULL);
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

static void child_of_child(void)
{
	pid_t pid;

	use_everything();
	pid = fork();
	if (pid == 0) {
		use_everything();
		_exit(0);
	}
	wait_for_child(pid);
	use_everything();
}

TEST(a_forked_child_and_its_child_have_working_grace_periods_and_callbacks)
{
	pthread_t s;

	SKIP_FORK_AMONG_THREADS_UNDER_SANITIZERS();
	use_everything();
	STORE(&stop, false);
	s = spawn(synchronize_until_stop, NULL); /* a driver in any state when we fork */
	for (int i = 0; i < 20; i++) {
		pid_t pid;

		gr_rcu_call(NULL, malloc(sizeof(struct gr_rcu_head)), count_run);
		pid = fork();
		if (pid == 0) {
			child_of_child();
			_exit(0);
		}
		wait_for_child(pid);
	}
	STORE(&stop, true);
	pthread_join(s, NULL);
	use_everything();
}

/* The driver waits for our section, we fork in it: neither may wait for the other. */
TEST(fork_inside_a_section_with_a_grace_period_under_way)
{
	struct gr_rcu_head *head;
	uint64_t cookie;
	pthread_t y;
	pid_t pid;

	SKIP_FORK_AMONG_THREADS_UNDER_SANITIZERS();
	become_hot();
	gr_rcu_read_lock();
	cookie = gr_rcu_get_state();
	y = spawn(synchronizer, NULL);
	while (gr_rcu_get_state() == cookie) {
		sched_yield();
	}
	sleep_ms(5); /* it sleeps, our request is set */
	head = malloc(sizeof(*head));
	gr_rcu_call(NULL, head, count_run);
	pid = fork();
	if (pid == 0) {
		ASSERT(gr_rcu_read_ongoing());
		ASSERT(!gr_rcu_poll_state(cookie)); /* our section is still open here */
		gr_rcu_read_unlock();
		gr_rcu_barrier(NULL); /* the callback from before the fork runs here too */
		ASSERT_EQ(LOAD(&ran), 1u);
		ASSERT(gr_rcu_poll_state(cookie));
		_exit(0);
	}
	ASSERT(!gr_rcu_poll_state(cookie));
	gr_rcu_read_unlock();
	pthread_join(y, NULL);
	wait_for_child(pid);
	gr_rcu_barrier(NULL);
	ASSERT_EQ(LOAD(&ran), 1u);
}

static struct gr_event last_ran = GR_EVENT_INIT(false);

static void count_and_set(struct gr_rcu_head *head)
{
	count_run(head);
	gr_event_set(&last_ran);
}

/* No barrier in the child, which would start a worker for itself: a call must be enough. */
TEST(callbacks_from_before_a_fork_run_in_the_child_once_it_queues_another)
{
	pid_t pid;

	SKIP_FORK_AMONG_THREADS_UNDER_SANITIZERS();
	gr_rcu_read_lock(); /* what is queued stays queued */
	for (int i = 0; i < 100; i++) {
		gr_rcu_call(NULL, malloc(sizeof(struct gr_rcu_head)), count_run);
		sched_yield();
	}
	pid = fork();
	gr_rcu_read_unlock();
	gr_rcu_call(NULL, malloc(sizeof(struct gr_rcu_head)), count_and_set);
	gr_event_wait(&last_ran);
	ASSERT_EQ(LOAD(&ran), 101u);
	if (pid == 0) {
		_exit(0);
	}
	wait_for_child(pid);
}

/* ---- misuse ------------------------------------------------------------------------------------- */

static void synchronize_in_section(void *arg) GR_NO_TSA
{
	(void)arg;
	gr_rcu_read_lock();
	gr_rcu_synchronize();
}

static void cond_synchronize_in_section(void *arg) GR_NO_TSA
{
	(void)arg;
	gr_rcu_read_lock();
	gr_rcu_cond_synchronize(gr_rcu_get_state());
}

static void unlock_unregistered(void *arg) GR_NO_TSA
{
	(void)arg;
	gr_rcu_read_unlock();
}

static void unlock_once_too_often(void *arg) GR_NO_TSA
{
	(void)arg;
	become_hot();
	gr_rcu_read_lock();
	gr_rcu_read_unlock();
	gr_rcu_read_unlock();
}

static void nest_too_deep(void *arg) GR_NO_TSA
{
	(void)arg;
	for (int i = 0; i < 65536; i++) {
		gr_rcu_read_lock();
	}
}

static void unregister_in_section(void *arg) GR_NO_TSA
{
	(void)arg;
	gr_rcu_read_lock();
	gr_rcu_unregister_thread();
}

static void *end_in_section(void *arg) GR_NO_TSA
{
	gr_rcu_read_lock();
	return arg;
}

static void thread_ends_in_section(void *arg)
{
	pthread_join(spawn(end_in_section, arg), NULL);
}

TEST(misuse_dies_with_a_message)
{
	dies_saying(synchronize_in_section, "inside a read-side section");
	dies_saying(cond_synchronize_in_section, "inside a read-side section");
	dies_saying(unlock_unregistered, "gr_rcu_read_unlock() without gr_rcu_read_lock()");
	dies_saying(unlock_once_too_often, "gr_rcu_read_unlock() without gr_rcu_read_lock()");
	dies_saying(nest_too_deep, "nested more than 65535 deep");
	dies_saying(unregister_in_section, "inside a read-side section");
	dies_saying(thread_ends_in_section, "ends inside a read-side section");
}

TEST_MAIN()
