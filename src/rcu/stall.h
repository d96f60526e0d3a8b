/* SPDX-License-Identifier: MIT */
/* Stall warnings, as the driver of a grace period and its readers see them; see stall.c. */
#ifndef GR_RCU_STALL_INTERNAL_H
#define GR_RCU_STALL_INTERNAL_H

#include "base/futex.h"
#include "rcu/rcu_internal.h"
#include <guestram/rcu_stall.h>

/* The driver begins to sleep for readers of a grace period that began at start_ns. */
void gr_rcu_stall_begin(struct gr_rcu_stall *s, uint64_t start_ns);
/* Reports what is due. Returns how long to sleep at most. */
uint64_t gr_rcu_stall_check(struct gr_rcu_domain *d, struct gr_rcu_stall *s);
/* Nobody holds it up any more: says where those that did ended. */
void gr_rcu_stall_end(struct gr_rcu_domain *d, struct gr_rcu_stall *s);

/* By a reader that has taken its request back, before its pending_down: it ended at site. */
void gr_rcu_stall_note_end(struct gr_rcu_reader *r, const void *site);

void gr_rcu_stall_after_fork_in_child(void);

/* Is this thread in a handler of reports? Then it may not wait for grace periods. */
bool gr_rcu_in_stall_report(void);

#endif
