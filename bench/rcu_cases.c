/* SPDX-License-Identifier: MIT */
#include "bench/rcu_cases.h"
#include <stdio.h>

bool bench_rcu_have(const char *name, const struct bench_rcu *peer)
{
	if (!peer) {
		(void)fprintf(stderr,
			      "%s: no peer: this was built without liburcu (package liburcu-dev)\n",
			      name);
	}
	return peer != NULL;
}

void bench_rcu_case_run(const struct bench_options *o, const struct bench_rcu_case *c)
{
	struct bench_result r = { .name = c->name,
				  .unit = c->unit,
				  .more_is_better = c->more_is_better };
	const struct bench_rcu *rcu[2] = { &bench_rcu_guestram, c->peer };

	if (!bench_rcu_have(c->name, c->peer)) {
		return;
	}
	r.peer_name = c->peer_name ? c->peer_name : c->peer->name;
	for (int run = 0; run < o->runs; run++) {
		double values[2][BENCH_VALUES];

		for (int i = 0; i < 2; i++) {
			int which = (run + i) % 2;

			bench_isolated(c->measure, rcu[which], c->arg, values[which]);
		}
		if (c->check) {
			c->check(values[0], values[1]);
		}
		bench_add(&r, values[0][0], values[1][0]);
	}
	bench_print(o, &r);
}
