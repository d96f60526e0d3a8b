/* SPDX-License-Identifier: MIT */
#include "gate.h"
#include <guestram/rcu.h>
#include <time.h>

#define NS_PER_S 1000000000L

void vmm_gate_init(struct vmm_gate *gate)
{
	pthread_condattr_t attr;

	*gate = (struct vmm_gate){ .state = VMM_GATE_CLOSED };
	(void)pthread_mutex_init(&gate->lock, NULL);
	(void)pthread_condattr_init(&attr);
	(void)pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
	(void)pthread_cond_init(&gate->cond, &attr);
	(void)pthread_condattr_destroy(&attr);
}

void vmm_gate_destroy(struct vmm_gate *gate)
{
	(void)pthread_cond_destroy(&gate->cond);
	(void)pthread_mutex_destroy(&gate->lock);
}

bool vmm_gate_wait(struct vmm_gate *gate)
{
	bool go_on;

	gr_rcu_park();
	(void)pthread_mutex_lock(&gate->lock);
	gate->waiting++;
	(void)pthread_cond_broadcast(&gate->cond);
	while (gate->state == VMM_GATE_CLOSED) {
		(void)pthread_cond_wait(&gate->cond, &gate->lock);
	}
	gate->waiting--;
	go_on = gate->state == VMM_GATE_OPEN;
	(void)pthread_mutex_unlock(&gate->lock);
	return go_on;
}

void vmm_gate_sleep(struct vmm_gate *gate, uint64_t ns)
{
	struct timespec until;

	gr_rcu_park();
	(void)clock_gettime(CLOCK_MONOTONIC, &until);
	until.tv_nsec += (long)ns;
	until.tv_sec += until.tv_nsec / NS_PER_S;
	until.tv_nsec %= NS_PER_S;
	(void)pthread_mutex_lock(&gate->lock);
	if (gate->state == VMM_GATE_OPEN) {
		(void)pthread_cond_timedwait(&gate->cond, &gate->lock, &until);
	}
	(void)pthread_mutex_unlock(&gate->lock);
}

void vmm_gate_set(struct vmm_gate *gate, enum vmm_gate_state state)
{
	(void)pthread_mutex_lock(&gate->lock);
	__atomic_store_n(&gate->state, state, __ATOMIC_RELAXED);
	(void)pthread_cond_broadcast(&gate->cond);
	(void)pthread_mutex_unlock(&gate->lock);
}

void vmm_gate_await_closed(struct vmm_gate *gate)
{
	(void)pthread_mutex_lock(&gate->lock);
	while (gate->waiting < gate->threads) {
		(void)pthread_cond_wait(&gate->cond, &gate->lock);
	}
	(void)pthread_mutex_unlock(&gate->lock);
}
