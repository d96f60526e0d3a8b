/* SPDX-License-Identifier: MIT */
/*
 * Copies before write, one after the other, under writers that never rest: what the walk and
 * before_write() were shown must be, byte for byte, what memory held when each of them began. The
 * writers are stopped for that moment alone, in which the test makes a plain copy to compare with.
 * Blocks come, go and grow, pieces are given back, the owner's buffer runs full, and some copies
 * are given up half way: then nobody may be left asleep. The same for whole snapshots, with their
 * buffers, files and cancels: what the image has is compared.
 */
#include "concurrent.h"
#include "ram/copy.h"
#include <errno.h>
#include <guestram/copy_before_write.h>
#include <guestram/image.h>
#include <guestram/ram_change.h>
#include <guestram/snapshot.h>
#include <guestram/track.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <unistd.h>

enum { PAGE = 4096, BLOCKS = 3, PAGES = 200, WRITERS = 3, KEPT_MAX = 4096 };

struct image {
	struct gr_ram_block *block;
	uint64_t bytes;
	uint8_t then[2 * PAGES * PAGE];	 /* a plain copy of the moment */
	uint8_t saved[2 * PAGES * PAGE]; /* what was shown */
	uint8_t times[2 * PAGES];
};

static uint64_t writes; /* (a) */

struct rig {
	struct gr_ram *ram;
	struct gr_ram_block *block[BLOCKS]; /* with a reference each */
	pthread_rwlock_t moment;	    /* read: a write is being made; write: nobody writes */
	uint32_t stop;			    /* (a) */
	bool system_calls;		    /* they can be stopped */

	pthread_mutex_t lock;
	struct image *image; /* (lock) BLOCKS of them */
	struct gr_cbw_piece kept[KEPT_MAX];
	unsigned int kept_count; /* (lock) */
	unsigned int room;	 /* (lock) of the owner's buffer, pages */
	unsigned int asked;	 /* (lock) */
	bool give_up;		 /* (lock) when the buffer is full */
};

/* ---- the owner ------------------------------------------------------------------------- */

static void save(struct rig *r, const struct gr_cbw_piece *piece)
{
	for (unsigned int i = 0; i < BLOCKS; i++) {
		struct image *image = &r->image[i];

		if (image->block == piece->block) {
			ASSERT_LE(piece->offset + piece->bytes, image->bytes);
			gr_copy_from_guest(image->saved + piece->offset, piece->host, piece->bytes);
			for (uint64_t at = 0; at < piece->bytes; at += PAGE) {
				image->times[(piece->offset + at) / PAGE]++;
			}
			return;
		}
	}
	FAIL("a block that was not there");
}

static enum gr_cbw_verdict before_write(void *opaque, const struct gr_cbw_piece *piece)
{
	struct rig *r = opaque;
	enum gr_cbw_verdict verdict = GR_CBW_SAVED;

	pthread_mutex_lock(&r->lock);
	r->asked++;
	if (r->room > 0) {
		r->room--;
		save(r, piece);
	} else if (r->give_up) {
		verdict = GR_CBW_ABANDON;
	} else {
		ASSERT_LT(r->kept_count, (unsigned int)KEPT_MAX);
		r->kept[r->kept_count++] = *piece;
		verdict = GR_CBW_KEEP;
	}
	pthread_mutex_unlock(&r->lock);
	return verdict;
}

/* What waits comes first. */
static void save_kept(struct rig *r, struct gr_cbw *cbw)
{
	struct gr_cbw_piece piece;
	bool more = true;

	while (more) {
		pthread_mutex_lock(&r->lock);
		more = r->kept_count > 0;
		if (more) {
			piece = r->kept[--r->kept_count];
			save(r, &piece);
		}
		pthread_mutex_unlock(&r->lock);
		if (more) {
			gr_cbw_release(cbw, &piece);
		}
	}
}

/* ---- who changes memory ---------------------------------------------------------------- */

struct worker {
	struct rig *r;
	uint64_t rnd;
};

static void write_somewhere(struct rig *r, uint64_t *rnd)
{
	unsigned int i = (unsigned int)(test_rand(rnd) % BLOCKS);
	struct gr_ram_block *block = r->block[i];
	uint64_t value[8] = { test_rand(rnd) };
	/* Some pages more often than others, and some places that are not there yet. */
	uint64_t page = test_rand(rnd) % (test_rand(rnd) % 2 ? 20 : PAGES);
	uint64_t offset = page * PAGE + test_rand(rnd) % (PAGE - sizeof(value));
	uint64_t how = test_rand(rnd) % 4;

	if (how == 0 && r->system_calls) {
		ASSERT_EQ(syscall(SYS_getrandom, block->host + offset, 64, 0), 64);
	} else if (how <= 1) {
		gr_gpa_t gpa = gr_gpa(((uint64_t)i + 1) << 30);

		gpa.v += offset;
		ASSERT_EQ(gr_ram_write(r->ram, gpa, value, sizeof(value), NULL), 0);
	} else {
		gr_copy_to_guest(block->host + offset, value, sizeof(value));
	}
}

static void *writer(void *opaque)
{
	struct worker *w = opaque;

	while (!LOAD(&w->r->stop)) {
		pthread_rwlock_rdlock(&w->r->moment);
		write_somewhere(w->r, &w->rnd);
		pthread_rwlock_unlock(&w->r->moment);
		if (ADD(&writes, 1) % 64 == 0) {
			usleep(20); /* whoever waits for the moment gets it */
		}
	}
	return NULL;
}

static void *changer(void *opaque)
{
	struct worker *w = opaque;
	struct rig *r = w->r;

	while (!LOAD(&r->stop)) {
		struct gr_ram_block *block = r->block[test_rand(&w->rnd) % BLOCKS];
		struct gr_ram_block_desc desc = {
			.size = sizeof(desc), .id = "passing", .used_bytes = 16 * PAGE, .fd = -1
		};
		int ret;

		pthread_rwlock_rdlock(&r->moment);
		switch (test_rand(&w->rnd) % 4) {
		case 0:
			ret = gr_ram_discard(block, test_rand(&w->rnd) % (PAGES - 4) * PAGE,
					     4 * PAGE, NULL);
			ASSERT(ret == 0 || ret == -EBUSY);
			break;
		case 1:
			ret = gr_ram_block_resize(
				block, (PAGES + test_rand(&w->rnd) % PAGES) * PAGE, NULL);
			ASSERT(ret == 0 || ret == -EBUSY); /* a snapshot starts */
			break;
		default:
			if (gr_ram_block_add(r->ram, &desc, NULL, NULL) < 0) {
				(void)gr_ram_block_del_by_id(r->ram, "passing", NULL);
			}
		}
		pthread_rwlock_unlock(&r->moment);
		usleep(300);
	}
	return NULL;
}

/* ---- one copy -------------------------------------------------------------------------- */

static void remember(struct rig *r)
{
	memset(r->image, 0, BLOCKS * sizeof(*r->image));
	for (unsigned int i = 0; i < BLOCKS; i++) {
		struct image *image = &r->image[i];

		image->block = r->block[i];
		image->bytes = gr_ram_block_used_bytes(image->block);
		gr_copy_from_guest(image->then, image->block->host, image->bytes);
		memset(image->saved, 0xa5, image->bytes);
	}
}

static void compare(const struct rig *r)
{
	for (unsigned int i = 0; i < BLOCKS; i++) {
		const struct image *image = &r->image[i];

		for (uint64_t page = 0; page < image->bytes / PAGE; page++) {
			if (image->times[page] != 1) {
				FAIL("page %llu of block %u was shown %u times",
				     (unsigned long long)page, i, image->times[page]);
			}
			if (memcmp(image->saved + page * PAGE, image->then + page * PAGE, PAGE) !=
			    0) {
				FAIL("page %llu of block %u is not what it was",
				     (unsigned long long)page, i);
			}
		}
	}
}

static unsigned int writers_of(const struct rig *r)
{
	return r->system_calls ? GR_WRITERS_MAPPING | GR_WRITERS_MARKED : GR_WRITERS_STORES;
}

static struct gr_cbw *start(struct rig *r)
{
	struct gr_cbw_params params = { .size = sizeof(params),
					.writers = writers_of(r),
					.before_write = before_write,
					.opaque = r };
	struct gr_error err;
	struct gr_cbw *cbw;

	/* The passing block is no part of the comparison. */
	(void)gr_ram_block_del_by_id(r->ram, "passing", NULL);
	if (gr_cbw_start(r->ram, &params, &cbw, &err) < 0) {
		FAIL("%s", err.msg);
	}
	return cbw;
}

/* Whether it was given up. */
static bool one_copy(struct rig *r, uint64_t *rnd)
{
	/* Now and then not all of it. */
	uint64_t pieces_max = test_rand(rnd) % 5 == 0 ? test_rand(rnd) % 40 : UINT64_MAX;
	struct gr_cbw_piece piece;
	struct gr_cbw *cbw;
	struct gr_error err;
	bool whole;
	int ret = 1;

	pthread_rwlock_wrlock(&r->moment);
	r->room = (unsigned int)(test_rand(rnd) % 200);
	r->give_up = test_rand(rnd) % 4 == 0;
	r->kept_count = 0;
	remember(r);
	cbw = start(r);
	pthread_rwlock_unlock(&r->moment);

	for (uint64_t i = 0; ret > 0 && i < pieces_max; i++) {
		save_kept(r, cbw);
		ret = gr_cbw_next(cbw, (1 + test_rand(rnd) % 8) * PAGE, &piece, &err);
		if (ret > 0) {
			usleep((useconds_t)(test_rand(rnd) % 100));
			pthread_mutex_lock(&r->lock);
			save(r, &piece);
			pthread_mutex_unlock(&r->lock);
			gr_cbw_release(cbw, &piece);
		}
	}
	/* What is being asked about is kept, or saved, sooner or later. */
	if (ret == 0) {
		struct gr_cbw_stats stats;

		do {
			save_kept(r, cbw);
			gr_cbw_stats(cbw, &stats);
			sched_yield();
		} while (stats.released_bytes < stats.bytes &&
			 gr_cbw_next(cbw, PAGE, &piece, &err) == 0);
	}
	whole = gr_cbw_end(cbw, &err) == 0;
	if (whole) {
		compare(r);
	} else if (ret == 0 && !r->give_up) {
		FAIL("%s", err.msg);
	}
	return !whole;
}

/* ---- one snapshot ---------------------------------------------------------------------- */

static int on_pause(void *opaque, struct gr_error *err)
{
	struct rig *r = opaque;

	(void)err;
	pthread_rwlock_wrlock(&r->moment);
	remember(r);
	return 0;
}

static void on_resume(void *opaque)
{
	struct rig *r = opaque;

	pthread_rwlock_unlock(&r->moment);
}

static int on_save(void *opaque, struct gr_state_writer *writer, struct gr_error *err)
{
	(void)opaque;
	return gr_state_put(writer, "test/state", 0, 1, "abc", 3, err);
}

struct canceller {
	struct gr_snapshot *snapshot;
	useconds_t after;
};

static void *cancel(void *opaque)
{
	struct canceller *c = opaque;

	usleep(c->after);
	gr_snapshot_cancel(c->snapshot);
	return NULL;
}

static void read_image(struct rig *r, const char *path)
{
	struct gr_image_block info;
	struct gr_image *image;
	struct gr_error err;

	if (gr_image_open(path, &image, &err) < 0) {
		FAIL("%s", err.msg);
	}
	for (uint32_t i = 0; gr_image_block(image, i, &info) == 0; i++) {
		struct image *to = r->image;

		for (; to < r->image + BLOCKS && strcmp(to->block->id, info.id) != 0; to++) {
		}
		if (to < r->image + BLOCKS) {
			ASSERT_EQ(info.used_bytes, to->bytes);
			ASSERT_EQ(gr_image_read(image, i, 0, to->saved, to->bytes, NULL), 0);
			memset(to->times, 1, to->bytes / PAGE);
		}
	}
	gr_image_close(image);
}

static bool one_snapshot(struct rig *r, uint64_t *rnd)
{
	const struct gr_source_ops ops = {
		.pause = on_pause, .resume = on_resume, .save = on_save, .opaque = r
	};
	struct gr_snapshot_params params = {
		.size = sizeof(params),
		.writers = writers_of(r),
		.buffer_bytes = (1 + test_rand(rnd) % (test_rand(rnd) % 2 ? 8 : 400)) * PAGE,
		.when_full = test_rand(rnd) % 3 == 0 ? GR_SNAPSHOT_ABORT : GR_SNAPSHOT_WAIT,
		.bandwidth_bytes_per_s_max = test_rand(rnd) % 2 ? UINT64_C(20) << 20 : 0,
	};
	struct gr_snapshot_stats stats;
	struct canceller c = { .after = (useconds_t)(test_rand(rnd) % 100000) };
	bool cancels = test_rand(rnd) % 3 == 0;
	char path[64], part[80];
	struct gr_error err;
	pthread_t t = { 0 };
	int ret;

	(void)snprintf(path, sizeof(path), "/tmp/gr-snapshot-%d", (int)getpid());
	(void)snprintf(part, sizeof(part), "%s.part", path);
	if (gr_snapshot_create(r->ram, path, &params, &ops, &c.snapshot, &err) < 0) {
		FAIL("%s", err.msg);
	}
	if (cancels) {
		t = spawn(cancel, &c);
	}
	ret = gr_snapshot_run(c.snapshot, &err);
	if (cancels) {
		ASSERT_EQ(pthread_join(t, NULL), 0);
	}
	gr_snapshot_stats(c.snapshot, &stats);
	ASSERT_LE(stats.buffered_bytes_max, params.buffer_bytes);
	ASSERT_EQ(access(part, F_OK), -1);
	if (ret == 0) {
		read_image(r, path);
		compare(r);
		ASSERT_EQ(unlink(path), 0);
	} else {
		ASSERT_EQ(access(path, F_OK), -1);
		if (!(ret == -ECANCELED && cancels) &&
		    !(ret == -ENOBUFS && params.when_full == GR_SNAPSHOT_ABORT)) {
			FAIL("%s", err.msg);
		}
	}
	r->asked += (unsigned int)stats.copied_pages;
	gr_snapshot_free(c.snapshot);
	return ret != 0;
}

static void run(enum gr_ram_backing backing, bool (*one)(struct rig *r, uint64_t *rnd))
{
	struct rig *r = calloc(1, sizeof(*r));
	struct worker w[WRITERS + 1];
	pthread_t thread[WRITERS + 1];
	pthread_rwlockattr_t attr;
	struct gr_feature features[GR_FEATURES_MAX];
	unsigned int n = gr_features_probe(features, GR_FEATURES_MAX), copies = 0, given_up = 0;
	uint64_t rnd = test_seed(), end;

	ASSERT(r);
	for (unsigned int i = 0; i < n; i++) {
		if (strcmp(features[i].name, "uffd-wp-sync") == 0 && !features[i].available) {
			SKIP("%s", features[i].detail);
		}
		if (strcmp(features[i].name, "userfaultfd-kernel-faults") == 0) {
			r->system_calls = features[i].available;
		}
	}
	r->image = calloc(BLOCKS, sizeof(*r->image));
	ASSERT(r->image);
	ASSERT_EQ(pthread_rwlockattr_init(&attr), 0);
	ASSERT_EQ(
		pthread_rwlockattr_setkind_np(&attr, PTHREAD_RWLOCK_PREFER_WRITER_NONRECURSIVE_NP),
		0);
	ASSERT_EQ(pthread_rwlock_init(&r->moment, &attr), 0);
	ASSERT_EQ(pthread_mutex_init(&r->lock, NULL), 0);
	ASSERT_EQ(gr_ram_create(NULL, &r->ram, NULL), 0);
	for (unsigned int i = 0; i < BLOCKS; i++) {
		char id[8];
		struct gr_ram_block_desc desc = { .size = sizeof(desc),
						  .id = id,
						  .used_bytes = PAGES * PAGE,
						  .max_bytes = 2 * PAGES * PAGE,
						  .backing = backing,
						  .fd = -1 };

		(void)snprintf(id, sizeof(id), "ram%u", i);
		ASSERT_EQ(gr_ram_block_add(r->ram, &desc, &r->block[i], NULL), 0);
		ASSERT_EQ(gr_ram_region_add(
				  r->ram,
				  &(struct gr_ram_region){ .block = r->block[i],
							   .gpa = gr_gpa((uint64_t)(i + 1) << 30),
							   .bytes = PAGES * PAGE },
				  NULL),
			  0);
	}
	for (unsigned int i = 0; i < WRITERS + 1; i++) {
		w[i] = (struct worker){ .r = r, .rnd = test_seed() + 7 * i + 1 };
		thread[i] = spawn(i < WRITERS ? writer : changer, &w[i]);
	}
	test_watch_progress(&writes, 30); /* nobody is left asleep */
	end = now_ns() + (uint64_t)(test_seconds(1.0) * 1e9);
	/* and until a copy has ended and a writer has met one: on a busy machine not in the first */
	while (now_ns() < end || copies == given_up || r->asked == 0) {
		given_up += one(r, &rnd);
		copies++;
	}
	STORE(&r->stop, 1);
	for (unsigned int i = 0; i < WRITERS + 1; i++) {
		ASSERT_EQ(pthread_join(thread[i], NULL), 0);
	}
	test_diag("%u copies, %u given up, asked %u times; %llu writes", copies, given_up, r->asked,
		  (unsigned long long)writes);
	gr_ram_free(r->ram);
	pthread_rwlock_destroy(&r->moment);
	pthread_mutex_destroy(&r->lock);
	free(r->image);
	free(r);
}

TEST(a_copy_before_write_is_memory_as_it_was_memfd)
{
	run(GR_RAM_MEMFD, one_copy);
}

TEST(a_copy_before_write_is_memory_as_it_was_anonymous)
{
	run(GR_RAM_ANONYMOUS, one_copy);
}

TEST(a_snapshot_is_memory_as_it_was_memfd)
{
	run(GR_RAM_MEMFD, one_snapshot);
}

TEST(a_snapshot_is_memory_as_it_was_anonymous)
{
	run(GR_RAM_ANONYMOUS, one_snapshot);
}

TEST_MAIN()
