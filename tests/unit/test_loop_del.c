/* SPDX-License-Identifier: MIT */
/* Handlers that go: their own, others and those of closed descriptors, while calls are in progress.
 */
#include "loop_kit.h"
#include <errno.h>
#include <fcntl.h>
#include <guestram/event.h>
#include <unistd.h>

static void remove_self(struct peer *peer)
{
	gr_loop_del(peer->handler);
	ASSERT_EQ(LOAD(&peer->released), 0u); /* we are using it */
}

TEST(a_handler_may_remove_itself_and_is_released_after_its_call)
{
	struct gr_loop *loop = make_loop();
	struct peer a;

	peer_open(&a, loop);
	peer_add(&a, GR_LOOP_READ | GR_LOOP_WRITE);
	a.then = remove_self;
	peer_say(&a);
	while (a.reads == 0) {
		(void)step(loop, GR_LOOP_NEVER);
	}
	gr_rcu_barrier(NULL);
	ASSERT_EQ(LOAD(&a.released), 1u);
	peer_say(&a);
	ASSERT_EQ(step(loop, 5 * MS), 0);
	ASSERT_EQ(a.reads, 1u);
	gr_loop_free(loop);
}

static void remove_victim(struct peer *peer)
{
	if (peer->victim) {
		gr_loop_del(peer->victim->handler);
		peer->victim->victim = NULL;
	}
}

TEST(a_handler_that_another_removed_in_the_same_round_is_not_called)
{
	struct gr_loop *loop = make_loop();
	struct peer a, b;

	peer_open(&a, loop);
	peer_open(&b, loop);
	peer_add(&a, GR_LOOP_READ);
	peer_add(&b, GR_LOOP_READ);
	a.then = b.then = remove_victim;
	a.victim = &b;
	b.victim = &a;
	peer_say(&a);
	peer_say(&b);
	ASSERT_EQ(step(loop, GR_LOOP_NEVER), 1);
	ASSERT_EQ(a.reads + b.reads, 1u);
	peer_say(a.reads ? &b : &a);
	ASSERT_EQ(step(loop, 0), 0);
	gr_loop_del(a.reads ? a.handler : b.handler);
	gr_rcu_barrier(NULL);
	ASSERT_EQ(LOAD(&a.released), 1u);
	ASSERT_EQ(LOAD(&b.released), 1u);
	gr_loop_free(loop);
}

static struct peer reborn;

/* Remove the other handler, close its descriptor, and have the number again with another file. */
static void replace_victim(struct peer *peer)
{
	struct peer *victim = peer->victim;
	int fd[2];

	if (victim) {
		gr_loop_del(victim->handler);
		reborn = (struct peer){ .loop = peer->loop };
		test_socket_pair_at(victim->fd, fd);
		reborn.fd = fd[0];
		reborn.other = fd[1];
		peer_add(&reborn, GR_LOOP_READ);
		victim->victim = peer->victim = NULL;
	}
}

TEST(an_event_of_a_closed_descriptor_is_not_given_to_the_next_with_its_number)
{
	struct gr_loop *loop = make_loop();
	struct peer a, b, *survivor;

	peer_open(&a, loop);
	peer_open(&b, loop);
	peer_add(&a, GR_LOOP_READ);
	peer_add(&b, GR_LOOP_READ);
	a.then = b.then = replace_victim;
	a.victim = &b;
	b.victim = &a;
	peer_say(&a);
	peer_say(&b);
	ASSERT_EQ(step(loop, GR_LOOP_NEVER), 1); /* both were ready: the second one is stale */
	ASSERT_EQ(a.reads + b.reads, 1u);
	ASSERT_EQ(reborn.reads, 0u);
	peer_say(&reborn);
	ASSERT_EQ(step(loop, GR_LOOP_NEVER), 1);
	ASSERT_EQ(reborn.reads, 1u);
	survivor = a.reads ? &a : &b;
	gr_loop_del(survivor->handler);
	gr_rcu_barrier(NULL);
	peer_close(&reborn);
	gr_loop_free(loop);
}

TEST(a_descriptor_closed_too_early_harms_nobody_else)
{
	struct gr_loop *loop = make_loop();
	struct gr_error err;
	struct peer a, b;
	int twin, same;
	uint64_t began;

	peer_open(&a, loop);
	peer_open(&b, loop);
	peer_add(&a, GR_LOOP_READ);
	peer_add(&b, GR_LOOP_READ);
	twin = fcntl(a.fd, F_DUPFD,
		     0); /* as a child of fork() would have it: the open file lives on */
	peer_say(&a);
	close(a.fd);
	/* Its number belongs to the old handler until that is removed. */
	ASSERT_EQ(fcntl(b.other, F_DUPFD, a.fd), a.fd);
	ASSERT_EQ(peer_try(&a, GR_LOOP_READ, &err), -EEXIST);
	ASSERT_HAS(err.msg, "has a handler already");
	gr_loop_del(a.handler); /* somebody else has the number by now, and keeps it */
	/* The kernel goes on reporting what nobody can name: it must not keep us busy. */
	(void)step(loop, 0);
	began = gr_loop_now_ns();
	ASSERT_EQ(step(loop, 20 * MS), 0);
	ASSERT_GE(gr_loop_now_ns() - began, 20u * MS);
	peer_say(&b);
	ASSERT_EQ(step(loop, GR_LOOP_NEVER), 1);
	ASSERT_EQ(b.reads, 1u);
	/* The old file with its old number again, before the loop has noticed anything. */
	same = dup2(twin, a.fd);
	peer_add(&a, GR_LOOP_READ);
	close(same);
	gr_loop_del(a.handler);
	ASSERT_EQ(dup2(twin, same), same);
	peer_add(&a, GR_LOOP_READ);
	ASSERT_EQ(step(loop, GR_LOOP_NEVER), 1);
	gr_loop_del(a.handler);
	close(twin);
	peer_close(&b);
	gr_loop_free(loop);
}

TEST(a_closed_descriptor_with_a_handler_does_not_keep_the_loop_busy)
{
	struct gr_loop *loop = make_loop();
	struct peer a;
	uint64_t began;

	peer_open(&a, loop);
	peer_add(&a, GR_LOOP_READ);
	test_socket_close(a.fd);
	(void)step(loop, 0);
	began = gr_loop_now_ns();
	ASSERT_EQ(step(loop, 20 * MS), 0);
	ASSERT_GE(gr_loop_now_ns() - began, 20u * MS);
	ASSERT_LT(gr_loop_set_events(a.handler, GR_LOOP_READ | GR_LOOP_WRITE, NULL), 0);
	gr_loop_del(a.handler);
	gr_rcu_barrier(NULL);
	gr_loop_free(loop);
}

TEST(release_waits_for_sections_that_were_open_at_the_removal)
{
	struct gr_loop *loop = make_loop();
	struct peer a;

	peer_open(&a, loop);
	peer_add(&a, GR_LOOP_READ);
	gr_rcu_read_lock();
	gr_loop_del(a.handler);
	sleep_ms(20);
	ASSERT_EQ(LOAD(&a.released), 0u);
	gr_rcu_read_unlock();
	gr_rcu_barrier(NULL);
	ASSERT_EQ(LOAD(&a.released), 1u);
	gr_loop_free(loop);
}

static struct gr_event entered = GR_EVENT_INIT(false), go_on = GR_EVENT_INIT(false);

static uint64_t ended;

static void stay(struct peer *peer)
{
	(void)peer;
	gr_event_set(&entered);
	gr_event_wait(&go_on);
	sleep_ms(20); /* long enough for a wait that does not wait to be noticed */
	STORE(&ended, 1);
}

TEST(del_does_not_wait_for_a_call_in_progress_and_no_other_begins)
{
	struct runner runner;
	struct peer a;

	start(&runner);
	peer_open(&a, runner.loop);
	a.then = stay;
	a.keep = true;
	peer_say(&a);
	peer_add(&a, GR_LOOP_READ);
	gr_event_wait(&entered);
	gr_loop_del(a.handler);
	gr_rcu_synchronize();
	gr_rcu_barrier(NULL);
	ASSERT_EQ(LOAD(&a.released), 0u); /* it is in use */
	ASSERT_EQ(LOAD(&ended), 0u);
	gr_event_set(&go_on);
	await(&a.released, 1);
	ASSERT_EQ(LOAD(&ended), 1u);
	stop(&runner);
	ASSERT_EQ(a.reads, 1u);
	gr_loop_free(runner.loop);
}

TEST(del_sync_waits_for_a_call_in_progress)
{
	struct runner runner;
	struct peer a;

	start(&runner);
	peer_open(&a, runner.loop);
	a.then = stay;
	a.keep = true;
	peer_say(&a);
	peer_add(&a, GR_LOOP_READ);
	gr_event_wait(&entered);
	gr_event_set(&go_on);
	gr_loop_del_sync(a.handler);
	ASSERT_EQ(LOAD(&ended), 1u);
	stop(&runner);
	ASSERT_EQ(a.reads, 1u);
	gr_rcu_barrier(NULL);
	ASSERT_EQ(LOAD(&a.released), 1u);
	gr_loop_free(runner.loop);
}

static void remove_self_sync(struct peer *peer)
{
	gr_loop_del_sync(peer->handler);
	gr_loop_del_sync(peer->victim->handler);
	gr_rcu_synchronize(); /* a handler may wait for a grace period */
	ASSERT_EQ(LOAD(&peer->released), 0u);
}

TEST(del_sync_in_the_loops_own_thread_does_not_wait_for_itself)
{
	struct gr_loop *loop = make_loop();
	struct peer a, b;

	peer_open(&a, loop);
	peer_open(&b, loop);
	a.then = remove_self_sync;
	a.victim = &b;
	peer_say(&a);
	peer_add(&a, GR_LOOP_READ);
	peer_add(&b, GR_LOOP_READ);
	ASSERT_EQ(step(loop, GR_LOOP_NEVER), 1);
	gr_rcu_barrier(NULL);
	ASSERT_EQ(LOAD(&a.released), 1u);
	ASSERT_EQ(LOAD(&b.released), 1u);
	gr_loop_free(loop);
}

/* The second of two handlers in a round turns the first's events off, or the other way round. */
static void silence_victim(struct peer *peer)
{
	ASSERT_EQ(gr_loop_set_events(peer->victim->handler, 0, NULL), 0);
}

TEST(events_turned_off_are_not_reported_any_more_in_the_same_round)
{
	struct gr_loop *loop = make_loop();
	struct peer a, b;

	peer_open(&a, loop);
	peer_open(&b, loop);
	peer_add(&a, GR_LOOP_READ);
	peer_add(&b, GR_LOOP_READ);
	a.then = b.then = silence_victim;
	a.victim = &b;
	b.victim = &a;
	peer_say(&a);
	peer_say(&b);
	ASSERT_EQ(step(loop, GR_LOOP_NEVER), 1);
	ASSERT_EQ(step(loop, 0), 0);
	peer_close(&a);
	peer_close(&b);
	gr_loop_free(loop);
}

TEST_MAIN()
