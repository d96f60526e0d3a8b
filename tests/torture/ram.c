/* SPDX-License-Identifier: MIT */
/*
 * The RAM list with writers and readers at once. What was freed is unmapped or poisoned, so
 * that a reader who still uses it crashes.
 */
#include "ram/ram.h"
#include "base/atomic.h"
#include "harness.h"
#include <errno.h>
#include <guestram/ram.h>
#include <malloc.h>
#include <pthread.h>
#include <stdlib.h>
#include <time.h>

enum { WRITERS = 4, NAMES = 12, READERS = 4, BYTES = 1 << 16 };

static struct gr_ram *ram;
static bool stop;				    /* (a) */
static uint64_t adds, dels, clashes, lookups, hits; /* (a) */

static void for_seconds(double seconds)
{
	struct timespec ts = { (time_t)seconds, (long)((seconds - (double)(time_t)seconds) * 1e9) };

	while (nanosleep(&ts, &ts) != 0) {
	}
	gr_store_release(&stop, true);
}

static void make(void)
{
	mallopt(M_PERTURB, 0x5a);
	ASSERT_EQ(gr_ram_create(NULL, &ram, NULL), 0);
}

/* Fresh memory for each block, gone when it is released: late use faults. */
static void unmap(void *host, uint64_t max_bytes, void *opaque)
{
	(void)opaque;
	test_pages_free(host, (size_t)max_bytes);
}

static int add(const char *id, uint64_t gpa)
{
	void *host = test_pages(BYTES);
	struct gr_ram_block_desc desc = {
		.size = sizeof(desc),
		.id = id,
		.used_bytes = BYTES,
		.mapped = true,
		.gpa = gr_gpa(gpa),
		.backing = GR_RAM_CALLER,
		.host = host,
		.fd = -1,
		.release = unmap,
	};
	int ret;

	ret = gr_ram_block_add(ram, &desc, NULL, NULL);
	if (ret < 0) {
		test_pages_free(host, BYTES);
	}
	return ret;
}

static void *writer(void *arg)
{
	uint64_t rng = test_seed() + (uintptr_t)arg;
	char id[16];

	while (!gr_load_relaxed(&stop)) {
		unsigned int n = (unsigned int)(test_rand(&rng) % NAMES);
		int ret;

		(void)snprintf(id, sizeof(id), "dimm%u", n);
		if (test_rand(&rng) % 2) {
			ret = add(id, (uint64_t)n * BYTES);
			(void)gr_add_relaxed(ret == 0 ? &adds : &clashes, 1);
			ASSERT(ret == 0 || ret == -EEXIST);
		} else {
			ret = gr_ram_block_del_by_id(ram, id, NULL);
			(void)gr_add_relaxed(ret == 0 ? &dels : &clashes, 1);
			ASSERT(ret == 0 || ret == -ENOENT);
		}
	}
	return NULL;
}

/* At every moment: ids are unique, extents do not overlap, the order is by size. */
static void *checker(void *arg)
{
	(void)arg;
	while (!gr_load_relaxed(&stop)) {
		struct gr_ram_block *seen[NAMES * 2], *b;
		unsigned int n = 0;
		uint64_t version = gr_ram_version(ram);

		gr_rcu_read_lock();
		gr_ram_for_each_block_rcu(b, ram) {
			if (n < NAMES * 2) {
				seen[n++] = b;
			}
		}
		if (gr_ram_version(ram) == version) {
			for (unsigned int i = 0; i < n; i++) {
				for (unsigned int j = 0; j < i; j++) {
					ASSERT_NE(strcmp(seen[i]->id, seen[j]->id), 0);
					ASSERT_NE(seen[i]->offset.v, seen[j]->offset.v);
				}
			}
			ASSERT_LE(n, (unsigned int)NAMES);
		}
		gr_rcu_read_unlock();
	}
	return NULL;
}

TEST(four_writers_without_an_outer_lock_keep_ids_and_places_unique)
{
	pthread_t threads[WRITERS + 1];
	struct gr_ram_block *b;
	uint64_t left = 0;

	make();
	for (uintptr_t i = 0; i < WRITERS; i++) {
		ASSERT_EQ(pthread_create(&threads[i], NULL, writer, (void *)i), 0);
	}
	ASSERT_EQ(pthread_create(&threads[WRITERS], NULL, checker, NULL), 0);
	for_seconds(test_seconds(1.0));
	for (unsigned int i = 0; i < WRITERS + 1; i++) {
		pthread_join(threads[i], NULL);
	}
	ASSERT_EQ(gr_ram_version(ram), adds + dels);
	gr_rcu_read_lock();
	gr_ram_for_each_block_rcu(b, ram) {
		left++;
	}
	gr_rcu_read_unlock();
	ASSERT_EQ(left, adds - dels);
	test_diag("%llu adds, %llu removals, %llu refused", (unsigned long long)adds,
		  (unsigned long long)dels, (unsigned long long)clashes);
	ASSERT_GT(dels, (uint64_t)10);
	gr_ram_free(ram);
}

/* What the reader holds is what it asked for, and its memory is there. */
static void use(struct gr_ram_block *b, uint64_t offset)
{
	(void)gr_add_relaxed(&hits, 1);
	ASSERT_EQ(b->max_bytes, (uint64_t)BYTES);
	ASSERT_LT(offset, b->max_bytes);
	gr_store_relaxed(&b->host[offset], 1);
	gr_ram_mark(b, offset, 1);
}

static void look_up(unsigned int key, unsigned int n, uint64_t at, const void *host)
	GR_REQUIRES_SHARED(gr_rcu_section)
{
	struct gr_ram_block *b;
	uint64_t offset = at;
	char id[16];

	(void)snprintf(id, sizeof(id), "dimm%u", n);
	switch (key) {
	case 0:
		b = gr_ram_block_by_id_rcu(ram, id);
		break;
	case 1:
		b = gr_ram_block_find_rcu(ram, gr_ram_addr((uint64_t)n * 64 * 4096 + at));
		break;
	case 2:
		b = gr_ram_block_by_gpa_rcu(ram, gr_gpa((uint64_t)n * BYTES + at), &offset, NULL);
		if (b) {
			ASSERT_EQ(offset, at);
			ASSERT_STR_EQ(b->id, id);
		}
		break;
	default:
		b = gr_ram_block_by_host_rcu(ram, host, &offset);
	}
	if (b) {
		use(b, offset);
	}
}

static void *reader(void *arg)
{
	uint64_t rng = test_seed() + 50 + (uintptr_t)arg, n = 0;
	const void *host = NULL;

	while (!gr_load_relaxed(&stop)) {
		struct gr_ram_block *b;
		uint64_t r = test_rand(&rng);

		gr_rcu_read_lock();
		look_up((unsigned int)(r % 4), (unsigned int)(r / 4 % NAMES), r / 64 % BYTES, host);
		/* A pointer from one section, looked up in the next: found or not, never wrong. */
		b = gr_ram_block_next_rcu(ram, NULL);
		host = b ? b->host + r % BYTES : NULL;
		gr_rcu_read_unlock();
		n++;
	}
	(void)gr_add_relaxed(&lookups, n);
	return NULL;
}

TEST(readers_by_every_key_never_touch_what_was_freed)
{
	pthread_t threads[2 + READERS];

	make();
	for (uintptr_t i = 0; i < 2; i++) {
		ASSERT_EQ(pthread_create(&threads[i], NULL, writer, (void *)i), 0);
	}
	for (uintptr_t i = 0; i < READERS; i++) {
		ASSERT_EQ(pthread_create(&threads[2 + i], NULL, reader, (void *)i), 0);
	}
	for_seconds(test_seconds(1.2));
	for (unsigned int i = 0; i < 2 + READERS; i++) {
		pthread_join(threads[i], NULL);
	}
	test_diag("%llu lookups, %llu found something, while %llu blocks came and went",
		  (unsigned long long)lookups, (unsigned long long)hits, (unsigned long long)adds);
	ASSERT_GT(hits, (uint64_t)100);
	ASSERT_GT(adds, (uint64_t)10);
	gr_ram_free(ram);
}

/* I/O on iovecs that outlive their blocks. */
static void *device(void *arg)
{
	uint64_t rng = test_seed() + 90 + (uintptr_t)arg;

	while (!gr_load_relaxed(&stop)) {
		struct gr_ram_iov iov[3];
		unsigned int n;
		uint64_t r = test_rand(&rng);

		if (gr_ram_iov_get(ram, gr_gpa(r % (NAMES * BYTES)), 1 + r / 7 % BYTES, true, iov,
				   3, &n, NULL) != 0) {
			continue;
		}
		sched_yield();
		for (unsigned int i = 0; i < n; i++) {
			for (size_t at = 0; at < iov[i].iov.iov_len; at += 4096) {
				gr_store_relaxed((uint8_t *)iov[i].iov.iov_base + at, 2);
			}
		}
		gr_ram_iov_put(iov, n, BYTES);
		(void)gr_add_relaxed(&hits, 1);
	}
	return NULL;
}

TEST(iovecs_keep_their_memory_while_blocks_come_and_go)
{
	pthread_t threads[4];

	make();
	for (uintptr_t i = 0; i < 4; i++) {
		ASSERT_EQ(pthread_create(&threads[i], NULL, i < 2 ? writer : device, (void *)i), 0);
	}
	for_seconds(test_seconds(0.8));
	for (unsigned int i = 0; i < 4; i++) {
		pthread_join(threads[i], NULL);
	}
	ASSERT_GT(hits, (uint64_t)10);
	gr_ram_free(ram);
}

/* ---- walks -------------------------------------------------------------------------------- */

static pthread_mutex_t list_mutex = PTHREAD_MUTEX_INITIALIZER; /* of the application's */

static void *writer_with_a_mutex(void *arg)
{
	uint64_t rng = test_seed() + 130;
	char id[16];

	(void)arg;
	while (!gr_load_relaxed(&stop)) {
		unsigned int n = (unsigned int)(test_rand(&rng) % NAMES);

		(void)snprintf(id, sizeof(id), "dimm%u", n);
		pthread_mutex_lock(&list_mutex);
		if (gr_ram_block_del_by_id(ram, id, NULL) == 0) {
			(void)gr_add_relaxed(&dels, 1);
		} else {
			ASSERT_EQ(add(id, (uint64_t)n * BYTES), 0);
			(void)gr_add_relaxed(&adds, 1);
		}
		pthread_mutex_unlock(&list_mutex);
	}
	return NULL;
}

/*
 * mutex -> section -> mutex released -> walk on: what was there under the mutex stays usable, in
 * the middle of the walk too, though the writer deletes it meanwhile.
 */
TEST(a_mutex_may_be_downgraded_to_a_section_in_the_middle_of_a_walk)
{
	uint64_t changed = 0, walks = 0;
	pthread_t thread;

	make();
	ASSERT_EQ(pthread_create(&thread, NULL, writer_with_a_mutex, NULL), 0);
	test_watch_progress(&dels, 30);
	while (changed < 100 || gr_load_relaxed(&dels) < 200) {
		struct gr_ram_block *b, *there[NAMES];
		unsigned int n = 0;
		uint64_t version;

		pthread_mutex_lock(&list_mutex);
		version = gr_ram_version(ram);
		gr_rcu_read_lock();
		gr_ram_for_each_block_rcu(b, ram) {
			ASSERT_LT(n, (unsigned int)NAMES);
			there[n++] = b;
		}
		pthread_mutex_unlock(&list_mutex);
		sched_yield();
		for (unsigned int i = 0; i < n; i++) {
			use(there[i], i);
		}
		changed += gr_ram_version(ram) != version;
		gr_rcu_read_unlock();
		walks++;
	}
	gr_store_release(&stop, true);
	pthread_join(thread, NULL);
	test_diag("%llu of %llu walks had a change in the middle", (unsigned long long)changed,
		  (unsigned long long)walks);
	gr_ram_free(ram);
}

/* A search that goes on between sections: by (block, page), which a change makes worthless. */
struct search {
	uint64_t version;
	uint64_t restarts;
	char id[GR_RAM_ID_BYTES_MAX + 1]; /* "": from the beginning */
	unsigned int stays, found; /* of those that stay: how many; found since the beginning */
};

/* One block further. False: that was the last. */
static bool search_step(struct search *s) GR_NO_TSA
{
	struct gr_ram_block *b;

	GR_RCU_READ_GUARD();
	if (s->version != gr_ram_version(ram)) {
		s->version = gr_ram_version(ram);
		s->restarts += s->id[0] != 0;
		s->id[0] = 0;
		s->found = 0;
	}
	b = s->id[0] ? gr_ram_block_by_id_rcu(ram, s->id) : NULL;
	/* The version is the same as when we saw it: it is there. */
	if (s->id[0] && s->version == gr_ram_version(ram)) {
		ASSERT(b);
	}
	b = gr_ram_block_next_rcu(ram, b);
	if (!b) {
		return false;
	}
	use(b, 0);
	(void)snprintf(s->id, sizeof(s->id), "%s", b->id);
	s->found += strncmp(b->id, "stays", 5) == 0;
	return true;
}

TEST(a_search_that_finds_another_version_starts_again_and_misses_nothing)
{
	struct search s = { .stays = 3 };
	uint64_t whole = 0;
	pthread_t thread;
	char id[16];

	make();
	for (unsigned int i = 0; i < s.stays; i++) {
		(void)snprintf(id, sizeof(id), "stays%u", i);
		ASSERT_EQ(add(id, (uint64_t)(NAMES + i) * BYTES), 0);
	}
	ASSERT_EQ(pthread_create(&thread, NULL, writer_with_a_mutex, NULL), 0);
	test_watch_progress(&hits, 30);
	/* In turn one that cannot be disturbed, and one that gives the writer every chance. */
	for (bool alone = true; whole < 100 || s.restarts < 20; alone = !alone) {
		if (alone) {
			pthread_mutex_lock(&list_mutex);
		}
		while (search_step(&s)) {
			sched_yield();
		}
		if (s.version == gr_ram_version(ram)) {
			ASSERT_EQ(s.found, s.stays);
			whole++;
		}
		if (alone) {
			pthread_mutex_unlock(&list_mutex);
		}
		s.id[0] = 0;
		s.found = 0;
	}
	test_diag("%llu whole, %llu started again", (unsigned long long)whole,
		  (unsigned long long)s.restarts);
	gr_store_release(&stop, true);
	pthread_join(thread, NULL);
	gr_ram_free(ram);
}

/* ---- words that the guest changes meanwhile ------------------------------------------------- */

enum { RING = 64 }; /* the index of a virtqueue, say */

static void *ring_reader(void *arg)
{
	(void)arg;
	while (!gr_load_relaxed(&stop)) {
		uint64_t v = 0;

		ASSERT_EQ(gr_ram_read(ram, gr_gpa(RING), &v, sizeof(v), NULL), 0);
		ASSERT_EQ((uint32_t)v, (uint32_t)(v >> 32));
		(void)gr_add_relaxed(&lookups, 1);
	}
	return NULL;
}

static void *ring_writer(void *arg)
{
	for (uint64_t n = (uintptr_t)arg; !gr_load_relaxed(&stop); n++) {
		uint64_t v = (uint32_t)n * (((uint64_t)1 << 32) + 1);

		ASSERT_EQ(gr_ram_write(ram, gr_gpa(RING), &v, sizeof(v), NULL), 0);
	}
	return NULL;
}

TEST(an_aligned_word_is_never_seen_half)
{
	pthread_t threads[3];

	make();
	ASSERT_EQ(add("ring", 0), 0);
	for (uintptr_t i = 0; i < 3; i++) {
		pthread_create(&threads[i], NULL, i == 0 ? ring_reader : ring_writer,
			       (void *)(i << 20));
	}
	for_seconds(test_seconds(0.8));
	for (unsigned int i = 0; i < 3; i++) {
		pthread_join(threads[i], NULL);
	}
	ASSERT_GT(lookups, (uint64_t)10);
	gr_ram_free(ram);
}

TEST_MAIN()
