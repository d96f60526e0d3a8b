/* SPDX-License-Identifier: MIT */
/*
 * A flavour of liburcu as a struct bench_rcu. Include once in a file that has included the
 * flavour's header and defines LIBURCU_IMPL, LIBURCU_NAME and LIBURCU_INIT.
 */
#define RCU_LOCK()	     rcu_read_lock()
#define RCU_UNLOCK()	     rcu_read_unlock()
#define RCU_QUIESCENT()	     rcu_quiescent_state()
#define RCU_HEAD	     struct rcu_head
#define RCU_CALL(head, func) call_rcu(head, func)
#include "bench/rcu_impl/template.h"

/* These may be inline functions or macros. */
static void liburcu_offline(void)
{
	rcu_thread_offline();
}

static void liburcu_online(void)
{
	rcu_thread_online();
}

static const struct bench_rcu liburcu = {
	.name = LIBURCU_NAME,
	.init = LIBURCU_INIT,
	.register_thread = rcu_register_thread,
	.unregister_thread = rcu_unregister_thread,
	.offline = liburcu_offline,
	.online = liburcu_online,
	.synchronize = synchronize_rcu,
	.barrier = rcu_barrier,
	RCU_FUNCTIONS,
};
const struct bench_rcu *const LIBURCU_IMPL = &liburcu;
