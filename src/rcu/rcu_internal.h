/* SPDX-License-Identifier: MIT */
/* What the files of src/rcu share: the registry, the grace period's state, statistics. */
#ifndef GR_RCU_INTERNAL_H
#define GR_RCU_INTERNAL_H

#include "base/mutex.h"
#include "base/signals.h"
#include <guestram/rcu.h>

/* Sections in a row that a COLD thread enters before it tries to become HOT. */
#define GR_RCU_COLD_SECTIONS 256u

/* All readers of the process. */
struct gr_rcu_registry {
	/*
	 * Protects first and the second line of each record, and keeps the records alive: a
	 * thread cannot leave while it is held. Not ctr and need_qs. Never held across a
	 * wait, a system call that may take long, or a callback.
	 */
	struct gr_mutex lock;
	struct gr_rcu_reader *first; /* (l) */
};
extern struct gr_rcu_registry gr_rcu_registry;

/*
 * Takes the registry's lock. A handler on a thread that is not registered would want it too,
 * to register: so signals are blocked there, and only there (a registered thread costs no
 * system call). Returns through saved what gr_rcu_registry_unlock() needs.
 */
struct gr_rcu_signals {
	struct gr_signals mask;
	bool blocked;
};
void gr_rcu_registry_lock(struct gr_rcu_signals *saved) GR_ACQUIRE(gr_rcu_registry.lock);
void gr_rcu_registry_unlock(const struct gr_rcu_signals *saved)
	GR_RELEASE(gr_rcu_registry.lock);

/* What one grace period after another counts. (a) each; read by tests. */
struct gr_rcu_stats {
	gr_atomic_u64 grace_periods; /* run by a driver */
	gr_atomic_u64 merged;	/* synchronize calls that somebody else's grace period served */
	gr_atomic_u64 entry_fences;	/* M1: a reader was HOT */
	gr_atomic_u64 flag_fences;	/* M2: a HOT reader had to be awaited */
	gr_atomic_u64 sleeps;	/* futex waits of drivers for readers */
	gr_atomic_u64 requests;	/* need_qs flags set */
	gr_atomic_u64 reports;	/* of them taken back by the reader... */
	gr_atomic_u64 claims;	/* ...or by the driver */
	gr_atomic_u64 reader_wakes;	/* futex wakes by readers */
	gr_atomic_u64 rescans;	/* timed looks where no process-wide fence had been issued */
};
void gr_rcu_stats_get(struct gr_rcu_stats *ret_stats);
extern struct gr_rcu_stats gr_rcu_stats;
#define GR_RCU_COUNT(what, n) ((void)gr_add_relaxed(&gr_rcu_stats.what, (uint64_t)(n)))

/* One request taken back: pending goes down, and whoever brings it to 0 wakes the driver. */
void gr_rcu_pending_down(bool by_reader);

/* Has start_poll asked for a grace period that has not come? The default worker asks. */
bool gr_rcu_poll_wanted(void);
/* Completes what start_poll asked for. Sleeps. */
void gr_rcu_poll_serve(void);
/* Makes the default queue's worker look at gr_rcu_poll_wanted(). */
void gr_rcu_queue_kick_default(void);

/* Tests: start the sequence near an edge. No grace period may be running. */
void gr_rcu_seq_set_for_test(uint64_t seq);

/* fork(): each module freezes, thaws, or mends itself in the child. */
void gr_rcu_queues_before_fork(void);
void gr_rcu_queues_after_fork(bool in_child);
void gr_rcu_grace_period_after_fork_in_child(void);
void gr_rcu_fork_install(void);

#endif
