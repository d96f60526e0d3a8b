/* SPDX-License-Identifier: MIT */
/*
 * The checking build: lists. Which nodes were deleted when, to find one that is inserted again
 * while a reader may still stand on it: that reader would go astray into another list, or for ever.
 *
 * A table of fixed size, because a deletion must not need memory: who falls on another's place
 * takes it, and a misuse may go unnoticed then. Always in the library, as checks.c.
 */
#include "base/atomic.h"
#include "rcu/checks.h"
#include <guestram/rcu_check.h>

enum { PLACES = 1 << 12 };
static struct {
	struct gr_rcu_list_node *node; /* (a) NULL: free */
	gr_atomic_u64 cookie;	       /* (a) written before node */
} deleted[PLACES];

static size_t place_of(const struct gr_rcu_list_node *node)
{
	return (size_t)(((uint64_t)(uintptr_t)node >> 3) * 0x9e3779b97f4a7c15u >> 52);
}

void gr_rcu_check_list_deleted(struct gr_rcu_list_node *node)
{
	size_t i = place_of(node);

	/* Not another's cookie under our name, should two meet here: at worst a misuse is missed.
	 */
	gr_store_relaxed(&deleted[i].node, (struct gr_rcu_list_node *)NULL);
	gr_store_relaxed(&deleted[i].cookie, gr_rcu_get_state());
	gr_store_release(&deleted[i].node, node);
}

void gr_rcu_check_list_forget(struct gr_rcu_list_node *node)
{
	size_t i = place_of(node);

	(void)gr_cas_acq_rel(&deleted[i].node, &node, (struct gr_rcu_list_node *)NULL);
}

void gr_rcu_check_list_inserting(struct gr_rcu_list_node *node, const char *file, int line)
{
	size_t i = place_of(node);

	/* Acquire: the cookie. */
	if (gr_load_acquire(&deleted[i].node) != node) {
		return;
	}
	if (!gr_rcu_poll_state(gr_load_relaxed(&deleted[i].cookie))) {
		gr_rcu_check_failed(
			"%s:%d: list node %p is inserted again, and no grace period has "
			"ended since it was deleted",
			file, line, (const void *)node);
	}
	gr_rcu_check_list_forget(node);
}
