/* SPDX-License-Identifier: MIT */
/* For tests of the loop: peers, which are both ends of a pair of sockets, and a loop in a thread.
 */
#ifndef LOOP_KIT_H
#define LOOP_KIT_H

#include "harness.h"
#include "loop/loop.h"
#include "sockets.h"
#include <pthread.h>
#include <sched.h>

#define LOAD(p)	    __atomic_load_n(p, __ATOMIC_ACQUIRE)
#define STORE(p, v) __atomic_store_n(p, v, __ATOMIC_RELEASE)
#define ADD(p, v)   __atomic_fetch_add(p, v, __ATOMIC_ACQ_REL)

enum { MS = 1000000 };

static inline struct gr_loop *make_loop(void)
{
	struct gr_error err = { .msg = "" };
	struct gr_loop *loop = NULL;

	if (gr_loop_create(NULL, &loop, &err) < 0) {
		FAIL("%s", err.msg);
	}
	return loop;
}

static inline int step(struct gr_loop *loop, uint64_t timeout_ns)
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

static inline void peer_read(void *opaque)
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

static inline void peer_write(void *opaque)
{
	struct peer *peer = opaque;

	ADD(&peer->writes, 1);
}

static inline void peer_release(void *opaque)
{
	struct peer *peer = opaque;

	ADD(&peer->released, 1);
}

static inline int peer_try(struct peer *peer, unsigned int events, struct gr_error *err)
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

static inline void peer_add(struct peer *peer, unsigned int events)
{
	struct gr_error err;

	if (peer_try(peer, events, &err) < 0) {
		FAIL("%s", err.msg);
	}
}

static inline void peer_open(struct peer *peer, struct gr_loop *loop)
{
	int fd[2];

	*peer = (struct peer){ .loop = loop };
	test_socket_pair(fd);
	peer->fd = fd[0];
	peer->other = fd[1];
}

static inline void peer_say(struct peer *peer)
{
	ASSERT(test_socket_write(peer->other));
}

static inline void peer_close(struct peer *peer)
{
	gr_loop_del_sync(peer->handler);
	test_socket_close(peer->fd);
	test_socket_close(peer->other);
	gr_rcu_barrier(NULL);
	ASSERT_EQ(LOAD(&peer->released), 1u);
}

/* A loop with a thread of its own. */
struct runner {
	struct gr_loop *loop;
	pthread_t thread;
};

static inline void *run_loop(void *opaque)
{
	struct runner *runner = opaque;

	ASSERT_EQ(gr_loop_run(runner->loop, NULL), 0);
	return NULL;
}

static inline void start(struct runner *runner)
{
	runner->loop = make_loop();
	ASSERT_EQ(pthread_create(&runner->thread, NULL, run_loop, runner), 0);
}

static inline void stop(struct runner *runner)
{
	gr_loop_stop(runner->loop);
	ASSERT_EQ(pthread_join(runner->thread, NULL), 0);
}

/* Until it sleeps, or is just about to. */
static inline void await_sleep(struct runner *runner)
{
	while (LOAD(&runner->loop->armed) == 0) {
		sched_yield();
	}
	sleep_ms(5);
}

static inline void await(const uint64_t *counter, uint64_t value)
{
	while (LOAD(counter) < value) {
		sched_yield();
	}
}

#endif
