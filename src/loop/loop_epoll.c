/* SPDX-License-Identifier: MIT */
/*
 * Waiting with epoll(7). An event carries the id of its handler, never a pointer: what was
 * removed and freed since is not found any more, also if its number has come back with another
 * file behind it.
 *
 * The kernel forgets a descriptor when the last one of its open file is closed. If it was closed
 * before its handler was removed, and a duplicate of it lives on (in a child, say), nobody can
 * name it any more: it is an orphan, and its events come for ever. So the whole set is made
 * again when an event belongs to no handler and there may be orphans.
 */
#include "base/atomic.h"
#include "base/clock.h"
#include "loop/loop.h"
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/syscall.h>
#include <unistd.h>

enum { EVENTS_MAX = 128 };

struct waiter {
	int epfd;	  /* (l), and the loop's thread, which alone replaces it */
	bool has_orphans; /* (l) */
	int at, found;	  /* (o) the loop's thread: events not yet given out */
	struct epoll_event events[EVENTS_MAX]; /* (o) */
};

static int control(int epfd, int op, int fd, uint64_t id, uint32_t events)
{
	struct epoll_event event = { .data.u64 = id };

	event.events = ((events & GR_LOOP_READ) ? EPOLLIN : 0u) |
		       ((events & GR_LOOP_WRITE) ? EPOLLOUT : 0u);
	return epoll_ctl(epfd, op, fd, &event) < 0 ? -errno : 0;
}

/* A new set with the loop's own notifier in it; or a negative errno. */
static int make_set(const struct gr_loop *loop)
{
	int epfd = epoll_create1(EPOLL_CLOEXEC), rc;

	if (epfd < 0) {
		return -errno;
	}
	rc = control(epfd, EPOLL_CTL_ADD, gr_notifier_fd(&loop->wake), GR_LOOP_WAKE_ID,
		     GR_LOOP_READ);
	if (rc < 0) {
		(void)close(epfd);
		return rc;
	}
	return epfd;
}

static int epoll_init(struct gr_loop *loop, struct gr_error *err)
{
	struct waiter *waiter = calloc(1, sizeof(*waiter));

	if (!waiter) {
		return gr_error_set(err, -ENOMEM, "no memory for a loop");
	}
	waiter->epfd = make_set(loop);
	if (waiter->epfd < 0) {
		int rc = waiter->epfd;

		free(waiter);
		return gr_error_set(err, rc, "cannot make a loop: %s", strerror(-rc));
	}
	loop->waiter = waiter;
	return 0;
}

static void epoll_destroy(struct gr_loop *loop)
{
	struct waiter *waiter = loop->waiter;

	(void)close(waiter->epfd);
	free(waiter);
}

/* A descriptor without events is not in the set: hang-ups would be reported all the same. */
static int epoll_set(struct gr_loop *loop, struct gr_loop_handler *handler, uint32_t events,
		     struct gr_error *err)
{
	struct waiter *waiter = loop->waiter;
	int op = EPOLL_CTL_MOD, rc;

	if (events == 0 && handler->waited_for == 0) {
		rc = fcntl(handler->fd, F_GETFD) < 0 ? -errno : 0;
	} else {
		if (events == 0) {
			op = EPOLL_CTL_DEL;
		} else if (handler->waited_for == 0) {
			op = EPOLL_CTL_ADD;
		}
		rc = control(waiter->epfd, op, handler->fd, handler->id, events);
	}
	if (op == EPOLL_CTL_DEL && rc < 0) {
		waiter->has_orphans = true; /* closed too early; out of the set as far as we can */
		rc = 0;
	}
	if (op == EPOLL_CTL_ADD && rc == -EEXIST) {
		/* An orphan whose file has got its old number again. */
		rc = control(waiter->epfd, EPOLL_CTL_MOD, handler->fd, handler->id, events);
	}
	if (rc < 0) {
		return gr_error_set(err, rc, "fd %d: cannot wait for it: %s", handler->fd,
				    strerror(-rc));
	}
	handler->waited_for = events;
	return 0;
}

static int wait_ns(int epfd, struct epoll_event *events, uint64_t timeout_ns)
{
#ifdef SYS_epoll_pwait2
	if (timeout_ns != 0 && timeout_ns != GR_LOOP_NEVER) {
		struct {
			int64_t tv_sec, tv_nsec; /* 64 bits on every architecture */
		} ts = { (int64_t)(timeout_ns / GR_NS_PER_S), (int64_t)(timeout_ns % GR_NS_PER_S) };
		int n = (int)syscall(SYS_epoll_pwait2, epfd, events, EVENTS_MAX, &ts, NULL, 0);

		if (n >= 0 || (errno != ENOSYS && errno != EPERM)) {
			return n;
		}
	}
#endif
	return epoll_wait(epfd, events, EVENTS_MAX, gr_loop_timeout_ms(timeout_ns));
}

static int epoll_wait_for(struct gr_loop *loop, uint64_t timeout_ns, struct gr_error *err)
{
	struct waiter *waiter = loop->waiter;
	int n = wait_ns(waiter->epfd, waiter->events, timeout_ns);

	waiter->at = 0;
	waiter->found = GR_MAX(n, 0);
	if (n < 0 && errno != EINTR) {
		return gr_error_set(err, -errno, "loop: cannot wait: %s", strerror(errno));
	}
	return 0;
}

static bool epoll_next(struct gr_loop *loop, struct gr_loop_ready *ret)
{
	struct waiter *waiter = loop->waiter;
	const struct epoll_event *event;

	if (waiter->at == waiter->found) {
		return false;
	}
	event = &waiter->events[waiter->at++];
	ret->id = event->data.u64;
	ret->events = ((event->events & ~(uint32_t)EPOLLOUT) ? GR_LOOP_READ : 0u) |
		      ((event->events & ~(uint32_t)EPOLLIN) ? GR_LOOP_WRITE : 0u);
	return true;
}

/* The same handlers, without orphans. Descriptors that are closed by now stay outside. */
static int replace_set(struct gr_loop *loop) GR_REQUIRES(loop->lock)
{
	struct waiter *waiter = loop->waiter;
	struct gr_loop_handler *handler;
	int epfd = make_set(loop), rc = 0;

	for (size_t b = 0; b < GR_LOOP_BUCKETS && epfd >= 0; b++) {
		gr_rcu_list_for_each(handler, &loop->fds[b], struct gr_loop_handler, node)
		{
			if (handler->waited_for != 0 && rc != -ENOMEM && rc != -ENOSPC) {
				rc = control(epfd, EPOLL_CTL_ADD, handler->fd, handler->id,
					     handler->waited_for);
			}
		}
	}
	if (epfd < 0 || rc == -ENOMEM || rc == -ENOSPC) {
		if (epfd >= 0) {
			(void)close(epfd);
		}
		return -ENOMEM; /* the next stale event asks again */
	}
	(void)close(waiter->epfd);
	waiter->epfd = epfd;
	return 0;
}

static void epoll_stale(struct gr_loop *loop)
{
	struct waiter *waiter = loop->waiter;

	gr_mutex_lock(&loop->lock);
#ifdef GR_MUTANT_LOOP_KEEPS_ORPHANS
	waiter->has_orphans = false;
#endif
	if (waiter->has_orphans && replace_set(loop) == 0) {
		waiter->has_orphans = false;
	}
	gr_mutex_unlock(&loop->lock);
}

const struct gr_loop_backend gr_loop_epoll = {
	.name = "epoll",
	.init = epoll_init,
	.destroy = epoll_destroy,
	.set = epoll_set,
	.wait = epoll_wait_for,
	.next = epoll_next,
	.stale = epoll_stale,
};
