/* SPDX-License-Identifier: MIT */
#include "bench/together.h"
#include "bench/harness.h"
#include <pthread.h>
#include <stdlib.h>

struct stretch {
	unsigned here; /* threads that have come to its beginning */
	double begin[BENCH_TOGETHER_MAX], end[BENCH_TOGETHER_MAX];
};

struct together {
	unsigned threads, stretches;
	void (*work)(void *opaque, unsigned thread);
	void *opaque;
	struct stretch *stretch;
};

struct runner {
	struct together *t;
	unsigned number;
};

static void *run(void *opaque)
{
	struct runner *r = opaque;
	struct together *t = r->t;

	bench_pin((int)r->number);
	for (unsigned i = 0; i < t->stretches; i++) {
		struct stretch *s = &t->stretch[i];

		(void)__atomic_add_fetch(&s->here, 1, __ATOMIC_ACQ_REL);
		while (__atomic_load_n(&s->here, __ATOMIC_ACQUIRE) < t->threads) {
			if (bench_cpus() < t->threads) {
				(void)sched_yield();
			}
		}
		s->begin[r->number] = bench_now_s();
		t->work(t->opaque, r->number);
		s->end[r->number] = bench_now_s();
	}
	return NULL;
}

/* From the first beginning to the last end; *ret_alone: how long not all of them ran. */
static double duration_s(const struct stretch *s, unsigned threads, double *ret_alone)
{
	double first = s->begin[0], late = s->begin[0], early = s->end[0], last = s->end[0];

	for (unsigned i = 1; i < threads; i++) {
		first = s->begin[i] < first ? s->begin[i] : first;
		late = s->begin[i] > late ? s->begin[i] : late;
		early = s->end[i] < early ? s->end[i] : early;
		last = s->end[i] > last ? s->end[i] : last;
	}
	*ret_alone = late - first + (last - early);
	return last - first;
}

double bench_together_s(unsigned threads, unsigned stretches,
			void (*work)(void *opaque, unsigned thread), void *opaque)
{
	struct together t = { threads, stretches, work, opaque,
			      calloc(stretches, sizeof(struct stretch)) };
	struct runner r[BENCH_TOGETHER_MAX];
	pthread_t thread[BENCH_TOGETHER_MAX];
	double best = -1, shortest_alone = -1;

	if (!t.stretch || threads > BENCH_TOGETHER_MAX) {
		bench_die("no memory, or too many threads");
	}
	for (unsigned i = 0; i < threads; i++) {
		r[i] = (struct runner){ &t, i };
		if (pthread_create(&thread[i], NULL, run, &r[i]) != 0) {
			bench_die("no thread");
		}
	}
	for (unsigned i = 0; i < threads; i++) {
		pthread_join(thread[i], NULL);
	}
	for (unsigned i = 0; i < stretches; i++) {
		double alone, s = duration_s(&t.stretch[i], threads, &alone);
		bool together = alone < s / 10;

		/* If there is none, on one processor, the one that comes nearest to it. */
		if (together ? best < 0 || shortest_alone >= 0 || s < best
			     : best < 0 || (shortest_alone >= 0 && alone / s < shortest_alone)) {
			best = s;
			shortest_alone = together ? -1 : alone / s;
		}
	}
	free(t.stretch);
	return best;
}
