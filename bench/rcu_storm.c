/* SPDX-License-Identifier: MIT */
/*
 * System calls of a grace period while one reader stays inside for 5 ms at a time and another,
 * whom nobody needs to wait for, runs one section after another. Counted at syscall(2), the
 * same for every implementation.
 */
#include "bench/rcu_cases.h"
#include <stdio.h>

enum { SLOW_US = 5000 };

static unsigned grace_periods = 20;

struct slow {
	const struct bench_rcu *rcu;
	uint32_t stop;	  /* (a) */
	uint32_t inside;  /* (a) */
	uint64_t entered; /* (a) sections */
};

static void *run_slowly(void *arg)
{
	struct slow *s = arg;

	s->rcu->register_thread();
	while (!__atomic_load_n(&s->stop, __ATOMIC_RELAXED)) {
		/* As many as it takes to count as one who reads often. */
		for (int i = 0; i < 1000; i++) {
			s->rcu->lock();
			s->rcu->unlock();
		}
		s->rcu->lock();
		__atomic_store_n(&s->inside, 1, __ATOMIC_RELEASE);
		bench_sleep_us(SLOW_US);
		__atomic_store_n(&s->inside, 0, __ATOMIC_RELEASE);
		s->rcu->unlock();
	}
	s->rcu->unregister_thread();
	return NULL;
}

static void storm(const struct bench_rcu *rcu, unsigned arg, double ret[BENCH_VALUES])
{
	struct slow slow = { .rcu = rcu };
	struct bench_syscalls counted;
	struct bench_reading fast;
	struct bench_slots s;
	pthread_t thread;

	(void)arg;
	bench_slots_init(&s, 1);
	bench_pin(0);
	bench_reading_start(&fast, rcu, &s, 1);
	bench_thread(&thread, 0, run_slowly, &slow);
	bench_sleep_us(SLOW_US);
	bench_syscalls_reset();
	for (unsigned i = 0; i < grace_periods; i++) {
		while (!__atomic_load_n(&slow.inside, __ATOMIC_ACQUIRE)) {
			bench_sleep_us(50);
		}
		bench_slot_replace(&s, 0, rcu);
	}
	counted = bench_syscalls_get();
	__atomic_store_n(&slow.stop, 1, __ATOMIC_RELAXED);
	pthread_join(thread, NULL);
	bench_reading_stop(&fast);
	bench_slots_free(&s);
	ret[0] = (double)(counted.barriers + counted.waits + counted.wakes) / grace_periods;
	ret[1] = (double)counted.barriers / grace_periods;
	ret[2] = (double)counted.waits / grace_periods;
	ret[3] = (double)counted.wakes / grace_periods;
}

static void check_ours(const double ours[BENCH_VALUES], const double peer[BENCH_VALUES])
{
	(void)peer;
	if (ours[1] > 2 || ours[2] > 1 || ours[3] > 1) {
		bench_die(
			"rcu.storm_syscalls: %.2f barriers, %.2f waits, %.2f wakes a grace period, "
			"at most 2, 1 and 1 are allowed",
			ours[1], ours[2], ours[3]);
	}
	if (ours[0] == 0) {
		bench_die("rcu.storm_syscalls: nothing was counted");
	}
}

void bench_storm_case(const struct bench_options *o)
{
	struct bench_rcu_case c = { "rcu.storm_syscalls", "syscalls/gp", false,	    storm, 0,
				    bench_rcu_memb,	  NULL,		 check_ours };

	grace_periods = o->quick ? 5 : 20;
	if (!bench_wanted(o, c.name)) {
		return;
	}
	bench_rcu_case_run(o, &c);
	c.name = "rcu.storm_syscalls/mb";
	c.peer = bench_rcu_mb;
	bench_rcu_case_run(o, &c);
	c.name = "rcu.storm_syscalls/qemu";
	c.peer = &bench_rcu_qemu;
	bench_rcu_case_run(o, &c);
}
