/* SPDX-License-Identifier: MIT */
/**
 * guestram/rcu_qs.h - threads whose read-side sections cost nothing.
 *
 * Such a thread says when it holds no reference, a *quiescent state*, instead of saying
 * when it does. Between two quiescent states it counts as being inside a section, so its
 * sections need no code at all. It belongs to the default domain, beside ordinary readers: all
 * grace periods wait for both. Made for loops: packets, events, vCPUs.
 *
 *     gr_rcu_qs_register_thread();
 *     for (;;) {
 *             gr_rcu_thread_offline();             // no references in here:
 *             block_for_long();                    // KVM_RUN, poll(), a mutex, pthread_join()
 *             gr_rcu_thread_online();
 *             gr_rcu_qs_read_lock();
 *             use(gr_rcu_dereference(shared));
 *             gr_rcu_qs_read_unlock();
 *             gr_rcu_quiescent_state();            // now and then, in a loop that does not block
 *     }
 *     gr_rcu_qs_unregister_thread();
 *
 * Caveats:
 * - A thread that is online and forgets its quiescent states holds up every grace period.
 *   So go offline before anything that blocks.
 * - Waiting for a grace period of the default domain, or for callbacks, is a quiescent state:
 *   what was found before may be gone afterwards. (A wait in another domain is not: go
 *   offline around it.)
 * - gr_rcu_read_lock() works on such a thread too and nests within; inside such a section a
 *   quiescent state dies with a message. Offline, it makes an ordinary section.
 *
 * Source: quiescent-state-based reclamation (Desnoyers et al., TPDS 2012, section 5.1).
 */
#ifndef GUESTRAM_RCU_QS_H
#define GUESTRAM_RCU_QS_H

#include <guestram/rcu.h>

GR_BEGIN_DECLS

/** Private to the inline code: reports the quiescent state, or dies naming the misuse. */
GR_EXPORT void gr_rcu_quiescent_state_slow(void);
/** Private to the inline code: dies unless the thread is online (checking build). */
GR_EXPORT void gr_rcu_qs_check(void);

/**
 * Become a quiescent-state thread, online.
 * @context Outside a section; dies inside one, and if the thread is one already. A thread that
 *          ends is taken out by itself.
 */
GR_EXPORT void gr_rcu_qs_register_thread(void);

/**
 * Become an ordinary thread again. A quiescent state.
 * @context A quiescent-state thread, online or offline, outside ordinary sections (dies).
 */
GR_EXPORT void gr_rcu_qs_unregister_thread(void);

/**
 * Say that this thread holds no reference to anything that RCU protects.
 * @context A quiescent-state thread, online, outside ordinary sections (dies otherwise). Never
 *          sleeps. Two loads of memory of the thread's own unless a grace period waits for it.
 */
static inline void gr_rcu_quiescent_state(void)
{
	struct gr_rcu_reader *r = &gr_rcu_self;

	__atomic_signal_fence(__ATOMIC_SEQ_CST);
	if (GR_UNLIKELY(__atomic_load_n(&r->ctr, __ATOMIC_RELAXED) != (GR_RCU_QS | 1) ||
			__atomic_load_n(&r->need_qs, __ATOMIC_RELAXED) != 0)) {
		gr_rcu_quiescent_state_slow();
	}
	__atomic_signal_fence(__ATOMIC_SEQ_CST);
}

/**
 * From here to gr_rcu_thread_online() this thread holds no reference: grace periods do not wait
 * for it, nor interrupt it. No effect when offline already.
 * @context A quiescent-state thread outside ordinary sections (dies otherwise). Never sleeps.
 */
GR_EXPORT void gr_rcu_thread_offline(void);

/**
 * Back from gr_rcu_thread_offline(). No effect when online.
 * @context A quiescent-state thread outside ordinary sections (dies otherwise). Never sleeps.
 */
GR_EXPORT void gr_rcu_thread_online(void);

/**
 * Enter a section on a quiescent-state thread. Nests.
 * @context A quiescent-state thread that is online (in the checking build it dies otherwise).
 *          No code at all but for the compiler's eyes.
 */
static inline void gr_rcu_qs_read_lock(void) GR_ACQUIRE_SHARED(gr_rcu_section) GR_NO_TSA;
static inline void gr_rcu_qs_read_lock(void)
{
#ifdef GR_RCU_CHECKS
	gr_rcu_qs_check();
#endif
	__atomic_signal_fence(__ATOMIC_SEQ_CST);
}

/**
 * Leave a section on a quiescent-state thread.
 * @context As gr_rcu_qs_read_lock().
 */
static inline void gr_rcu_qs_read_unlock(void) GR_RELEASE_SHARED(gr_rcu_section) GR_NO_TSA;
static inline void gr_rcu_qs_read_unlock(void)
{
#ifdef GR_RCU_CHECKS
	gr_rcu_qs_check();
#endif
	__atomic_signal_fence(__ATOMIC_SEQ_CST);
}

GR_END_DECLS
#endif
