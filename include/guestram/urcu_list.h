/* SPDX-License-Identifier: MIT */
/**
 * guestram/urcu_list.h - liburcu's RCU lists: cds_list_*_rcu() and cds_hlist_*_rcu().
 *
 * Included by <guestram/urcu.h>. Writers exclude each other; readers walk forward inside a
 * read-side section. A deleted node keeps its way forward; it may be freed or inserted
 * again after a grace period.
 *
 * The plain lists that they share their types with are liburcu's (urcu/list.h, urcu/hlist.h)
 * where it is installed; elsewhere they are defined here.
 */
#ifndef GUESTRAM_URCU_LIST_H
#define GUESTRAM_URCU_LIST_H

#include <guestram/urcu_pointer.h>

#ifdef GR_URCU_BESIDE_LIBURCU
#	include <urcu/hlist.h>
#	include <urcu/list.h>
#else
#	include <guestram/urcu_plain_list.h>
#endif

GR_BEGIN_DECLS

/* Private: put a node between two neighbours. Its fields first, then the one way to it. */
static inline void gr_urcu_list_link_(struct cds_list_head *node, struct cds_list_head *before,
				      struct cds_list_head *after)
{
	node->next = after;
	node->prev = before;
	rcu_set_pointer(&before->next, node);
	after->prev = node;
}

/** Insert as the first. @param node In no list. @param head The list. @context Writers' lock. */
static inline void cds_list_add_rcu(struct cds_list_head *node, struct cds_list_head *head)
{
	gr_urcu_list_link_(node, head, head->next);
}

/** Insert as the last. @param node In no list. @param head The list. @context Writers' lock. */
static inline void cds_list_add_tail_rcu(struct cds_list_head *node, struct cds_list_head *head)
{
	gr_urcu_list_link_(node, head->prev, head);
}

/**
 * Put a node in the place of another: readers find either, never neither.
 * @param old  In the list. Leave it alone until a grace period has passed.
 * @param node In no list.
 * @context Writers' lock.
 */
static inline void cds_list_replace_rcu(struct cds_list_head *old, struct cds_list_head *node)
{
	gr_urcu_list_link_(node, old->prev, old->next);
}

/** Take a node out. @param node In a list; alone until a grace period. @context Writers' lock. */
static inline void cds_list_del_rcu(struct cds_list_head *node)
{
	node->next->prev = node->prev;
	/* Release: a reader that comes this way never passed the node that published next. */
	rcu_set_pointer(&node->prev->next, node->next);
}

/** Insert as the first. @param node In no list. @param head The list. @context Writers' lock. */
static inline void cds_hlist_add_head_rcu(struct cds_hlist_node *node, struct cds_hlist_head *head)
{
	struct cds_hlist_node *after = head->next;

	node->next = after;
	/* The head stands in for a node: next is the first member of both. */
	node->prev = (struct cds_hlist_node *)(void *)head;
	rcu_set_pointer(&head->next, node);
	if (after) {
		after->prev = node;
	}
}

/** Take a node out. @param node In a list; alone until a grace period. @context Writers' lock. */
static inline void cds_hlist_del_rcu(struct cds_hlist_node *node)
{
	struct cds_hlist_node *after = node->next;

	if (after) {
		after->prev = node->prev;
	}
	rcu_set_pointer(&node->prev->next, after); /* as in cds_list_del_rcu() */
}

GR_END_DECLS

/* Private: from a node found by a reader to what it is embedded in, as *pos. */
#define gr_urcu_list_entry_(link, pos, member) \
	cds_list_entry(rcu_dereference(link), __typeof__(*(pos)), member)
#define gr_urcu_hlist_entry_(link, pos, member) \
	__extension__ cds_hlist_entry_safe(rcu_dereference(link), __typeof__(*(pos)), member)

/** Walk the nodes, inside a section. */
#define cds_list_for_each_rcu(pos, head)                             \
	for ((pos) = rcu_dereference((head)->next); (pos) != (head); \
	     (pos) = rcu_dereference((pos)->next))

/** Walk the entries, inside a section. */
#define cds_list_for_each_entry_rcu(pos, head, member)                                         \
	for ((pos) = gr_urcu_list_entry_((head)->next, pos, member); &(pos)->member != (head); \
	     (pos) = gr_urcu_list_entry_((pos)->member.next, pos, member))

/** Walk the nodes, inside a section; pos is NULL after the last. */
#define cds_hlist_for_each_rcu(pos, head)                          \
	for ((pos) = rcu_dereference((head)->next); (pos) != NULL; \
	     (pos) = rcu_dereference((pos)->next))

/** Walk the entries with the node in pos, inside a section. */
#define cds_hlist_for_each_entry_rcu(entry, pos, head, member)                                     \
	for ((pos) = rcu_dereference((head)->next);                                                \
	     (pos) != NULL && ((entry) = cds_hlist_entry((pos), __typeof__(*(entry)), member), 1); \
	     (pos) = rcu_dereference((pos)->next))

/** Walk the entries, inside a section; entry is NULL after the last. */
#define cds_hlist_for_each_entry_rcu_2(entry, head, member)                                \
	for ((entry) = gr_urcu_hlist_entry_((head)->next, entry, member); (entry) != NULL; \
	     (entry) = gr_urcu_hlist_entry_((entry)->member.next, entry, member))

#endif
