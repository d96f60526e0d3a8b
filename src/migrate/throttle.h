/* SPDX-License-Identifier: MIT */
/*
 * Auto-converge: a guest that dirties faster than the channel carries is slowed down. As QEMU does it:
 * looked at once a second; when more than a part of what was sent was dirtied meanwhile, for the second time,
 * the vCPUs lose first 20 % of their time, and 10 % more each further time. Pure arithmetic; one thread.
 */
#ifndef GR_MIGRATE_THROTTLE_H
#define GR_MIGRATE_THROTTLE_H

#include "base/clock.h"

#define GR_THROTTLE_PERIOD_NS GR_NS_PER_S

struct gr_throttle {
	unsigned int trigger, initial, increment, max; /* percent */
	unsigned int percent;			       /* of now */
	unsigned int exceeded;			       /* periods since the last step */
	uint64_t begin_ns;			       /* of the period */
	uint64_t dirtied;			       /* bytes, in it */
	uint64_t sent_before;			       /* bytes, when it began */
};

/**
 * A harvest has found what was dirtied since the one before.
 * @param t       The caller's; the four percentages set.
 * @param dirtied Bytes; 0 for the first one, which is everything.
 * @param sent    Bytes sent so far, in all.
 * @param now_ns  The time.
 * @return How much of the vCPUs' time is to be taken from now on, in percent.
 */
unsigned int gr_throttle_harvest(struct gr_throttle *t, uint64_t dirtied, uint64_t sent,
				 uint64_t now_ns);

#endif
