/* SPDX-License-Identifier: MIT */
/**
 * guestram/urcu_names.h - the tables of liburcu's function names, and the functions.
 *
 * Included by <guestram/urcu.h>. Every function exists once for each flavour (urcu_mb_barrier()),
 * once with the flavour behind (rcu_barrier_mb(), unless URCU_NO_COMPAT_IDENTIFIERS is defined)
 * and once without (rcu_barrier()). All are inline functions, not macros: their addresses can be
 * taken, and liburcu's own headers may declare them again.
 */
#ifndef GUESTRAM_URCU_NAMES_H
#define GUESTRAM_URCU_NAMES_H

#include <guestram/urcu.h>

/* clang-format off */
/*
 * Rows: V(f, name behind the flavour, name without, parameters, what it calls, with what) for
 * functions without a result, R(f, type, ...) for those with one. f is handed through.
 */
#define GR_URCU_HEAD_ struct gr_rcu_head
#define GR_URCU_DATA_ struct call_rcu_data *

#define GR_URCU_SECTIONS_(V, R, f)                                                                 \
	V(f, read_lock, rcu_read_lock, (void), gr_rcu_read_lock, ())                               \
	V(f, read_unlock, rcu_read_unlock, (void), gr_rcu_read_unlock, ())                         \
	R(f, int, read_ongoing, rcu_read_ongoing, (void), gr_rcu_read_ongoing, ())                 \
	V(f, quiescent_state, rcu_quiescent_state, (void), gr_urcu_nothing_, ())                   \
	V(f, thread_offline, rcu_thread_offline, (void), gr_rcu_park, ())                          \
	V(f, thread_online, rcu_thread_online, (void), gr_urcu_nothing_, ())

#define GR_URCU_QS_SECTIONS_(V, R, f)                                                              \
	V(f, read_lock, rcu_read_lock, (void), gr_rcu_qs_read_lock, ())                            \
	V(f, read_unlock, rcu_read_unlock, (void), gr_rcu_qs_read_unlock, ())                      \
	R(f, int, read_ongoing, rcu_read_ongoing, (void), gr_rcu_read_ongoing, ())                 \
	V(f, quiescent_state, rcu_quiescent_state, (void), gr_rcu_quiescent_state, ())             \
	V(f, thread_offline, rcu_thread_offline, (void), gr_rcu_thread_offline, ())                \
	V(f, thread_online, rcu_thread_online, (void), gr_rcu_thread_online, ())

#define GR_URCU_THREADS_(V, R, f)                                                                  \
	V(f, register_thread, rcu_register_thread, (void), gr_rcu_register_thread, ())             \
	V(f, unregister_thread, rcu_unregister_thread, (void), gr_rcu_unregister_thread, ())

#define GR_URCU_QS_THREADS_(V, R, f)                                                               \
	V(f, register_thread, rcu_register_thread, (void), gr_urcu_qsbr_register_thread, ())       \
	V(f, unregister_thread, rcu_unregister_thread, (void), gr_rcu_qs_unregister_thread, ())

/* Bulletproof threads leave when they end. */
#define GR_URCU_BP_THREADS_(V, R, f)                                                               \
	V(f, register_thread, rcu_register_thread, (void), gr_rcu_register_thread, ())             \
	V(f, unregister_thread, rcu_unregister_thread, (void), gr_urcu_nothing_, ())

#define GR_URCU_REST_(V, R, f)                                                                     \
	V(f, init, rcu_init, (void), gr_urcu_nothing_, ())                                         \
	V(f, synchronize_rcu, synchronize_rcu, (void), gr_rcu_synchronize, ())                     \
	R(f, struct urcu_gp_poll_state, start_poll_synchronize_rcu, start_poll_synchronize_rcu,    \
	  (void), gr_urcu_start_poll_, ())                                                         \
	R(f, bool, poll_state_synchronize_rcu, poll_state_synchronize_rcu,                         \
	  (struct urcu_gp_poll_state state), gr_rcu_poll_state, (state.grace_period_id))           \
	V(f, call_rcu, call_rcu, (GR_URCU_HEAD_ *head, void (*func)(GR_URCU_HEAD_ *head)),         \
	  gr_urcu_call, (head, func))                                                              \
	V(f, barrier, rcu_barrier, (void), gr_urcu_barrier, ())                                    \
	R(f, GR_URCU_DATA_, create_call_rcu_data, create_call_rcu_data,                            \
	  (unsigned long flags, int cpu), gr_urcu_create_call_rcu_data, (flags, cpu))              \
	V(f, call_rcu_data_free, call_rcu_data_free, (GR_URCU_DATA_ data),                         \
	  gr_urcu_call_rcu_data_free, (data))                                                      \
	R(f, GR_URCU_DATA_, get_default_call_rcu_data, get_default_call_rcu_data, (void),          \
	  gr_urcu_get_default_call_rcu_data, ())                                                   \
	R(f, GR_URCU_DATA_, get_cpu_call_rcu_data, get_cpu_call_rcu_data, (int cpu),               \
	  gr_urcu_get_cpu_call_rcu_data, (cpu))                                                    \
	R(f, GR_URCU_DATA_, get_thread_call_rcu_data, get_thread_call_rcu_data, (void),            \
	  gr_urcu_get_thread_call_rcu_data, ())                                                    \
	R(f, GR_URCU_DATA_, get_call_rcu_data, get_call_rcu_data, (void),                          \
	  gr_urcu_get_call_rcu_data, ())                                                           \
	R(f, pthread_t, get_call_rcu_thread, get_call_rcu_thread, (GR_URCU_DATA_ data),            \
	  gr_urcu_get_call_rcu_thread, (data))                                                     \
	V(f, set_thread_call_rcu_data, set_thread_call_rcu_data, (GR_URCU_DATA_ data),             \
	  gr_urcu_set_thread_call_rcu_data, (data))                                                \
	R(f, int, set_cpu_call_rcu_data, set_cpu_call_rcu_data, (int cpu, GR_URCU_DATA_ data),     \
	  gr_urcu_set_cpu_call_rcu_data, (cpu, data))                                              \
	R(f, int, create_all_cpu_call_rcu_data, create_all_cpu_call_rcu_data,                      \
	  (unsigned long flags), gr_urcu_create_all_cpu_call_rcu_data, (flags))                    \
	V(f, free_all_cpu_call_rcu_data, free_all_cpu_call_rcu_data, (void),                       \
	  gr_urcu_free_all_cpu_call_rcu_data, ())                                                  \
	V(f, call_rcu_before_fork, call_rcu_before_fork, (void), gr_urcu_before_fork, ())          \
	V(f, call_rcu_after_fork_parent, call_rcu_after_fork_parent, (void),                       \
	  gr_urcu_after_fork_parent, ())                                                           \
	V(f, call_rcu_after_fork_child, call_rcu_after_fork_child, (void),                         \
	  gr_urcu_after_fork_child, ())                                                            \
	V(f, register_rculfhash_atfork, urcu_register_rculfhash_atfork,                            \
	  (struct urcu_atfork *atfork), gr_urcu_register_atfork, (atfork))                         \
	V(f, unregister_rculfhash_atfork, urcu_unregister_rculfhash_atfork,                        \
	  (struct urcu_atfork *atfork), gr_urcu_unregister_atfork, (atfork))                       \
	V(f, defer_rcu, defer_rcu, (void (*fct)(void *p), void *p), gr_urcu_defer, (fct, p))       \
	R(f, int, defer_register_thread, rcu_defer_register_thread, (void), gr_urcu_zero_, ())     \
	V(f, defer_unregister_thread, rcu_defer_unregister_thread, (void),                         \
	  gr_urcu_defer_barrier, ())                                                               \
	V(f, defer_barrier, rcu_defer_barrier, (void), gr_urcu_defer_barrier, ())                  \
	V(f, defer_barrier_thread, rcu_defer_barrier_thread, (void), gr_urcu_defer_barrier, ())

/* The forms that a row takes. TSA: the analysis follows the gr_ names only. */
#define GR_URCU_V_(f, stem, plain, params, target, args)                                           \
	static inline GR_NO_TSA void urcu_##f##_##stem params { target args; }
#define GR_URCU_R_(f, type, stem, plain, params, target, args)                                     \
	static inline GR_NO_TSA type urcu_##f##_##stem params { return target args; }
#define GR_URCU_INLINE_V_(f, stem, plain, params, target, args)                                    \
	static inline GR_NO_TSA void _urcu_##f##_##stem params { target args; }
#define GR_URCU_INLINE_R_(f, type, stem, plain, params, target, args)                              \
	static inline GR_NO_TSA type _urcu_##f##_##stem params { return target args; }
#define GR_URCU_BEHIND_V_(f, stem, plain, params, target, args)                                    \
	static inline GR_NO_TSA void plain##_##f params { target args; }
#define GR_URCU_BEHIND_R_(f, type, stem, plain, params, target, args)                              \
	static inline GR_NO_TSA type plain##_##f params { return target args; }
#define GR_URCU_INLINE_BEHIND_V_(f, stem, plain, params, target, args)                             \
	static inline GR_NO_TSA void _##plain##_##f params { target args; }
#define GR_URCU_INLINE_BEHIND_R_(f, type, stem, plain, params, target, args)                       \
	static inline GR_NO_TSA type _##plain##_##f params { return target args; }
#define GR_URCU_PLAIN_V_(f, stem, plain, params, target, args)                                     \
	static inline GR_NO_TSA void plain params { target args; }
#define GR_URCU_PLAIN_R_(f, type, stem, plain, params, target, args)                               \
	static inline GR_NO_TSA type plain params { return target args; }
#define GR_URCU_INLINE_PLAIN_V_(f, stem, plain, params, target, args)                              \
	static inline GR_NO_TSA void _##plain params { target args; }
#define GR_URCU_INLINE_PLAIN_R_(f, type, stem, plain, params, target, args)                        \
	static inline GR_NO_TSA type _##plain params { return target args; }

#ifndef URCU_NO_COMPAT_IDENTIFIERS
#define GR_URCU_BEHIND_(b, SECTIONS, THREADS)                                                      \
	SECTIONS(GR_URCU_BEHIND_V_, GR_URCU_BEHIND_R_, b)                                          \
	SECTIONS(GR_URCU_INLINE_BEHIND_V_, GR_URCU_INLINE_BEHIND_R_, b)                            \
	THREADS(GR_URCU_BEHIND_V_, GR_URCU_BEHIND_R_, b)                                           \
	GR_URCU_REST_(GR_URCU_BEHIND_V_, GR_URCU_BEHIND_R_, b)
#else
#define GR_URCU_BEHIND_(b, SECTIONS, THREADS)
#endif

/* f: the flavour in front, b: the same behind. */
#define GR_URCU_FLAVOR_(f, b, SECTIONS, THREADS)                                                   \
	SECTIONS(GR_URCU_V_, GR_URCU_R_, f)                                                        \
	SECTIONS(GR_URCU_INLINE_V_, GR_URCU_INLINE_R_, f)                                          \
	THREADS(GR_URCU_V_, GR_URCU_R_, f)                                                         \
	GR_URCU_REST_(GR_URCU_V_, GR_URCU_R_, f)                                                   \
	GR_URCU_BEHIND_(b, SECTIONS, THREADS)

#define GR_URCU_NO_FLAVOR_(SECTIONS, THREADS)                                                      \
	SECTIONS(GR_URCU_PLAIN_V_, GR_URCU_PLAIN_R_, )                                             \
	SECTIONS(GR_URCU_INLINE_PLAIN_V_, GR_URCU_INLINE_PLAIN_R_, )                               \
	THREADS(GR_URCU_PLAIN_V_, GR_URCU_PLAIN_R_, )                                              \
	GR_URCU_REST_(GR_URCU_PLAIN_V_, GR_URCU_PLAIN_R_, )
/* clang-format on */

GR_BEGIN_DECLS

GR_URCU_FLAVOR_(memb, memb, GR_URCU_SECTIONS_, GR_URCU_THREADS_)
GR_URCU_FLAVOR_(mb, mb, GR_URCU_SECTIONS_, GR_URCU_THREADS_)
GR_URCU_FLAVOR_(signal, sig, GR_URCU_SECTIONS_, GR_URCU_THREADS_)
GR_URCU_FLAVOR_(bp, bp, GR_URCU_SECTIONS_, GR_URCU_BP_THREADS_)
GR_URCU_FLAVOR_(qsbr, qsbr, GR_URCU_QS_SECTIONS_, GR_URCU_QS_THREADS_)
#if defined(GR_URCU_PREFIXED_ONLY)
#elif defined(RCU_QSBR)
GR_URCU_NO_FLAVOR_(GR_URCU_QS_SECTIONS_, GR_URCU_QS_THREADS_)
#	define rcu_flavor gr_urcu_qsbr_flavor
#else
GR_URCU_NO_FLAVOR_(GR_URCU_SECTIONS_, GR_URCU_THREADS_)
#	define rcu_flavor gr_urcu_flavor
#endif

/** urcu_bp_before_fork(): nothing to do, the library sees to forks. @context Any. */
static inline void urcu_bp_before_fork(void)
{
}

/** urcu_bp_after_fork_parent(): nothing to do. @context Any. */
static inline void urcu_bp_after_fork_parent(void)
{
}

/** urcu_bp_after_fork_child(): nothing to do. @context Any. */
static inline void urcu_bp_after_fork_child(void)
{
}

GR_END_DECLS

#ifndef URCU_NO_COMPAT_IDENTIFIERS
#	define rcu_bp_before_fork	 urcu_bp_before_fork
#	define rcu_bp_after_fork_parent urcu_bp_after_fork_parent
#	define rcu_bp_after_fork_child	 urcu_bp_after_fork_child
#	define rcu_flavor_memb		 gr_urcu_flavor
#	define rcu_flavor_mb		 gr_urcu_flavor
#	define rcu_flavor_sig		 gr_urcu_flavor
#	define rcu_flavor_bp		 gr_urcu_flavor
#	define rcu_flavor_qsbr		 gr_urcu_qsbr_flavor
#endif

/* clang-format off */
/* Private: a flavour's object from functions that N names. */
#define GR_URCU_OBJECT_(N, f)                                                                      \
	{                                                                                          \
	  N(f, read_lock, rcu_read_lock),                                                  \
	  N(f, read_unlock, rcu_read_unlock),                                              \
	  N(f, read_ongoing, rcu_read_ongoing),                                            \
	  N(f, quiescent_state, rcu_quiescent_state),                                      \
	  N(f, call_rcu, call_rcu),                                                        \
	  N(f, synchronize_rcu, synchronize_rcu),                                          \
	  N(f, defer_rcu, defer_rcu),                                                      \
	  N(f, thread_offline, rcu_thread_offline),                                        \
	  N(f, thread_online, rcu_thread_online),                                          \
	  N(f, register_thread, rcu_register_thread),                                      \
	  N(f, unregister_thread, rcu_unregister_thread),                                  \
	  N(f, barrier, rcu_barrier),                                                      \
	  N(f, register_rculfhash_atfork, urcu_register_rculfhash_atfork),                 \
	  N(f, unregister_rculfhash_atfork, urcu_unregister_rculfhash_atfork),             \
	  N(f, start_poll_synchronize_rcu, start_poll_synchronize_rcu),                    \
	  N(f, poll_state_synchronize_rcu, poll_state_synchronize_rcu),                    \
	}
#define GR_URCU_OBJECT_FLAVOR_(f, stem, plain) urcu_##f##_##stem
#define GR_URCU_OBJECT_PLAIN_(f, stem, plain)  plain
/* clang-format on */

/** Define x, a flavour object made of what the names without a flavour mean here. */
#define DEFINE_RCU_FLAVOR(x) \
	const struct rcu_flavor_struct x = GR_URCU_OBJECT_(GR_URCU_OBJECT_PLAIN_, )

#endif
