/* SPDX-License-Identifier: MIT */
/*
 * A function of the application's and what to pass to it, which change together. Fetching takes no
 * lock and waits for nobody: it may be done in a signal handler that interrupts a change, or
 * in the child of a fork that another thread's change was under way at.
 *
 * There are two slots; `sets` says which counts. A change fills the other one, then (release) raises
 * sets. Who fetches looks at sets again afterwards: as long as it is the same, nobody has begun
 * to fill the slot that was read.
 */
#ifndef GR_BASE_HANDLER_H
#define GR_BASE_HANDLER_H

#include "base/mutex.h"

typedef void gr_handler_fn(void); /* to be cast to what it is */

struct gr_handler {
	struct gr_owned_mutex lock; /* of who changes it, with signals blocked */
	uint32_t sets;		    /* (a) */
	struct gr_handler_slot {
		gr_handler_fn *fn; /* (a) */
		void *opaque;	   /* (a) */
	} slot[2];
};

#define GR_HANDLER_INIT { .lock = GR_OWNED_MUTEX_INIT(GR_RANK_HANDLER) }

void gr_handler_set(struct gr_handler *h, gr_handler_fn *fn, void *opaque);
/* fn is NULL if none is set. */
struct gr_handler_slot gr_handler_get(struct gr_handler *h);
void gr_handler_after_fork_in_child(struct gr_handler *h);

#endif
