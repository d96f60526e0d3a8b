/* SPDX-License-Identifier: MIT */
/*
 * Copy before write, page by page: each page is shown once, with the content of the start, before
 * it changes in whatever way; and nobody is left asleep. On both kinds of memory.
 */
#include "base/uapi.h"
#include "concurrent.h"
#include "ram/copy.h"
#include "track/stalls.h"
#include "track/uffd_wp.h"
#include "uffd_rig.h"
#include <errno.h>
#include <fcntl.h>
#include <guestram/copy_before_write.h>
#include <guestram/ram_change.h>
#include <guestram/track.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

enum { PAGES = 256 };

struct rig {
	struct gr_ram *ram;
	struct gr_ram_block *block;
	struct gr_cbw *cbw;
	enum gr_cbw_verdict verdict; /* (a) */
	uint32_t asked;		     /* (a) how often */
	uint32_t was_open;	     /* (a) asked about pages that were not protected any more */
	struct gr_cbw_piece last;    /* that was asked about; published by asked */
	uint8_t first_byte[PAGES];   /* of what was shown */
	uint8_t shown[PAGES];	     /* how often */
};

/* Whether userfaultfd protects the page against writes. */
static bool protected(const void *host)
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

static void show(struct rig *r, const struct gr_cbw_piece *piece)
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

static enum gr_cbw_verdict before_write(void *opaque, const struct gr_cbw_piece *piece)
{
	struct rig *r = opaque;

	if (piece->host && !protected(piece->host)) {
		ADD(&r->was_open, 1);
	}
	show(r, piece);
	r->last = *piece;
	__atomic_fetch_add(&r->asked, 1, __ATOMIC_RELEASE);
	return LOAD(&r->verdict);
}

static volatile uint8_t *at(struct rig *r, unsigned int page)
{
	return page_of(r->block, page);
}

/* Page n begins with n + 1; those that divide by 8 are holes. */
static struct rig *make_rig(enum gr_ram_backing backing)
{
	struct rig *r = calloc(1, sizeof(*r));

	ASSERT(r);
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

static uint8_t content(unsigned int page)
{
	return page % 8 == 0 ? 0 : (uint8_t)(page + 1);
}

static int try_start(struct rig *r, unsigned int writers, bool no_thread, struct gr_error *err)
{
	struct gr_cbw_params params = { .size = sizeof(params),
					.writers = writers,
					.before_write = before_write,
					.opaque = r,
					.no_thread = no_thread };

	return gr_cbw_start(r->ram, &params, &r->cbw, err);
}

static void start(struct rig *r)
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
static void start_for_all(struct rig *r)
{
	struct gr_error err;

	if (try_start(r, GR_WRITERS_MAPPING | GR_WRITERS_MARKED, false, &err) < 0) {
		SKIP("%s", err.msg);
	}
}

static void walk(struct rig *r, uint64_t bytes_max)
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
static void expect_whole(struct rig *r)
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

static void free_rig(struct rig *r)
{
	gr_ram_free(r->ram);
	free(r);
}

static void wait_until_asked(struct rig *r, uint32_t times)
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

static void *store(void *opaque)
{
	struct store *s = opaque;

	gr_fill_guest(s->r->block->host + s->page * PAGE, 0xee, 1);
	__atomic_store_n(&s->done, 1, __ATOMIC_RELEASE);
	return NULL;
}

static void join_store(pthread_t t, struct store *s)
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

/* Most tests run on both kinds of memory. */

/* ---- each page once -------------------------------------------------------------------- */

ON_BOTH(a_walk_alone_shows_everything_once)
{
	struct rig *r = make_rig(backing);

	start(r);
	walk(r, 7 * PAGE + 5);
	ASSERT_EQ(LOAD(&r->asked), 0u);
	expect_whole(r);
	free_rig(r);
}

ON_BOTH(what_is_written_is_shown_before_and_not_again)
{
	struct rig *r = make_rig(backing);

	start(r);
	/* Present, a hole, one twice, the last. */
	*at(r, 3) = 0xee;
	*at(r, 8) = 0xee;
	*at(r, 3) = 0xef;
	*at(r, PAGES - 1) = 0xee;
	wait_until_asked(r, 3);
	walk(r, 1 << 20);
	*at(r, 20) = 0xee; /* saved already */
	ASSERT_EQ(LOAD(&r->asked), 3u);
	expect_whole(r);
	ASSERT_EQ(*at(r, 3), 0xef);
	*at(r, 3) = 1; /* as before */
	free_rig(r);
}

ON_BOTH(system_calls_and_the_librarys_own_writes_wait_too)
{
	struct rig *r = make_rig(backing);
	int zero = open("/dev/zero", O_RDWR | O_CLOEXEC);
	struct gr_ram_iov iov[1];
	unsigned int entries;
	uint64_t value = 7;

	start_for_all(r);
	ASSERT_EQ(read(zero, r->block->host + 20 * PAGE + 100, PAGE), (ssize_t)PAGE);
	ASSERT_EQ(LOAD(&r->asked), 2u);
	ASSERT_EQ(gr_ram_write(r->ram, gr_gpa(31 * PAGE - 4), &value, sizeof(value), NULL), 0);
	ASSERT_EQ(LOAD(&r->asked), 4u);
	ASSERT_EQ(gr_ram_iov_get(r->ram, gr_gpa(40 * PAGE), 8, true, iov, 1, &entries, NULL), 0);
	ASSERT_EQ(read(zero, iov[0].iov.iov_base, iov[0].iov.iov_len), (ssize_t)8);
	gr_ram_iov_put(iov, 1, 8);
	ASSERT_EQ(LOAD(&r->asked), 5u);
	walk(r, 1 << 20);
	expect_whole(r);
	close(zero);
	free_rig(r);
}

/* ---- not yet --------------------------------------------------------------------------- */

ON_BOTH(a_page_that_is_kept_holds_its_writers_until_it_is_released)
{
	struct rig *r = make_rig(backing);
	struct store s[2] = { { .r = r, .page = 5 }, { .r = r, .page = 5 } };
	struct gr_cbw_stats stats;
	struct gr_cbw_piece piece;
	pthread_t t[2];

	STORE(&r->verdict, GR_CBW_KEEP);
	start(r);
	t[0] = spawn(store, &s[0]);
	t[1] = spawn(store, &s[1]);
	wait_until_asked(r, 1);
	piece = r->last;
	ASSERT_EQ(piece.offset, (uint64_t)5 * PAGE);
	ASSERT_EQ(piece.bytes, (uint64_t)PAGE);
	walk(r, 1 << 20); /* all the others, while they wait */
	ASSERT_EQ(LOAD(&s[0].done), 0u);
	ASSERT(protected(piece.host));
	ASSERT_EQ(*at(r, 5), content(5));
	gr_cbw_release(r->cbw, &piece);
	join_store(t[0], &s[0]);
	join_store(t[1], &s[1]);
	ASSERT_EQ(LOAD(&r->asked), 1u);
	gr_cbw_stats(r->cbw, &stats);
	ASSERT_EQ(stats.stalls.count, 0u);
	ASSERT_GE(stats.kept_stalls.count, 1u); /* the other one may have come when it was open */
	ASSERT_GT(stats.kept_stalls.ns_total, 0u);
	expect_whole(r);
	free_rig(r);
}

ON_BOTH(a_page_in_the_hands_of_the_walk_holds_its_writers_and_nobody_is_asked)
{
	struct rig *r = make_rig(backing);
	struct store s = { .r = r, .page = 5 };
	struct gr_cbw_piece piece, half;
	pthread_t t;

	start(r);
	ASSERT_EQ(gr_cbw_next(r->cbw, 16 * PAGE, &piece, NULL), 1);
	ASSERT_EQ(piece.bytes, (uint64_t)16 * PAGE);
	t = spawn(store, &s);
	/* Another page, whose fault comes after it in the queue or before it; no matter. */
	*at(r, 100) = 1;
	wait_until_asked(r, 1);
	ASSERT_EQ(LOAD(&s.done), 0u);
	show(r, &piece);
	half = piece;
	half.bytes = 8 * PAGE; /* in parts */
	gr_cbw_release(r->cbw, &half);
	join_store(t, &s);
	half.offset += half.bytes;
	half.host += half.bytes;
	gr_cbw_release(r->cbw, &half);
	walk(r, 1 << 20);
	ASSERT_EQ(LOAD(&r->asked), 1u);
	expect_whole(r);
	free_rig(r);
}

TEST(the_99th_percentile_of_stalls_is_at_most_an_eighth_too_long)
{
	struct gr_stall_histogram h = { .count = 0 };
	struct gr_cbw_stalls s = gr_stall_summary(&h);

	ASSERT_EQ(s.ns_p99, 0u);
	for (uint64_t ns = 1; ns <= 1000; ns++) {
		gr_stall_add(&h, ns * 1000);
	}
	s = gr_stall_summary(&h);
	ASSERT_EQ(s.count, 1000u);
	ASSERT_EQ(s.ns_max, 1000000u);
	ASSERT_EQ(s.ns_total, 500500000u);
	ASSERT_GE(s.ns_p99, 990000u);
	ASSERT_LE(s.ns_p99, 1000000u);
	h = (struct gr_stall_histogram){ .count = 0 };
	for (unsigned int log2 = 0; log2 < 64; log2++) {
		h = (struct gr_stall_histogram){ .count = 0 };
		gr_stall_add(&h, UINT64_C(1) << log2);
		gr_stall_add(&h, UINT64_MAX);
		for (unsigned int i = 0; i < 200; i++) {
			gr_stall_add(&h, (UINT64_C(1) << log2) + (UINT64_C(1) << log2) / 9);
		}
		s = gr_stall_summary(&h);
		if (log2 < 41) {
			ASSERT_GE(s.ns_p99, (UINT64_C(1) << log2) + (UINT64_C(1) << log2) / 9);
			ASSERT_LE(s.ns_p99, (UINT64_C(1) << log2) * 5 / 4);
		}
	}
}

/* ---- ends ------------------------------------------------------------------------------ */

ON_BOTH(an_end_lets_everybody_go_on_and_says_what_is_missing)
{
	struct rig *r = make_rig(backing);
	struct store s[3] = { { .r = r, .page = 5 }, { .r = r, .page = 6 }, { .r = r, .page = 8 } };
	struct gr_error err;
	pthread_t t[3];
	int held;

	STORE(&r->verdict, GR_CBW_KEEP);
	start(r);
	for (unsigned int i = 0; i < 3; i++) {
		t[i] = spawn(store, &s[i]);
	}
	wait_until_asked(r, 3);
	/* As a child would have it: the kernel wakes all when the last one is closed. */
	held = dup(gr_cbw_fd(r->cbw));
	ASSERT_EQ(gr_cbw_end(r->cbw, &err), -ECANCELED);
	ASSERT_HAS(err.msg, "0 of 1048576 bytes");
	for (unsigned int i = 0; i < 3; i++) {
		join_store(t[i], &s[i]);
	}
	close(held);
	ASSERT(!protected(r->block->host + 5 * PAGE));
	ASSERT(!protected(r->block->host + 9 * PAGE));
	/* And once more from the beginning. */
	for (unsigned int i = 0; i < 3; i++) {
		*at(r, s[i].page) = content(s[i].page);
	}
	memset(r->shown, 0, sizeof(r->shown));
	start(r);
	walk(r, 1 << 20);
	expect_whole(r);
	free_rig(r);
}

ON_BOTH(what_is_abandoned_lets_everybody_go_on_and_cannot_end_well)
{
	struct rig *r = make_rig(backing);
	struct store s[2] = { { .r = r, .page = 5 }, { .r = r, .page = 6 } };
	struct gr_cbw_piece piece;
	struct gr_error err;
	pthread_t t[2];

	STORE(&r->verdict, GR_CBW_KEEP);
	start(r);
	ASSERT_EQ(gr_cbw_next(r->cbw, PAGE, &piece, NULL), 1);
	t[0] = spawn(store, &s[0]);
	wait_until_asked(r, 1);
	STORE(&r->verdict, GR_CBW_ABANDON);
	t[1] = spawn(store, &s[1]);
	join_store(t[0], &s[0]);
	join_store(t[1], &s[1]);
	*at(r, 50) = 1;
	ASSERT_EQ(LOAD(&r->asked), 2u);
	gr_cbw_release(r->cbw, &piece);
	ASSERT_EQ(gr_cbw_next(r->cbw, PAGE, &piece, &err), -ECANCELED);
	ASSERT_EQ(gr_cbw_end(r->cbw, &err), -ECANCELED);
	ASSERT_HAS(err.msg, "abandoned");
	free_rig(r);
}

ON_BOTH(any_thread_may_give_up)
{
	struct rig *r = make_rig(backing);
	struct store s[2] = { { .r = r, .page = 5 }, { .r = r, .page = 6 } };
	struct gr_cbw_stats stats;
	struct gr_cbw_piece piece;
	struct gr_error err;
	pthread_t t[2];

	STORE(&r->verdict, GR_CBW_KEEP);
	start(r);
	for (unsigned int i = 0; i < 2; i++) {
		t[i] = spawn(store, &s[i]);
	}
	wait_until_asked(r, 2);
	gr_cbw_abandon(r->cbw);
	join_store(t[0], &s[0]);
	join_store(t[1], &s[1]);
	gr_cbw_abandon(r->cbw);
	gr_cbw_stats(r->cbw, &stats);
	ASSERT_GE(stats.stalls.count + stats.kept_stalls.count, 2u);
	ASSERT_GE(stats.stalls.ns_max + stats.kept_stalls.ns_max, stats.kept_stalls.ns_p99);
	ASSERT_EQ(gr_cbw_next(r->cbw, PAGE, &piece, &err), -ECANCELED);
	ASSERT_EQ(gr_cbw_end(r->cbw, &err), -ECANCELED);
	ASSERT_HAS(err.msg, "abandoned");
	free_rig(r);
}

static void release_twice(void *opaque)
{
	struct rig *r = opaque;
	struct gr_cbw_piece piece;

	ASSERT_EQ(try_start(r, GR_WRITERS_STORES, true, NULL), 0);
	ASSERT_EQ(gr_cbw_next(r->cbw, PAGE, &piece, NULL), 1);
	gr_cbw_release(r->cbw, &piece);
	gr_cbw_release(r->cbw, &piece);
}

TEST(pages_that_are_not_the_owners_cannot_be_released)
{
	struct rig *r = make_rig(GR_RAM_MEMFD);
	char text[400];
	int status = test_in_child(release_twice, r, text, sizeof(text));

	ASSERT(!WIFEXITED(status) || WEXITSTATUS(status) != 0);
	ASSERT_HAS(text, "pages that the owner does not have");
	free_rig(r);
}

/* ---- memory that changes without a store ----------------------------------------------- */

ON_BOTH(memory_that_is_given_back_is_shown_before)
{
	struct rig *r = make_rig(backing);
	struct gr_cbw_piece piece;
	struct gr_error err;

	start(r);
	ASSERT_EQ(gr_ram_discard(r->block, 10 * PAGE, 3 * PAGE, NULL), 0);
	ASSERT_EQ(LOAD(&r->asked), 3u);
	ASSERT_EQ(*at(r, 11), 0);
	ASSERT_EQ(gr_ram_depopulate(r->block, 20 * PAGE, PAGE, NULL), 0);
	ASSERT_EQ(LOAD(&r->asked), 4u);
	*at(r, 11) = 0xee;
	/* In the owner's hands, or kept by it: not now. */
	ASSERT_EQ(gr_cbw_next(r->cbw, PAGE, &piece, NULL), 1);
	ASSERT_EQ(piece.offset, 0u);
	ASSERT_EQ(gr_ram_discard(r->block, 0, PAGE, &err), -EBUSY);
	ASSERT_HAS(err.msg, "block 'ram': a snapshot has not saved the page at 0 yet");
	show(r, &piece);
	gr_cbw_release(r->cbw, &piece);
	ASSERT_EQ(gr_ram_discard(r->block, 0, PAGE, &err), 0);
	STORE(&r->verdict, GR_CBW_KEEP);
	ASSERT_EQ(gr_ram_discard(r->block, 30 * PAGE, PAGE, &err), -EBUSY);
	ASSERT_EQ(*at(r, 30), content(30));
	gr_cbw_release(r->cbw, &r->last);
	ASSERT_EQ(gr_ram_discard(r->block, 30 * PAGE, PAGE, &err), 0);
	walk(r, 1 << 20);
	ASSERT_EQ(LOAD(&r->asked), 5u);
	expect_whole(r);
	ASSERT_EQ(*at(r, 30), 0);
	free_rig(r);
}

/* Whoever reads broken memory is killed; so the owner does not get to. */
ON_BOTH(broken_memory_that_is_replaced_is_told_without_content)
{
	struct rig *r = make_rig(backing);
	struct gr_cbw_stats stats;
	struct gr_cbw_piece piece;
	struct gr_error err;

	start(r);
	*at(r, 12) = 0xee; /* saved before: nothing is lost */
	wait_until_asked(r, 1);
	ASSERT(r->last.host == r->block->host + 12 * PAGE);
	ASSERT_EQ(gr_ram_remap(r->block, 12 * PAGE, 2 * PAGE, NULL), 0);
	ASSERT_EQ(LOAD(&r->asked), 2u);
	ASSERT_EQ(r->last.offset, (uint64_t)13 * PAGE);
	ASSERT_EQ(r->last.bytes, (uint64_t)PAGE);
	ASSERT(!r->last.host);
	*at(r, 13) = 0xee; /* new memory, which nobody has to be asked about */
	ASSERT_EQ(LOAD(&r->asked), 2u);
	/* In the owner's hands: it may be reading. */
	ASSERT_EQ(gr_cbw_next(r->cbw, PAGE, &piece, NULL), 1);
	ASSERT_EQ(gr_ram_remap(r->block, 0, PAGE, &err), -EBUSY);
	show(r, &piece);
	gr_cbw_release(r->cbw, &piece);
	/* Kept: not now. */
	STORE(&r->verdict, GR_CBW_KEEP);
	ASSERT_EQ(gr_ram_remap(r->block, 30 * PAGE, PAGE, &err), -EBUSY);
	ASSERT_EQ(*at(r, 30), content(30));
	ASSERT(!r->last.host);
	gr_cbw_release(r->cbw, &r->last);
	ASSERT_EQ(gr_ram_remap(r->block, 30 * PAGE, PAGE, &err), 0);
	walk(r, 1 << 20);
	gr_cbw_stats(r->cbw, &stats);
	ASSERT_EQ(stats.lost_bytes, (uint64_t)2 * PAGE);
	r->first_byte[13] = content(13);
	r->first_byte[30] = content(30);
	expect_whole(r);
	free_rig(r);
}

/* For real, where the kernel may be told that a page failed (GR_TEST_HWPOISON=1). */
TEST(a_page_that_the_kernel_gave_up_does_not_kill_the_owner)
{
	struct rig *r = make_rig(GR_RAM_MEMFD);

	if (!getenv("GR_TEST_HWPOISON")) {
		SKIP("takes a page from the machine until it boots: GR_TEST_HWPOISON=1");
	}
	start(r);
	if (madvise(r->block->host + 9 * PAGE, PAGE, MADV_HWPOISON) < 0) {
		SKIP("MADV_HWPOISON: %s", strerror(errno));
	}
	ASSERT_EQ(gr_ram_remap(r->block, 9 * PAGE, PAGE, NULL), 0);
	ASSERT(!r->last.host);
	r->first_byte[9] = content(9);
	walk(r, 1 << 20);
	expect_whole(r);
	free_rig(r);
}

/* ---- in the middle of a start, and of what has the lock -------------------------------- */

static void (*hook)(const char *place); /* (a) */
static struct rig *hooked;
static uint32_t hits; /* (a) */

void gr_test_hook(const char *place);
void gr_test_hook(const char *place)
{
	void (*fn)(const char *) = __atomic_load_n(&hook, __ATOMIC_ACQUIRE);

	if (fn) {
		fn(place);
	}
}

static void discard_when_armed(const char *place)
{
	if (strcmp(place, "cbw start: armed") == 0) {
		ASSERT_EQ(gr_ram_discard(hooked->block, 10 * PAGE, PAGE, NULL), 0);
		ADD(&hits, 1);
	}
}

ON_BOTH(what_is_given_back_while_it_starts_is_shown_before)
{
	struct rig *r = make_rig(backing);

	hooked = r;
	__atomic_store_n(&hook, discard_when_armed, __ATOMIC_RELEASE);
	start(r);
	__atomic_store_n(&hook, NULL, __ATOMIC_RELEASE);
	ASSERT_EQ(LOAD(&hits), 1u);
	ASSERT_EQ(LOAD(&r->asked), 1u);
	walk(r, 1 << 20);
	expect_whole(r);
	free_rig(r);
}

static __thread bool has_lock;

/* A handler of the application's. */
static void store_to_guest(int signal)
{
	(void)signal;
	if (has_lock) {
		FAIL("a handler runs on a thread that holds what its fault needs");
	}
	*at(hooked, 40 + ADD(&hits, 1)) = 0xee;
}

static void interrupt_who_has_the_lock(const char *place)
{
	if (strcmp(place, "uffd lock: held") == 0 && LOAD(&hits) < 5) {
		has_lock = true;
		ASSERT_EQ(pthread_kill(pthread_self(), SIGUSR1), 0);
		has_lock = false;
	}
}

static void store_when_armed(const char *place)
{
	if (strcmp(place, "cbw start: armed") == 0) {
		*at(hooked, 50) = 0xee;
	}
}

ON_BOTH(a_handler_may_store_to_guest_memory_whatever_it_interrupts)
{
	struct rig *r = make_rig(backing);
	struct sigaction action = { .sa_handler = store_to_guest };
	struct gr_cbw_piece piece;

	ASSERT_EQ(sigaction(SIGUSR1, &action, NULL), 0);
	hooked = r;
	/* Before the start returns: there is somebody who serves. */
	__atomic_store_n(&hook, store_when_armed, __ATOMIC_RELEASE);
	start(r);
	ASSERT_EQ(LOAD(&r->asked), 1u);
	__atomic_store_n(&hook, interrupt_who_has_the_lock, __ATOMIC_RELEASE);
	ASSERT_EQ(gr_cbw_next(r->cbw, PAGE, &piece, NULL), 1);
	ASSERT_EQ(LOAD(&hits), 1u);
	show(r, &piece);
	gr_cbw_release(r->cbw, &piece);
	ASSERT_GE(LOAD(&hits), 2u);
	ASSERT_EQ(gr_ram_discard(r->block, 10 * PAGE, PAGE, NULL), 0);
	ASSERT_GE(LOAD(&hits), 3u);
	__atomic_store_n(&hook, NULL, __ATOMIC_RELEASE);
	walk(r, 1 << 20);
	expect_whole(r);
	free_rig(r);
}

ON_BOTH(blocks_that_come_grow_and_go_leave_the_copy_as_it_is)
{
	struct rig *r = make_rig(backing);
	struct gr_ram_block *goes =
		plug(r->ram, (struct gr_ram_block_desc){
				     .id = "goes", .used_bytes = 16 * PAGE, .backing = backing });
	struct gr_ram_block *comes;
	struct gr_cbw_stats stats;
	struct gr_cbw_piece piece;
	unsigned int pages = 0;
	int ret;

	memset(goes->host, 0x55, 16 * PAGE);
	start(r);
	gr_cbw_stats(r->cbw, &stats);
	ASSERT_EQ(stats.bytes, (uint64_t)(PAGES + 16) * PAGE);
	comes = plug(r->ram, (struct gr_ram_block_desc){
				     .id = "comes", .used_bytes = 16 * PAGE, .backing = backing });
	memset(comes->host, 1, 16 * PAGE);
	ASSERT_EQ(gr_ram_block_resize(r->block, 2 * PAGES * PAGE, NULL), 0);
	*at(r, PAGES + 1) = 1;
	ASSERT_EQ(gr_ram_block_del(goes, NULL), 0);
	ASSERT_EQ(LOAD(&r->asked), 0u);
	while ((ret = gr_cbw_next(r->cbw, PAGE, &piece, NULL)) > 0) {
		if (piece.block == goes) {
			uint8_t byte;

			gr_copy_from_guest(&byte, piece.host, 1);
			ASSERT_EQ(byte, 0x55);
			pages++;
		}
		show(r, &piece);
		gr_cbw_release(r->cbw, &piece);
	}
	ASSERT_EQ(ret, 0);
	ASSERT_EQ(pages, 16u);
	expect_whole(r);
	free_rig(r);
}

/* ---- who may, and where ---------------------------------------------------------------- */

ON_BOTH(without_a_thread_the_owner_serves)
{
	struct rig *r = make_rig(backing);
	struct store s = { .r = r, .page = 5 };
	struct pollfd p = { .events = POLLIN };
	struct gr_error err;
	pthread_t t;

	if (try_start(r, GR_WRITERS_STORES, true, &err) < 0) {
		FAIL("%s", err.msg);
	}
	p.fd = gr_cbw_fd(r->cbw);
	ASSERT_EQ(poll(&p, 1, 0), 0);
	ASSERT_EQ(gr_cbw_serve(r->cbw), 0u);
	t = spawn(store, &s);
	ASSERT_EQ(poll(&p, 1, 30000), 1);
	ASSERT_EQ(LOAD(&r->asked), 0u);
	ASSERT_EQ(gr_cbw_serve(r->cbw), 1u);
	ASSERT_EQ(LOAD(&r->asked), 1u);
	join_store(t, &s);
	walk(r, 1 << 20);
	expect_whole(r);
	free_rig(r);
}

TEST(only_blocks_that_take_part_in_migrations_are_covered)
{
	struct rig *r = make_rig(GR_RAM_MEMFD);
	struct gr_ram_block *apart =
		plug(r->ram, (struct gr_ram_block_desc){ .id = "apart",
							 .used_bytes = 16 * PAGE,
							 .flags = GR_RAM_NO_MIGRATE });

	start(r);
	*(volatile uint8_t *)apart->host = 1;
	ASSERT_EQ(LOAD(&r->asked), 0u);
	walk(r, 1 << 20);
	expect_whole(r);
	free_rig(r);
}

TEST(huge_pages_are_shown_whole)
{
	struct rig *r = make_rig(GR_RAM_MEMFD);
	struct gr_ram_block *huge = plug_huge(r->ram);
	uint8_t byte;

	memset(huge->host, 0x55, 2 * HUGE_BYTES);
	start(r);
	((volatile uint8_t *)huge->host)[HUGE_BYTES + 5] = 1;
	wait_until_asked(r, 1);
	ASSERT(r->last.block == huge);
	ASSERT_EQ(r->last.offset, HUGE_BYTES);
	ASSERT_EQ(r->last.bytes, HUGE_BYTES);
	((volatile uint8_t *)huge->host)[2 * HUGE_BYTES - 1] = 1;
	ASSERT_EQ(LOAD(&r->asked), 1u);
	gr_copy_from_guest(&byte, huge->host, 1);
	ASSERT_EQ(byte, 0x55);
	walk(r, HUGE_BYTES);
	expect_whole(r);
	free_rig(r);
}

TEST(a_machine_without_memory_is_saved_at_once)
{
	struct rig *r = calloc(1, sizeof(*r));
	struct gr_cbw_piece piece;

	ASSERT(r);
	ASSERT_EQ(gr_ram_create(NULL, &r->ram, NULL), 0);
	start(r);
	ASSERT_EQ(gr_cbw_next(r->cbw, PAGE, &piece, NULL), 0);
	ASSERT_EQ(gr_cbw_end(r->cbw, NULL), 0);
	free_rig(r);
}

ON_BOTH(memory_that_is_tracked_by_userfaultfd_is_refused)
{
	struct rig *r = make_rig(backing);
	struct gr_track *track;
	struct gr_error err;

	ASSERT_EQ(gr_track_create(r->ram, &track, NULL), 0);
	if (gr_track_use(track, GR_TRACKER_UFFD_SYNC, NULL, &err) < 0) {
		SKIP("%s", err.msg);
	}
	ASSERT_EQ(gr_track_start(track, GR_WRITERS_STORES, NULL), 0);
	ASSERT_EQ(try_start(r, GR_WRITERS_STORES, false, &err), -EBUSY);
	ASSERT_HAS(err.msg, "another userfaultfd has this memory");
	gr_track_stop(track);
	start(r);
	walk(r, 1 << 20);
	expect_whole(r);
	gr_track_free(track);
	free_rig(r);
}

ON_BOTH(writers_that_cannot_be_stopped_are_refused)
{
	struct rig *r = make_rig(backing);
	struct gr_error err;

	ASSERT_EQ(try_start(r, GR_WRITERS_OUTSIDE | GR_WRITERS_STORES, false, &err), -EINVAL);
	ASSERT_HAS(err.msg, "another mapping");
	ASSERT_EQ(try_start(r, GR_WRITERS_REPORTING, false, &err), -EINVAL);
	ASSERT_HAS(err.msg, "another process");
	ASSERT_EQ(try_start(r, 1u << 20, false, &err), -EINVAL);
	ASSERT_HAS(err.msg, "unknown writers");
	if (geteuid() == 0) {
		ASSERT_EQ(setgid(65534) | setuid(65534), 0);
		ASSERT_EQ(prctl(PR_SET_DUMPABLE, 1), 0);
	}
	if (try_start(r, GR_WRITERS_KVM_VCPUS, false, &err) == 0) {
		SKIP("userfaultfd may be used by everybody here");
	}
	ASSERT_HAS(err.msg, "EFAULT");
	ASSERT_EQ(try_start(r, GR_WRITERS_MAPPING, false, &err), -EINVAL);
	ASSERT_EQ(try_start(r, GR_WRITERS_MARKED, false, &err), -EINVAL);
	start(r);
	*at(r, 3) = 0xee;
	ASSERT_EQ(LOAD(&r->asked), 1u);
	walk(r, 1 << 20);
	expect_whole(r);
	free_rig(r);
}

/* What is stored through it would change the other without a fault. */
TEST(a_second_mapping_is_refused_from_the_start_to_the_end)
{
	struct rig *r = make_rig(GR_RAM_MEMFD);
	struct gr_ram_block_desc desc = { .size = sizeof(desc),
					  .id = "again",
					  .used_bytes = 8 * PAGE,
					  .backing = GR_RAM_FD,
					  .flags = GR_RAM_NO_MIGRATE,
					  .fd_offset = 4 * PAGE,
					  .fd = r->block->fd };
	int fd = dup(r->block->fd);
	struct gr_ram_block *again;
	struct gr_error err;

	for (unsigned int i = 0; i < 2; i++) {
		ASSERT_EQ(gr_ram_block_add(r->ram, &desc, &again, NULL), 0);
		ASSERT_EQ(try_start(r, GR_WRITERS_STORES, false, &err), -EINVAL);
		ASSERT_HAS(err.msg, "no copy before write: block 'again'");
		ASSERT_HAS(err.msg, "beside 'ram'");
		ASSERT_EQ(gr_ram_block_del(again, NULL), 0);
		desc.backing = GR_RAM_ON_DEMAND; /* its windows would be such mappings */
	}
	start(r);
	for (unsigned int i = 0; i < 2; i++) {
		desc.backing = i == 0 ? GR_RAM_FD : GR_RAM_ON_DEMAND;
		ASSERT_EQ(gr_ram_block_add(r->ram, &desc, &again, &err), -EINVAL);
		ASSERT_HAS(err.msg, "a copy before write goes on: block 'again'");
	}
	/* The copy goes on with a block that was removed. */
	ASSERT_EQ(gr_ram_block_del(r->block, NULL), 0);
	desc.fd = fd;
	ASSERT_EQ(gr_ram_block_add(r->ram, &desc, &again, &err), -EBUSY);
	ASSERT_HAS(err.msg, "a block that was removed");
	walk(r, 1 << 20);
	expect_whole(r);
	ASSERT_EQ(gr_ram_block_add(r->ram, &desc, &again, NULL), 0);
	close(fd);
	free_rig(r);
}

TEST(memory_tables_are_refused_from_the_start_to_the_end)
{
	struct rig *r = make_rig(GR_RAM_MEMFD);
	struct gr_ram_table_entry entry[4];
	struct gr_error err;
	unsigned int n;

	ASSERT_EQ(gr_ram_table_get(r->ram, entry, 4, &n, NULL), 0);
	ASSERT_EQ(try_start(r, GR_WRITERS_STORES, false, &err), -EINVAL);
	ASSERT_HAS(err.msg, "no copy before write: ");
	ASSERT_HAS(err.msg, "table");
	gr_ram_table_put(entry, n);
	start(r);
	ASSERT_EQ(gr_ram_table_get(r->ram, entry, 4, &n, NULL), -EBUSY);
	walk(r, 1 << 20);
	expect_whole(r);
	ASSERT_EQ(gr_ram_table_get(r->ram, entry, 4, &n, NULL), 0);
	gr_ram_table_put(entry, n);
	free_rig(r);
}

ON_BOTH(a_child_is_not_stopped_and_stops_nobody)
{
	struct rig *r = make_rig(backing);
	pid_t child;
	int status;

	SKIP_FORK_AMONG_THREADS_UNDER_SANITIZERS();
	start(r);
	child = fork();
	ASSERT_GE(child, 0);
	if (child == 0) {
		struct gr_cbw_piece piece;

		if (backing == GR_RAM_ANONYMOUS) {
			*at(r, 1) = 1; /* its own copy */
		}
		if (gr_cbw_next(r->cbw, PAGE, &piece, NULL) != -ECANCELED ||
		    gr_cbw_end(r->cbw, NULL) != -ECANCELED) {
			_exit(1);
		}
		_exit(0);
	}
	ASSERT_EQ(waitpid(child, &status, 0), child);
	ASSERT_EQ(status, 0);
	*at(r, 3) = 0xee;
	ASSERT_EQ(LOAD(&r->asked), 1u);
	walk(r, 1 << 20);
	expect_whole(r);
	free_rig(r);
}

TEST_MAIN()
