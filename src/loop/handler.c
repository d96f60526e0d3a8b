/* SPDX-License-Identifier: MIT */
/* Handlers: how they come, change and go. The argument is in loop.h. */
#include "base/atomic.h"
#include "base/futex.h"
#include "base/hook.h"
#include "loop/loop.h"
#include <errno.h>

struct gr_loop_handler *gr_loop_find_rcu(struct gr_loop *loop, uint64_t id)
{
	struct gr_loop_handler *handler;

	gr_rcu_list_for_each_rcu(handler, gr_loop_bucket(loop, id), struct gr_loop_handler, node)
	{
#ifdef GR_MUTANT_LOOP_STALE_EVENT
		return handler; /* "the descriptor is the same" */
#else
		if (handler->id == id) {
			return handler;
		}
#endif
	}
	return NULL;
}

bool gr_loop_begin(struct gr_loop_handler *handler, uint32_t which)
{
	uint32_t state = gr_load_relaxed(&handler->state);

#ifdef GR_MUTANT_LOOP_CALLS_WHAT_IT_FOUND
	(void)gr_or_acq_rel(&handler->state, GR_LOOP_CALLING);
	return true;
#endif
	while ((state & which) && !(state & GR_LOOP_REMOVED)) {
		/* Acquire: what was done before the state became what it is. */
		if (gr_cas_acq_rel(&handler->state, &state, state | GR_LOOP_CALLING)) {
			return true;
		}
	}
	return false;
}

static void gone(struct gr_rcu_head *head)
{
	struct gr_loop_handler *handler = gr_container_of(head, struct gr_loop_handler, rcu);

	if (handler->release) {
		handler->release(handler->opaque);
	}
	free(handler);
}

static void free_later(struct gr_loop_handler *handler)
{
#ifdef GR_MUTANT_LOOP_FREES_AT_ONCE
	gone(&handler->rcu);
#else
	gr_rcu_call(handler->loop->queue, &handler->rcu, gone);
#endif
}

void gr_loop_call(struct gr_loop_handler *handler, uint32_t which)
{
	uint32_t state;

	handler->fn[which == GR_LOOP_WRITE](handler->opaque);
	/*
	 * Release: the call, to whoever frees. From here on it is ours only if we are to free it;
	 * who is WAITED for may free it before the wake, which touches the address only.
	 */
	state = gr_and_acq_rel(&handler->state, ~GR_LOOP_CALLING);
	if (state & GR_LOOP_WAITED) {
		gr_futex_wake(&handler->state, GR_FUTEX_ALL);
	} else if (state & GR_LOOP_REMOVED) {
		free_later(handler);
	}
}

/* Out of all lists. Returns the state it had; then it is REMOVED and `how`. */
static uint32_t take_out(struct gr_loop_handler *handler, uint32_t how)
{
	struct gr_loop *loop = handler->loop;
	uint32_t before;

	gr_mutex_lock(&loop->lock);
	if (gr_load_relaxed(&handler->state) & GR_LOOP_REMOVED) {
		gr_die("a handler of fd %d is removed twice", handler->fd); /* -1: a timer */
	}
	if (handler->fd >= 0) {
		(void)loop->backend->set(loop, handler, 0, NULL);
		gr_rcu_list_del(&handler->node);
	} else {
		gr_loop_heap_remove_locked(handler);
		loop->timers--;
	}
	loop->handlers--;
	/* Last: who ends the call and finds it frees, and nobody can find the handler any more. */
	before = gr_or_acq_rel(&handler->state, GR_LOOP_REMOVED | how);
	gr_mutex_unlock(&loop->lock);
	return before;
}

void gr_loop_del(struct gr_loop_handler *handler)
{
	uint32_t before = take_out(handler, 0);

#ifndef GR_MUTANT_LOOP_FREES_IN_CALL
	if (before & GR_LOOP_CALLING) {
		return; /* the end of the call frees */
	}
#endif
	(void)before;
	free_later(handler);
}

void gr_loop_del_sync(struct gr_loop_handler *handler)
{
	bool was_online;
	uint32_t state;

	if (gr_loop_in_section()) {
		gr_die("gr_loop_del_sync() inside a read-side section");
	}
	if (gr_loop_is_runner(handler->loop)) {
		gr_loop_del(handler);
		return;
	}
	(void)take_out(handler, GR_LOOP_WAITED);
	was_online = gr_loop_before_sleep(); /* the call may wait for a grace period */
	/* Acquire: pairs with the end of the call. */
	while ((state = gr_load_acquire(&handler->state)) & GR_LOOP_CALLING) {
#ifdef GR_MUTANT_LOOP_SYNC_DOES_NOT_WAIT
		break;
#endif
		(void)gr_futex_wait(&handler->state, state, GR_FUTEX_FOR_EVER);
	}
	gr_loop_after_sleep(was_online);
	free_later(handler);
}

static int check_events(const struct gr_loop_handler *handler, unsigned int events,
			struct gr_error *err)
{
	if (events & ~GR_LOOP_EVENTS) {
		return gr_error_set(err, -EINVAL, "fd %d: unknown events %#x", handler->fd, events);
	}
	if (((events & GR_LOOP_READ) && !handler->fn[0]) ||
	    ((events & GR_LOOP_WRITE) && !handler->fn[1])) {
		return gr_error_set(err, -EINVAL, "fd %d: no function for events %#x", handler->fd,
				    events);
	}
	return 0;
}

/* After a handler came or wants more: who has epoll knows it by now. */
static void tell_waiter(struct gr_loop *loop)
{
#ifdef GR_MUTANT_LOOP_NO_WAKE_ON_ADD
	(void)loop;
#else
	if (loop->backend->walks) {
		gr_loop_wake(loop);
	}
#endif
}

static struct gr_loop_handler *make(struct gr_loop *loop, int fd, void (*release)(void *opaque),
				    void *opaque)
{
	struct gr_loop_handler *handler = calloc(1, sizeof(*handler));

	if (handler) {
		handler->loop = loop;
		handler->fd = fd;
		handler->release = release;
		handler->opaque = opaque;
	}
	return handler;
}

static int insert_fd(struct gr_loop *loop, struct gr_loop_handler *handler, uint32_t events,
		     struct gr_loop_handler **ret_handler, struct gr_error *err)
	GR_REQUIRES(loop->lock)
{
	struct gr_rcu_list *bucket = gr_loop_bucket(loop, (uint64_t)handler->fd);
	struct gr_loop_handler *other;
	int rc;

	gr_rcu_list_for_each(other, bucket, struct gr_loop_handler, node)
	{
		if (other->fd == handler->fd) {
			return gr_error_set(err, -EEXIST, "fd %d has a handler already",
					    handler->fd);
		}
	}
	/* The bucket stays in the id, the rest counts: 2^56 handlers. */
	loop->last_id += GR_LOOP_BUCKETS;
	handler->id = loop->last_id + (uint64_t)handler->fd % GR_LOOP_BUCKETS;
	handler->state = events;
	/* An event that comes before the handler is in its list comes again: level-triggered. */
	rc = loop->backend->set(loop, handler, events, err);
	if (rc == 0) {
		*ret_handler = handler; /* before its functions can be called: they may want it */
		gr_rcu_list_insert_head(bucket, &handler->node);
		loop->handlers++;
	}
	return rc;
}

int gr_loop_add_fd(struct gr_loop *loop, const struct gr_loop_fd_desc *desc,
		   struct gr_loop_handler **ret_handler, struct gr_error *err)
{
	struct gr_loop_handler *handler;
	int rc;

	if (desc->size != sizeof(*desc)) {
		return gr_error_set(err, -EINVAL, "loop: a description of %zu bytes, not %zu",
				    desc->size, sizeof(*desc));
	}
	if (desc->fd < 0) {
		return gr_error_set(err, -EBADF, "fd %d: not a descriptor", desc->fd);
	}
	handler = make(loop, desc->fd, desc->release, desc->opaque);
	if (!handler) {
		return gr_error_set(err, -ENOMEM, "fd %d: no memory for a handler", desc->fd);
	}
	handler->fn[0] = desc->read;
	handler->fn[1] = desc->write;
	rc = check_events(handler, desc->events, err);
	if (rc == 0) {
		gr_mutex_lock(&loop->lock);
		rc = insert_fd(loop, handler, desc->events, ret_handler, err);
		gr_mutex_unlock(&loop->lock);
	}
	if (rc < 0) {
		free(handler);
		return rc;
	}
	tell_waiter(loop);
	return 0;
}

int gr_loop_set_events(struct gr_loop_handler *handler, unsigned int events, struct gr_error *err)
{
	struct gr_loop *loop = handler->loop;
	int rc;

	if (handler->fd < 0) {
		gr_die("gr_loop_set_events() of a timer");
	}
	rc = check_events(handler, events, err);
	if (rc < 0) {
		return rc;
	}
	gr_mutex_lock(&loop->lock);
	if (gr_load_relaxed(&handler->state) & GR_LOOP_REMOVED) {
		gr_die("gr_loop_set_events() of a handler of fd %d that was removed", handler->fd);
	}
	rc = loop->backend->set(loop, handler, events, err);
	if (rc == 0) {
		/* What is not wanted goes at once; no call of it begins after this. */
		(void)gr_and_acq_rel(&handler->state,
				     ~((GR_LOOP_EVENTS & ~events) | GR_LOOP_CLOSED));
		(void)gr_or_acq_rel(&handler->state, events);
	}
	gr_mutex_unlock(&loop->lock);
	if (rc == 0) {
		tell_waiter(loop);
	}
	return rc;
}

int gr_loop_add_timer(struct gr_loop *loop, const struct gr_loop_timer_desc *desc,
		      struct gr_loop_handler **ret_handler, struct gr_error *err)
{
	struct gr_loop_handler *handler;
	int rc;

	if (desc->size != sizeof(*desc) || !desc->fire) {
		return gr_error_set(err, -EINVAL,
				    "loop: a timer without function, or described in %zu bytes, "
				    "not %zu",
				    desc->size, sizeof(*desc));
	}
	handler = make(loop, -1, desc->release, desc->opaque);
	if (!handler) {
		return gr_error_set(err, -ENOMEM, "no memory for a timer");
	}
	handler->fn[0] = desc->fire;
	handler->state = GR_LOOP_FIRE;
	gr_mutex_lock(&loop->lock);
	rc = gr_loop_heap_reserve_locked(loop);
	if (rc == 0) {
		loop->timers++;
		loop->handlers++;
	}
	gr_mutex_unlock(&loop->lock);
	if (rc < 0) {
		free(handler);
		return gr_error_set(err, rc, "no memory for a timer");
	}
	*ret_handler = handler;
	return 0;
}
