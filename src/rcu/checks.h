/* SPDX-License-Identifier: MIT */
/* What the rest of src/rcu tells the checks: nothing, unless built with -Drcu_checks=true. */
#ifndef GR_RCU_CHECKS_INTERNAL_H
#define GR_RCU_CHECKS_INTERNAL_H

#include "rcu/rcu_internal.h"
#include <guestram/rcu_queue.h>

/* Reports to the handler, or dies. */
void gr_rcu_check_failed(const char *fmt, ...) GR_PRINTF(1, 2);
/* The domains that this thread has explicit readers inside of: how many went into domains. */
unsigned gr_rcu_check_handles(struct gr_rcu_domain **domains, unsigned n);

/* This thread waits for a grace period of d, and for the callbacks of q, if that is not NULL. */
void gr_rcu_check_wait(struct gr_rcu_domain *d, struct gr_rcu_queue *q, const char *who);
/* A domain or a queue goes: what is known of it must not be taken for another's at its place. */
void gr_rcu_check_forget(const void *domain_or_queue);
void gr_rcu_check_after_fork_in_child(void);

/* fork(): the locks of the checks. */
void gr_rcu_checks_before_fork(void);
void gr_rcu_checks_after_fork(bool in_child);

#ifdef GR_RCU_CHECKS
/* fork(): the set of heads. */
void gr_rcu_check_calls_before_fork(void);
void gr_rcu_check_calls_after_fork(void);
/* gr_rcu_call() at site queues head; dies if it is queued already. */
void gr_rcu_check_queued(struct gr_rcu_head *head, void (*func)(struct gr_rcu_head *),
			 const void *site);
/* Its callback begins. Returns the time. */
uint64_t gr_rcu_check_started(struct gr_rcu_head *head, void (*func)(struct gr_rcu_head *));
/* It has ended; head may be gone. */
void gr_rcu_check_ran(const char *queue, void (*func)(struct gr_rcu_head *), uint64_t start_ns);
#else
static inline void gr_rcu_check_calls_before_fork(void)
{
}

static inline void gr_rcu_check_calls_after_fork(void)
{
}

static inline void gr_rcu_check_queued(struct gr_rcu_head *head, void (*func)(struct gr_rcu_head *),
				       const void *site)
{
	(void)head;
	(void)func;
	(void)site;
}

static inline uint64_t gr_rcu_check_started(struct gr_rcu_head *head,
					    void (*func)(struct gr_rcu_head *))
{
	(void)head;
	(void)func;
	return 0;
}

static inline void gr_rcu_check_ran(const char *queue, void (*func)(struct gr_rcu_head *),
				    uint64_t start_ns)
{
	(void)queue;
	(void)func;
	(void)start_ns;
}
#endif

#endif
