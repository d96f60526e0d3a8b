/* SPDX-License-Identifier: MIT */
/* Quiet times, notifiers, expedited grace periods, who becomes HOT. */
#include "rcu_kit.h"
#include <guestram/rcu_control.h>
#include <guestram/rcu_domain.h>
#include <stdlib.h>
#include <unistd.h>

static struct gr_event inside = GR_EVENT_INIT(false), go_on = GR_EVENT_INIT(false);
static bool stop;

/* ---- quiet times -------------------------------------------------------------------------- */

static void *busy_reader(void *arg)
{
	(void)arg;
	become_hot();
	gr_event_set(&inside);
	while (!LOAD(&stop)) {
		gr_rcu_read_lock();
		gr_rcu_read_unlock();
	}
	return NULL;
}

/* Reports nothing: each grace period has to fence for it. */
static void *idle_reader(void *arg)
{
	(void)arg;
	become_hot();
	gr_event_set(&inside);
	gr_event_wait(&go_on);
	return NULL;
}

static uint64_t fences_of(int grace_periods)
{
	uint64_t before = gr_heavy_fence_count();

	for (int i = 0; i < grace_periods; i++) {
		gr_rcu_synchronize();
	}
	return gr_heavy_fence_count() - before;
}

TEST(quiet_times_have_no_process_wide_fence_and_other_times_have)
{
	uint64_t have = gr_heavy_fence_available() ? 1 : 0;
	pthread_t t, idle;

	gr_rcu_quiet_begin();
	gr_rcu_quiet_end();
	t = spawn(busy_reader, NULL);
	gr_event_wait(&inside);
	gr_event_reset(&inside);
	idle = spawn(idle_reader, NULL);
	gr_event_wait(&inside);
	for (int i = 0; i < 3; i++) {
		uint64_t before = gr_heavy_fence_count();

		ASSERT_GE(fences_of(50), 50 * have);
		before = gr_heavy_fence_count();
		gr_rcu_quiet_begin();
		ASSERT_EQ(gr_heavy_fence_count() - before, have);
		gr_rcu_quiet_begin(); /* counted, and free */
		ASSERT_EQ(fences_of(200), 0u);
		gr_rcu_quiet_end();
		ASSERT_EQ(fences_of(200), 0u);
		gr_rcu_quiet_end();
	}
	STORE(&stop, true);
	gr_event_set(&go_on);
	pthread_join(t, NULL);
	pthread_join(idle, NULL);
}

static void *hold_a_section(void *arg)
{
	(void)arg;
	become_hot();
	gr_rcu_read_lock();
	gr_event_set(&inside);
	wait_until_asked(&gr_rcu_self);
	sleep_ms(5);
	gr_rcu_read_unlock();
	gr_event_wait(&go_on);
	return NULL;
}

TEST(a_reader_that_is_slept_for_in_quiet_times_is_looked_for_instead_of_fenced)
{
	uint64_t before;
	pthread_t t;

	gr_rcu_quiet_begin();
	t = spawn(hold_a_section, NULL);
	gr_event_wait(&inside);
	before = gr_heavy_fence_count();
	gr_rcu_synchronize();
	ASSERT_EQ(gr_heavy_fence_count(), before);
	ASSERT_GE(stats().rescans, 1u);
	gr_event_set(&go_on);
	pthread_join(t, NULL);
	gr_rcu_quiet_end();
}

TEST(once_there_were_quiet_times_nobody_becomes_hot_but_warm)
{
	if (!gr_heavy_fence_available()) {
		SKIP("no process-wide fence here: nobody becomes either");
	}
	become_hot();
	ASSERT_EQ(gr_rcu_self.ctr, GR_RCU_HOT);
	gr_rcu_quiet_begin();
	gr_rcu_quiet_end();
	gr_rcu_park();
	become_hot();
	ASSERT_EQ(gr_rcu_self.ctr, GR_RCU_WARM);
	gr_rcu_read_lock();
	gr_rcu_read_lock();
	gr_rcu_read_unlock();
	gr_rcu_read_unlock();
	ASSERT_EQ(gr_rcu_self.ctr, GR_RCU_WARM);
}

/* ---- who becomes HOT ----------------------------------------------------------------------- */

TEST(a_reader_that_enters_rarely_stays_cold)
{
	if (test_under_tsan()) {
		SKIP("no process-wide fence: nobody becomes HOT");
	}
	for (unsigned i = 0; i < 4; i++) {
		for (unsigned k = 0; k < GR_RCU_COLD_SECTIONS; k++) {
			gr_rcu_read_lock();
			gr_rcu_read_unlock();
		}
		sleep_ms(3); /* a row takes longer than it may */
	}
	ASSERT_EQ(gr_rcu_self.ctr, GR_RCU_COLD);
	gr_rcu_synchronize();
	ASSERT_EQ(stats().entry_fences, 0u);
}

TEST(a_reader_that_enters_often_becomes_hot_by_itself)
{
	if (!gr_heavy_fence_available()) {
		SKIP("no process-wide fence here");
	}
	while (gr_rcu_self.ctr != GR_RCU_HOT) { /* a busy machine needs several rows */
		gr_rcu_read_lock();
		gr_rcu_read_unlock();
	}
}

/* ---- notifiers --------------------------------------------------------------------------- */

struct hurry {
	struct gr_rcu_notifier n;
	bool asked;
	unsigned calls;
};

static struct hurry mine;

static void ask(struct gr_rcu_notifier *n)
{
	struct hurry *h = (struct hurry *)(void *)((char *)n - offsetof(struct hurry, n));

	__atomic_fetch_add(&h->calls, 1, __ATOMIC_RELAXED);
	STORE(&h->asked, true);
}

static void *read_until_asked(void *arg)
{
	(void)arg;
	mine.n.func = ask;
	gr_rcu_add_notifier(&mine.n);
	gr_rcu_read_lock();
	gr_event_set(&inside);
	while (!LOAD(&mine.asked)) {
		sched_yield();
	}
	gr_rcu_read_unlock();
	gr_event_wait(&go_on);
	gr_rcu_remove_notifier(&mine.n);
	return NULL;
}

TEST(a_reader_that_holds_up_a_grace_period_is_asked_to_hurry_after_the_deadline)
{
	uint64_t start;
	pthread_t t;

	gr_rcu_set_deadline_ns(20000000);
	t = spawn(read_until_asked, NULL);
	gr_event_wait(&inside);
	start = now_ns();
	gr_rcu_synchronize();
	ASSERT_GE(now_ns() - start, 20000000u);
	ASSERT_GE(stats().hurries, 1u);
	gr_event_set(&go_on);
	pthread_join(t, NULL);
}

TEST(an_expedited_grace_period_asks_at_once)
{
	pthread_t t;

	gr_rcu_set_deadline_ns(UINT64_MAX);
	t = spawn(read_until_asked, NULL);
	gr_event_wait(&inside);
	gr_rcu_synchronize_expedited();
	ASSERT_EQ(LOAD(&mine.calls), 1u);
	gr_event_set(&go_on);
	pthread_join(t, NULL);
}

static void *synchronizer(void *arg)
{
	(void)arg;
	gr_rcu_synchronize();
	return NULL;
}

TEST(an_expedited_caller_makes_the_grace_period_of_a_patient_one_hurry)
{
	pthread_t t, s;

	gr_rcu_set_deadline_ns(UINT64_MAX);
	t = spawn(read_until_asked, NULL);
	gr_event_wait(&inside);
	s = spawn(synchronizer, NULL);
	while (stats().sleeps == 0) {
		sched_yield();
	}
	ASSERT(!LOAD(&mine.asked));
	gr_rcu_synchronize_expedited();
	pthread_join(s, NULL);
	gr_event_set(&go_on);
	pthread_join(t, NULL);
}

static struct hurry many[3];

static void *add_late(void *arg)
{
	gr_rcu_read_lock();
	gr_event_set(&inside);
	while (stats().sleeps == 0) {
		sched_yield();
	}
	for (int i = 0; i < 3; i++) { /* a driver that sleeps for ever looks up */
		many[i].n.func = ask;
		gr_rcu_add_notifier(&many[i].n);
	}
	gr_rcu_remove_notifier(&many[1].n);
	while (!LOAD(&many[0].asked) || !LOAD(&many[2].asked)) {
		sched_yield();
	}
	gr_rcu_read_unlock();
	return arg; /* the rest goes with the thread */
}

TEST(each_notifier_of_the_thread_is_called_and_those_added_late_too)
{
	unsigned calls;
	pthread_t t;

	gr_rcu_set_deadline_ns(1000000);
	t = spawn(add_late, NULL);
	gr_event_wait(&inside);
	gr_rcu_synchronize();
	pthread_join(t, NULL);
	calls = LOAD(&many[0].calls);
	ASSERT_EQ(gr_rcu_default.notifiers, 0u);
	gr_rcu_remove_notifier(&many[0].n); /* gone already: no effect */
	gr_rcu_synchronize_expedited();
	ASSERT_EQ(LOAD(&many[0].calls), calls);
}

/* The call takes its time; who removes the notifier meanwhile frees it at once. */
static bool in_call, call_over;

static void slow_call(struct gr_rcu_notifier *n)
{
	(void)n;
	STORE(&in_call, true);
	sleep_ms(50);
	STORE(&call_over, true);
}

static void *remove_during_call(void *arg)
{
	struct gr_rcu_notifier *n = calloc(1, sizeof(*n));

	n->func = slow_call;
	gr_rcu_add_notifier(n);
	gr_rcu_read_lock();
	gr_event_set(&inside);
	while (!LOAD(&in_call)) {
		sched_yield();
	}
	gr_rcu_remove_notifier(n);
	ASSERT(LOAD(&call_over));
	free(n);
	gr_rcu_read_unlock();
	return arg;
}

TEST(removing_a_notifier_waits_for_a_call_that_is_running)
{
	pthread_t t = spawn(remove_during_call, NULL);

	gr_event_wait(&inside);
	gr_rcu_synchronize_expedited();
	pthread_join(t, NULL);
}

static void remove_itself(struct gr_rcu_notifier *n)
{
	gr_rcu_remove_notifier(n);
	ask(n);
}

static void *read_with_one_call(void *arg)
{
	mine.n.func = remove_itself;
	gr_rcu_add_notifier(&mine.n);
	gr_rcu_read_lock();
	gr_event_set(&inside);
	while (!LOAD(&mine.asked)) {
		sched_yield();
	}
	gr_rcu_read_unlock();
	return arg;
}

TEST(a_notifier_may_remove_itself)
{
	pthread_t t = spawn(read_with_one_call, NULL);

	gr_event_wait(&inside);
	gr_rcu_synchronize_expedited();
	pthread_join(t, NULL);
	ASSERT_EQ(mine.calls, 1u);
}

/* Adds, reads, removes, ends, as fast as it can, with calls in between. */
static void *notified_life(void *arg)
{
	for (int i = 0; i < 50; i++) {
		struct hurry *h = calloc(1, sizeof(*h));

		h->n.func = ask;
		gr_rcu_add_notifier(&h->n);
		gr_rcu_read_lock();
		usleep(100);
		gr_rcu_read_unlock();
		gr_rcu_remove_notifier(&h->n);
		free(h);
	}
	return arg;
}

static void *synchronize_until_stop(void *arg)
{
	while (!LOAD(&stop)) {
		gr_rcu_synchronize_expedited();
	}
	return arg;
}

TEST(notifiers_come_and_go_while_grace_periods_call_them)
{
	pthread_t s[2], t[3];

	for (int i = 0; i < 2; i++) {
		s[i] = spawn(synchronize_until_stop, NULL);
	}
	for (int round = 0; round < 5; round++) {
		for (int i = 0; i < 3; i++) {
			t[i] = spawn(notified_life, NULL);
		}
		for (int i = 0; i < 3; i++) {
			pthread_join(t[i], NULL);
		}
	}
	STORE(&stop, true);
	for (int i = 0; i < 2; i++) {
		pthread_join(s[i], NULL);
	}
	test_diag("%" PRIu64 " calls", stats().hurries);
}

/* ---- misuse ------------------------------------------------------------------------------- */

static void end_without_begin(void *arg)
{
	(void)arg;
	gr_rcu_quiet_begin();
	gr_rcu_quiet_end();
	gr_rcu_quiet_end();
}

static void add_without_function(void *arg)
{
	(void)arg;
	gr_rcu_add_notifier(&mine.n);
}

static void wait_in_call(struct gr_rcu_notifier *n)
{
	(void)n;
	gr_rcu_synchronize();
}

static void *read_for_ever(void *arg) GR_NO_TSA
{
	mine.n.func = wait_in_call;
	gr_rcu_add_notifier(&mine.n);
	gr_rcu_read_lock();
	gr_event_set(&inside);
	gr_event_wait(&go_on);
	return arg;
}

static void wait_in_notifier(void *arg)
{
	(void)arg;
	(void)spawn(read_for_ever, NULL);
	gr_event_wait(&inside);
	gr_rcu_synchronize_expedited();
}

TEST(misuse_dies_with_a_message)
{
	dies_saying(end_without_begin, "gr_rcu_quiet_end() without gr_rcu_quiet_begin()");
	dies_saying(add_without_function, "gr_rcu_add_notifier() without a function");
	dies_saying(wait_in_notifier, "in a notifier");
}

TEST_MAIN()
