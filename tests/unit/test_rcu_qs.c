/* SPDX-License-Identifier: MIT */
/* Quiescent-state threads, beside ordinary readers. */
#include "rcu_kit.h"
#include "rcu/queue.h"
#include <errno.h>
#include <guestram/rcu_qs.h>
#include <stdlib.h>
#include <unistd.h>

static struct gr_event ready = GR_EVENT_INIT(false), step = GR_EVENT_INIT(false),
		       done = GR_EVENT_INIT(false);
static bool finished, stop;
static struct gr_rcu_reader *of_thread; /* under test */

static void *synchronizer(void *arg)
{
	(void)arg;
	gr_rcu_synchronize();
	STORE(&finished, true);
	return NULL;
}

static void next_step(void)
{
	gr_event_set(&ready);
	gr_event_wait(&step);
	gr_event_reset(&step);
}

static void let_go(void)
{
	gr_event_set(&step);
}

static void wait_ready(void)
{
	gr_event_wait(&ready);
	gr_event_reset(&ready);
}

/* What the thread under test does to end a grace period that waits for it. */
enum way { QUIESCENT, OFFLINE, UNREGISTER, EXIT, SYNCHRONIZE, WAYS };

static void *qs_thread(void *arg)
{
	enum way way = *(enum way *)arg;

	gr_rcu_qs_register_thread();
	of_thread = &gr_rcu_self;
	gr_rcu_qs_read_lock();
	next_step();
	ASSERT(!LOAD(&finished));
	gr_rcu_qs_read_unlock();
	switch (way) {
	case QUIESCENT:
		gr_rcu_quiescent_state();
		break;
	case OFFLINE:
		gr_rcu_thread_offline();
		gr_rcu_thread_offline(); /* no effect */
		break;
	case UNREGISTER:
		gr_rcu_qs_unregister_thread();
		break;
	case SYNCHRONIZE:
		gr_rcu_synchronize();
		break;
	case EXIT:
	case WAYS:
	default:
		return NULL;
	}
	gr_event_wait(&done);
	if (way == OFFLINE) {
		gr_rcu_thread_online();
		gr_rcu_thread_online(); /* no effect */
	}
	return NULL;
}

TEST(a_grace_period_waits_for_a_quiescent_state_thread_until_it_says_or_shows_that_it_is_done)
{
	for (enum way way = QUIESCENT; way < WAYS; way++) {
		pthread_t t, s;

		STORE(&finished, false);
		gr_event_reset(&done);
		t = spawn(qs_thread, &way);
		wait_ready();
		s = spawn(synchronizer, NULL);
		wait_until_asked(of_thread); /* a quiescent state before would not count */
		ASSERT(!LOAD(&finished));
		let_go();
		pthread_join(s, NULL);
		gr_event_set(&done);
		pthread_join(t, NULL);
	}
	ASSERT_EQ(registered_readers(NULL), 0u);
}

static void *blocked_offline(void *arg)
{
	(void)arg;
	gr_rcu_qs_register_thread();
	gr_rcu_thread_offline();
	next_step();
	gr_rcu_thread_online();
	ASSERT(gr_rcu_read_ongoing());
	next_step();
	return NULL;
}

TEST(an_offline_thread_is_not_waited_for_and_one_that_is_back_is)
{
	pthread_t t = spawn(blocked_offline, NULL), s;

	wait_ready();
	gr_rcu_synchronize();
	let_go();
	wait_ready();
	s = spawn(synchronizer, NULL);
	sleep_ms(10);
	ASSERT(!LOAD(&finished));
	let_go();
	pthread_join(t, NULL);
	pthread_join(s, NULL);
}

/* ---- with ordinary sections -------------------------------------------------------------- */

static void *nest(void *arg) TEST_NO_TSA;
static void *nest(void *arg)
{
	(void)arg;
	gr_rcu_qs_register_thread();
	gr_rcu_read_lock();
	gr_rcu_read_lock();
	gr_rcu_read_unlock();
	gr_rcu_read_unlock();
	ASSERT_EQ(gr_rcu_self.ctr, GR_RCU_QS | 1);
	gr_rcu_quiescent_state();
	gr_rcu_thread_offline();
	ASSERT(!gr_rcu_read_ongoing());
	gr_rcu_read_lock(); /* an ordinary one, offline */
	next_step();
	ASSERT(!LOAD(&finished));
	gr_rcu_read_unlock();
	gr_event_wait(&done);
	gr_rcu_qs_unregister_thread();
	gr_rcu_read_lock();
	gr_rcu_read_unlock();
	return NULL;
}

TEST(ordinary_sections_nest_on_such_a_thread_and_count_when_it_is_offline)
{
	pthread_t t = spawn(nest, NULL), s;

	wait_ready();
	s = spawn(synchronizer, NULL);
	sleep_ms(10);
	ASSERT(!LOAD(&finished));
	let_go();
	pthread_join(s, NULL);
	gr_event_set(&done);
	pthread_join(t, NULL);
}

/* ---- waiting ------------------------------------------------------------------------------- */

static uint64_t rounds;

static void count_run(struct gr_rcu_head *head)
{
	free(head);
}

static void *wait_online(void *arg)
{
	int n = *(int *)arg;

	gr_rcu_qs_register_thread();
	for (int i = 0; i < n; i++) {
		gr_rcu_qs_read_lock();
		gr_rcu_qs_read_unlock();
		if (i % 4 == 0) {
			gr_rcu_call(NULL, malloc(sizeof(struct gr_rcu_head)), count_run);
			gr_rcu_barrier(NULL);
		} else if (i % 4 == 1) {
			gr_rcu_cond_synchronize(gr_rcu_get_state());
		} else {
			gr_rcu_synchronize();
		}
		ASSERT_EQ(gr_rcu_self.ctr, GR_RCU_QS | 1);
		__atomic_fetch_add(&rounds, 1, __ATOMIC_RELAXED);
	}
	gr_rcu_qs_unregister_thread();
	return NULL;
}

/* Each would wait for the others for ever if a wait did not count as a quiescent state. */
TEST(threads_that_are_online_may_all_wait_for_each_other)
{
	int n = test_under_tsan() ? 100 : 400;
	pthread_t t[4];

	test_watch_progress(&rounds, 8);
	for (int i = 0; i < 4; i++) {
		t[i] = spawn(wait_online, &n);
	}
	for (int i = 0; i < 4; i++) {
		pthread_join(t[i], NULL);
	}
}

/* ---- calls -----------------------------------------------------------------------------------
 */

static uint64_t freed;

static void count_freed(struct gr_rcu_head *head)
{
	free(head);
	ADD(&freed, 1);
}

/* Only the thread knows whether it is inside a section: to wait offline could end one. */
TEST(a_call_over_the_hard_limit_is_no_quiescent_state)
{
	struct gr_rcu_queue_params params = { .size = sizeof(params), .hard_count = 2 };
	struct gr_rcu_queue *q;
	struct gr_error err;
	uint64_t cookie;

	ASSERT_EQ(gr_rcu_queue_create(&params, &q, &err), 0);
	gr_rcu_qs_register_thread();
	gr_rcu_qs_read_lock();
	cookie = gr_rcu_start_poll();
	for (int i = 0; i < 8; i++) {
		gr_rcu_call(q, malloc(sizeof(struct gr_rcu_head)), count_freed);
	}
	sleep_ms(20);
	ASSERT(!gr_rcu_poll_state(cookie));
	ASSERT_EQ(LOAD(&freed), 0u);
	gr_rcu_qs_read_unlock();
	gr_rcu_qs_unregister_thread();
	gr_rcu_queue_free(q);
	ASSERT_EQ(freed, 8u);
}

static struct gr_rcu_reader *calls_back; /* who runs callbacks */
static struct gr_event in_callback = GR_EVENT_INIT(false), go_on = GR_EVENT_INIT(false);

static void stop_in_section(struct gr_rcu_head *head)
{
	gr_rcu_qs_read_lock();
	calls_back = &gr_rcu_self;
	gr_event_set(&in_callback);
	gr_event_wait(&go_on);
	gr_rcu_qs_read_unlock();
	count_freed(head);
}

TEST(callbacks_of_a_program_of_qsbrs_are_readers)
{
	uint64_t cookie;

	STORE(&gr_rcu_callbacks_are_qs, 1u);
	gr_rcu_call(NULL, malloc(sizeof(struct gr_rcu_head)), stop_in_section);
	gr_event_wait(&in_callback);
	cookie = gr_rcu_start_poll();
	while (LOAD(&calls_back->need_qs) == 0 && !gr_rcu_poll_state(cookie)) {
		sched_yield();
	}
	ASSERT(!gr_rcu_poll_state(cookie));
	gr_event_set(&go_on);
	gr_rcu_barrier(NULL);
	gr_rcu_synchronize();
}

static uint64_t callbacks_cookie;
static bool has_ended; /* its grace period, before the last callback */

static void ask_ourselves(struct gr_rcu_head *head)
{
	callbacks_cookie = gr_rcu_start_poll();
	wait_until_asked(&gr_rcu_self);
	count_freed(head);
}

static void wait_for_it(struct gr_rcu_head *head)
{
	uint64_t end = now_ns() + 15000000000u;

	while (!gr_rcu_poll_state(callbacks_cookie) && now_ns() < end) {
		sched_yield();
	}
	has_ended = gr_rcu_poll_state(callbacks_cookie);
	count_freed(head);
}

TEST(many_callbacks_of_a_program_of_qsbrs_hold_up_nobody)
{
	enum { CALLS = 4 * GR_RCU_SLICE_CALLBACKS };

	STORE(&gr_rcu_callbacks_are_qs, 1u);
	gr_rcu_call(NULL, malloc(sizeof(struct gr_rcu_head)), stop_in_section);
	gr_event_wait(&in_callback); /* the others come in one batch, when it is over */
	for (int i = 0; i < CALLS; i++) {
		gr_rcu_call(NULL, malloc(sizeof(struct gr_rcu_head)),
			    i == GR_RCU_SLICE_CALLBACKS ? ask_ourselves
			    : i == CALLS - 1		? wait_for_it
							: count_freed);
	}
	gr_event_set(&go_on);
	gr_rcu_barrier(NULL);
	ASSERT_EQ(freed, (uint64_t)CALLS + 1);
	ASSERT(has_ended);
}

/* ---- what it costs ----------------------------------------------------------------------------
 */

static void *busy_qs(void *arg)
{
	(void)arg;
	gr_rcu_qs_register_thread();
	gr_event_set(&ready);
	while (!LOAD(&stop)) {
		gr_rcu_qs_read_lock();
		gr_rcu_qs_read_unlock();
		gr_rcu_quiescent_state();
	}
	return NULL;
}

TEST(quiescent_state_threads_cost_no_process_wide_fence_and_each_answers_once)
{
	uint64_t fences = gr_heavy_fence_count();
	pthread_t t = spawn(busy_qs, NULL);
	struct gr_rcu_stats s;

	wait_ready();
	for (int i = 0; i < 200; i++) {
		gr_rcu_synchronize();
	}
	STORE(&stop, true);
	pthread_join(t, NULL);
	s = stats();
	ASSERT_EQ(gr_heavy_fence_count(), fences);
	ASSERT_EQ(s.requests, 200u);
	ASSERT_EQ(s.reports, 200u);
	ASSERT_EQ(s.rescans, 0u);
}

/* What a vCPU in the guest is like: nobody may disturb it, however many grace periods pass. */
static void *in_the_guest(void *arg)
{
	(void)arg;
	gr_rcu_qs_register_thread();
	gr_rcu_thread_offline();
	gr_event_set(&ready);
	gr_event_wait(&done);
	return NULL;
}

TEST(a_vcpu_in_the_guest_is_not_interrupted_by_grace_periods)
{
	uint64_t fences = gr_heavy_fence_count();
	pthread_t t[4];

	for (int i = 0; i < 4; i++) {
		t[i] = spawn(in_the_guest, NULL);
		wait_ready();
	}
	for (int i = 0; i < 1000; i++) {
		gr_rcu_synchronize();
	}
	ASSERT_EQ(stats().sleeps, 0u);
	ASSERT_EQ(gr_heavy_fence_count(), fences);
	gr_event_set(&done);
	for (int i = 0; i < 4; i++) {
		pthread_join(t[i], NULL);
	}
}

/* ---- fork ---------------------------------------------------------------------------------------
 */

static void fork_online(void *arg)
{
	int status;
	pid_t pid;

	(void)arg;
	gr_rcu_qs_register_thread();
	pid = fork();
	ASSERT_EQ(gr_rcu_self.ctr, GR_RCU_QS | 1);
	gr_rcu_synchronize();
	gr_rcu_quiescent_state();
	gr_rcu_qs_unregister_thread();
	if (pid == 0) {
		_exit(0);
	}
	ASSERT_EQ(waitpid(pid, &status, 0), pid);
	ASSERT_EQ(status, 0);
}

TEST(a_fork_child_is_what_its_parent_thread_was)
{
	fork_online(NULL);
}

/* ---- misuse
 * --------------------------------------------------------------------------------------- */

static void quiescent_in_section(void *arg) GR_NO_TSA
{
	(void)arg;
	gr_rcu_qs_register_thread();
	gr_rcu_read_lock();
	gr_rcu_quiescent_state();
}

static void quiescent_offline(void *arg)
{
	(void)arg;
	gr_rcu_qs_register_thread();
	gr_rcu_thread_offline();
	gr_rcu_quiescent_state();
}

static void quiescent_unregistered(void *arg)
{
	(void)arg;
	gr_rcu_quiescent_state();
}

static void offline_in_section(void *arg) GR_NO_TSA
{
	(void)arg;
	gr_rcu_qs_register_thread();
	gr_rcu_read_lock();
	gr_rcu_thread_offline();
}

static void online_in_section(void *arg) GR_NO_TSA
{
	(void)arg;
	gr_rcu_qs_register_thread();
	gr_rcu_thread_offline();
	gr_rcu_read_lock();
	gr_rcu_thread_online();
}

static void offline_unregistered(void *arg)
{
	(void)arg;
	gr_rcu_thread_offline();
}

static void register_in_section(void *arg) GR_NO_TSA
{
	(void)arg;
	gr_rcu_read_lock();
	gr_rcu_qs_register_thread();
}

static void register_twice(void *arg)
{
	(void)arg;
	gr_rcu_qs_register_thread();
	gr_rcu_qs_register_thread();
}

static void unregister_unregistered(void *arg)
{
	(void)arg;
	gr_rcu_qs_unregister_thread();
}

static void synchronize_in_section(void *arg) GR_NO_TSA
{
	(void)arg;
	gr_rcu_qs_register_thread();
	gr_rcu_read_lock();
	gr_rcu_synchronize();
}

static void barrier_in_section(void *arg) GR_NO_TSA
{
	(void)arg;
	gr_rcu_qs_register_thread();
	gr_rcu_read_lock();
	gr_rcu_barrier(NULL);
}

static void unlock_without_lock(void *arg) GR_NO_TSA
{
	(void)arg;
	gr_rcu_qs_register_thread();
	gr_rcu_read_unlock();
}

static void *end_in_section(void *arg) GR_NO_TSA
{
	gr_rcu_qs_register_thread();
	gr_rcu_read_lock();
	return arg;
}

static void thread_ends_in_section(void *arg)
{
	pthread_join(spawn(end_in_section, arg), NULL);
}

TEST(misuse_dies_with_a_message)
{
	dies_saying(quiescent_in_section, "gr_rcu_quiescent_state() inside a read-side section");
	dies_saying(quiescent_offline, "while the thread is offline");
	dies_saying(quiescent_unregistered, "not registered for quiescent states");
	dies_saying(offline_in_section, "gr_rcu_thread_offline() inside a read-side section");
	dies_saying(online_in_section, "gr_rcu_thread_online() inside a read-side section");
	dies_saying(offline_unregistered, "not registered for quiescent states");
	dies_saying(register_in_section, "gr_rcu_qs_register_thread() inside a read-side section");
	dies_saying(register_twice, "registered already");
	dies_saying(unregister_unregistered, "not registered for quiescent states");
	dies_saying(synchronize_in_section, "gr_rcu_synchronize() inside a read-side section");
	dies_saying(barrier_in_section, "gr_rcu_barrier() inside a read-side section");
	dies_saying(unlock_without_lock, "gr_rcu_read_unlock() without gr_rcu_read_lock()");
	dies_saying(thread_ends_in_section, "ends inside a read-side section");
}

TEST_MAIN()
