/* SPDX-License-Identifier: MIT */
/*
 * How fast the guest writes: every writer asks the pacer for its next operations and sleeps
 * there until they are due. The rate is given in dirtied bytes per second, one page for each
 * operation, shared evenly by the writers, and may be changed at any time.
 */
#ifndef VMM_PACER_H
#define VMM_PACER_H

#include "workload.h"
#include <pthread.h>

#define VMM_RATE_UNLIMITED UINT64_MAX

struct vmm_pacer {
	pthread_mutex_t lock;
	pthread_cond_t cond;
	unsigned int writers;	   /* (c) */
	unsigned int throttle;	   /* (l) percent of their time that writers lose... */
	unsigned int throttled;	   /* (l) ...those with a lower number than this */
	uint64_t rate_bytes_per_s; /* (l) of all writers together */
	struct vmm_pacer_writer {
		uint64_t from_ns;  /* (l) when counting of what is due began */
		uint64_t due;	   /* (l) operations given out since then */
		uint64_t given;	   /* (l) operations given out in all */
		uint64_t finished; /* (l) of those, surely done: all but the last lot */
		uint64_t slice_end_ns; /* (l) throttled: when it has to sleep... */
		uint64_t wake_ns;      /* (l) ...and until when, once it does */
		bool stop;	   /* (l) kicked: the next or the present take returns 0 */
	} writer[VMM_WRITERS_MAX];
};

int vmm_pacer_init(struct vmm_pacer *pacer, unsigned int writers, struct gr_error *err);
void vmm_pacer_destroy(struct vmm_pacer *pacer);

/* Takes effect at once. 0: nobody writes. VMM_RATE_UNLIMITED: as fast as it goes. */
void vmm_pacer_set_rate(struct vmm_pacer *pacer, uint64_t rate_bytes_per_s);
uint64_t vmm_pacer_rate(struct vmm_pacer *pacer);

/*
 * From now on the first `writers` writers sleep for so many percent of the time, in pieces; what would
 * have been due then is not made up for. 0: no more.
 */
void vmm_pacer_throttle(struct vmm_pacer *pacer, unsigned int percent, unsigned int writers);

/*
 * How many main operations writer w may do now: at least 1, sleeps until then; or 0 when the
 * writer was told to stop. The caller is outside a read-side section and, if it can sleep
 * long, has parked itself (gr_rcu_park()) or is offline (gr_rcu_thread_offline()).
 */
uint32_t vmm_pacer_take(struct vmm_pacer *pacer, unsigned int w);

/*
 * The same, but sleeps for wait_ns_max at most and returns 0 then: for a guest that has to look at
 * its clock meanwhile.
 */
uint32_t vmm_pacer_take_within(struct vmm_pacer *pacer, unsigned int w, uint64_t wait_ns_max);

/* Operations that were given to w and not done (it stopped half way) are taken back. */
void vmm_pacer_give_back(struct vmm_pacer *pacer, unsigned int w, uint32_t ops);

/* From now on take returns 0 for w, also one that sleeps now, until vmm_pacer_go(). */
void vmm_pacer_stop(struct vmm_pacer *pacer, unsigned int w);
/* Let w take again. The time it stood still does not count. */
void vmm_pacer_go(struct vmm_pacer *pacer, unsigned int w);

/* A lower bound of the operations that w has finished since the pacer began. */
uint64_t vmm_pacer_finished(struct vmm_pacer *pacer, unsigned int w);

#endif
