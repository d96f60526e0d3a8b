/* SPDX-License-Identifier: MIT */
/* uffd-wp, page by page: what it reports and what not, on both kinds of memory. */
#include "base/compiler.h"
#include "base/uapi.h"
#include "harness.h"
#include "track/uffd_wp.h"
#include <errno.h>
#include <fcntl.h>
#include <guestram/track.h>
#include <linux/userfaultfd.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

enum { PAGE = 4096, PAGES = 4096 };

struct rig {
	struct gr_ram *ram;
	struct gr_ram_block *block;
	struct gr_track *track;
	struct gr_dirty_consumer *consumer;
	uint64_t dirty;	  /* pages of the last look */
	bool page[PAGES]; /* of the block */
};

static struct gr_track *use_uffd(struct gr_ram *ram)
{
	struct gr_track *track;
	struct gr_error err;

	ASSERT_EQ(sysconf(_SC_PAGESIZE), (long)PAGE);
	ASSERT_EQ(gr_track_create(ram, &track, NULL), 0);
	if (gr_track_use(track, GR_TRACKER_UFFD_WP, NULL, &err) < 0) {
		SKIP("%s", err.msg);
	}
	return track;
}

static struct gr_ram_block *plug(struct gr_ram *ram, const char *id, enum gr_ram_backing backing,
				 uint64_t bytes)
{
	struct gr_ram_block_desc desc = {
		.size = sizeof(desc), .id = id, .used_bytes = bytes, .backing = backing, .fd = -1
	};
	struct gr_ram_block *block;
	struct gr_error err;

	if (gr_ram_block_add(ram, &desc, &block, &err) < 0) {
		FAIL("%s", err.msg);
	}
	return block;
}

static void start(struct gr_track *track)
{
	struct gr_error err;

	if (gr_track_start(track, GR_WRITERS_MAPPING | GR_WRITERS_KVM_VCPUS, &err) < 0) {
		FAIL("%s", err.msg);
	}
}

/* Sync, then what is dirty in the rig's block. */
static void look(struct rig *r)
{
	uint64_t base = r->block->offset.v / PAGE, first, n;
	struct gr_error err;

	if (gr_track_sync(r->track, &err) < 0) {
		FAIL("%s", err.msg);
	}
	memset(r->page, 0, sizeof(r->page));
	ASSERT_EQ(gr_dirty_epoch_begin(r->consumer, &r->dirty, NULL), 0);
	for (uint64_t at = 0; gr_dirty_epoch_next(r->consumer, at, &first, &n); at = first + n) {
		for (uint64_t p = first; p < first + n; p++) {
			if (p >= base && p < base + PAGES) {
				r->page[p - base] = true;
			}
		}
	}
	ASSERT_EQ(gr_dirty_epoch_commit(r->consumer), 0);
}

static struct rig make_rig(enum gr_ram_backing backing)
{
	struct rig r = { 0 };

	ASSERT_EQ(gr_ram_create(NULL, &r.ram, NULL), 0);
	r.track = use_uffd(r.ram);
	r.block = plug(r.ram, "ram", backing, (uint64_t)PAGES * PAGE);
	ASSERT_EQ(gr_dirty_consumer_add(gr_ram_dirty(r.ram), "test", GR_DIRTY_START_CLEAN,
					&r.consumer, NULL),
		  0);
	return r;
}

static void free_rig(struct rig *r)
{
	gr_dirty_consumer_del(r->consumer);
	gr_track_free(r->track);
	gr_ram_free(r->ram);
}

static void expect_exactly(struct rig *r, const unsigned int *pages, unsigned int n)
{
	look(r);
	ASSERT_EQ(r->dirty, (uint64_t)n);
	for (unsigned int i = 0; i < n; i++) {
		if (!r->page[pages[i]]) {
			FAIL("page %u is not reported", pages[i]);
		}
	}
}
#define EXPECT(r, ...)                                             \
	expect_exactly((r), (const unsigned int[]){ __VA_ARGS__ }, \
		       sizeof((const unsigned int[]){ __VA_ARGS__ }) / sizeof(unsigned int))
#define EXPECT_NOTHING(r) expect_exactly((r), NULL, 0)

static volatile uint8_t *at(struct rig *r, unsigned int page)
{
	return r->block->host + (size_t)page * PAGE;
}

/* Every test below runs on both kinds of memory. */
#define ON_BOTH(name)                                  \
	static void name(enum gr_ram_backing backing); \
	TEST(name##_memfd)                             \
	{                                              \
		name(GR_RAM_MEMFD);                    \
	}                                              \
	TEST(name##_anonymous)                         \
	{                                              \
		name(GR_RAM_ANONYMOUS);                \
	}                                              \
	static void name(enum gr_ram_backing backing)

ON_BOTH(a_store_is_reported_once_and_then_again_after_the_next)
{
	struct rig r = make_rig(backing);

	*at(&r, 5) = 1; /* before: not ours to know */
	start(r.track);
	look(&r);
	*at(&r, 5) = 2;
	EXPECT(&r, 5);
	EXPECT_NOTHING(&r);
	*at(&r, 5) = 3;
	*at(&r, 5) = 4;
	*at(&r, 4095) = 1;
	EXPECT(&r, 5, 4095);
	free_rig(&r);
}

ON_BOTH(a_hole_is_reported_when_written_not_when_read)
{
	struct rig r = make_rig(backing);

	start(r.track);
	look(&r);
	(void)*at(&r, 7);
	EXPECT_NOTHING(&r);
	*at(&r, 0) = 1;
	*at(&r, 7) = 1;
	*at(&r, 9) = 1;
	EXPECT(&r, 0, 7, 9);
	EXPECT_NOTHING(&r);
	free_rig(&r);
}

ON_BOTH(a_system_call_that_writes_guest_memory_is_reported)
{
	struct rig r = make_rig(backing);
	int zero = open("/dev/zero", O_RDWR | O_CLOEXEC);

	start(r.track);
	look(&r);
	*at(&r, 20) = 1; /* one page there, one hole */
	EXPECT(&r, 20);
	ASSERT_EQ(read(zero, r.block->host + 20 * PAGE + 100, PAGE), (ssize_t)PAGE);
	EXPECT(&r, 20, 21);
	ASSERT_EQ(write(zero, r.block->host + 20 * PAGE, PAGE), (ssize_t)PAGE); /* reads it */
	EXPECT_NOTHING(&r);
	close(zero);
	free_rig(&r);
}

ON_BOTH(more_runs_than_one_call_reports)
{
	struct rig r = make_rig(backing);

	start(r.track);
	look(&r);
	for (unsigned int i = 0; i < PAGES; i += 2) {
		*at(&r, i) = 1;
	}
	look(&r);
	ASSERT_EQ(r.dirty, (uint64_t)PAGES / 2);
	EXPECT_NOTHING(&r);
	for (unsigned int i = 0; i < PAGES; i++) {
		*at(&r, i) = 2;
	}
	look(&r);
	ASSERT_EQ(r.dirty, (uint64_t)PAGES);
	EXPECT_NOTHING(&r);
	free_rig(&r);
}

ON_BOTH(a_stop_leaves_memory_normal_and_a_start_begins_anew)
{
	struct rig r = make_rig(backing);
	struct gr_error err;
	int other;
	struct uffdio_register reg = { .mode = UFFDIO_REGISTER_MODE_WP };

	start(r.track);
	*at(&r, 3) = 3;
	look(&r);
	gr_track_stop(r.track);
	*at(&r, 3) = 4;
	*at(&r, 8) = 5;
	EXPECT_NOTHING(&r);
	ASSERT_EQ(*at(&r, 3), 4);
	/* Free for another userfaultfd; in its hands it cannot be tracked. */
	other = gr_uffd_open(GR_UFFD_FEATURES_TRACK, NULL);
	reg.range.start = (uintptr_t)r.block->host;
	reg.range.len = (uint64_t)PAGES * PAGE;
	ASSERT_EQ(ioctl(other, UFFDIO_REGISTER, &reg), 0);
	ASSERT_EQ(gr_track_start(r.track, GR_WRITERS_MAPPING, &err), -EBUSY);
	ASSERT_HAS(err.msg, "block 'ram' cannot be tracked by uffd-wp");
	ASSERT_HAS(err.msg, "another userfaultfd has this memory");
	close(other);
	start(r.track);
	look(&r);
	*at(&r, 3) = 6;
	EXPECT(&r, 3);
	free_rig(&r);
}

ON_BOTH(a_block_plugged_while_tracking_is_tracked)
{
	struct rig r = make_rig(backing);
	struct gr_ram_block *more;

	start(r.track);
	look(&r);
	more = plug(r.ram, "more", backing, 64 * PAGE);
	look(&r); /* begins dirty */
	ASSERT_EQ(r.dirty, 64u);
	EXPECT_NOTHING(&r);
	((volatile uint8_t *)more->host)[9 * PAGE] = 1;
	look(&r);
	ASSERT_EQ(r.dirty, 1u);
	ASSERT_EQ(gr_ram_block_del(more, NULL), 0);
	*at(&r, 1) = 1;
	EXPECT(&r, 1);
	free_rig(&r);
}

/*
 * The mapping of a shared page may be taken away behind our back (reclaim, compaction of page
 * tables) after a store and before the sync: the data is in the file, and the store must
 * still be reported.
 */
TEST(a_store_whose_mapping_was_zapped_is_still_reported)
{
	struct rig r = make_rig(GR_RAM_MEMFD);

	start(r.track);
	look(&r);
	*at(&r, 30) = 77;
	*at(&r, 31) = 78;
	EXPECT(&r, 30, 31);
	*at(&r, 31) = 79;
	ASSERT_EQ(madvise(r.block->host + 30 * PAGE, 2 * PAGE, MADV_DONTNEED), 0);
	EXPECT(&r, 31);
	ASSERT_EQ(*at(&r, 30), 77);
	ASSERT_EQ(*at(&r, 31), 79);
	EXPECT_NOTHING(&r);
	/* What was protected stays so through it. */
	*at(&r, 30) = 80;
	EXPECT(&r, 30);
	free_rig(&r);
}

/* A huge page is split by the first store after it was protected, not reported whole. */
TEST(a_store_to_a_huge_page_reports_one_page)
{
	struct rig r = make_rig(GR_RAM_ANONYMOUS);

	if (madvise(r.block->host, (size_t)PAGES * PAGE, MADV_HUGEPAGE) < 0) {
		SKIP("MADV_HUGEPAGE: %s", strerror(errno));
	}
	for (unsigned int i = 0; i < PAGES; i++) {
		*at(&r, i) = 1;
	}
	start(r.track);
	look(&r);
	*at(&r, 600) = 2;
	EXPECT(&r, 600);
	free_rig(&r);
}

static void no_release(void *host, uint64_t max_bytes, void *opaque)
{
	(void)host;
	(void)max_bytes;
	(void)opaque;
}

static struct gr_ram_block *plug_callers(struct gr_ram *ram, void *host, struct gr_error *err)
{
	struct gr_ram_block_desc desc = { .size = sizeof(desc),
					  .id = "theirs",
					  .used_bytes = 16 * PAGE,
					  .backing = GR_RAM_CALLER,
					  .host = host,
					  .fd = -1,
					  .release = no_release };
	struct gr_ram_block *block;

	return gr_ram_block_add(ram, &desc, &block, err) < 0 ? NULL : block;
}

/* Asynchronous protection works on every kind of mapping. */
TEST(a_block_in_an_ordinary_file_is_tracked)
{
	struct rig r = make_rig(GR_RAM_MEMFD);
	char path[] = "/var/tmp/guestram-test-XXXXXX";
	int fd = mkostemp(path, O_CLOEXEC);
	uint8_t *host;

	ASSERT_GE(fd, 0);
	unlink(path);
	ASSERT_EQ(ftruncate(fd, 16 * PAGE), 0);
	host = mmap(NULL, 16 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	ASSERT(host != MAP_FAILED);
	host[1 * PAGE] = 1;
	start(r.track);
	ASSERT(plug_callers(r.ram, host, NULL));
	look(&r);
	host[1 * PAGE] = 2;
	host[15 * PAGE] = 1;
	ASSERT_EQ(fsync(fd), 0);
	look(&r);
	ASSERT_EQ(r.dirty, 2u);
	EXPECT_NOTHING(&r);
	free_rig(&r);
}

TEST(a_block_without_memory_is_refused_by_name)
{
	struct rig r = make_rig(GR_RAM_MEMFD);
	void *host = (void *)(uintptr_t)PAGE; /* where nothing is ever mapped */
	struct gr_error err;

	start(r.track);
	ASSERT(!plug_callers(r.ram, host, &err));
	ASSERT_HAS(err.msg, "block 'theirs' cannot be tracked by uffd-wp: UFFDIO_REGISTER");
	*at(&r, 1) = 1;
	look(&r);
	ASSERT(r.page[1]);
	free_rig(&r);
}

TEST(a_block_for_reading_keeps_no_other_from_being_tracked)
{
	struct rig r = make_rig(GR_RAM_MEMFD);
	FILE *f = tmpfile();
	struct gr_ram_block_desc desc = {
		.size = sizeof(desc), .id = "rom", .used_bytes = 16 * PAGE, .backing = GR_RAM_FD,
		.flags = GR_RAM_HOST_READONLY | GR_RAM_NO_MIGRATE, .fd = f ? fileno(f) : -1,
	};
	struct gr_ram_block *rom;

	ASSERT(f && ftruncate(desc.fd, 16 * PAGE) == 0);
	ASSERT_EQ(gr_ram_block_add(r.ram, &desc, NULL, NULL), 0); /* before it starts */
	start(r.track);
	desc.id = "windows";
	desc.backing = GR_RAM_ON_DEMAND;
	desc.flags = GR_RAM_NO_MIGRATE;
	ASSERT_EQ(gr_ram_block_add(r.ram, &desc, &rom, NULL), 0); /* and while it runs */
	ASSERT_EQ(gr_track_rearm(r.track, rom, 0, PAGE, NULL), 0);
	look(&r);
	*at(&r, 1) = 1;
	EXPECT(&r, 1);
	ASSERT_EQ(gr_ram_block_del_by_id(r.ram, "rom", NULL), 0);
	ASSERT_EQ(gr_ram_block_del(rom, NULL), 0);
	look(&r);
	free_rig(&r);
	(void)fclose(f);
}

TEST(memory_mapped_anew_is_an_error_and_counts_as_written)
{
	struct rig r = make_rig(GR_RAM_ANONYMOUS);
	struct gr_error err;
	uint64_t pages;

	start(r.track);
	look(&r);
	ASSERT(mmap(r.block->host + 100 * PAGE, PAGE, PROT_READ | PROT_WRITE,
		    MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) != MAP_FAILED);
	ASSERT_EQ(gr_track_sync(r.track, &err), -EPERM);
	ASSERT_HAS(err.msg, "uffd-wp: block 'ram': PAGEMAP_SCAN");
	ASSERT_HAS(err.msg, "mapped anew");
	ASSERT_EQ(gr_dirty_epoch_begin(r.consumer, &pages, NULL), 0);
	ASSERT_GE(pages, (uint64_t)PAGES - 100);
	free_rig(&r);
}

/* Two machines in one process do not see each other's stores. */
TEST(two_machines_are_tracked_apart)
{
	struct rig a = make_rig(GR_RAM_MEMFD), b = make_rig(GR_RAM_ANONYMOUS);

	start(a.track);
	start(b.track);
	look(&a);
	look(&b);
	*at(&a, 1) = 1;
	*at(&b, 2) = 1;
	EXPECT(&a, 1);
	gr_track_stop(a.track);
	*at(&a, 5) = 1;
	EXPECT(&b, 2);
	free_rig(&a);
	free_rig(&b);
}

TEST_MAIN()
