/* SPDX-License-Identifier: MIT */
/*
 * Callbacks against liburcu's default worker (Debian's liburcu) and QEMU's scheme, in the same
 * run, in alternation.
 *
 *   call_rcu.flood1, flood2      enqueue and run callbacks, 1 and 2 producers
 *   call_rcu.flood_memory        most bytes that ever waited, of a flood beside a slow reader
 *   call_rcu.idle_latency_p99    from enqueueing on an idle queue until the callback runs
 *
 * Each run checks that every callback ran, once, and after a grace period.
 */
#include "bench/rcu_cases.h"
#include <guestram/rcu.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static bool quick;

enum { PRODUCERS_MAX = 2 };

struct flood {
	const struct bench_rcu *rcu;
	struct bench_object *objects;
	unsigned n;
	uint32_t *start; /* (a) */
	pthread_t thread;
};

static void count_run(struct bench_object *o)
{
	__atomic_store_n(&o->state, o->state + 1, __ATOMIC_RELAXED);
}

static void *produce(void *arg)
{
	struct flood *f = arg;

	f->rcu->register_thread();
	f->rcu->offline();
	while (!__atomic_load_n(f->start, __ATOMIC_ACQUIRE)) {
	}
	f->rcu->online();
	for (unsigned i = 0; i < f->n; i++) {
		f->rcu->call(&f->objects[i]);
	}
	f->rcu->offline();
	f->rcu->unregister_thread();
	return NULL;
}

/* Nanoseconds a callback, from the first call until the last has run. arg: producers. */
static void flood(const struct bench_rcu *rcu, unsigned arg, double ret[BENCH_VALUES])
{
	unsigned n = quick ? 50000 : 2000000;
	struct bench_object *objects = aligned_alloc(64, n * sizeof(*objects));
	struct flood f[PRODUCERS_MAX];
	uint32_t start = 0;
	uint64_t begin;

	if (!objects) {
		bench_die("no memory");
	}
	bench_check_calls_wait(rcu);
	for (unsigned i = 0; i < n; i++) {
		objects[i] = (struct bench_object){ .done = count_run };
	}
	for (unsigned i = 0; i < arg; i++) {
		f[i] = (struct flood){ .rcu = rcu,
				       .objects = objects + i * (n / arg),
				       .n = n / arg,
				       .start = &start };
		bench_thread(&f[i].thread, BENCH_ANY_CPU, produce, &f[i]);
	}
	bench_sleep_us(1000);
	begin = bench_now_ns();
	__atomic_store_n(&start, 1, __ATOMIC_RELEASE);
	for (unsigned i = 0; i < arg; i++) {
		pthread_join(f[i].thread, NULL);
	}
	ret[1] = (double)(bench_now_ns() - begin) / n;
	rcu->barrier();
	ret[0] = (double)(bench_now_ns() - begin) / n;
	for (unsigned i = 0; i < n; i++) {
		if (objects[i].state != 1) {
			bench_die("%s: callback %u ran %llu times", rcu->name, i,
				  (unsigned long long)objects[i].state);
		}
	}
	free(objects);
}

/* Memory: objects of 1 KiB against a limit of 16 MiB. */
enum { PAYLOAD = 1024, LIMIT = 16 << 20, SLOW_US = 50000 };

static struct {
	uint64_t now, most; /* (a) bytes queued and not yet freed */
	uint64_t freed;	    /* (a) objects */
	uint32_t stop;	    /* (a) */
} memory;

static void free_object(struct bench_object *o)
{
	free(o);
	__atomic_sub_fetch(&memory.now, PAYLOAD, __ATOMIC_RELAXED);
	__atomic_add_fetch(&memory.freed, 1, __ATOMIC_RELAXED);
}

static void free_ours(struct gr_rcu_head *head)
{
	free_object((struct bench_object *)(void *)head);
}

static void *read_slowly(void *arg)
{
	const struct bench_rcu *rcu = arg;

	rcu->register_thread();
	while (!__atomic_load_n(&memory.stop, __ATOMIC_RELAXED)) {
		rcu->lock();
		bench_sleep_us(SLOW_US);
		rcu->unlock();
	}
	rcu->unregister_thread();
	return NULL;
}

static struct gr_rcu_queue *limited_queue(void)
{
	struct gr_rcu_queue_params params = { .size = sizeof(params), .hard_bytes = LIMIT };
	struct gr_rcu_queue *queue;
	struct gr_error err;

	if (gr_rcu_queue_create(&params, &queue, &err) < 0) {
		bench_die("%s", err.msg);
	}
	return queue;
}

/* One producer as fast as it can. Returns how many objects. */
static uint64_t produce_memory(const struct bench_rcu *rcu, struct gr_rcu_queue *limited,
			       uint64_t ns)
{
	uint64_t end = bench_now_ns() + ns, n;

	for (n = 0; n % 64 != 0 || bench_now_ns() < end; n++) {
		struct bench_object *o = malloc(PAYLOAD);
		uint64_t now;

		if (!o) {
			bench_die("no memory");
		}
		memset(o, 0, PAYLOAD);
		o->done = free_object;
		now = __atomic_add_fetch(&memory.now, PAYLOAD, __ATOMIC_RELAXED);
		if (now > memory.most) {
			memory.most = now;
		}
		if (limited) {
			gr_rcu_call_sized(limited, (struct gr_rcu_head *)(void *)o->head, free_ours,
					  PAYLOAD);
		} else {
			rcu->call(o);
		}
	}
	return n;
}

/* Mebibytes at the most; and what is produced in one grace period while nobody throttles. */
static void flood_memory(const struct bench_rcu *rcu, unsigned arg, double ret[BENCH_VALUES])
{
	struct gr_rcu_queue *limited = rcu == &bench_rcu_guestram ? limited_queue() : NULL;
	uint64_t ns = quick ? 150000000 : 600000000, produced;
	pthread_t reader;

	(void)arg;
	bench_check_calls_wait(rcu);
	rcu->register_thread();
	bench_thread(&reader, BENCH_ANY_CPU, read_slowly, (void *)(uintptr_t)rcu);
	produced = produce_memory(rcu, limited, ns);
	__atomic_store_n(&memory.stop, 1, __ATOMIC_RELAXED);
	if (limited) {
		gr_rcu_barrier(limited);
	} else {
		rcu->barrier();
	}
	pthread_join(reader, NULL);
	rcu->unregister_thread();
	if (memory.freed != produced || memory.now != 0) {
		bench_die("%s: %llu of %llu objects were freed", rcu->name,
			  (unsigned long long)memory.freed, (unsigned long long)produced);
	}
	gr_rcu_queue_free(limited);
	ret[0] = (double)memory.most / (1 << 20);
	ret[1] = (double)produced * PAYLOAD / (double)ns * (SLOW_US * 1000.0) / (1 << 20);
}

static void check_memory(const double ours[BENCH_VALUES], const double peer[BENCH_VALUES])
{
	double limit = (double)LIMIT / (1 << 20);

	if (ours[0] > limit + peer[1]) {
		bench_die("call_rcu.flood_memory: %.1f MiB waited; the limit is %.1f and a grace "
			  "period produces %.1f",
			  ours[0], limit, peer[1]);
	}
}

struct sample {
	struct bench_object object;
	double us;
	uint32_t ran; /* (a) */
};

static void take_time(struct bench_object *o)
{
	struct sample *s = o->opaque;

	s->us = (double)(bench_now_ns() - o->queued_ns) / 1000;
	__atomic_store_n(&s->ran, 1, __ATOMIC_RELEASE);
}

/* Microseconds: the 99th percentile, and the median. arg: samples. */
static void idle_latency(const struct bench_rcu *rcu, unsigned arg, double ret[BENCH_VALUES])
{
	enum { FIRST = 3 /* starting the worker is not steady */ };
	double *us = calloc(arg, sizeof(*us));
	struct sample s = { .us = 0 };

	if (!us) {
		bench_die("no memory");
	}
	bench_check_calls_wait(rcu);
	rcu->register_thread();
	rcu->offline();
	for (unsigned i = 0; i < FIRST + arg; i++) {
		s.ran = 0;
		s.object.done = take_time;
		s.object.opaque = &s;
		rcu->online();
		s.object.queued_ns = bench_now_ns();
		rcu->call(&s.object);
		rcu->offline();
		while (!__atomic_load_n(&s.ran, __ATOMIC_ACQUIRE)) {
			bench_sleep_us(100);
		}
		if (i >= FIRST) {
			us[i - FIRST] = s.us;
		}
		bench_sleep_us(1000);
	}
	rcu->unregister_thread();
	bench_sort(us, arg);
	ret[0] = us[arg * 99 / 100 - (arg % 100 == 0)];
	ret[1] = us[arg / 2];
	free(us);
}

int main(int argc, char **argv)
{
	const struct bench_rcu *memb = bench_rcu_memb, *qemu = &bench_rcu_qemu;
	struct bench_options o;
	unsigned samples;

	bench_options_parse(&o, argc, argv);
	quick = o.quick;
	samples = quick ? 20 : 200;

	const struct bench_rcu_case cases[] = {
		{ "call_rcu.flood1", "ns", false, flood, 1, memb, NULL, NULL },
		{ "call_rcu.flood1/qemu", "ns", false, flood, 1, qemu, NULL, NULL },
		{ "call_rcu.flood2", "ns", false, flood, 2, memb, NULL, NULL },
		{ "call_rcu.flood2/qemu", "ns", false, flood, 2, qemu, NULL, NULL },
		{ "call_rcu.flood_memory", "MiB", false, flood_memory, 0, memb, NULL,
		  check_memory },
		{ "call_rcu.idle_latency_p99", "us", false, idle_latency, samples, memb, NULL,
		  NULL },
		{ "call_rcu.idle_latency_p99/qemu", "us", false, idle_latency, samples / 5, qemu,
		  NULL, NULL },
	};

	for (unsigned i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		if (bench_wanted(&o, cases[i].name)) {
			bench_rcu_case_run(&o, &cases[i]);
		}
	}
	return 0;
}
