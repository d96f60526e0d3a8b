/* SPDX-License-Identifier: MIT */
#include "bench/rcu_impl/qemu_rcu.h"

#define RCU_LOCK()	     qemu_rcu_read_lock()
#define RCU_UNLOCK()	     qemu_rcu_read_unlock()
#define RCU_QUIESCENT()	     ((void)0)
#define RCU_HEAD	     struct qemu_rcu_head
#define RCU_CALL(head, func) qemu_rcu_call(head, func)
#include "bench/rcu_impl/template.h"

const struct bench_rcu bench_rcu_qemu = {
	.name = "QEMU 7.2 (re-implemented)",
	.init = bench_nothing,
	.register_thread = qemu_rcu_register,
	.unregister_thread = qemu_rcu_unregister,
	.offline = bench_nothing,
	.online = bench_nothing,
	.synchronize = qemu_rcu_synchronize,
	.barrier = qemu_rcu_drain,
	RCU_FUNCTIONS,
};
