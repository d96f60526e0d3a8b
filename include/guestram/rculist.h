/* SPDX-License-Identifier: MIT */
/**
 * guestram/rculist.h - a doubly linked list that readers walk without locks.
 *
 * Writers exclude each other (a mutex of theirs) and insert or delete in constant time
 * while readers walk inside a read-side section. A deleted node keeps its way forward, so a
 * reader that stands on it goes on; the node may be freed, or inserted anywhere again,
 * only after a grace period.
 *
 *     struct item { int v; struct gr_rcu_list_node node; };
 *     struct gr_rcu_list items;                            // gr_rcu_list_init(&items)
 *
 *     struct item *it;
 *     gr_rcu_read_lock();
 *     gr_rcu_list_for_each_rcu(it, &items, struct item, node) {
 *             use(it->v);
 *     }
 *     gr_rcu_read_unlock();
 *
 *     lock(&writers);                                      // delete one
 *     gr_rcu_list_del(&it->node);
 *     unlock(&writers);
 *     gr_rcu_synchronize();
 *     free(it);
 *
 * Caveats: a walk sees every node that was there during all of it, and perhaps those that
 * came or went meanwhile. There is no way backwards and no splicing. The list does not move:
 * the first node points back into its head.
 *
 * Source: the shape is that of the BSD queue.h LIST with RCU stores, as QEMU has it.
 */
#ifndef GUESTRAM_RCULIST_H
#define GUESTRAM_RCULIST_H

#include <guestram/rcu.h>

GR_BEGIN_DECLS

/** Embedded in what is listed. */
struct gr_rcu_list_node {
	struct gr_rcu_list_node *next;	 /* (r) writers' lock; stays as it was after a delete */
	struct gr_rcu_list_node **pprev; /* writers' lock; NULL: in no list */
};

/** The list's head. */
struct gr_rcu_list {
	struct gr_rcu_list_node *first; /* (r) writers' lock */
};

/** Static initialiser of an empty list. */
#define GR_RCU_LIST_INIT { NULL }

/**
 * Make an empty list.
 * @param list The list.
 * @context Before readers know it.
 */
static inline void gr_rcu_list_init(struct gr_rcu_list *list)
{
	list->first = NULL;
}

/**
 * Make a node that is in no list, for gr_rcu_list_node_is_listed().
 * @param node The node.
 * @context Before readers know it. Not needed before inserting, but where the checking build
 *          (rcu_check.h) cannot know that a deleted node is free again: the list's readers are of
 *          another domain than the default one, or there never were any.
 */
static inline void gr_rcu_list_node_init(struct gr_rcu_list_node *node)
{
	GR_RCU_CHECK_LIST_FORGET_(node);
	node->next = NULL;
	node->pprev = NULL;
}

/**
 * Is the node in a list?
 * @param node Initialised or inserted before.
 * @return true from insertion to deletion.
 * @context Writers' lock held.
 */
static inline bool gr_rcu_list_node_is_listed(const struct gr_rcu_list_node *node)
{
	return node->pprev != NULL;
}

/**
 * Is the list empty?
 * @param list The list.
 * @return true if it was at that moment.
 * @context Any; the answer may be old unless the writers' lock is held.
 */
static inline bool gr_rcu_list_empty(const struct gr_rcu_list *list)
{
	return __atomic_load_n(&list->first, __ATOMIC_RELAXED) == NULL;
}

/* Private: put node where *where points, in front of what is there. */
static inline void gr_rcu_list_link_(struct gr_rcu_list_node **where,
				     struct gr_rcu_list_node *node)
{
	struct gr_rcu_list_node *next = __atomic_load_n(where, __ATOMIC_RELAXED);

	GR_RCU_CHECK_LIST_INSERTING_(node);
	__atomic_store_n(&node->next, next, __ATOMIC_RELAXED);
	node->pprev = where;
	if (next) {
		next->pprev = &node->next;
	}
	/*
	 * L1: the node and all that its owner wrote, before its being reachable. Pairs with
	 * the acquire in gr_rcu_list_first_rcu() and gr_rcu_list_next_rcu().
	 */
	__atomic_store_n(where, node, __ATOMIC_RELEASE);
}

/**
 * Insert as the first node.
 * @param list The list.
 * @param node In no list, and no reader can be standing on it from earlier.
 * @context Writers' lock held.
 */
static inline void gr_rcu_list_insert_head(struct gr_rcu_list *list, struct gr_rcu_list_node *node)
{
	gr_rcu_list_link_(&list->first, node);
}

/**
 * Insert behind a node.
 * @param listed In the list.
 * @param node   As for gr_rcu_list_insert_head().
 * @context Writers' lock held.
 */
static inline void gr_rcu_list_insert_after(struct gr_rcu_list_node *listed,
					    struct gr_rcu_list_node *node)
{
	gr_rcu_list_link_(&listed->next, node);
}

/**
 * Insert in front of a node.
 * @param listed In the list.
 * @param node   As for gr_rcu_list_insert_head().
 * @context Writers' lock held.
 */
static inline void gr_rcu_list_insert_before(struct gr_rcu_list_node *listed,
					     struct gr_rcu_list_node *node)
{
	gr_rcu_list_link_(listed->pprev, node);
}

/**
 * Insert as the last node. Walks the list to find its end.
 * @param list The list.
 * @param node As for gr_rcu_list_insert_head().
 * @context Writers' lock held.
 */
static inline void gr_rcu_list_insert_tail(struct gr_rcu_list *list, struct gr_rcu_list_node *node)
{
	struct gr_rcu_list_node **where = &list->first;

	while (*where) {
		where = &(*where)->next;
	}
	gr_rcu_list_link_(where, node);
}

/**
 * Take a node out. Readers that stand on it go on to what followed it.
 * @param node In a list. Leave it alone until a grace period has passed.
 * @context Writers' lock held.
 */
static inline void gr_rcu_list_del(struct gr_rcu_list_node *node)
{
	struct gr_rcu_list_node *next = __atomic_load_n(&node->next, __ATOMIC_RELAXED);

	if (next) {
		next->pprev = node->pprev;
	}
	/*
	 * L2: a reader that comes this way has never passed the node that published next: so
	 * publish it again. Pairs as L1. node->next is left as it is.
	 */
	__atomic_store_n(node->pprev, next, __ATOMIC_RELEASE);
	node->pprev = NULL;
	GR_RCU_CHECK_LIST_DELETED_(node);
}

/**
 * The first node, for a reader.
 * @param list The list.
 * @return The node, NULL when the list is empty. Dies with the section.
 * @context Inside a read-side section.
 */
static inline struct gr_rcu_list_node *gr_rcu_list_first_rcu(const struct gr_rcu_list *list)
	GR_REQUIRES_SHARED(gr_rcu_section);
static inline struct gr_rcu_list_node *gr_rcu_list_first_rcu(const struct gr_rcu_list *list)
{
	return __atomic_load_n(&list->first, __ATOMIC_ACQUIRE); /* L1, L2 */
}

/**
 * The node behind, for a reader.
 * @param node Found in this section.
 * @return The node, NULL at the end. Dies with the section.
 * @context Inside a read-side section.
 */
static inline struct gr_rcu_list_node *gr_rcu_list_next_rcu(const struct gr_rcu_list_node *node)
	GR_REQUIRES_SHARED(gr_rcu_section);
static inline struct gr_rcu_list_node *gr_rcu_list_next_rcu(const struct gr_rcu_list_node *node)
{
	return __atomic_load_n(&node->next, __ATOMIC_ACQUIRE); /* L1, L2 */
}

/* Private: from the embedded node to the object, NULL to NULL. */
static inline void *gr_rcu_list_entry_(struct gr_rcu_list_node *node, size_t offset)
{
	return node ? (char *)node - offset : NULL;
}

/** The object of type that node is the member of; NULL for NULL. */
#define gr_rcu_list_entry(node, type, member)                                                      \
	((type *)gr_rcu_list_entry_((node), offsetof(type, member)))

/** Walk as a reader, inside a section; pos is NULL after the last. */
#define gr_rcu_list_for_each_rcu(pos, list, type, member)                                          \
	for ((pos) = gr_rcu_list_entry(gr_rcu_list_first_rcu(list), type, member); (pos);          \
	     (pos) = gr_rcu_list_entry(gr_rcu_list_next_rcu(&(pos)->member), type, member))

/** Walk as a writer, under the writers' lock; pos is NULL after the last. */
#define gr_rcu_list_for_each(pos, list, type, member)                                              \
	for ((pos) = gr_rcu_list_entry((list)->first, type, member); (pos);                        \
	     (pos) = gr_rcu_list_entry((pos)->member.next, type, member))

GR_END_DECLS
#endif
