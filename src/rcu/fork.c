/* SPDX-License-Identifier: MIT */
/*
 * fork(). Before it, the forking thread takes the locks under which lists change: the queues'
 * and that of domains and their readers. All are short and none is held while waiting for
 * anybody, so fork() is safe in a section, in a callback and with any lock of the caller's
 * held. Whoever holds one of them has its signals blocked, fork() itself first of all: a
 * handler may fork anywhere. The locks of grace periods and of registries are not taken (a holder
 * may wait for our own section, or we may be a handler that has interrupted it); the child
 * mends what a driver left.
 *
 * The child has one thread. Other threads' records vanish from the registries; its own
 * stay as they are, sections included. Workers are started again by the next call.
 */
#include "base/fork.h"
#include "base/atomic.h"
#include "base/hook.h"
#include "base/log.h"
#include "rcu/checks.h"
#include "rcu/stall.h"

/* (o) Of the forking thread; written only with all the locks held. */
static struct gr_signals saved_signals;
static unsigned saved_order;

static void before_fork(void)
{
	unsigned order = gr_mutex_order_begin();
	struct gr_signals saved;

#ifdef GR_MUTANT_RCU_FORK_SIGNALS_OPEN
	gr_rcu_quiet_before_fork();
	gr_rcu_queues_before_fork();
	GR_HOOK("fork: locked");
	gr_signals_block(&saved);
#else
	gr_signals_block(&saved); /* a handler that forks would want these locks as well */
	gr_rcu_quiet_before_fork();
	gr_rcu_queues_before_fork();
	GR_HOOK("fork: locked");
#endif
	gr_rcu_domains_before_fork();
	gr_rcu_checks_before_fork();
	saved_signals = saved;
	saved_order = order;
}

static void after_fork(bool in_child)
{
	struct gr_signals saved = saved_signals;
	unsigned order = saved_order;

	gr_rcu_checks_after_fork(in_child);
	gr_rcu_domains_after_fork(in_child);
	gr_rcu_queues_after_fork(in_child);
	gr_rcu_quiet_after_fork(in_child);
	if (in_child) {
		gr_rcu_stall_after_fork_in_child();
		gr_log_after_fork_in_child();
	}
	gr_mutex_order_end(order);
	gr_signals_restore(&saved);
}

static void after_fork_in_parent(void)
{
	after_fork(false);
}

static void after_fork_in_child(void)
{
	after_fork(true);
}

void gr_rcu_fork_install(void)
{
	int ret = gr_atfork(before_fork, after_fork_in_parent, after_fork_in_child);

	if (ret != 0) {
		gr_die("no fork handlers for RCU: errno %d", -ret);
	}
}
