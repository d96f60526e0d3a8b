/* SPDX-License-Identifier: MIT */
/*
 * fork(). A child in which the harvest lock of some other thread stays locked for ever, with the
 * bits which that thread had in hand, could not harvest at all. So the forking thread takes
 * every harvest lock first. All are short: their holders wait for nobody. Who holds one, or the
 * list's, has its signals blocked, fork() itself first of all: a handler may fork anywhere. Markers
 * that were half way are another matter: harvest.c trusts no summary in a child.
 */
#include "base/fork.h"
#include "base/hook.h"
#include "bitmap/dirty.h"
#include <guestram/event.h>
#include <string.h>

static struct {
	/* Protects the list, for fork; the peers' harvest locks are taken in its order. */
	struct gr_mutex lock;
	struct gr_dirty *first; /* (l) */
} all = { .lock = GR_MUTEX_INIT(GR_RANK_DIRTY_LIST) };

static struct gr_once install_once = GR_ONCE_INIT;
static int install_result; /* (c) after the once */

/* (o) Of the forking thread; written only with all the locks held. */
static struct gr_signals saved_signals;
static unsigned int saved_order;

void gr_dirty_lock(struct gr_dirty *dirty)
{
	struct gr_signals saved;

#ifdef GR_MUTANT_DIRTY_LOCK_SIGNALS_OPEN
	memset(&saved, 0, sizeof(saved));
#else
	gr_signals_block(&saved);
#endif
	gr_mutex_lock(&dirty->lock);
	dirty->saved = saved;
}

void gr_dirty_unlock(struct gr_dirty *dirty)
{
	struct gr_signals saved = dirty->saved;

	gr_mutex_unlock(&dirty->lock);
#ifndef GR_MUTANT_DIRTY_LOCK_SIGNALS_OPEN
	gr_signals_restore(&saved);
#endif
}

static void before_fork(void) GR_NO_TSA
{
	unsigned int order = gr_mutex_order_begin(); /* perhaps in a handler */
	struct gr_signals saved;

#ifndef GR_MUTANT_DIRTY_FORK_SIGNALS_OPEN
	gr_signals_block(&saved);
#endif
	gr_mutex_lock(&all.lock);
	for (struct gr_dirty *d = all.first; d; d = d->next) {
		gr_mutex_lock_peer(&d->lock);
	}
	GR_HOOK("dirty fork: locked");
#ifdef GR_MUTANT_DIRTY_FORK_SIGNALS_OPEN
	gr_signals_block(&saved);
#endif
	saved_signals = saved;
	saved_order = order;
}

static void after_fork(bool in_child) GR_NO_TSA
{
	struct gr_signals saved = saved_signals;
	unsigned int order = saved_order;

	for (struct gr_dirty *d = all.first; d; d = d->next) {
		d->forked |= in_child;
		gr_mutex_unlock(&d->lock);
	}
	gr_mutex_unlock(&all.lock);
	gr_mutex_order_end(order);
	gr_signals_restore(&saved);
}

static void after_fork_in_parent(void)
{
	after_fork(false);
}

static void after_fork_in_child(void)
{
	after_fork(true);
}

static void install(void)
{
	install_result = gr_atfork(before_fork, after_fork_in_parent, after_fork_in_child);
}

int gr_dirty_fork_list(struct gr_dirty *dirty)
{
	struct gr_signals saved;

	gr_once(&install_once, install);
	if (install_result != 0) {
		return install_result;
	}
	gr_signals_block(&saved);
	gr_mutex_lock(&all.lock);
	dirty->next = all.first;
	all.first = dirty;
	gr_mutex_unlock(&all.lock);
	gr_signals_restore(&saved);
	return 0;
}

void gr_dirty_fork_unlist(struct gr_dirty *dirty)
{
	struct gr_dirty **where = &all.first;
	struct gr_signals saved;

	gr_signals_block(&saved);
	gr_mutex_lock(&all.lock);
	while (*where != dirty) {
		where = &(*where)->next;
	}
	*where = dirty->next;
	gr_mutex_unlock(&all.lock);
	gr_signals_restore(&saved);
}
