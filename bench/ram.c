/* SPDX-License-Identifier: MIT */
/*
 * The RAM list while it changes, and what it takes.
 *
 *   ram.add_del_readers  readers' throughput while 1000 blocks a second come and go, against
 *                        a list that does not change (per second of their CPU time: on few
 *                        processors the writer takes some away)
 *   ram.add_1t           a block of 1 TiB, dirty for every consumer, against 1 ms
 *   ram.overhead         dirty memory per MiB of guest and consumer, every page written by
 *                        itself, against a flat bitmap's 32 bytes
 */
#include "bench/harness.h"
#include <guestram/ram.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#define MIB ((uint64_t)1 << 20)
#define TIB ((uint64_t)1 << 40)

static struct gr_ram *ram_create(void)
{
	struct gr_ram *ram;
	struct gr_error err;

	if (gr_ram_create(NULL, &ram, &err) < 0) {
		bench_die("%s", err.msg);
	}
	return ram;
}

static struct gr_ram_block *plug(struct gr_ram *ram, const char *id, void *host, uint64_t bytes)
{
	struct gr_ram_block_desc desc = { .size = sizeof(desc),
					  .id = id,
					  .used_bytes = bytes,
					  .backing = GR_RAM_CALLER,
					  .host = host,
					  .fd = -1 };
	struct gr_ram_block *block;
	struct gr_error err;

	if (gr_ram_block_add(ram, &desc, &block, &err) < 0) {
		bench_die("%s", err.msg);
	}
	return block;
}

static uint8_t *reserve(uint64_t bytes)
{
	void *p = mmap(NULL, bytes, PROT_READ | PROT_WRITE,
		       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

	if (p == MAP_FAILED) {
		bench_die("no %llu bytes of address space", (unsigned long long)bytes);
	}
	return p;
}

/* ---- readers beside a writer ---------------------------------------------------------- */

enum { READERS = 4, FIXED = 16, STEP = 2 << 20 };

struct reading {
	struct gr_ram *ram;
	struct gr_ram_block *const *fixed;
	bool *stop;
	double lookups_per_s;
};

static double thread_cpu_s(void)
{
	struct timespec t;

	clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
	return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

static void *reader(void *opaque)
{
	struct reading *r = opaque;
	double begin = thread_cpu_s();
	uint64_t n = 0;

	while (!__atomic_load_n(r->stop, __ATOMIC_RELAXED)) {
		for (unsigned i = 0; i < 64; i++, n++) {
			struct gr_ram_block *b = r->fixed[n * 7 % FIXED];

			gr_rcu_read_lock();
			if (gr_ram_block_find_rcu(r->ram, gr_ram_addr(b->offset.v + i)) != b) {
				bench_die("a lookup went wrong beside a writer");
			}
			gr_rcu_read_unlock();
		}
	}
	r->lookups_per_s = (double)n / (thread_cpu_s() - begin);
	return NULL;
}

/* Lookups a second of CPU time, with so many blocks that come and go each second. */
static double readers(struct gr_ram *ram, struct gr_ram_block *const *fixed, uint8_t *host,
		      unsigned per_s, double seconds)
{
	struct reading r[READERS];
	pthread_t thread[READERS];
	bool stop = false;
	double begin = bench_now_s(), sum = 0;
	unsigned changes = 0;

	for (int i = 0; i < READERS; i++) {
		r[i] = (struct reading){ .ram = ram, .fixed = fixed, .stop = &stop };
		if (pthread_create(&thread[i], NULL, reader, &r[i]) != 0) {
			bench_die("no thread");
		}
	}
	while (bench_now_s() - begin < seconds) {
		double due = (bench_now_s() - begin) * per_s;

		for (; changes < due; changes++) {
			(void)plug(ram, "dimm", host, 4096);
			if (gr_ram_block_del_by_id(ram, "dimm", NULL) < 0) {
				bench_die("the block is not there");
			}
			/* Its memory comes back after a grace period, and with it the address. */
			host += 4096;
		}
		usleep(500);
	}
	__atomic_store_n(&stop, true, __ATOMIC_RELAXED);
	for (int i = 0; i < READERS; i++) {
		pthread_join(thread[i], NULL);
		sum += r[i].lookups_per_s;
	}
	if (per_s && changes < (unsigned)(seconds * per_s * 0.5)) {
		bench_die("only %u blocks came and went in %.1f s", changes, seconds);
	}
	return sum / READERS;
}

static void add_del_readers(const struct bench_options *o)
{
	struct bench_result r = { .name = "ram.add_del_readers",
				  .unit = "M/s",
				  .peer_name = "list that does not change",
				  .more_is_better = true };
	double seconds = o->quick ? 0.1 : 1;
	uint64_t bytes = (FIXED * (uint64_t)STEP) + 4096 * 100000;
	struct gr_ram *ram = ram_create();
	uint8_t *host = reserve(bytes);
	struct gr_ram_block *fixed[FIXED];

	for (int i = 0; i < FIXED; i++) {
		char id[16];

		(void)snprintf(id, sizeof(id), "ram%d", i);
		fixed[i] = plug(ram, id, host + (uint64_t)i * STEP, STEP);
	}
	for (int run = -1; run < o->runs; run++) {
		uint8_t *dimm = host + FIXED * (uint64_t)STEP;
		double ours = readers(ram, fixed, dimm, 1000, seconds);
		double peer = readers(ram, fixed, dimm, 0, seconds);

		if (run >= 0) {
			bench_add(&r, ours / 1e6, peer / 1e6);
		}
	}
	bench_print(o, &r);
	gr_ram_free(ram);
	munmap(host, bytes);
}

/* ---- size ----------------------------------------------------------------------------- */

static void add_1t(const struct bench_options *o)
{
	struct bench_result r = { .name = "ram.add_1t", .unit = "ms", .peer_name = "1 ms" };
	uint8_t *host = reserve(TIB);

	for (int run = -1; run < o->runs; run++) {
		struct gr_dirty_consumer *c[GR_DIRTY_CONSUMERS_MAX];
		struct gr_ram *ram = ram_create();
		uint64_t pages;
		double begin, ms;

		for (int i = 0; i < GR_DIRTY_CONSUMERS_MAX; i++) {
			if (gr_dirty_consumer_add(gr_ram_dirty(ram), "bench", GR_DIRTY_START_CLEAN,
						  &c[i], NULL) < 0) {
				bench_die("no consumer");
			}
		}
		begin = bench_now_s();
		(void)plug(ram, "big", host, TIB);
		ms = (bench_now_s() - begin) * 1e3;
		for (int i = 0; i < GR_DIRTY_CONSUMERS_MAX; i++) {
			if (gr_dirty_epoch_begin(c[i], &pages, NULL) < 0 || pages != TIB / 4096) {
				bench_die("ram.add_1t: not all of it is dirty");
			}
			gr_dirty_consumer_del(c[i]);
		}
		gr_ram_free(ram);
		if (run >= 0) {
			bench_add(&r, ms, 1);
		}
	}
	bench_print(o, &r);
	munmap(host, TIB);
}

static uint64_t resident_bytes(void)
{
	FILE *f = fopen("/proc/self/statm", "r");
	unsigned long size, resident;

	if (!f || fscanf(f, "%lu %lu", &size, &resident) != 2) {
		bench_die("/proc/self/statm cannot be read");
	}
	(void)fclose(f);
	return (uint64_t)resident * (uint64_t)sysconf(_SC_PAGESIZE);
}

/* Every page but one in 64 written, one by one, and harvested: by one consumer for all. */
static void overhead(const struct bench_options *o)
{
	struct bench_result r = { .name = "ram.overhead",
				  .unit = "bytes",
				  .peer_name = "flat bitmap, a bit a page" };
	uint64_t guest_mib = o->quick ? 8 << 10 : 64 << 10, pages = guest_mib * 256;

	for (int run = 0; run < o->runs; run++) {
		struct gr_dirty_consumer *c[GR_DIRTY_CONSUMERS_MAX];
		uint64_t before = resident_bytes(), after;
		struct gr_dirty *dirty;

		if (gr_dirty_create(pages, &dirty, NULL) < 0) {
			bench_die("no memory");
		}
		for (int i = 0; i < GR_DIRTY_CONSUMERS_MAX; i++) {
			if (gr_dirty_consumer_add(dirty, "bench", GR_DIRTY_START_CLEAN, &c[i],
						  NULL) < 0) {
				bench_die("no consumer");
			}
		}
		gr_rcu_read_lock();
		for (uint64_t page = 0; page < pages; page += 64) {
			gr_dirty_mark_range(dirty, page, 63);
		}
		gr_rcu_read_unlock();
		if (gr_dirty_epoch_begin(c[0], NULL, NULL) < 0) {
			bench_die("an epoch is open");
		}
		after = resident_bytes();
		bench_add(&r, (double)(after - before) / (double)guest_mib / GR_DIRTY_CONSUMERS_MAX,
			  32);
		for (int i = 0; i < GR_DIRTY_CONSUMERS_MAX; i++) {
			gr_dirty_consumer_del(c[i]);
		}
		gr_dirty_free(dirty);
	}
	bench_print(o, &r);
}

int main(int argc, char **argv)
{
	struct bench_options o;

	bench_options_parse(&o, argc, argv);
	if (bench_wanted(&o, "ram.add_del_readers")) {
		add_del_readers(&o);
	}
	if (bench_wanted(&o, "ram.add_1t")) {
		add_1t(&o);
	}
	if (bench_wanted(&o, "ram.overhead")) {
		overhead(&o);
	}
	return 0;
}
