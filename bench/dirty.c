/* SPDX-License-Identifier: MIT */
/*
 * Dirty memory against a flat bitmap (bench/flat.h), in the same run, in alternation.
 *
 *   dirty.mark_set1            a page whose bit is set already, one thread
 *   dirty.mark_set2            pages of one word whose bits are set, two threads
 *   dirty.mark_range256        256 clean pages in one call, against page by page
 *   dirty.harvest_sparse_64g   0.001 % of 64 GiB (1 TiB, 12 TiB) dirty, at random
 *   dirty.harvest_sparse_1t
 *   dirty.harvest_sparse_12t
 *   dirty.harvest_1000pages_12t  1000 pages in 12 TiB, against the same in 64 GiB (ours too)
 *   dirty.harvest_full_64g     every page dirty
 *
 * A harvest is what gr_dirty_epoch_begin() does, its process-wide fence included; ".../whole"
 * adds finding each page and ticking it off. Before each measurement the caches are filled with
 * other things: a migration sends pages between two harvests. Another thread runs meanwhile, so
 * that the fence has somebody to interrupt. Every run checks that the pages found are those
 * that were marked.
 */
#include "bench/flat.h"
#include "bench/harness.h"
#include "bench/together.h"
#include <guestram/dirty.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define GIB	      ((uint64_t)1 << 30)
#define PAGES_OF(gib) ((uint64_t)(gib) * (GIB / 4096))

static const char flat_name[] = "flat bitmap (QEMU's scheme)";

static uint64_t next_random(uint64_t *state)
{
	uint64_t z = *state += 0x9e3779b97f4a7c15u;

	z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
	z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
	return z ^ (z >> 31);
}

/* ---- marks ---------------------------------------------------------------------------- */

struct marking {
	struct gr_dirty *dirty; /* either */
	struct flat *flat;
	uint64_t pages; /* marked over and over */
	uint64_t marks;
};

/* One loop each: what is compared is the mark. */
static void mark_over_and_over(void *opaque, unsigned thread)
{
	const struct marking *m = opaque;
	struct gr_dirty *dirty = m->dirty;
	struct flat *flat = m->flat;
	uint64_t mask = m->pages - 1, n = m->marks, page = 0;

	(void)thread;
	gr_rcu_read_lock();
	if (dirty) {
		for (uint64_t i = 0; i < n; i++, page = (page + 7) & mask) {
			gr_dirty_mark(dirty, page);
		}
	} else {
		for (uint64_t i = 0; i < n; i++, page = (page + 7) & mask) {
			flat_mark(flat, page);
		}
	}
	gr_rcu_read_unlock();
}

/* ns for a mark. */
static double mark_ns(const struct bench_options *o, struct marking *m, unsigned threads)
{
	unsigned stretches = o->quick ? 2 : 40;

	m->marks = o->quick ? 100000 : 500000 / threads;
	return bench_together_s(threads, stretches, mark_over_and_over, m) * 1e9 / (double)m->marks;
}

static struct gr_dirty *dirty_create(uint64_t pages, struct gr_dirty_consumer **ret_consumer)
{
	struct gr_dirty *dirty;
	struct gr_error err;

	if (gr_dirty_create(pages, &dirty, &err) < 0 ||
	    gr_dirty_consumer_add(dirty, "bench", GR_DIRTY_START_CLEAN, ret_consumer, &err) < 0) {
		bench_die("%s", err.msg);
	}
	return dirty;
}

static uint64_t harvest(struct gr_dirty_consumer *c)
{
	uint64_t pages;

	if (gr_dirty_epoch_begin(c, &pages, NULL) < 0) {
		bench_die("an epoch is open");
	}
	return pages;
}

static void mark_set(const struct bench_options *o, const char *name, uint64_t pages,
		     unsigned threads)
{
	struct bench_result r = { .name = name, .unit = "ns", .peer_name = "atomic OR" };
	struct gr_dirty_consumer *c;
	struct gr_dirty *dirty = dirty_create(PAGES_OF(8), &c);
	struct flat *flat = flat_create(PAGES_OF(8));
	struct marking m[2] = { { .dirty = dirty, .pages = pages },
				{ .flat = flat, .pages = pages } };

	for (int run = -1; run < o->runs; run++) {
		double ours = mark_ns(o, &m[0], threads);
		double peer = mark_ns(o, &m[1], threads);

		if (run >= 0) {
			bench_add(&r, ours, peer);
		}
	}
	if (harvest(c) != pages || flat_harvest(flat) != pages) {
		bench_die("%s: marks were lost", name);
	}
	bench_print(o, &r);
	gr_dirty_consumer_del(c);
	gr_dirty_free(dirty);
	flat_free(flat);
}

static double ranges_ns(struct gr_dirty *dirty, uint64_t ranges, bool page_by_page)
{
	double begin = bench_now_s();

	gr_rcu_read_lock();
	for (uint64_t i = 0; i < ranges; i++) {
		uint64_t first = i * 256;

		if (!page_by_page) {
			gr_dirty_mark_range(dirty, first, 256);
			continue;
		}
		for (uint64_t page = first; page < first + 256; page++) {
			gr_dirty_mark(dirty, page);
		}
	}
	gr_rcu_read_unlock();
	return (bench_now_s() - begin) * 1e9 / (double)ranges;
}

/* Pages that are clean, in memory that is there: as a device's writes between two rounds. */
static void mark_range(const struct bench_options *o)
{
	struct bench_result r = { .name = "dirty.mark_range256",
				  .unit = "ns",
				  .peer_name = "page by page" };
	struct bench_result flat_r = r;
	uint64_t ranges = o->quick ? 512 : 8192;
	struct gr_dirty_consumer *c;
	struct gr_dirty *dirty = dirty_create(PAGES_OF(8), &c);
	struct flat *flat = flat_create(PAGES_OF(8));

	flat_r.name = "dirty.mark_range256/qemu";
	flat_r.peer_name = "range by words of a flat bitmap";
	for (int run = -1; run < o->runs; run++) {
		double ns[3], begin;

		for (int i = 0; i < 2; i++) {
			ns[i] = ranges_ns(dirty, ranges, i == 1);
			if (harvest(c) != ranges * 256) {
				bench_die("dirty.mark_range256: marks were lost");
			}
			gr_dirty_epoch_commit(c);
		}
		begin = bench_now_s();
		for (uint64_t i = 0; i < ranges; i++) {
			flat_mark_range(flat, i * 256, 256);
		}
		ns[2] = (bench_now_s() - begin) * 1e9 / (double)ranges;
		if (flat_harvest(flat) != ranges * 256) {
			bench_die("dirty.mark_range256: the peer lost marks");
		}
		flat_clear(flat, 0, ranges * 256);
		if (run >= 0) {
			bench_add(&r, ns[0], ns[1]);
			bench_add(&flat_r, ns[0], ns[2]);
		}
	}
	bench_print(o, &r);
	bench_print(o, &flat_r);
	gr_dirty_consumer_del(c);
	gr_dirty_free(dirty);
	flat_free(flat);
}

/* ---- harvests ------------------------------------------------------------------------- */

/* More than any last-level cache here has. */
static void fill_caches(void)
{
	static volatile uint64_t *other;
	enum { WORDS = 16 << 20 };

	if (!other) {
		other = malloc(WORDS * sizeof(*other));
		if (!other) {
			bench_die("no memory");
		}
	}
	for (size_t i = 0; i < WORDS; i += 8) {
		other[i]++;
	}
}

static void *stay_busy(void *opaque)
{
	bool *stop = opaque;

	while (!__atomic_load_n(stop, __ATOMIC_RELAXED)) {
	}
	return NULL;
}

struct harvests {
	const char *name;
	uint64_t guest_pages;
	uint64_t dirty_pages; /* 0: all of them */
};

/* Marks so many different pages of both, the same ones. flat may be NULL. */
static void make_dirty(const struct harvests *h, struct gr_dirty *dirty, struct flat *flat,
		       uint64_t seed)
{
	gr_rcu_read_lock();
	for (uint64_t i = 0; i < h->dirty_pages; i++) {
		uint64_t page = next_random(&seed) % h->guest_pages;

		gr_dirty_mark(dirty, page);
		if (flat) {
			flat_mark(flat, page);
		}
	}
	/* Word by word: what single stores leave behind. */
	for (uint64_t page = 0; h->dirty_pages == 0 && page < h->guest_pages; page += 64) {
		gr_dirty_mark_range(dirty, page, 64);
		flat_mark_range(flat, page, 64);
	}
	gr_rcu_read_unlock();
}

struct found {
	double begin_s, whole_s;
	uint64_t pages, sum;
};

static struct found take_ours(struct gr_dirty_consumer *c)
{
	struct found f = { 0 };
	uint64_t first, pages;
	double begin;

	fill_caches();
	begin = bench_now_s();
	f.pages = harvest(c);
	f.begin_s = bench_now_s() - begin;
	for (uint64_t at = 0; gr_dirty_epoch_next(c, at, &first, &pages); at = first + pages) {
		f.sum += first * pages;
		gr_dirty_epoch_done(c, first, pages);
	}
	gr_dirty_epoch_commit(c);
	f.whole_s = bench_now_s() - begin;
	return f;
}

static struct found take_flat(struct flat *flat)
{
	struct found f = { 0 };
	uint64_t first, pages;
	double begin;

	fill_caches();
	begin = bench_now_s();
	f.pages = flat_harvest(flat);
	/* Here it would wait for nobody: each of its marks was a fence. */
	f.begin_s = bench_now_s() - begin;
	for (uint64_t at = 0; flat_next(flat, at, &first, &pages); at = first + pages) {
		f.sum += first * pages;
		flat_clear(flat, first, pages);
	}
	f.whole_s = bench_now_s() - begin;
	return f;
}

static void same(const char *name, const struct found *a, const struct found *b)
{
	if (a->pages != b->pages || a->sum != b->sum) {
		bench_die("%s: %llu pages found, the peer found %llu, or other ones", name,
			  (unsigned long long)a->pages, (unsigned long long)b->pages);
	}
}

static void touch_all(struct gr_dirty *dirty, struct gr_dirty_consumer *c, uint64_t guest_pages)
{
	/* Both sets of the consumer: they take turns. */
	for (int i = 0; i < 2; i++) {
		gr_rcu_read_lock();
		for (uint64_t page = 0; page < guest_pages; page += 64) {
			gr_dirty_mark(dirty, page);
		}
		gr_rcu_read_unlock();
		(void)harvest(c);
		gr_dirty_epoch_commit(c);
	}
}

static void harvests(const struct bench_options *o, const struct harvests *h)
{
	char whole_name[64];
	struct bench_result r = { .name = h->name, .unit = "us", .peer_name = flat_name };
	struct bench_result whole = { .name = whole_name, .unit = "us", .peer_name = flat_name };
	struct gr_dirty_consumer *c;
	struct gr_dirty *dirty = dirty_create(h->guest_pages, &c);
	struct flat *flat = flat_create(h->guest_pages);

	(void)snprintf(whole_name, sizeof(whole_name), "%s/whole", h->name);
	touch_all(dirty, c, h->guest_pages);
	for (int run = -1; run < o->runs; run++) {
		struct found ours, peer;

		make_dirty(h, dirty, flat, (uint64_t)run + 77);
		ours = take_ours(c);
		peer = take_flat(flat);
		same(h->name, &ours, &peer);
		if (run >= 0) {
			bench_add(&r, ours.begin_s * 1e6, peer.begin_s * 1e6);
			bench_add(&whole, ours.whole_s * 1e6, peer.whole_s * 1e6);
		}
	}
	bench_print(o, &r);
	bench_print(o, &whole);
	gr_dirty_consumer_del(c);
	gr_dirty_free(dirty);
	flat_free(flat);
}

/* Cost follows what is dirty, not what exists. */
static void thousand_pages(const struct bench_options *o)
{
	struct bench_result r = { .name = "dirty.harvest_1000pages_12t",
				  .unit = "us",
				  .peer_name = "the same 1000 in 64 GiB" };
	struct harvests h[2] = { { r.name, PAGES_OF(12 << 10), 1000 },
				 { r.name, PAGES_OF(64), 1000 } };
	struct gr_dirty_consumer *c[2];
	struct gr_dirty *dirty[2];

	for (int i = 0; i < 2; i++) {
		dirty[i] = dirty_create(h[i].guest_pages, &c[i]);
		touch_all(dirty[i], c[i], h[i].guest_pages);
	}
	for (int run = -1; run < o->runs; run++) {
		struct found f[2];

		for (int i = 0; i < 2; i++) {
			make_dirty(&h[i], dirty[i], NULL, (uint64_t)run + 5);
			f[i] = take_ours(c[i]);
			if (f[i].pages > 1000 || f[i].pages < 990) {
				bench_die("%s: %llu pages found", r.name,
					  (unsigned long long)f[i].pages);
			}
		}
		if (run >= 0) {
			bench_add(&r, f[0].begin_s * 1e6, f[1].begin_s * 1e6);
		}
	}
	bench_print(o, &r);
	for (int i = 0; i < 2; i++) {
		gr_dirty_consumer_del(c[i]);
		gr_dirty_free(dirty[i]);
	}
}

static void harvest_cases(const struct bench_options *o)
{
	static const struct harvests cases[] = {
		{ "dirty.harvest_sparse_64g", PAGES_OF(64), PAGES_OF(64) / 100000 },
		{ "dirty.harvest_sparse_1t", PAGES_OF(1 << 10), PAGES_OF(1 << 10) / 100000 },
		{ "dirty.harvest_sparse_12t", PAGES_OF(12 << 10), PAGES_OF(12 << 10) / 100000 },
		{ "dirty.harvest_full_64g", PAGES_OF(64), 0 },
	};
	bool stop = false;
	pthread_t busy;

	if (pthread_create(&busy, NULL, stay_busy, &stop) != 0) {
		bench_die("no thread");
	}
	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		bool big = cases[i].guest_pages > PAGES_OF(64);

		if (bench_wanted(o, cases[i].name) && !(o->quick && big)) {
			harvests(o, &cases[i]);
		}
	}
	if (bench_wanted(o, "dirty.harvest_1000pages_12t") && !o->quick) {
		thousand_pages(o);
	}
	__atomic_store_n(&stop, true, __ATOMIC_RELAXED);
	pthread_join(busy, NULL);
}

int main(int argc, char **argv)
{
	struct bench_options o;

	bench_options_parse(&o, argc, argv);
	if (bench_wanted(&o, "dirty.mark_set1")) {
		mark_set(&o, "dirty.mark_set1", 4096, 1);
	}
	if (bench_wanted(&o, "dirty.mark_set2")) {
		mark_set(&o, "dirty.mark_set2", 64, 2);
	}
	if (bench_wanted(&o, "dirty.mark_range256")) {
		mark_range(&o);
	}
	harvest_cases(&o);
	return 0;
}
