/* SPDX-License-Identifier: MIT */
/*
 * The bandwidth limit: a schedule of absolute deadlines. After n bytes it is time
 * begin + n / rate, so that errors of single sleeps do not add up. A sender that was held
 * up by something else may catch up with the last GR_PACING_CREDIT_NS only.
 * Pure arithmetic on times that the caller brings; one thread.
 */
#ifndef GR_MIGRATE_PACING_H
#define GR_MIGRATE_PACING_H

#include "base/clock.h"

#define GR_PACING_CREDIT_NS (250 * GR_NS_PER_MS)
/* The longest that anybody sleeps without looking whether to stop. */
#define GR_PACING_SLICE_NS (20 * GR_NS_PER_MS)

struct gr_pacing {
	uint64_t bytes_per_s; /* 0: no limit */
	uint64_t next_ns;     /* when the next byte may go */
	uint64_t rest;	      /* of the division, in bytes x ns per s */
};

/**
 * @param p           The caller's memory.
 * @param bytes_per_s The limit; 0: none.
 * @param now_ns      When the schedule begins.
 */
void gr_pacing_init(struct gr_pacing *p, uint64_t bytes_per_s, uint64_t now_ns);

/**
 * @param p      The schedule.
 * @param now_ns The time.
 * @return How long to wait before the next byte; 0: go on.
 */
uint64_t gr_pacing_wait_ns(const struct gr_pacing *p, uint64_t now_ns);

/**
 * Account for bytes that were sent.
 * @param p      The schedule.
 * @param bytes  How many.
 * @param now_ns The time.
 */
void gr_pacing_sent(struct gr_pacing *p, uint64_t bytes, uint64_t now_ns);

/**
 * How much to send at once, so that the pieces are about 10 ms apart.
 * @param p         The schedule.
 * @param bytes_max The largest piece.
 * @return Bytes, at most bytes_max, never 0.
 */
uint64_t gr_pacing_piece(const struct gr_pacing *p, uint64_t bytes_max);

#endif
