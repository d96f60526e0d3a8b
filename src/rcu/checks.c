/* SPDX-License-Identifier: MIT */
/*
 * The checking build: sections. Their begin is noted in the reader's record, for stall warnings and
 * for whoever ends the section elsewhere. Which explicit readers a thread is inside of is noted
 * here, because gr_rcu_dereference() cannot name its reader.
 *
 * These functions are always in the library, so that objects compiled with GR_RCU_CHECKS work with
 * any build of it. They may run in signal handlers: each leaves what it changes as a handler, which
 * ends the sections that it begins, must find it.
 */
#include "rcu/checks.h"
#include "base/atomic.h"
#include "base/clock.h"
#include "base/handler.h"
#include "base/thread_info.h"
#include <guestram/rcu_check.h>
#include <stdarg.h>
#include <stdio.h>

static struct gr_handler handler = GR_HANDLER_INIT; /* gr_rcu_check_fn */

/* (o) */
enum { HANDLES = 4 };
static __thread struct {
	uint32_t tid;			       /* 0: not asked yet */
	uint32_t handles;		       /* sections of explicit readers that are open */
	struct gr_rcu_domain *domain[HANDLES]; /* of the first ones */
} here;

void gr_rcu_set_check_handler(gr_rcu_check_fn *fn, void *opaque)
{
	gr_handler_set(&handler, (gr_handler_fn *)fn, opaque);
}

void gr_rcu_check_failed(const char *fmt, ...)
{
	struct gr_handler_slot to = gr_handler_get(&handler);
	gr_rcu_check_fn *fn = (gr_rcu_check_fn *)to.fn;
	char text[448];
	va_list ap;

	va_start(ap, fmt);
	(void)vsnprintf(text, sizeof(text), fmt, ap);
	va_end(ap);
	if (!fn) {
		gr_die("%s", text);
	}
	fn(text, to.opaque);
}

static uint32_t my_tid(void)
{
	if (here.tid == 0) {
		here.tid = gr_thread_id();
	}
	return here.tid;
}

static bool is_outermost(const struct gr_rcu_reader *r)
{
	uint32_t ctr = gr_load_relaxed(&r->ctr);

	return (ctr & GR_RCU_DEPTH) == ((ctr & GR_RCU_QS) != 0 ? 2u : 1u);
}

void gr_rcu_check_enter(struct gr_rcu_reader *r)
{
	if (!is_outermost(r)) {
		return;
	}
	gr_store_relaxed(&r->tid, my_tid());
	gr_store_relaxed(&r->since_ns, gr_clock_ns());
	gr_store_relaxed(&r->site, (const void *)__builtin_return_address(0));
	if (r->kind == GR_RCU_READER_HANDLE) {
		uint32_t n = here.handles++;

		if (n < HANDLES) {
			here.domain[n] = r->domain;
		}
	}
}

void gr_rcu_check_leave(struct gr_rcu_reader *r)
{
	const void *site = gr_load_relaxed(&r->site);
	char where[128];

	if (!site || !is_outermost(r)) {
		return; /* or the section began in code without checks */
	}
	if (gr_load_relaxed(&r->tid) != my_tid()) {
		gr_code_name(site, where, sizeof(where));
		gr_rcu_check_failed("a section of RCU reader %s that thread %u began at %s ends on "
				    "thread %u",
				    r->name ? r->name : "(no name)", gr_load_relaxed(&r->tid),
				    where, my_tid());
	} else if (r->kind == GR_RCU_READER_HANDLE && here.handles > 0) {
		here.handles--;
	}
	gr_store_relaxed(&r->site, (const void *)NULL);
	gr_store_relaxed(&r->since_ns, 0u);
}

unsigned gr_rcu_check_handles(struct gr_rcu_domain **domains, unsigned n)
{
	unsigned i;

	for (i = 0; i < n && i < here.handles && i < HANDLES; i++) {
		domains[i] = gr_rcu_domain_or_default(here.domain[i]);
	}
	return i;
}

void gr_rcu_check_dereference(const char *what, bool cond, const char *file, int line)
{
	struct gr_rcu_domain *inside[1];

	if (!cond && here.handles == 0 && gr_rcu_sections_of_thread(inside, 1) == 0) {
		gr_rcu_check_failed("gr_rcu_dereference(%s) outside a read-side section, at %s:%d",
				    what, file, line);
	}
}

void gr_rcu_check_warn(const char *text, const char *file, int line)
{
	gr_rcu_check_failed("%s, at %s:%d", text, file, line);
}

void gr_rcu_check_after_fork_in_child(void)
{
	gr_handler_after_fork_in_child(&handler);
	here.tid = 0; /* it has another number */
}
