/* SPDX-License-Identifier: MIT */
/* The loop's promises, one by one. Runs with epoll, and again with GR_LOOP_BACKEND=poll. */
#include "base/wake_fd.h"
#include "harness.h"
#include "loop/loop.h"
#include "sockets.h"
#include <errno.h>
#include <fcntl.h>
#include <guestram/event.h>
#include <guestram/rcu_control.h>
#include <guestram/rcu_qs.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

#define LOAD(p)	    __atomic_load_n(p, __ATOMIC_ACQUIRE)
#define STORE(p, v) __atomic_store_n(p, v, __ATOMIC_RELEASE)
#define ADD(p, v)   __atomic_fetch_add(p, v, __ATOMIC_ACQ_REL)

enum { MS = 1000000 };

#ifdef GR_PLATFORM_WINDOWS /* not told from what is not open */
#	define NO_PLAIN_FILES -EBADF
#else
#	define NO_PLAIN_FILES -EPERM
#endif

static struct gr_loop *make_loop(void)
{
	struct gr_error err = { .msg = "" };
	struct gr_loop *loop = NULL;

	if (gr_loop_create(NULL, &loop, &err) < 0) {
		FAIL("%s", err.msg);
	}
	return loop;
}

static int step(struct gr_loop *loop, uint64_t timeout_ns)
{
	struct gr_error err = { .msg = "" };
	int rc = gr_loop_step(loop, timeout_ns, &err);

	if (rc < 0) {
		FAIL("%s", err.msg);
	}
	return rc;
}

/* One end of a socket pair with a handler that counts, and the other end. */
struct peer {
	struct gr_loop *loop;
	struct gr_loop_handler *handler;
	int fd, other;
	uint64_t reads, writes, released; /* (a) */
	bool keep;			  /* leave the bytes */
	void (*then)(struct peer *peer);
	struct peer *victim;
};

static void peer_read(void *opaque)
{
	struct peer *peer = opaque;

	if (!peer->keep) {
		(void)test_socket_read(peer->fd);
	}
	ADD(&peer->reads, 1);
	if (peer->then) {
		peer->then(peer);
	}
}

static void peer_write(void *opaque)
{
	struct peer *peer = opaque;

	ADD(&peer->writes, 1);
}

static void peer_release(void *opaque)
{
	struct peer *peer = opaque;

	ADD(&peer->released, 1);
}

static int peer_try(struct peer *peer, unsigned int events, struct gr_error *err)
{
	const struct gr_loop_fd_desc desc = {
		.size = sizeof(desc),
		.fd = peer->fd,
		.events = events,
		.read = peer_read,
		.write = peer_write,
		.release = peer_release,
		.opaque = peer,
	};

	return gr_loop_add_fd(peer->loop, &desc, &peer->handler, err);
}

static void peer_add(struct peer *peer, unsigned int events)
{
	struct gr_error err;

	if (peer_try(peer, events, &err) < 0) {
		FAIL("%s", err.msg);
	}
}

static void peer_open(struct peer *peer, struct gr_loop *loop)
{
	int fd[2];

	*peer = (struct peer){ .loop = loop };
	test_socket_pair(fd);
	peer->fd = fd[0];
	peer->other = fd[1];
}

static void peer_say(struct peer *peer)
{
	ASSERT(test_socket_write(peer->other));
}

static void peer_close(struct peer *peer)
{
	gr_loop_del_sync(peer->handler);
	test_socket_close(peer->fd);
	test_socket_close(peer->other);
	gr_rcu_barrier(NULL);
	ASSERT_EQ(LOAD(&peer->released), 1u);
}

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

/* A loop with a thread of its own. */
struct runner {
	struct gr_loop *loop;
	pthread_t thread;
};

static void *run_loop(void *opaque)
{
	struct runner *runner = opaque;

	ASSERT_EQ(gr_loop_run(runner->loop, NULL), 0);
	return NULL;
}

static void start(struct runner *runner)
{
	runner->loop = make_loop();
	ASSERT_EQ(pthread_create(&runner->thread, NULL, run_loop, runner), 0);
}

static void stop(struct runner *runner)
{
	gr_loop_stop(runner->loop);
	ASSERT_EQ(pthread_join(runner->thread, NULL), 0);
}

/* Until it sleeps, or is just about to. */
static void await_sleep(struct runner *runner)
{
	while (LOAD(&runner->loop->armed) == 0) {
		sched_yield();
	}
	sleep_ms(5);
}

static void await(const uint64_t *counter, uint64_t value)
{
	while (LOAD(counter) < value) {
		sched_yield();
	}
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
