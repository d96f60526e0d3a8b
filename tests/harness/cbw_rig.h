/* SPDX-License-Identifier: MIT */
/* For tests of copies before write: a machine, and an owner that writes down what it is shown. */
#ifndef CBW_RIG_H
#define CBW_RIG_H

#include "concurrent.h"
#include "ram/copy.h"
#include "uffd_rig.h"
#include <errno.h>
#include <fcntl.h>
#include <guestram/copy_before_write.h>
#include <stdlib.h>
#include <unistd.h>

enum { PAGES = 256 };

struct rig {
	struct gr_ram *ram;
	struct gr_ram_block *block;
	struct gr_cbw *cbw;
	enum gr_cbw_verdict verdict; /* (a) */
	uint32_t asked;		     /* (a) how often */
	uint32_t was_open;	     /* (a) asked about pages that were not protected any more */
	pthread_mutex_t lock;	     /* it is asked by several threads at once */
	struct gr_cbw_piece last;    /* (lock) that was asked about; published by asked */
	uint8_t first_byte[PAGES];   /* of what was shown */
	uint8_t shown[PAGES];	     /* how often */
};

/* Whether userfaultfd protects the page against writes. */
RIG_FN bool protected(const void *host)
{
	static int pagemap = -1;
	uint64_t entry = 0;

	if (pagemap < 0) {
		pagemap = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
		ASSERT_GE(pagemap, 0);
	}
	ASSERT_EQ(pread(pagemap, &entry, 8, (off_t)((uintptr_t)host / PAGE * 8)), (ssize_t)8);
	return entry >> 57 & 1;
}

RIG_FN void show(struct rig *r, const struct gr_cbw_piece *piece)
{
	for (uint64_t at = 0; at < piece->bytes && piece->block == r->block; at += PAGE) {
		uint64_t page = (piece->offset + at) / PAGE;

		ASSERT_LT(page, (uint64_t)PAGES);
		r->shown[page]++;
		if (piece->host) {
			gr_copy_from_guest(&r->first_byte[page], piece->host + at, 1);
		}
	}
}

RIG_FN enum gr_cbw_verdict before_write(void *opaque, const struct gr_cbw_piece *piece)
{
	struct rig *r = opaque;

	pthread_mutex_lock(&r->lock);
	if (piece->host && !protected(piece->host)) {
		ADD(&r->was_open, 1);
	}
	show(r, piece);
	r->last = *piece;
	pthread_mutex_unlock(&r->lock);
	__atomic_fetch_add(&r->asked, 1, __ATOMIC_RELEASE);
	return LOAD(&r->verdict);
}

RIG_FN volatile uint8_t *at(struct rig *r, unsigned int page)
{
	return page_of(r->block, page);
}

/* Page n begins with n + 1; those that divide by 8 are holes. */
RIG_FN struct rig *make_rig(enum gr_ram_backing backing)
{
	struct rig *r = calloc(1, sizeof(*r));

	ASSERT(r);
	ASSERT_EQ(pthread_mutex_init(&r->lock, NULL), 0);
	ASSERT_EQ(sysconf(_SC_PAGESIZE), (long)PAGE);
	ASSERT_EQ(gr_ram_create(NULL, &r->ram, NULL), 0);
	r->block = plug(r->ram, (struct gr_ram_block_desc){ .id = "ram",
							    .used_bytes = PAGES * PAGE,
							    .max_bytes = 2 * PAGES * PAGE,
							    .backing = backing });
	ASSERT_EQ(gr_ram_region_add(
			  r->ram,
			  &(struct gr_ram_region){ .block = r->block, .bytes = PAGES * PAGE },
			  NULL),
		  0);
	for (unsigned int i = 0; i < PAGES; i++) {
		if (i % 8 != 0) {
			*at(r, i) = (uint8_t)(i + 1);
		}
	}
	return r;
}

RIG_FN uint8_t content(unsigned int page)
{
	return page % 8 == 0 ? 0 : (uint8_t)(page + 1);
}

RIG_FN int try_start(struct rig *r, unsigned int writers, bool no_thread, struct gr_error *err)
{
	struct gr_cbw_params params = { .size = sizeof(params),
					.writers = writers,
					.before_write = before_write,
					.opaque = r,
					.no_thread = no_thread };

	return gr_cbw_start(r->ram, &params, &r->cbw, err);
}

RIG_FN void start(struct rig *r)
{
	struct gr_error err;
	int ret = try_start(r, GR_WRITERS_STORES, false, &err);

	if (ret == -ENOTSUP || ret == -EPERM) {
		SKIP("%s", err.msg);
	}
	if (ret < 0) {
		FAIL("%s", err.msg);
	}
}

/* For tests whose writers are system calls. */
RIG_FN void start_for_all(struct rig *r)
{
	struct gr_error err;

	if (try_start(r, GR_WRITERS_MAPPING | GR_WRITERS_MARKED, false, &err) < 0) {
		SKIP("%s", err.msg);
	}
}

RIG_FN void walk(struct rig *r, uint64_t bytes_max)
{
	struct gr_cbw_piece piece;
	struct gr_error err;
	int ret;

	while ((ret = gr_cbw_next(r->cbw, bytes_max, &piece, &err)) > 0) {
		ASSERT_GT(piece.bytes, 0u);
		ASSERT(piece.bytes <= bytes_max || piece.bytes == PAGE);
		show(r, &piece);
		gr_cbw_release(r->cbw, &piece);
	}
	if (ret < 0) {
		FAIL("%s", err.msg);
	}
}

/* It ends well, and each page was shown once, as it was. */
RIG_FN void expect_whole(struct rig *r)
{
	struct gr_cbw_stats stats;
	struct gr_error err;

	gr_cbw_stats(r->cbw, &stats);
	ASSERT_EQ(stats.walked_bytes + stats.written_bytes, stats.bytes);
	if (gr_cbw_end(r->cbw, &err) < 0) {
		FAIL("%s", err.msg);
	}
	for (unsigned int i = 0; i < PAGES; i++) {
		if (r->shown[i] != 1 || r->first_byte[i] != content(i)) {
			FAIL("page %u was shown %u times, began with %u", i, r->shown[i],
			     r->first_byte[i]);
		}
	}
	ASSERT_EQ(LOAD(&r->was_open), 0u);
}

RIG_FN void free_rig(struct rig *r)
{
	gr_ram_free(r->ram);
	free(r);
}

RIG_FN void wait_until_asked(struct rig *r, uint32_t times)
{
	uint64_t deadline = now_ns() + UINT64_C(30000000000);

	while (__atomic_load_n(&r->asked, __ATOMIC_ACQUIRE) < times) {
		if (now_ns() > deadline) {
			FAIL("before_write() was called %u times, not %u", LOAD(&r->asked), times);
		}
		sched_yield();
	}
}

struct store {
	struct rig *r;
	unsigned int page;
	uint32_t done; /* (a) */
};

RIG_FN void *store(void *opaque)
{
	struct store *s = opaque;

	gr_fill_guest(s->r->block->host + s->page * PAGE, 0xee, 1);
	__atomic_store_n(&s->done, 1, __ATOMIC_RELEASE);
	return NULL;
}

RIG_FN void join_store(pthread_t t, struct store *s)
{
	uint64_t deadline = now_ns() + UINT64_C(30000000000);

	while (!__atomic_load_n(&s->done, __ATOMIC_ACQUIRE)) {
		if (now_ns() > deadline) {
			FAIL("a writer was left asleep");
		}
		sched_yield();
	}
	ASSERT_EQ(pthread_join(t, NULL), 0);
	ASSERT_EQ(*at(s->r, s->page), 0xee);
}

#endif
