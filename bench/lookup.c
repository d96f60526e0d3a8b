/* SPDX-License-Identifier: MIT */
/*
 * Finding the block of an address, against QEMU's list with its shared most recently used block
 * (bench/mru_list.h) and against a sorted array under a reader-writer lock.
 *
 *   lookup.hit         the block that this thread found last, against a bare range check
 *   lookup.alternate2  two threads, each in turn between two blocks of four
 *   lookup.miss256     random addresses in 256 (4096, 32768) blocks
 *   lookup.miss4096
 *   lookup.miss32k
 *
 * All in an open read-side section ("/rwlock": with the lock), and inline but for the rwlock. Every
 * answer is checked.
 */
#include "bench/harness.h"
#include "bench/mru_list.h"
#include "bench/together.h"
#include <guestram/ram.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

enum { BLOCK_BYTES = 4096 };

struct machine {
	unsigned blocks;
	struct gr_ram *ram;
	struct gr_ram_block **block; /* as they came */
	struct mru_list list;
	struct mru_block *mru_blocks;
	struct mru_block **sorted; /* by offset, for the rwlock */
	pthread_rwlock_t lock;
	uint8_t *host;
};

static int by_offset(const void *a, const void *b)
{
	const struct mru_block *x = *(struct mru_block *const *)a;
	const struct mru_block *y = *(struct mru_block *const *)b;

	return (x->offset > y->offset) - (x->offset < y->offset);
}

static void *room(size_t n, size_t bytes)
{
	void *p = calloc(n, bytes);

	if (!p) {
		bench_die("no memory");
	}
	return p;
}

static void machine_create(struct machine *m, unsigned blocks)
{
	struct gr_error err;

	*m = (struct machine){ .blocks = blocks };
	m->block = room(blocks, sizeof(*m->block));
	m->mru_blocks = room(blocks, sizeof(*m->mru_blocks));
	m->sorted = room(blocks, sizeof(struct mru_block *));
	pthread_rwlock_init(&m->lock, NULL);
	m->host = mmap(NULL, (size_t)blocks * BLOCK_BYTES, PROT_READ | PROT_WRITE,
		       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (m->host == MAP_FAILED || gr_ram_create(NULL, &m->ram, &err) < 0) {
		bench_die("no memory for a machine");
	}
	for (unsigned i = 0; i < blocks; i++) {
		char id[16];
		struct gr_ram_block_desc desc = { .size = sizeof(desc),
						  .id = id,
						  .used_bytes = BLOCK_BYTES,
						  .backing = GR_RAM_CALLER,
						  .host = m->host + (size_t)i * BLOCK_BYTES,
						  .fd = -1 };
		struct mru_block *b = &m->mru_blocks[i];

		(void)snprintf(id, sizeof(id), "b%u", i);
		if (gr_ram_block_add(m->ram, &desc, &m->block[i], &err) < 0) {
			bench_die("%s", err.msg);
		}
		b->offset = m->block[i]->offset.v;
		b->max_bytes = BLOCK_BYTES;
		m->sorted[i] = b;
		b->next = m->list.first;
		m->list.first = b;
	}
	qsort(m->sorted, blocks, sizeof(struct mru_block *), by_offset);
}

static void machine_free(struct machine *m)
{
	gr_ram_free(m->ram);
	munmap(m->host, (size_t)m->blocks * BLOCK_BYTES);
	pthread_rwlock_destroy(&m->lock);
	free(m->block);
	free(m->mru_blocks);
	free(m->sorted);
}

static struct mru_block *rwlock_find(struct machine *m, uint64_t addr)
{
	struct mru_block *found = NULL;
	unsigned lo = 0, hi = m->blocks;

	pthread_rwlock_rdlock(&m->lock);
	while (lo < hi) {
		unsigned mid = lo + (hi - lo) / 2;

		if (m->sorted[mid]->offset <= addr) {
			lo = mid + 1;
		} else {
			hi = mid;
		}
	}
	if (lo > 0 && addr - m->sorted[lo - 1]->offset < m->sorted[lo - 1]->max_bytes) {
		found = m->sorted[lo - 1];
	}
	pthread_rwlock_unlock(&m->lock);
	return found;
}

enum way { OURS, LIST, RWLOCK, RANGE_CHECK };

enum { PICKS = 4096, STRETCHES = 20 };

struct looking {
	struct machine *m;
	enum way way;
	uint64_t lookups;
	unsigned pick[BENCH_TOGETHER_MAX][PICKS]; /* which blocks, over and over */
};

static void look(void *opaque, unsigned thread)
{
	struct looking *l = opaque;
	struct machine *m = l->m;
	struct mru_block *cached = &m->mru_blocks[l->pick[thread][0]];
	uint64_t wrong = 0, n = l->lookups;

	/* One loop each: what is compared is the lookup, not a switch around it. */
#define LOOK(found, right)                                                         \
	for (uint64_t i = 0; i < n; i++) {                                         \
		unsigned k = l->pick[thread][i % PICKS];                           \
		uint64_t addr = m->mru_blocks[k].offset + (i & (BLOCK_BYTES - 1)); \
                                                                                   \
		wrong += (found) != (right);                                       \
	}
	switch (l->way) {
	case OURS:
		gr_rcu_read_lock();
		LOOK(gr_ram_block_find_rcu(m->ram, gr_ram_addr(addr)), m->block[k])
		gr_rcu_read_unlock();
		break;
	case LIST:
		gr_rcu_read_lock();
		LOOK(mru_find(&m->list, addr), &m->mru_blocks[k])
		gr_rcu_read_unlock();
		break;
	case RWLOCK:
		LOOK(rwlock_find(m, addr), &m->mru_blocks[k])
		break;
	case RANGE_CHECK:
		LOOK(mru_range_check(&cached, addr), &m->mru_blocks[k])
		break;
	}
#undef LOOK
	if (wrong) {
		bench_die("%llu lookups found another block", (unsigned long long)wrong);
	}
}

/* ns a lookup. spread: among how many blocks each thread looks. */
static double lookup_ns(struct machine *m, enum way way, unsigned threads, unsigned spread,
			uint64_t lookups)
{
	static struct looking l;
	uint64_t rnd = 42;

	l.m = m;
	l.way = way;
	l.lookups = lookups / STRETCHES;
	for (unsigned t = 0; t < threads; t++) {
		for (unsigned i = 0; i < PICKS; i++) {
			rnd = rnd * 6364136223846793005u + 1442695040888963407u;
			/* Two: in turn, and not the other thread's. */
			l.pick[t][i] =
				spread == 2 ? 2 * t + i % 2 : (unsigned)((rnd >> 33) % spread);
		}
	}
	return bench_together_s(threads, STRETCHES, look, &l) * 1e9 / (double)l.lookups;
}

static const char list_name[] = "list with a shared MRU pointer (QEMU)";
static const char rwlock_name[] = "sorted array under a rwlock";

static void hit(const struct bench_options *o)
{
	struct bench_result r = { .name = "lookup.hit",
				  .unit = "ns",
				  .peer_name = "bare range check" };
	uint64_t n = o->quick ? 100000 : 20000000;
	struct machine m;

	machine_create(&m, 4);
	for (int run = -1; run < o->runs; run++) {
		double ours = lookup_ns(&m, OURS, 1, 1, n);
		double peer = lookup_ns(&m, RANGE_CHECK, 1, 1, n);

		if (run >= 0) {
			bench_add(&r, ours, peer);
		}
	}
	bench_print(o, &r);
	machine_free(&m);
}

static void against_both(const struct bench_options *o, const char *name, unsigned blocks,
			 unsigned threads, unsigned spread)
{
	struct bench_result r = { .name = name, .unit = "ns", .peer_name = list_name };
	struct bench_result rw = r;
	uint64_t n = o->quick ? 20000 : 2000000,
		 list_n = blocks > 4 ? n * 8 / blocks + 50 * STRETCHES : n;
	char rw_name[64];
	struct machine m;

	(void)snprintf(rw_name, sizeof(rw_name), "%s/rwlock", name);
	rw.name = rw_name;
	rw.peer_name = rwlock_name;
	machine_create(&m, blocks);
	for (int run = -1; run < o->runs; run++) {
		double ours = lookup_ns(&m, OURS, threads, spread, n);
		double list = lookup_ns(&m, LIST, threads, spread, list_n);
		double rwlock = lookup_ns(&m, RWLOCK, threads, spread, n);

		if (run >= 0) {
			bench_add(&r, ours, list);
			bench_add(&rw, ours, rwlock);
		}
	}
	bench_print(o, &r);
	bench_print(o, &rw);
	machine_free(&m);
}

int main(int argc, char **argv)
{
	static const struct {
		const char *name;
		unsigned blocks, threads, spread;
	} cases[] = {
		{ "lookup.alternate2", 4, 2, 2 },
		{ "lookup.miss256", 256, 1, 256 },
		{ "lookup.miss4096", 4096, 1, 4096 },
		{ "lookup.miss32k", 32768, 1, 32768 },
	};
	struct bench_options o;

	bench_options_parse(&o, argc, argv);
	if (bench_wanted(&o, "lookup.hit")) {
		hit(&o);
	}
	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		if (bench_wanted(&o, cases[i].name) && !(o.quick && cases[i].blocks > 4096)) {
			against_both(&o, cases[i].name, cases[i].blocks, cases[i].threads,
				     cases[i].spread);
		}
	}
	return 0;
}
