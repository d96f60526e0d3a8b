/* SPDX-License-Identifier: MIT */
/*
 * Waiting for grace periods, and sharing them.
 *
 * COOKIES. A grace period that starts from even seq s ends at s + 2. A cookie is the first
 * even value whose grace period starts from now on: s + 2 from even s, s + 3 from odd (the
 * one that runs may have begun too early). Whoever finds its cookie passed is served,
 * by whomever.
 *
 * WAITING FOR A DRIVER. Who finds gp_lock taken looks again for some microseconds, unless the
 * driver itself sleeps: most grace periods take less than falling asleep and being woken.
 * Then it sleeps on one of two words, by the parity of cookie / 2 (a sleeper's cookie is that of
 * the grace period that runs, or of the next one). A driver unlocks, *then* bumps both words,
 * *then* wakes all who may be served, and one of the others: it is the next driver. A sleeper
 * reads its word *before* it looks at seq and tries the lock. So a sleeper that failed to get
 * the lock has read its word before the holder's bump, and either does not fall asleep or
 * is woken. The driver bumps and wakes even if it found nothing to do: its holding the lock may
 * have sent somebody to sleep.
 *
 * Checked in every interleaving by models/sync.pml; bump before unlock, word read after the try, no
 * hand-over wake, and no bump when there was nothing to do each leave somebody asleep.
 *
 * Source: the cookies are the kernel's (rcu_seq).
 */
#include "base/atomic.h"
#include "base/clock.h"
#include "base/futex.h"
#include "rcu/checks.h"
#include "rcu/stall.h"
#include <sched.h>

enum { SPIN_NS = 10000 };

uint64_t gr_rcu_domain_get_state(struct gr_rcu_domain *domain)
{
	struct gr_rcu_domain *d = gr_rcu_domain_or_default(domain);

	/* Full: what the caller did, before the look at seq. Pairs with F1 of the driver. */
	gr_fence();
	return (gr_load_acquire(&d->seq) + 3) & ~1ull;
}

static bool is_passed(struct gr_rcu_domain *d, uint64_t cookie)
{
	/* Acquire: pairs with the driver's last release, which follows all the sections. */
	return (int64_t)(gr_load_acquire(&d->seq) - cookie) >= 0;
}

bool gr_rcu_domain_poll_state(struct gr_rcu_domain *domain, uint64_t cookie)
{
	if (!is_passed(gr_rcu_domain_or_default(domain), cookie)) {
		return false;
	}
	gr_fence(); /* nor may what the caller writes next come before a section's reads */
	return true;
}

/* True if it is worth looking at the cookie and the lock again without sleeping. */
static bool spin_for_driver(struct gr_rcu_domain *d, uint64_t cookie, uint64_t end_ns)
{
	while (gr_load_relaxed(&d->driver_sleeps) == 0 && gr_clock_ns() < end_ns) {
		gr_cpu_relax();
		if (is_passed(d, cookie) || (gr_load_relaxed(&d->seq) & 1) == 0) {
			return true;
		}
	}
	return false;
}

static void sleep_for_driver(struct gr_rcu_domain *d, unsigned parity, uint32_t seen)
{
	(void)gr_add_acq_rel(&d->waiters[parity], 1u);
	/* The count, before the kernel's look at the word. Pairs with the fence in hand_on(). */
	gr_fence();
	(void)gr_futex_wait(&d->word[parity], seen, GR_FUTEX_FOR_EVER);
	(void)gr_sub_acq_rel(&d->waiters[parity], 1u);
}

/* After the unlock: lets go whom the driver served, and appoints the next. */
static void hand_on(struct gr_rcu_domain *d, unsigned served)
{
	unsigned other = 1 - served;

	(void)gr_add_acq_rel(&d->word[0], 1u);
	(void)gr_add_acq_rel(&d->word[1], 1u);
	/* The bumps, before the look at the counts. Pairs with the fence in sleep_for_driver(). */
	gr_fence();
	if (gr_load_relaxed(&d->waiters[served]) != 0) {
		gr_futex_wake(&d->word[served], GR_FUTEX_ALL);
	}
#ifndef GR_MUTANT_RCU_NO_HANDOFF
	if (gr_load_relaxed(&d->waiters[other]) != 0) {
		gr_futex_wake(&d->word[other], 1);
	}
#else
	(void)other;
#endif
}

static void unlock_and_hand_on(struct gr_rcu_domain *d, unsigned served) GR_RELEASE(d->gp_lock)
{
#ifdef GR_MUTANT_RCU_BUMP_BEFORE_UNLOCK
	hand_on(d, served);
	sched_yield(); /* makes the bad schedule likely */
	gr_owned_mutex_unlock(&d->gp_lock);
#else
	gr_owned_mutex_unlock(&d->gp_lock);
	hand_on(d, served);
#endif
}

static void wait_for_cookie(struct gr_rcu_domain *d, uint64_t cookie)
{
	unsigned parity = (unsigned)(cookie / 2) & 1;
	uint64_t spin_end_ns = 0;

	for (;;) {
		/* Acquire: before the looks at seq and the lock (see WAITING above). */
		uint32_t seen = gr_load_acquire(&d->word[parity]);

		if (gr_rcu_domain_poll_state(d, cookie)) {
			GR_RCU_COUNT_SHARED(d, merged, 1);
			return;
		}
		if (!gr_owned_mutex_trylock(&d->gp_lock)) {
			if (spin_end_ns == 0) {
				spin_end_ns = gr_clock_ns() + SPIN_NS;
			}
			if (!spin_for_driver(d, cookie, spin_end_ns)) {
				sleep_for_driver(d, parity, seen);
				spin_end_ns = 0;
			}
			continue;
		}
		if (!gr_rcu_domain_poll_state(d, cookie)) {
			gr_rcu_register_thread(); /* or each look would block signals */
			gr_rcu_run_grace_period(d);
		}
		unlock_and_hand_on(d, parity);
		if (gr_rcu_domain_poll_state(d, cookie)) {
			return;
		}
	}
}

struct gr_rcu_reader *gr_rcu_wait_begin(struct gr_rcu_domain *d, const char *who)
{
	struct gr_rcu_reader *r = gr_rcu_domain_reader(d);

	if (gr_rcu_in_notifier()) {
		gr_die("%s in a notifier: the grace period that it hurries would never end", who);
	}
	if (gr_rcu_in_stall_report()) {
		gr_die("%s in a stall handler: the grace period it reports would never end", who);
	}
	if (!r || !gr_rcu_read_ongoing_on(r)) {
		return NULL;
	}
	if (gr_load_relaxed(&r->ctr) != (GR_RCU_QS | 1)) {
		gr_die("%s inside a read-side section would never end", who);
	}
#ifdef GR_MUTANT_RCU_WAIT_STAYS_ONLINE
	return NULL;
#else
	gr_rcu_thread_offline();
	return r;
#endif
}

void gr_rcu_wait_end(struct gr_rcu_reader *r)
{
	if (r) {
		gr_rcu_thread_online();
	}
}

static void cond_synchronize(struct gr_rcu_domain *d, uint64_t cookie, const char *who)
{
	struct gr_rcu_reader *qs = gr_rcu_wait_begin(d, who);

	gr_rcu_check_wait(d, NULL, who);
	wait_for_cookie(d, cookie);
	gr_rcu_wait_end(qs);
}

void gr_rcu_domain_cond_synchronize(struct gr_rcu_domain *domain, uint64_t cookie)
{
	cond_synchronize(gr_rcu_domain_or_default(domain), cookie, "gr_rcu_cond_synchronize()");
}

void gr_rcu_domain_synchronize(struct gr_rcu_domain *domain)
{
	struct gr_rcu_domain *d = gr_rcu_domain_or_default(domain);

	cond_synchronize(d, gr_rcu_domain_get_state(d), "gr_rcu_synchronize()");
}

/* (o) The domain whose grace period this thread has no patience for, for forks meanwhile. */
static __thread struct gr_rcu_domain *impatient_for;

void gr_rcu_domain_synchronize_expedited(struct gr_rcu_domain *domain)
{
	struct gr_rcu_domain *d = gr_rcu_domain_or_default(domain);

	/* A handler that forks just before the addition makes the child impatient: no harm. */
	impatient_for = d;
	(void)gr_add_acq_rel(&d->expedited, 1u);
	/* A driver that sleeps for somebody else, or for us, looks at it again. */
	gr_rcu_nudge_driver(d);
	cond_synchronize(d, gr_rcu_domain_get_state(d), "gr_rcu_synchronize_expedited()");
	(void)gr_sub_acq_rel(&d->expedited, 1u);
	impatient_for = NULL;
}

/* The default domain. */

void gr_rcu_synchronize(void)
{
	gr_rcu_domain_synchronize(NULL);
}

void gr_rcu_synchronize_expedited(void)
{
	gr_rcu_domain_synchronize_expedited(NULL);
}

uint64_t gr_rcu_get_state(void)
{
	return gr_rcu_domain_get_state(NULL);
}

bool gr_rcu_poll_state(uint64_t cookie)
{
	return gr_rcu_domain_poll_state(NULL, cookie);
}

void gr_rcu_cond_synchronize(uint64_t cookie)
{
	gr_rcu_domain_cond_synchronize(NULL, cookie);
}

uint64_t gr_rcu_start_poll(void)
{
	return gr_rcu_domain_start_poll(NULL);
}

void gr_rcu_seq_set_for_test(struct gr_rcu_domain *d, uint64_t seq)
{
	GR_ASSERT((seq & 1) == 0);
	gr_store_release(&d->seq, seq);
	gr_store_release(&d->poll.wanted, seq);
}

/*
 * In a fork child: a driver, if there was one, is gone with its thread. Nothing it began has
 * been announced, so the grace period goes back to not begun; cookies stay right. But if the driver
 * itself has forked, in a notifier, a stall handler or a signal handler, it comes back to end its
 * grace period: that runs on, with nobody left to wait for. Whatever it does to pending until
 * it sees that it is alone, pending is far from 0, and with the flag no sleep begins.
 */
void gr_rcu_synchronize_after_fork_in_child(struct gr_rcu_domain *d)
{
#ifdef GR_MUTANT_RCU_FORK_FORGETS_DRIVER
	bool drives = false;

	gr_owned_mutex_init(&d->gp_lock, GR_RANK_RCU_GP);
#else
	bool drives = gr_owned_mutex_is_mine(&d->gp_lock);

	gr_owned_mutex_after_fork_in_child(&d->gp_lock);
#endif
	if (drives) {
		d->pending = GR_RCU_PENDING_COUNT / 2 | GR_RCU_PENDING_HURRY;
		d->alone = true;
	} else {
		d->seq &= ~1ull;
		d->driver_sleeps = 0;
		d->fencing = 0;
		d->pending = 0;
		d->calling = NULL;
		d->stats.reports = d->stats.requests - d->stats.claims; /* whom it asked is gone */
	}
	d->expedited = impatient_for == d;
	d->stall.notes = 0;
	for (unsigned i = 0; i < 2; i++) {
		d->waiters[i] = 0;
	}
}
