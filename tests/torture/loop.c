/* SPDX-License-Identifier: MIT */
/*
 * Threads add, change and remove handlers of descriptors and timers, close the descriptors and
 * get their numbers again, while a loop runs. Every call checks that it may be: its object
 * has not been released, is not removed and waited for, and is in one call at a time.
 */
#include "harness.h"
#include "sockets.h"
#include <guestram/loop.h>
#include <pthread.h>
#include <sched.h>
#include <stdlib.h>
#include <time.h>

#define LOAD(p)	    __atomic_load_n(p, __ATOMIC_ACQUIRE)
#define STORE(p, v) __atomic_store_n(p, v, __ATOMIC_RELEASE)
#define ADD(p, v)   __atomic_fetch_add(p, v, __ATOMIC_ACQ_REL)

enum { CHURNERS = 3, BATCH = 32 };
#define ALIVE UINT64_C(0x600d600d600d600d)
#define DEAD  UINT64_C(0xdeaddeaddeaddead)

enum way {
	WAY_DEL,      /* release closes: a call may be in progress */
	WAY_DEL_SYNC, /* then nobody is in it any more */
	WAY_ITSELF,   /* the handler removes itself, and closes */
	WAYS
};

struct object {
	uint64_t magic;	 /* (a) */
	uint32_t gone;	 /* (a) removed, and waited for */
	uint32_t inside; /* (a) calls in progress */
	uint32_t ours;	 /* (a) 1: the thread that removes it still looks at it */
	struct gr_loop_handler *handler;
	struct gr_loop_deferred deferred;
	enum way way;
	int fd, other; /* -1: a timer */
};

static struct gr_loop *loop;
static uint32_t stop;
static uint64_t added, released, calls, rounds, deferred_made;

static void enter(struct object *object)
{
	ASSERT_EQ(LOAD(&object->magic), ALIVE);
	ASSERT_EQ(LOAD(&object->gone), 0u);
	ASSERT_EQ(ADD(&object->inside, 1u), 0u);
	ADD(&calls, 1);
}

static void leave(struct object *object)
{
	ASSERT_EQ(LOAD(&object->magic), ALIVE);
	ASSERT_EQ(LOAD(&object->gone), 0u);
	ASSERT_EQ(ADD(&object->inside, ~0u), 1u);
}

static void close_both(struct object *object)
{
	if (object->fd >= 0) {
		test_socket_close(object->fd);
		test_socket_close(object->other);
	}
}

static void on_read(void *opaque)
{
	struct object *object = opaque;

	enter(object);
	(void)test_socket_read(object->fd); /* several may have been called for one byte */
	if (object->way == WAY_ITSELF) {
		gr_loop_del(object->handler);
		close_both(object);
	}
	leave(object);
}

static void on_write(void *opaque)
{
	struct object *object = opaque;

	enter(object);
	leave(object);
}

static void on_release(void *opaque)
{
	struct object *object = opaque;

	ASSERT_EQ(LOAD(&object->magic), ALIVE);
	ASSERT_EQ(LOAD(&object->inside), 0u);
	while (LOAD(&object->ours)) {
		sched_yield();
	}
	if (object->way == WAY_DEL) {
		close_both(object);
	}
	STORE(&object->magic, DEAD);
	free(object);
	ADD(&released, 1);
}

static struct object *make(enum way way, int fd, int other)
{
	struct object *object = calloc(1, sizeof(*object));

	ASSERT(object);
	object->magic = ALIVE;
	object->way = way;
	object->ours = way == WAY_DEL_SYNC;
	object->fd = fd;
	object->other = other;
	ADD(&added, 1);
	return object;
}

/* From when it returns no call is in progress or begins: `gone` checks. Release frees. */
static void remove_and_wait(struct object *object)
{
	gr_loop_del_sync(object->handler);
	STORE(&object->gone, 1u);
	ASSERT_EQ(LOAD(&object->inside), 0u);
	STORE(&object->ours, 0u); /* not touched any more */
}

/* A descriptor comes, is written to, changed, and goes. */
static void churn_fd(uint64_t *seed)
{
	struct gr_loop_fd_desc desc = {
		.size = sizeof(desc), .read = on_read, .write = on_write, .release = on_release
	};
	struct gr_error err = { .msg = "" };
	struct object *object;
	enum way way = (enum way)(test_rand(seed) % WAYS);
	int fd[2];

	test_socket_pair(fd);
	object = make(way, fd[0], fd[1]);
	desc.fd = fd[0];
	desc.opaque = object;
	if (way == WAY_ITSELF || test_rand(seed) % 2) {
		ASSERT(test_socket_write(fd[1]));
	}
	desc.events = way == WAY_ITSELF ? GR_LOOP_READ : (unsigned int)(test_rand(seed) % 4);
	if (gr_loop_add_fd(loop, &desc, &object->handler, &err) < 0) {
		FAIL("%s", err.msg);
	}
	if (way == WAY_ITSELF) {
		return; /* not ours any more */
	}
	for (uint64_t i = test_rand(seed) % 4; i > 0; i--) {
		unsigned int events = (unsigned int)(test_rand(seed) % 4);

		if (gr_loop_set_events(object->handler, events, &err) < 0) {
			FAIL("%s", err.msg);
		}
		(void)test_socket_write(fd[1]);
	}
	if (way == WAY_DEL) {
		gr_loop_del(object->handler);
		return; /* release frees and closes */
	}
	remove_and_wait(object);
	test_socket_close(fd[0]);
	test_socket_close(fd[1]);
}

static void churn_timer(uint64_t *seed)
{
	struct gr_loop_timer_desc desc = { .size = sizeof(desc),
					   .fire = on_write,
					   .release = on_release };
	struct object *object = make(test_rand(seed) % 2 ? WAY_DEL : WAY_DEL_SYNC, -1, -1);

	desc.opaque = object;
	ASSERT_EQ(gr_loop_add_timer(loop, &desc, &object->handler, NULL), 0);
	for (uint64_t i = test_rand(seed) % 5; i > 0; i--) {
		uint64_t in = test_rand(seed) % 4;

		gr_loop_set_timer(object->handler,
				  in == 0 ? GR_LOOP_NEVER : gr_loop_now_ns() + (in - 1) * 30000);
	}
	if (object->way == WAY_DEL) {
		gr_loop_del(object->handler);
	} else {
		remove_and_wait(object);
	}
}

static void on_deferred(struct gr_loop_deferred *deferred)
{
	free(deferred);
	ADD(&deferred_made, 1);
}

static void *churn(void *opaque)
{
	uint64_t seed = test_seed() + (uintptr_t)opaque, deferred = 0;

	while (!LOAD(&stop)) {
		for (int i = 0; i < BATCH; i++) {
			struct gr_loop_deferred *call;

			churn_fd(&seed);
			churn_timer(&seed);
			call = malloc(sizeof(*call));
			ASSERT(call);
			gr_loop_defer(loop, call, on_deferred);
			deferred++;
		}
		gr_rcu_barrier(NULL); /* descriptors are not without number */
		ADD(&rounds, 1);
	}
	return (void *)(uintptr_t)deferred;
}

static void *run(void *opaque)
{
	(void)opaque;
	ASSERT_EQ(gr_loop_run(loop, NULL), 0);
	return NULL;
}

TEST(no_call_reaches_a_handler_that_is_gone_and_every_one_is_released_once)
{
	const double seconds = test_seconds(1.0);
	struct timespec nap = { (time_t)seconds,
				(long)((seconds - (double)(time_t)seconds) * 1e9) };
	pthread_t churners[CHURNERS], runner;
	uint64_t deferred = 0;
	void *made;

	ASSERT_EQ(gr_loop_create(NULL, &loop, NULL), 0);
	ASSERT_EQ(pthread_create(&runner, NULL, run, NULL), 0);
	test_watch_progress(&rounds, 60);
	for (uintptr_t i = 0; i < CHURNERS; i++) {
		ASSERT_EQ(pthread_create(&churners[i], NULL, churn, (void *)i), 0);
	}
	nanosleep(&nap, NULL);
	while (LOAD(&rounds) < CHURNERS) {
		nanosleep(&(struct timespec){ 0, 1000000 }, NULL);
	}
	STORE(&stop, 1);
	for (int i = 0; i < CHURNERS; i++) {
		ASSERT_EQ(pthread_join(churners[i], &made), 0);
		deferred += (uintptr_t)made;
	}
	/* Those that remove themselves have bytes to read: the loop comes to each. */
	while (LOAD(&released) < LOAD(&added)) {
		gr_rcu_barrier(NULL);
		ADD(&rounds, LOAD(&released) < LOAD(&added) ? 0 : 1);
	}
	gr_loop_stop(loop);
	ASSERT_EQ(pthread_join(runner, NULL), 0);
	gr_loop_free(loop);
	ASSERT_EQ(LOAD(&deferred_made), deferred);
	ASSERT_EQ(LOAD(&released), LOAD(&added));
	ASSERT_GT(LOAD(&calls), 0u);
	test_diag("%llu handlers, %llu calls, %llu deferred", (unsigned long long)added,
		  (unsigned long long)calls, (unsigned long long)deferred);
}

TEST_MAIN()
