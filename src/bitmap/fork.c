/* SPDX-License-Identifier: MIT */
/*
 * fork(). A child in which the harvest lock of some other thread stays locked for ever, with the
 * bits which that thread had in hand, could not harvest at all. So the forking thread takes
 * every harvest lock first. All are short: their holders wait for nobody. Markers that were
 * half way are another matter: harvest.c trusts no summary in a child.
 */
#include "base/fork.h"
#include "bitmap/dirty.h"
#include <guestram/event.h>

static struct {
	/* Protects the list, for fork; the peers' harvest locks are taken in its order. */
	struct gr_mutex lock;
	struct gr_dirty *first; /* (l) */
} all = { .lock = GR_MUTEX_INIT(GR_RANK_DIRTY_LIST) };

static struct gr_once install_once = GR_ONCE_INIT;
static int install_result; /* (c) after the once */

static void before_fork(void) GR_NO_TSA
{
	gr_mutex_lock(&all.lock);
	for (struct gr_dirty *d = all.first; d; d = d->next) {
		gr_mutex_lock_peer(&d->lock);
	}
}

static void after_fork(void) GR_NO_TSA
{
	for (struct gr_dirty *d = all.first; d; d = d->next) {
		gr_mutex_unlock(&d->lock);
	}
	gr_mutex_unlock(&all.lock);
}

static void install(void)
{
	install_result = gr_atfork(before_fork, after_fork, after_fork);
}

int gr_dirty_fork_list(struct gr_dirty *dirty)
{
	gr_once(&install_once, install);
	if (install_result != 0) {
		return install_result;
	}
	gr_mutex_lock(&all.lock);
	dirty->next = all.first;
	all.first = dirty;
	gr_mutex_unlock(&all.lock);
	return 0;
}

void gr_dirty_fork_unlist(struct gr_dirty *dirty)
{
	struct gr_dirty **where = &all.first;

	gr_mutex_lock(&all.lock);
	while (*where != dirty) {
		where = &(*where)->next;
	}
	*where = dirty->next;
	gr_mutex_unlock(&all.lock);
}
