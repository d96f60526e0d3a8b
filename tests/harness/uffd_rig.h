/* SPDX-License-Identifier: MIT */
/*
 * For tests of what stands on userfaultfd: a machine with one block and a tracker, whose reports
 * are held against what was written; and tests that run on both kinds of memory.
 */
#ifndef UFFD_RIG_H
#define UFFD_RIG_H

#include "harness.h"
#include "huge_pool.h"
#include <errno.h>
#include <guestram/track.h>
#include <sys/mman.h>
#include <unistd.h>

#define RIG_FN __attribute__((unused)) static

enum { PAGE = 4096, TRACKED_PAGES_MAX = 4096 };

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

RIG_FN volatile uint8_t *page_of(struct gr_ram_block *block, unsigned int page)
{
	return block->host + (size_t)page * PAGE;
}

/* Of the library's own memory. */
RIG_FN struct gr_ram_block *plug(struct gr_ram *ram, struct gr_ram_block_desc desc)
{
	struct gr_ram_block *block;
	struct gr_error err;

	desc.size = sizeof(desc);
	desc.fd = -1;
	if (gr_ram_block_add(ram, &desc, &block, &err) < 0) {
		FAIL("%s", err.msg);
	}
	return block;
}

/* Two huge pages, which the test has reserved until it ends; or it is skipped. */
RIG_FN struct gr_ram_block *plug_huge(struct gr_ram *ram)
{
	lock_pool();
	reserve_huge(2);
	return plug(ram, (struct gr_ram_block_desc){ .id = "huge",
						     .used_bytes = 2 * HUGE_BYTES,
						     .page_bytes = HUGE_BYTES });
}

/* For memory of the test's own. */
RIG_FN void no_release(void *host, uint64_t max_bytes, void *opaque)
{
	(void)host;
	(void)max_bytes;
	(void)opaque;
}

struct tracked {
	struct gr_ram *ram;
	struct gr_ram_block *block;
	struct gr_track *track;
	struct gr_dirty_consumer *consumer;
	unsigned int pages;
	uint64_t dirty;		      /* pages of the last look */
	bool page[TRACKED_PAGES_MAX]; /* of the block */
};

RIG_FN struct tracked make_tracked(enum gr_tracker_kind kind, enum gr_ram_backing backing,
				   unsigned int pages)
{
	struct tracked r = { .pages = pages };
	struct gr_error err;

	ASSERT_EQ(sysconf(_SC_PAGESIZE), (long)PAGE);
	ASSERT_LE(pages, (unsigned int)TRACKED_PAGES_MAX);
	ASSERT_EQ(gr_ram_create(NULL, &r.ram, NULL), 0);
	ASSERT_EQ(gr_track_create(r.ram, &r.track, NULL), 0);
	if (gr_track_use(r.track, kind, NULL, &err) < 0) {
		SKIP("%s", err.msg);
	}
	r.block = plug(r.ram, (struct gr_ram_block_desc){ .id = "ram",
							  .used_bytes = (uint64_t)pages * PAGE,
							  .backing = backing,
							  .mapped = true });
	ASSERT_EQ(gr_dirty_consumer_add(gr_ram_dirty(r.ram), "test", GR_DIRTY_START_CLEAN,
					&r.consumer, NULL),
		  0);
	return r;
}

RIG_FN void free_tracked(struct tracked *r)
{
	gr_dirty_consumer_del(r->consumer);
	gr_track_free(r->track);
	gr_ram_free(r->ram);
}

RIG_FN void start_for(struct gr_track *track, unsigned int writers)
{
	struct gr_error err;

	if (gr_track_start(track, writers, &err) < 0) {
		FAIL("%s", err.msg);
	}
}

RIG_FN void rearm_page(struct tracked *r, uint64_t page)
{
	struct gr_ram_block *block;
	struct gr_error err;

	gr_rcu_read_lock();
	block = gr_ram_block_find_rcu(r->ram, gr_ram_addr(page * PAGE));
	if (block) {
		gr_ram_block_get(block);
	}
	gr_rcu_read_unlock();
	if (block &&
	    gr_track_rearm(r->track, block, page * PAGE - block->offset.v, PAGE, &err) < 0) {
		FAIL("%s", err.msg);
	}
	gr_ram_block_put(block);
}

/* What a consumer does: sync, begin, rearm what is dirty; here without reading it. */
RIG_FN void look(struct tracked *r)
{
	uint64_t base = r->block->offset.v / PAGE, first, n;
	struct gr_error err;

	if (gr_track_sync(r->track, &err) < 0) {
		FAIL("%s", err.msg);
	}
	memset(r->page, 0, sizeof(r->page));
	ASSERT_EQ(gr_dirty_epoch_begin(r->consumer, &r->dirty, NULL), 0);
	for (uint64_t p = 0; gr_dirty_epoch_next(r->consumer, p, &first, &n); p = first + n) {
		for (p = first; p < first + n; p++) {
			if (p >= base && p < base + r->pages) {
				r->page[p - base] = true;
			}
			rearm_page(r, p);
		}
	}
	ASSERT_EQ(gr_dirty_epoch_commit(r->consumer), 0);
}

RIG_FN void expect_exactly(struct tracked *r, const unsigned int *pages, unsigned int n)
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

/* A store to one byte of a huge page reports all of it. */
RIG_FN void expect_huge_pages_whole(struct tracked *r, struct gr_ram_block *huge)
{
	look(r);
	((volatile uint8_t *)huge->host)[HUGE_BYTES + 5] = 1;
	look(r);
	ASSERT_EQ(r->dirty, HUGE_BYTES / PAGE);
	EXPECT_NOTHING(r);
	((volatile uint8_t *)huge->host)[2 * HUGE_BYTES - 1] = 1;
	look(r);
	ASSERT_EQ(r->dirty, HUGE_BYTES / PAGE);
}

/* Its block, in anonymous memory, in transparent huge pages before anything is tracked. */
RIG_FN void make_huge(struct tracked *r)
{
	if (madvise(r->block->host, (size_t)r->pages * PAGE, MADV_HUGEPAGE) < 0) {
		SKIP("MADV_HUGEPAGE: %s", strerror(errno));
	}
	for (unsigned int i = 0; i < r->pages; i++) {
		*page_of(r->block, i) = 1;
	}
}

#endif
