/* SPDX-License-Identifier: MIT */
/* What the RCU benchmarks share: clock, threads, objects to publish, checks. */
#ifndef BENCH_RCU_KIT_H
#define BENCH_RCU_KIT_H

#include "bench/harness.h"
#include "bench/rcu_impl/impl.h"
#include <pthread.h>
#include <time.h>

static inline uint64_t bench_now_ns(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

void bench_thread(pthread_t *ret, int cpu, void *(*fn)(void *), void *arg);
void bench_sleep_us(uint64_t us);
void bench_nothing(void);

/*
 * Runs measure(rcu, arg, ret) in a process of its own, so that threads and memory of one
 * implementation do not disturb the next, and returns what it wrote to ret. Exits if it fails.
 */
enum { BENCH_VALUES = 4 };
typedef void bench_measure(const struct bench_rcu *rcu, unsigned arg, double ret[BENCH_VALUES]);
void bench_isolated(bench_measure *measure, const struct bench_rcu *rcu, unsigned arg,
		    double ret[BENCH_VALUES]);

/* Published pointers, each with two objects that take turns. */
struct bench_slots {
	unsigned n;
	struct bench_object **published;
	struct bench_object *objects; /* 2 * n */
};
void bench_slots_init(struct bench_slots *s, unsigned n);
void bench_slots_free(struct bench_slots *s);
/* Publishes the other object of a slot, waits for a grace period, and kills the old one. */
void bench_slot_replace(struct bench_slots *s, unsigned slot, const struct bench_rcu *rcu);

/* A thread in read_until() on a processor. Stopping exits if it saw a dead object. */
struct bench_reading {
	const struct bench_rcu *rcu;
	struct bench_reader reader;
	pthread_t thread;
};
void bench_reading_start(struct bench_reading *r, const struct bench_rcu *rcu,
			 struct bench_slots *slots, int cpu);
void bench_reading_stop(struct bench_reading *r);

/* Exits unless a grace period waits for a section that is open. */
void bench_check_waits(const struct bench_rcu *rcu);
/* Exits unless a callback waits for a section that is open. */
void bench_check_calls_wait(const struct bench_rcu *rcu);
/* Exits unless readers never see a dead object while a writer kills some, for a moment. */
void bench_check_readers(const struct bench_rcu *rcu);

/* System calls by way of syscall(2) of this process, all threads, since the last reset. */
struct bench_syscalls {
	uint64_t barriers; /* membarrier(2), all commands but query and register */
	uint64_t waits;	   /* futex(2) */
	uint64_t wakes;
};
void bench_syscalls_reset(void);
struct bench_syscalls bench_syscalls_get(void);

#endif
