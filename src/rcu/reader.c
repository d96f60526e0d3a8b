/* SPDX-License-Identifier: MIT */
/*
 * Readers: the record of each thread, how it comes and goes, and the slow paths of the
 * inline read side.
 *
 * A record is the thread's own TLS object, linked into the registry: registering allocates
 * nothing and cannot fail. Only the owner writes ctr. Signals: a handler may run a whole
 * section anywhere in its thread, also between the load and the store of ctr in the inline
 * code. It leaves ctr as it found it, except that it may register the thread (0 -> COLD, where
 * the interrupted code goes to the slow path anyway, which looks again) or make it HOT where
 * the interrupted code then stores COLD + 1 with a fence: legal, COLD needs less.
 * Registering, and all that holds the registry's lock on an unregistered thread, runs
 * with signals blocked.
 *
 * At its end the thread's exit hook takes the record out. Destructors of
 * other keys that run later may still use sections: the thread is LATE then, registered
 * only while inside, with nothing left behind when its memory goes.
 */
#include "base/atomic.h"
#include "base/heavy_fence.h"
#include "base/thread_exit.h"
#include "rcu/rcu_internal.h"
#include <guestram/event.h>

#ifndef _WIN32
__thread struct gr_rcu_reader gr_rcu_self;
#endif
struct gr_rcu_section_capability gr_rcu_section;
struct gr_rcu_registry gr_rcu_registry = { .lock = GR_MUTEX_INIT(GR_RANK_RCU_REGISTRY) };

static struct gr_once init_once = GR_ONCE_INIT;
static struct gr_thread_exit exit_hook;

void gr_rcu_registry_lock(struct gr_rcu_signals *saved) GR_NO_TSA
{
	saved->blocked = gr_load_relaxed(&gr_rcu_self.ctr) == 0;
	if (saved->blocked) {
		gr_signals_block(&saved->mask);
	}
	gr_mutex_lock(&gr_rcu_registry.lock);
}

void gr_rcu_registry_unlock(const struct gr_rcu_signals *saved) GR_NO_TSA
{
	gr_mutex_unlock(&gr_rcu_registry.lock);
	if (saved->blocked) {
		gr_signals_restore(&saved->mask);
	}
}

/* The owner links itself. With signals blocked. */
static void link_record(struct gr_rcu_reader *r, uint32_t ctr)
{
	gr_mutex_lock(&gr_rcu_registry.lock);
	r->awaited = 0;
	r->next = gr_rcu_registry.first;
	r->pprev = &gr_rcu_registry.first;
	if (r->next) {
		r->next->pprev = &r->next;
	}
	gr_rcu_registry.first = r;
	gr_store_relaxed(&r->ctr, ctr);
	gr_mutex_unlock(&gr_rcu_registry.lock);
	/*
	 * A driver that scans later finds the record. One that scanned before we took the lock
	 * released it first, so our sections see what it saw unlinked. The fence is for ctr =
	 * LATE + 1, which must be out before the section reads. Pairs with F1.
	 */
	gr_fence();
}

/* The owner leaves, outside any section (its own ending one included). Signals blocked. */
static void unlink_record(struct gr_rcu_reader *r)
{
	gr_mutex_lock(&gr_rcu_registry.lock);
	*r->pprev = r->next;
	if (r->next) {
		r->next->pprev = r->pprev;
	}
	r->awaited = 0;
	/* R1, as in unlock; and the lock orders it before the driver's next look. */
	gr_store_release(&r->ctr, 0);
	gr_rcu_report(); /* nobody would look at this record again */
	gr_mutex_unlock(&gr_rcu_registry.lock);
}

static void leave_at_exit(void *record)
{
	struct gr_rcu_reader *r = record;
	struct gr_signals saved;

	if (gr_rcu_read_ongoing()) {
		gr_die("a thread ends inside a read-side section");
	}
	gr_signals_block(&saved);
	if (gr_load_relaxed(&r->ctr) != 0) {
		unlink_record(r);
	}
	r->late = 1;
	gr_signals_restore(&saved);
}

static void init(void)
{
	int ret = gr_thread_exit_init(&exit_hook, leave_at_exit);

	if (ret != 0) {
		gr_die("no thread-exit hook for RCU readers: errno %d", -ret);
	}
	gr_rcu_fork_install();
}

/* Early, so that the key is one of the first: those need no memory when they are set. */
__attribute__((constructor)) static void init_early(void)
{
	gr_once(&init_once, init);
}

static void reload_cold_left(struct gr_rcu_reader *r)
{
	/* Without a process-wide fence nobody may become HOT: ask again in 2^32 sections. */
	r->cold_left = gr_heavy_fence_available() ? GR_RCU_COLD_SECTIONS : UINT32_MAX;
}

static void register_self(struct gr_rcu_reader *r)
{
	struct gr_signals saved;

	gr_signals_block(&saved);
	gr_once(&init_once, init);
	if (gr_load_relaxed(&r->ctr) == 0) {
		reload_cold_left(r);
		if (gr_thread_exit_set(&exit_hook, r) != 0) {
			gr_die("no memory to register an RCU reader");
		}
		link_record(r, GR_RCU_COLD);
	}
	gr_signals_restore(&saved);
}

static void enter_late(struct gr_rcu_reader *r)
{
	struct gr_signals saved;

	gr_signals_block(&saved);
	link_record(r, GR_RCU_LATE + 1);
	gr_signals_restore(&saved);
}

void gr_rcu_read_lock_slow(void)
{
	struct gr_rcu_reader *r = &gr_rcu_self;
	uint32_t v = gr_load_relaxed(&r->ctr);

	if ((v & GR_RCU_DEPTH) == GR_RCU_DEPTH) {
		gr_die("gr_rcu_read_lock() is nested more than %u deep", GR_RCU_DEPTH);
	}
	if (v == 0 && r->late) {
		enter_late(r);
		return;
	}
	if (v == 0) {
		register_self(r);
	}
	if (r->cold_left == 0 && gr_heavy_fence_available()) {
		/*
		 * Become HOT. The fence: a driver that did not see us HOT and skips M1 must be
		 * seen by this section and all that follow. Pairs with F1.
		 */
#ifdef GR_MUTANT_RCU_PROMOTE_NOFENCE
		gr_store_relaxed(&r->ctr, GR_RCU_HOT + 1);
		gr_barrier();
#else
		gr_rcu_store_ctr_fence(r, GR_RCU_HOT + 1);
#endif
		return;
	}
	if (r->cold_left == 0) {
		reload_cold_left(r);
	}
	r->cold_left--;
	gr_rcu_store_ctr_fence(r, GR_RCU_COLD + 1); /* C1 of rcu.h */
}

void gr_rcu_read_unlock_slow(void)
{
	struct gr_rcu_reader *r = &gr_rcu_self;
	struct gr_signals saved;

	if (gr_load_relaxed(&r->ctr) != GR_RCU_LATE + 1) {
		gr_die("gr_rcu_read_unlock() without gr_rcu_read_lock()");
	}
	gr_signals_block(&saved);
	unlink_record(r);
	gr_signals_restore(&saved);
}

void gr_rcu_report(void)
{
	/*
	 * Exactly one side takes a request back: this exchange or the driver's. Acquire and
	 * release: the sections before it are visible to the driver, through pending.
	 */
	if (gr_xchg_acq_rel(&gr_rcu_self.need_qs, 0u) == 1) {
		gr_rcu_pending_down(true);
	}
}

void gr_rcu_park(void)
{
	struct gr_rcu_reader *r = &gr_rcu_self;

	if (gr_load_relaxed(&r->ctr) == GR_RCU_HOT) {
		/*
		 * The owner itself, outside: release as in unlock (R1). No fence is needed: a
		 * driver that still sees HOT only does more than it must.
		 */
		gr_store_release(&r->ctr, GR_RCU_COLD);
		gr_rcu_look_for_request(r);
	}
	if (r->cold_left < GR_RCU_COLD_SECTIONS) {
		reload_cold_left(r);
	}
}

void gr_rcu_register_thread(void)
{
	struct gr_rcu_reader *r = &gr_rcu_self;

	if (gr_load_relaxed(&r->ctr) == 0 && !r->late) {
		register_self(r);
	}
}

void gr_rcu_unregister_thread(void)
{
	struct gr_rcu_reader *r = &gr_rcu_self;
	struct gr_signals saved;

	if (gr_rcu_read_ongoing()) {
		gr_die("gr_rcu_unregister_thread() inside a read-side section");
	}
	gr_signals_block(&saved);
	if (gr_load_relaxed(&r->ctr) != 0) {
		unlink_record(r);
		(void)gr_thread_exit_set(&exit_hook, NULL);
	}
	gr_signals_restore(&saved);
}
