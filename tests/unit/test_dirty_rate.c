/* SPDX-License-Identifier: MIT */
/*
 * Dirty rates of guests that write a known number of pages: what is counted is exact or, when
 * sampling, certain; only the time between the looks is what it is.
 */
#include "harness.h"
#include <errno.h>
#include <guestram/dirty_rate.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

enum { PAGE = 4096, PREAD_NS = 1000000 };
#define MIB ((uint64_t)1 << 20)

/* The calling thread's own clock, if not 0: it stands still, but that a pread() takes a while. */
static _Thread_local uint64_t clock_ns;

int clock_gettime(clockid_t clock, struct timespec *ts)
{
	if (clock_ns == 0) {
		return (int)syscall(SYS_clock_gettime, clock, ts);
	}
	*ts = (struct timespec){ (time_t)(clock_ns / 1000000000u), (long)(clock_ns % 1000000000u) };
	return 0;
}

ssize_t pread(int fd, void *to, size_t bytes, off_t offset)
{
	clock_ns += clock_ns != 0 ? PREAD_NS : 0;
	return syscall(SYS_pread64, fd, to, bytes, offset);
}

struct rig {
	struct gr_ram *ram;
	struct gr_track *track;
	struct gr_dirty_rate *rate;
	struct gr_dirty_rate_params params;
	struct gr_dirty_rate_result result;
};

static struct gr_ram_block *plug_fd(struct rig *r, const char *id, uint64_t bytes,
				    enum gr_ram_backing backing, int fd, unsigned int flags)
{
	struct gr_ram_block_desc desc = { .size = sizeof(desc),
					  .id = id,
					  .used_bytes = bytes,
					  .backing = backing,
					  .flags = flags,
					  .fd = fd };
	struct gr_ram_block *block;
	struct gr_error err;

	if (gr_ram_block_add(r->ram, &desc, &block, &err) < 0) {
		FAIL("%s", err.msg);
	}
	return block;
}

static struct gr_ram_block *plug(struct rig *r, const char *id, uint64_t bytes,
				 enum gr_ram_backing backing)
{
	return plug_fd(r, id, bytes, backing, -1, 0);
}

static int make_file(uint64_t bytes)
{
	int fd = memfd_create("test", MFD_CLOEXEC);

	ASSERT_GE(fd, 0);
	ASSERT_EQ(ftruncate(fd, (off_t)bytes), 0);
	return fd;
}

static void setup(struct rig *r, enum gr_dirty_rate_mode mode)
{
	*r = (struct rig){ .params = { .size = sizeof(r->params),
				       .mode = mode,
				       .writers = GR_WRITERS_MARKED,
				       .seed = test_seed() },
			   .result = { .size = sizeof(r->result) } };
	ASSERT_EQ(gr_ram_create(NULL, &r->ram, NULL), 0);
	ASSERT_EQ(gr_track_create(r->ram, &r->track, NULL), 0);
	r->params.track = r->track;
}

static void teardown(struct rig *r)
{
	gr_dirty_rate_free(r->rate);
	gr_track_free(r->track);
	gr_ram_free(r->ram);
}

static void begin(struct rig *r)
{
	struct gr_error err;

	if (gr_dirty_rate_begin(r->ram, &r->params, &r->rate, &err) < 0) {
		FAIL("%s", err.msg);
	}
}

static void end(struct rig *r)
{
	struct gr_error err;

	if (gr_dirty_rate_end(r->rate, &r->result, &err) < 0) {
		FAIL("%s", err.msg);
	}
	ASSERT_GT(r->result.elapsed_ns, 0u);
}

/* Changes each page of the first part of a block, and marks it. */
static void write_pages(struct gr_ram_block *block, uint64_t pages)
{
	for (uint64_t page = 0; page < pages; page++) {
		block->host[page * PAGE + page % PAGE]++;
	}
	gr_ram_mark(block, 0, pages * PAGE);
}

static void assert_rate(const struct rig *r, uint64_t bytes)
{
	double want = (double)bytes * 1e9 / (double)r->result.elapsed_ns;

	ASSERT_LE((uint64_t)(want * 0.99), r->result.bytes_per_s);
	ASSERT_LE(r->result.bytes_per_s, (uint64_t)(want * 1.01) + 1);
}

static void sampling(enum gr_ram_backing backing)
{
	struct gr_ram_block *block;
	struct rig r;

	setup(&r, GR_DIRTY_RATE_SAMPLING);
	r.params.block_bytes_min = 8 * MIB;
	r.params.samples_per_gib = GR_DIRTY_RATE_SAMPLES_MAX;
	block = plug(&r, "ram", 32 * MIB, backing);
	begin(&r);
	end(&r);
	ASSERT_EQ(r.result.sampled_pages, (uint64_t)512);
	ASSERT_EQ(r.result.dirty_pages, (uint64_t)0);
	ASSERT_EQ(r.result.bytes_per_s, (uint64_t)0);
	write_pages(block, 32 * MIB / PAGE);
	end(&r);
	ASSERT_EQ(r.result.dirty_pages, (uint64_t)512);
	assert_rate(&r, 32 * MIB);
	gr_dirty_rate_free(r.rate);
	/* A part of it: with 512 samples of which a half is expected, 100 off is 9 sigma. */
	begin(&r);
	write_pages(block, 16 * MIB / PAGE);
	end(&r);
	ASSERT_GE(r.result.dirty_pages, (uint64_t)156);
	ASSERT_LE(r.result.dirty_pages, (uint64_t)356);
	assert_rate(&r, r.result.dirty_pages * 32 * MIB / 512);
	teardown(&r);
}

TEST(sampling_finds_the_part_that_changes_memfd)
{
	sampling(GR_RAM_MEMFD);
}

TEST(sampling_finds_the_part_that_changes_anonymous)
{
	sampling(GR_RAM_ANONYMOUS);
}

TEST(sampling_leaves_out_small_blocks_and_those_that_go)
{
	struct gr_ram_block *big, *small;
	struct rig r;

	setup(&r, GR_DIRTY_RATE_SAMPLING);
	r.params.block_bytes_min = 8 * MIB;
	big = plug(&r, "big", 16 * MIB, GR_RAM_MEMFD);
	small = plug(&r, "small", 8 * MIB - PAGE, GR_RAM_MEMFD);
	(void)plug(&r, "other", 8 * MIB, GR_RAM_MEMFD);
	begin(&r);
	write_pages(small, 8 * MIB / PAGE - 1);
	write_pages(big, 16 * MIB / PAGE);
	end(&r);
	ASSERT_EQ(r.result.sampled_pages, (uint64_t)8 + 4);
	ASSERT_EQ(r.result.dirty_pages, (uint64_t)8);
	assert_rate(&r, 16 * MIB);
	ASSERT_EQ(gr_ram_block_del_by_id(r.ram, "big", NULL), 0);
	end(&r);
	ASSERT_EQ(r.result.sampled_pages, (uint64_t)4);
	ASSERT_EQ(r.result.dirty_pages, (uint64_t)0);
	teardown(&r);
}

TEST(sampling_a_hole_of_a_file_leaves_it_a_hole)
{
	struct gr_ram_block *block;
	struct rig r;

	setup(&r, GR_DIRTY_RATE_SAMPLING);
	r.params.block_bytes_min = MIB;
	r.params.samples_per_gib = GR_DIRTY_RATE_SAMPLES_MAX;
	block = plug(&r, "ram", 64 * MIB, GR_RAM_MEMFD);
	begin(&r);
	end(&r);
	ASSERT_EQ(lseek(block->fd, 0, SEEK_DATA), (off_t)-1);
	ASSERT_EQ(errno, ENXIO);
	teardown(&r);
}

TEST(sampling_a_private_file_looks_at_the_memory_and_not_at_the_file)
{
	struct gr_ram_block *block;
	int fd = make_file(32 * MIB);
	struct rig r;

	setup(&r, GR_DIRTY_RATE_SAMPLING);
	r.params.block_bytes_min = MIB;
	r.params.samples_per_gib = GR_DIRTY_RATE_SAMPLES_MAX;
	block = plug_fd(&r, "ram", 32 * MIB, GR_RAM_FD, fd, GR_RAM_PRIVATE);
	begin(&r);
	write_pages(block, 32 * MIB / PAGE);
	end(&r);
	ASSERT_EQ(r.result.sampled_pages, (uint64_t)512);
	ASSERT_EQ(r.result.dirty_pages, (uint64_t)512);
	teardown(&r);
	close(fd);
}

TEST(sampling_leaves_out_pages_that_their_file_does_not_give)
{
	int ram = make_file(32 * MIB), window = make_file(32 * MIB);
	struct gr_ram_block *block;
	struct rig r;

	setup(&r, GR_DIRTY_RATE_SAMPLING);
	r.params.block_bytes_min = MIB;
	r.params.samples_per_gib = GR_DIRTY_RATE_SAMPLES_MAX;
	block = plug_fd(&r, "ram", 32 * MIB, GR_RAM_FD, ram, 0);
	(void)plug_fd(&r, "window", 32 * MIB, GR_RAM_ON_DEMAND, window, GR_RAM_NO_MIGRATE);
	begin(&r);
	end(&r);
	ASSERT_EQ(r.result.sampled_pages, (uint64_t)1024);
	write_pages(block, 16 * MIB / PAGE);
	/* Who loaded the pages that are gone would die. */
	ASSERT_EQ(ftruncate(ram, (off_t)(16 * MIB)), 0);
	ASSERT_EQ(ftruncate(window, 0), 0);
	end(&r);
	ASSERT_GE(r.result.sampled_pages, (uint64_t)156);
	ASSERT_LE(r.result.sampled_pages, (uint64_t)356);
	ASSERT_EQ(r.result.dirty_pages, r.result.sampled_pages);
	assert_rate(&r, 32 * MIB); /* a block of which nothing is known is not in it */
	gr_dirty_rate_free(r.rate);
	begin(&r);
	end(&r);
	ASSERT_GE(r.result.sampled_pages, (uint64_t)156);
	ASSERT_LE(r.result.sampled_pages, (uint64_t)356);
	ASSERT_EQ(r.result.dirty_pages, (uint64_t)0);
	teardown(&r);
	close(window);
	close(ram);
}

TEST(the_time_is_that_between_two_looks_at_one_page)
{
	struct rig r;

	setup(&r, GR_DIRTY_RATE_SAMPLING);
	r.params.block_bytes_min = MIB;
	r.params.samples_per_gib = GR_DIRTY_RATE_SAMPLES_MAX;
	(void)plug(&r, "ram", 32 * MIB, GR_RAM_MEMFD);
	clock_ns = 1;
	begin(&r);
	end(&r);
	clock_ns = 0;
	ASSERT_EQ(r.result.sampled_pages, (uint64_t)512);
	ASSERT_EQ(r.result.elapsed_ns, (uint64_t)512 * PREAD_NS);
	teardown(&r);
}

TEST(a_rate_beyond_all_numbers_is_the_largest_one)
{
	const uint64_t bytes = 32768 * MIB;
	struct gr_ram_block *block;
	struct rig r;

	setup(&r, GR_DIRTY_RATE_BITMAP);
	block = plug_fd(&r, "ram", bytes, GR_RAM_ANONYMOUS, -1, GR_RAM_NO_RESERVE);
	clock_ns = 1;
	begin(&r);
	gr_ram_mark(block, 0, bytes);
	end(&r); /* one nanosecond later, as far as it can tell */
	clock_ns = 0;
	ASSERT_EQ(r.result.dirty_pages, bytes / PAGE);
	ASSERT_EQ(r.result.elapsed_ns, (uint64_t)1);
	ASSERT_EQ(r.result.bytes_per_s, UINT64_MAX);
	teardown(&r);
}

TEST(the_bitmap_counts_each_page_once_from_the_begin)
{
	struct gr_ram_block *block, *late;
	struct rig r;

	setup(&r, GR_DIRTY_RATE_BITMAP);
	block = plug(&r, "ram", 16 * MIB, GR_RAM_MEMFD);
	write_pages(block, 16 * MIB / PAGE); /* before: does not count */
	begin(&r);
	end(&r);
	ASSERT_EQ(r.result.dirty_pages, (uint64_t)0);
	write_pages(block, 1000);
	write_pages(block, 500);
	end(&r);
	ASSERT_EQ(r.result.dirty_pages, (uint64_t)1000);
	assert_rate(&r, (uint64_t)1000 * PAGE);
	write_pages(block, 1001);
	end(&r);
	ASSERT_EQ(r.result.dirty_pages, (uint64_t)1001);
	late = plug(&r, "late", MIB, GR_RAM_MEMFD); /* new memory is dirty, to be sure */
	write_pages(late, 1);
	end(&r);
	ASSERT_EQ(r.result.dirty_pages, (uint64_t)1001 + MIB / PAGE);
	teardown(&r);
}

TEST(the_bitmap_counts_stores_that_a_tracker_sees)
{
	struct gr_ram_block *block;
	struct gr_error err;
	struct rig r;

	setup(&r, GR_DIRTY_RATE_BITMAP);
	if (gr_track_use(r.track, GR_TRACKER_UFFD_WP, NULL, &err) < 0) {
		SKIP("%s", err.msg);
	}
	r.params.writers = GR_WRITERS_MAPPING;
	block = plug(&r, "ram", 16 * MIB, GR_RAM_MEMFD);
	begin(&r);
	for (uint64_t page = 0; page < 300; page++) {
		block->host[2 * page * PAGE] = 1;
	}
	end(&r);
	ASSERT_EQ(r.result.dirty_pages, (uint64_t)300);
	teardown(&r);
}

TEST(a_measurement_takes_nothing_from_other_consumers)
{
	struct gr_dirty_consumer *other;
	struct gr_ram_block *block;
	uint64_t pages;
	struct rig r;

	setup(&r, GR_DIRTY_RATE_BITMAP);
	block = plug(&r, "ram", 16 * MIB, GR_RAM_MEMFD);
	ASSERT_EQ(gr_dirty_consumer_add(gr_ram_dirty(r.ram), "other", GR_DIRTY_START_CLEAN, &other,
					NULL),
		  0);
	write_pages(block, 10);
	begin(&r);
	write_pages(block, 20);
	end(&r);
	ASSERT_EQ(r.result.dirty_pages, (uint64_t)20);
	ASSERT_EQ(gr_dirty_epoch_begin(other, &pages, NULL), 0);
	ASSERT_EQ(pages, (uint64_t)20);
	end(&r);
	ASSERT_EQ(r.result.dirty_pages, (uint64_t)20);
	gr_dirty_consumer_del(other);
	teardown(&r);
}

TEST(wrong_parameters_are_refused_with_the_reason)
{
	struct gr_error err;
	struct rig r;

	setup(&r, GR_DIRTY_RATE_SAMPLING);
	r.params.samples_per_gib = GR_DIRTY_RATE_SAMPLES_MIN - 1;
	ASSERT_EQ(gr_dirty_rate_begin(r.ram, &r.params, &r.rate, &err), -EINVAL);
	ASSERT_HAS(err.msg, "127 sampled pages per GiB are not 128 to 16384");
	r.params.samples_per_gib = GR_DIRTY_RATE_SAMPLES_MAX + 1;
	ASSERT_EQ(gr_dirty_rate_begin(r.ram, &r.params, &r.rate, &err), -EINVAL);
	r.params.mode = GR_DIRTY_RATE_RING;
	ASSERT_EQ(gr_dirty_rate_begin(r.ram, &r.params, &r.rate, &err), -EINVAL);
	ASSERT_HAS(err.msg, "kvm-ring");
	r.params.mode = GR_DIRTY_RATE_BITMAP;
	r.params.track = NULL;
	ASSERT_EQ(gr_dirty_rate_begin(r.ram, &r.params, &r.rate, &err), -EINVAL);
	ASSERT_HAS(err.msg, "needs the trackers");
	r.params.track = r.track;
	r.params.writers = GR_WRITERS_OUTSIDE;
	ASSERT_EQ(gr_dirty_rate_begin(r.ram, &r.params, &r.rate, &err), -EINVAL);
	ASSERT_HAS(err.msg, "tracking refused");
	r.params.mode = (enum gr_dirty_rate_mode)7;
	ASSERT_EQ(gr_dirty_rate_begin(r.ram, &r.params, &r.rate, &err), -EINVAL);
	r.params.size = 3;
	ASSERT_EQ(gr_dirty_rate_begin(r.ram, &r.params, &r.rate, &err), -EINVAL);
	ASSERT_PTR_EQ(r.rate, NULL);
	gr_dirty_rate_free(NULL);
	teardown(&r);
}

TEST_MAIN()
