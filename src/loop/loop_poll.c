/* SPDX-License-Identifier: MIT */
/*
 * Waiting with poll(2), for systems without epoll, and with WSAPoll(): before each wait the loop's
 * thread walks all handlers under RCU and lists who wants what. Somebody who adds a handler, or
 * wants more of one, wakes the loop for that. Handlers are not touched after the walk: what
 * poll() finds is looked up again by id.
 */
#include "base/poll.h"

#include "base/atomic.h"
#include "loop/loop.h"
#include <errno.h>
#include <string.h>

/* All (o): the loop's thread. */
struct waiter {
	size_t room, used, at;
	struct pollfd *fds; /* [0] is the loop's notifier */
	uint64_t *ids;
};

static int reserve(struct waiter *waiter, size_t room)
{
	struct pollfd *fds;
	uint64_t *ids;

	if (room <= waiter->room) {
		return 0;
	}
	room *= 2;
	fds = realloc(waiter->fds, room * sizeof(*fds));
	waiter->fds = fds ? fds : waiter->fds;
	ids = realloc(waiter->ids, room * sizeof(*ids));
	waiter->ids = ids ? ids : waiter->ids;
	if (!fds || !ids) {
		return -ENOMEM;
	}
	waiter->room = room;
	return 0;
}

static void poll_destroy(struct gr_loop *loop)
{
	struct waiter *waiter = loop->waiter;

	free(waiter->fds);
	free(waiter->ids);
	free(waiter);
}

static int poll_init(struct gr_loop *loop, struct gr_error *err)
{
	struct waiter *waiter = calloc(1, sizeof(*waiter));

	loop->waiter = waiter;
	if (waiter && reserve(waiter, 8) < 0) {
		poll_destroy(loop);
		waiter = NULL;
	}
	return waiter ? 0 : gr_error_set(err, -ENOMEM, "no memory for a loop");
}

static int poll_set(struct gr_loop *loop, struct gr_loop_handler *handler, uint32_t events,
		    struct gr_error *err)
{
	bool is_new = (events & ~handler->waited_for) || handler->waited_for == 0;
	int rc = is_new ? gr_poll_check(handler->fd) : 0; /* as epoll does by itself */

	if (rc < 0) {
		return gr_error_set(err, rc, "fd %d: cannot wait for it: %s", handler->fd,
				    strerror(-rc));
	}
	handler->waited_for = events;
	(void)loop;
	return 0;
}

static short poll_events(uint32_t state)
{
	return (short)(((state & GR_LOOP_READ) ? POLLIN : 0) |
		       ((state & GR_LOOP_WRITE) ? POLLOUT : 0));
}

/* Who comes while we walk and is missed has found the loop armed, and wakes it. */
static void list_handlers(struct gr_loop *loop, struct waiter *waiter)
{
	struct gr_loop_handler *handler;

	waiter->used = 0;
	waiter->fds[waiter->used++] = gr_pollfd(gr_notifier_fd(&loop->wake), POLLIN);
	gr_rcu_read_lock();
	for (size_t b = 0; b < GR_LOOP_BUCKETS; b++) {
		gr_rcu_list_for_each_rcu(handler, &loop->fds[b], struct gr_loop_handler, node)
		{
			uint32_t state = gr_load_relaxed(&handler->state);

			if ((state & GR_LOOP_EVENTS) &&
			    !(state & (GR_LOOP_REMOVED | GR_LOOP_CLOSED)) &&
			    waiter->used < waiter->room) {
				waiter->ids[waiter->used] = handler->id;
				waiter->fds[waiter->used++] =
					gr_pollfd(handler->fd, poll_events(state));
			}
		}
	}
	gr_rcu_read_unlock();
}

static int poll_wait(struct gr_loop *loop, uint64_t timeout_ns, struct gr_error *err)
{
	struct waiter *waiter = loop->waiter;
	size_t handlers;
	int rc;

	gr_mutex_lock(&loop->lock);
	handlers = loop->handlers;
	gr_mutex_unlock(&loop->lock);
	waiter->at = waiter->used = 0;
	if (reserve(waiter, handlers + 1) < 0) {
		return gr_error_set(err, -ENOMEM, "loop: no memory for %zu handlers", handlers);
	}
	list_handlers(loop, waiter);
	rc = gr_poll(waiter->fds, waiter->used, gr_loop_timeout_ms(timeout_ns));
	if (rc < 0) {
		waiter->used = 0;
		return gr_error_set(err, rc, "loop: cannot wait: %s", strerror(-rc));
	}
	return 0;
}

/* It was closed before its handler was removed: without this, poll() would return for ever. */
static void leave_alone(struct gr_loop *loop, uint64_t id)
{
	struct gr_loop_handler *handler;
	GR_RCU_READ_GUARD();

	handler = gr_loop_find_rcu(loop, id);
	if (handler) {
		(void)gr_or_acq_rel(&handler->state, GR_LOOP_CLOSED);
	}
}

static bool poll_next(struct gr_loop *loop, struct gr_loop_ready *ret)
{
	struct waiter *waiter = loop->waiter;

	while (waiter->at < waiter->used) {
		size_t at = waiter->at++;
		int found = waiter->fds[at].revents;

		if (found & POLLNVAL) {
			leave_alone(loop, waiter->ids[at]);
		} else if (found != 0) {
			ret->id = at == 0 ? GR_LOOP_WAKE_ID : waiter->ids[at];
			ret->events = ((found & ~POLLOUT) ? GR_LOOP_READ : 0u) |
				      ((found & ~POLLIN) ? GR_LOOP_WRITE : 0u);
			return true;
		}
	}
	return false;
}

const struct gr_loop_backend gr_loop_poll = {
	.name = "poll",
	.walks = true,
	.init = poll_init,
	.destroy = poll_destroy,
	.set = poll_set,
	.wait = poll_wait,
	.next = poll_next,
};
