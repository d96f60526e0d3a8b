/* SPDX-License-Identifier: MIT */
/*
 * The loop's orderings, replayed: a thread is stopped at a named place of the library
 * (base/hook.h) while another does the worst it can.
 */
#include "harness.h"
#include "loop/loop.h"
#include "sockets.h"
#include <guestram/event.h>
#include <pthread.h>
#include <sched.h>

#define LOAD(p)	    __atomic_load_n(p, __ATOMIC_ACQUIRE)
#define STORE(p, v) __atomic_store_n(p, v, __ATOMIC_RELEASE)
#define ADD(p, v)   __atomic_fetch_add(p, v, __ATOMIC_ACQ_REL)

void gr_test_hook(const char *place); /* the library's, but for us */

/* The thread that comes to the place first, once it is set, waits there for `go_on`. */
static const char *stop_at; /* (a) */
static struct gr_event stopped = GR_EVENT_INIT(false), go_on = GR_EVENT_INIT(false);

void gr_test_hook(const char *place)
{
	const char *at = LOAD(&stop_at);

	if (at && strcmp(at, place) == 0 &&
	    __atomic_compare_exchange_n(&stop_at, &at, NULL, false, __ATOMIC_ACQ_REL,
					__ATOMIC_RELAXED)) {
		gr_event_set(&stopped);
		gr_event_wait(&go_on);
	}
}

static struct gr_loop *loop;
static struct gr_loop_handler *handler;
static pthread_t thread;
static int fds[2];
static uint64_t reads, released, deferred_calls;

static void count_read(void *opaque)
{
	(void)opaque;
	(void)test_socket_read(fds[0]);
	ADD(&reads, 1);
}

static void count_release(void *opaque)
{
	(void)opaque;
	ADD(&released, 1);
}

static void *run_loop(void *opaque)
{
	(void)opaque;
	ASSERT_EQ(gr_loop_run(loop, NULL), 0);
	return NULL;
}

static void start(void)
{
	struct gr_loop_fd_desc desc = { .size = sizeof(desc),
					.events = GR_LOOP_READ,
					.read = count_read,
					.release = count_release };

	ASSERT_EQ(gr_loop_create(NULL, &loop, NULL), 0);
	test_socket_pair(fds);
	desc.fd = fds[0];
	ASSERT_EQ(gr_loop_add_fd(loop, &desc, &handler, NULL), 0);
}

static void run_to(const char *place)
{
	STORE(&stop_at, place);
	ASSERT_EQ(pthread_create(&thread, NULL, run_loop, NULL), 0);
	gr_event_wait(&stopped);
}

static void finish(void)
{
	gr_loop_stop(loop);
	ASSERT_EQ(pthread_join(thread, NULL), 0);
	gr_rcu_barrier(NULL);
	gr_loop_free(loop);
}

TEST(a_handler_found_by_the_loop_stays_until_its_section_ends)
{
	start();
	ASSERT(test_socket_write(fds[1]));
	run_to("gr_loop_step: found a handler");
	gr_loop_del(handler); /* does not wait */
	sleep_ms(20);
	ASSERT_EQ(LOAD(&released), 0u);
	gr_event_set(&go_on);
	finish();
	ASSERT_EQ(LOAD(&released), 1u);
}

TEST(a_handler_removed_between_being_found_and_called_is_not_called)
{
	start();
	ASSERT(test_socket_write(fds[1]));
	run_to("gr_loop_step: found a handler");
	gr_loop_del(handler);
	gr_event_set(&go_on);
	finish();
	ASSERT_EQ(LOAD(&reads), 0u);
}

TEST(events_turned_off_between_being_found_and_called_are_not_reported)
{
	start();
	ASSERT(test_socket_write(fds[1]));
	run_to("gr_loop_step: found a handler");
	ASSERT_EQ(gr_loop_set_events(handler, 0, NULL), 0);
	gr_event_set(&go_on);
	gr_loop_del(handler);
	finish();
	ASSERT_EQ(LOAD(&reads), 0u);
}

static void count_deferred(struct gr_loop_deferred *deferred)
{
	(void)deferred;
	ADD(&deferred_calls, 1);
}

TEST(a_call_deferred_while_the_loop_falls_asleep_is_made)
{
	static struct gr_loop_deferred deferred;
	static uint64_t nothing;

	start();
	run_to("gr_loop_step: looked");
	gr_loop_defer(loop, &deferred, count_deferred);
	gr_event_set(&go_on);
	test_watch_progress(&nothing, 20);
	while (LOAD(&deferred_calls) == 0) {
		sched_yield();
	}
	gr_loop_del(handler);
	finish();
}

static void *clear(void *opaque)
{
	ASSERT(gr_notifier_clear(opaque));
	return NULL;
}

TEST(a_notifier_set_in_the_middle_of_a_clear_is_not_lost)
{
	struct gr_notifier n;

	ASSERT_EQ(gr_notifier_init(&n, NULL), 0);
	gr_notifier_set(&n);
	STORE(&stop_at, "gr_notifier_clear: halfway");
	ASSERT_EQ(pthread_create(&thread, NULL, clear, &n), 0);
	gr_event_wait(&stopped);
	gr_notifier_set(&n);
	gr_event_set(&go_on);
	ASSERT_EQ(pthread_join(thread, NULL), 0);
	/* That one was seen by the clear, which has not returned before it. The next one must show.
	 */
	gr_notifier_set(&n);
	ASSERT(test_is_readable(gr_notifier_fd(&n)));
	gr_notifier_destroy(&n);
}

TEST_MAIN()
