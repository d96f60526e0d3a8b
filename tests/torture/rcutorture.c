/* SPDX-License-Identifier: MIT */
/* See rcutorture.h. It passes on the library; tests/mutants shows that it can fail. */
#include "rcutorture.h"
#include <stdlib.h>

enum { READERS = 5, PAUSE_EVERY_MS = 250, PAUSE_MS = 30, FORK_EVERY_MS = 200, STEP_MS = 10 };

struct torture torture;

static pthread_mutex_t callbacks_lock = PTHREAD_MUTEX_INITIALIZER;

/* ---- figures
 * ------------------------------------------------------------------------------------- */

static const char *list(const uint64_t *v, int n, char *line, size_t bytes)
{
	int at = 0;

	for (int i = 0; i < n; i++) {
		at += snprintf(line + at, bytes - (size_t)at, " %" PRIu64, LOAD(&v[i]));
	}
	return line;
}

static void print_figures(double seconds)
{
	struct gr_rcu_stats s = stats();
	char line[200];

	test_diag("%.1f s; ages:%s", seconds, list(torture.ages, AGES, line, sizeof(line)));
	test_diag(
		"sections of ordinary, explicit, quiescent-state readers, in a domain, explicit:%s",
		list(torture.sections, READER_KINDS, line, sizeof(line)));
	test_diag("%" PRIu64 " reader threads; %" PRIu64 " sections in handlers",
		  torture.reader_lives, torture.in_handlers);
	test_diag("updates by synchronize, expedited, conditional, polled, call:%s",
		  list(torture.updates, UPDATE_WAYS, line, sizeof(line)));
	test_diag("fake writes, polls, floods, quiet times:%s",
		  list(torture.disturbed, DISTURBERS, line, sizeof(line)));
	test_diag("grace periods %" PRIu64 ", shared %" PRIu64 "; process-wide fences %" PRIu64
		  "; requests %" PRIu64 " = reports %" PRIu64 " + claims %" PRIu64
		  "; reader wakes %" PRIu64,
		  s.grace_periods, s.merged, gr_heavy_fence_count(), s.requests, s.reports,
		  s.claims, s.reader_wakes);
}

/* ---- a child now and then
 * ---------------------------------------------------------------------------- */

#ifndef _WIN32
#	include <sys/wait.h>
#	include <unistd.h>

static void count(struct gr_rcu_head *head)
{
	(void)head;
	ADD(&torture.calls_open, -1u);
}

/* Callbacks of the parent are in the queues too, and run here. */
static void use_everything_in_child(void)
{
	struct gr_rcu_queue *q[] = { NULL, torture.locked, torture.others_queue };
	static struct gr_rcu_head head[3];

	for (int i = 0; i < 3; i++) {
		gr_rcu_read_lock();
		gr_rcu_read_unlock();
		gr_rcu_synchronize();
		gr_rcu_domain_synchronize(torture.other);
		ADD(&torture.calls_open, 1u);
		gr_rcu_call(q[i], &head[i], count);
	}
	for (int i = 0; i < 3; i++) {
		gr_rcu_barrier(q[i]);
	}
}

static void fork_and_wait(void)
{
	int status;
	pid_t pid;

	pthread_mutex_lock(&callbacks_lock); /* a lock of ours: nobody else has it in the child */
	pid = fork();
	pthread_mutex_unlock(&callbacks_lock);
	ASSERT(pid >= 0);
	if (pid == 0) {
		use_everything_in_child();
		_exit(0);
	}
	for (int ms = 0; waitpid(pid, &status, WNOHANG) == 0; ms++) {
		if (ms > 30000) {
			kill(pid, SIGKILL);
			FAIL("a forked child hangs in its use of RCU");
		}
		sleep_ms(1);
	}
	ASSERT_EQ(status, 0);
}

static bool may_fork(void)
{
	return !test_under_asan() && !test_under_tsan() && test_may("forks_during_rcutorture");
}
#else
static void fork_and_wait(void)
{
}

static bool may_fork(void)
{
	return false;
}
#endif

/* ---- the run
 * ------------------------------------------------------------------------------------------- */

static void make_domain_and_queues(void)
{
	struct gr_rcu_domain_params domain = { .size = sizeof(domain), .name = "other" };
	struct gr_rcu_queue_params queue = { .size = sizeof(queue), .name = "locked" };
	struct gr_error err;

	ASSERT_EQ(gr_rcu_domain_create(&domain, &torture.other, &err), 0);
	queue.lock = lock_callbacks;
	queue.unlock = unlock_callbacks;
	queue.opaque = &callbacks_lock;
	ASSERT_EQ(gr_rcu_queue_create(&queue, &torture.locked, &err), 0);
	queue = (struct gr_rcu_queue_params){ .size = sizeof(queue), .name = "others" };
	queue.domain = torture.other;
	ASSERT_EQ(gr_rcu_queue_create(&queue, &torture.others_queue, &err), 0);
}

static void free_domain_and_queues(void)
{
	gr_rcu_barrier(NULL);
	gr_rcu_queue_free(torture.locked);
	gr_rcu_queue_free(torture.others_queue);
	gr_rcu_domain_free(torture.other);
}

static bool any_zero(const uint64_t *v, int n)
{
	for (int i = 0; i < n; i++) {
		if (LOAD(&v[i]) == 0) {
			return true;
		}
	}
	return false;
}

/* A busy machine needs longer until everybody had a turn. */
static bool somebody_had_no_turn(void)
{
	return any_zero(torture.sections, READER_KINDS) || any_zero(torture.updates, UPDATE_WAYS) ||
	       any_zero(torture.disturbed, DISTURBERS) || LOAD(&torture.in_handlers) == 0;
}

static void fail_if_anything_is_wrong(double seconds)
{
	for (int i = 2; i < AGES; i++) {
		if (LOAD(&torture.ages[i]) != 0) {
			print_figures(seconds);
			FAIL("a section saw an object %d grace periods old", i - 1);
		}
	}
	ASSERT_EQ(LOAD(&torture.torn), 0u);
	ASSERT_EQ(LOAD(&torture.cookie_errors), 0u);
}

static void watch_over(double seconds)
{
	uint64_t end = now_ns() + (uint64_t)(seconds * 1e9);

	for (int ms = 0; now_ns() < end || somebody_had_no_turn(); ms += STEP_MS) {
		STORE(&torture.pause, ms % PAUSE_EVERY_MS < PAUSE_MS);
		if (may_fork() && ms % FORK_EVERY_MS == 0) {
			fork_and_wait();
		}
		sleep_ms(STEP_MS);
		fail_if_anything_is_wrong(seconds);
	}
	STORE(&torture.pause, false);
}

/* Each was taken back once, when the last grace period is over: it counts them at its end. */
static void check_requests(struct gr_rcu_domain *d)
{
	uint64_t end = now_ns() + 15000000000u;
	struct gr_rcu_stats s;

	do {
		gr_rcu_stats_get(d, &s);
	} while (s.requests != s.reports + s.claims && now_ns() < end);
	ASSERT_EQ(s.requests, s.reports + s.claims);
}

TEST(readers_never_see_an_object_after_its_grace_period)
{
	double seconds = test_seconds(2.5);
	pthread_t r[READERS], u[SLOTS], d[DISTURBERS];

	make_domain_and_queues();
	start_handlers();
	for (uintptr_t i = 0; i < SLOTS; i++) {
		u[i] = spawn(updater, (void *)i);
	}
	for (uintptr_t i = 0; i < DISTURBERS; i++) {
		d[i] = spawn(disturb, (void *)i);
	}
	for (uintptr_t i = 0; i < READERS; i++) {
		r[i] = spawn(reader_keeper, (void *)(i + 1));
	}
	watch_over(seconds);
	STORE(&torture.stop_updaters, true);
	for (int i = 0; i < SLOTS; i++) {
		pthread_join(u[i], NULL);
	}
	for (int i = 0; i < DISTURBERS; i++) {
		pthread_join(d[i], NULL);
	}
	stop_handlers();
	STORE(&torture.stop_readers, true);
	for (int i = 0; i < READERS; i++) {
		pthread_join(r[i], NULL);
	}
	check_requests(torture.other);
	check_requests(NULL);
	free_domain_and_queues();
	print_figures(seconds);
	fail_if_anything_is_wrong(seconds);
	ASSERT_EQ(torture.calls_open, 0u);
	for (int i = 0; i < SLOTS; i++) {
		free(torture.slot[i]);
	}
}

TEST_MAIN()
