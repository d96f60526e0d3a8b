/* SPDX-License-Identifier: MIT */
/*
 * Stops and starts a set of threads together. The threads look at gate_closing() between
 * small pieces of work and then wait in gate_wait() until the gate opens again.
 */
#ifndef VMM_GATE_H
#define VMM_GATE_H

#include <guestram/types.h>
#include <pthread.h>

enum vmm_gate_state { VMM_GATE_CLOSED, VMM_GATE_OPEN, VMM_GATE_QUIT };

struct vmm_gate {
	pthread_mutex_t lock;
	pthread_cond_t cond;
	unsigned int threads;	   /* (c) how many pass through this gate */
	unsigned int waiting;	   /* (l) of them are in vmm_gate_wait() */
	enum vmm_gate_state state; /* (l), and (a) for vmm_gate_closing() */
};

void vmm_gate_init(struct vmm_gate *gate); /* closed, without threads */
void vmm_gate_destroy(struct vmm_gate *gate);

/* For the threads: whether to go to vmm_gate_wait(). A plain load. */
static inline bool vmm_gate_closing(const struct vmm_gate *gate)
{
	/* Relaxed: it only tells that the lock shall be taken, which orders everything. */
	return __atomic_load_n(&gate->state, __ATOMIC_RELAXED) != VMM_GATE_OPEN;
}

/* Wait while the gate is closed. false: end. */
bool vmm_gate_wait(struct vmm_gate *gate);
/* Sleep that long, or until the gate closes. */
void vmm_gate_sleep(struct vmm_gate *gate, uint64_t ns);

/* For the owner. Close: all threads are in vmm_gate_wait() after vmm_gate_closed(). */
void vmm_gate_set(struct vmm_gate *gate, enum vmm_gate_state state);
void vmm_gate_await_closed(struct vmm_gate *gate);

#endif
