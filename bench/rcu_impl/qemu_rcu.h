/* SPDX-License-Identifier: MIT */
/*
 * QEMU 7.2's RCU as its documentation and design describe it, written anew: what its default
 * build does, where there is no process-wide barrier, so each section has two fences.
 *
 * Reader: a thread-local record, reached by a call (coroutines may change threads), with a
 * depth and a copy of the global counter; 0 is outside. The last unlock wakes the writer
 * if it asked to.
 * Grace period: under a mutex, advance the counter by 2, ask all readers to wake us, and sleep
 * until each is outside or has the new counter.
 * Callbacks: one queue, one thread. The thread gathers callbacks for up to five times 10 ms,
 * less if 30 are there, waits for a grace period and runs what was counted before it, all
 * of it under the big lock.
 */
#ifndef BENCH_QEMU_RCU_H
#define BENCH_QEMU_RCU_H

#include <guestram/event.h>
#include <stdbool.h>
#include <stdint.h>

struct qemu_rcu_reader {
	uint64_t ctr;	  /* (a) 0: outside */
	uint32_t waiting; /* (a) the writer wants to be woken */
	uint32_t depth;	  /* (o) */
	struct qemu_rcu_reader *next;
	struct qemu_rcu_reader **pprev;
	bool quiescent; /* seen outside in this grace period */
};

struct qemu_rcu_head {
	struct qemu_rcu_head *next;
	void (*func)(struct qemu_rcu_head *head);
};

extern uint64_t qemu_rcu_ctr; /* (a) odd, never 0 */
extern struct gr_event qemu_rcu_gp_event;
struct qemu_rcu_reader *qemu_rcu_self(void);

void qemu_rcu_register(void);
void qemu_rcu_unregister(void);
void qemu_rcu_synchronize(void);
void qemu_rcu_call(struct qemu_rcu_head *head, void (*func)(struct qemu_rcu_head *head));
void qemu_rcu_drain(void);

static inline void qemu_rcu_read_lock(void)
{
	struct qemu_rcu_reader *r = qemu_rcu_self();

	if (r->depth++ > 0) {
		return;
	}
	__atomic_store_n(&r->ctr, __atomic_load_n(&qemu_rcu_ctr, __ATOMIC_RELAXED),
			 __ATOMIC_RELAXED);
	__atomic_thread_fence(__ATOMIC_SEQ_CST); /* inside, before what the section reads */
}

static inline void qemu_rcu_read_unlock(void)
{
	struct qemu_rcu_reader *r = qemu_rcu_self();

	if (--r->depth > 0) {
		return;
	}
	__atomic_store_n(&r->ctr, 0, __ATOMIC_RELEASE);
	__atomic_thread_fence(__ATOMIC_SEQ_CST); /* outside, before the look at waiting */
	if (__atomic_load_n(&r->waiting, __ATOMIC_RELAXED)) {
		__atomic_store_n(&r->waiting, 0, __ATOMIC_RELAXED);
		gr_event_set(&qemu_rcu_gp_event);
	}
}

#endif
