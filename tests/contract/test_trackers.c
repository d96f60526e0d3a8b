/* SPDX-License-Identifier: MIT */
/*
 * Every tracker on every kind of memory, against a memory difference: threads write guest
 * memory in all the ways that the tracker is said to see, blocks come and go, two consumers
 * copy what they are told was written. At the end both copies equal the memory.
 *
 * A new tracker or backing is one more row at the end.
 */
#include "base/atomic.h"
#include "oracle.h"
#include <errno.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <time.h>

enum {
	FIXED = 3,	    /* blocks that stay */
	SLOTS = 6,	    /* with those that come and go */
	FIXED_PAGES = 1500, /* not a multiple of 64 */
	PLUG_PAGES_MAX = 130,
};
#define SLOT_BYTES (1ull << 24)

struct rig {
	struct gr_ram *ram;
	struct gr_track *track;
	enum gr_ram_backing backing;
	unsigned int writers; /* enum gr_writers */
	double begin, seconds;
	uint32_t stop;	/* (a) for the second consumer */
	uint32_t plugs; /* (a) */
	struct oracle a, b;
};

struct worker {
	struct rig *rig;
	uint64_t rnd;
	uint64_t writes;
};

static double now(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (double)ts.tv_sec + (double)ts.tv_nsec / 1e9;
}

/* How much of the test is over, from 0 to 1 and more. */
static double elapsed(const struct rig *r)
{
	return (now() - r->begin) / r->seconds;
}

static void plug(struct rig *r, unsigned int slot, uint64_t pages)
{
	char id[16];
	struct gr_ram_block_desc desc = { .size = sizeof(desc),
					  .id = id,
					  .used_bytes = pages * ORACLE_PAGE,
					  .backing = r->backing,
					  .mapped = true,
					  .gpa = gr_gpa(slot * SLOT_BYTES),
					  .fd = -1 };
	struct gr_error err;

	(void)snprintf(id, sizeof(id), "slot%u", slot);
	if (gr_ram_block_add(r->ram, &desc, NULL, &err) < 0) {
		FAIL("%s", err.msg);
	}
}

/* ---- ways to write -------------------------------------------------------------------- */

/* A random block that is there now, with a reference; NULL: that slot is empty. */
static struct gr_ram_block *pick(struct worker *w, uint64_t *ret_gpa)
{
	unsigned int slot = (unsigned int)(test_rand(&w->rnd) % SLOTS);
	struct gr_ram_block *block;

	*ret_gpa = slot * SLOT_BYTES;
	gr_rcu_read_lock();
	block = gr_ram_block_by_gpa_rcu(w->rig->ram, gr_gpa(*ret_gpa), NULL, NULL);
	if (block) {
		gr_ram_block_get(block);
	}
	gr_rcu_read_unlock();
	return block;
}

/*
 * Where to write. Pages retire from the bottom up as the test goes on, so that what was lost
 * is not healed by a later store to the same page.
 */
static uint64_t pick_offset(struct worker *w, const struct gr_ram_block *block, double part)
{
	uint64_t pages = block->max_bytes / ORACLE_PAGE, retired = (uint64_t)(part * (double)pages);
	uint64_t page = retired + test_rand(&w->rnd) % (pages - retired);

	return page * ORACLE_PAGE + test_rand(&w->rnd) % (ORACLE_PAGE / 8) * 8;
}

static void write_unmarked(struct worker *w, struct gr_ram_block *block, uint64_t offset)
{
	uint64_t value = test_rand(&w->rnd);
	uint64_t room = block->max_bytes - offset;

	if (value % 4 == 0) {
		/* By the kernel; may cross into the next page. */
		size_t bytes = room < 300 ? room : 300;

		ASSERT_EQ(syscall(SYS_getrandom, block->host + offset, bytes, 0), (long)bytes);
	} else {
		gr_copy_to_guest(block->host + offset, &value, sizeof(value));
	}
}

static void write_marked(struct worker *w, struct gr_ram_block *block, uint64_t gpa,
			 uint64_t offset)
{
	uint64_t value[40];
	struct gr_ram_iov iov[2];
	unsigned int entries;
	size_t bytes = sizeof(value) < block->max_bytes - offset ? sizeof(value)
								 : block->max_bytes - offset;

	for (size_t i = 0; i < GR_ARRAY_SIZE(value); i++) {
		value[i] = test_rand(&w->rnd);
	}
	switch (value[0] % 3) {
	case 0:
		/* The slot may have become another block, or none, meanwhile. */
		(void)gr_ram_write(w->rig->ram, gr_gpa(gpa + offset), value, bytes, NULL);
		break;
	case 1:
		if (gr_ram_iov_get(w->rig->ram, gr_gpa(gpa + offset), bytes, true, iov, 2, &entries,
				   NULL) == 0) {
			gr_copy_to_guest(iov[0].iov.iov_base, value, iov[0].iov.iov_len);
			gr_ram_iov_put(iov, entries, iov[0].iov.iov_len);
		}
		break;
	default:
		gr_copy_to_guest(block->host + offset, value, bytes);
		gr_ram_mark(block, offset, bytes);
	}
}

static void *writer(void *opaque)
{
	struct worker *w = opaque;
	double part;

	while ((part = elapsed(w->rig)) < 1) {
		uint64_t gpa;
		struct gr_ram_block *block = pick(w, &gpa);
		uint64_t offset;

		if (!block) {
			continue;
		}
		offset = pick_offset(w, block, part);
		if (w->rig->writers == (GR_WRITERS_MAPPING | GR_WRITERS_MARKED)
			    ? w->rnd % 2 == 0
			    : w->rig->writers == GR_WRITERS_MARKED) {
			write_marked(w, block, gpa, offset);
		} else {
			write_unmarked(w, block, offset);
		}
		gr_ram_block_put(block);
		if (++w->writes % 64 == 0) {
			usleep(20);
		}
	}
	return NULL;
}

static void *plugger(void *opaque)
{
	struct worker *w = opaque;
	bool there[SLOTS] = { false };

	while (elapsed(w->rig) < 1) {
		unsigned int slot = FIXED + (unsigned int)(test_rand(&w->rnd) % (SLOTS - FIXED));
		char id[16];

		if (there[slot]) {
			(void)snprintf(id, sizeof(id), "slot%u", slot);
			ASSERT_EQ(gr_ram_block_del_by_id(w->rig->ram, id, NULL), 0);
		} else {
			plug(w->rig, slot, 1 + test_rand(&w->rnd) % PLUG_PAGES_MAX);
			(void)gr_add_relaxed(&w->rig->plugs, 1);
		}
		there[slot] = !there[slot];
		usleep(500 + (useconds_t)(test_rand(&w->rnd) % 2000));
	}
	return NULL;
}

static void *second_consumer(void *opaque)
{
	struct rig *r = opaque;
	uint64_t rnd = test_seed() + 99;

	while (!gr_load_acquire(&r->stop)) { /* pairs with the release in run() */
		if (test_rand(&rnd) % 4 == 0) {
			/* Failed half way: nothing of it may be lost. */
			oracle_sync(&r->b);
			oracle_begin(&r->b);
			ASSERT_EQ(gr_dirty_epoch_abort(r->b.consumer), 0);
		} else {
			oracle_round(&r->b);
		}
	}
	return NULL;
}

/* ---- the suite ------------------------------------------------------------------------ */

enum { WRITERS = 2 };

static void run(bool uffd, enum gr_ram_backing backing, unsigned int writers)
{
	struct rig *r = calloc(1, sizeof(*r));
	struct worker w[WRITERS + 1];
	pthread_t thread[WRITERS + 1], consumer;
	struct gr_error err;
	uint64_t writes = 0;
	char names[64];

	ASSERT(r);
	r->backing = backing;
	r->writers = writers;
	ASSERT_EQ(gr_ram_create(NULL, &r->ram, NULL), 0);
	ASSERT_EQ(gr_track_create(r->ram, &r->track, NULL), 0);
	if (uffd && gr_track_use(r->track, GR_TRACKER_UFFD_WP, NULL, &err) < 0) {
		SKIP("%s", err.msg);
	}
	for (unsigned int slot = 0; slot < FIXED; slot++) {
		plug(r, slot, FIXED_PAGES);
	}
	if (gr_track_start(r->track, writers, &err) < 0) {
		FAIL("%s", err.msg);
	}
	oracle_start(&r->a, "A", r->ram, r->track);
	oracle_start(&r->b, "B", r->ram, r->track);
	r->seconds = test_seconds(0.6);
	r->begin = now();
	for (unsigned int i = 0; i < WRITERS + 1; i++) {
		w[i] = (struct worker){ .rig = r, .rnd = test_seed() + i };
		ASSERT_EQ(pthread_create(&thread[i], NULL, i < WRITERS ? writer : plugger, &w[i]),
			  0);
	}
	ASSERT_EQ(pthread_create(&consumer, NULL, second_consumer, r), 0);
	while (elapsed(r) < 1) {
		oracle_round(&r->a);
	}
	for (unsigned int i = 0; i < WRITERS + 1; i++) {
		ASSERT_EQ(pthread_join(thread[i], NULL), 0);
		writes += w[i].writes;
	}
	gr_store_release(&r->stop, 1); /* pairs with the acquire in second_consumer() */
	ASSERT_EQ(pthread_join(consumer, NULL), 0);
	gr_track_describe(r->track, names, sizeof(names));
	test_diag("%s: %llu writes, %u plugs", names, (unsigned long long)writes, r->plugs);
	ASSERT_GT(writes, 0u);
	ASSERT_GT(r->plugs, 0u);
	oracle_check(&r->a);
	oracle_check(&r->b);
	gr_track_stop(r->track);
	gr_track_free(r->track);
	gr_ram_free(r->ram);
	free(r);
}

static void drop_privileges(void)
{
	if (geteuid() != 0) {
		return; /* had none anyway */
	}
	ASSERT_EQ(setgid(65534) | setuid(65534), 0);
	/* As a process that was started by that user is. */
	ASSERT_EQ(prctl(PR_SET_DUMPABLE, 1), 0);
}

TEST(software_memfd)
{
	run(false, GR_RAM_MEMFD, GR_WRITERS_MARKED);
}

TEST(software_anonymous)
{
	run(false, GR_RAM_ANONYMOUS, GR_WRITERS_MARKED);
}

TEST(uffd_wp_memfd)
{
	run(true, GR_RAM_MEMFD, GR_WRITERS_MAPPING);
}

TEST(uffd_wp_anonymous)
{
	run(true, GR_RAM_ANONYMOUS, GR_WRITERS_MAPPING);
}

TEST(uffd_wp_memfd_without_privilege)
{
	drop_privileges();
	run(true, GR_RAM_MEMFD, GR_WRITERS_MAPPING);
}

TEST(uffd_wp_anonymous_without_privilege)
{
	drop_privileges();
	run(true, GR_RAM_ANONYMOUS, GR_WRITERS_MAPPING);
}

TEST(uffd_wp_and_software_together)
{
	run(true, GR_RAM_MEMFD, GR_WRITERS_MAPPING | GR_WRITERS_MARKED);
}

TEST_MAIN()
