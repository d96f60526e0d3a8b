/* SPDX-License-Identifier: MIT */
/*
 * How long stores wait for their page: who waits now, and how long those did that went on. Quick
 * are those whose page was saved at once or was on its way, kept those whose page had to stay as it
 * was. The caller's lock is held over each call.
 */
#ifndef GR_TRACK_STALLS_H
#define GR_TRACK_STALLS_H

#include "base/compiler.h"
#include <guestram/copy_before_write.h>

enum {
	GR_STALLS_WAITING_MAX = 256, /* threads that wait at once; of more the time is not taken */
	/* Eight to each power of two, so that a bucket's end is an eighth above its begin at most.
	 */
	GR_STALL_BUCKETS = 8 * 40,
};

struct gr_stall_histogram {
	uint64_t count, ns_total, ns_max;
	uint32_t bucket[GR_STALL_BUCKETS];
};

/* Zero-initialise. */
struct gr_stalls {
	struct gr_stall_waiting {
		uint64_t address, since_ns;
		bool kept;
	} waiting[GR_STALLS_WAITING_MAX];
	unsigned int count;
	struct gr_stall_histogram quick, kept;
};

void gr_stall_add(struct gr_stall_histogram *h, uint64_t ns);
struct gr_cbw_stalls gr_stall_summary(const struct gr_stall_histogram *h);

/* A store to the page at address waits since then. */
void gr_stalls_wait(struct gr_stalls *s, uint64_t address, uint64_t since_ns);
/* The page there is kept. */
void gr_stalls_keep(struct gr_stalls *s, uint64_t address);
/* Whoever waits for [address, address + bytes) goes on. */
void gr_stalls_go(struct gr_stalls *s, uint64_t address, uint64_t bytes, uint64_t now_ns);

#endif
