/* SPDX-License-Identifier: MIT */
/* What tests of RCU share. */
#ifndef RCU_KIT_H
#define RCU_KIT_H

#include "base/heavy_fence.h"
#include "concurrent.h"
#include "rcu/rcu_internal.h"
#include <guestram/event.h>
#include <signal.h>
#include <sys/wait.h>

/* The default domain's. */
static inline struct gr_rcu_stats stats(void)
{
	struct gr_rcu_stats s;

	gr_rcu_stats_get(NULL, &s);
	return s;
}

static inline unsigned registered_readers(struct gr_rcu_domain *domain)
{
	struct gr_rcu_domain *d = gr_rcu_domain_or_default(domain);
	struct gr_rcu_signals saved;
	unsigned n = 0;

	gr_rcu_registry_lock(d, &saved);
	for (struct gr_rcu_reader *r = d->readers; r; r = r->next) {
		n++;
	}
	gr_rcu_registry_unlock(d, &saved);
	return n;
}

/* Sections in a row until the reader is HOT (or WARM), where that is possible. */
static inline void become_hot_on(struct gr_rcu_reader *r)
{
	gr_rcu_read_lock_on(r);
	gr_rcu_read_unlock_on(r);
	if (gr_heavy_fence_available()) {
		/* Eager each time: a slow or busy machine may let the row's time run out. */
		while ((r->ctr & (GR_RCU_HOT | GR_RCU_WARM)) == 0) {
			gr_rcu_make_eager_for_test(r);
			gr_rcu_read_lock_on(r);
			gr_rcu_read_unlock_on(r);
		}
	}
}

static inline void become_hot(void)
{
	become_hot_on(&gr_rcu_self);
}

/* The driver of the default domain waits for us, and has asked. */
static inline void wait_until_asked(struct gr_rcu_reader *r)
{
	while (LOAD(&r->need_qs) == 0) {
		sched_yield();
	}
}

static inline void dies_saying(void (*fn)(void *), const char *words)
{
	char text[1024];
	int status = test_in_child(fn, NULL, text, sizeof(text));

	ASSERT(WIFSIGNALED(status));
	ASSERT_EQ(WTERMSIG(status), SIGABRT);
	ASSERT_HAS(text, words);
}

#endif
