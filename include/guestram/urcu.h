/* SPDX-License-Identifier: MIT */
/**
 * guestram/urcu.h - programs written for liburcu, on guestram's RCU.
 *
 * Include it before any header of liburcu (`cc -include guestram/urcu.h ...` leaves the sources
 * alone) and link -lguestram instead of -lurcu, -lurcu-mb, -lurcu-bp or -lurcu-qsbr:
 *
 *     #include <guestram/urcu.h>
 *     #include <urcu.h>                 // may stay: replaced
 *     #include <urcu/wfcqueue.h>        // may stay: liburcu's own
 *
 * Names: with the flavour (urcu_memb_read_lock()) and without (rcu_read_lock()). The flavours
 * memb, mb, signal and bp are one implementation here, gr_rcu_read_lock() and its kin. The
 * flavour qsbr is the quiescent-state threads of <guestram/rcu_qs.h>. The names without a
 * flavour are qsbr's if RCU_QSBR is defined before this header, or from where <urcu-qsbr.h>
 * is included after it. All flavours wait for each other's readers: a program may mix them.
 *
 * Headers: this one stands for urcu.h, urcu/urcu-{memb,mb,signal,bp}.h, urcu-call-rcu.h,
 * urcu-defer.h, urcu-flavor.h, urcu-pointer.h, urcu/urcu-poll.h, urcu/rculist.h and
 * urcu/rcuhlist.h, and keeps liburcu's own from being read. The others (uatomic, arch, list,
 * wfcqueue, wfstack, lfstack, rculfqueue, rculfhash, ...) are liburcu's and work beside it; those
 * that <urcu.h> brings along come with this header too where they are installed.
 * GR_URCU_ALONE, defined before, keeps all of liburcu out, as on machines without it.
 * GR_URCU_PREFIXED_ONLY keeps the names without a flavour out.
 *
 * Differences, and what is not here: docs/compat.md.
 */
#ifndef GUESTRAM_URCU_H
#define GUESTRAM_URCU_H

#ifdef GUESTRAM_QEMU_RCU_H
#	error "guestram/urcu.h and guestram/qemu-rcu.h mean different things by call_rcu(): one per file"
#endif
#if defined(_URCU_POINTER_H) || defined(_URCU_CALL_RCU_H) || defined(_URCU_FLAVOR_H) || \
	defined(_URCU_H) || defined(_URCU_RCULIST_H) || defined(_URCU_RCUHLIST_H)
#	error "guestram/urcu.h must be included before liburcu's headers"
#endif

/* Replaced, so not to be read. */
#define _STATIC_URCU_SIGNAL_NR_H
#define _URCU_BP_H
#define _URCU_BP_STATIC_H
#define _URCU_CALL_RCU_H
#define _URCU_COMMON_STATIC_H
#define _URCU_DEFER_H
#define _URCU_FLAVOR_H
#define _URCU_H
#define _URCU_MB_H
#define _URCU_MB_STATIC_H
#define _URCU_MEMB_H
#define _URCU_MEMB_STATIC_H
#define _URCU_POINTER_H
#define _URCU_POINTER_STATIC_H
#define _URCU_POLL_H
#define _URCU_QSBR_STATIC_H
#define _URCU_RCUHLIST_H
#define _URCU_RCULIST_H
#define _URCU_SIGNAL_H
#define _URCU_SIGNAL_STATIC_H
#define _URCU_STATIC_H
/*
 * urcu/urcu-qsbr.h is read, because it says which flavour the program means: it makes macros of
 * the names without a flavour. Else it only declares again what is here, if this is defined.
 */
#define BUILD_QSBR_LIB
#ifndef GR_URCU_PREFIXED_ONLY
#	define URCU_API_MAP
#endif

#include <guestram/rcu.h>
#include <guestram/rcu_qs.h>
#include <guestram/urcu_list.h>
#include <pthread.h>
#include <stdlib.h>
#ifdef GR_URCU_BESIDE_LIBURCU
#	include <urcu/wfcqueue.h>
#endif

/** The head that a callback travels by is ours under liburcu's name; a member may be called so. */
#define rcu_head gr_rcu_head

/** Accepted: callers of call_rcu() never wait for the worker, nor wake one that is awake. */
#define URCU_CALL_RCU_RT      (1U << 0)
#define URCU_CALL_RCU_RUNNING (1U << 1)
#define URCU_CALL_RCU_STOP    (1U << 2)
#define URCU_CALL_RCU_STOPPED (1U << 3)
#define URCU_CALL_RCU_PAUSE   (1U << 4)
#define URCU_CALL_RCU_PAUSED  (1U << 5)

GR_BEGIN_DECLS

/** A worker thread for callbacks. */
struct call_rcu_data;

/** A grace period that was asked for. */
struct urcu_gp_poll_state {
	uint64_t grace_period_id;
};

/** What another library (liburcu-cds) wants to have called around a fork. */
struct urcu_atfork {
	void (*before_fork)(void *priv);
	void (*after_fork_parent)(void *priv);
	void (*after_fork_child)(void *priv);
	void *priv;
};

/** A flavour as an object, for liburcu-cds: cds_lfht_new_flavor(..., &rcu_flavor, NULL). */
struct rcu_flavor_struct {
	void (*read_lock)(void);
	void (*read_unlock)(void);
	int (*read_ongoing)(void);
	void (*read_quiescent_state)(void);
	void (*update_call_rcu)(struct gr_rcu_head *head, void (*func)(struct gr_rcu_head *head));
	void (*update_synchronize_rcu)(void);
	void (*update_defer_rcu)(void (*fct)(void *p), void *p);
	void (*thread_offline)(void);
	void (*thread_online)(void);
	void (*register_thread)(void);
	void (*unregister_thread)(void);
	void (*barrier)(void);
	void (*register_rculfhash_atfork)(struct urcu_atfork *atfork);
	void (*unregister_rculfhash_atfork)(struct urcu_atfork *atfork);
	struct urcu_gp_poll_state (*update_start_poll_synchronize_rcu)(void);
	bool (*update_poll_state_synchronize_rcu)(struct urcu_gp_poll_state state);
};

/**
 * rcu_register_thread() of qsbr: as gr_rcu_qs_register_thread(). From now on callbacks run on
 * threads that are registered and online, so that they may use sections of qsbr's, too.
 * @context As gr_rcu_qs_register_thread().
 */
GR_EXPORT void gr_urcu_qsbr_register_thread(void);
/** call_rcu(): as gr_rcu_call(), on the thread's, the CPU's or the default worker. */
GR_EXPORT void gr_urcu_call(struct gr_rcu_head *head, void (*func)(struct gr_rcu_head *head));
/** rcu_barrier(): gr_rcu_barrier() of all workers. */
GR_EXPORT void gr_urcu_barrier(void) GR_EXCLUDES(gr_rcu_section);

/**
 * create_call_rcu_data(): a worker of one's own.
 * @param flags URCU_CALL_RCU_RT or 0.
 * @param cpu   Where it shall run; negative: anywhere.
 * @return The worker; NULL, with errno set, if there is no memory or a flag is unknown.
 * @context Any thread.
 */
GR_EXPORT struct call_rcu_data *gr_urcu_create_call_rcu_data(unsigned long flags, int cpu);

/**
 * call_rcu_data_free(): run what is queued, stop the worker and free it.
 * @param data May be NULL or the default worker: nothing happens. No thread's and no CPU's any
 *             more, the latter since a grace period.
 * @context As gr_rcu_barrier().
 */
GR_EXPORT void gr_urcu_call_rcu_data_free(struct call_rcu_data *data) GR_EXCLUDES(gr_rcu_section);

/** get_default_call_rcu_data(). @return The worker for all who have no other. @context Any. */
GR_EXPORT struct call_rcu_data *gr_urcu_get_default_call_rcu_data(void);
/** get_cpu_call_rcu_data(). @param cpu Which. @return Its worker, or NULL. @context A section. */
GR_EXPORT struct call_rcu_data *gr_urcu_get_cpu_call_rcu_data(int cpu);
/** get_thread_call_rcu_data(). @return The calling thread's own worker, or NULL. @context Any. */
GR_EXPORT struct call_rcu_data *gr_urcu_get_thread_call_rcu_data(void);
/** get_call_rcu_data(). @return The worker that call_rcu() would use. @context A section. */
GR_EXPORT struct call_rcu_data *gr_urcu_get_call_rcu_data(void);

/**
 * get_call_rcu_thread(): which thread runs a worker's callbacks.
 * @param data The worker.
 * @return The thread.
 * @context Asks the worker, so as gr_rcu_barrier(); or in a callback of this worker.
 */
GR_EXPORT pthread_t gr_urcu_get_call_rcu_thread(struct call_rcu_data *data);

/** set_thread_call_rcu_data(). @param data The calling thread's from now on; NULL: none. */
GR_EXPORT void gr_urcu_set_thread_call_rcu_data(struct call_rcu_data *data);

/**
 * set_cpu_call_rcu_data(): give a CPU a worker, or take it away.
 * @param cpu  Which.
 * @param data NULL: none. A grace period must pass before the former one is freed.
 * @return 0 or a negative errno, which is in errno too.
 * @errors  -EINVAL there is no such CPU; -EEXIST it has a worker; -ENOMEM.
 * @context Any thread.
 */
GR_EXPORT int gr_urcu_set_cpu_call_rcu_data(int cpu, struct call_rcu_data *data);

/**
 * create_all_cpu_call_rcu_data(): a worker for each CPU that has none.
 * @param flags As for create_call_rcu_data().
 * @return 0 or a negative errno.
 * @errors  -EINVAL an unknown flag; -ENOMEM.
 * @context Any thread.
 */
GR_EXPORT int gr_urcu_create_all_cpu_call_rcu_data(unsigned long flags);
/** free_all_cpu_call_rcu_data(): takes all CPUs' workers away and frees them. */
GR_EXPORT void gr_urcu_free_all_cpu_call_rcu_data(void) GR_EXCLUDES(gr_rcu_section);

/**
 * call_rcu_before_fork(): no callback runs from here to the other two. Optional: without them a
 * callback that runs during the fork runs in the parent only.
 * @context Outside a section and callbacks (dies in either), no lock held that they take.
 */
GR_EXPORT void gr_urcu_before_fork(void) GR_EXCLUDES(gr_rcu_section);
/** call_rcu_after_fork_parent(). Callbacks run again. */
GR_EXPORT void gr_urcu_after_fork_parent(void);
/** call_rcu_after_fork_child(). Callbacks run here too, on workers of the child's. */
GR_EXPORT void gr_urcu_after_fork_child(void);
/** urcu_register_rculfhash_atfork(). @param atfork The same each time; calls are counted. */
GR_EXPORT void gr_urcu_register_atfork(struct urcu_atfork *atfork);
/** urcu_unregister_rculfhash_atfork(). @param atfork As it was registered. */
GR_EXPORT void gr_urcu_unregister_atfork(struct urcu_atfork *atfork);

/**
 * defer_rcu(): have fct(p) called after a grace period.
 * @param fct Runs on a worker thread.
 * @param p   For fct.
 * @context Outside a section and callbacks: waits when the process has no memory left.
 */
GR_EXPORT void gr_urcu_defer(void (*fct)(void *p), void *p);
/** rcu_defer_barrier(): wait until all that any thread deferred has run. */
GR_EXPORT void gr_urcu_defer_barrier(void) GR_EXCLUDES(gr_rcu_section);

/** The flavours memb, mb, signal and bp. */
extern GR_EXPORT const struct rcu_flavor_struct gr_urcu_flavor;
#define urcu_memb_flavor   gr_urcu_flavor
#define urcu_mb_flavor	   gr_urcu_flavor
#define urcu_signal_flavor gr_urcu_flavor
#define urcu_bp_flavor	   gr_urcu_flavor
/** The flavour qsbr. */
extern GR_EXPORT const struct rcu_flavor_struct gr_urcu_qsbr_flavor;
#define urcu_qsbr_flavor gr_urcu_qsbr_flavor

/* Private to the tables. */
static inline void gr_urcu_nothing_(void)
{
}

static inline int gr_urcu_zero_(void)
{
	return 0;
}

static inline struct urcu_gp_poll_state gr_urcu_start_poll_(void)
{
	struct urcu_gp_poll_state state = { gr_rcu_start_poll() };
	return state;
}

GR_END_DECLS

#include <guestram/urcu_names.h>
#endif
