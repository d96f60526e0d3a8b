/* SPDX-License-Identifier: MIT */
/*
 * Stall warnings. The driver, while it sleeps for readers, wakes when a warning is due. Under the
 * registry's lock it notes who holds it up, then, without the lock, finds out names and reports.
 *
 * Where a section ended, only its thread knows. So the driver leaves a mark in the record (the
 * number of its note plus one); a reader that reports and finds the mark writes place and time into
 * the note, with plain stores, as it may be in a signal handler. Between the exchange that takes
 * its request back and its subtraction from pending the driver cannot go on, so the note is there,
 * and the driver's acquire of pending makes it visible. The marks go before the grace period ends.
 */
#include "rcu/stall.h"
#include "base/atomic.h"
#include "base/clock.h"
#include "base/handler.h"
#include "base/log.h"
#include "base/thread_info.h"
#include "rcu/trace.h"
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

static gr_atomic_u64 first_ns = GR_RCU_STALL_NS; /* (a) */
static struct gr_handler handler = GR_HANDLER_INIT; /* gr_rcu_stall_fn */

/* (o) This thread is in a handler. */
static __thread bool reporting;

void gr_rcu_set_stall_ns(uint64_t ns)
{
	gr_store_relaxed(&first_ns, ns);
}

void gr_rcu_set_stall_handler(gr_rcu_stall_fn *fn, void *opaque)
{
	gr_handler_set(&handler, (gr_handler_fn *)fn, opaque);
}

void gr_rcu_stall_after_fork_in_child(void)
{
	gr_handler_after_fork_in_child(&handler);
}

bool gr_rcu_in_stall_report(void)
{
	return reporting;
}

void gr_rcu_stall_begin(struct gr_rcu_stall *s, uint64_t start_ns)
{
	uint64_t wait_ns = gr_load_relaxed(&first_ns);

	s->start_ns = start_ns;
	s->wait_ns = wait_ns;
	s->due_ns = wait_ns != 0 && wait_ns < UINT64_MAX - start_ns ? start_ns + wait_ns : 0;
	s->notes = 0;
	s->more = 0;
}

static const char *kind_of(uint32_t ctr)
{
	if ((ctr & ~GR_RCU_DEPTH) == GR_RCU_LATE) {
		return "ending thread's section";
	}
	return (ctr & GR_RCU_QS) != 0 ? "quiescent-state thread" : "section";
}

static struct gr_rcu_stall_note *note_of(struct gr_rcu_stall *s, struct gr_rcu_reader *r)
{
	uint32_t mark = gr_load_relaxed(&r->stalled);
	struct gr_rcu_stall_note *note;

	if (mark != 0) {
		return &s->note[mark - 1];
	}
	if (s->notes == GR_RCU_STALL_NOTES) {
		s->more++;
		return NULL;
	}
	note = &s->note[s->notes++];
	memset(note, 0, sizeof(*note));
	/* Release: the empty note. Pairs with the acquire in gr_rcu_stall_note_end(). */
	gr_store_release(&r->stalled, s->notes);
	return note;
}

/* Notes who holds up the grace period now. */
static void look_round(struct gr_rcu_domain *d, struct gr_rcu_stall *s)
{
	struct gr_rcu_signals saved;

	s->more = 0;
	gr_rcu_registry_lock(d, &saved);
	for (uint32_t i = 0; i < s->notes; i++) {
		s->note[i].waits = false;
	}
	for (struct gr_rcu_reader *r = d->readers; r; r = r->next) {
		struct gr_rcu_stall_note *note = gr_rcu_holds_up(r) ? note_of(s, r) : NULL;

		if (note) {
			note->waits = true;
			note->tid = gr_load_relaxed(&r->tid);
			(void)snprintf(note->reader, sizeof(note->reader), "%s",
				       r->name ? r->name : "");
			note->kind = kind_of(gr_load_relaxed(&r->ctr));
			note->begin_site = gr_load_relaxed(&r->site);
			note->begin_ns = gr_load_relaxed(&r->since_ns);
		}
	}
	gr_rcu_registry_unlock(d, &saved);
}

static void hand_over(const struct gr_rcu_stall_report *report)
{
	struct gr_handler_slot to = gr_handler_get(&handler);
	gr_rcu_stall_fn *fn = (gr_rcu_stall_fn *)to.fn;

	reporting = true;
	if (fn) {
		fn(report, to.opaque);
	} else {
		gr_log(GR_LOG_WARN, "%s", report->text);
	}
	reporting = false;
}

static uint64_t ms(uint64_t ns)
{
	return ns / GR_NS_PER_MS;
}

/* The subject of the sentence: which thread, and with which reader. */
static void say_who(const struct gr_rcu_stall_report *r, char *who, size_t bytes)
{
	bool named = r->reader != NULL;

	(void)snprintf(who, bytes, "thread %u (%s)%s%s", r->tid, r->thread,
		       named ? " with reader " : "", named ? r->reader : "");
}

static void say(const struct gr_rcu_stall_report *r, uint32_t more, char *text, size_t bytes)
{
	char who[96], began[160] = "", others[48] = "";

	say_who(r, who, sizeof(who));
	if (r->event == GR_RCU_STALL_ENDED) {
		(void)snprintf(text, bytes, "RCU: %s ended its section after %" PRIu64 " ms%s%s",
			       who, ms(r->age_ns), r->site ? ", at " : "", r->site_name);
		return;
	}
	if (r->site) {
		(void)snprintf(began, sizeof(began), ", begun %" PRIu64 " ms ago at %s",
			       ms(r->section_ns), r->site_name);
	}
	if (more) {
		(void)snprintf(others, sizeof(others), "; and for %u readers more", more);
	}
	(void)snprintf(text, bytes,
		       "RCU: a grace period of domain %s is open for %" PRIu64
		       " ms: it waits for %s: "
		       "%s%s%s; %" PRIu64 " callbacks wait",
		       r->domain, ms(r->age_ns), who, r->kind, began, others, r->callbacks);
}

static void report_one(struct gr_rcu_domain *d, const struct gr_rcu_stall *s,
		       struct gr_rcu_stall_note *note, enum gr_rcu_stall_event event)
{
	bool ended = event == GR_RCU_STALL_ENDED;
	uint64_t now = ended && note->end_ns ? note->end_ns : gr_clock_ns();
	const void *site = ended ? note->end_site : note->begin_site;
	char site_name[128] = "", text[448];
	struct gr_rcu_stall_report r = {
		.event = event,
		.domain = d == &gr_rcu_default ? "default" : d->name,
		.age_ns = now - s->start_ns,
		.section_ns = note->begin_ns ? now - note->begin_ns : 0,
		.tid = note->tid,
		.thread = note->thread,
		.reader = note->reader[0] ? note->reader : NULL,
		.kind = note->kind,
		.site = site,
		.site_name = site_name,
		.callbacks = gr_rcu_callbacks_waiting(d),
		.text = text,
	};

	if (!note->thread[0]) { /* at the end the thread may be gone */
		gr_thread_name(note->tid, note->thread, sizeof(note->thread));
	}
	if (site) {
		gr_code_name(site, site_name, sizeof(site_name));
	}
	say(&r, ended ? 0 : s->more, text, sizeof(text));
	GR_TRACE3(rcu_stall, d->name, note->tid, r.age_ns);
	hand_over(&r);
}

static void report(struct gr_rcu_domain *d, struct gr_rcu_stall *s)
{
	look_round(d, s);
	for (uint32_t i = 0; i < s->notes; i++) {
		if (s->note[i].waits) {
			GR_RCU_COUNT(d, stalls, 1);
			report_one(d, s, &s->note[i], GR_RCU_STALL_WAITS);
		}
	}
}

uint64_t gr_rcu_stall_check(struct gr_rcu_domain *d, struct gr_rcu_stall *s)
{
	uint64_t now;

	if (s->due_ns == 0) {
		return GR_FUTEX_FOR_EVER;
	}
	now = gr_clock_ns();
	if (now >= s->due_ns) {
		report(d, s);
		now = gr_clock_ns();
		s->wait_ns = s->wait_ns < UINT64_MAX / 4 ? 2 * s->wait_ns : s->wait_ns;
		s->due_ns = now + s->wait_ns;
	}
	return s->due_ns - now;
}

void gr_rcu_stall_note_end(struct gr_rcu_reader *r, const void *site)
{
	/* Acquire: pairs with the release in note_of(). */
	uint32_t mark = gr_load_acquire(&r->stalled);
	struct gr_rcu_stall_note *note;

	if (GR_LIKELY(mark == 0)) {
		return;
	}
	note = &gr_rcu_domain_or_default(r->domain)->stall.note[mark - 1];
	gr_store_relaxed(&note->end_site, site);
	gr_store_relaxed(&note->end_ns, gr_clock_ns());
}

void gr_rcu_stall_end(struct gr_rcu_domain *d, struct gr_rcu_stall *s)
{
	struct gr_rcu_signals saved;

	if (s->notes == 0) {
		return;
	}
	gr_rcu_registry_lock(d, &saved);
	for (struct gr_rcu_reader *r = d->readers; r; r = r->next) {
		gr_store_relaxed(&r->stalled, 0u);
	}
	gr_rcu_registry_unlock(d, &saved);
	for (uint32_t i = 0; i < s->notes; i++) {
		report_one(d, s, &s->note[i], GR_RCU_STALL_ENDED);
	}
	s->notes = 0;
}
