/* SPDX-License-Identifier: MIT */
/*
 * Copy before write, page by page: each page is shown once, with the content of the start, before
 * it changes in whatever way; and nobody is left asleep. On both kinds of memory.
 */
#include "cbw_rig.h"
#include "track/stalls.h"

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

TEST_MAIN()
