/* SPDX-License-Identifier: MIT */
/*
 * What tests with threads share: relaxed accesses that no tool takes for a race, time, CPUs, and
 * a way to keep stores in the store buffer.
 */
#ifndef CONCURRENT_H
#define CONCURRENT_H

#include "harness.h"
#include <pthread.h>
#include <sched.h>
#include <stdint.h>
#include <sys/resource.h>
#include <time.h>

#define LOAD(p)	    __atomic_load_n(p, __ATOMIC_RELAXED)
#define STORE(p, v) __atomic_store_n(p, v, __ATOMIC_RELAXED)
#define ADD(p, v)   __atomic_fetch_add(p, v, __ATOMIC_RELAXED)

static inline uint64_t now_ns(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (uint64_t)ts.tv_sec * 1000000000u + (uint64_t)ts.tv_nsec;
}

static inline void spin_ns(uint64_t ns)
{
	uint64_t end = now_ns() + ns;

	while (now_ns() < end) {
	}
}

static inline pthread_t spawn(void *(*fn)(void *), void *arg)
{
	pthread_t t;
	int ret = pthread_create(&t, NULL, fn, arg);

	ASSERT_EQ(ret, 0);
	return t;
}

/*
 * Both on one CPU would show nothing. Where there is only one, that is how it is. Others' load
 * takes shots away: ask for more than our share, where we may (of this thread alone).
 */
static inline void stay_on_cpu(int wanted)
{
	cpu_set_t allowed, one;

	(void)setpriority(PRIO_PROCESS, 0, -20);
	CPU_ZERO(&one);
	if (sched_getaffinity(0, sizeof(allowed), &allowed) != 0) {
		return;
	}
	for (size_t cpu = 0; cpu < CPU_SETSIZE; cpu++) {
		if (CPU_ISSET(cpu, &allowed) && wanted-- == 0) {
			CPU_SET(cpu, &one);
			(void)sched_setaffinity(0, sizeof(one), &one);
			return;
		}
	}
}

/*
 * A store waits behind the stores before it, and one to a cache line that is just being
 * flushed takes more than 100 ns, while loads go on. That makes visible on x86 what a
 * missing process-wide fence allows: a section runs while its "inside" has not left the CPU.
 */
enum { SLOW_LINES = 12 };
static __thread unsigned char slow_line[SLOW_LINES][64] __attribute__((aligned(64), unused));

static inline void prepare_slow_stores(void)
{
	for (int i = 0; i < SLOW_LINES; i++) {
		*(volatile unsigned char *)slow_line[i] = 1;
	}
}

static inline void make_stores_slow(void)
{
	for (int i = 0; i < SLOW_LINES; i++) {
#if defined(__SSE2__)
		__builtin_ia32_clflush(slow_line[i]);
#endif
		*(volatile unsigned char *)slow_line[i] = 2;
	}
}

#endif
