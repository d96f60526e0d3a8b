/* SPDX-License-Identifier: MIT */
/* Timers, deferred calls, stops and notifiers: what a loop does without a descriptor of the caller.
 */
#include "base/wake_fd.h"
#include "loop_kit.h"
#include <pthread.h>
#include <signal.h>

/* Timers */

struct clock {
	struct gr_loop_handler *handler;
	struct gr_loop *loop;
	uint64_t deadline, fired, released;
	struct gr_loop_handler *victim;
	bool again;
};

static uint64_t last_deadline;

static void clock_fire(void *opaque)
{
	struct clock *clock = opaque;

	ASSERT_GE(gr_loop_now_ns(), clock->deadline);
	ASSERT_GE(clock->deadline, last_deadline);
	last_deadline = clock->deadline;
	ADD(&clock->fired, 1);
	if (clock->victim) {
		gr_loop_set_timer(clock->victim, GR_LOOP_NEVER);
	}
	if (clock->again) {
		gr_loop_set_timer(clock->handler, 0);
	}
}

static void clock_release(void *opaque)
{
	struct clock *clock = opaque;

	ADD(&clock->released, 1);
}

static void clock_add(struct clock *clock, struct gr_loop *loop)
{
	const struct gr_loop_timer_desc desc = {
		.size = sizeof(desc), .fire = clock_fire, .release = clock_release, .opaque = clock
	};

	*clock = (struct clock){ .loop = loop };
	ASSERT_EQ(gr_loop_add_timer(loop, &desc, &clock->handler, NULL), 0);
}

static void clock_set(struct clock *clock, uint64_t deadline)
{
	clock->deadline = deadline;
	gr_loop_set_timer(clock->handler, deadline);
}

/* Anew, never, or it is removed. */
static void set_somehow(struct clock *clock, uint64_t from, uint64_t *seed)
{
	if (!clock->handler) {
		return;
	}
	if (test_rand(seed) % 200 == 0) {
		gr_loop_del(clock->handler);
		clock->handler = NULL;
		clock->deadline = GR_LOOP_NEVER;
	} else if (test_rand(seed) % 4 == 0) {
		clock_set(clock, GR_LOOP_NEVER);
	} else {
		clock_set(clock, from + test_rand(seed) % (50 * MS));
	}
}

TEST(timers_fire_once_in_the_order_of_their_deadlines_and_never_early)
{
	enum { CLOCKS = 200 };
	static struct clock clocks[CLOCKS];
	struct gr_loop *loop = make_loop();
	uint64_t seed = test_seed(), lead = 25 * MS, first;
	int expected = 0, fired = 0;

	for (int i = 0; i < CLOCKS; i++) {
		clock_add(&clocks[i], loop);
	}
	/*
	 * Set, set anew, cancel, remove: in any order. With all deadlines ahead, since one that is
	 * set when it is past counts from then; a slow machine gets more time.
	 */
	do {
		lead *= 4;
		first = gr_loop_now_ns() + lead;
		for (int i = 0; i < CLOCKS; i++) {
			if (clocks[i].handler) {
				clock_set(&clocks[i], GR_LOOP_NEVER);
			}
		}
		for (int i = 0; i < 20 * CLOCKS; i++) {
			set_somehow(&clocks[test_rand(&seed) % CLOCKS], first, &seed);
		}
	} while (gr_loop_now_ns() >= first);
	for (int i = 0; i < CLOCKS; i++) {
		expected += clocks[i].deadline != GR_LOOP_NEVER && clocks[i].deadline != 0;
	}
	ASSERT_GT(expected, CLOCKS / 4);
	while (fired < expected) {
		fired += step(loop, GR_LOOP_NEVER);
	}
	ASSERT_EQ(step(loop, 5 * MS), 0);
	for (int i = 0; i < CLOCKS; i++) {
		bool due = clocks[i].deadline != GR_LOOP_NEVER && clocks[i].deadline != 0;

		ASSERT_EQ(clocks[i].fired, due ? 1u : 0u);
		if (clocks[i].handler) {
			gr_loop_del(clocks[i].handler);
		}
	}
	gr_rcu_barrier(NULL);
	for (int i = 0; i < CLOCKS; i++) {
		ASSERT_EQ(LOAD(&clocks[i].released), 1u);
	}
	gr_loop_free(loop);
}

TEST(a_due_timer_that_another_cancelled_in_the_same_round_does_not_fire)
{
	struct gr_loop *loop = make_loop();
	uint64_t now = gr_loop_now_ns();
	struct clock a, b;

	clock_add(&a, loop);
	clock_add(&b, loop);
	a.victim = b.handler;
	clock_set(&a, now + MS);
	clock_set(&b, now + 2 * MS);
	sleep_ms(5);
	ASSERT_EQ(step(loop, GR_LOOP_NEVER), 1);
	ASSERT_EQ(a.fired, 1u);
	ASSERT_EQ(b.fired, 0u);
	gr_loop_del(a.handler);
	gr_loop_del(b.handler);
	gr_rcu_barrier(NULL);
	gr_loop_free(loop);
}

TEST(a_timer_that_is_always_due_does_not_keep_others_from_their_turn)
{
	struct gr_loop *loop = make_loop();
	struct clock a, b;
	struct peer p;

	peer_open(&p, loop);
	p.keep = true;
	peer_add(&p, GR_LOOP_READ);
	peer_say(&p);
	clock_add(&a, loop);
	clock_add(&b, loop);
	a.again = true;
	clock_set(&a, 0);
	clock_set(&b, 0);
	last_deadline = 0;
	for (uint64_t round = 1; round <= 10; round++) {
		ASSERT_LE(step(loop, GR_LOOP_NEVER), 3);
		ASSERT_EQ(p.reads, round);
	}
	ASSERT_GE(a.fired, 5u);
	ASSERT_EQ(b.fired, 1u);
	gr_loop_del(a.handler);
	gr_loop_del(b.handler);
	gr_rcu_barrier(NULL);
	peer_close(&p);
	gr_loop_free(loop);
}

TEST(an_earlier_deadline_wakes_a_loop_that_sleeps_for_a_later_one)
{
	struct runner runner;
	struct clock a, b;
	static uint64_t progress;

	start(&runner);
	test_watch_progress(&progress, 20);
	clock_add(&a, runner.loop);
	clock_add(&b, runner.loop);
	clock_set(&a, gr_loop_now_ns() + UINT64_C(3600000) * MS);
	for (uint64_t i = 1; i <= 20; i++) {
		await_sleep(&runner);
		STORE(&last_deadline, 0);
		clock_set(&b, gr_loop_now_ns() + MS);
		await(&b.fired, i);
		ADD(&progress, 1);
	}
	ASSERT_EQ(LOAD(&a.fired), 0u);
	gr_loop_del_sync(a.handler);
	gr_loop_del_sync(b.handler);
	gr_rcu_barrier(NULL);
	stop(&runner);
	gr_loop_free(runner.loop);
}

/* Deferred calls */

struct call {
	struct gr_loop_deferred deferred;
	struct gr_loop *loop;
	uint64_t number, times;
};

static uint64_t calls_made;

static void call_me(struct gr_loop_deferred *deferred)
{
	struct call *call = gr_container_of(deferred, struct call, deferred);

	ASSERT_EQ(call->number, LOAD(&calls_made) % 8);
	ADD(&calls_made, 1);
	if (--call->times > 0) {
		gr_loop_defer(call->loop, deferred, call_me);
	}
}

TEST(deferred_calls_come_in_order_and_may_ask_again)
{
	struct gr_loop *loop = make_loop();
	struct call calls[8];

	for (uint64_t i = 0; i < 8; i++) {
		calls[i] = (struct call){ .loop = loop, .number = i, .times = 3 };
		gr_loop_defer(loop, &calls[i].deferred, call_me);
	}
	for (uint64_t round = 1; round <= 3; round++) {
		ASSERT_EQ(step(loop, GR_LOOP_NEVER), 8); /* those that ask again: next round */
		ASSERT_EQ(LOAD(&calls_made), 8 * round);
	}
	ASSERT_EQ(step(loop, 0), 0);
	for (uint64_t i = 0; i < 8; i++) {
		calls[i].times = 1;
		gr_loop_defer(loop, &calls[i].deferred, call_me);
	}
	gr_loop_free(loop);
	ASSERT_EQ(LOAD(&calls_made), 32u);
}

static struct gr_loop *signalled_loop;

static struct gr_loop_deferred signalled;

static uint64_t signals_served;

static void serve_signal(struct gr_loop_deferred *deferred)
{
	(void)deferred;
	ADD(&signals_served, 1);
}

static void on_signal(int sig)
{
	(void)sig;
	gr_loop_defer(LOAD(&signalled_loop), &signalled, serve_signal);
}

TEST(a_signal_handler_can_defer_a_call_on_the_loops_own_thread)
{
	struct sigaction act = { .sa_handler = on_signal };
	struct runner runner;
	static uint64_t progress;

	ASSERT_EQ(sigaction(SIGUSR1, &act, NULL), 0);
	start(&runner);
	STORE(&signalled_loop, runner.loop);
	test_watch_progress(&progress, 20);
	for (uint64_t i = 1; i <= 200; i++) {
		if (i % 10 == 0) {
			await_sleep(&runner); /* else: anywhere in the round */
		}
		ASSERT_EQ(pthread_kill(runner.thread, SIGUSR1), 0);
		await(&signals_served, i);
		ADD(&progress, 1);
	}
	stop(&runner);
	gr_loop_free(runner.loop);
}

TEST(stop_ends_the_present_or_the_next_run)
{
	struct gr_loop *loop = make_loop();
	struct runner runner;

	gr_loop_stop(loop);
	ASSERT_EQ(gr_loop_run(loop, NULL), 0);
	gr_loop_stop(loop);
	ASSERT_EQ(step(loop, GR_LOOP_NEVER), 0);
	gr_loop_free(loop);
	for (int i = 0; i < 50; i++) {
		start(&runner);
		if (i % 2) {
			await_sleep(&runner);
		}
		stop(&runner);
		gr_loop_free(runner.loop);
	}
}

TEST(a_notifier_is_set_once_however_often_and_cleared_once)
{
	struct gr_notifier n;

	ASSERT_EQ(gr_notifier_init(&n, NULL), 0);
	ASSERT(!test_is_readable(gr_notifier_fd(&n)));
	ASSERT(!gr_notifier_clear(&n));
	for (int i = 0; i < 100000; i++) { /* a pipe that each one wrote to would be full */
		gr_notifier_set(&n);
	}
	ASSERT(test_is_readable(gr_notifier_fd(&n)));
	ASSERT(gr_notifier_clear(&n));
	ASSERT(!test_is_readable(gr_notifier_fd(&n)));
	ASSERT(!gr_notifier_clear(&n));
	gr_wake_fd_ring(n.write_fd); /* somebody else */
	ASSERT(gr_notifier_clear(&n));
	gr_notifier_set(&n);
	ASSERT(test_is_readable(gr_notifier_fd(&n)));
	gr_notifier_destroy(&n);
}

TEST_MAIN()
