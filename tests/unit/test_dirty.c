/* SPDX-License-Identifier: MIT */
#include "base/heavy_fence.h"
#include "bitmap/dirty.h"
#include "harness.h"
#include <errno.h>
#include <guestram/ram.h>
#include <pthread.h>
#include <sched.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#define CHUNK ((uint64_t)GR_BITS_CHUNK_PAGES)
#define GROUP ((uint64_t)GR_BITS_GROUP_PAGES)
#define LINE  ((uint64_t)GR_BITS_LINE_PAGES)

static struct gr_dirty *make(uint64_t pages)
{
	struct gr_dirty *d = NULL;
	struct gr_error err;

	if (gr_dirty_create(pages, &d, &err) < 0) {
		FAIL("%s", err.msg);
	}
	return d;
}

static struct gr_dirty_consumer *add(struct gr_dirty *d, enum gr_dirty_start start)
{
	struct gr_dirty_consumer *c = NULL;
	struct gr_error err;

	if (gr_dirty_consumer_add(d, "test", start, &c, &err) < 0) {
		FAIL("%s", err.msg);
	}
	return c;
}

static void mark(struct gr_dirty *d, uint64_t page)
{
	gr_rcu_read_lock();
	gr_dirty_mark(d, page);
	gr_rcu_read_unlock();
}

static void mark_range(struct gr_dirty *d, uint64_t page, uint64_t pages)
{
	gr_rcu_read_lock();
	gr_dirty_mark_range(d, page, pages);
	gr_rcu_read_unlock();
}

static uint64_t begin(struct gr_dirty_consumer *c)
{
	struct gr_error err;
	uint64_t pages;

	if (gr_dirty_epoch_begin(c, &pages, &err) < 0) {
		FAIL("%s", err.msg);
	}
	return pages;
}

/* The open epoch is exactly this one run (or empty, for pages == 0). */
#define ASSERT_EPOCH_IS(c, first, pages)                                              \
	do {                                                                          \
		uint64_t first_ = (first), pages_ = 0, want_ = (pages);               \
		ASSERT_EQ(gr_dirty_epoch_pages(c), want_);                            \
		ASSERT_EQ(gr_dirty_epoch_next((c), 0, &first_, &pages_), want_ != 0); \
		ASSERT_EQ(pages_, want_);                                             \
		ASSERT_EQ(first_, (uint64_t)(first));                                 \
		ASSERT(!gr_dirty_epoch_next((c), first_ + pages_, &first_, &pages_)); \
	} while (0)

TEST(memory_is_covered_by_whole_chunks)
{
	struct gr_dirty *d = make(0);

	ASSERT_EQ(gr_dirty_pages(d), (uint64_t)0);
	ASSERT_EQ(gr_dirty_grow(d, 1, NULL), 0);
	ASSERT_EQ(gr_dirty_pages(d), CHUNK);
	ASSERT_EQ(gr_dirty_grow(d, CHUNK + 1, NULL), 0);
	ASSERT_EQ(gr_dirty_pages(d), 2 * CHUNK);
	ASSERT_EQ(gr_dirty_grow(d, 5, NULL), 0);
	ASSERT_EQ(gr_dirty_pages(d), 2 * CHUNK);
	gr_dirty_free(d);
	gr_dirty_free(NULL);
}

TEST(more_pages_than_can_be_are_refused_and_nothing_changes)
{
	struct gr_dirty *d = make(1), *none = NULL;
	struct gr_error err;

	ASSERT_EQ(gr_dirty_grow(d, UINT64_MAX, &err), -ENOMEM);
	ASSERT_HAS(err.msg, "more than");
	ASSERT_EQ(gr_dirty_pages(d), CHUNK);
	ASSERT_EQ(gr_dirty_create(GR_BITS_PAGES_MAX + 1, &none, &err), -ENOMEM);
	ASSERT_PTR_EQ(none, NULL);
	gr_dirty_free(d);
}

/* So many pages that the bytes of something of each chunk are a few more than a size_t can tell. */
static uint64_t pages_that_wrap(uint64_t bytes_per_chunk)
{
	uint64_t chunks = (uint64_t)SIZE_MAX / bytes_per_chunk + 2;

	return chunks < UINT64_MAX / CHUNK ? chunks * CHUNK : UINT64_MAX;
}

TEST(sizes_whose_bytes_this_host_cannot_count_are_refused)
{
	const uint64_t bytes[] = {
		CHUNK / 8,			       /* the live words */
		CHUNK / 8 + GR_BITS_GROUPS * 8,	       /* ... and sums */
		2 * (CHUNK / 8) + GR_BITS_GROUPS * 32, /* a private set's lines and groups */
	};
	struct gr_dirty *d = make(CHUNK), *none = NULL;
	struct gr_dirty_consumer *c = add(d, GR_DIRTY_START_FULL);
	struct gr_error err;

	for (size_t i = 0; i < sizeof(bytes) / sizeof(bytes[0]); i++) {
		ASSERT_EQ(gr_dirty_create(pages_that_wrap(bytes[i]), &none, &err), -ENOMEM);
		ASSERT_HAS(err.msg, "more than");
		ASSERT_PTR_EQ(none, NULL);
		ASSERT_EQ(gr_dirty_grow(d, pages_that_wrap(bytes[i]), &err), -ENOMEM);
		ASSERT_HAS(err.msg, "more than");
	}
	ASSERT_EQ(gr_dirty_pages(d), CHUNK);
	ASSERT_EQ(begin(c), CHUNK);
	ASSERT_EQ(gr_dirty_epoch_commit(c), 0);
	gr_dirty_consumer_del(c);
	gr_dirty_free(d);
}

TEST(marked_page_is_in_the_next_epoch_and_in_no_later_one)
{
	struct gr_dirty *d = make(CHUNK);
	struct gr_dirty_consumer *c = add(d, GR_DIRTY_START_CLEAN);

	mark(d, 77);
	mark(d, 77);
	ASSERT_EQ(begin(c), (uint64_t)1);
	ASSERT_EPOCH_IS(c, 77, 1);
	ASSERT_EQ(gr_dirty_epoch_commit(c), 0);
	ASSERT_EQ(begin(c), (uint64_t)0);
	ASSERT_EPOCH_IS(c, 0, 0);
	ASSERT_EQ(gr_dirty_epoch_commit(c), 0);
	gr_dirty_consumer_del(c);
	gr_dirty_free(d);
}

TEST(store_during_an_epoch_is_in_the_next_one_though_this_one_commits)
{
	struct gr_dirty *d = make(CHUNK);
	struct gr_dirty_consumer *c = add(d, GR_DIRTY_START_CLEAN);

	mark(d, 5);
	ASSERT_EQ(begin(c), (uint64_t)1);
	mark(d, 5);
	ASSERT_EQ(gr_dirty_epoch_commit(c), 0);
	ASSERT_EQ(begin(c), (uint64_t)1);
	ASSERT_EPOCH_IS(c, 5, 1);
	gr_dirty_consumer_del(c);
	gr_dirty_free(d);
}

TEST(ranges_near_every_border_are_exact)
{
	/* Starts and ends around words, lines, sum words, top words and chunks. */
	static const uint64_t borders[] = { 64, LINE, 4096, GROUP, 8 * GROUP, CHUNK, CHUNK + LINE };
	struct gr_dirty *d = make(2 * CHUNK);
	struct gr_dirty_consumer *c = add(d, GR_DIRTY_START_CLEAN);

	for (size_t i = 0; i < sizeof(borders) / sizeof(borders[0]); i++) {
		for (int a = -2; a <= 2; a++) {
			for (size_t j = i; j < sizeof(borders) / sizeof(borders[0]); j++) {
				for (int b = -2; b <= 2; b++) {
					uint64_t first = borders[i] + (uint64_t)a;
					uint64_t end = borders[j] + (uint64_t)b;

					if (end < first) {
						continue;
					}
					mark_range(d, first, end - first);
					ASSERT_EQ(begin(c), end - first);
					ASSERT_EPOCH_IS(c, first, end - first);
					ASSERT_EQ(gr_dirty_epoch_commit(c), 0);
				}
			}
		}
	}
	mark_range(d, 2 * CHUNK - 1, 1);
	mark_range(d, 2 * CHUNK - 1, 0);
	ASSERT_EQ(begin(c), (uint64_t)1);
	ASSERT_EPOCH_IS(c, 2 * CHUNK - 1, 1);
	gr_dirty_consumer_del(c);
	gr_dirty_free(d);
}

TEST(foreign_words_are_little_endian_unaligned_and_cut_at_the_tail)
{
	size_t page_bytes = (size_t)sysconf(_SC_PAGESIZE);
	unsigned char *area = mmap(NULL, 2 * page_bytes, PROT_READ | PROT_WRITE,
				   MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	struct gr_dirty *d = make(2 * CHUNK);
	struct gr_dirty_consumer *c = add(d, GR_DIRTY_START_CLEAN);
	unsigned char *words;
	uint64_t first, pages;

	ASSERT(area != MAP_FAILED);
	ASSERT_EQ(mprotect(area + page_bytes, page_bytes, PROT_NONE), 0);
	words = area + page_bytes - 24; /* reading a fourth word would fault */
	memset(words, 0, 24);
	words[0] = 0x81;  /* bits 0 and 7 */
	words[9] = 0x01;  /* bit 64 + 8 */
	words[16] = 0xff; /* bits 128 to 135, of which three count */
	gr_rcu_read_lock();
	ASSERT_EQ(gr_dirty_or_le(d, CHUNK - 128, words, 131), (uint64_t)6);
	memmove(words - 1, words, 24);
	ASSERT_EQ(gr_dirty_or_le(d, CHUNK - 128, words - 1, 131), (uint64_t)6);
	ASSERT_EQ(gr_dirty_or_le(d, 0, words, 0), (uint64_t)0);
	gr_rcu_read_unlock();
	ASSERT_EQ(begin(c), (uint64_t)6);
	ASSERT(gr_dirty_epoch_next(c, 0, &first, &pages));
	ASSERT_EQ(first, CHUNK - 128);
	ASSERT_EQ(pages, (uint64_t)1);
	ASSERT(gr_dirty_epoch_next(c, first + 1, &first, &pages));
	ASSERT_EQ(first, CHUNK - 121);
	ASSERT(gr_dirty_epoch_next(c, first + 1, &first, &pages));
	ASSERT_EQ(first, CHUNK - 56);
	ASSERT(gr_dirty_epoch_next(c, first + 1, &first, &pages));
	ASSERT_EQ(first, CHUNK);
	ASSERT_EQ(pages, (uint64_t)3);
	gr_dirty_consumer_del(c);
	gr_dirty_free(d);
}

TEST(full_start_has_every_page_and_clean_start_none)
{
	struct gr_dirty *d = make(2 * CHUNK);
	struct gr_dirty_consumer *clean, *full;

	mark(d, 3);
	clean = add(d, GR_DIRTY_START_CLEAN);
	full = add(d, GR_DIRTY_START_FULL);
	ASSERT_EQ(gr_dirty_pending_pages(full), 2 * CHUNK);
	ASSERT_EQ(gr_dirty_pending_pages(clean), (uint64_t)0);
	ASSERT_EQ(begin(full), 2 * CHUNK);
	ASSERT_EPOCH_IS(full, 0, 2 * CHUNK);
	ASSERT_EQ(begin(clean), (uint64_t)0);
	gr_dirty_consumer_del(clean);
	gr_dirty_consumer_del(full);
	gr_dirty_free(d);
}

TEST(each_consumer_gets_every_page_whoever_harvests)
{
	struct gr_dirty *d = make(CHUNK);
	struct gr_dirty_consumer *a = add(d, GR_DIRTY_START_CLEAN);
	struct gr_dirty_consumer *b = add(d, GR_DIRTY_START_CLEAN);
	struct gr_dirty_consumer *late;

	mark(d, 9);
	ASSERT_EQ(begin(a), (uint64_t)1);
	ASSERT_EQ(gr_dirty_pending_pages(b), (uint64_t)1);
	mark(d, 10);
	late = add(d, GR_DIRTY_START_CLEAN); /* drains page 10 to the other two */
	ASSERT_EQ(gr_dirty_pending_pages(a), (uint64_t)1);
	ASSERT_EQ(gr_dirty_pending_pages(b), (uint64_t)2);
	ASSERT_EQ(begin(late), (uint64_t)0);
	ASSERT_EQ(begin(b), (uint64_t)2);
	ASSERT_EPOCH_IS(b, 9, 2);
	ASSERT_EQ(gr_dirty_epoch_commit(a), 0);
	ASSERT_EQ(begin(a), (uint64_t)1);
	ASSERT_EPOCH_IS(a, 10, 1);
	gr_dirty_consumer_del(a);
	gr_dirty_consumer_del(late);
	ASSERT_EPOCH_IS(b, 9, 2);
	gr_dirty_consumer_del(b);
	gr_dirty_free(d);
}

TEST(aborted_epoch_comes_back_together_with_what_is_newer)
{
	struct gr_dirty *d = make(CHUNK);
	struct gr_dirty_consumer *a = add(d, GR_DIRTY_START_CLEAN);
	struct gr_dirty_consumer *b = add(d, GR_DIRTY_START_CLEAN);

	mark_range(d, 100, 10);
	ASSERT_EQ(begin(a), (uint64_t)10);
	gr_dirty_epoch_done(a, 100, 2);
	ASSERT_EQ(gr_dirty_epoch_pages(a), (uint64_t)8);
	mark_range(d, 108, 4);
	ASSERT_EQ(begin(b), (uint64_t)12); /* moves 108 to 111 to a's pending set */
	ASSERT_EQ(gr_dirty_epoch_abort(a), 0);
	ASSERT_EQ(gr_dirty_epoch_abort(a), -EINVAL);
	ASSERT_EQ(gr_dirty_pending_pages(a), (uint64_t)10); /* 102 to 111, none twice */
	ASSERT_EQ(begin(a), (uint64_t)10);
	ASSERT_EPOCH_IS(a, 102, 10);
	gr_dirty_consumer_del(a);
	gr_dirty_consumer_del(b);
	gr_dirty_free(d);
}

TEST(pages_that_are_deferred_are_in_the_next_epoch_and_no_page_is_lost)
{
	struct gr_dirty *d = make(CHUNK);
	struct gr_dirty_consumer *a = add(d, GR_DIRTY_START_CLEAN);
	struct gr_dirty_consumer *b = add(d, GR_DIRTY_START_CLEAN);
	uint64_t page;

	mark_range(d, 100, 10);
	ASSERT_EQ(begin(a), (uint64_t)10);
	ASSERT_EQ(gr_dirty_epoch_defer(a), (uint64_t)0);
	ASSERT(!gr_dirty_epoch_next_waiting(a, 0, &page));
	gr_dirty_epoch_done(a, 100, 4);
	/* Of those that are done, of those that wait, and one that was not in the epoch. */
	mark_range(d, 102, 4);
	mark_range(d, 500, 1);
	ASSERT_EQ(gr_dirty_epoch_defer(a), (uint64_t)2);
	ASSERT_EPOCH_IS(a, 106, 4);
	ASSERT(gr_dirty_epoch_next_waiting(a, 0, &page) && page == 102);
	ASSERT(gr_dirty_epoch_next_waiting(a, 105, &page) && page == 105);
	ASSERT(gr_dirty_epoch_next_waiting(a, 106, &page) && page == 500);
	ASSERT(!gr_dirty_epoch_next_waiting(a, 501, &page));
	ASSERT_EQ(gr_dirty_epoch_defer(a), (uint64_t)0);
	/* What another one's begin has found counts as well. */
	mark_range(d, 107, 1);
	ASSERT_EQ(begin(b), (uint64_t)11);
	ASSERT_EQ(gr_dirty_epoch_defer(a), (uint64_t)1);
	ASSERT_EQ(gr_dirty_epoch_commit(a), 0);
	ASSERT_EQ(begin(a), (uint64_t)6);
	ASSERT_EQ(gr_dirty_epoch_count(a, 102, 4), (uint64_t)4);
	ASSERT_EQ(gr_dirty_epoch_count(a, 107, 1), (uint64_t)1);
	ASSERT_EQ(gr_dirty_epoch_count(a, 500, 1), (uint64_t)1);
	mark_range(d, 103, 1);
	ASSERT_EQ(gr_dirty_epoch_defer(a), (uint64_t)1);
	ASSERT_EQ(gr_dirty_epoch_abort(a), 0);
	ASSERT_EQ(begin(a), (uint64_t)6);
	/* The others' next epochs have what was found for this one. */
	ASSERT_EQ(gr_dirty_epoch_commit(b), 0);
	ASSERT_EQ(begin(b), (uint64_t)1);
	ASSERT_EPOCH_IS(b, 103, 1);
	gr_dirty_consumer_del(a);
	gr_dirty_consumer_del(b);
	gr_dirty_free(d);
}

TEST(each_consumer_gets_ranges_that_were_marked_as_a_whole)
{
	struct gr_dirty *d = make(2 * CHUNK);
	struct gr_dirty_consumer *a = add(d, GR_DIRTY_START_CLEAN);
	struct gr_dirty_consumer *b = add(d, GR_DIRTY_START_CLEAN);

	mark(d, 4096 + 5); /* in the middle of what follows */
	mark_range(d, 4000, CHUNK);
	ASSERT_LE(CHUNK, gr_dirty_live_estimate(d));
	ASSERT_EQ(begin(a), CHUNK);
	ASSERT_EPOCH_IS(a, 4000, CHUNK);
	mark(d, GROUP * 7);
	ASSERT_EQ(begin(b), CHUNK);
	ASSERT_EPOCH_IS(b, 4000, CHUNK);
	/* A hole in the middle, of lines and of groups. */
	gr_dirty_epoch_done(b, GROUP * 2 + 1, GROUP * 3);
	ASSERT_EQ(gr_dirty_epoch_pages(b), CHUNK - GROUP * 3);
	ASSERT_EQ(gr_dirty_epoch_count(b, GROUP * 2, GROUP * 4), GROUP);
	gr_dirty_epoch_add(b, GROUP * 2 + 1, GROUP * 3);
	ASSERT_EPOCH_IS(b, 4000, CHUNK);
	gr_dirty_epoch_done(b, LINE * 12 + 1, LINE * 3);
	ASSERT_EQ(gr_dirty_epoch_pages(b), CHUNK - LINE * 3);
	ASSERT_EQ(gr_dirty_epoch_count(b, LINE * 12, LINE * 4), LINE);
	gr_dirty_epoch_add(b, LINE * 12 + 1, LINE * 3);
	ASSERT_EPOCH_IS(b, 4000, CHUNK);
	ASSERT_EQ(gr_dirty_epoch_abort(b), 0);
	ASSERT_EQ(begin(b), CHUNK);
	ASSERT_EQ(gr_dirty_epoch_commit(b), 0);
	ASSERT_EQ(begin(b), (uint64_t)0);
	gr_dirty_consumer_del(a);
	gr_dirty_consumer_del(b);
	gr_dirty_free(d);
}

TEST(several_epochs_of_one_consumer_end_each_by_itself)
{
	struct gr_dirty *d = make(CHUNK);
	struct gr_dirty_consumer *c = add(d, GR_DIRTY_START_CLEAN);
	struct gr_dirty_epoch *e[3], *none = NULL;
	struct gr_error err;

	ASSERT_EQ(gr_dirty_epoch_keep(c, &none, &err), -EINVAL);
	ASSERT_HAS(err.msg, "no epoch open");
	for (uint64_t i = 0; i < 3; i++) {
		mark_range(d, i * 100, 10 + i);
		ASSERT_EQ(begin(c), 10 + i);
		ASSERT_EQ(gr_dirty_epoch_keep(c, &e[i], NULL), 0);
		ASSERT_EQ(gr_dirty_kept_pages(e[i]), 10 + i);
		ASSERT_EQ(gr_dirty_epoch_pages(c), (uint64_t)0);
	}
	ASSERT_EQ(gr_dirty_grow(d, 3 * CHUNK, NULL), 0);
	mark(d, 3 * CHUNK - 1);
	gr_dirty_kept_abort(e[1]);
	gr_dirty_kept_commit(e[0]);
	ASSERT_EQ(begin(c), (uint64_t)12);
	ASSERT_EQ(gr_dirty_epoch_count(c, 100, 11), (uint64_t)11);
	ASSERT_EQ(gr_dirty_epoch_commit(c), 0);
	ASSERT_EQ(begin(c), (uint64_t)0);
	gr_dirty_kept_abort(NULL);
	gr_dirty_kept_commit(NULL);
	gr_dirty_consumer_del(c); /* with one open and one kept */
	gr_dirty_free(d);
}

TEST(an_exported_epoch_is_the_same_when_it_is_imported)
{
	struct gr_dirty *d = make(2 * CHUNK);
	struct gr_dirty_consumer *a = add(d, GR_DIRTY_START_CLEAN);
	struct gr_dirty_consumer *b;
	unsigned char words[1 + 8 * (3 * 4096 / 64 + 1)];
	const uint64_t first = CHUNK - 4096, pages = 3 * 4096 + 7;

	mark_range(d, first, 4096); /* whole */
	mark(d, first + 5000);
	mark_range(d, first + 3 * 4096, 20); /* more than is exported */
	b = add(d, GR_DIRTY_START_CLEAN);
	ASSERT_EQ(begin(a), (uint64_t)4096 + 1 + 20);
	gr_dirty_epoch_export_le(a, first, pages, words + 1);
	ASSERT_EQ(words[1], 0xff);
	ASSERT_EQ(words[1 + 5000 / 8], 1 << 5000 % 8);
	ASSERT_EQ(words[1 + 3 * 4096 / 8], 0x7f);
	ASSERT_EQ(words[1 + 3 * 4096 / 8 + 1], 0);
	ASSERT_EQ(begin(b), (uint64_t)0);
	gr_dirty_epoch_import_le(b, first, pages, words + 1);
	ASSERT_EQ(gr_dirty_epoch_pages(b), (uint64_t)4096 + 1 + 7);
	ASSERT_EQ(gr_dirty_epoch_count(b, first, 4096), (uint64_t)4096);
	ASSERT_EQ(gr_dirty_epoch_count(b, first + 5000, 1), (uint64_t)1);
	/* Beyond what is covered there is nothing to export, and nothing is imported. */
	gr_dirty_epoch_export_le(a, 2 * CHUNK, 64, words);
	ASSERT_EQ(words[0], 0);
	memset(words, 0xff, 8);
	gr_dirty_epoch_import_le(b, 2 * CHUNK, 64, words);
	ASSERT_EQ(gr_dirty_epoch_pages(b), (uint64_t)4096 + 1 + 7);
	gr_dirty_consumer_del(a);
	gr_dirty_consumer_del(b);
	gr_dirty_free(d);
}

TEST(a_bitmap_at_the_end_of_all_numbers_does_not_reach_the_first_pages)
{
	const uint64_t last = UINT64_MAX - 63; /* one more word would be page 0 */
	struct gr_dirty *d = make(CHUNK);
	struct gr_dirty_consumer *c = add(d, GR_DIRTY_START_CLEAN);
	unsigned char words[16];

	mark(d, 70);
	ASSERT_EQ(begin(c), (uint64_t)1);
	memset(words, 0xff, sizeof(words));
	gr_dirty_epoch_import_le(c, last, 128, words);
	ASSERT_EPOCH_IS(c, 70, 1);
	gr_dirty_epoch_add(c, 0, 64);
	gr_dirty_epoch_export_le(c, last, 128, words);
	for (size_t i = 0; i < sizeof(words); i++) {
		ASSERT_EQ(words[i], 0);
	}
	/* Half of it is covered. */
	memset(words, 0xff, sizeof(words));
	gr_dirty_epoch_export_le(c, CHUNK - 64, 67, words);
	for (size_t i = 0; i < sizeof(words); i++) {
		ASSERT_EQ(words[i], 0);
	}
	gr_dirty_consumer_del(c);
	gr_dirty_free(d);
}

TEST(pages_beyond_the_memory_stay_out_of_an_epoch_after_a_growth_that_failed_half_way)
{
	struct gr_dirty *d = make(CHUNK);
	struct gr_dirty_consumer *c = add(d, GR_DIRTY_START_CLEAN);
	struct gr_dirty_epoch *kept;
	unsigned char words[16];

	/* What it leaves that had no memory for the map any more. */
	ASSERT_EQ(gr_bits_grow(&c->pend, 2), 0);
	ASSERT_EQ(gr_bits_grow(&c->set, 2), 0);
	ASSERT_EQ(begin(c), (uint64_t)0);
	gr_dirty_epoch_add(c, CHUNK - 1, 2);
	ASSERT_EPOCH_IS(c, CHUNK - 1, 1);
	memset(words, 0xff, sizeof(words));
	gr_dirty_epoch_import_le(c, CHUNK - 64, 128, words);
	ASSERT_EPOCH_IS(c, CHUNK - 64, 64);
	/* The set that takes its place is smaller, and pages come back to it. */
	ASSERT_EQ(gr_dirty_epoch_keep(c, &kept, NULL), 0);
	ASSERT_EQ(begin(c), (uint64_t)0);
	gr_dirty_kept_abort(kept);
	ASSERT_EQ(gr_dirty_epoch_commit(c), 0);
	ASSERT_EQ(begin(c), (uint64_t)64);
	ASSERT_EPOCH_IS(c, CHUNK - 64, 64);
	gr_dirty_consumer_del(c);
	gr_dirty_free(d);
}

TEST(blocks_that_come_and_go_need_no_more_dirty_memory)
{
	struct gr_ram_block_desc desc = { .size = sizeof(desc),
					  .id = "dimm",
					  .used_bytes = 3 * 4096,
					  .backing = GR_RAM_ANONYMOUS,
					  .fd = -1 };
	struct gr_dirty_consumer *c;
	struct gr_ram *ram;
	uint64_t pages = 0;

	ASSERT_EQ(gr_ram_create(NULL, &ram, NULL), 0);
	c = add(gr_ram_dirty(ram), GR_DIRTY_START_CLEAN);
	for (int i = 0; i < 300; i++) {
		ASSERT_EQ(gr_ram_block_add(ram, &desc, NULL, NULL), 0);
		ASSERT_EQ(begin(c), (uint64_t)3); /* a new one is dirty, whatever was there */
		ASSERT_EQ(gr_dirty_epoch_commit(c), 0);
		ASSERT_EQ(gr_ram_block_del_by_id(ram, "dimm", NULL), 0);
		if (i == 0) {
			pages = gr_dirty_pages(gr_ram_dirty(ram));
		}
	}
	ASSERT_EQ(gr_dirty_pages(gr_ram_dirty(ram)), pages);
	gr_dirty_consumer_del(c);
	gr_ram_free(ram);
}

TEST(pages_put_into_an_epoch_count_once)
{
	struct gr_dirty *d = make(CHUNK);
	struct gr_dirty_consumer *c = add(d, GR_DIRTY_START_CLEAN);

	mark(d, 50);
	ASSERT_EQ(begin(c), (uint64_t)1);
	gr_dirty_epoch_add(c, 49, 3);
	ASSERT_EPOCH_IS(c, 49, 3);
	/* A block that appears while the epoch is open. */
	ASSERT_EQ(gr_dirty_grow(d, 3 * CHUNK, NULL), 0);
	gr_dirty_epoch_add(c, 3 * CHUNK - 70, 70);
	ASSERT_EQ(gr_dirty_epoch_pages(c), (uint64_t)73);
	gr_dirty_epoch_done(c, 0, 3 * CHUNK - 1);
	ASSERT_EPOCH_IS(c, 3 * CHUNK - 1, 1);
	gr_dirty_consumer_del(c);
	gr_dirty_free(d);
}

TEST(misuse_is_refused_and_changes_nothing)
{
	struct gr_dirty *d = make(CHUNK);
	struct gr_dirty_consumer *c[GR_DIRTY_CONSUMERS_MAX], *ninth = NULL;
	struct gr_error err;
	uint64_t pages = 99;

	for (int i = 0; i < GR_DIRTY_CONSUMERS_MAX; i++) {
		c[i] = add(d, GR_DIRTY_START_CLEAN);
	}
	ASSERT_EQ(gr_dirty_consumer_add(d, "ninth", GR_DIRTY_START_FULL, &ninth, &err), -ENOSPC);
	ASSERT_HAS(err.msg, "ninth");
	ASSERT_PTR_EQ(ninth, NULL);
	ASSERT_EQ(gr_dirty_epoch_commit(c[0]), -EINVAL);
	ASSERT_EQ(gr_dirty_epoch_abort(c[0]), -EINVAL);
	mark(d, 1);
	ASSERT_EQ(begin(c[0]), (uint64_t)1);
	ASSERT_EQ(gr_dirty_epoch_begin(c[0], &pages, &err), -EBUSY);
	ASSERT_HAS(err.msg, "test");
	ASSERT_EQ(pages, (uint64_t)99);
	ASSERT_EPOCH_IS(c[0], 1, 1);
	for (int i = 0; i < GR_DIRTY_CONSUMERS_MAX; i++) {
		gr_dirty_consumer_del(c[i]);
	}
	gr_dirty_consumer_del(NULL);
	gr_dirty_free(d);
}

static void mark_beyond(void *opaque)
{
	(void)opaque;
	mark(make(1), CHUNK);
}

TEST(mark_beyond_the_end_dies_instead_of_writing_somewhere)
{
	char text[512] = "";

	ASSERT_NE(test_in_child(mark_beyond, NULL, text, sizeof(text)), 0);
	ASSERT_HAS(text, "covered");
}

TEST(harvest_runs_one_fence_if_it_took_bits_and_none_otherwise)
{
	struct gr_dirty *d = make(3 * CHUNK);
	struct gr_dirty_consumer *a = add(d, GR_DIRTY_START_CLEAN);
	struct gr_dirty_consumer *b = add(d, GR_DIRTY_START_CLEAN);
	uint64_t calls = gr_heavy_fence_count();

	ASSERT_EQ(d->fences, (uint64_t)0);
	(void)begin(a);
	ASSERT_EQ(d->fences, (uint64_t)0);
	ASSERT_EQ(gr_dirty_epoch_commit(a), 0);
	for (uint64_t i = 0; i < 3; i++) {
		mark_range(d, i * CHUNK, 5000);
	}
	(void)begin(a);
	ASSERT_EQ(d->fences, (uint64_t)1);
	(void)begin(b); /* all of it pending: the fence was run before */
	ASSERT_EQ(d->fences, (uint64_t)1);
	ASSERT_EQ(gr_dirty_epoch_abort(a), 0);
	ASSERT_EQ(d->fences, (uint64_t)1);
	if (gr_heavy_fence_available()) {
		ASSERT_EQ(gr_heavy_fence_count() - calls, (uint64_t)1);
	}
	gr_dirty_consumer_del(a);
	gr_dirty_consumer_del(b);
	gr_dirty_free(d);
}

TEST(live_estimate_is_never_below_the_truth)
{
	struct gr_dirty *d = make(2 * CHUNK);
	struct gr_dirty_consumer *c;

	ASSERT_EQ(gr_dirty_live_estimate(d), (uint64_t)0);
	mark(d, 1);
	mark(d, CHUNK);
	ASSERT_EQ(gr_dirty_live_estimate(d), (uint64_t)128);
	mark_range(d, 60, 10);
	ASSERT_EQ(gr_dirty_live_estimate(d), (uint64_t)192);
	c = add(d, GR_DIRTY_START_CLEAN); /* drains */
	ASSERT_EQ(gr_dirty_live_estimate(d), (uint64_t)0);
	gr_dirty_consumer_del(c);
	gr_dirty_free(d);
}

TEST(growth_that_fails_changes_nothing)
{
	struct gr_dirty *d;
	struct gr_dirty_consumer *c, *none = NULL;
	struct rlimit limit = { 0, 0 };
	struct gr_error err;

	if (test_under_asan() || test_under_tsan()) {
		SKIP("sanitizers need address space of their own");
	}
	d = make(CHUNK);
	c = add(d, GR_DIRTY_START_CLEAN);
	mark(d, 4);
	ASSERT_EQ(setrlimit(RLIMIT_AS, &limit), 0);
	ASSERT_EQ(gr_dirty_grow(d, 100 * CHUNK, &err), -ENOMEM);
	ASSERT_HAS(err.msg, "no memory");
	ASSERT_EQ(gr_dirty_consumer_add(d, "other", GR_DIRTY_START_CLEAN, &none, &err), -ENOMEM);
	ASSERT_PTR_EQ(none, NULL);
	ASSERT_EQ(gr_dirty_pages(d), CHUNK);
	mark(d, 5);
	ASSERT_EQ(begin(c), (uint64_t)2);
	ASSERT_EPOCH_IS(c, 4, 2);
	ASSERT_EQ(gr_dirty_epoch_commit(c), 0);
}

TEST(child_of_a_fork_finds_bits_whose_marker_it_lacks)
{
	struct gr_dirty *d = make(CHUNK);
	struct gr_dirty_consumer *c = add(d, GR_DIRTY_START_CLEAN);
	pid_t pid;
	int status;

	/* What a marker leaves that was stopped after the leaf and is not in the child. */
	d->map->chunk[0].leaf[1000] |= 4;
	pid = fork();
	ASSERT_GE(pid, 0);
	if (pid == 0) {
		ASSERT_EQ(begin(c), (uint64_t)1);
		ASSERT_EPOCH_IS(c, 64002, 1);
		_exit(0);
	}
	ASSERT_EQ(waitpid(pid, &status, 0), pid);
	ASSERT_EQ(status, 0);
	/* In the parent the marker goes on, and nothing was taken from it. */
	mark(d, 64002);
	ASSERT_EQ(begin(c), (uint64_t)1);
	gr_dirty_consumer_del(c);
	gr_dirty_free(d);
}

#ifdef __linux__
/* The first process of a namespace has the same pid as its child in the next one. */
static void fork_with_the_same_pid(void)
{
	struct gr_dirty *d = make(CHUNK);
	struct gr_dirty_consumer *c = add(d, GR_DIRTY_START_CLEAN);
	pid_t me = getpid(), pid;
	int status;

	ASSERT_EQ(me, 1);
	d->map->chunk[0].leaf[1000] |= 4;
	ASSERT_EQ(unshare(CLONE_NEWPID), 0);
	pid = fork();
	ASSERT_GE(pid, 0);
	if (pid == 0) {
		ASSERT_EQ(getpid(), me);
		ASSERT_EQ(begin(c), (uint64_t)1);
		ASSERT_EPOCH_IS(c, 64002, 1);
		_exit(0);
	}
	ASSERT_EQ(waitpid(pid, &status, 0), pid);
	ASSERT_EQ(status, 0);
}

TEST(child_of_a_fork_that_has_its_parents_pid_finds_them_too)
{
	int status;
	pid_t pid;

	if (test_under_asan()) {
		SKIP("LeakSanitizer does not work in another namespace than its thread's");
	}
	if (unshare(CLONE_NEWPID) != 0 && unshare(CLONE_NEWUSER | CLONE_NEWPID) != 0) {
		SKIP("no new namespace of processes: errno %d", errno);
	}
	pid = fork();
	ASSERT_GE(pid, 0);
	if (pid == 0) {
		fork_with_the_same_pid();
		_exit(0);
	}
	ASSERT_EQ(waitpid(pid, &status, 0), pid);
	ASSERT_EQ(status, 0);
}
#endif

static bool stop; /* (a) */

static void *harvest_all_the_time(void *arg)
{
	struct gr_dirty_consumer *c = arg;

	while (!__atomic_load_n(&stop, __ATOMIC_RELAXED)) {
		mark_range(c->dirty, 0, c->dirty->pages);
		(void)begin(c);
		ASSERT_EQ(gr_dirty_epoch_commit(c), 0);
	}
	return NULL;
}

TEST(child_of_a_fork_in_the_middle_of_another_threads_harvest_can_harvest_all)
{
	struct gr_dirty *d = make(CHUNK);
	struct gr_dirty_consumer *mine = add(d, GR_DIRTY_START_FULL);
	struct gr_dirty_consumer *theirs = add(d, GR_DIRTY_START_CLEAN);
	pthread_t thread;

	SKIP_FORK_AMONG_THREADS_UNDER_SANITIZERS();
	ASSERT_EQ(pthread_create(&thread, NULL, harvest_all_the_time, theirs), 0);
	for (int i = 0; i < 50; i++) {
		int status;
		pid_t pid = fork();

		ASSERT_GE(pid, 0);
		if (pid == 0) {
			ASSERT_EQ(begin(mine), CHUNK); /* it never committed: all, in any case */
			_exit(0);
		}
		ASSERT_EQ(waitpid(pid, &status, 0), pid);
		ASSERT_EQ(status, 0);
	}
	__atomic_store_n(&stop, true, __ATOMIC_RELAXED);
	pthread_join(thread, NULL);
	gr_dirty_consumer_del(mine);
	gr_dirty_consumer_del(theirs);
	gr_dirty_free(d);
}

TEST_MAIN()
