/* SPDX-License-Identifier: MIT */
/* What urcu_compat.c and urcu_fork.c share: the workers of liburcu's names. */
#ifndef GR_RCU_URCU_COMPAT_H
#define GR_RCU_URCU_COMPAT_H

/* Our own users see liburcu's names only where they ask for them. */
#define GR_URCU_ALONE
#include <guestram/urcu.h>

#include "base/atomic.h"
#include "base/mutex.h"
#include "base/signals.h"
#include "rcu/queue.h"
#include <guestram/event.h>

/*
 * A callback queue and a count of those who use it: its owner's and one for each barrier or
 * fork that waits for it right now. They wait with nothing locked (callbacks may create
 * workers), hold on to the one they stand at, and so find the next. What was created after
 * they began, in front, is not theirs to wait for.
 */
struct call_rcu_data {
	struct gr_rcu_queue *queue; /* (c) NULL: the default queue */
	uint32_t used;		    /* (a) has seen a callback: may have a thread to hold */
	uint32_t users;		    /* (l) the owner, and those who wait for it */
	struct call_rcu_data *next; /* (l) */
	/* A fork under way; of the thread between the hooks. */
	bool held;
	uint32_t hold_queued; /* (a) hold is on its way, or has not returned */
	struct gr_rcu_head hold;
	struct gr_event is_held, let_go;
};

struct gr_urcu_workers {
	/* Protects the list and the counts of users. Not the queues. */
	struct gr_mutex lock;
	struct call_rcu_data *first; /* (l) newest first, the default last */
};
extern struct gr_urcu_workers gr_urcu_workers;

/* The worker after d, the first after NULL. Lets go of d, holds on to what it returns. */
struct call_rcu_data *gr_urcu_next(struct call_rcu_data *d);
/* Holds on to d once more; lets go of it, and frees it if nobody uses it any more. */
void gr_urcu_get(struct call_rcu_data *d);
void gr_urcu_put(struct call_rcu_data *d);

/* The list's lock is safe to be found locked by any fork() from here on. */
void gr_urcu_fork_install(void);

#endif
