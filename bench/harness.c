/* SPDX-License-Identifier: MIT */
#include "bench/harness.h"
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

void bench_die(const char *fmt, ...)
{
	va_list ap;

	va_start(ap, fmt);
	(void)vfprintf(stderr, fmt, ap);
	va_end(ap);
	(void)fputc('\n', stderr);
	exit(2);
}

void bench_options_parse(struct bench_options *o, int argc, char **argv)
{
	*o = (struct bench_options){ .runs = 7, .size_mib = 1024 };
	(void)bench_cpus(); /* before there are threads that would ask all at once */
	for (int i = 1; i < argc; i++) {
		const char *value = i + 1 < argc ? argv[i + 1] : NULL;

		if (strcmp(argv[i], "--json") == 0) {
			o->json = true;
			continue;
		}
		if (strcmp(argv[i], "--quick") == 0) {
			o->quick = true;
			o->runs = BENCH_RUNS_MIN;
			continue;
		}
		if (!value) {
			bench_die("usage: %s [--case CASE] [--json] [--quick] [--runs N] [--size "
				  "MIB]",
				  argv[0]);
		}
		if (strcmp(argv[i], "--case") == 0) {
			o->only = value;
		} else if (strcmp(argv[i], "--runs") == 0) {
			o->runs = atoi(value);
		} else if (strcmp(argv[i], "--size") == 0) {
			o->size_mib = strtoull(value, NULL, 0);
		} else {
			bench_die("%s: unknown option '%s'", argv[0], argv[i]);
		}
		i++;
	}
	if (o->runs < BENCH_RUNS_MIN || o->runs > BENCH_RUNS_MAX || o->size_mib < 1) {
		bench_die("%s: --runs takes %d to %d, --size at least 1", argv[0], BENCH_RUNS_MIN,
			  BENCH_RUNS_MAX);
	}
}

bool bench_wanted(const struct bench_options *o, const char *name)
{
	/* What follows the slash is another quantity of the same case. */
	size_t length = strcspn(name, "/");

	return !o->only || (strlen(o->only) == length && strncmp(o->only, name, length) == 0) ||
	       strcmp(o->only, name) == 0;
}

void bench_add(struct bench_result *r, double ours, double peer)
{
	if (r->runs < BENCH_RUNS_MAX) {
		r->ours[r->runs] = ours;
		r->peer[r->runs] = peer;
		r->runs++;
	}
}

static int by_value(const void *a, const void *b)
{
	double x = *(const double *)a, y = *(const double *)b;

	return (x > y) - (x < y);
}

void bench_sort(double *values, size_t n)
{
	qsort(values, n, sizeof(*values), by_value);
}

static void sorted(double *to, const double *from, int n)
{
	memcpy(to, from, (size_t)n * sizeof(*to));
	bench_sort(to, (size_t)n);
}

static double median(const double *v, int n)
{
	double s[BENCH_RUNS_MAX];

	sorted(s, v, n);
	return n % 2 ? s[n / 2] : (s[n / 2 - 1] + s[n / 2]) / 2;
}

void bench_print(const struct bench_options *o, const struct bench_result *r)
{
	double ratios[BENCH_RUNS_MAX], s[BENCH_RUNS_MAX];
	double ours = median(r->ours, r->runs);
	double peer = median(r->peer, r->runs);
	double ratio = r->more_is_better ? ours / peer : peer / ours;
	double spread;

	for (int i = 0; i < r->runs; i++) {
		ratios[i] = r->more_is_better ? r->ours[i] / r->peer[i] : r->peer[i] / r->ours[i];
	}
	sorted(s, ratios, r->runs);
	spread = (s[r->runs - 1] - s[0]) / median(ratios, r->runs);
	if (o->json) {
		printf("{\"case\":\"%s\",\"unit\":\"%s\",\"ours\":%.6g,\"peer\":%.6g,"
		       "\"peer_name\":\"%s\",\"ratio\":%.4g,\"spread\":%.3g,\"runs\":%d}\n",
		       r->name, r->unit, ours, peer, r->peer_name, ratio, spread, r->runs);
	} else {
		printf("%-44s ours %10.4g  %-38s %10.4g %-8s  ratio %6.2f (spread %.2f, %d runs)\n",
		       r->name, ours, r->peer_name, peer, r->unit, ratio, spread, r->runs);
	}
	(void)fflush(stdout);
}

/* Asked once, before anything is pinned. */
static const cpu_set_t *allowed(void)
{
	static cpu_set_t set;
	static bool known;

	if (!known) {
		known = true;
		if (sched_getaffinity(0, sizeof(set), &set) != 0) {
			bench_die("sched_getaffinity: %s", strerror(errno));
		}
	}
	return &set;
}

unsigned bench_cpus(void)
{
	return (unsigned)CPU_COUNT(allowed());
}

cpu_set_t bench_cpu_set(int cpu)
{
	const cpu_set_t *all = allowed();
	unsigned skip;
	cpu_set_t one;

	if (cpu == BENCH_ANY_CPU) {
		return *all;
	}
	CPU_ZERO(&one);
	skip = (unsigned)cpu % bench_cpus();
	for (size_t i = 0; i < CPU_SETSIZE; i++) {
		if (CPU_ISSET(i, all) && skip-- == 0) {
			CPU_SET(i, &one);
		}
	}
	return one;
}

void bench_pin(int cpu)
{
	cpu_set_t set = bench_cpu_set(cpu);

	if (sched_setaffinity(0, sizeof(set), &set) != 0) {
		bench_die("sched_setaffinity: %s", strerror(errno));
	}
}

double bench_now_s(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

double bench_cpu_s(pid_t pid)
{
	struct timespec t;
	clockid_t clock;

	if (clock_getcpuclockid(pid, &clock) != 0 || clock_gettime(clock, &t) != 0) {
		return 0;
	}
	return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

void bench_fill_random(void *p, size_t bytes, uint64_t seed)
{
	uint64_t *w = p;

	for (size_t i = 0; i < bytes / 8; i++) {
		uint64_t z = seed += 0x9e3779b97f4a7c15u;

		z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
		w[i] = z ^ (z >> 27);
	}
}

void bench_give_up_real_time(void)
{
	const struct sched_param none = { 0 };

	(void)sched_setscheduler(0, SCHED_OTHER, &none);
	(void)setpriority(PRIO_PROCESS, 0, -10);
}

uint8_t *bench_map_file(const char *path, uint64_t bytes, int *ret_fd)
{
	int fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
	void *p = MAP_FAILED;

	if (fd >= 0 && ftruncate(fd, (off_t)bytes) == 0) {
		p = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	}
	if (p == MAP_FAILED) {
		bench_die("cannot map %s: %s", path, strerror(errno));
	}
	if (ret_fd) {
		*ret_fd = fd;
	} else {
		close(fd);
	}
	return p;
}
