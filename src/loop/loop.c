/* SPDX-License-Identifier: MIT */
/*
 * A loop's life, its rounds, and how others wake it.
 *
 * Whoever gives the loop something new to look at (a deferred call, an earlier deadline, a
 * handler where poll(2) is used, the wish that it stop) changes that first and then exchanges
 * `armed` for 0. The loop exchanges it for 1 first and then looks. The exchanges of one word
 * have an order: either the loop's comes later, and reads what the other's wrote, with
 * the change; or the other finds 1, and sets the notifier that the loop sleeps on. After
 * the sleep it is 0 again (an exchange too, or a wake between would be passed over): while
 * the loop is busy a wake costs no system call.
 */
#include "loop/loop.h"
#include "base/atomic.h"
#include "base/clock.h"
#include "base/hook.h"
#include <errno.h>
#include <guestram/rcu_qs.h>
#include <string.h>

/* Its address says which thread this is. */
static __thread char this_thread;

static const struct gr_loop_backend *choose_backend(void)
{
#ifdef GR_HAVE_EPOLL
	const char *asked = getenv("GR_LOOP_BACKEND");

	return asked && strcmp(asked, "poll") == 0 ? &gr_loop_poll : &gr_loop_epoll;
#else
	return &gr_loop_poll;
#endif
}

static int init(struct gr_loop *loop, struct gr_error *err)
{
	int rc = gr_notifier_init(&loop->wake, err);

	if (rc < 0) {
		return rc;
	}
	loop->backend = choose_backend();
	rc = loop->backend->init(loop, err);
	if (rc < 0) {
		gr_notifier_destroy(&loop->wake);
		return rc;
	}
	gr_mutex_init(&loop->lock, GR_RANK_LOOP);
	return 0;
}

int gr_loop_create(const struct gr_loop_params *params, struct gr_loop **ret_loop,
		   struct gr_error *err)
{
	struct gr_loop *loop;
	int rc;

	if (params && params->size != sizeof(*params)) {
		return gr_error_set(err, -EINVAL, "loop: parameters of %zu bytes, not %zu",
				    params->size, sizeof(*params));
	}
	loop = calloc(1, sizeof(*loop)); /* empty lists, too */
	if (!loop) {
		return gr_error_set(err, -ENOMEM, "no memory for a loop");
	}
	loop->queue = params ? params->queue : NULL;
	rc = init(loop, err);
	if (rc < 0) {
		free(loop);
		return rc;
	}
	*ret_loop = loop;
	return 0;
}

/* What a quiescent-state thread that is online has in its record: no section, or a free one. */
static bool is_online(void)
{
	return gr_load_relaxed(&gr_rcu_self.ctr) == (GR_RCU_QS | 1);
}

bool gr_loop_in_section(void)
{
	return gr_rcu_read_ongoing() && !is_online();
}

bool gr_loop_before_sleep(void)
{
	if (is_online()) {
		gr_rcu_thread_offline();
		return true;
	}
#ifndef GR_MUTANT_LOOP_DOES_NOT_PARK
	gr_rcu_park();
#endif
	return false;
}

void gr_loop_after_sleep(bool was_online)
{
	if (was_online) {
		gr_rcu_thread_online();
	}
}

bool gr_loop_is_runner(const struct gr_loop *loop)
{
	return gr_load_relaxed(&loop->runner) == &this_thread;
}

/* One at a time, whoever it is. */
static void enter(struct gr_loop *loop, const char *what)
{
	const void *nobody = NULL;

	if (gr_loop_in_section()) {
		gr_die("%s inside a read-side section", what);
	}
	/* Acquire: what the last thread that ran it left. Pairs with leave(). */
	if (!gr_cas_acq_rel(&loop->runner, &nobody, (const void *)&this_thread)) {
		gr_die("%s %s", what,
		       nobody == &this_thread ? "in a handler of the same loop"
					      : "while another thread runs the loop");
	}
}

static void leave(struct gr_loop *loop)
{
	gr_store_release(&loop->runner, (const void *)NULL);
}

void gr_loop_wake(struct gr_loop *loop)
{
	/* Release: the change. Pairs with the exchange in sleep_until_ready(). */
	if (gr_xchg_acq_rel(&loop->armed, 0u) != 0) {
		gr_notifier_set(&loop->wake);
	}
}

void gr_loop_stop(struct gr_loop *loop)
{
	gr_store_relaxed(&loop->stop, 1u);
	gr_loop_wake(loop);
}

void gr_loop_defer(struct gr_loop *loop, struct gr_loop_deferred *deferred,
		   void (*func)(struct gr_loop_deferred *deferred))
{
	struct gr_loop_deferred *newest = gr_load_relaxed(&loop->deferred);

	deferred->func = func;
	do {
		deferred->next = newest;
		/* Release: the call, to the loop's exchange. */
	} while (!gr_cas_acq_rel(&loop->deferred, &newest, deferred));
	gr_loop_wake(loop);
}

/* Calls what was deferred so far, the oldest first; how many. */
static int call_deferred(struct gr_loop *loop)
{
	/* Acquire: pairs with the compare-and-swap in gr_loop_defer(). */
	struct gr_loop_deferred *newest =
		gr_xchg_acq_rel(&loop->deferred, (struct gr_loop_deferred *)NULL);
	struct gr_loop_deferred *oldest = NULL, *next;
	int calls = 0;

	for (; newest; newest = next) {
		next = newest->next;
		newest->next = oldest;
		oldest = newest;
	}
	for (; oldest; oldest = next) {
		next = oldest->next; /* it may be freed, or deferred again */
		oldest->func(oldest);
		calls++;
	}
	return calls;
}

void gr_loop_free(struct gr_loop *loop)
{
	if (!loop) {
		return;
	}
	enter(loop, "gr_loop_free()");
	(void)call_deferred(loop);
	gr_mutex_lock(&loop->lock);
	if (loop->handlers != 0) {
		gr_die("gr_loop_free() of a loop that has %zu handlers left", loop->handlers);
	}
	gr_mutex_unlock(&loop->lock);
	loop->backend->destroy(loop);
	gr_notifier_destroy(&loop->wake);
	gr_mutex_destroy(&loop->lock);
	free(loop->heap);
	free(loop);
}

static bool has_something_to_do(const struct gr_loop *loop)
{
	return gr_load_relaxed(&loop->deferred) || gr_load_relaxed(&loop->stop) != 0;
}

static int sleep_until_ready(struct gr_loop *loop, uint64_t timeout_ns, struct gr_error *err)
{
	uint64_t deadline, now;
	bool was_online;
	int rc;

#ifdef GR_MUTANT_LOOP_LOOKS_BEFORE_IT_ARMS
	bool busy = has_something_to_do(loop);

	GR_HOOK("gr_loop_step: looked");
#endif
	/* Acquire: pairs with the exchange in gr_loop_wake(). */
	(void)gr_xchg_acq_rel(&loop->armed, 1u);
#ifndef GR_MUTANT_LOOP_LOOKS_BEFORE_IT_ARMS
	bool busy = has_something_to_do(loop);

	GR_HOOK("gr_loop_step: looked");
#endif
	deadline = gr_loop_first_deadline(loop);
	if (busy) {
		timeout_ns = 0;
	} else if (deadline != GR_LOOP_NEVER && timeout_ns != 0) {
		now = gr_clock_ns();
		timeout_ns = GR_MIN(timeout_ns, deadline > now ? deadline - now : 0);
	}
	was_online = gr_loop_before_sleep();
	rc = loop->backend->wait(loop, timeout_ns, err);
	gr_loop_after_sleep(was_online);
	(void)gr_xchg_acq_rel(&loop->armed, 0u);
	return rc;
}

/* One descriptor's event. Whether it was called; ret_stale: its handler has gone. */
static bool dispatch(struct gr_loop *loop, uint64_t id, unsigned int which, bool *ret_stale)
{
	struct gr_loop_handler *handler;
	bool begun;

	gr_rcu_read_lock();
	handler = gr_loop_find_rcu(loop, id);
	GR_HOOK("gr_loop_step: found a handler");
	begun = handler && gr_loop_begin(handler, which);
	gr_rcu_read_unlock();
	*ret_stale |= !handler;
	if (begun) {
		gr_loop_call(handler, which); /* CALLING keeps it */
	}
	return begun;
}

static int call_ready(struct gr_loop *loop)
{
	struct gr_loop_ready ready;
	bool stale = false;
	int calls = 0;

	while (loop->backend->next(loop, &ready)) {
		if (ready.id == GR_LOOP_WAKE_ID) {
			(void)gr_notifier_clear(&loop->wake);
			continue;
		}
		if (ready.events & GR_LOOP_READ) {
			calls += dispatch(loop, ready.id, GR_LOOP_READ, &stale);
		}
		if (ready.events & GR_LOOP_WRITE) {
			calls += dispatch(loop, ready.id, GR_LOOP_WRITE, &stale);
		}
	}
	if (stale && loop->backend->stale) {
		loop->backend->stale(loop);
	}
	return calls;
}

static int step(struct gr_loop *loop, uint64_t timeout_ns, bool *ret_stopped, struct gr_error *err)
{
	int calls = sleep_until_ready(loop, timeout_ns, err);

	if (calls >= 0) {
		calls = call_ready(loop);
		calls += gr_loop_fire_due(loop, gr_clock_ns());
		calls += call_deferred(loop);
	}
	*ret_stopped = gr_xchg_acq_rel(&loop->stop, 0u) != 0;
	return calls;
}

int gr_loop_step(struct gr_loop *loop, uint64_t timeout_ns, struct gr_error *err)
{
	bool stopped;
	int rc;

	enter(loop, "gr_loop_step()");
	rc = step(loop, timeout_ns, &stopped, err);
	leave(loop);
	return rc;
}

int gr_loop_run(struct gr_loop *loop, struct gr_error *err)
{
	bool stopped = false;
	int rc = 0;

	enter(loop, "gr_loop_run()");
	while (rc >= 0 && !stopped) {
		rc = step(loop, GR_LOOP_NEVER, &stopped, err);
	}
	leave(loop);
	return rc < 0 ? rc : 0;
}
