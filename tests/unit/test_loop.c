/* SPDX-License-Identifier: MIT */
/* The loop and descriptors: what is ready is called, what is wrong is refused. */
#include "loop_kit.h"
#include <errno.h>
#include <guestram/rcu_control.h>
#include <guestram/rcu_qs.h>
#include <pthread.h>
#include <stdlib.h>
#include <sys/wait.h>

#ifdef GR_PLATFORM_WINDOWS /* not told from what is not open */
#	define NO_PLAIN_FILES -EBADF
#else
#	define NO_PLAIN_FILES -EPERM
#endif

TEST(what_can_be_read_is_read_and_what_can_be_written_is_written)
{
	struct gr_loop *loop = make_loop();
	struct peer a, b;

	peer_open(&a, loop);
	peer_open(&b, loop);
	peer_add(&a, GR_LOOP_READ);
	peer_add(&b, GR_LOOP_READ);
	ASSERT_EQ(step(loop, 0), 0);
	peer_say(&a);
	ASSERT_EQ(step(loop, GR_LOOP_NEVER), 1);
	ASSERT_EQ(a.reads, 1u);
	ASSERT_EQ(b.reads, 0u);
	ASSERT_EQ(gr_loop_set_events(b.handler, GR_LOOP_READ | GR_LOOP_WRITE, NULL), 0);
	ASSERT_EQ(step(loop, GR_LOOP_NEVER), 1);
	ASSERT_EQ(b.writes, 1u);
	peer_say(&b);
	ASSERT_EQ(step(loop, GR_LOOP_NEVER), 2);
	ASSERT_EQ(b.reads, 1u);
	ASSERT_EQ(b.writes, 2u);
	ASSERT_EQ(gr_loop_set_events(b.handler, GR_LOOP_READ, NULL), 0);
	ASSERT_EQ(step(loop, 0), 0);
	ASSERT_EQ(a.writes, 0u);
	peer_close(&a);
	peer_close(&b);
	gr_loop_free(loop);
}

TEST(what_is_left_unread_is_called_again)
{
	struct gr_loop *loop = make_loop();
	struct peer a;

	peer_open(&a, loop);
	peer_add(&a, GR_LOOP_READ);
	a.keep = true;
	peer_say(&a);
	ASSERT_EQ(step(loop, GR_LOOP_NEVER), 1);
	ASSERT_EQ(step(loop, GR_LOOP_NEVER), 1);
	peer_close(&a);
	gr_loop_free(loop);
}

TEST(a_hang_up_counts_as_what_is_wanted_and_as_nothing_if_nothing_is)
{
	struct gr_loop *loop = make_loop();
	struct peer a, b;

	peer_open(&a, loop);
	peer_open(&b, loop);
	peer_add(&a, GR_LOOP_READ);
	peer_add(&b, 0);
	test_socket_close(a.other);
	test_socket_close(b.other);
	ASSERT_EQ(step(loop, GR_LOOP_NEVER), 1);
	ASSERT_EQ(a.reads, 1u);
	ASSERT_EQ(gr_loop_set_events(a.handler, 0, NULL), 0);
	/* Nothing to call, and no busy loop: the time passes. */
	uint64_t began = gr_loop_now_ns();
	ASSERT_EQ(step(loop, 20 * MS), 0);
	ASSERT_GE(gr_loop_now_ns() - began, 20u * MS);
	ASSERT_EQ(gr_loop_set_events(b.handler, GR_LOOP_WRITE, NULL), 0);
	ASSERT_EQ(step(loop, GR_LOOP_NEVER), 1);
	ASSERT_EQ(b.writes, 1u);
	ASSERT_EQ(b.reads, 0u);
	a.other = b.other = -1;
	peer_close(&a);
	peer_close(&b);
	gr_loop_free(loop);
}

static void add_and_change_while_it_sleeps(void)
{
	struct runner runner;
	struct peer a;
	static uint64_t progress;

	start(&runner);
	test_watch_progress(&progress, 20);
	for (int i = 0; i < 20; i++) {
		peer_open(&a, runner.loop);
		peer_say(&a);
		await_sleep(&runner);
		peer_add(&a, GR_LOOP_READ);
		await(&a.reads, 1);
		await_sleep(&runner);
		ASSERT_EQ(gr_loop_set_events(a.handler, GR_LOOP_READ | GR_LOOP_WRITE, NULL), 0);
		await(&a.writes, 1);
		ASSERT_EQ(gr_loop_set_events(a.handler, GR_LOOP_READ, NULL), 0);
		peer_close(&a);
		ADD(&progress, 1);
	}
	stop(&runner);
	gr_loop_free(runner.loop);
}

TEST(a_sleeping_loop_hears_at_once_of_what_is_added_and_changed)
{
	add_and_change_while_it_sleeps();
}

TEST(a_sleeping_loop_that_polls_hears_at_once_of_what_is_added_and_changed)
{
	ASSERT_EQ(setenv("GR_LOOP_BACKEND", "poll", 1), 0);
	add_and_change_while_it_sleeps();
}

TEST(bad_descriptors_and_descriptions_are_refused_with_the_reason)
{
	struct gr_loop *loop = make_loop();
	struct gr_loop_params params = { .size = 3 };
	struct gr_loop_fd_desc desc = { .size = sizeof(desc), .fd = -1, .read = peer_read };
	struct gr_loop_timer_desc timer = { .size = sizeof(timer) };
	struct gr_loop_handler *h = NULL;
	struct gr_error err;
	struct peer a;

	ASSERT_EQ(gr_loop_create(&params, &loop, &err), -EINVAL);
	ASSERT_HAS(err.msg, "3 bytes");
	ASSERT_EQ(gr_loop_add_fd(loop, &desc, &h, &err), -EBADF);
	ASSERT_HAS(err.msg, "fd -1");
	desc.fd = 999;
	ASSERT_EQ(gr_loop_add_fd(loop, &desc, &h, &err), -EBADF);
	ASSERT_HAS(err.msg, "fd 999");
	desc.events = GR_LOOP_READ;
	ASSERT_EQ(gr_loop_add_fd(loop, &desc, &h, &err), -EBADF);
	desc.events = GR_LOOP_WRITE;
	ASSERT_EQ(gr_loop_add_fd(loop, &desc, &h, &err), -EINVAL);
	ASSERT_HAS(err.msg, "no function");
	desc.events = 8;
	ASSERT_EQ(gr_loop_add_fd(loop, &desc, &h, &err), -EINVAL);
	ASSERT_HAS(err.msg, "unknown events");
	desc.size = 5;
	ASSERT_EQ(gr_loop_add_fd(loop, &desc, &h, &err), -EINVAL);
	ASSERT_HAS(err.msg, "5 bytes");
	desc = (struct gr_loop_fd_desc){ .size = sizeof(desc),
					 .fd = fileno(tmpfile()),
					 .events = GR_LOOP_READ,
					 .read = peer_read };
	ASSERT_EQ(gr_loop_add_fd(loop, &desc, &h, &err), NO_PLAIN_FILES);
	ASSERT_EQ(gr_loop_add_timer(loop, &timer, &h, &err), -EINVAL);
	ASSERT_HAS(err.msg, "without function");
	ASSERT_EQ(gr_loop_add_timer(loop, &timer, &h, NULL), -EINVAL);
	ASSERT_PTR_EQ(h, NULL);
	peer_open(&a, loop);
	peer_add(&a, 0);
	ASSERT_EQ(peer_try(&a, GR_LOOP_READ, &err), -EEXIST);
	ASSERT_EQ(gr_loop_set_events(a.handler, 16, &err), -EINVAL);
	peer_close(&a);
	gr_loop_free(loop);
	gr_loop_free(NULL);
}

static void step_in_handler(struct peer *peer)
{
	(void)!gr_loop_step(peer->loop, 0, NULL);
}

static void *step_elsewhere(void *opaque)
{
	(void)!gr_loop_step(opaque, 0, NULL);
	return NULL;
}

static void step_twice(struct peer *peer)
{
	pthread_t thread;

	ASSERT_EQ(pthread_create(&thread, NULL, step_elsewhere, peer->loop), 0);
	pthread_join(thread, NULL);
}

static void remove_twice(struct peer *peer)
{
	gr_loop_del(peer->handler);
	gr_loop_del(peer->handler);
}

static void change_removed(struct peer *peer)
{
	gr_loop_del(peer->handler);
	(void)!gr_loop_set_events(peer->handler, 0, NULL);
}

static void sync_in_section(struct peer *peer) TEST_NO_TSA;

static void step_in_section(struct peer *peer) TEST_NO_TSA;

static void sync_in_section(struct peer *peer)
{
	gr_rcu_read_lock();
	gr_loop_del_sync(peer->handler);
}

static void step_in_section(struct peer *peer)
{
	(void)peer;
	gr_rcu_read_lock();
	(void)!gr_loop_step(make_loop(), 0, NULL);
}

static void free_with_handlers(struct peer *peer)
{
	struct gr_loop *loop = make_loop();
	struct peer a;

	(void)peer;
	peer_open(&a, loop);
	peer_add(&a, 0);
	gr_loop_free(loop);
}

static void free_in_handler(struct peer *peer)
{
	gr_loop_free(peer->loop);
}

static void set_a_descriptor(struct peer *peer)
{
	gr_loop_set_timer(peer->handler, 0);
}

static void misuse(void *opaque)
{
	struct gr_loop *loop = make_loop();
	struct peer a;

	peer_open(&a, loop);
	a.then = *(void (**)(struct peer *))opaque;
	peer_say(&a);
	peer_add(&a, GR_LOOP_READ);
	(void)step(loop, GR_LOOP_NEVER);
}

TEST(misuse_dies_and_says_what)
{
	static const struct {
		void (*what)(struct peer *peer);
		const char *text;
	} cases[] = {
		{ step_in_handler, "gr_loop_step() in a handler of the same loop" },
		{ step_twice, "gr_loop_step() while another thread runs the loop" },
		{ remove_twice, "is removed twice" },
		{ change_removed, "that was removed" },
		{ sync_in_section, "gr_loop_del_sync() inside a read-side section" },
		{ step_in_section, "gr_loop_step() inside a read-side section" },
		{ free_with_handlers, "has 1 handlers left" },
		{ free_in_handler, "gr_loop_free() in a handler of the same loop" },
		{ set_a_descriptor, "gr_loop_set_timer() of fd" },
	};
	char text[400];

	for (size_t i = 0; i < GR_ARRAY_SIZE(cases); i++) {
		void (*what)(struct peer * peer) = cases[i].what;
		int status = test_in_child(misuse, &what, text, sizeof(text));

		ASSERT_HAS(text, cases[i].text);
		ASSERT(WIFSIGNALED(status));
	}
}

/* Several loops: a ball goes round, by a notifier, a socket and a deferred call. */
enum { PLAYERS = 3, ROUNDS = 300 };

static struct player {
	struct runner runner;
	struct gr_notifier notifier;
	struct gr_loop_handler *handler;
	struct gr_loop_deferred call;
	struct player *next;
	uint64_t turns;
} players[PLAYERS];

static void pass_on(struct gr_loop_deferred *deferred)
{
	struct player *player = gr_container_of(deferred, struct player, call);

	ADD(&player->turns, 1);
	if (player != players || LOAD(&player->turns) < ROUNDS) {
		gr_notifier_set(&player->next->notifier);
	}
}

static void take_ball(void *opaque)
{
	struct player *player = opaque;

	ASSERT(gr_notifier_clear(&player->notifier));
	gr_loop_defer(player->next->runner.loop, &player->call, pass_on);
}

TEST(several_loops_run_side_by_side)
{
	for (int i = 0; i < PLAYERS; i++) {
		struct player *player = &players[i];
		struct gr_loop_fd_desc desc = { .size = sizeof(desc),
						.events = GR_LOOP_READ,
						.read = take_ball,
						.opaque = player };

		player->next = &players[(i + 1) % PLAYERS];
		start(&player->runner);
		ASSERT_EQ(gr_notifier_init(&player->notifier, NULL), 0);
		desc.fd = gr_notifier_fd(&player->notifier);
		ASSERT_EQ(gr_loop_add_fd(player->runner.loop, &desc, &player->handler, NULL), 0);
	}
	test_watch_progress(&players[1].turns, 20);
	gr_notifier_set(&players[0].notifier);
	await(&players[0].turns, ROUNDS);
	for (int i = 0; i < PLAYERS; i++) {
		stop(&players[i].runner);
		gr_loop_del(players[i].handler);
		gr_loop_free(players[i].runner.loop);
	}
	for (int i = 0; i < PLAYERS; i++) {
		gr_notifier_destroy(&players[i].notifier);
	}
}

static void many_sections(struct peer *peer)
{
	(void)peer;
	for (int i = 0; i < 2000; i++) {
		gr_rcu_read_lock();
		gr_rcu_read_unlock();
	}
}

TEST(no_grace_period_disturbs_a_sleeping_loop)
{
	struct gr_rcu_stats before, after;
	struct runner runner;
	struct peer a;

	start(&runner);
	peer_open(&a, runner.loop);
	a.then = many_sections; /* its thread becomes HOT, where there is such a thing */
	peer_add(&a, GR_LOOP_READ);
	peer_say(&a);
	await(&a.reads, 1);
	await_sleep(&runner);
	gr_rcu_stats_get(NULL, &before);
	for (int i = 0; i < 100; i++) {
		gr_rcu_synchronize();
	}
	gr_rcu_stats_get(NULL, &after);
	ASSERT_GE(after.grace_periods, before.grace_periods + 100);
	ASSERT_EQ(after.entry_fences, before.entry_fences);
	stop(&runner);
	peer_close(&a);
	gr_loop_free(runner.loop);
}

static void *run_loop_as_qs_thread(void *opaque)
{
	gr_rcu_qs_register_thread();
	(void)run_loop(opaque);
	gr_rcu_quiescent_state(); /* dies unless it is online again */
	gr_rcu_qs_unregister_thread();
	return NULL;
}

static void synchronize(struct peer *peer)
{
	(void)peer;
	gr_rcu_synchronize();
}

TEST(a_quiescent_state_thread_may_run_a_loop_and_is_offline_while_it_sleeps)
{
	static uint64_t progress;
	struct runner runner;
	struct peer a;

	runner.loop = make_loop();
	ASSERT_EQ(pthread_create(&runner.thread, NULL, run_loop_as_qs_thread, &runner), 0);
	test_watch_progress(&progress, 20);
	peer_open(&a, runner.loop);
	a.then = synchronize;
	peer_add(&a, GR_LOOP_READ);
	for (uint64_t i = 1; i <= 100; i++) {
		await_sleep(&runner);
		gr_rcu_synchronize(); /* returns, though the loop sleeps on */
		peer_say(&a);
		await(&a.reads, i);
		ADD(&progress, 1);
	}
	stop(&runner);
	gr_rcu_qs_register_thread();
	peer_close(&a); /* with gr_loop_del_sync() */
	gr_rcu_qs_unregister_thread();
	gr_loop_free(runner.loop);
}

TEST_MAIN()
