/* SPDX-License-Identifier: MIT */
/**
 * guestram/qemu_queue.h - QEMU's queues under RCU: QLIST, QSLIST, QSIMPLEQ and QTAILQ *_RCU.
 *
 * Included by <guestram/qemu-rcu.h>. They sit on the shapes of QEMU's qemu/queue.h, which is used
 * where the program has it; elsewhere the shapes and the most used plain macros are here.
 * Writers exclude each other; readers walk forward inside a section. What was removed keeps its
 * way forward and may be freed or inserted again after a grace period.
 */
#ifndef GUESTRAM_QEMU_QUEUE_H
#define GUESTRAM_QEMU_QUEUE_H

#include <guestram/types.h>

#if defined(__has_include)
#	if __has_include("qemu/queue.h") && __has_include("qemu/atomic.h")
#		include "qemu/atomic.h"
#		include "qemu/queue.h"
#	endif
#endif

#ifndef qatomic_rcu_read
/** Fetch a published pointer from its address, inside a section. */
#	define qatomic_rcu_read(ptr) __atomic_load_n((ptr), __ATOMIC_ACQUIRE)
/** Publish a pointer at an address. */
#	define qatomic_rcu_set(ptr, v)                                       \
		do {                                                          \
			__typeof__(*(ptr)) gr_q_set_ = (v);                   \
			__atomic_store_n((ptr), gr_q_set_, __ATOMIC_RELEASE); \
		} while (0)
#endif
#ifndef atomic_rcu_read
/* Their names before QEMU 5.2. */
#	define atomic_rcu_read(ptr)   qatomic_rcu_read(ptr)
#	define atomic_rcu_set(ptr, v) qatomic_rcu_set(ptr, v)
#endif

/* Private: the loops over what links lead to. */
#define gr_q_each_(var, first, next) \
	for ((var) = qatomic_rcu_read(first); (var); (var) = qatomic_rcu_read(next))
#define gr_q_each_safe_(var, first, next, after)                                              \
	for ((var) = qatomic_rcu_read(first); (var) && ((after) = qatomic_rcu_read(next), 1); \
	     (var) = (after))

/* ---- QLIST: each entry knows the pointer that points to it -------------------------------------
 */

/* Private: in front of what *where points to. The entry's fields first, then the way to it. */
#define gr_qlist_link_(where, elm, field)                                            \
	do {                                                                         \
		(elm)->field.le_prev = (where);                                      \
		(elm)->field.le_next = *(elm)->field.le_prev;                        \
		if ((elm)->field.le_next) {                                          \
			(elm)->field.le_next->field.le_prev = &(elm)->field.le_next; \
		}                                                                    \
		qatomic_rcu_set((elm)->field.le_prev, (elm));                        \
	} while (0)

#define QLIST_EMPTY_RCU(head)			(qatomic_rcu_read(&(head)->lh_first) == NULL)
#define QLIST_FIRST_RCU(head)			qatomic_rcu_read(&(head)->lh_first)
#define QLIST_NEXT_RCU(elm, field)		qatomic_rcu_read(&(elm)->field.le_next)
#define QLIST_INSERT_HEAD_RCU(head, elm, field) gr_qlist_link_(&(head)->lh_first, elm, field)
#define QLIST_INSERT_AFTER_RCU(listelm, elm, field) \
	gr_qlist_link_(&(listelm)->field.le_next, elm, field)
#define QLIST_INSERT_BEFORE_RCU(listelm, elm, field) \
	gr_qlist_link_((listelm)->field.le_prev, elm, field)
#define QLIST_REMOVE_RCU(elm, field)                                                \
	do {                                                                        \
		if ((elm)->field.le_next) {                                         \
			(elm)->field.le_next->field.le_prev = (elm)->field.le_prev; \
		}                                                                   \
		qatomic_rcu_set((elm)->field.le_prev, (elm)->field.le_next);        \
	} while (0)
#define QLIST_FOREACH_RCU(var, head, field) \
	gr_q_each_(var, &(head)->lh_first, &(var)->field.le_next)
#define QLIST_FOREACH_SAFE_RCU(var, head, field, next_var) \
	gr_q_each_safe_(var, &(head)->lh_first, &(var)->field.le_next, next_var)

/* ---- QSLIST: one pointer per entry -------------------------------------------------------------
 */

#define gr_qslist_link_(where, elm, field)        \
	do {                                      \
		(elm)->field.sle_next = *(where); \
		qatomic_rcu_set((where), (elm));  \
	} while (0)

#define QSLIST_EMPTY_RCU(head)			 (qatomic_rcu_read(&(head)->slh_first) == NULL)
#define QSLIST_FIRST_RCU(head)			 qatomic_rcu_read(&(head)->slh_first)
#define QSLIST_NEXT_RCU(elm, field)		 qatomic_rcu_read(&(elm)->field.sle_next)
#define QSLIST_INSERT_HEAD_RCU(head, elm, field) gr_qslist_link_(&(head)->slh_first, elm, field)
#define QSLIST_INSERT_AFTER_RCU(head, listelm, elm, field) \
	gr_qslist_link_(&(listelm)->field.sle_next, elm, field)
#define QSLIST_REMOVE_HEAD_RCU(head, field) \
	qatomic_rcu_set(&(head)->slh_first, (head)->slh_first->field.sle_next)
#define QSLIST_REMOVE_RCU(head, elm, type, field)                 \
	do {                                                      \
		struct type **gr_q_at_ = &(head)->slh_first;      \
		while (*gr_q_at_ != (elm)) {                      \
			gr_q_at_ = &(*gr_q_at_)->field.sle_next;  \
		}                                                 \
		qatomic_rcu_set(gr_q_at_, (elm)->field.sle_next); \
	} while (0)
#define QSLIST_FOREACH_RCU(var, head, field) \
	gr_q_each_(var, &(head)->slh_first, &(var)->field.sle_next)
#define QSLIST_FOREACH_SAFE_RCU(var, head, field, next) \
	gr_q_each_safe_(var, &(head)->slh_first, &(var)->field.sle_next, next)

/* ---- QSIMPLEQ: the head also knows the last pointer --------------------------------------------
 */

#define gr_qsimpleq_link_(head, where, elm, field)                 \
	do {                                                       \
		__typeof__((head)->sqh_last) gr_q_at_ = (where);   \
		(elm)->field.sqe_next = *gr_q_at_;                 \
		if (!(elm)->field.sqe_next) {                      \
			(head)->sqh_last = &(elm)->field.sqe_next; \
		}                                                  \
		qatomic_rcu_set(gr_q_at_, (elm));                  \
	} while (0)
#define gr_qsimpleq_unlink_(head, where, elm, field)                \
	do {                                                        \
		__typeof__((head)->sqh_last) gr_q_from_ = (where);  \
		if (!(elm)->field.sqe_next) {                       \
			(head)->sqh_last = gr_q_from_;              \
		}                                                   \
		qatomic_rcu_set(gr_q_from_, (elm)->field.sqe_next); \
	} while (0)

#define QSIMPLEQ_EMPTY_RCU(head)      (qatomic_rcu_read(&(head)->sqh_first) == NULL)
#define QSIMPLEQ_FIRST_RCU(head)      qatomic_rcu_read(&(head)->sqh_first)
#define QSIMPLEQ_NEXT_RCU(elm, field) qatomic_rcu_read(&(elm)->field.sqe_next)
#define QSIMPLEQ_INSERT_HEAD_RCU(head, elm, field) \
	gr_qsimpleq_link_(head, &(head)->sqh_first, elm, field)
#define QSIMPLEQ_INSERT_TAIL_RCU(head, elm, field) \
	gr_qsimpleq_link_(head, (head)->sqh_last, elm, field)
#define QSIMPLEQ_INSERT_AFTER_RCU(head, listelm, elm, field) \
	gr_qsimpleq_link_(head, &(listelm)->field.sqe_next, elm, field)
#define QSIMPLEQ_REMOVE_HEAD_RCU(head, field) \
	gr_qsimpleq_unlink_(head, &(head)->sqh_first, (head)->sqh_first, field)
#define QSIMPLEQ_REMOVE_RCU(head, elm, type, field)              \
	do {                                                     \
		struct type **gr_q_at_ = &(head)->sqh_first;     \
		while (*gr_q_at_ != (elm)) {                     \
			gr_q_at_ = &(*gr_q_at_)->field.sqe_next; \
		}                                                \
		gr_qsimpleq_unlink_(head, gr_q_at_, elm, field); \
	} while (0)
#define QSIMPLEQ_FOREACH_RCU(var, head, field) \
	gr_q_each_(var, &(head)->sqh_first, &(var)->field.sqe_next)
#define QSIMPLEQ_FOREACH_SAFE_RCU(var, head, field, next) \
	gr_q_each_safe_(var, &(head)->sqh_first, &(var)->field.sqe_next, next)

/* ---- QTAILQ: links with both ways, of which readers take the one forward -----------------------
 */

/* Private: who points back to what follows elm: the next entry, or the head. */
#define gr_qtailq_back_(head, elm, field)                                          \
	(*((elm)->field.tqe_next ? &(elm)->field.tqe_next->field.tqe_circ.tql_prev \
				 : &(head)->tqh_circ.tql_prev))
#define gr_qtailq_link_(head, before, elm, field)                                          \
	do {                                                                               \
		(elm)->field.tqe_circ.tql_prev = (before);                                 \
		(elm)->field.tqe_circ.tql_next = (elm)->field.tqe_circ.tql_prev->tql_next; \
		gr_qtailq_back_(head, elm, field) = &(elm)->field.tqe_circ;                \
		qatomic_rcu_set(&(elm)->field.tqe_circ.tql_prev->tql_next, (elm));         \
	} while (0)

#define QTAILQ_EMPTY_RCU(head)	    (qatomic_rcu_read(&(head)->tqh_first) == NULL)
#define QTAILQ_FIRST_RCU(head)	    qatomic_rcu_read(&(head)->tqh_first)
#define QTAILQ_NEXT_RCU(elm, field) qatomic_rcu_read(&(elm)->field.tqe_next)
#define QTAILQ_INSERT_HEAD_RCU(head, elm, field) \
	gr_qtailq_link_(head, &(head)->tqh_circ, elm, field)
#define QTAILQ_INSERT_TAIL_RCU(head, elm, field) \
	gr_qtailq_link_(head, (head)->tqh_circ.tql_prev, elm, field)
#define QTAILQ_INSERT_AFTER_RCU(head, listelm, elm, field) \
	gr_qtailq_link_(head, &(listelm)->field.tqe_circ, elm, field)
#define QTAILQ_INSERT_BEFORE_RCU(listelm, elm, field)                                \
	do {                                                                         \
		(elm)->field.tqe_circ.tql_prev = (listelm)->field.tqe_circ.tql_prev; \
		(elm)->field.tqe_next = (listelm);                                   \
		(listelm)->field.tqe_circ.tql_prev = &(elm)->field.tqe_circ;         \
		qatomic_rcu_set(&(elm)->field.tqe_circ.tql_prev->tql_next, (elm));   \
	} while (0)
#define QTAILQ_REMOVE_RCU(head, elm, field)                                         \
	do {                                                                        \
		gr_qtailq_back_(head, elm, field) = (elm)->field.tqe_circ.tql_prev; \
		qatomic_rcu_set(&(elm)->field.tqe_circ.tql_prev->tql_next,          \
				(elm)->field.tqe_circ.tql_next);                    \
		(elm)->field.tqe_circ.tql_prev = NULL;                              \
	} while (0)
#define QTAILQ_FOREACH_RCU(var, head, field) \
	gr_q_each_(var, &(head)->tqh_first, &(var)->field.tqe_next)
#define QTAILQ_FOREACH_SAFE_RCU(var, head, field, next) \
	gr_q_each_safe_(var, &(head)->tqh_first, &(var)->field.tqe_next, next)

/* ---- The shapes, and plain macros, where the program has no qemu/queue.h -----------------------
 */

#ifndef QEMU_SYS_QUEUE_H
#	define QEMU_SYS_QUEUE_H

/* clang-format off */
#define QLIST_HEAD(name, type)	 struct name { struct type *lh_first; }
#define QLIST_ENTRY(type)	 struct { struct type *le_next; struct type **le_prev; }
#define QSLIST_HEAD(name, type)	 struct name { struct type *slh_first; }
#define QSLIST_ENTRY(type)	 struct { struct type *sle_next; }
#define QSIMPLEQ_HEAD(name, type) struct name { struct type *sqh_first; struct type **sqh_last; }
#define QSIMPLEQ_ENTRY(type)	 struct { struct type *sqe_next; }
/** Forward to an entry, back to a link. */
typedef struct QTailQLink { void *tql_next; struct QTailQLink *tql_prev; } QTailQLink;
#define QTAILQ_HEAD(name, type)	 union name { struct type *tqh_first; QTailQLink tqh_circ; }
#define QTAILQ_ENTRY(type)	 union { struct type *tqe_next; QTailQLink tqe_circ; }
/* clang-format on */

#	define QLIST_HEAD_INITIALIZER(head) \
		{                            \
			NULL                 \
		}
#	define QSLIST_HEAD_INITIALIZER(head) \
		{                             \
			NULL                  \
		}
#	define QSIMPLEQ_HEAD_INITIALIZER(head) \
		{                               \
			NULL, &(head).sqh_first \
		}
#	define QTAILQ_HEAD_INITIALIZER(head)                  \
		{                                              \
			.tqh_circ = { NULL, &(head).tqh_circ } \
		}

#	define QLIST_INIT(head)  ((head)->lh_first = NULL)
#	define QSLIST_INIT(head) ((head)->slh_first = NULL)
#	define QSIMPLEQ_INIT(head) \
		((head)->sqh_first = NULL, (head)->sqh_last = &(head)->sqh_first)
#	define QTAILQ_INIT(head) \
		((head)->tqh_first = NULL, (head)->tqh_circ.tql_prev = &(head)->tqh_circ)

/* A writer alone may use what readers can stand beside: the plain ones are the same. */
#	define QLIST_EMPTY(head)			QLIST_EMPTY_RCU(head)
#	define QLIST_FIRST(head)			QLIST_FIRST_RCU(head)
#	define QLIST_NEXT(elm, field)			QLIST_NEXT_RCU(elm, field)
#	define QLIST_INSERT_HEAD(head, elm, field)	QLIST_INSERT_HEAD_RCU(head, elm, field)
#	define QLIST_INSERT_AFTER(listelm, elm, field) QLIST_INSERT_AFTER_RCU(listelm, elm, field)
#	define QLIST_INSERT_BEFORE(listelm, elm, field) \
		QLIST_INSERT_BEFORE_RCU(listelm, elm, field)
#	define QLIST_REMOVE(elm, field)	QLIST_REMOVE_RCU(elm, field)
#	define QLIST_FOREACH(var, head, field) QLIST_FOREACH_RCU(var, head, field)
#	define QLIST_FOREACH_SAFE(var, head, field, next) \
		QLIST_FOREACH_SAFE_RCU(var, head, field, next)
#	define QSLIST_EMPTY(head)		     QSLIST_EMPTY_RCU(head)
#	define QSLIST_FIRST(head)		     QSLIST_FIRST_RCU(head)
#	define QSLIST_NEXT(elm, field)		     QSLIST_NEXT_RCU(elm, field)
#	define QSLIST_INSERT_HEAD(head, elm, field) QSLIST_INSERT_HEAD_RCU(head, elm, field)
#	define QSLIST_REMOVE_HEAD(head, field)	     QSLIST_REMOVE_HEAD_RCU(head, field)
#	define QSLIST_FOREACH(var, head, field)     QSLIST_FOREACH_RCU(var, head, field)
#	define QSLIST_FOREACH_SAFE(var, head, field, next) \
		QSLIST_FOREACH_SAFE_RCU(var, head, field, next)
#	define QSIMPLEQ_EMPTY(head)			QSIMPLEQ_EMPTY_RCU(head)
#	define QSIMPLEQ_FIRST(head)			QSIMPLEQ_FIRST_RCU(head)
#	define QSIMPLEQ_NEXT(elm, field)		QSIMPLEQ_NEXT_RCU(elm, field)
#	define QSIMPLEQ_INSERT_HEAD(head, elm, field)	QSIMPLEQ_INSERT_HEAD_RCU(head, elm, field)
#	define QSIMPLEQ_INSERT_TAIL(head, elm, field)	QSIMPLEQ_INSERT_TAIL_RCU(head, elm, field)
#	define QSIMPLEQ_REMOVE_HEAD(head, field)	QSIMPLEQ_REMOVE_HEAD_RCU(head, field)
#	define QSIMPLEQ_REMOVE(head, elm, type, field) QSIMPLEQ_REMOVE_RCU(head, elm, type, field)
#	define QSIMPLEQ_FOREACH(var, head, field)	QSIMPLEQ_FOREACH_RCU(var, head, field)
#	define QTAILQ_EMPTY(head)			QTAILQ_EMPTY_RCU(head)
#	define QTAILQ_FIRST(head)			QTAILQ_FIRST_RCU(head)
#	define QTAILQ_NEXT(elm, field)			QTAILQ_NEXT_RCU(elm, field)
#	define QTAILQ_INSERT_HEAD(head, elm, field)	QTAILQ_INSERT_HEAD_RCU(head, elm, field)
#	define QTAILQ_INSERT_TAIL(head, elm, field)	QTAILQ_INSERT_TAIL_RCU(head, elm, field)
#	define QTAILQ_INSERT_BEFORE(listelm, elm, field) \
		QTAILQ_INSERT_BEFORE_RCU(listelm, elm, field)
#	define QTAILQ_REMOVE(head, elm, field)	 QTAILQ_REMOVE_RCU(head, elm, field)
#	define QTAILQ_FOREACH(var, head, field) QTAILQ_FOREACH_RCU(var, head, field)
#	define QTAILQ_FOREACH_SAFE(var, head, field, next) \
		QTAILQ_FOREACH_SAFE_RCU(var, head, field, next)
#endif

#endif
