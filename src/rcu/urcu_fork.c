/* SPDX-License-Identifier: MIT */
/*
 * liburcu's fork hooks. The library is safe without them; but a callback that runs while another
 * thread forks runs in the parent only. Between call_rcu_before_fork() and the other
 * two each worker stands in a callback of ours: all others run in both processes or in neither.
 */
#include "base/fork.h"
#include "rcu/urcu_compat.h"

/* One fork with hooks at a time: from call_rcu_before_fork() to the other two. */
static struct gr_mutex fork_lock = GR_MUTEX_INIT(GR_RANK_URCU_FORK);
static __thread bool has_fork_lock; /* (o) */
static struct urcu_atfork *atfork;  /* fork_lock */
static unsigned atfork_users;	    /* fork_lock */

static struct gr_signals frozen_signals; /* of who forks, with the workers' lock */

/* Any fork, with the hooks or without: the child finds the list whole. */
static void freeze(void) GR_NO_TSA
{
	struct gr_signals saved;

	gr_signals_block(&saved);
	gr_mutex_lock(&gr_urcu_workers.lock);
	frozen_signals = saved;
}

static void thaw_in_parent(void) GR_NO_TSA
{
	struct gr_signals saved = frozen_signals;

	gr_mutex_unlock(&gr_urcu_workers.lock);
	gr_signals_restore(&saved);
}

static void thaw_in_child(void) GR_NO_TSA
{
	if (!has_fork_lock) {
		/* A thread that the child lacks may have been between the hooks. */
		for (struct call_rcu_data *d = gr_urcu_workers.first; d; d = d->next) {
			d->users -= d->held;
			d->held = false;
			gr_event_set(&d->let_go); /* for a hold that has not begun */
		}
		gr_mutex_init(&fork_lock, GR_RANK_URCU_FORK);
	}
	thaw_in_parent();
}

void gr_urcu_fork_install(void)
{
	int ret;

	gr_qemu_fork_install();
	ret = gr_atfork(freeze, thaw_in_parent, thaw_in_child);
	if (ret != 0) {
		gr_die("no fork handlers for call_rcu workers: errno %d", -ret);
	}
}

static void stand_here(struct gr_rcu_head *head)
{
	struct call_rcu_data *d = gr_container_of(head, struct call_rcu_data, hold);
	struct gr_rcu_reader *qs = gr_rcu_wait_begin(&gr_rcu_default, "a fork");

	gr_event_set(&d->is_held);
	gr_event_wait(&d->let_go);
	gr_rcu_wait_end(qs);
	gr_store_release(&d->hold_queued, 0u); /* is_held and let_go may be used again */
}

static void queue_hold(struct call_rcu_data *d, void (*func)(struct gr_rcu_head *head))
{
	gr_store_release(&d->hold_queued, 1u);
	gr_rcu_call(d->queue, &d->hold, func);
}

static void hold(struct call_rcu_data *d)
{
	if (gr_load_relaxed(&d->used) == 0) {
		return; /* no thread yet */
	}
	if (gr_load_acquire(&d->hold_queued) != 0) {
		gr_rcu_barrier(d->queue); /* of the fork before this one, or its child's */
	}
	gr_event_reset(&d->is_held);
	gr_event_reset(&d->let_go);
	queue_hold(d, stand_here);
	gr_event_wait(&d->is_held);
	gr_urcu_get(d);
	d->held = true;
}

void gr_urcu_before_fork(void) GR_NO_TSA
{
	struct gr_rcu_reader *qs = gr_rcu_wait_begin(&gr_rcu_default, "call_rcu_before_fork()");

	if (gr_rcu_caller.callback_of) {
		gr_die("call_rcu_before_fork() in a callback would wait for itself");
	}
	gr_mutex_lock(&fork_lock);
	has_fork_lock = true;
	if (atfork) {
		atfork->before_fork(atfork->priv);
	}
#ifndef GR_MUTANT_URCU_FORK_HOLDS_NOBODY
	for (struct call_rcu_data *d = gr_urcu_next(NULL); d; d = gr_urcu_next(d)) {
		hold(d);
	}
#else
	(void)hold;
#endif
	gr_rcu_wait_end(qs);
}

static void go_past(struct gr_rcu_head *head)
{
	gr_store_release(&gr_container_of(head, struct call_rcu_data, hold)->hold_queued, 0u);
}

static void let_go(struct call_rcu_data *d, bool in_child)
{
	d->held = false;
	if (in_child) {
		/* The thread is gone and the callback it stood in with it; this starts another. */
		queue_hold(d, go_past);
	} else {
		gr_event_set(&d->let_go);
	}
	gr_urcu_put(d);
}

static void after_fork(bool in_child) GR_NO_TSA
{
	for (struct call_rcu_data *d = gr_urcu_next(NULL); d; d = gr_urcu_next(d)) {
		if (d->held) {
			let_go(d, in_child);
		}
	}
	if (atfork) {
		(in_child ? atfork->after_fork_child : atfork->after_fork_parent)(atfork->priv);
	}
	has_fork_lock = false;
	gr_mutex_unlock(&fork_lock);
}

void gr_urcu_after_fork_parent(void)
{
	after_fork(false);
}

void gr_urcu_after_fork_child(void)
{
	after_fork(true);
}

void gr_urcu_register_atfork(struct urcu_atfork *hooks)
{
	gr_mutex_lock(&fork_lock);
	if (atfork_users++ == 0) {
		atfork = hooks;
	}
	gr_mutex_unlock(&fork_lock);
}

void gr_urcu_unregister_atfork(struct urcu_atfork *hooks)
{
	(void)hooks; /* the one that is registered */
	gr_mutex_lock(&fork_lock);
	if (--atfork_users == 0) {
		atfork = NULL;
	}
	gr_mutex_unlock(&fork_lock);
}
