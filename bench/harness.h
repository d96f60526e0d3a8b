/* SPDX-License-Identifier: MIT */
/*
 * What every benchmark shares: options, medians, and the one way to print a result.
 *
 * A claim is a ratio against a named peer measured in the same run, in alternation. Each
 * result is one line of text, or with --json one object:
 * {"case","unit","ours","peer","peer_name","ratio","spread","runs"}; ratio above 1 means
 * that ours is better. `spread` is (largest - smallest) / median of the ratios of the
 * single runs: 0.2 reads as "the ratio moved by a fifth between runs".
 */
#ifndef BENCH_HARNESS_H
#define BENCH_HARNESS_H

#include <sched.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

enum { BENCH_RUNS_MAX = 64, BENCH_RUNS_MIN = 5 };

struct bench_options {
	const char *only;  /* --case: run this case alone */
	bool json;	   /* --json */
	bool quick;	   /* --quick: does it work? Few and short runs, no figures to quote */
	int runs;	   /* --runs, at least BENCH_RUNS_MIN */
	uint64_t size_mib; /* --size, in MiB */
};

/* One quantity of one case: as many values of ours and of the peer as there were runs. */
struct bench_result {
	const char *name; /* "migrate.untouched", or "migrate.untouched/dst_cpu" */
	const char *unit;
	const char *peer_name;
	bool more_is_better; /* throughput; otherwise time */
	int runs;
	double ours[BENCH_RUNS_MAX];
	double peer[BENCH_RUNS_MAX];
};

/* Parses the command line; exits with a usage message and status 2 on an unknown option. */
void bench_options_parse(struct bench_options *o, int argc, char **argv);
/* Whether it was asked for: the case ("a.b" for "a.b/c"), the name itself, or nothing. */
bool bench_wanted(const struct bench_options *o, const char *name);
void bench_add(struct bench_result *r, double ours, double peer);
void bench_print(const struct bench_options *o, const struct bench_result *r);
/* Says what goes wrong on stderr and exits with status 2. */
void bench_die(const char *fmt, ...) __attribute__((noreturn, format(printf, 1, 2)));
double bench_now_s(void);
/* Processors by number from 0 among those this process may use; BENCH_ANY_CPU: all of them. */
enum { BENCH_ANY_CPU = -1 };
unsigned bench_cpus(void);
cpu_set_t bench_cpu_set(int cpu);
/* Keeps the calling thread there. */
void bench_pin(int cpu);
/* For this process and all that it starts from now on: its quota ends what waits in a loop. */
void bench_give_up_real_time(void);
/* CPU seconds that a process (0: this one) has used so far, all threads. */
double bench_cpu_s(pid_t pid);
/* Fills memory with bytes that no codec can shorten; the same for the same seed. */
void bench_fill_random(void *p, size_t bytes, uint64_t seed);
/* Ascending. */
void bench_sort(double *values, size_t n);
/* Maps all of a file, which is made where there is none. ret_fd: NULL, or the caller's to close. */
uint8_t *bench_map_file(const char *path, uint64_t bytes, int *ret_fd);

#endif
