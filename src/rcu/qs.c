/* SPDX-License-Identifier: MIT */
/*
 * Quiescent-state threads. Online, such a thread stands inside a section (ctr = QS + 1) from
 * one quiescent state to the next; a grace period asks it at once, and the quiescent state is
 * the answer. Offline it is an ordinary COLD reader outside of sections. See QS in
 * grace_period.c for the orders.
 */
#include "base/atomic.h"
#include "rcu/rcu_internal.h"

enum { ONLINE = GR_RCU_QS | 1 };

static void die_unless_registered(const struct gr_rcu_reader *r, const char *who)
{
	if (!r->is_qs) {
		gr_die("%s on a thread that is not registered for quiescent states", who);
	}
}

static void go_online(struct gr_rcu_reader *r)
{
	/* Online, before what the thread reads from now on. Pairs with F1. */
#ifdef GR_MUTANT_RCU_QS_ONLINE_NOFENCE
	gr_store_relaxed(&r->ctr, (uint32_t)ONLINE);
	gr_barrier();
#else
	gr_rcu_store_ctr_fence(r, ONLINE);
#endif
}

static void go_offline(struct gr_rcu_reader *r)
{
	gr_rcu_start_counting(r);
	/*
	 * Release: the thread's reads, before "offline" (R1). Full: then the look (O1). Pairs
	 * with the driver's fence between asking and looking again.
	 */
#ifdef GR_MUTANT_RCU_OFFLINE_NOFENCE
	gr_store_release(&r->ctr, GR_RCU_COLD);
	gr_barrier();
#else
	gr_rcu_store_ctr_fence(r, GR_RCU_COLD);
#endif
	gr_rcu_look_for_request(r);
}

void gr_rcu_qs_register_thread(void)
{
	struct gr_rcu_reader *r = &gr_rcu_self;

	if (r->is_qs) {
		gr_die("gr_rcu_qs_register_thread() on a thread that is registered already");
	}
	if (gr_rcu_read_ongoing()) {
		gr_die("gr_rcu_qs_register_thread() inside a read-side section");
	}
	if (r->late) {
		gr_die("gr_rcu_qs_register_thread() on a thread that is ending");
	}
	gr_rcu_register_thread();
	r->is_qs = 1;
	go_online(r);
}

void gr_rcu_qs_unregister_thread(void)
{
	struct gr_rcu_reader *r = &gr_rcu_self;

	die_unless_registered(r, "gr_rcu_qs_unregister_thread()");
	gr_rcu_thread_offline();
	r->is_qs = 0;
}

void gr_rcu_thread_offline(void)
{
	struct gr_rcu_reader *r = &gr_rcu_self;

	die_unless_registered(r, "gr_rcu_thread_offline()");
	if (gr_load_relaxed(&r->ctr) == ONLINE) {
		go_offline(r);
	} else if (gr_rcu_read_ongoing()) {
		gr_die("gr_rcu_thread_offline() inside a read-side section");
	}
}

void gr_rcu_thread_online(void)
{
	struct gr_rcu_reader *r = &gr_rcu_self;

	die_unless_registered(r, "gr_rcu_thread_online()");
	if (gr_load_relaxed(&r->ctr) == ONLINE) {
		return;
	}
	if (gr_rcu_read_ongoing()) {
		gr_die("gr_rcu_thread_online() inside a read-side section");
	}
	go_online(r);
}

void gr_rcu_quiescent_state_slow(void)
{
	struct gr_rcu_reader *r = &gr_rcu_self;

	die_unless_registered(r, "gr_rcu_quiescent_state()");
	if (gr_load_relaxed(&r->ctr) != ONLINE) {
		gr_die("gr_rcu_quiescent_state() %s", gr_rcu_read_ongoing()
							      ? "inside a read-side section"
							      : "while the thread is offline");
	}
	gr_rcu_report_from(r, __builtin_return_address(0));
}

void gr_rcu_qs_check(void)
{
	if ((gr_load_relaxed(&gr_rcu_self.ctr) & GR_RCU_QS) == 0) {
		gr_die("a quiescent-state section on a thread that is not online");
	}
}
