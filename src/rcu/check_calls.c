/* SPDX-License-Identifier: MIT */
/*
 * The checking build of the library: callbacks. The set of queued heads, with the function and the
 * place of each call: who queues one a second time is told where the first was.
 *
 * A signal handler may call, in the middle of malloc() or of a call of its own thread: so the set
 * has memory of its own, and is locked with signals blocked. fork() takes its lock.
 */
#include "base/atomic.h"
#include "base/clock.h"
#include "base/log.h"
#include "base/memory.h"
#include "base/thread_info.h"
#include "rcu/checks.h"
#include <guestram/rcu_check.h>
#include <inttypes.h>
#include <sched.h>

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

enum { BUCKET_BITS = 14, BUCKETS = 1 << BUCKET_BITS, CHUNK_BYTES = 1 << 16, SPINS = 100 };
static struct {
	uint32_t locked; /* (a) a spin lock */
	struct pending *first[BUCKETS];
	struct pending *unused; /* by next */
} set;

static void spin_for_set(void)
{
	uint32_t unlocked = 0;

	for (unsigned i = 1; !gr_cas_acq_rel(&set.locked, &unlocked, 1u); i++) {
		unlocked = 0;
		gr_cpu_relax();
		if (i % SPINS == 0) {
			sched_yield();
		}
	}
}

static void lock_set(struct gr_signals *saved)
{
	gr_signals_block(saved);
	spin_for_set();
}

static void unlock_set(const struct gr_signals *saved)
{
	gr_store_release(&set.locked, 0u);
	gr_signals_restore(saved);
}

void gr_rcu_check_calls_before_fork(void)
{
	spin_for_set();
}

void gr_rcu_check_calls_after_fork(void)
{
	gr_store_release(&set.locked, 0u);
}

static struct pending *take_unused(void)
{
	struct pending *p = set.unused;

	if (!p) {
		struct pending *chunk = gr_pages_alloc(CHUNK_BYTES);

		for (size_t i = 0; chunk && i < CHUNK_BYTES / sizeof(*chunk); i++) {
			chunk[i].next = p;
			p = &chunk[i];
		}
	}
	set.unused = p ? p->next : NULL;
	return p;
}

static void give_back(struct pending *p)
{
	p->next = set.unused;
	set.unused = p;
}

static struct pending **place_of(struct gr_rcu_head *head)
{
	uint64_t hash = ((uint64_t)(uintptr_t)head >> 3) * 0x9e3779b97f4a7c15u;
	struct pending **where =
		&set.first[hash >> (64 - BUCKET_BITS)]; /* the product's best bits */

	while (*where && (*where)->head != head) {
		where = &(*where)->next;
	}
	return where;
}

void gr_rcu_check_queued(struct gr_rcu_head *head, void (*func)(struct gr_rcu_head *),
			 const void *site)
{
	const void *first = NULL;
	char now[128], then[128];
	struct pending **where, *p;
	struct gr_signals saved;

	lock_set(&saved);
	where = place_of(head);
	if (*where) {
		first = (*where)->site;
	} else if ((p = take_unused())) { /* without memory it goes unchecked */
		*p = (struct pending){ head, func, site, NULL };
		*where = p;
	}
	unlock_set(&saved);
	if (first) {
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
	const void *changed_since = NULL;
	struct gr_signals saved;
	char then[128];

	lock_set(&saved);
	where = place_of(head);
	p = *where;
	if (p) {
		*where = p->next;
		changed_since = p->func != func ? p->site : NULL;
		give_back(p);
	}
	unlock_set(&saved);
	if (changed_since) {
		gr_code_name(changed_since, then, sizeof(then));
		gr_rcu_check_failed("RCU head %p was written to after the call at %s", (void *)head,
				    then);
	}
	head->next = POISON;
	return gr_clock_ns();
}

void gr_rcu_check_ran(const char *queue, void (*func)(struct gr_rcu_head *), uint64_t start_ns)
{
	uint64_t budget = gr_load_relaxed(&budget_ns), took = gr_clock_ns() - start_ns;
	char name[128];

	if (budget != 0 && took > budget) {
		gr_code_name((const void *)(uintptr_t)func, name, sizeof(name));
		gr_log(GR_LOG_WARN, "RCU: callback %s of queue %s took %" PRIu64 " ms", name, queue,
		       (uint64_t)(took / GR_NS_PER_MS));
	}
}

#endif
