/* SPDX-License-Identifier: MIT */
/*
 * Asking readers to hurry. Notifiers hang on their thread's record, under the registry's lock.
 * The driver picks one whose reader holds it up, marks it as being called, unlocks, calls,
 * locks, takes the mark back: it does not touch the notifier after the call, which may have
 * removed it. Whoever removes a notifier takes it off the list, then waits until it is
 * not marked. One driver at a time, so one mark per domain is enough.
 */
#include "base/atomic.h"
#include "base/clock.h"
#include "base/futex.h"
#include "rcu/rcu_internal.h"

enum { PAUSE_MIN_NS = 1000000, PAUSE_MAX_NS = 1000000000 };

static gr_atomic_u64 deadline_ns = GR_RCU_DEADLINE_NS; /* (a) */

/* (o) The domain whose notifier this thread is calling. */
static __thread struct gr_rcu_domain *calling_for;

bool gr_rcu_in_notifier(void)
{
	return calling_for != NULL;
}

void gr_rcu_set_deadline_ns(uint64_t ns)
{
	gr_store_relaxed(&deadline_ns, ns);
}

/* One that hangs on a reader which holds us up, and was not called in this round. */
static struct gr_rcu_notifier *pick(struct gr_rcu_domain *d) GR_REQUIRES(d->registry_lock)
{
	for (struct gr_rcu_reader *r = d->readers; r; r = r->next) {
		if (!r->notifiers || !gr_rcu_holds_up(r)) {
			continue;
		}
		for (struct gr_rcu_notifier *n = r->notifiers; n; n = n->next) {
			if (n->round != d->round) {
				return n;
			}
		}
	}
	return NULL;
}

static bool call_one(struct gr_rcu_domain *d)
{
	struct gr_rcu_signals saved;
	struct gr_rcu_notifier *n;

	gr_rcu_registry_lock(d, &saved);
	n = pick(d);
	if (n) {
		n->round = d->round;
		d->calling = n;
	}
	gr_rcu_registry_unlock(d, &saved);
	if (!n) {
		return false;
	}
	calling_for = d;
	n->func(n);
	calling_for = NULL;
	GR_RCU_COUNT(d, hurries, 1);
	gr_rcu_registry_lock(d, &saved);
	d->calling = NULL;
	gr_rcu_registry_unlock(d, &saved);
	/* After the lock: who waits has read the word under it, and looks at the mark again. */
	(void)gr_add_acq_rel(&d->calls, 1u);
	gr_futex_wake(&d->calls, GR_FUTEX_ALL);
	return true;
}

void gr_rcu_patience_init(struct gr_rcu_patience *p, uint64_t start_ns)
{
	uint64_t wait_ns = gr_load_relaxed(&deadline_ns);

	p->wait_ns = GR_MAX(wait_ns, (uint64_t)PAUSE_MIN_NS);
	p->due_ns = wait_ns < UINT64_MAX - start_ns ? start_ns + wait_ns : UINT64_MAX;
	p->hurried = false;
}

uint64_t gr_rcu_patience_check(struct gr_rcu_domain *d, struct gr_rcu_patience *p)
{
	bool now = gr_load_acquire(&d->expedited) != 0 && !p->hurried;
	uint64_t clock_ns;

	if (gr_load_relaxed(&d->notifiers) == 0) {
		return GR_FUTEX_FOR_EVER;
	}
	clock_ns = gr_clock_ns();
	if (now || clock_ns >= p->due_ns) {
		p->hurried |= now;
		d->round++;
		while (call_one(d)) {
		}
		clock_ns = gr_clock_ns();
		if (clock_ns >= p->due_ns) {
			p->due_ns = clock_ns + p->wait_ns;
			p->wait_ns = p->wait_ns < PAUSE_MAX_NS ? 2 * p->wait_ns : p->wait_ns;
		}
	}
	return p->due_ns == UINT64_MAX ? GR_FUTEX_FOR_EVER : p->due_ns - clock_ns;
}

void gr_rcu_nudge_driver(struct gr_rcu_domain *d)
{
	/*
	 * What is announced came before. The driver takes the flag back, then looks at that; or
	 * it has stored pending after us, and fences before it looks.
	 */
	gr_fence();
	if (gr_load_relaxed(&d->pending) != 0) {
		(void)gr_or_acq_rel(&d->pending, GR_RCU_PENDING_HURRY);
		gr_futex_wake(&d->pending, 1);
	}
}

void gr_rcu_add_notifier(struct gr_rcu_notifier *notifier)
{
	struct gr_rcu_domain *d = &gr_rcu_default;
	struct gr_rcu_reader *r = &gr_rcu_self;
	struct gr_rcu_signals saved;

	if (!notifier->func) {
		gr_die("gr_rcu_add_notifier() without a function");
	}
	gr_rcu_register_thread();
	if (gr_load_relaxed(&r->ctr) == 0) {
		gr_die("gr_rcu_add_notifier() on a thread that is ending");
	}
	gr_rcu_registry_lock(d, &saved);
	notifier->reader = r;
	notifier->round = 0; /* of none yet: the first is 1 */
	notifier->next = r->notifiers;
	notifier->pprev = &r->notifiers;
	if (notifier->next) {
		notifier->next->pprev = &notifier->next;
	}
	r->notifiers = notifier;
	gr_store_relaxed(&d->notifiers, d->notifiers + 1);
	gr_rcu_registry_unlock(d, &saved);
	gr_rcu_nudge_driver(d);
}

static void unlink_notifier(struct gr_rcu_domain *d, struct gr_rcu_notifier *n)
	GR_REQUIRES(d->registry_lock)
{
	*n->pprev = n->next;
	if (n->next) {
		n->next->pprev = n->pprev;
	}
	n->pprev = NULL;
	n->reader = NULL;
	gr_store_relaxed(&d->notifiers, d->notifiers - 1);
}

/* Takes n off its list and waits for a call of it. Returns with the lock held. */
static void remove_locked(struct gr_rcu_domain *d, struct gr_rcu_notifier *n,
			  struct gr_rcu_signals *saved) GR_REQUIRES(d->registry_lock)
{
	if (n->pprev) {
		unlink_notifier(d, n);
	}
#ifndef GR_MUTANT_RCU_NOTIFIER_REMOVE_NOWAIT
	while (d->calling == n && calling_for != d) {
		uint32_t seen = gr_load_acquire(&d->calls);

		gr_rcu_registry_unlock(d, saved);
		(void)gr_futex_wait(&d->calls, seen, GR_FUTEX_FOR_EVER);
		gr_rcu_registry_lock(d, saved);
	}
#else
	(void)saved;
#endif
}

void gr_rcu_remove_notifier(struct gr_rcu_notifier *notifier)
{
	struct gr_rcu_domain *d = &gr_rcu_default;
	struct gr_rcu_signals saved;

	gr_rcu_registry_lock(d, &saved);
	remove_locked(d, notifier, &saved);
	gr_rcu_registry_unlock(d, &saved);
}

void gr_rcu_notifiers_drop(struct gr_rcu_domain *d, struct gr_rcu_reader *r)
{
	struct gr_rcu_signals saved;

	gr_rcu_registry_lock(d, &saved);
	while (r->notifiers) {
		remove_locked(d, r->notifiers, &saved);
	}
	gr_rcu_registry_unlock(d, &saved);
}
