/* SPDX-License-Identifier: MIT */
/*
 * What tracking costs the guest, and what a round of finding out costs the host.
 *
 *   tracker.<tracker>_<rate>         one round: report, re-arm, find each page; ours against QEMU's
 *                                    scheme, written anew from its description
 *   tracker.<tracker>_<rate>/guest   the guest fills a page: tracked by ours against untracked
 *   tracker.<tracker>_<rate>/guest_qemu   the same, ours against QEMU's scheme
 *   tracker.kvm_ring_<rate>/log, /guest_log   ours, the ring against the log
 *
 * trackers: software, uffd_wp, uffd_sync, kvm_log, kvm_ring; rate: 1, 10, 100 and 1000 MB of whole
 * pages a second, chosen at random, in bursts; a round every 50 ms. /guest is 1/slow-down. Without
 * /dev/kvm the cases of KVM are left out, and the program says so.
 *
 * Checked in each run, whoever tracks: the first word of each page, read only when the page was
 * reported, is at the end what is in memory.
 */
#include "bench/tracker.h"
#include "bench/harness.h"
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

enum { SAMPLES_MAX = 1 << 16, ROUNDS_MAX = 1024 };

struct sample {
	double s; /* a page, of so many that were filled in one burst */
	unsigned pages;
};

struct figures {
	double page_ns;
	double round_us;
};

/* One measurement under way. */
struct measuring {
	struct watched watched;
	double seconds, pages_per_s;
	struct sample *sample;
	size_t samples;
	uint32_t value; /* of the next page */
	bool stop;	/* (a) */
};

static int by_time(const void *a, const void *b)
{
	double x = ((const struct sample *)a)->s, y = ((const struct sample *)b)->s;

	return (x > y) - (x < y);
}

/* The mean without the slowest fiftieth: while those lasted something else had the processor. */
static double page_ns(struct measuring *m)
{
	double s = 0, pages = 0;
	size_t n = m->samples - m->samples / 50;

	qsort(m->sample, m->samples, sizeof(*m->sample), by_time);
	for (size_t i = 0; i < n; i++) {
		s += m->sample[i].s * m->sample[i].pages;
		pages += m->sample[i].pages;
	}
	return s / pages * 1e9;
}

static uint32_t random_page(uint64_t *state, uint64_t pages)
{
	*state = *state * 6364136223846793005u + 1442695040888963407u;
	return (uint32_t)((*state >> 33) % pages);
}

static void *guest(void *opaque)
{
	struct measuring *m = opaque;
	double begin = bench_now_s(), t = begin, done = 0;
	static uint32_t page[BURST_MAX];
	uint64_t rnd = 1;

	for (; t - begin < m->seconds; t = bench_now_s()) {
		double due = (t - begin) * m->pages_per_s - done;
		unsigned n = due < BURST_MAX ? (unsigned)due : BURST_MAX;

		if (n == 0) {
			usleep(500);
			continue;
		}
		for (unsigned i = 0; i < n; i++) {
			page[i] = random_page(&rnd, m->watched.pages);
		}
		t = bench_now_s();
		m->watched.burst(&m->watched, page, n, m->value);
		t = bench_now_s() - t;
		if (m->samples < SAMPLES_MAX) {
			m->sample[m->samples++] = (struct sample){ t / n, n };
		}
		m->value += n;
		done += n;
	}
	__atomic_store_n(&m->stop, true, __ATOMIC_RELEASE);
	return NULL;
}

/* Rounds until the guest stops; their median. */
static double rounds(struct measuring *m)
{
	static double us[ROUNDS_MAX];
	unsigned n = 0;

	while (!__atomic_load_n(&m->stop, __ATOMIC_ACQUIRE)) {
		double begin;

		usleep(50000);
		if (!m->watched.way->round || n == ROUNDS_MAX) {
			continue;
		}
		begin = bench_now_s();
		m->watched.way->round(&m->watched);
		us[n++] = (bench_now_s() - begin) * 1e6;
	}
	bench_sort(us, n);
	return n ? us[n / 2] : 0;
}

static void check(struct measuring *m)
{
	struct watched *w = &m->watched;

	w->way->round(w);
	for (uint64_t p = 0; p < w->pages; p++) {
		uint32_t now;

		memcpy(&now, w->host + p * PAGE, sizeof(now));
		if (now != w->seen[p]) {
			bench_die("%s lost page %llu: %u, not %u", w->way->name,
				  (unsigned long long)p, w->seen[p], now);
		}
	}
}

static struct figures measure(const struct way *way, uint64_t bytes, double mb_per_s,
			      double seconds)
{
	struct measuring m = { .seconds = seconds, .pages_per_s = mb_per_s * 1e6 / PAGE };
	struct watched *w = &m.watched;
	struct figures f;
	pthread_t thread;

	w->way = way;
	w->pages = bytes / PAGE;
	w->host = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	w->seen = calloc(w->pages, sizeof(*w->seen));
	m.sample = calloc(SAMPLES_MAX, sizeof(*m.sample));
	if (w->host == MAP_FAILED || !w->seen || !m.sample) {
		bench_die("no memory");
	}
	/* Small pages for all: what a huge page costs to split is another question. */
	(void)madvise(w->host, bytes, MADV_NOHUGEPAGE);
	memset(w->host, 0, bytes);
	m.value = 1;
	way->create(w);
	if (pthread_create(&thread, NULL, guest, &m) != 0) {
		bench_die("no thread");
	}
	f.round_us = rounds(&m);
	pthread_join(thread, NULL);
	if (way->round) {
		check(&m);
	}
	f.page_ns = page_ns(&m);
	way->destroy(w);
	free(m.sample);
	free(w->seen);
	munmap(w->host, bytes);
	return f;
}

/* A quantity of the case, to be filled in. */
static struct bench_result quantity(char *name, size_t bytes, const char *of, const char *what,
				    const char *unit, const char *peer_name)
{
	(void)snprintf(name, bytes, "%s%s", of, what);
	return (struct bench_result){ .name = name, .unit = unit, .peer_name = peer_name };
}

static void compare(const struct bench_options *o, const struct comparison *c, unsigned mb_per_s)
{
	double seconds = o->quick ? 0.2 : 1;
	uint64_t bytes = (o->quick ? 32ull : 256ull) << 20;
	char of[40], name[5][64];
	struct bench_result r[5];

	(void)snprintf(of, sizeof(of), "tracker.%s_%u", c->name, mb_per_s);
	if (!bench_wanted(o, of)) {
		return;
	}
	r[0] = quantity(name[0], sizeof(name[0]), of, "", "us", c->qemu.name);
	r[1] = quantity(name[1], sizeof(name[1]), of, "/guest", "ns", c->untracked.name);
	r[2] = quantity(name[2], sizeof(name[2]), of, "/guest_qemu", "ns", c->qemu.name);
	r[3] = quantity(name[3], sizeof(name[3]), of, "/log", "us", "ours, by the log");
	r[4] = quantity(name[4], sizeof(name[4]), of, "/guest_log", "ns", "ours, by the log");
	for (int run = 0; run < o->runs; run++) {
		struct figures a = measure(&c->ours, bytes, mb_per_s, seconds);
		struct figures b = measure(&c->qemu, bytes, mb_per_s, seconds);
		struct figures u = measure(&c->untracked, bytes, mb_per_s, seconds);

		bench_add(&r[0], a.round_us, b.round_us);
		bench_add(&r[1], a.page_ns, u.page_ns);
		bench_add(&r[2], a.page_ns, b.page_ns);
		if (c->log) {
			b = measure(c->log, bytes, mb_per_s, seconds);
			bench_add(&r[3], a.round_us, b.round_us);
			bench_add(&r[4], a.page_ns, b.page_ns);
		}
	}
	for (int i = 0; i < (c->log ? 5 : 3); i++) {
		bench_print(o, &r[i]);
	}
}

int main(int argc, char **argv)
{
	static const unsigned rates[] = { 1, 10, 100, 1000 };
	static const struct comparison *all[] = { &compare_software, &compare_uffd_wp,
						  &compare_uffd_sync, &compare_kvm_log,
						  &compare_kvm_ring };
	const char *no_kvm = kvm_missing();
	struct bench_options o;

	bench_options_parse(&o, argc, argv);
	for (size_t i = 0; i < sizeof(all) / sizeof(*all); i++) {
		if (no_kvm && strncmp(all[i]->name, "kvm", 3) == 0) {
			(void)fprintf(stderr, "tracker.%s_*: skipped, %s\n", all[i]->name, no_kvm);
			continue;
		}
		for (size_t r = 0; r < sizeof(rates) / sizeof(*rates); r++) {
			compare(&o, all[i], rates[r]);
		}
	}
	return 0;
}
