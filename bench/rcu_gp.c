/* SPDX-License-Identifier: MIT */
/* How long a grace period takes. */
#include "bench/rcu_cases.h"
#include <guestram/rcu.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>

static bool quick;

/* Nanoseconds of a grace period, one after another, the processor ours alone. */
static double grace_periods_ns(const struct bench_rcu *rcu, struct bench_slots *slots, unsigned n)
{
	uint64_t start;
	double ns;

	rcu->register_thread(); /* who writes usually reads, too */
	rcu->offline();
	for (unsigned i = 0; i < n / 10; i++) {
		bench_slot_replace(slots, 0, rcu);
	}
	start = bench_now_ns();
	for (unsigned i = 0; i < n; i++) {
		bench_slot_replace(slots, 0, rcu);
	}
	ns = (double)(bench_now_ns() - start) / n;
	rcu->online();
	rcu->unregister_thread();
	return ns;
}

static void gp_busy(const struct bench_rcu *rcu, unsigned arg, double ret[BENCH_VALUES])
{
	struct bench_reading r;
	struct bench_slots s;

	(void)arg;
	bench_check_waits(rcu);
	bench_slots_init(&s, 1);
	bench_pin(0);
	bench_reading_start(&r, rcu, &s, 1);
	ret[0] = grace_periods_ns(rcu, &s, quick ? 200 : 3000);
	bench_reading_stop(&r);
	bench_slots_free(&s);
}

enum { PARKED = 4 };

struct parked {
	const struct bench_rcu *rcu;
	struct bench_slots *slots;
	bool runs;	/* without RCU, as a vCPU in the guest; otherwise sleeps */
	uint32_t ready; /* (a) */
	uint32_t *stop; /* (a) */
	pthread_t thread;
};

static void some_sections(const struct parked *p)
{
	for (int i = 0; i < 1000; i++) {
		struct bench_object *o;

		p->rcu->lock();
		o = __atomic_load_n(&p->slots->published[0], __ATOMIC_ACQUIRE);
		if (__atomic_load_n(&o->state, __ATOMIC_RELAXED) != BENCH_LIVE) {
			bench_die("%s: a reader that was parked saw a freed object", p->rcu->name);
		}
		p->rcu->unlock();
	}
}

static void *be_parked(void *arg)
{
	struct parked *p = arg;

	p->rcu->register_thread();
	some_sections(p);
	p->rcu->offline();
	__atomic_store_n(&p->ready, 1, __ATOMIC_RELEASE);
	while (!__atomic_load_n(p->stop, __ATOMIC_RELAXED)) {
		if (!p->runs) {
			bench_sleep_us(20000);
		}
	}
	p->rcu->online();
	some_sections(p);
	p->rcu->unregister_thread();
	return NULL;
}

/* arg: whether one of them runs on another processor. */
static void gp_parked(const struct bench_rcu *rcu, unsigned arg, double ret[BENCH_VALUES])
{
	struct parked p[PARKED];
	struct bench_slots s;
	uint32_t stop = 0;

	bench_check_waits(rcu);
	bench_slots_init(&s, 1);
	bench_pin(0);
	for (unsigned i = 0; i < PARKED; i++) {
		p[i] = (struct parked){
			.rcu = rcu, .slots = &s, .runs = arg && i == 0, .stop = &stop
		};
		bench_thread(&p[i].thread, 1, be_parked, &p[i]);
	}
	for (unsigned i = 0; i < PARKED; i++) {
		while (!__atomic_load_n(&p[i].ready, __ATOMIC_ACQUIRE)) {
			bench_sleep_us(100);
		}
	}
	ret[0] = grace_periods_ns(rcu, &s, quick ? 1000 : 20000);
	__atomic_store_n(&stop, 1, __ATOMIC_RELAXED);
	for (unsigned i = 0; i < PARKED; i++) {
		pthread_join(p[i].thread, NULL);
	}
	bench_slots_free(&s);
}

enum { SYNCHRONIZERS = 8 };

struct synchronizer {
	const struct bench_rcu *rcu;
	struct bench_slots *slots;
	unsigned slot;
	bool reads;
	uint32_t *start, *stop; /* (a) */
	uint64_t done;
	pthread_t thread;
};

static void *synchronize_all_the_time(void *arg)
{
	struct synchronizer *s = arg;

	s->rcu->register_thread();
	while (!__atomic_load_n(s->start, __ATOMIC_ACQUIRE)) {
		sched_yield();
	}
	while (!__atomic_load_n(s->stop, __ATOMIC_RELAXED)) {
		if (s->reads) {
			s->rcu->lock();
			s->rcu->unlock();
		}
		bench_slot_replace(s->slots, s->slot, s->rcu);
		s->done++;
	}
	s->rcu->unregister_thread();
	return NULL;
}

enum { ALONE, THEY_READ, WITH_READER };

/* Calls served per second, of all threads together. arg: who reads meanwhile. */
static void gp_concurrent(const struct bench_rcu *rcu, unsigned arg, double ret[BENCH_VALUES])
{
	struct synchronizer t[SYNCHRONIZERS];
	uint32_t start = 0, stop = 0;
	struct bench_reading r;
	struct bench_slots s;
	uint64_t begin, done = 0;

	bench_check_waits(rcu);
	bench_slots_init(&s, SYNCHRONIZERS);
	if (arg == WITH_READER) {
		bench_reading_start(&r, rcu, &s, 1);
	}
	for (unsigned i = 0; i < SYNCHRONIZERS; i++) {
		t[i] = (struct synchronizer){ .rcu = rcu,
					      .slots = &s,
					      .slot = i,
					      .reads = arg == THEY_READ,
					      .start = &start,
					      .stop = &stop };
		bench_thread(&t[i].thread, BENCH_ANY_CPU, synchronize_all_the_time, &t[i]);
	}
	begin = bench_now_ns();
	__atomic_store_n(&start, 1, __ATOMIC_RELEASE);
	bench_sleep_us(quick ? 20000 : 300000);
	__atomic_store_n(&stop, 1, __ATOMIC_RELAXED);
	for (unsigned i = 0; i < SYNCHRONIZERS; i++) {
		pthread_join(t[i].thread, NULL);
		done += t[i].done;
	}
	ret[0] = (double)done * 1e9 / (double)(bench_now_ns() - begin);
	if (arg == WITH_READER) {
		bench_reading_stop(&r);
	}
	bench_slots_free(&s);
}

/*
 * The peer's polled grace periods, by the scheme that liburcu has had since 0.14, over its
 * call_rcu: one callback in flight; its end completes what was asked for before it began, and
 * starts the next one if somebody asked since.
 */
struct polled {
	pthread_mutex_t lock;
	struct bench_object callback;
	const struct bench_rcu *rcu;
	uint64_t current; /* (a) grace periods completed */
	uint64_t latest;  /* (l) asked for */
	bool active;	  /* (l) a callback is queued */
};

static void polled_done(struct bench_object *o)
{
	struct polled *p = o->opaque;
	bool again;

	pthread_mutex_lock(&p->lock);
	__atomic_store_n(&p->current, p->current + 1, __ATOMIC_RELEASE);
	again = p->latest > p->current;
	p->active = again;
	if (again) {
		p->rcu->call(o);
	}
	pthread_mutex_unlock(&p->lock);
}

static uint64_t polled_start(struct polled *p)
{
	uint64_t cookie;

	pthread_mutex_lock(&p->lock);
	cookie = p->current + (p->active ? 2 : 1);
	if (cookie > p->latest) {
		p->latest = cookie;
	}
	if (!p->active) {
		p->active = true;
		p->rcu->call(&p->callback);
	}
	pthread_mutex_unlock(&p->lock);
	return cookie;
}

/* From the start until it is over; ours by its own functions. The reader is elsewhere, idle. */
static void poll_once(const struct bench_rcu *rcu, struct polled *p)
{
	if (rcu == &bench_rcu_guestram) {
		uint64_t cookie = gr_rcu_start_poll();

		while (!gr_rcu_poll_state(cookie)) {
			sched_yield();
		}
	} else {
		uint64_t cookie = polled_start(p);

		while (__atomic_load_n(&p->current, __ATOMIC_ACQUIRE) < cookie) {
			sched_yield();
		}
	}
}

static void gp_poll(const struct bench_rcu *rcu, unsigned arg, double ret[BENCH_VALUES])
{
	struct polled p = { .lock = PTHREAD_MUTEX_INITIALIZER, .rcu = rcu };
	unsigned n = rcu == &bench_rcu_guestram ? 2000 : 20;
	struct bench_slots s;
	uint64_t total = 0;

	(void)arg;
	p.callback.done = polled_done;
	p.callback.opaque = &p;
	bench_check_waits(rcu);
	bench_slots_init(&s, 1);
	poll_once(rcu, &p); /* starts the thread */
	bench_sleep_us(1000);
	for (unsigned i = 0; i < n; i++) {
		uint64_t start = bench_now_ns();

		poll_once(rcu, &p);
		total += bench_now_ns() - start;
	}
	ret[0] = (double)total / n;
	bench_slots_free(&s);
}

void bench_gp_cases(const struct bench_options *o)
{
	const struct bench_rcu *memb = bench_rcu_memb, *qemu = &bench_rcu_qemu;
	const struct bench_rcu_case cases[] = {
		{ "rcu.gp_busy", "ns", false, gp_busy, 0, memb, NULL, NULL },
		{ "rcu.gp_busy/qemu", "ns", false, gp_busy, 0, qemu, NULL, NULL },
		{ "rcu.gp_parked", "ns", false, gp_parked, 1, memb, NULL, NULL },
		{ "rcu.gp_parked/asleep", "ns", false, gp_parked, 0, memb, NULL, NULL },
		{ "rcu.gp_concurrent8", "/s", true, gp_concurrent, ALONE, memb, NULL, NULL },
		{ "rcu.gp_concurrent8/they_read", "/s", true, gp_concurrent, THEY_READ, memb, NULL,
		  NULL },
		{ "rcu.gp_concurrent8/reader", "/s", true, gp_concurrent, WITH_READER, memb, NULL,
		  NULL },
		{ "rcu.gp_poll", "ns", false, gp_poll, 0, memb,
		  "liburcu-memb's call_rcu, polled as since 0.14 (re-implemented)", NULL },
	};

	quick = o->quick;
	for (unsigned i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		if (bench_wanted(o, cases[i].name)) {
			bench_rcu_case_run(o, &cases[i]);
		}
	}
}
