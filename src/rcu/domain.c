/* SPDX-License-Identifier: MIT */
/*
 * Domains, the readers that threads have in them, and explicit readers.
 *
 * A thread keeps its readers of domains other than the default one in a list of its own,
 * with a few pointers into it to find them quickly. The list and its nodes belong to the thread:
 * nobody else frees a node while the thread lives, so that finding one takes no lock. Freeing
 * a domain takes its readers out of the registry and leaves their nodes behind without a
 * domain; the thread uses them again. What links a node to a domain (reader.domain) is
 * written under the lock of the list of domains; a thread that ends takes it too.
 */
#include "base/atomic.h"
#include "base/futex.h"
#include "base/hook.h"
#include "base/memory.h"
#include "base/thread_info.h"
#include "rcu/checks.h"
#include <errno.h>
#include <stdio.h>
#include <string.h>

struct gr_rcu_auto_reader {
	struct gr_rcu_reader r;
	struct gr_rcu_auto_reader *next; /* (o) */
};

struct gr_rcu_domain gr_rcu_default = {
	.gp_lock = GR_OWNED_MUTEX_INIT(GR_RANK_RCU_GP),
	.registry_lock = GR_OWNED_MUTEX_INIT(GR_RANK_RCU_REGISTRY),
	.name = "default",
};

struct gr_mutex gr_rcu_lists_lock = GR_MUTEX_INIT(GR_RANK_RCU_LISTS);

static struct {
	struct gr_mutex lock;
	struct gr_rcu_domain *first; /* (l), and gr_rcu_lists_lock; without the default one */
} domains = { .lock = GR_MUTEX_INIT(GR_RANK_RCU_DOMAINS) };

#ifndef _WIN32
__thread struct gr_rcu_own_readers gr_rcu_own;
#endif

static struct gr_rcu_auto_reader **slot_of(const struct gr_rcu_domain *d)
{
	return &gr_rcu_own.found[((uintptr_t)d / sizeof(*d)) % GR_RCU_FOUND_BEFORE];
}

struct gr_rcu_reader *gr_rcu_domain_reader(struct gr_rcu_domain *d)
{
	struct gr_rcu_auto_reader **slot = slot_of(d), *a = *slot;

	if (d == &gr_rcu_default) {
		return &gr_rcu_self;
	}
	if (a && gr_load_relaxed(&a->r.domain) == d) {
		return &a->r;
	}
	for (a = gr_rcu_own.first; a; a = a->next) {
		if (gr_load_relaxed(&a->r.domain) == d) {
			*slot = a;
			return &a->r;
		}
	}
	return NULL;
}

unsigned gr_rcu_sections_of_thread(struct gr_rcu_domain **in, unsigned n)
{
	unsigned count = 0;

	if (n > 0 && gr_rcu_read_ongoing()) {
		in[count++] = &gr_rcu_default;
	}
	for (const struct gr_rcu_auto_reader *a = gr_rcu_own.first; a && count < n; a = a->next) {
		if (gr_rcu_read_ongoing_on(&a->r)) {
			in[count++] = gr_load_relaxed(&a->r.domain);
		}
	}
	return count;
}

/* One whose domain is gone, or a new one. */
static struct gr_rcu_auto_reader *unused_node(void)
{
	struct gr_rcu_auto_reader *a;

	for (a = gr_rcu_own.first; a; a = a->next) {
		if (!gr_load_relaxed(&a->r.domain)) {
			return a;
		}
	}
	a = gr_aligned_alloc(_Alignof(struct gr_rcu_auto_reader), sizeof(*a));
	if (!a) {
		gr_die("no memory for an RCU reader of a thread");
	}
	memset(a, 0, sizeof(*a));
	a->r.kind = GR_RCU_READER_AUTO;
	a->next = gr_rcu_own.first;
	gr_rcu_own.first = a;
	return a;
}

static struct gr_rcu_reader *make_reader(struct gr_rcu_domain *d)
{
	struct gr_rcu_auto_reader *a;
	struct gr_signals saved;

	gr_signals_block(&saved);
	gr_rcu_watch_thread_exit();
	a = unused_node();
	gr_rcu_start_counting(&a->r);
	gr_mutex_lock(&domains.lock);
	gr_store_relaxed(&a->r.domain, d);
	gr_rcu_reader_link(d, &a->r, GR_RCU_COLD);
	gr_mutex_unlock(&domains.lock);
	*slot_of(d) = a;
	gr_signals_restore(&saved);
	return &a->r;
}

void gr_rcu_domain_read_lock(struct gr_rcu_domain *domain)
{
	struct gr_rcu_domain *d = gr_rcu_domain_or_default(domain);
	struct gr_rcu_reader *r = gr_rcu_domain_reader(d);

	gr_rcu_read_lock_on(r ? r : make_reader(d));
}

void gr_rcu_domain_read_unlock(struct gr_rcu_domain *domain)
{
	struct gr_rcu_domain *d = gr_rcu_domain_or_default(domain);
	struct gr_rcu_reader *r = gr_rcu_domain_reader(d);

	if (!r) {
		gr_die("gr_rcu_domain_read_unlock() without gr_rcu_domain_read_lock() in domain %s",
		       d->name);
	}
	gr_rcu_read_unlock_on(r);
}

void gr_rcu_domain_leave_all(void)
{
	struct gr_signals saved;

	if (!gr_rcu_own.first) {
		return;
	}
	gr_signals_block(&saved);
	gr_mutex_lock(&domains.lock);
	for (struct gr_rcu_auto_reader *a = gr_rcu_own.first; a; a = a->next) {
		if (!a->r.domain) {
			continue;
		}
		if (gr_rcu_read_ongoing_on(&a->r)) {
			gr_die("a thread ends inside a read-side section of domain %s",
			       a->r.domain->name);
		}
		gr_rcu_reader_unlink(&a->r);
	}
	gr_mutex_unlock(&domains.lock);
	while (gr_rcu_own.first) {
		struct gr_rcu_auto_reader *a = gr_rcu_own.first;

		gr_rcu_own.first = a->next;
		gr_aligned_free(a);
	}
	memset(gr_rcu_own.found, 0, sizeof(gr_rcu_own.found));
	gr_signals_restore(&saved);
}

int gr_rcu_domain_create(const struct gr_rcu_domain_params *params,
			 struct gr_rcu_domain **ret_domain, struct gr_error *err)
{
	struct gr_rcu_domain *d;
	struct gr_signals saved;

	if (params && params->size != sizeof(*params)) {
		return gr_error_set(err, -EINVAL, "RCU domain: parameters of %zu bytes, not %zu",
				    params->size, sizeof(*params));
	}
	d = gr_aligned_alloc(_Alignof(struct gr_rcu_domain), sizeof(*d));
	if (!d) {
		return gr_error_set(err, -ENOMEM, "RCU domain: no memory");
	}
	memset(d, 0, sizeof(*d));
	gr_owned_mutex_init(&d->gp_lock, GR_RANK_RCU_GP);
	gr_owned_mutex_init(&d->registry_lock, GR_RANK_RCU_REGISTRY);
	(void)snprintf(d->name, sizeof(d->name), "%s",
		       params && params->name ? params->name : "unnamed");
	gr_signals_block(&saved);
	gr_mutex_lock(&domains.lock);
	d->next = domains.first;
	gr_mutex_lock(&gr_rcu_lists_lock);
	domains.first = d;
	gr_mutex_unlock(&gr_rcu_lists_lock);
	gr_mutex_unlock(&domains.lock);
	gr_signals_restore(&saved);
	*ret_domain = d;
	return 0;
}

/* Takes all readers out, which must be threads' own and outside. Under the list's lock. */
static void drop_readers(struct gr_rcu_domain *d)
{
	gr_owned_mutex_lock(&d->registry_lock);
	while (d->readers) {
		struct gr_rcu_reader *r = d->readers;

		if (gr_rcu_read_ongoing_on(r)) {
			gr_die("RCU domain %s is freed with a reader inside a section", d->name);
		}
		if (r->kind != GR_RCU_READER_AUTO) {
			gr_die("RCU domain %s is freed before its reader %s", d->name,
			       r->name ? r->name : "(no name)");
		}
		gr_rcu_reader_unlink_locked(d, r);
		gr_store_relaxed(&r->domain, (struct gr_rcu_domain *)NULL);
	}
	gr_owned_mutex_unlock(&d->registry_lock);
}

void gr_rcu_domain_free(struct gr_rcu_domain *domain)
{
	struct gr_rcu_domain **where = &domains.first;
	struct gr_signals saved;

	if (!domain) {
		return;
	}
	if (gr_load_acquire(&domain->queues) != 0) {
		gr_die("RCU domain %s is freed before a callback queue that uses it", domain->name);
	}
	gr_signals_block(&saved);
	gr_mutex_lock(&domains.lock);
	drop_readers(domain);
	while (*where != domain) {
		where = &(*where)->next;
	}
	gr_mutex_lock(&gr_rcu_lists_lock);
	*where = domain->next;
	gr_mutex_unlock(&gr_rcu_lists_lock);
	gr_mutex_unlock(&domains.lock);
	gr_signals_restore(&saved);
	gr_rcu_poll_stop(domain);
	gr_rcu_check_forget(domain);
	gr_aligned_free(domain);
}

static void wait_for_fences_of(struct gr_rcu_domain *d)
{
	uint64_t first = 0, seq; /* odd, if fencing is set */

	/* Acquire: seq, and the fence is over. Who has a later seq has seen the quiet time. */
	while (gr_load_acquire(&d->fencing) != 0) {
		seq = gr_load_acquire(&d->seq);
		if (first != 0 && seq != first) {
			return;
		}
		first = seq;
		GR_HOOK("quiet: waits");
		(void)gr_futex_wait(&d->fencing, 1, GR_RCU_FENCE_LOOK_NS);
	}
}

void gr_rcu_domains_wait_for_fences(void)
{
	struct gr_signals saved;

	gr_signals_block(&saved);
	gr_mutex_lock(&domains.lock);
	wait_for_fences_of(&gr_rcu_default);
	for (struct gr_rcu_domain *d = domains.first; d; d = d->next) {
		wait_for_fences_of(d);
	}
	gr_mutex_unlock(&domains.lock);
	gr_signals_restore(&saved);
}

void gr_rcu_reader_init(struct gr_rcu_reader *r, struct gr_rcu_domain *domain, const char *name)
{
	struct gr_signals saved;

	memset(r, 0, sizeof(*r));
	r->domain = domain;
	r->name = name;
	r->kind = GR_RCU_READER_HANDLE;
	gr_rcu_start_counting(r);
	gr_signals_block(&saved);
	gr_rcu_reader_link(gr_rcu_domain_or_default(domain), r, GR_RCU_COLD);
	gr_signals_restore(&saved);
}

void gr_rcu_reader_destroy(struct gr_rcu_reader *r)
{
	struct gr_signals saved;

	if (gr_rcu_read_ongoing_on(r)) {
		gr_die("RCU reader %s is destroyed inside a section",
		       r->name ? r->name : "(no name)");
	}
	if (gr_load_relaxed(&r->ctr) == 0) {
		return; /* a fork took it away */
	}
	gr_signals_block(&saved);
	gr_rcu_reader_unlink(r);
	gr_signals_restore(&saved);
}

void gr_rcu_stats_get(struct gr_rcu_domain *domain, struct gr_rcu_stats *ret_stats)
{
	struct gr_rcu_domain *d = gr_rcu_domain_or_default(domain);
	const uint64_t *from = (const uint64_t *)&d->stats;
	uint64_t *to = (uint64_t *)ret_stats;

	for (size_t i = 0; i < sizeof(*ret_stats) / sizeof(*to); i++) {
		to[i] = gr_load_relaxed(&from[i]);
	}
}

/* ---- fork ------------------------------------------------------------------------------ */

void gr_rcu_domains_before_fork(void) GR_NO_TSA
{
#ifdef GR_MUTANT_RCU_FORK_TAKES_REGISTRY
	gr_owned_mutex_lock(&gr_rcu_default.registry_lock);
#endif
	gr_mutex_lock(&gr_rcu_lists_lock);
}

static bool is_mine(const struct gr_rcu_reader *r)
{
	for (const struct gr_rcu_auto_reader *a = gr_rcu_own.first; a; a = a->next) {
		if (&a->r == r) {
			return true;
		}
	}
	return r == &gr_rcu_self;
}

/*
 * Other threads' readers vanish, and explicit ones that some thread had inside a section. If a
 * handler has forked in the middle of a driver's walk, that goes on with the record where it stands
 * and then finds the end of the list, or of what it is now.
 */
static void keep_whom_we_have(struct gr_rcu_domain *d)
{
	bool walks = gr_owned_mutex_is_mine(&d->registry_lock);
	struct gr_rcu_reader *next, *r = d->readers;

	d->readers = NULL;
	for (; r; r = next) {
#ifdef GR_MUTANT_RCU_FORK_KEEPS_STRANGERS
		bool stays = true;
#else
		bool stays = is_mine(r) ||
			     (r->kind == GR_RCU_READER_HANDLE && !gr_rcu_read_ongoing_on(r));
#endif

		next = r->next;
		r->next = NULL;
		r->awaited = 0;
		gr_store_relaxed(&r->need_qs, 0u);
		gr_store_relaxed(&r->stalled, 0u);
		if (stays) {
			gr_store_relaxed(&r->tid, gr_thread_id());
			r->next = d->readers;
			r->pprev = &d->readers;
			if (r->next) {
				r->next->pprev = &r->next;
			}
			d->readers = r;
		} else if (r->kind == GR_RCU_READER_AUTO && !walks) {
			gr_aligned_free(gr_container_of(r, struct gr_rcu_auto_reader, r));
		} else if (r->kind == GR_RCU_READER_HANDLE) {
			gr_store_relaxed(&r->ctr, 0u);
		}
	}
}

static void mend_in_child(struct gr_rcu_domain *d)
{
	uint32_t notifiers = 0;

	keep_whom_we_have(d);
	for (struct gr_rcu_reader *r = d->readers; r; r = r->next) {
		for (const struct gr_rcu_notifier *n = r->notifiers; n; n = n->next) {
			notifiers++;
		}
	}
	d->notifiers = notifiers;
	gr_owned_mutex_after_fork_in_child(&d->registry_lock);
	gr_rcu_synchronize_after_fork_in_child(d);
	gr_rcu_poll_after_fork_in_child(d);
}

void gr_rcu_domains_after_fork(bool in_child) GR_NO_TSA
{
	if (in_child) {
		gr_mutex_init(&domains.lock, GR_RANK_RCU_DOMAINS);
		for (struct gr_rcu_domain *d = domains.first; d; d = d->next) {
			mend_in_child(d);
		}
		mend_in_child(&gr_rcu_default);
	}
	gr_mutex_unlock(&gr_rcu_lists_lock);
#ifdef GR_MUTANT_RCU_FORK_TAKES_REGISTRY
	gr_owned_mutex_unlock(&gr_rcu_default.registry_lock);
#endif
}
