/* SPDX-License-Identifier: MIT */
/**
 * guestram/rcu_domain.h - readers of one's own, and independent sets of readers.
 *
 * A *domain* is a set of readers with grace periods of its own: waiting in one never waits
 * for a section of another. The functions of rcu.h work in the default domain, which is
 * enough for nearly everybody; make another where sections last long (they sleep, or span
 * I/O) and would hold up everybody's grace periods. Where a domain is asked for, NULL is
 * the default one.
 *
 *     gr_rcu_domain_read_lock(d);                  // the thread's reader in d, made when needed
 *     ...
 *     gr_rcu_domain_read_unlock(d);
 *
 * An *explicit reader* is a record in the caller's memory that the caller names itself. It
 * saves finding the thread's own, for hot loops, and it belongs to no thread: a coroutine keeps
 * one and may continue on another thread between two sections.
 *
 *     struct gr_rcu_reader r;
 *
 *     gr_rcu_reader_init(&r, NULL, "worker");
 *     gr_rcu_read_lock_on(&r);                     // inline (rcu.h), as cheap as gr_rcu_read_lock()
 *     ...
 *     gr_rcu_read_unlock_on(&r);
 *     gr_rcu_reader_destroy(&r);
 *
 * fork(): in the child, explicit readers that were outside of any section go on; one that was
 * inside is gone (using it again dies with a message, destroying it is right), because the
 * thread that would have ended the section is not there.
 */
#ifndef GUESTRAM_RCU_DOMAIN_H
#define GUESTRAM_RCU_DOMAIN_H

#include <guestram/rcu.h>

GR_BEGIN_DECLS

/** What a domain is like. Zero means the default everywhere but in size. */
struct gr_rcu_domain_params {
	size_t size;	  /**< sizeof(struct gr_rcu_domain_params) */
	const char *name; /**< for messages, cut to 15 bytes; copied */
};

/**
 * Create a domain.
 * @param params     NULL: a default name.
 * @param ret_domain Set on success only; free it with gr_rcu_domain_free().
 * @param err        May be NULL.
 * @return 0 or a negative errno.
 * @errors  -EINVAL a wrong size; -ENOMEM.
 * @context Any thread.
 */
GR_EXPORT GR_MUST_CHECK int gr_rcu_domain_create(const struct gr_rcu_domain_params *params,
						 struct gr_rcu_domain **ret_domain,
						 struct gr_error *err);

/**
 * Free a domain. Readers that threads got by gr_rcu_domain_read_lock() go with it.
 * @param domain May be NULL (nothing happens). Nobody may use it any more: no thread enters a
 *               section, waits or polls. That the last sections have ended may be known from a
 *               grace period of the domain: the end of a section does not touch the domain
 *               after it has let a grace period go. Dies if a reader is inside a section, an
 *               explicit one is still there, or a queue uses it.
 * @context Outside its sections. Sleeps.
 */
GR_EXPORT void gr_rcu_domain_free(struct gr_rcu_domain *domain);

/**
 * Enter a section of a domain on the calling thread's reader there. Nests.
 * @param domain NULL: the default domain.
 * @context Any thread. The thread's first section in a domain other than the default one
 *          allocates a reader, so not in a signal handler (dies without memory); it goes with
 *          the thread or the domain. Otherwise as gr_rcu_read_lock(), a few nanoseconds slower.
 */
GR_EXPORT void gr_rcu_domain_read_lock(struct gr_rcu_domain *domain);

/**
 * Leave a section of a domain.
 * @param domain As passed to gr_rcu_domain_read_lock().
 * @context The thread that entered it. Dies if no section is open.
 */
GR_EXPORT void gr_rcu_domain_read_unlock(struct gr_rcu_domain *domain);

/**
 * Wait until every section of a domain that is open now has ended: gr_rcu_synchronize() there.
 * @param domain NULL: the default domain.
 * @context Outside the domain's sections; those of others may be open, if no reader
 *          of this domain waits for them. Sleeps.
 */
GR_EXPORT void gr_rcu_domain_synchronize(struct gr_rcu_domain *domain);

/**
 * As gr_rcu_domain_synchronize(), but readers that hold it up are asked to hurry at once
 * (rcu_control.h) instead of after the deadline.
 * @param domain NULL: the default domain.
 * @context As gr_rcu_domain_synchronize().
 */
GR_EXPORT void gr_rcu_domain_synchronize_expedited(struct gr_rcu_domain *domain);

/**
 * Take a cookie of a domain: gr_rcu_get_state() there.
 * @param domain NULL: the default domain.
 * @return The cookie, for functions of the same domain.
 * @context As gr_rcu_get_state().
 */
GR_EXPORT GR_MUST_CHECK uint64_t gr_rcu_domain_get_state(struct gr_rcu_domain *domain);

/**
 * Take a cookie and have the grace period run by the domain's thread: gr_rcu_start_poll() there.
 * @param domain NULL: the default domain.
 * @return The cookie, for functions of the same domain.
 * @context As gr_rcu_start_poll(). A domain's first call starts its thread.
 */
GR_EXPORT GR_MUST_CHECK uint64_t gr_rcu_domain_start_poll(struct gr_rcu_domain *domain);

/**
 * Has the cookie's grace period ended?
 * @param domain That of the cookie.
 * @param cookie From gr_rcu_domain_get_state() or gr_rcu_domain_start_poll().
 * @return As gr_rcu_poll_state().
 * @context As gr_rcu_poll_state().
 */
GR_EXPORT GR_MUST_CHECK bool gr_rcu_domain_poll_state(struct gr_rcu_domain *domain,
						      uint64_t cookie);

/**
 * Wait for what is left of a cookie's grace period.
 * @param domain That of the cookie.
 * @param cookie From gr_rcu_domain_get_state() or gr_rcu_domain_start_poll().
 * @context As gr_rcu_domain_synchronize().
 */
GR_EXPORT void gr_rcu_domain_cond_synchronize(struct gr_rcu_domain *domain, uint64_t cookie);

/**
 * Make a reader.
 * @param r      The caller's memory, aligned as its type says; must stay where it is. Not on a
 *               thread's stack if the process forks and the child uses the domain: other
 *               threads are gone there, and their stacks are used again.
 * @param domain NULL: the default domain.
 * @param name   For messages; not copied. May be NULL.
 * @context Any thread, not in a signal handler. Takes a mutex for a moment.
 */
GR_EXPORT void gr_rcu_reader_init(struct gr_rcu_reader *r, struct gr_rcu_domain *domain,
				  const char *name);

/**
 * Take a reader away; its memory may go then.
 * @param r From gr_rcu_reader_init(). Dies if it is inside a section.
 * @context As gr_rcu_reader_init().
 */
GR_EXPORT void gr_rcu_reader_destroy(struct gr_rcu_reader *r);

/**
 * gr_rcu_park() for a reader of one's own: no section for a while.
 * @param r From gr_rcu_reader_init().
 * @context Who uses the reader; not in a signal handler.
 */
GR_EXPORT void gr_rcu_park_on(struct gr_rcu_reader *r);

GR_END_DECLS
#endif
