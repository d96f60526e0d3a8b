/* SPDX-License-Identifier: MIT */
#include "suite.h"
#include "base/atomic.h"
#include <errno.h>
#include <guestram/ram_change.h>
#include <pthread.h>
#include <stdio.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <time.h>

enum {
	WRITERS = 2,
	ROUNDS_MIN = 8, /* of the first consumer, however slow the machine */
	GROW_MAX = 6,
	RESIZE_PAGES_MIN = 64, /* what a region shows stays */
	RESIZE_PAGES_MAX = 300,
};
/* More than a chunk of the dirty memory covers (8 GiB), so each grows it. */
#define HOLE_BYTES (9ull << 30)

struct worker {
	struct suite *suite;
	uint64_t rnd;
	uint64_t writes;
};

static double now(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (double)ts.tv_sec + (double)ts.tv_nsec / 1e9;
}

double suite_elapsed(const struct suite *s)
{
	double part = (now() - s->begin) / s->seconds;
	double rounds = (double)gr_load_relaxed(&s->rounds) / ROUNDS_MIN;

	return part < rounds ? part : rounds;
}

/*
 * Pages retire from the bottom up as the test goes on, so that what was lost is not healed by a
 * later store to the same page.
 */
uint64_t suite_retired(const struct suite *s, uint64_t pages)
{
	double part = suite_elapsed(s);

	return part < 1 ? (uint64_t)(part * (double)pages) : pages - 1;
}

static struct gr_ram_block *plug(struct suite *s, unsigned int slot, uint64_t pages,
				 uint64_t pages_max)
{
	char id[16];
	struct gr_ram_block_desc desc = { .size = sizeof(desc),
					  .id = id,
					  .used_bytes = pages * ORACLE_PAGE,
					  .max_bytes = pages_max * ORACLE_PAGE,
					  .backing = s->row->backing,
					  .mapped = pages == pages_max,
					  .gpa = gr_gpa(slot * SUITE_SLOT_BYTES),
					  .fd = -1 };
	struct gr_ram_block *block;
	struct gr_error err;

	(void)snprintf(id, sizeof(id), "slot%u", slot);
	if (gr_ram_block_add(s->ram, &desc, &block, &err) < 0) {
		FAIL("%s", err.msg);
	}
	if (!desc.mapped) {
		struct gr_ram_region region = { .gpa = desc.gpa,
						.bytes = desc.used_bytes,
						.block = block };

		ASSERT_EQ(gr_ram_region_add(s->ram, &region, NULL), 0);
	}
	return block;
}

static struct gr_ram_block *plug_whole(struct suite *s, unsigned int slot, uint64_t pages)
{
	return plug(s, slot, pages, pages);
}

static void unplug(struct suite *s, unsigned int slot)
{
	char id[16];

	(void)snprintf(id, sizeof(id), "slot%u", slot);
	ASSERT_EQ(gr_ram_block_del_by_id(s->ram, id, NULL), 0);
}

/* ---- ways to write -------------------------------------------------------------------- */

/* The block that is in a slot now, with a reference; NULL: it is empty. */
static struct gr_ram_block *block_in(struct suite *s, unsigned int slot)
{
	char id[16];
	struct gr_ram_block *block;

	(void)snprintf(id, sizeof(id), "slot%u", slot);
	gr_rcu_read_lock();
	block = gr_ram_block_by_id_rcu(s->ram, id);
	if (block) {
		gr_ram_block_get(block);
	}
	gr_rcu_read_unlock();
	return block;
}

static uint64_t pick_page(struct worker *w, uint64_t pages)
{
	uint64_t retired = suite_retired(w->suite, pages);

	return retired + test_rand(&w->rnd) % (pages - retired);
}

static uint64_t pick_offset(struct worker *w, uint64_t bytes)
{
	return pick_page(w, bytes / ORACLE_PAGE) * ORACLE_PAGE +
	       test_rand(&w->rnd) % (ORACLE_PAGE / 8) * 8;
}

static void write_unmarked(struct worker *w, struct gr_ram_block *block, uint64_t offset,
			   uint64_t room)
{
	uint64_t value = test_rand(&w->rnd);

	if (value % 4 == 0 && !(w->suite->row->writers & GR_WRITERS_STORES)) {
		/* By the kernel; may cross into the next page. */
		size_t bytes = room < 300 ? room : 300;

		ASSERT_EQ(syscall(SYS_getrandom, block->host + offset, bytes, 0), (long)bytes);
	} else {
		gr_copy_to_guest(block->host + offset, &value, sizeof(value));
	}
}

/* The slot may have become another block, or none, meanwhile. */
static void write_marked(struct worker *w, unsigned int slot, struct gr_ram_block *block,
			 uint64_t offset, uint64_t room)
{
	uint64_t value[40];
	struct gr_ram_iov iov[2];
	unsigned int entries;
	size_t bytes = sizeof(value) < room ? sizeof(value) : room;
	gr_gpa_t gpa = gr_gpa(slot * SUITE_SLOT_BYTES + offset);

	for (size_t i = 0; i < GR_ARRAY_SIZE(value); i++) {
		value[i] = test_rand(&w->rnd);
	}
	switch (value[0] % 3) {
	case 0:
		(void)gr_ram_write(w->suite->ram, gpa, value, bytes, NULL);
		break;
	case 1:
		if (gr_ram_iov_get(w->suite->ram, gpa, bytes, true, iov, 2, &entries, NULL) == 0) {
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
	unsigned int writers = w->suite->row->writers;
	bool both = (writers & GR_WRITERS_MAPPING) && (writers & GR_WRITERS_MARKED);

	while (suite_elapsed(w->suite) < 1) {
		unsigned int slot = (unsigned int)(test_rand(&w->rnd) % SUITE_SLOTS);
		struct gr_ram_block *block = block_in(w->suite, slot);
		uint64_t bytes, offset;

		if (!block) {
			continue;
		}
		bytes = gr_ram_block_used_bytes(block);
		offset = pick_offset(w, bytes);
		if (both ? w->rnd % 2 == 0 : (writers & GR_WRITERS_MARKED) != 0) {
			write_marked(w, slot, block, offset, bytes - offset);
		} else {
			write_unmarked(w, block, offset, bytes - offset);
		}
		gr_ram_block_put(block);
		if (++w->writes % 64 == 0 && w->suite->condition != SUITE_RACE) {
			usleep(20);
		}
	}
	return NULL;
}

static void *guest_writer(void *opaque)
{
	struct worker *w = opaque;

	w->writes = w->suite->row->guest_write(w->suite, w->suite->guest);
	return NULL;
}

/* ---- what goes on meanwhile ----------------------------------------------------------- */

static void plug_some(struct worker *w, bool *there)
{
	unsigned int slot =
		SUITE_FIXED + (unsigned int)(test_rand(&w->rnd) % (SUITE_SLOTS - SUITE_FIXED));

	if (there[slot]) {
		unplug(w->suite, slot);
	} else {
		(void)plug_whole(w->suite, slot, 1 + test_rand(&w->rnd) % SUITE_PLUG_PAGES_MAX);
	}
	there[slot] = !there[slot];
}

/* A hole that nobody can write moves the RAM address space on; what is plugged next lies beyond it.
 */
static void grow_some(struct worker *w, unsigned int n)
{
	struct suite *s = w->suite;
	int fd = memfd_create("suite-hole", MFD_CLOEXEC);
	struct gr_ram_block_desc desc = { .size = sizeof(desc),
					  .used_bytes = HOLE_BYTES,
					  .backing = GR_RAM_FD,
					  .flags = GR_RAM_HOST_READONLY | GR_RAM_READONLY |
						   GR_RAM_NO_MIGRATE,
					  .fd = fd };
	uint64_t pages = gr_dirty_pages(gr_ram_dirty(s->ram));
	struct gr_error err;

	ASSERT_EQ(ftruncate(fd, (off_t)HOLE_BYTES), 0);
	if (gr_ram_block_add(s->ram, &desc, NULL, &err) < 0) {
		FAIL("%s", err.msg);
	}
	close(fd);
	ASSERT_GT(gr_dirty_pages(gr_ram_dirty(s->ram)), pages);
	if (n < SUITE_SLOTS - SUITE_FIXED) {
		(void)plug_whole(s, SUITE_FIXED + n, SUITE_PLUG_PAGES_MAX);
	}
}

static void discard_some(struct worker *w)
{
	unsigned int slot = (unsigned int)(test_rand(&w->rnd) % SUITE_FIXED);
	struct gr_ram_block *block = block_in(w->suite, slot);
	uint64_t pages = block->max_bytes / ORACLE_PAGE;
	uint64_t page = pick_page(w, pages), n = 1 + test_rand(&w->rnd) % 20;
	struct gr_error err;

	n = n < pages - page ? n : pages - page;
	if (gr_ram_discard(block, page * ORACLE_PAGE, n * ORACLE_PAGE, &err) < 0) {
		FAIL("%s", err.msg);
	}
	gr_ram_block_put(block);
}

static void resize_some(struct worker *w, struct gr_ram_block *block)
{
	uint64_t pages =
		RESIZE_PAGES_MIN + test_rand(&w->rnd) % (RESIZE_PAGES_MAX - RESIZE_PAGES_MIN + 1);
	struct gr_error err;

	if (gr_ram_block_resize(block, pages * ORACLE_PAGE, &err) < 0) {
		FAIL("%s", err.msg);
	}
}

static void *changer(void *opaque)
{
	struct worker *w = opaque;
	struct suite *s = w->suite;
	bool there[SUITE_SLOTS] = { false };
	struct gr_ram_block *elastic = NULL;

	if (s->condition == SUITE_RESIZE) {
		elastic = plug(s, SUITE_SLOTS - 1, RESIZE_PAGES_MIN, RESIZE_PAGES_MAX);
	}
	while (suite_elapsed(s) < 1) {
		switch (s->condition) {
		case SUITE_PLUG:
			plug_some(w, there);
			break;
		case SUITE_GROW:
			if (s->changes < GROW_MAX) {
				grow_some(w, s->changes);
				usleep((useconds_t)(s->seconds * 1e6 / (GROW_MAX + 1)));
			}
			break;
		case SUITE_DISCARD:
			discard_some(w);
			break;
		case SUITE_RESIZE:
			resize_some(w, elastic);
			break;
		case SUITE_RACE:
			break;
		}
		(void)gr_add_relaxed(&s->changes, 1);
		usleep(500 + (useconds_t)(test_rand(&w->rnd) % 2000));
	}
	return NULL;
}

static void *second_consumer(void *opaque)
{
	struct suite *s = opaque;
	uint64_t rnd = test_seed() + 99;

	while (!gr_load_acquire(&s->stop)) { /* pairs with the release in run() */
		if (test_rand(&rnd) % 4 == 0) {
			/* Failed half way: nothing of it may be lost. */
			oracle_sync(&s->b);
			oracle_begin(&s->b);
			ASSERT_EQ(gr_dirty_epoch_abort(s->b.consumer), 0);
		} else {
			oracle_round(&s->b);
		}
	}
	return NULL;
}

/* ---- the suite ------------------------------------------------------------------------ */

static void drop_privileges(void)
{
	if (geteuid() != 0) {
		return; /* had none anyway */
	}
	ASSERT_EQ(setgid(65534) | setuid(65534), 0);
	/* As a process that was started by that user is. */
	ASSERT_EQ(prctl(PR_SET_DUMPABLE, 1), 0);
}

struct suite *suite_create(const struct suite_row *row, enum suite_condition condition)
{
	struct suite *s = calloc(1, sizeof(*s));
	struct gr_error err;

	ASSERT(s);
	s->row = row;
	s->condition = condition;
	if (row->without_privilege) {
		drop_privileges();
	}
	ASSERT_EQ(gr_ram_create(NULL, &s->ram, NULL), 0);
	ASSERT_EQ(gr_track_create(s->ram, &s->track, NULL), 0);
	if (row->guest_create) {
		s->guest = row->guest_create(s);
	} else if (row->kind != GR_TRACKER_SOFTWARE &&
		   gr_track_use(s->track, row->kind, NULL, &err) < 0) {
		SKIP("%s", err.msg);
	}
	return s;
}

void suite_free(struct suite *s)
{
	if (s->guest) {
		s->row->guest_destroy(s->guest);
	}
	gr_track_free(s->track);
	gr_ram_free(s->ram);
	free(s);
}

static void start(struct suite *s)
{
	bool race = s->condition == SUITE_RACE;
	struct gr_error err;

	for (unsigned int slot = 0; slot < SUITE_FIXED; slot++) {
		(void)plug_whole(s, slot, race ? SUITE_RACE_PAGES : SUITE_FIXED_PAGES);
	}
	if (gr_track_start(s->track, s->row->writers, &err) < 0) {
		FAIL("%s", err.msg);
	}
	oracle_start(&s->a, "A", s->ram, s->track);
	oracle_start(&s->b, "B", s->ram, s->track);
}

static void *(*thread_main(const struct suite *s, unsigned int i))(void *)
{
	if (i == WRITERS) {
		return changer;
	}
	return s->guest && i == 0 ? guest_writer : writer;
}

/* Until the time is over; returns how many writes there were. */
static uint64_t run(struct suite *s)
{
	struct worker w[WRITERS + 1];
	pthread_t thread[WRITERS + 1], consumer;
	uint64_t writes = 0;

	/* The first full copies are not the point. */
	oracle_round(&s->a);
	oracle_round(&s->b);
	s->seconds = test_seconds(0.5);
	s->begin = now();
	for (unsigned int i = 0; i < WRITERS + 1; i++) {
		w[i] = (struct worker){ .suite = s, .rnd = test_seed() + i };
		ASSERT_EQ(pthread_create(&thread[i], NULL, thread_main(s, i), &w[i]), 0);
	}
	ASSERT_EQ(pthread_create(&consumer, NULL, second_consumer, s), 0);
	while (suite_elapsed(s) < 1) {
		oracle_round(&s->a);
		(void)gr_add_relaxed(&s->rounds, 1);
	}
	for (unsigned int i = 0; i < WRITERS + 1; i++) {
		ASSERT_EQ(pthread_join(thread[i], NULL), 0);
		ASSERT(w[i].writes > 0 || i == WRITERS);
		writes += w[i].writes;
	}
	gr_store_release(&s->stop, 1); /* pairs with the acquire in second_consumer() */
	ASSERT_EQ(pthread_join(consumer, NULL), 0);
	return writes;
}

void suite_run(const struct suite_row *row, enum suite_condition condition)
{
	struct suite *s = suite_create(row, condition);
	uint64_t writes;
	char names[64];

	start(s);
	writes = run(s);
	gr_track_describe(s->track, names, sizeof(names));
	test_diag("%s: %" PRIu64 " writes, %u changes", names, writes, s->changes);
	ASSERT_GT(s->changes, 0u);
	oracle_check(&s->a);
	oracle_check(&s->b);
	gr_track_stop(s->track);
	suite_free(s);
}
