/* SPDX-License-Identifier: MIT */
/*
 * Readers: the record of each thread, how it comes and goes, and the slow paths of the
 * inline read side.
 *
 * A thread's record is its own TLS object, linked into the default domain's registry:
 * registering allocates nothing and cannot fail. Only the owner writes ctr. Signals: a handler may
 * run a whole section anywhere in its thread, also between the load and the store of ctr in
 * the inline code. It leaves ctr as it found it, except that it may register the thread
 * (0 -> COLD, where the interrupted code goes to the slow path anyway, which looks again) or
 * make it HOT or WARM where the interrupted code then stores COLD + 1 with a fence: legal,
 * COLD needs less. If it comes between such a store and its fence it nests in a section that a driver
 * may not see yet; so where an interrupt does not empty the store buffer that store says
 * ENTERING, and the handler fences itself. Registering, and all that holds the registry's lock on an unregistered
 * thread, runs with signals blocked.
 *
 * At its end the thread's exit hook takes the record out. Destructors of other keys that run
 * later may still use sections: the thread is LATE then, registered only while inside, with
 * nothing left behind when its memory goes.
 *
 * Models: models/gp.pml, models/promote.pml (becoming HOT and COLD).
 */
#include "base/atomic.h"
#include "base/clock.h"
#include "base/heavy_fence.h"
#include "base/thread_exit.h"
#include "base/thread_info.h"
#include "rcu/stall.h"
#include "rcu/trace.h"

#ifndef _WIN32
__thread struct gr_rcu_reader gr_rcu_self;
#endif
struct gr_rcu_section_capability gr_rcu_section;

static struct gr_once init_once = GR_ONCE_INIT;
static struct gr_thread_exit exit_hook;

void gr_rcu_registry_lock(struct gr_rcu_domain *d, struct gr_rcu_signals *saved) GR_NO_TSA
{
	saved->blocked = gr_load_relaxed(&gr_rcu_self.ctr) == 0;
	if (saved->blocked) {
		gr_signals_block(&saved->mask);
	}
	gr_owned_mutex_lock(&d->registry_lock);
}

void gr_rcu_registry_unlock(struct gr_rcu_domain *d, const struct gr_rcu_signals *saved) GR_NO_TSA
{
	gr_owned_mutex_unlock(&d->registry_lock);
	if (saved->blocked) {
		gr_signals_restore(&saved->mask);
	}
}

void gr_rcu_reader_link(struct gr_rcu_domain *d, struct gr_rcu_reader *r, uint32_t ctr)
{
	gr_store_relaxed(&r->tid, gr_thread_id());
	gr_owned_mutex_lock(&d->registry_lock);
	r->awaited = 0;
	gr_store_relaxed(&r->stalled, 0u);
	gr_mutex_lock(&gr_rcu_lists_lock);
	r->next = d->readers;
	r->pprev = &d->readers;
	if (r->next) {
		r->next->pprev = &r->next;
	}
	d->readers = r;
	gr_store_relaxed(&r->ctr, ctr);
	gr_mutex_unlock(&gr_rcu_lists_lock);
	gr_owned_mutex_unlock(&d->registry_lock);
	/*
	 * A driver that scans later finds the record. One that scanned before we took the lock
	 * released it first, so our sections see what it saw unlinked. The fence is for ctr =
	 * LATE + 1, which must be out before the section reads. Pairs with F1.
	 */
	gr_fence();
}

void gr_rcu_reader_unlink_locked(struct gr_rcu_domain *d, struct gr_rcu_reader *r)
{
	(void)d;
	gr_mutex_lock(&gr_rcu_lists_lock);
	*r->pprev = r->next;
	if (r->next) {
		r->next->pprev = r->pprev;
	}
	gr_mutex_unlock(&gr_rcu_lists_lock);
	r->awaited = 0;
	/* R1, as in unlock; and the lock orders it before the driver's next look. */
	gr_store_release(&r->ctr, 0);
	gr_rcu_report_from(r, NULL); /* nobody would look at this record again */
}

void gr_rcu_reader_unlink(struct gr_rcu_reader *r)
{
	struct gr_rcu_domain *d = gr_rcu_domain_or_default(r->domain);

	gr_owned_mutex_lock(&d->registry_lock);
	gr_rcu_reader_unlink_locked(d, r);
	gr_owned_mutex_unlock(&d->registry_lock);
}

/* A thread's own record leaves, outside any section. Returns false if that is not so. */
static bool leave(struct gr_rcu_reader *r)
{
	uint32_t ctr = gr_load_relaxed(&r->ctr);
	struct gr_signals saved;

	if ((ctr & GR_RCU_DEPTH) != 0 && ctr != (GR_RCU_QS | 1)) {
		return false;
	}
	if (ctr == 0) {
		return true;
	}
	gr_rcu_notifiers_drop(&gr_rcu_default, r);
	gr_signals_block(&saved);
	gr_rcu_reader_unlink(r);
	r->is_qs = 0;
	gr_signals_restore(&saved);
	return true;
}

static void leave_at_exit(void *record)
{
	struct gr_rcu_reader *r = record;

	if (!leave(r)) {
		gr_die("a thread ends inside a read-side section");
	}
	r->late = 1;
#ifndef GR_MUTANT_RCU_EXIT_KEEPS_DOMAINS
	gr_rcu_domain_leave_all();
#endif
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

void gr_rcu_watch_thread_exit(void)
{
	gr_once(&init_once, init);
	if (gr_thread_exit_set(&exit_hook, &gr_rcu_self) != 0) {
		gr_die("no memory to register an RCU reader");
	}
}

static uint32_t clock_1024ns(void)
{
	return (uint32_t)(gr_clock_ns() >> 10) | 1; /* 0 has another meaning */
}

void gr_rcu_start_counting(struct gr_rcu_reader *r)
{
	/* Without a process-wide fence nobody may become HOT: ask again in 2^32 sections. */
	r->cold_left = gr_heavy_fence_available() ? GR_RCU_COLD_SECTIONS : UINT32_MAX;
	r->cold_since = 0;
}

/* So many COLD sections were entered. Quickly? Otherwise the next row begins. */
static bool may_become_hot(struct gr_rcu_reader *r)
{
	uint32_t now, since = r->cold_since;

	if (!gr_heavy_fence_available()) {
		gr_rcu_start_counting(r);
		return false;
	}
	now = clock_1024ns();
	if (since != 0 && now - since <= GR_RCU_COLD_SPAN) {
		return true;
	}
	r->cold_since = now;
	r->cold_left = GR_RCU_COLD_SECTIONS;
	return false;
}

void gr_rcu_make_eager_for_test(struct gr_rcu_reader *r)
{
	r->cold_left = 0;
	r->cold_since = clock_1024ns();
}

static void register_self(struct gr_rcu_reader *r)
{
	struct gr_signals saved;

	gr_signals_block(&saved);
	if (gr_load_relaxed(&r->ctr) == 0) {
		gr_rcu_watch_thread_exit();
		gr_rcu_start_counting(r);
		gr_rcu_reader_link(&gr_rcu_default, r, GR_RCU_COLD);
	}
	gr_signals_restore(&saved);
}

static void enter_late(struct gr_rcu_reader *r)
{
	struct gr_signals saved;

	gr_signals_block(&saved);
	gr_rcu_reader_link(&gr_rcu_default, r, GR_RCU_LATE + 1);
	gr_signals_restore(&saved);
}

/* The reader has earned it, or loses its chance for a while. Enters the section. */
static void enter_hot(struct gr_rcu_reader *r)
{
	/*
	 * The fence: a driver that did not see us HOT and skips M1 must be seen by this
	 * section and all that follow. Pairs with F1.
	 */
#ifdef GR_MUTANT_RCU_PROMOTE_NOFENCE
	gr_store_relaxed(&r->ctr, gr_rcu_quiet_grade() + 1);
	gr_barrier();
#else
	gr_rcu_store_ctr_fence(r, gr_rcu_quiet_grade() + 1);
	/* The first quiet time may have begun meanwhile. Nobody is entering below us: legal. */
	gr_store_relaxed(&r->ctr, gr_rcu_quiet_grade() + 1);
#endif
}

static void register_or_die(struct gr_rcu_reader *r)
{
	if (r != &gr_rcu_self) {
		gr_die("a section on an RCU reader that is not initialised, or is gone");
	}
	register_self(r);
}

void gr_rcu_read_lock_slow(struct gr_rcu_reader *r)
{
	uint32_t v = gr_load_relaxed(&r->ctr);

	if ((v & GR_RCU_DEPTH) == GR_RCU_DEPTH) {
		gr_die("gr_rcu_read_lock() is nested more than %u deep", GR_RCU_DEPTH);
	}
	if ((v & GR_RCU_ENTERING) != 0 && (v & GR_RCU_DEPTH) != 0) {
		/* A handler between the store and the fence of the code that it interrupts. */
		gr_fence(); /* that store, before what the handler reads. As C1 and H3. */
		gr_store_relaxed(&r->ctr, v + 1);
		return;
	}
	if (v == 0 && r->late) {
		enter_late(r);
		return;
	}
	if (v == 0) {
		register_or_die(r);
	}
	if (r->cold_left == 0 && may_become_hot(r)) {
		enter_hot(r);
		return;
	}
	r->cold_left--;
	gr_rcu_store_ctr_fence(r, GR_RCU_COLD + 1); /* C1 of rcu.h */
}

void gr_rcu_read_unlock_slow(struct gr_rcu_reader *r)
{
	struct gr_signals saved;

	if (gr_load_relaxed(&r->ctr) != GR_RCU_LATE + 1) {
		gr_die("gr_rcu_read_unlock() without gr_rcu_read_lock()");
	}
	gr_signals_block(&saved);
	gr_rcu_reader_unlink(r);
	gr_signals_restore(&saved);
}

void gr_rcu_report_from(struct gr_rcu_reader *r, const void *site)
{
	/*
	 * Exactly one side takes a request back: this exchange or the driver's. Acquire and
	 * release: the sections before it are visible to the driver, through pending; those
	 * after it on a quiescent-state thread see what came before the request.
	 */
	if (gr_xchg_acq_rel(&r->need_qs, 0u) == 1) {
		gr_rcu_stall_note_end(r, site);
		GR_TRACE2(rcu_reader_reported, r, gr_load_relaxed(&r->tid));
		gr_rcu_pending_down(gr_rcu_domain_or_default(r->domain));
	}
}

void gr_rcu_report(struct gr_rcu_reader *r)
{
	gr_rcu_report_from(r, __builtin_return_address(0)); /* code of the inline unlock */
}

void gr_rcu_park_on(struct gr_rcu_reader *r)
{
	uint32_t ctr = gr_load_relaxed(&r->ctr);

	if (ctr == GR_RCU_HOT || ctr == GR_RCU_WARM) {
		/*
		 * The owner itself, outside: release as in unlock (R1). No fence is needed: a
		 * driver that still sees HOT only does more than it must.
		 */
		gr_store_release(&r->ctr, GR_RCU_COLD);
		gr_rcu_look_for_request(r);
	}
	if (r->cold_left < GR_RCU_COLD_SECTIONS || r->cold_since != 0) {
		gr_rcu_start_counting(r);
	}
}

void gr_rcu_park(void)
{
	gr_rcu_park_on(&gr_rcu_self);
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
	if (!leave(&gr_rcu_self)) {
		gr_die("gr_rcu_unregister_thread() inside a read-side section");
	}
}
