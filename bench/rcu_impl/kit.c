/* SPDX-License-Identifier: MIT */
#include "bench/rcu_impl/kit.h"
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

void bench_thread(pthread_t *ret, int cpu, void *(*fn)(void *), void *arg)
{
	cpu_set_t set = bench_cpu_set(cpu);
	pthread_attr_t attr;
	int err;

	pthread_attr_init(&attr);
	pthread_attr_setaffinity_np(&attr, sizeof(set), &set);
	err = pthread_create(ret, &attr, fn, arg);
	pthread_attr_destroy(&attr);
	if (err != 0) {
		bench_die("no thread: %s", strerror(err));
	}
}

void bench_sleep_us(uint64_t us)
{
	struct timespec ts = { (time_t)(us / 1000000), (long)(us % 1000000) * 1000 };

	while (nanosleep(&ts, &ts) != 0 && errno == EINTR) {
	}
}

void bench_nothing(void)
{
}

void bench_isolated(bench_measure *measure, const struct bench_rcu *rcu, unsigned arg,
		    double ret[BENCH_VALUES])
{
	size_t bytes = BENCH_VALUES * sizeof(double);
	double *shared =
		mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	int status;
	pid_t pid;

	if (shared == MAP_FAILED) {
		bench_die("no shared memory: %s", strerror(errno));
	}
	(void)bench_cpus(); /* asked before anything is pinned */
	pid = fork();
	if (pid < 0) {
		bench_die("fork: %s", strerror(errno));
	}
	if (pid == 0) {
		rcu->init();
		measure(rcu, arg, shared);
		_exit(0);
	}
	if (waitpid(pid, &status, 0) != pid || status != 0) {
		bench_die("%s: the measuring process ended with status 0x%x", rcu->name, status);
	}
	memcpy(ret, shared, bytes);
	munmap(shared, bytes);
}

void bench_slots_init(struct bench_slots *s, unsigned n)
{
	s->n = n;
	s->published = calloc(n, sizeof(*s->published));
	s->objects = aligned_alloc(64, (size_t)n * 2 * sizeof(*s->objects));
	if (!s->published || !s->objects) {
		bench_die("no memory");
	}
	memset(s->objects, 0, (size_t)n * 2 * sizeof(*s->objects));
	for (size_t i = 0; i < n; i++) {
		s->published[i] = &s->objects[2 * i];
		s->published[i]->state = BENCH_LIVE;
	}
}

void bench_slots_free(struct bench_slots *s)
{
	free(s->published);
	free(s->objects);
}

void bench_slot_replace(struct bench_slots *s, unsigned slot, const struct bench_rcu *rcu)
{
	struct bench_object *old = s->published[slot];
	struct bench_object *other = &s->objects[2 * slot];

	other += old == other;
	__atomic_store_n(&other->state, BENCH_LIVE, __ATOMIC_RELAXED);
	__atomic_store_n(&s->published[slot], other, __ATOMIC_RELEASE);
	rcu->synchronize();
	__atomic_store_n(&old->state, BENCH_DEAD, __ATOMIC_RELAXED);
}

static void *reading(void *arg)
{
	struct bench_reading *r = arg;

	r->rcu->register_thread();
	r->rcu->read_until(&r->reader);
	r->rcu->unregister_thread();
	return NULL;
}

void bench_reading_start(struct bench_reading *r, const struct bench_rcu *rcu,
			 struct bench_slots *slots, int cpu)
{
	*r = (struct bench_reading){ .rcu = rcu };
	r->reader.slots = slots->published;
	r->reader.n_slots = slots->n;
	bench_thread(&r->thread, cpu, reading, r);
	/* Warm: well past what any implementation does only for new readers. */
	while (__atomic_load_n(&r->reader.sections, __ATOMIC_RELAXED) < 10000) {
		bench_sleep_us(100);
	}
}

void bench_reading_stop(struct bench_reading *r)
{
	__atomic_store_n(&r->reader.stop, 1, __ATOMIC_RELAXED);
	pthread_join(r->thread, NULL);
	if (r->reader.bad != 0) {
		bench_die("%s: readers saw freed objects %llu times", r->rcu->name,
			  (unsigned long long)r->reader.bad);
	}
}

struct holder {
	const struct bench_rcu *rcu;
	uint32_t inside, leaving; /* (a) */
	uint32_t leaving_at_call; /* what the callback saw */
};

static void *hold_section(void *arg)
{
	struct holder *h = arg;

	h->rcu->register_thread();
	h->rcu->lock();
	__atomic_store_n(&h->inside, 1, __ATOMIC_RELEASE);
	bench_sleep_us(2000);
	__atomic_store_n(&h->leaving, 1, __ATOMIC_RELEASE);
	h->rcu->unlock();
	h->rcu->unregister_thread();
	return NULL;
}

static void start_holding(struct holder *h, pthread_t *ret)
{
	bench_thread(ret, BENCH_ANY_CPU, hold_section, h);
	while (!__atomic_load_n(&h->inside, __ATOMIC_ACQUIRE)) {
		bench_sleep_us(100);
	}
}

void bench_check_waits(const struct bench_rcu *rcu)
{
	struct holder h = { .rcu = rcu };
	pthread_t thread;

	start_holding(&h, &thread);
	rcu->synchronize();
	if (!__atomic_load_n(&h.leaving, __ATOMIC_ACQUIRE)) {
		bench_die("%s: a grace period did not wait for a section", rcu->name);
	}
	pthread_join(thread, NULL);
}

static void note_leaving(struct bench_object *o)
{
	struct holder *h = o->opaque;

	h->leaving_at_call = __atomic_load_n(&h->leaving, __ATOMIC_ACQUIRE);
}

void bench_check_calls_wait(const struct bench_rcu *rcu)
{
	struct holder h = { .rcu = rcu };
	struct bench_object o = { .done = note_leaving, .opaque = &h };
	pthread_t thread;

	rcu->register_thread();
	start_holding(&h, &thread);
	rcu->call(&o);
	rcu->unregister_thread();
	rcu->barrier();
	if (!h.leaving_at_call) {
		bench_die("%s: a callback did not wait for a section", rcu->name);
	}
	pthread_join(thread, NULL);
}

void bench_check_readers(const struct bench_rcu *rcu)
{
	uint64_t end = bench_now_ns() + 10000000;
	struct bench_reading r;
	struct bench_slots s;

	bench_slots_init(&s, 1);
	bench_reading_start(&r, rcu, &s, 1);
	while (bench_now_ns() < end) {
		bench_slot_replace(&s, 0, rcu);
	}
	bench_reading_stop(&r);
	bench_slots_free(&s);
}
