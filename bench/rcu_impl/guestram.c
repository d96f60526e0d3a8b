/* SPDX-License-Identifier: MIT */
#include <guestram/guestram.h>

#define RCU_LOCK()	     gr_rcu_read_lock()
#define RCU_UNLOCK()	     gr_rcu_read_unlock()
#define RCU_QUIESCENT()	     ((void)0)
#define RCU_HEAD	     struct gr_rcu_head
#define RCU_CALL(head, func) gr_rcu_call(NULL, head, func)
#include "bench/rcu_impl/template.h"

static void barrier(void)
{
	gr_rcu_barrier(NULL);
}

const struct bench_rcu bench_rcu_guestram = {
	.name = "guestram",
	.init = bench_nothing,
	.register_thread = gr_rcu_register_thread,
	.unregister_thread = gr_rcu_unregister_thread,
	.offline = gr_rcu_park,
	.online = bench_nothing,
	.synchronize = gr_rcu_synchronize,
	.barrier = barrier,
	RCU_FUNCTIONS,
};
