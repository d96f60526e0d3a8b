/* SPDX-License-Identifier: MIT */
/*
 * The checking build: locks and waits. A thread that waits for a grace period waits for all
 * sections, so for every lock that a section takes; one that waits for callbacks waits for the
 * locks that callbacks take as well. Holding such a lock meanwhile is a deadlock once the two meet.
 * They need not meet to be found: each lock (by name) and domain remembers that it was taken inside
 * a section and held during a grace period, each lock and queue that it was taken in a callback and
 * held while waiting for callbacks. Whoever waits for callbacks waits for a grace period, too.
 */
#include "base/atomic.h"
#include "base/mutex.h"
#include "base/signals.h"
#include "rcu/checks.h"
#include "rcu/queue.h"
#include <guestram/rcu_check.h>
#include <stdio.h>
#include <string.h>

enum how {
	IN_SECTION, /* taken inside a section of the domain */
	IN_CALLBACK, /* ...in one of the queue */
	IN_GP_WAIT, /* held while waiting for a grace period of the domain */
	IN_BARRIER, /* ...for callbacks of the queue */
	HOWS,
};
static const char *const how_text[HOWS] = {
	[IN_SECTION] = "inside a read-side section",
	[IN_CALLBACK] = "in a callback",
	[IN_GP_WAIT] = "while waiting for a grace period",
	[IN_BARRIER] = "while waiting for callbacks",
};

enum { USES_MAX = 256, HELD_MAX = 6, DOMAINS_MAX = 8, NAME_BYTES = 32 };
struct lock_use {
	char name[NAME_BYTES];
	const void *of; /* a domain, or a queue */
	char where[HOWS][64]; /* "": never */
	bool reported;
};

static struct {
	struct gr_mutex lock; /* protects the rest; nothing is called with it held */
	struct lock_use use[USES_MAX];
	unsigned uses;
} table = { .lock = GR_MUTEX_INIT(GR_RANK_RCU_CHECKS) };

/* (o) Small: a process that loads the library later has little room for thread-local variables. */
static __thread struct {
	const void *lock[HELD_MAX];
	const char *name[HELD_MAX]; /* NULL: its address */
	unsigned n;
} held;

/* NULL when the table is full: then what is new goes unchecked. */
static struct lock_use *find_use(const char *name, const void *of) GR_REQUIRES(table.lock)
{
	struct lock_use *u;

	for (u = table.use; u < table.use + table.uses; u++) {
		if (u->of == of && strcmp(u->name, name) == 0) {
			return u;
		}
	}
	if (table.uses == USES_MAX) {
		return NULL;
	}
	table.uses++;
	memset(u, 0, sizeof(*u));
	(void)snprintf(u->name, sizeof(u->name), "%s", name);
	u->of = of;
	return u;
}

/* The two ways of use that do not go together, if there are such. */
static bool is_deadlock(const struct lock_use *u, enum how *ret_taken, enum how *ret_held)
{
	static const enum how pairs[][2] = { { IN_SECTION, IN_GP_WAIT },
					     { IN_CALLBACK, IN_BARRIER } };

	for (size_t i = 0; i < GR_ARRAY_SIZE(pairs); i++) {
		if (u->where[pairs[i][0]][0] && u->where[pairs[i][1]][0]) {
			*ret_taken = pairs[i][0];
			*ret_held = pairs[i][1];
			return true;
		}
	}
	return false;
}

static void note_use(const char *name, const void *of, enum how how, const char *where)
{
	enum how taken = how, kept = how; /* not looked at unless we tell */
	struct lock_use copy;
	struct gr_signals saved;
	struct lock_use *u;
	bool tell = false;

	gr_signals_block(&saved); /* a handler may take locks, or fork */
	gr_mutex_lock(&table.lock);
	u = find_use(name, of);
	if (u && !u->where[how][0]) {
		(void)snprintf(u->where[how], sizeof(u->where[how]), "%s", where);
		tell = !u->reported && is_deadlock(u, &taken, &kept);
		u->reported |= tell;
		copy = *u;
	}
	gr_mutex_unlock(&table.lock);
	gr_signals_restore(&saved);
	if (tell) {
		gr_rcu_check_failed("possible deadlock: lock %s is taken %s (%s) and held %s (%s)",
				    copy.name, how_text[taken], copy.where[taken], how_text[kept],
				    copy.where[kept]);
	}
}

void gr_rcu_check_forget(const void *domain_or_queue)
{
	struct gr_signals saved;

	gr_signals_block(&saved);
	gr_mutex_lock(&table.lock);
	for (unsigned i = 0; i < table.uses;) {
		if (table.use[i].of == domain_or_queue) {
			table.use[i] = table.use[--table.uses];
		} else {
			i++;
		}
	}
	gr_mutex_unlock(&table.lock);
	gr_signals_restore(&saved);
}

static const char *name_of(const void *lock, const char *name, char own[NAME_BYTES])
{
	if (name) {
		return name;
	}
	(void)snprintf(own, NAME_BYTES, "%p", lock);
	return own;
}

void gr_rcu_check_lock_acquired(const void *lock, const char *name, const char *file, int line)
{
	struct gr_rcu_domain *inside[DOMAINS_MAX];
	unsigned n = gr_rcu_sections_of_thread(inside, DOMAINS_MAX);
	char own[NAME_BYTES], where[64];

	(void)snprintf(where, sizeof(where), "%s:%d", file, line);
	if (held.n < HELD_MAX) {
		held.lock[held.n] = lock;
		held.name[held.n] = name;
		held.n++;
	}
	name = name_of(lock, name, own);
	n += gr_rcu_check_handles(inside + n, DOMAINS_MAX - n);
	for (unsigned i = 0; i < n; i++) {
		note_use(name, inside[i], IN_SECTION, where);
	}
	if (gr_rcu_caller.callback_of) {
		note_use(name, gr_rcu_caller.callback_of, IN_CALLBACK, where);
	}
}

void gr_rcu_check_lock_released(const void *lock)
{
	for (unsigned i = held.n; i > 0; i--) {
		if (held.lock[i - 1] == lock) {
			memmove(&held.lock[i - 1], &held.lock[i],
				(held.n - i) * sizeof(held.lock[0]));
			memmove(&held.name[i - 1], &held.name[i],
				(held.n - i) * sizeof(held.name[0]));
			held.n--;
			return;
		}
	}
}

void gr_rcu_check_wait(struct gr_rcu_domain *d, struct gr_rcu_queue *q, const char *who)
{
	char own[NAME_BYTES];

	for (unsigned i = 0; i < held.n; i++) {
		const char *name = name_of(held.lock[i], held.name[i], own);

		note_use(name, d, IN_GP_WAIT, who);
		if (q) {
			note_use(name, q, IN_BARRIER, who);
		}
	}
}

void gr_rcu_checks_before_fork(void) GR_NO_TSA
{
	gr_mutex_lock(&table.lock);
	gr_rcu_check_calls_before_fork();
}

void gr_rcu_checks_after_fork(bool in_child) GR_NO_TSA
{
	gr_rcu_check_calls_after_fork();
	gr_mutex_unlock(&table.lock);
	if (in_child) {
		gr_rcu_check_after_fork_in_child();
	}
}
