/* SPDX-License-Identifier: MIT */
/* What the files of bench/rcu and bench/call_rcu share: a case, from measuring to printing. */
#ifndef BENCH_RCU_CASES_H
#define BENCH_RCU_CASES_H

#include "bench/harness.h"
#include "bench/rcu_impl/kit.h"

struct bench_rcu_case {
	const char *name; /* of the result */
	const char *unit;
	bool more_is_better;
	bench_measure *measure; /* ret[0] is the value; run in a process of its own each time */
	unsigned arg;
	const struct bench_rcu *peer;
	const char *peer_name; /* NULL: the peer's own */
	/* Looks at all the values of a run; may exit. NULL: nothing to look at. */
	void (*check)(const double ours[BENCH_VALUES], const double peer[BENCH_VALUES]);
};

/* Measures ours and the peer in alternation, as many runs as asked for, and prints. */
void bench_rcu_case_run(const struct bench_options *o, const struct bench_rcu_case *c);
/* False, and says why, where the peer is not there. */
bool bench_rcu_have(const char *name, const struct bench_rcu *peer);

void bench_gp_cases(const struct bench_options *o);
void bench_storm_case(const struct bench_options *o);

#endif
