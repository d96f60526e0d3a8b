/* SPDX-License-Identifier: MIT */
/*
 * Measures two implementations' readers in alternation: read_main OURS PEER RUNS SECTIONS.
 * Built in three ways (linked to shared libraries, statically, and with the loops themselves
 * in a shared library), because the way to a thread-local variable differs; run by bench/rcu.c.
 * Prints for each run: ours, peer, and both with a quiescent state after each section.
 */
#include "bench/harness.h"
#include "bench/rcu_impl/kit.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Other work on the machine can only make a stretch slower: the fastest of some counts. */
enum { STRETCHES = 7 };

static const struct bench_rcu *by_name(const char *name)
{
	const struct bench_rcu *all[] = { &bench_rcu_guestram, &bench_rcu_guestram_qs,
					  bench_rcu_memb,      bench_rcu_mb,
					  bench_rcu_qsbr,      &bench_rcu_qemu };

	for (unsigned i = 0; i < sizeof(all) / sizeof(all[0]); i++) {
		if (all[i] && strcmp(all[i]->name, name) == 0) {
			return all[i];
		}
	}
	bench_die("no implementation '%s'", name);
}

static double fastest(double (*read_ns)(uint64_t), uint64_t sections)
{
	double best = read_ns(sections / 8); /* warm up */

	for (int i = 0; i < STRETCHES; i++) {
		double ns = read_ns(sections);

		best = i == 0 || ns < best ? ns : best;
	}
	return best;
}

static void measure(const struct bench_rcu *rcu, uint64_t sections, double *ret, double *ret_qs)
{
	rcu->register_thread();
	*ret = fastest(rcu->read_ns, sections);
	*ret_qs = fastest(rcu->read_quiescent_ns, sections);
	rcu->unregister_thread();
}

int main(int argc, char **argv)
{
	const struct bench_rcu *rcu[2];
	uint64_t sections;
	int runs;

	if (argc != 5) {
		bench_die("usage: %s OURS PEER RUNS SECTIONS", argv[0]);
	}
	runs = atoi(argv[3]);
	sections = strtoull(argv[4], NULL, 0);
	(void)bench_cpus();
	for (int i = 0; i < 2; i++) {
		rcu[i] = by_name(argv[1 + i]);
		rcu[i]->init();
		bench_check_waits(rcu[i]);
		bench_check_readers(rcu[i]);
	}
	bench_pin(0);
	for (int run = 0; run < runs; run++) {
		double ns[2], qs[2];

		for (int i = 0; i < 2; i++) {
			int which = (run + i) % 2;

			measure(rcu[which], sections, &ns[which], &qs[which]);
		}
		printf("%.9g %.9g %.9g %.9g\n", ns[0], ns[1], qs[0], qs[1]);
	}
	return 0;
}
