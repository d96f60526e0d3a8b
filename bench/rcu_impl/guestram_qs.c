/* SPDX-License-Identifier: MIT */
/* Quiescent-state threads: registered ones are online, and report after each section. */
#include <guestram/guestram.h>

#define RCU_LOCK()	     gr_rcu_qs_read_lock()
#define RCU_UNLOCK()	     gr_rcu_qs_read_unlock()
#define RCU_QUIESCENT()	     gr_rcu_quiescent_state()
#define RCU_HEAD	     struct gr_rcu_head
#define RCU_CALL(head, func) gr_rcu_call(NULL, head, func)
#include "bench/rcu_impl/template.h"

static void barrier(void)
{
	gr_rcu_barrier(NULL);
}

const struct bench_rcu bench_rcu_guestram_qs = {
	.name = "guestram-qs",
	.init = bench_nothing,
	.register_thread = gr_rcu_qs_register_thread,
	.unregister_thread = gr_rcu_qs_unregister_thread,
	.offline = gr_rcu_thread_offline,
	.online = gr_rcu_thread_online,
	.synchronize = gr_rcu_synchronize,
	.barrier = barrier,
	RCU_FUNCTIONS,
};
