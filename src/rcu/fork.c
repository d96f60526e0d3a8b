/* SPDX-License-Identifier: MIT */
/*
 * fork(). Before it, the forking thread takes the locks under which lists change: the queues'
 * and the registry's. All are short and none is held while waiting for anybody, so fork() is
 * safe in a section, in a callback and with any lock of the caller's held. The grace
 * period's lock is not taken (its holder may wait for our own section); the child mends
 * what a driver left.
 *
 * The child has one thread. Other threads' records vanish from the registry; its own
 * stays as it is, sections included. Workers are started again by the next call.
 */
#include "base/atomic.h"
#include "base/fork.h"
#include "rcu/rcu_internal.h"

/* (o) Of the forking thread; written only with the registry's lock held. */
static struct gr_rcu_signals saved_signals;

static void before_fork(void) GR_NO_TSA
{
	struct gr_rcu_signals saved;

	gr_rcu_queues_before_fork();
	gr_rcu_registry_lock(&saved);
	saved_signals = saved;
}

static void after_fork_in_parent(void) GR_NO_TSA
{
	struct gr_rcu_signals saved = saved_signals;

	gr_rcu_registry_unlock(&saved);
	gr_rcu_queues_after_fork(false);
}

static void after_fork_in_child(void) GR_NO_TSA
{
	struct gr_rcu_signals saved = saved_signals;
	struct gr_rcu_reader *self = &gr_rcu_self;

	gr_rcu_registry.first = NULL;
	if (gr_load_relaxed(&self->ctr) != 0) {
		self->next = NULL;
		self->pprev = &gr_rcu_registry.first;
		gr_rcu_registry.first = self;
	}
	self->awaited = 0;
	gr_store_relaxed(&self->need_qs, 0u);
	gr_rcu_grace_period_after_fork_in_child();
	gr_rcu_registry_unlock(&saved);
	gr_rcu_queues_after_fork(true);
}

void gr_rcu_fork_install(void)
{
	int ret = gr_atfork(before_fork, after_fork_in_parent, after_fork_in_child);

	if (ret != 0) {
		gr_die("no fork handlers for RCU: errno %d", -ret);
	}
}
