/* SPDX-License-Identifier: MIT */
/*
 * Dirty memory with everything at once. The oracle is a copy: a "page" is a counter that
 * markers raise and then mark; a consumer that copies what its epochs name must end with
 * the same counters as the memory, whatever was aborted, grown, added or removed meanwhile.
 */
#include "base/atomic.h"
#include "bitmap/dirty.h"
#include "harness.h"
#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/time.h>
#include <time.h>

#define CHUNK ((uint64_t)GR_BITS_CHUNK_PAGES)

enum { SLOTS = 2048, MARKERS = 2, COPIERS = 2 };

static struct gr_dirty *dirty;
static uint64_t memory[SLOTS]; /* (a) what a guest would store to */
static bool stop_markers;       /* (a) */
static bool stop_copiers;       /* (a) after the markers have stopped */
static uint64_t rounds_done;   /* (a) of all copiers */

static double now(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (double)ts.tv_sec + (double)ts.tv_nsec * 1e-9;
}

static void sleep_for(double seconds)
{
	for (double end = now() + seconds; now() < end;) {
		struct timespec ts = { 0, 5000000 };

		nanosleep(&ts, NULL);
	}
}

/* Slots lie in eight chunks, eight in a row, some across words. */
static uint64_t page_of(unsigned int slot)
{
	return (uint64_t)(slot / 8 % 8) * CHUNK + (uint64_t)(slot / 64) * 5003 + slot % 8;
}

static void store_and_mark(unsigned int slot, uint64_t value)
{
	gr_rcu_read_lock();
	gr_store_relaxed(&memory[slot], value);
	gr_dirty_mark(dirty, page_of(slot));
	gr_rcu_read_unlock();
}

static void *marker(void *arg)
{
	unsigned int me = (unsigned int)(uintptr_t)arg;
	uint64_t rng = test_seed() + me, n = 0;

	while (!gr_load_relaxed(&stop_markers)) {
		uint64_t r = test_rand(&rng);
		/* Each slot has one writer; most stores go to a few hot ones. */
		unsigned int range = r % 4 ? 64 : SLOTS;
		unsigned int slot = (unsigned int)(test_rand(&rng) % range) / MARKERS * MARKERS + me;

		if (page_of(slot) >= gr_dirty_pages(dirty)) {
			continue;
		}
		n++;
		if (r % 64 == 1) {
			unsigned int row = slot / 8 * 8;

			/* A row of slots at once: mine in it, then a range mark. */
			gr_rcu_read_lock();
			for (unsigned int i = row + me; i < row + 8; i += MARKERS) {
				gr_store_relaxed(&memory[i], n);
			}
			gr_dirty_mark_range(dirty, page_of(row), 8);
			gr_rcu_read_unlock();
		} else {
			store_and_mark(slot, n);
		}
	}
	return NULL;
}

struct copier {
	pthread_t thread;
	uint64_t seed;
	bool comes_and_goes;
	uint64_t copy[SLOTS];
};

static unsigned int slot_of(uint64_t page)
{
	for (unsigned int i = 0; i < SLOTS; i += 8) {
		if (page - page_of(i) < 8) {
			return i + (unsigned int)(page - page_of(i));
		}
	}
	return SLOTS;
}

/* Copies what the open epoch names; gives up half way now and then. */
static void copy_epoch(struct copier *k, struct gr_dirty_consumer *c, bool may_fail, uint64_t *rng)
{
	uint64_t first, pages, counted = 0, in_epoch = gr_dirty_epoch_pages(c);
	bool give_up = may_fail && test_rand(rng) % 3 == 0;

	for (uint64_t at = 0; gr_dirty_epoch_next(c, at, &first, &pages); at = first + pages) {
		counted += pages;
		for (uint64_t p = first; p < first + pages; p++) {
			unsigned int slot = slot_of(p);

			ASSERT_LT(slot, (unsigned int)SLOTS); /* nobody marked another one */
			if (give_up && test_rand(rng) % 2) {
				continue;
			}
			k->copy[slot] = gr_load_relaxed(&memory[slot]);
			if (give_up) {
				gr_dirty_epoch_done(c, p, 1);
			}
		}
	}
	ASSERT_EQ(counted, in_epoch);
	ASSERT_EQ(give_up ? gr_dirty_epoch_abort(c) : gr_dirty_epoch_commit(c), 0);
}

static void copy_all(struct copier *k)
{
	for (unsigned int i = 0; i < SLOTS; i++) {
		k->copy[i] = gr_load_relaxed(&memory[i]);
	}
}

static void *copier(void *arg)
{
	struct copier *k = arg;
	uint64_t rng = k->seed;
	struct gr_dirty_consumer *c = NULL;

	while (!gr_load_acquire(&stop_copiers)) {
		if (!c) {
			ASSERT_EQ(gr_dirty_consumer_add(dirty, "copier", GR_DIRTY_START_CLEAN, &c,
							NULL), 0);
			copy_all(k); /* the first full copy comes after the add */
		}
		ASSERT_EQ(gr_dirty_epoch_begin(c, NULL, NULL), 0);
		if (k->comes_and_goes && test_rand(&rng) % 8 == 0) {
			gr_dirty_consumer_del(c); /* with the epoch open */
			c = NULL;
			continue;
		}
		copy_epoch(k, c, true, &rng);
		(void)gr_add_relaxed(&rounds_done, 1);
	}
	/* Markers have stopped: one more epoch must make it equal. */
	if (c) {
		ASSERT_EQ(gr_dirty_epoch_begin(c, NULL, NULL), 0);
		copy_epoch(k, c, false, &rng);
		for (unsigned int i = 0; i < SLOTS; i++) {
			if (k->copy[i] != memory[i]) {
				FAIL("slot %u (page %llu): copy %llu, memory %llu", i,
				     (unsigned long long)page_of(i), (unsigned long long)k->copy[i],
				     (unsigned long long)memory[i]);
			}
		}
		gr_dirty_consumer_del(c);
	}
	return NULL;
}

static void start_and_stop(struct copier *copiers, double seconds)
{
	pthread_t markers[MARKERS];

	gr_store_release(&stop_markers, false);
	gr_store_release(&stop_copiers, false);
	for (uintptr_t i = 0; i < MARKERS; i++) {
		ASSERT_EQ(pthread_create(&markers[i], NULL, marker, (void *)i), 0);
	}
	for (unsigned int i = 0; i < COPIERS + 1; i++) {
		ASSERT_EQ(pthread_create(&copiers[i].thread, NULL, copier, &copiers[i]), 0);
	}
	sleep_for(seconds / 2);
	ASSERT_EQ(gr_dirty_grow(dirty, gr_dirty_pages(dirty) + 1, NULL), 0);
	sleep_for(seconds / 2);
	gr_store_release(&stop_markers, true);
	for (unsigned int i = 0; i < MARKERS; i++) {
		pthread_join(markers[i], NULL);
	}
	gr_store_release(&stop_copiers, true);
	for (unsigned int i = 0; i < COPIERS + 1; i++) {
		pthread_join(copiers[i].thread, NULL);
	}
}

TEST(no_store_is_lost_to_any_consumer)
{
	static struct copier copiers[COPIERS + 1];
	double begun = now(), seconds = test_seconds(1.5);

	ASSERT_EQ(gr_dirty_create(1, &dirty, NULL), 0);
	for (unsigned int i = 0; i < COPIERS + 1; i++) {
		copiers[i].seed = test_seed() + 100 + i;
		copiers[i].comes_and_goes = i == COPIERS;
	}
	/* Several short lives rather than a long one: each ends with a comparison. */
	while (now() - begun < seconds) {
		start_and_stop(copiers, seconds / 12);
	}
	test_diag("%llu epochs", (unsigned long long)rounds_done);
	ASSERT_GT(rounds_done, (uint64_t)10);
	gr_dirty_free(dirty);
}

/*
 * Store buffering. Marker: store the page's bytes; mark, whose bit is set already. Harvester:
 * begin, which clears the bit; read the bytes. If the harvester read old bytes, the mark
 * must be in the next epoch. The marker's store waits behind stores to lines that the
 * harvester just read, so that it is still buffered when the mark looks at its bit.
 */
enum { DELAY_LINES = 12 };

static struct {
	uint64_t round GR_ALIGNED(64);	   /* (a) the harvester starts round n */
	uint64_t marked GR_ALIGNED(64);	   /* (a) the marker has finished round n */
	uint64_t bytes GR_ALIGNED(64);	   /* (a) the page */
	struct {
		uint64_t v GR_ALIGNED(64); /* (a) */
	} delay[DELAY_LINES];
} sb;

/* Each thread on a CPU of its own, if there are two. */
static void pin(size_t cpu)
{
	cpu_set_t set;

	CPU_ZERO(&set);
	CPU_SET(cpu, &set);
	(void)pthread_setaffinity_np(pthread_self(), sizeof(set), &set);
}

static void await(const uint64_t *word, uint64_t value)
{
	for (unsigned int spins = 0; gr_load_acquire(word) != value; spins++) {
		if (spins % 512 == 511) {
			sched_yield(); /* the other one has no CPU */
		} else {
			gr_cpu_relax();
		}
	}
}

static void *sb_marker(void *arg)
{
	uint64_t rounds = *(uint64_t *)arg, rng = test_seed();

	pin(1);
	for (uint64_t n = 1; n <= rounds && !gr_load_relaxed(&stop_markers); n++) {
		uint64_t wait = test_rand(&rng) % 64;

		await(&sb.round, n);
		for (uint64_t i = 0; i < wait; i++) {
			gr_barrier();
		}
		gr_rcu_read_lock();
		for (unsigned int i = 0; i < DELAY_LINES; i++) {
			gr_store_relaxed(&sb.delay[i].v, n);
		}
		gr_store_relaxed(&sb.bytes, n);
		gr_dirty_mark(dirty, 7);
		gr_rcu_read_unlock();
		gr_store_release(&sb.marked, n);
	}
	return NULL;
}

static bool epoch_has_page(struct gr_dirty_consumer *c)
{
	uint64_t pages = 0;

	ASSERT_EQ(gr_dirty_epoch_begin(c, &pages, NULL), 0);
	return pages != 0;
}

TEST(store_of_a_mark_that_found_its_bit_set_is_read_or_comes_again)
{
	uint64_t rounds = UINT64_MAX, n, read_new = 0, rng = test_seed() + 1;
	double end = now() + test_seconds(1.0);
	struct gr_dirty_consumer *c;
	pthread_t thread;

	ASSERT_EQ(gr_dirty_create(1, &dirty, NULL), 0);
	ASSERT_EQ(gr_dirty_consumer_add(dirty, "reader", GR_DIRTY_START_CLEAN, &c, NULL), 0);
	pin(0);
	ASSERT_EQ(pthread_create(&thread, NULL, sb_marker, &rounds), 0);
	for (n = 1; n % 256 != 0 || now() < end; n++) {
		uint64_t seen, wait = test_rand(&rng) % 64;

		gr_rcu_read_lock();
		gr_dirty_mark(dirty, 7); /* the bit that the marker will find */
		gr_rcu_read_unlock();
		for (unsigned int i = 0; i < DELAY_LINES; i++) {
			(void)gr_load_relaxed(&sb.delay[i].v);
		}
		(void)gr_load_relaxed(&sb.bytes);
		gr_store_release(&sb.round, n);
		for (uint64_t i = 0; i < wait; i++) {
			gr_barrier();
		}
		ASSERT(epoch_has_page(c));
		seen = gr_load_relaxed(&sb.bytes);
		ASSERT_EQ(gr_dirty_epoch_commit(c), 0);
		await(&sb.marked, n);
		if (!epoch_has_page(c) && seen != n) {
			FAIL("round %llu: read %llu, and the page does not come again",
			     (unsigned long long)n, (unsigned long long)seen);
		}
		read_new += seen == n;
		ASSERT_EQ(gr_dirty_epoch_commit(c), 0);
	}
	gr_store_relaxed(&stop_markers, true);
	gr_store_release(&sb.round, n);
	pthread_join(thread, NULL);
	test_diag("%llu rounds, %llu read the new bytes", (unsigned long long)n,
		  (unsigned long long)read_new);
	gr_dirty_consumer_del(c);
	gr_dirty_free(dirty);
}

/* Each marker has 16 bits of one word and notes in which epoch it marked last. */
static uint64_t epochs_begun; /* (a) */

static struct {
	uint64_t marked_after[64]; /* (a) epochs_begun as read before the last mark, + 1 */
} word;

static void *word_marker(void *arg)
{
	uint64_t rng = test_seed() + (uintptr_t)arg;

	while (!gr_load_relaxed(&stop_markers)) {
		unsigned int bit = (unsigned int)((uintptr_t)arg * 16 + test_rand(&rng) % 16);
		uint64_t epoch = gr_load_acquire(&epochs_begun);

		gr_rcu_read_lock();
		gr_dirty_mark(dirty, 4096 + bit);
		gr_rcu_read_unlock();
		gr_store_release(&word.marked_after[bit], epoch + 1);
	}
	return NULL;
}

TEST(markers_of_one_word_do_not_take_each_others_bits)
{
	uint64_t found[64] = { 0 }, epochs = 0, first, pages;
	double end = now() + test_seconds(0.7);
	struct gr_dirty_consumer *c;
	pthread_t threads[4];

	ASSERT_EQ(gr_dirty_create(1, &dirty, NULL), 0);
	ASSERT_EQ(gr_dirty_consumer_add(dirty, "word", GR_DIRTY_START_CLEAN, &c, NULL), 0);
	for (uintptr_t i = 0; i < 4; i++) {
		ASSERT_EQ(pthread_create(&threads[i], NULL, word_marker, (void *)i), 0);
	}
	while (now() < end) {
		uint64_t must[64];

		/* What was marked after the previous begin, and has returned, is in this one. */
		for (unsigned int i = 0; i < 64; i++) {
			must[i] = gr_load_acquire(&word.marked_after[i]);
		}
		ASSERT_EQ(gr_dirty_epoch_begin(c, NULL, NULL), 0);
		epochs++;
		gr_store_release(&epochs_begun, epochs);
		for (uint64_t at = 0; gr_dirty_epoch_next(c, at, &first, &pages);
		     at = first + pages) {
			for (uint64_t p = first; p < first + pages; p++) {
				ASSERT_LT(p - 4096, (uint64_t)64);
				found[p - 4096] = epochs;
			}
		}
		for (unsigned int i = 0; i < 64; i++) {
			/* Marked after begin number must - 1 had returned: found since. */
			if (must[i] != 0 && found[i] < must[i]) {
				FAIL("bit %u: marked after epoch %llu, last found in %llu of %llu", i,
				     (unsigned long long)must[i] - 1, (unsigned long long)found[i],
				     (unsigned long long)epochs);
			}
		}
		ASSERT_EQ(gr_dirty_epoch_commit(c), 0);
	}
	gr_store_relaxed(&stop_markers, true);
	for (unsigned int i = 0; i < 4; i++) {
		pthread_join(threads[i], NULL);
	}
	gr_dirty_consumer_del(c);
	gr_dirty_free(dirty);
}

/* Marks each page of its share once, as coverage allows, and counts them. */
static uint64_t marks_made; /* (a) */

static void *growth_marker(void *arg)
{
	uint64_t me = (uintptr_t)arg, made = 0, chunks = 0;

	while (!gr_load_relaxed(&stop_markers) ||
	       chunks < gr_dirty_pages(dirty) / CHUNK) {
		for (; chunks < gr_dirty_pages(dirty) / CHUNK; chunks++) {
			for (uint64_t i = me; i < 64; i += MARKERS) {
				gr_rcu_read_lock();
				gr_dirty_mark(dirty, chunks * CHUNK + i * 32749);
				gr_dirty_mark(dirty, i * 32749 + 1 + chunks % 1000);
				gr_rcu_read_unlock();
				made++;
			}
		}
	}
	(void)gr_add_relaxed(&marks_made, made);
	return NULL;
}

TEST(marks_during_hundreds_of_growths_are_all_there)
{
	unsigned int growths = test_under_tsan() ? 150 : 500;
	uint64_t first, pages, in_new = 0, in_first = 0, shared = GR_MIN(growths + 1, 1000u);
	struct gr_dirty_consumer *c, *other;
	pthread_t threads[MARKERS];

	ASSERT_EQ(gr_dirty_create(1, &dirty, NULL), 0);
	ASSERT_EQ(gr_dirty_consumer_add(dirty, "all", GR_DIRTY_START_CLEAN, &c, NULL), 0);
	ASSERT_EQ(gr_dirty_consumer_add(dirty, "other", GR_DIRTY_START_CLEAN, &other, NULL), 0);
	for (uintptr_t i = 0; i < MARKERS; i++) {
		ASSERT_EQ(pthread_create(&threads[i], NULL, growth_marker, (void *)i), 0);
	}
	for (unsigned int i = 0; i < growths; i++) {
		ASSERT_EQ(gr_dirty_grow(dirty, gr_dirty_pages(dirty) + 1, NULL), 0);
		if (i % 50 == 0) {
			ASSERT_EQ(gr_dirty_epoch_begin(other, NULL, NULL), 0);
			ASSERT_EQ(gr_dirty_epoch_commit(other), 0);
		}
	}
	gr_store_relaxed(&stop_markers, true);
	for (unsigned int i = 0; i < MARKERS; i++) {
		pthread_join(threads[i], NULL);
	}
	ASSERT_EQ(gr_dirty_epoch_begin(c, NULL, NULL), 0);
	for (uint64_t at = 0; gr_dirty_epoch_next(c, at, &first, &pages); at = first + pages) {
		*(first < CHUNK ? &in_first : &in_new) += pages;
	}
	ASSERT_EQ(marks_made, (uint64_t)64 * (growths + 1));
	ASSERT_EQ(in_new, (uint64_t)64 * growths);
	/* The first chunk: 64 pages of its own, and 64 behind each for up to 1000 chunks. */
	ASSERT_EQ(in_first, 64 * (1 + shared));
	gr_dirty_consumer_del(c);
	gr_dirty_consumer_del(other);
	gr_dirty_free(dirty);
}

static uint64_t signals_taken; /* (a) */

static void mark_in_handler(int sig)
{
	(void)sig;
	signals_taken++;
	store_and_mark((unsigned int)(signals_taken % 8), signals_taken);
}

TEST(mark_in_a_signal_handler_in_the_middle_of_a_harvest_neither_hangs_nor_is_lost)
{
	struct itimerval every = { { 0, 300 }, { 0, 300 } }, off = { { 0, 0 }, { 0, 0 } };
	struct sigaction sa = { .sa_handler = mark_in_handler, .sa_flags = SA_RESTART };
	double end = now() + test_seconds(0.5);
	struct gr_dirty_consumer *c;
	static struct copier k;
	uint64_t rng = 1;

	ASSERT_EQ(gr_dirty_create(1, &dirty, NULL), 0);
	ASSERT_EQ(gr_dirty_consumer_add(dirty, "signals", GR_DIRTY_START_CLEAN, &c, NULL), 0);
	gr_rcu_register_thread();
	ASSERT_EQ(sigaction(SIGALRM, &sa, NULL), 0);
	ASSERT_EQ(setitimer(ITIMER_REAL, &every, NULL), 0);
	while (now() < end || gr_load_relaxed(&signals_taken) <= 10) { /* a busy machine needs longer */
		ASSERT_EQ(gr_dirty_epoch_begin(c, NULL, NULL), 0);
		copy_epoch(&k, c, true, &rng);
	}
	ASSERT_EQ(setitimer(ITIMER_REAL, &off, NULL), 0);
	ASSERT_EQ(gr_dirty_epoch_begin(c, NULL, NULL), 0);
	copy_epoch(&k, c, false, &rng);
	ASSERT_MEM_EQ(k.copy, memory, sizeof(memory));
	ASSERT_GT(signals_taken, (uint64_t)10);
	gr_dirty_consumer_del(c);
	gr_dirty_free(dirty);
}

TEST_MAIN()
