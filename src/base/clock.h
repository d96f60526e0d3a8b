/* SPDX-License-Identifier: MIT */
/* Nanoseconds of the monotonic clock, for time-outs, slices and statistics. */
#ifndef GR_BASE_CLOCK_H
#define GR_BASE_CLOCK_H

#include <stdint.h>
#include <time.h>

#define GR_NS_PER_US 1000ull
#define GR_NS_PER_MS 1000000ull
#define GR_NS_PER_S  1000000000ull

static inline uint64_t gr_clock_ns(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (uint64_t)ts.tv_sec * GR_NS_PER_S + (uint64_t)ts.tv_nsec;
}

static inline struct timespec gr_timespec_from_ns(uint64_t ns)
{
	struct timespec ts = { (time_t)(ns / GR_NS_PER_S), (long)(ns % GR_NS_PER_S) };

	return ts;
}

#endif
