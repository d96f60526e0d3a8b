/* SPDX-License-Identifier: MIT */
/**
 * guestram/qemu-rcu.h - programs written in the style of QEMU, on guestram's RCU.
 *
 * Include it before qemu/rcu.h and qemu/rcu_queue.h (after qemu/osdep.h, where there is one): it
 * stands for both. qemu/queue.h, qemu/atomic.h and qemu/notify.h are the program's if it has
 * them, else the little of them that RCU needs is here.
 *
 *     struct Block { struct rcu_head rcu; QLIST_ENTRY(Block) next; ... };
 *
 *     WITH_RCU_READ_LOCK_GUARD() {
 *             QLIST_FOREACH_RCU(b, &blocks, next) { ... }
 *     }
 *
 *     QLIST_REMOVE_RCU(b, next);
 *     call_rcu(b, reclaim_block, rcu);            // reclaim_block(b), under the lock (below)
 *     g_free_rcu(array, rcu);                     // without it, as nobody needs it for that
 *
 * The big lock: QEMU runs callbacks with it held. Say once, early, which lock that is:
 *
 *     gr_qemu_rcu_set_lock(bql_lock, bql_unlock, bql_locked);
 *
 * Callbacks then run in slices with the lock released between, and drain_call_rcu(), with
 * the lock held, releases it only while it waits for readers. Without this they run unlocked.
 * What differs from QEMU: docs/compat.md.
 */
#ifndef GUESTRAM_QEMU_RCU_H
#define GUESTRAM_QEMU_RCU_H

#ifdef GUESTRAM_URCU_H
#	error "guestram/urcu.h and guestram/qemu-rcu.h mean different things by call_rcu(): one per file"
#endif
#if defined(QEMU_RCU_H) || defined(QEMU_RCU_QUEUE_H)
#	error "guestram/qemu-rcu.h must be included before qemu/rcu.h and qemu/rcu_queue.h"
#endif
#define QEMU_RCU_H
#define QEMU_RCU_QUEUE_H

#include <guestram/qemu_queue.h>
#include <guestram/rcu.h>
#include <guestram/rcu_control.h>
#include <stdlib.h>
#if defined(__has_include)
#	if __has_include(<glib.h>)
#		include <glib.h>
#		define GR_QEMU_FREE_ g_free
#	endif
#	if __has_include("qemu/notify.h")
#		include "qemu/notify.h"
#	endif
#endif
#ifndef GR_QEMU_FREE_
#	define GR_QEMU_FREE_ free
#endif

/** QEMU's head has the shape of ours. A member may be called so. */
#define rcu_head gr_rcu_head

GR_BEGIN_DECLS

/** A callback. */
typedef void RCUCBFunc(struct gr_rcu_head *head);

#ifndef QEMU_NOTIFY_H
/** Somebody who wants to be told. */
typedef struct Notifier Notifier;
struct Notifier {
	void (*notify)(Notifier *notifier, void *data);
	QLIST_ENTRY(Notifier) node;
};
#endif

/**
 * Say which lock is held while callbacks run: QEMU's big lock, or what the program has for it.
 * @param lock      Takes it.
 * @param unlock    Releases it.
 * @param is_locked Does the calling thread hold it?
 * @context Once, before the first call_rcu(). Dies on a second call, and without memory.
 */
GR_EXPORT void gr_qemu_rcu_set_lock(void (*lock)(void), void (*unlock)(void),
				    bool (*is_locked)(void));
/** call_rcu1(): as gr_rcu_call(). @param head In the object. @param func With the lock held. */
GR_EXPORT void gr_qemu_call_rcu1(struct gr_rcu_head *head, RCUCBFunc *func);
/** g_free_rcu(): as gr_rcu_call_nolock(). @param head In the object. @param func Frees it. */
GR_EXPORT void gr_qemu_free_rcu(struct gr_rcu_head *head, RCUCBFunc *func);
/** drain_call_rcu(): gr_rcu_drain() if the lock is held, else gr_rcu_barrier(). */
GR_EXPORT void gr_qemu_drain_call_rcu(void) GR_EXCLUDES(gr_rcu_section);

/**
 * rcu_add_force_rcu_notifier(): as gr_rcu_add_notifier(), for a notifier without room for ours.
 * @param notifier Whose; not added already.
 * @param call     call(notifier) when the calling thread holds up a grace period.
 * @context Any thread. Dies without memory.
 */
GR_EXPORT void gr_qemu_add_notifier(void *notifier, void (*call)(void *notifier));
/** rcu_remove_force_rcu_notifier(). @param notifier Added or not. @context Any thread. */
GR_EXPORT void gr_qemu_remove_notifier(void *notifier);

/** Enter a section. @context As gr_rcu_read_lock(). */
static inline GR_NO_TSA void rcu_read_lock(void)
{
	gr_rcu_read_lock();
}

/** Leave a section. @context As gr_rcu_read_unlock(). */
static inline GR_NO_TSA void rcu_read_unlock(void)
{
	gr_rcu_read_unlock();
}

/** Wait for a grace period. @context As gr_rcu_synchronize(). */
static inline GR_NO_TSA void synchronize_rcu(void)
{
	gr_rcu_synchronize();
}

/** Not needed. @context As gr_rcu_register_thread(). */
static inline void rcu_register_thread(void)
{
	gr_rcu_register_thread();
}

/** Not needed. @context As gr_rcu_unregister_thread(). */
static inline GR_NO_TSA void rcu_unregister_thread(void)
{
	gr_rcu_unregister_thread();
}

/** Nothing to do: the library sees to forks. @context Any. */
static inline void rcu_enable_atfork(void)
{
}

/** Nothing to do: a child that only execs loses nothing by it. @context Any. */
static inline void rcu_disable_atfork(void)
{
}

/** Queue a callback. @param head In the object. @param func As gr_rcu_call(). @context Any. */
static inline void call_rcu1(struct gr_rcu_head *head, RCUCBFunc *func)
{
	gr_qemu_call_rcu1(head, func);
}

/** Wait for all callbacks. @context With the big lock held or not, outside a section. */
static inline GR_NO_TSA void drain_call_rcu(void)
{
	gr_qemu_drain_call_rcu();
}

/* Private: what the library calls. */
static inline void gr_qemu_notify_(void *notifier)
{
	Notifier *n = (Notifier *)notifier;

	n->notify(n, NULL);
}

/** Be told when this thread holds up a grace period. @param n Its notify gets NULL for data. */
static inline void rcu_add_force_rcu_notifier(Notifier *n)
{
	gr_qemu_add_notifier(n, gr_qemu_notify_);
}

/** Be told no more. @param n As it was added. @context As gr_rcu_remove_notifier(). */
static inline void rcu_remove_force_rcu_notifier(Notifier *n)
{
	gr_qemu_remove_notifier(n);
}

GR_END_DECLS

/* Private: the head of *obj, which must be its first member, as a callback gets the object. */
#define gr_qemu_head_(obj, field) \
	(&(obj)->field + (sizeof(char[offsetof(__typeof__(*(obj)), field) == 0 ? 1 : -1]) - 1))
/* Private: the cast that QEMU's interface asks for; func must take what obj is. */
#ifdef __cplusplus
#	define gr_qemu_func_(obj, func) \
		((RCUCBFunc *)(void (*)(void))(1 ? (func) : (void (*)(__typeof__(obj)))NULL))
#else
#	define gr_qemu_func_(obj, func)                                                           \
		((RCUCBFunc *)(sizeof(char[__builtin_types_compatible_p(__typeof__(&*(func)),      \
									void (*)(__typeof__(obj))) \
						   ? 1                                             \
						   : -1])                                          \
				       ? (void (*)(void))(func)                                    \
				       : NULL))
#endif

/** func(obj) after a grace period, with the big lock held; field is obj's first member. */
#define call_rcu(obj, func, field) \
	gr_qemu_call_rcu1(gr_qemu_head_(obj, field), gr_qemu_func_(obj, func))

/** g_free(obj), or free(obj) without GLib, after a grace period; field is obj's first member. */
#define g_free_rcu(obj, field) \
	gr_qemu_free_rcu(gr_qemu_head_(obj, field), (RCUCBFunc *)(void (*)(void))GR_QEMU_FREE_)

/** A section from here to the end of the enclosing scope. */
#define RCU_READ_LOCK_GUARD() GR_RCU_READ_GUARD()

#define gr_qemu_with_named_(n)                                                       \
	for (int gr_with_##n                                                         \
	     __attribute__((cleanup(gr_rcu_guard_exit))) = gr_rcu_guard_enter() + 1; \
	     gr_with_##n; gr_with_##n = 0)
#define gr_qemu_with_(n) gr_qemu_with_named_(n)

/** A section around the block that follows, by whatever way it is left. */
#define WITH_RCU_READ_LOCK_GUARD() gr_qemu_with_(__COUNTER__)

#endif
