/* SPDX-License-Identifier: MIT */
/**
 * guestram/urcu_plain_list.h - the cds_list and cds_hlist of liburcu, for machines without it.
 *
 * Included by <guestram/urcu_list.h> where <urcu/list.h> is not installed. No RCU in here:
 * circular doubly linked lists, and hash-bucket lists with a head of one pointer.
 */
#ifndef GUESTRAM_URCU_PLAIN_LIST_H
#define GUESTRAM_URCU_PLAIN_LIST_H

#include <guestram/urcu_pointer.h>

#define _CDS_LIST_H 1
#define _KCOMPAT_HLIST_H

GR_BEGIN_DECLS

/** Head and node alike; an empty list is a head that points to itself. */
struct cds_list_head {
	struct cds_list_head *next, *prev;
};

/** The head of a hash bucket. */
struct cds_hlist_head {
	struct cds_hlist_node *next;
};

/** prev of the first node is the head. */
struct cds_hlist_node {
	struct cds_hlist_node *next, *prev;
};

#define CDS_LIST_HEAD_INIT(name) \
	{                        \
		&(name), &(name) \
	}
#define CDS_LIST_HEAD(name)	struct cds_list_head name = CDS_LIST_HEAD_INIT(name)
#define CDS_INIT_LIST_HEAD(ptr) ((ptr)->prev = (ptr)->next = (ptr))
#define CDS_HLIST_HEAD_INIT(name) \
	{                         \
		NULL              \
	}
#define CDS_HLIST_HEAD(name) struct cds_hlist_head name = CDS_HLIST_HEAD_INIT(name)

/** Make an empty bucket. @param head The bucket. @context Before others know it. */
static inline void CDS_INIT_HLIST_HEAD(struct cds_hlist_head *head)
{
	head->next = NULL;
}

/** Make two nodes neighbours. @param prev Left. @param next Right. @context Writers' lock. */
static inline void __cds_list_del(struct cds_list_head *prev, struct cds_list_head *next)
{
	prev->next = next;
	next->prev = prev;
}

/** Insert as the first. @param node In no list. @param head The list. @context Writers' lock. */
static inline void cds_list_add(struct cds_list_head *node, struct cds_list_head *head)
{
	__cds_list_del(node, head->next);
	__cds_list_del(head, node);
}

/** Insert as the last. @param node In no list. @param head The list. @context Writers' lock. */
static inline void cds_list_add_tail(struct cds_list_head *node, struct cds_list_head *head)
{
	cds_list_add(node, head->prev);
}

/** Take a node out. @param node In a list. @context Writers' lock. */
static inline void cds_list_del(struct cds_list_head *node)
{
	__cds_list_del(node->prev, node->next);
}

/** Take a node out and make it an empty list. @param node In a list. @context Writers' lock. */
static inline void cds_list_del_init(struct cds_list_head *node)
{
	cds_list_del(node);
	CDS_INIT_LIST_HEAD(node);
}

/** Move to the front of a list. @param node In a list. @param head The other. @context Lock. */
static inline void cds_list_move(struct cds_list_head *node, struct cds_list_head *head)
{
	cds_list_del(node);
	cds_list_add(node, head);
}

/** Put a node in another's place. @param old In a list. @param node In none. @context Lock. */
static inline void cds_list_replace(struct cds_list_head *old, struct cds_list_head *node)
{
	__cds_list_del(node, old->next);
	__cds_list_del(old->prev, node);
}

/** As cds_list_replace(), and make old empty. @param old In a list. @param node In none. */
static inline void cds_list_replace_init(struct cds_list_head *old, struct cds_list_head *node)
{
	if (old->next == old) {
		CDS_INIT_LIST_HEAD(node);
		return;
	}
	cds_list_replace(old, node);
	CDS_INIT_LIST_HEAD(old);
}

/** Insert a whole list at the front. @param add Its head stays as it is. @param head Where to. */
static inline void cds_list_splice(struct cds_list_head *add, struct cds_list_head *head)
{
	if (add->next != add) {
		struct cds_list_head *after = head->next;

		__cds_list_del(head, add->next);
		__cds_list_del(add->prev, after);
	}
}

/** @param head The list. @return Nonzero if it is empty. @context Writers' lock. */
static inline int cds_list_empty(const struct cds_list_head *head)
{
	return head->next == head;
}

/** Insert as the first. @param node In no list. @param head The list. @context Writers' lock. */
static inline void cds_hlist_add_head(struct cds_hlist_node *node, struct cds_hlist_head *head)
{
	node->next = head->next;
	node->prev = (struct cds_hlist_node *)(void *)head;
	if (node->next) {
		node->next->prev = node;
	}
	head->next = node;
}

/** Take a node out. @param node In a list. @context Writers' lock. */
static inline void cds_hlist_del(struct cds_hlist_node *node)
{
	node->prev->next = node->next;
	if (node->next) {
		node->next->prev = node->prev;
	}
}

GR_END_DECLS

#define cds_list_entry(ptr, type, member)	caa_container_of(ptr, type, member)
#define cds_list_first_entry(ptr, type, member) cds_list_entry((ptr)->next, type, member)
#define cds_hlist_entry(ptr, type, member)	caa_container_of(ptr, type, member)
#define cds_hlist_entry_safe(ptr, type, member)                            \
	__extension__({                                                    \
		__typeof__(ptr) gr_node_ = (ptr);                          \
		gr_node_ ? cds_hlist_entry(gr_node_, type, member) : NULL; \
	})

/* Private: *pos, one step on; and the loops over what such a step gives. */
#define gr_cds_step_(pos, member, way)	     cds_list_entry((pos)->member.way, __typeof__(*(pos)), member)
#define gr_cds_from_(pos, head, member, way) cds_list_entry((head)->way, __typeof__(*(pos)), member)
#define gr_cds_hstep_(link, entry, member) \
	cds_hlist_entry_safe((link), __typeof__(*(entry)), member)

#define cds_list_for_each(pos, head) \
	for ((pos) = (head)->next; (pos) != (head); (pos) = (pos)->next)
#define cds_list_for_each_prev(pos, head) \
	for ((pos) = (head)->prev; (pos) != (head); (pos) = (pos)->prev)
#define cds_list_for_each_safe(pos, p, head) \
	for ((pos) = (head)->next; (p) = (pos)->next, (pos) != (head); (pos) = (p))
#define cds_list_for_each_prev_safe(pos, p, head) \
	for ((pos) = (head)->prev; (p) = (pos)->prev, (pos) != (head); (pos) = (p))
#define cds_list_for_each_entry(pos, head, member)                                    \
	for ((pos) = gr_cds_from_(pos, head, member, next); &(pos)->member != (head); \
	     (pos) = gr_cds_step_(pos, member, next))
#define cds_list_for_each_entry_reverse(pos, head, member)                            \
	for ((pos) = gr_cds_from_(pos, head, member, prev); &(pos)->member != (head); \
	     (pos) = gr_cds_step_(pos, member, prev))
#define cds_list_for_each_entry_safe_from(pos, p, head, member) \
	for (; (p) = gr_cds_step_(pos, member, next), &(pos)->member != (head); (pos) = (p))
#define cds_list_for_each_entry_safe(pos, p, head, member)  \
	for ((pos) = gr_cds_from_(pos, head, member, next); \
	     (p) = gr_cds_step_(pos, member, next), &(pos)->member != (head); (pos) = (p))

#define cds_hlist_for_each(pos, head) for ((pos) = (head)->next; (pos) != NULL; (pos) = (pos)->next)
#define cds_hlist_for_each_safe(pos, p, head) \
	for ((pos) = (head)->next; (pos) != NULL && ((p) = (pos)->next, 1); (pos) = (p))
#define cds_hlist_for_each_entry(entry, pos, head, member)                                         \
	for ((pos) = (head)->next;                                                                 \
	     (pos) != NULL && ((entry) = cds_hlist_entry((pos), __typeof__(*(entry)), member), 1); \
	     (pos) = (pos)->next)
#define cds_hlist_for_each_entry_safe(entry, pos, p, head, member)                                \
	for ((pos) = (head)->next;                                                                \
	     (pos) != NULL && ((p) = (pos)->next,                                                 \
			      (entry) = cds_hlist_entry((pos), __typeof__(*(entry)), member), 1); \
	     (pos) = (p))
#define cds_hlist_for_each_entry_2(entry, head, member)                             \
	for ((entry) = gr_cds_hstep_((head)->next, entry, member); (entry) != NULL; \
	     (entry) = gr_cds_hstep_((entry)->member.next, entry, member))
#define cds_hlist_for_each_entry_safe_2(entry, p, head, member)                                \
	for ((entry) = gr_cds_hstep_((head)->next, entry, member);                             \
	     (entry) != NULL && ((p) = gr_cds_hstep_((entry)->member.next, entry, member), 1); \
	     (entry) = (p))

#endif
