/* SPDX-License-Identifier: MIT */
/**
 * guestram/rcu_stall.h - what to do when a grace period does not end.
 *
 * A section that stays open holds up everybody who waits for a grace period, and all callbacks.
 * After a second the library says so, names the threads it waits for, and repeats that at twice
 * the interval each time; when the section has ended after all, it says where. Readers pay nothing
 * for this: the thread that waits finds out the names, and a reader leaves the place where its
 * section ended only when it is awaited anyway.
 *
 *     RCU: a grace period of domain default is open for 1000 ms: it waits for thread 4242 (vcpu0):
 *          section; 1730 callbacks wait
 *     RCU: thread 4242 (vcpu0) ended its section after 1510 ms, at vmm(flush+0x42)
 *
 * It says so to the log (log.h), where nobody hears it before gr_log_set_handler().
 *
 * In the checking build (rcu_check.h) the first message also says where and when the section
 * began.
 */
#ifndef GUESTRAM_RCU_STALL_H
#define GUESTRAM_RCU_STALL_H

#include <guestram/rcu.h>

GR_BEGIN_DECLS

/** What a report tells. */
enum gr_rcu_stall_event {
	GR_RCU_STALL_WAITS, /**< this reader holds up the grace period */
	GR_RCU_STALL_ENDED, /**< it did, and its section has ended */
};

/** One reader in one report. The strings live until the handler returns. */
struct gr_rcu_stall_report {
	enum gr_rcu_stall_event event;
	const char *domain;    /**< its name; "default" for the default one */
	uint64_t age_ns;       /**< how long the grace period is open */
	uint64_t section_ns;   /**< how long the section is; 0: not known (normal build) */
	uint32_t tid;	       /**< of the thread that registered; 0 where threads have no number */
	const char *thread;    /**< its name now; "?" if it cannot be told */
	const char *reader;    /**< name of an explicit reader, or NULL */
	const char *kind;      /**< "section", "quiescent-state thread", "ending thread's section" */
	const void *site;      /**< WAITS: where it began (checking build); ENDED: where it ended */
	const char *site_name; /**< "libx.so(function+0x12)", "" if site is NULL */
	uint64_t callbacks;    /**< that wait in the queues of this domain */
	const char *text;      /**< all this in words */
};

/**
 * Receives reports.
 * @context The thread that waits for the grace period: it must not wait for one itself, nor for
 *          callbacks (dies in either).
 */
typedef void gr_rcu_stall_fn(const struct gr_rcu_stall_report *report, void *opaque);

/** The first warning comes after this long unless gr_rcu_set_stall_ns() changes it. */
#define GR_RCU_STALL_NS 1000000000ull

/**
 * Set after how long an open grace period is reported, in all domains.
 * @param ns Of a grace period's age; 0: never.
 * @units   ns is nanoseconds.
 * @context Any. Grace periods that begin later know it.
 */
GR_EXPORT void gr_rcu_set_stall_ns(uint64_t ns);

/**
 * Have reports go to a function, not to the log (log.h, GR_LOG_WARN).
 * @param fn     NULL: to the log again.
 * @param opaque Passed on.
 * @context Any thread; the old function may still be called for a moment.
 */
GR_EXPORT void gr_rcu_set_stall_handler(gr_rcu_stall_fn *fn, void *opaque);

GR_END_DECLS
#endif
