/* SPDX-License-Identifier: MIT */
/**
 * guestram/rcu_control.h - make grace periods hurry, keep them quiet, and look at them.
 *
 * Hurry: a reader that holds up a grace period for longer than the deadline is asked, through
 * a *notifier* of its thread, to end its section: kick the vCPU out of the guest, set a flag
 * that a long loop looks at. gr_rcu_synchronize_expedited() does not wait for the deadline.
 *
 * Quiet: a grace period may use a process-wide fence, which interrupts every CPU that runs
 * this process and takes vCPUs out of guest mode for a moment. In *quiet times* none does;
 * readers pay a fence each instead.
 */
#ifndef GUESTRAM_RCU_CONTROL_H
#define GUESTRAM_RCU_CONTROL_H

#include <guestram/rcu.h>

GR_BEGIN_DECLS

/** Asks one thread to hurry. In the caller's memory; set func, then gr_rcu_add_notifier(). */
struct gr_rcu_notifier {
	/** Runs on the thread that drives the grace period. Must not wait for one. */
	void (*func)(struct gr_rcu_notifier *notifier);
	/* The rest is private, under the registry's mutex. */
	struct gr_rcu_reader *reader;
	struct gr_rcu_notifier *next;
	struct gr_rcu_notifier **pprev;
	uint64_t round;
};

/**
 * Have notifier->func(notifier) called when the calling thread holds up a grace period of the
 * default domain for longer than the deadline, and again with growing pauses.
 * @param notifier Not added already. Goes when removed, or when the thread ends.
 * @context Any thread, not in a signal handler. Registers the thread.
 */
GR_EXPORT void gr_rcu_add_notifier(struct gr_rcu_notifier *notifier);

/**
 * Take a notifier back. It is not running and will not be called any more afterwards, unless
 * it is the notifier itself that calls this.
 * @param notifier Added or not (then func and the rest must be zero or from an earlier use).
 * @context Any thread, also in notifiers; not in a signal handler. May sleep until a call that
 *          is running returns: hold no lock that the notifier takes.
 */
GR_EXPORT void gr_rcu_remove_notifier(struct gr_rcu_notifier *notifier);

/** The deadline unless gr_rcu_set_deadline_ns() changes it. */
#define GR_RCU_DEADLINE_NS 10000000ull

/**
 * How long a grace period may wait for readers before it asks them to hurry.
 * @param ns Nanoseconds; the pauses after it double, up to a second or ns. UINT64_MAX: never.
 * @context Any. For grace periods that begin later.
 */
GR_EXPORT void gr_rcu_set_deadline_ns(uint64_t ns);

/**
 * As gr_rcu_synchronize(), but readers that hold it up are asked to hurry at once.
 * @context As gr_rcu_synchronize().
 */
GR_EXPORT void gr_rcu_synchronize_expedited(void) GR_EXCLUDES(gr_rcu_section);

/**
 * From here to the last gr_rcu_quiet_end() no grace period interrupts other CPUs, not even one that
 * was about to when this was called. Counted. This call itself may do so once. Readers that became HOT before the first quiet time of the
 * process are an exception until they park: so call it early, at least once (before threads
 * are busy); it may end right away.
 * @context Any thread, not in a signal handler. Takes some microseconds, or as long as who is about
 *          to fence has to wait for a CPU.
 */
GR_EXPORT void gr_rcu_quiet_begin(void);

/**
 * Ends what one gr_rcu_quiet_begin() began.
 * @context Any thread, not in a signal handler. Dies if nothing began.
 */
GR_EXPORT void gr_rcu_quiet_end(void);

/** Grace periods that took less than 1 ns << i, and not less than half of it, are in class i. */
#define GR_RCU_LATENCY_CLASSES 40

/** What a domain has done since the process (or the domain) began. */
struct gr_rcu_stats {
	uint64_t grace_periods; /**< run */
	uint64_t merged;	/**< waits that somebody else's grace period served */
	uint64_t entry_fences;	/**< process-wide: a HOT reader did not report at once (M1) */
	uint64_t flag_fences;	/**< process-wide: a COLD reader had to be slept for (M2) */
	uint64_t sleeps;	/**< of drivers for readers */
	uint64_t requests;	/**< readers asked to report... */
	uint64_t reports;	/**< ...who did... */
	uint64_t claims;	/**< ...or were found to be outside */
	uint64_t reader_wakes;	/**< of a driver by a reader */
	uint64_t rescans;	/**< timed looks where no process-wide fence was issued */
	uint64_t hurries;	/**< calls of notifiers */
	uint64_t stalls;	/**< warnings of readers that hold up a grace period (rcu_stall.h) */
	uint64_t latency[GR_RCU_LATENCY_CLASSES]; /**< histogram of what each run took */
};

/**
 * Look at a domain's statistics.
 * @param domain    NULL: the default domain.
 * @param ret_stats Each number is right by itself; they are not taken at one moment.
 * @context Any. Never sleeps.
 */
GR_EXPORT void gr_rcu_stats_get(struct gr_rcu_domain *domain, struct gr_rcu_stats *ret_stats);

GR_END_DECLS
#endif
