/* SPDX-License-Identifier: MIT */
/*
 * gr_rcu_start_poll(): a thread that runs the grace periods which nobody waits for. Each domain
 * has its own, made by the first call: a reader that takes its time holds up no other
 * domain, nor anybody's callbacks.
 *
 * Callers raise `wanted`, then set the event. The thread resets the event, then looks at
 * wanted: see event.h for why it misses nothing.
 */
#include "base/atomic.h"
#include "base/log.h"
#include "rcu/rcu_internal.h"
#include <string.h>

enum { POLL_NONE, POLL_STARTING, POLL_RUNNING };

static void *run(void *arg)
{
	struct gr_rcu_domain *d = arg;

	while (gr_load_acquire(&d->poll.stop) == 0) {
		uint64_t wanted;

		gr_event_reset(&d->poll.work);
		wanted = gr_load_acquire(&d->poll.wanted);
		if (gr_rcu_domain_poll_state(d, wanted)) {
			gr_event_wait(&d->poll.work);
		} else {
			gr_rcu_domain_cond_synchronize(d, wanted);
		}
	}
	return NULL;
}

static void start(struct gr_rcu_domain *d)
{
	uint32_t none = POLL_NONE;
	pthread_attr_t attr;
	struct gr_signals saved;
	int ret;

	if (!gr_cas_acq_rel(&d->poll.state, &none, (uint32_t)POLL_STARTING)) {
		return;
	}
	gr_signals_block(&saved); /* handlers run on the caller's threads */
	pthread_attr_init(&attr);
	/* Nobody joins the default domain's: it lives as long as the process. */
	pthread_attr_setdetachstate(&attr, d == &gr_rcu_default ? PTHREAD_CREATE_DETACHED
								: PTHREAD_CREATE_JOINABLE);
	ret = pthread_create(&d->poll.thread, &attr, run, d);
	pthread_attr_destroy(&attr);
	gr_signals_restore(&saved);
	if (ret != 0) {
		gr_log(GR_LOG_WARN,
		       "RCU domain %s: cannot start the thread for polled grace "
		       "periods (%s), will try again",
		       d->name, strerror(ret));
	}
	gr_store_release(&d->poll.state, (uint32_t)(ret == 0 ? POLL_RUNNING : POLL_NONE));
}

uint64_t gr_rcu_domain_start_poll(struct gr_rcu_domain *domain)
{
	struct gr_rcu_domain *d = gr_rcu_domain_or_default(domain);
	uint64_t cookie = gr_rcu_domain_get_state(d);
	uint64_t wanted = gr_load_relaxed(&d->poll.wanted);

	while ((int64_t)(cookie - wanted) > 0 &&
	       !gr_cas_acq_rel(&d->poll.wanted, &wanted, cookie)) {
	}
	if (gr_load_acquire(&d->poll.state) == POLL_NONE) {
		start(d);
	}
	gr_event_set(&d->poll.work);
	return cookie;
}

void gr_rcu_poll_stop(struct gr_rcu_domain *d)
{
	if (gr_load_acquire(&d->poll.state) == POLL_RUNNING) {
		gr_store_release(&d->poll.stop, 1u);
		gr_event_set(&d->poll.work);
		pthread_join(d->poll.thread, NULL);
	}
}

/* The thread is the parent's. The next call makes another, which finds what is wanted still. */
void gr_rcu_poll_after_fork_in_child(struct gr_rcu_domain *d)
{
	d->poll.state = POLL_NONE;
	gr_event_init(&d->poll.work, false);
}
