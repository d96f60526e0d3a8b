/* SPDX-License-Identifier: MIT */
/*
 * The checking build of the library: callbacks. The set of queued heads, with the function and the
 * place of each call: who queues one a second time is told where the first was.
 */
#include "base/atomic.h"
#include "base/clock.h"
#include "base/log.h"
#include "base/thread_info.h"
#include "rcu/checks.h"
#include <guestram/rcu_check.h>
#include <inttypes.h>

static gr_atomic_u64 budget_ns = GR_RCU_CALLBACK_BUDGET_NS; /* (a) */

void gr_rcu_set_callback_budget_ns(uint64_t ns)
{
	gr_store_relaxed(&budget_ns, ns);
}

#ifdef GR_RCU_CHECKS

/* What a head holds while its callback runs, unless that writes to it. */
#	define POISON ((struct gr_rcu_head *)(uintptr_t)0x6672656564726375ull)

struct pending {
	struct gr_rcu_head *head;
	void (*func)(struct gr_rcu_head *);
	const void *site;
	struct pending *next;
};

enum { BUCKETS = 1 << 14 };
static struct {
	/* (a) a spin lock. Each change is one store: a child of fork() finds the set whole. */
	uint32_t locked;
	struct pending *first[BUCKETS];
} set;

static void lock_set(void)
{
	uint32_t unlocked = 0;

	while (!gr_cas_acq_rel(&set.locked, &unlocked, 1u)) {
		unlocked = 0;
		gr_cpu_relax();
	}
}

static void unlock_set(void)
{
	gr_store_release(&set.locked, 0u);
}

void gr_rcu_check_calls_after_fork_in_child(void)
{
	unlock_set();
}

static struct pending **place_of(struct gr_rcu_head *head)
{
	uint64_t hash = ((uint64_t)(uintptr_t)head >> 3) * 0x9e3779b97f4a7c15u;
	struct pending **where = &set.first[hash % BUCKETS];

	while (*where && (*where)->head != head) {
		where = &(*where)->next;
	}
	return where;
}

void gr_rcu_check_queued(struct gr_rcu_head *head, void (*func)(struct gr_rcu_head *),
			 const void *site)
{
	struct pending *new = malloc(sizeof(*new)), **where;
	const void *first = NULL;
	char now[128], then[128];

	if (!new) {
		gr_die("no memory for the RCU checks");
	}
	lock_set();
	where = place_of(head);
	if (*where) {
		first = (*where)->site;
	} else {
		*new = (struct pending){ head, func, site, NULL };
		*where = new;
	}
	unlock_set();
	if (first) {
		free(new);
		gr_code_name(first, then, sizeof(then));
		gr_code_name(site, now, sizeof(now));
		gr_rcu_check_failed(
			"RCU head %p is queued at %s and already queued, by the call at %s",
			(void *)head, now, then);
	}
}

uint64_t gr_rcu_check_started(struct gr_rcu_head *head, void (*func)(struct gr_rcu_head *))
{
	struct pending **where, *p;
	char then[128];

	lock_set();
	where = place_of(head);
	p = *where;
	if (p) {
		*where = p->next;
	}
	unlock_set();
	if (p && p->func != func) {
		gr_code_name(p->site, then, sizeof(then));
		gr_rcu_check_failed("RCU head %p was written to after the call at %s", (void *)head,
				    then);
	}
	free(p);
	head->next = POISON;
	gr_rcu_check_in_callback(1);
	return gr_clock_ns();
}

void gr_rcu_check_ran(const char *queue, void (*func)(struct gr_rcu_head *), uint64_t start_ns)
{
	uint64_t budget = gr_load_relaxed(&budget_ns), took = gr_clock_ns() - start_ns;
	char name[128];

	gr_rcu_check_in_callback(-1);
	if (budget != 0 && took > budget) {
		gr_code_name((const void *)(uintptr_t)func, name, sizeof(name));
		gr_log(GR_LOG_WARN, "RCU: callback %s of queue %s took %" PRIu64 " ms", name, queue,
		       (uint64_t)(took / GR_NS_PER_MS));
	}
}

#endif
