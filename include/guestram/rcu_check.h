/* SPDX-License-Identifier: MIT */
/**
 * guestram/rcu_check.h - the checking build: what misuse costs too much to look for always.
 *
 * Compile an application with -DGR_RCU_CHECKS, and the library with -Drcu_checks=true (its
 * pkg-config file then says -DGR_RCU_CHECKS): objects with and without may be linked together. Then
 *
 * - gr_rcu_dereference() outside every section is reported, with the place;
 * - stall warnings (rcu_stall.h) say where and when the section began;
 * - a section of an explicit reader that ends on another thread is reported;
 * - a head that is queued a second time before its callback ran is reported with the place of
 *   the first call, and one that was written to meanwhile as such (library);
 * - a callback that takes longer than the budget is remarked on in the log (library);
 * - a list node (rculist.h) that is inserted again before a grace period has ended since it was
 *   deleted is reported;
 * - locks that are announced (gr_rcu_lock_acquired()) are watched: one that some section takes and
 *   that somebody holds while waiting for a grace period is a deadlock that has not happened yet.
 *
 * A report ends the process with a message, unless there is a handler. Without GR_RCU_CHECKS all of
 * this is nothing: no code, no data.
 *
 *     struct conf *c = gr_rcu_dereference_check(conf, mutex_is_mine(&conf_lock));
 *     GR_RCU_LOCKDEP_WARN(gr_rcu_read_ongoing(), "would sleep inside a section");
 */
#ifndef GUESTRAM_RCU_CHECK_H
#define GUESTRAM_RCU_CHECK_H

#include <guestram/types.h>

GR_BEGIN_DECLS

struct gr_rcu_reader;

/** Receives a report: a line of text. Returning goes on as if nothing had been found. */
typedef void gr_rcu_check_fn(const char *text, void *opaque);

/**
 * Have reports of the checking build go to a function.
 * @param fn     NULL: the process ends with a message.
 * @param opaque Passed on.
 * @context Any thread. The function runs where the misuse is found, perhaps inside a section.
 */
GR_EXPORT void gr_rcu_set_check_handler(gr_rcu_check_fn *fn, void *opaque);

/** The budget of one callback unless gr_rcu_set_callback_budget_ns() changes it. */
#define GR_RCU_CALLBACK_BUDGET_NS 100000000ull

/**
 * Set how long a callback may run before the log says so (checking build of the library).
 * @param ns 0: any time.
 * @units   ns is nanoseconds.
 * @context Any.
 */
GR_EXPORT void gr_rcu_set_callback_budget_ns(uint64_t ns);

/** Private to the macros: a section begins on this reader, by code at the return address. */
GR_EXPORT void gr_rcu_check_enter(struct gr_rcu_reader *r);
/** Private to the macros: one ends. */
GR_EXPORT void gr_rcu_check_leave(struct gr_rcu_reader *r);
/** Private to the macros: reports that `what` is not inside a section, unless it is or cond. */
GR_EXPORT void gr_rcu_check_dereference(const char *what, bool cond, const char *file, int line);
/** Private to the macros: reports text. */
GR_EXPORT void gr_rcu_check_warn(const char *text, const char *file, int line);
/** Private to the macros: the calling thread has the lock now. */
GR_EXPORT void gr_rcu_check_lock_acquired(const void *lock, const char *name, const char *file,
					  int line);
/** Private to the macros: and not any more. */
GR_EXPORT void gr_rcu_check_lock_released(const void *lock);

struct gr_rcu_list_node;
/** Private to rculist.h: a node is deleted. */
GR_EXPORT void gr_rcu_check_list_deleted(struct gr_rcu_list_node *node);
/** Private to rculist.h: it is new, or as good as new. */
GR_EXPORT void gr_rcu_check_list_forget(struct gr_rcu_list_node *node);
/** Private to rculist.h: it is about to be inserted; reports if a grace period is due first. */
GR_EXPORT void gr_rcu_check_list_inserting(struct gr_rcu_list_node *node, const char *file,
					   int line);

#ifdef GR_RCU_CHECKS
#define GR_RCU_CHECK_ENTER_(r) gr_rcu_check_enter(r)
#define GR_RCU_CHECK_LEAVE_(r) gr_rcu_check_leave(r)
#define GR_RCU_CHECK_SECTION_(what, cond)                                                          \
	gr_rcu_check_dereference(what, cond, __FILE__, __LINE__)
#define GR_RCU_LOCKDEP_WARN(cond, text)                                                            \
	((cond) ? gr_rcu_check_warn(text, __FILE__, __LINE__) : (void)0)
#define gr_rcu_lock_acquired(lock, name) gr_rcu_check_lock_acquired(lock, name, __FILE__, __LINE__)
#define gr_rcu_lock_released(lock)	 gr_rcu_check_lock_released(lock)
#define GR_RCU_CHECK_LIST_DELETED_(node) gr_rcu_check_list_deleted(node)
#define GR_RCU_CHECK_LIST_FORGET_(node)	 gr_rcu_check_list_forget(node)
#define GR_RCU_CHECK_LIST_INSERTING_(node)                                                         \
	gr_rcu_check_list_inserting(node, __FILE__, __LINE__)
#else
#define GR_RCU_CHECK_LIST_DELETED_(n)	((void)0)
#define GR_RCU_CHECK_LIST_FORGET_(n)	((void)0)
#define GR_RCU_CHECK_LIST_INSERTING_(n) ((void)0)
#define GR_RCU_CHECK_ENTER_(r)	      ((void)0)
#define GR_RCU_CHECK_LEAVE_(r)	      ((void)0)
#define GR_RCU_CHECK_SECTION_(w, c)   ((void)0)
/** Report text if cond holds: it must never. */
#define GR_RCU_LOCKDEP_WARN(cond, t)  ((void)0)
/**
 * Say that the calling thread has taken a lock and may have had to wait for it (not one that it
 * only tried). Locks of one name are one to the checks; name NULL: each address for itself. The name
 * is kept, not copied: a string literal.
 */
#define gr_rcu_lock_acquired(l, name) ((void)0)
/** Say that it has released it. */
#define gr_rcu_lock_released(l)	      ((void)0)
#endif

GR_END_DECLS
#endif
