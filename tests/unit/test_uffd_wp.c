/* SPDX-License-Identifier: MIT */
/* uffd-wp, page by page: what it reports and what not, on both kinds of memory. */
#include "base/compiler.h"
#include "base/uapi.h"
#include "track/uffd_wp.h"
#include "uffd_rig.h"
#include <errno.h>
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <sys/mman.h>

enum { PAGES = 4096 };

static struct tracked make_rig(enum gr_ram_backing backing)
{
	return make_tracked(GR_TRACKER_UFFD_WP, backing, PAGES);
}

static void start(struct gr_track *track)
{
	start_for(track, GR_WRITERS_MAPPING | GR_WRITERS_KVM_VCPUS);
}

static volatile uint8_t *at(struct tracked *r, unsigned int page)
{
	return page_of(r->block, page);
}

/* Every test below runs on both kinds of memory. */
ON_BOTH(a_store_is_reported_once_and_then_again_after_the_next)
{
	struct tracked r = make_rig(backing);

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
	free_tracked(&r);
}

ON_BOTH(a_hole_is_reported_when_written_not_when_read)
{
	struct tracked r = make_rig(backing);

	start(r.track);
	look(&r);
	(void)*at(&r, 7);
	EXPECT_NOTHING(&r);
	*at(&r, 0) = 1;
	*at(&r, 7) = 1;
	*at(&r, 9) = 1;
	EXPECT(&r, 0, 7, 9);
	EXPECT_NOTHING(&r);
	free_tracked(&r);
}

ON_BOTH(a_system_call_that_writes_guest_memory_is_reported)
{
	struct tracked r = make_rig(backing);
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
	free_tracked(&r);
}

ON_BOTH(more_runs_than_one_call_reports)
{
	struct tracked r = make_rig(backing);

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
	free_tracked(&r);
}

ON_BOTH(a_stop_leaves_memory_normal_and_a_start_begins_anew)
{
	struct tracked r = make_rig(backing);
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
	free_tracked(&r);
}

ON_BOTH(a_block_plugged_while_tracking_is_tracked)
{
	struct tracked r = make_rig(backing);
	struct gr_ram_block *more;

	start(r.track);
	look(&r);
	more = plug(r.ram, (struct gr_ram_block_desc){
				   .id = "more", .used_bytes = 64 * PAGE, .backing = backing });
	look(&r); /* begins dirty */
	ASSERT_EQ(r.dirty, 64u);
	EXPECT_NOTHING(&r);
	((volatile uint8_t *)more->host)[9 * PAGE] = 1;
	look(&r);
	ASSERT_EQ(r.dirty, 1u);
	ASSERT_EQ(gr_ram_block_del(more, NULL), 0);
	*at(&r, 1) = 1;
	EXPECT(&r, 1);
	free_tracked(&r);
}

/*
 * The mapping of a shared page may be taken away behind our back (reclaim, compaction of page
 * tables) after a store and before the sync: the data is in the file, and the store must
 * still be reported.
 */
TEST(a_store_whose_mapping_was_zapped_is_still_reported)
{
	struct tracked r = make_rig(GR_RAM_MEMFD);

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
	free_tracked(&r);
}

/* A huge page is split by the first store after it was protected, not reported whole. */
TEST(a_store_to_a_huge_page_reports_one_page)
{
	struct tracked r = make_rig(GR_RAM_ANONYMOUS);

	make_huge(&r);
	start(r.track);
	look(&r);
	*at(&r, 600) = 2;
	EXPECT(&r, 600);
	free_tracked(&r);
}

TEST(pages_of_hugetlb_are_tracked_whole)
{
	struct tracked r = make_rig(GR_RAM_MEMFD);
	struct gr_ram_block *huge = plug_huge(r.ram);

	start(r.track);
	expect_huge_pages_whole(&r, huge);
	free_tracked(&r);
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
	struct tracked r = make_rig(GR_RAM_MEMFD);
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
	free_tracked(&r);
}

TEST(a_block_without_memory_is_refused_by_name)
{
	struct tracked r = make_rig(GR_RAM_MEMFD);
	void *host = (void *)(uintptr_t)PAGE; /* where nothing is ever mapped */
	struct gr_error err;

	start(r.track);
	ASSERT(!plug_callers(r.ram, host, &err));
	ASSERT_HAS(err.msg, "block 'theirs' cannot be tracked by uffd-wp: UFFDIO_REGISTER");
	*at(&r, 1) = 1;
	look(&r);
	ASSERT(r.page[1]);
	free_tracked(&r);
}

TEST(a_block_for_reading_keeps_no_other_from_being_tracked)
{
	struct tracked r = make_rig(GR_RAM_MEMFD);
	FILE *f = tmpfile();
	struct gr_ram_block_desc desc = {
		.size = sizeof(desc),
		.id = "rom",
		.used_bytes = 16 * PAGE,
		.backing = GR_RAM_FD,
		.flags = GR_RAM_HOST_READONLY | GR_RAM_NO_MIGRATE,
		.fd = f ? fileno(f) : -1,
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
	free_tracked(&r);
	(void)fclose(f);
}

TEST(memory_mapped_anew_is_an_error_and_counts_as_written)
{
	struct tracked r = make_rig(GR_RAM_ANONYMOUS);
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
	free_tracked(&r);
}

/* Two machines in one process do not see each other's stores. */
TEST(two_machines_are_tracked_apart)
{
	struct tracked a = make_rig(GR_RAM_MEMFD), b = make_rig(GR_RAM_ANONYMOUS);

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
	free_tracked(&a);
	free_tracked(&b);
}

TEST_MAIN()
