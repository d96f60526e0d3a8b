/* SPDX-License-Identifier: MIT */
/*
 * Read-side sections of the migration, with a stopwatch: none may last longer than a
 * millisecond, and gr_migrate_stats.section_ns_max tells. So none does more than a bounded number of
 * steps (a block or region looked at), which is what can be tested on a machine of any speed.
 */
#ifndef GR_MIGRATE_SECTION_H
#define GR_MIGRATE_SECTION_H

#include "base/clock.h"
#include <guestram/rcu.h>

struct gr_section_watch {
	uint64_t begin_ns;
	uint64_t ns_max;
	uint32_t steps, steps_max;
};

/* A step takes a few 100 ns at most. */
enum { GR_SECTION_STEPS = 256 };

static inline void gr_section_enter(struct gr_section_watch *w) GR_ACQUIRE_SHARED(gr_rcu_section)
{
	w->begin_ns = gr_clock_ns();
	w->steps = 0;
	gr_rcu_read_lock();
}

static inline void gr_section_step(struct gr_section_watch *w)
{
	w->steps++;
}

static inline void gr_section_leave(struct gr_section_watch *w) GR_RELEASE_SHARED(gr_rcu_section)
{
	uint64_t ns;

	gr_rcu_read_unlock();
	ns = gr_clock_ns() - w->begin_ns;
	if (ns > w->ns_max) {
		w->ns_max = ns;
	}
	if (w->steps > w->steps_max) {
		w->steps_max = w->steps;
	}
}

#endif
