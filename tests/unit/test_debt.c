/* SPDX-License-Identifier: MIT */
#include "harness.h"
#include "track/debt.h"
#include <endian.h>
#include <errno.h>
#include <stdlib.h>

enum { PAGES_MAX = 200000 };

/* What clear() was asked for, as one bool per page. */
struct asked {
	struct gr_debt *debt;
	bool pages[PAGES_MAX];
	unsigned int calls;
	int fail_at; /* which call fails, -1: none */
};

static int note_clear(void *opaque, uint64_t page, uint64_t pages, const uint64_t *mask_le,
		      struct gr_error *err)
{
	struct asked *a = opaque;

	/* What KVM_CLEAR_DIRTY_LOG wants. */
	ASSERT_EQ(page % 64, 0u);
	ASSERT(pages % 64 == 0 || page + pages == a->debt->pages);
	ASSERT_GT(pages, 0u);
	if ((int)a->calls++ == a->fail_at) {
		return gr_error_set(err, -EIO, "clear failed");
	}
	for (uint64_t i = 0; i < pages; i++) {
		if (le64toh(mask_le[i / 64]) >> (i % 64) & 1) {
			ASSERT(!a->pages[page + i]);
			/* The debt may go only after this call. */
			ASSERT(gr_debt_due(a->debt, page + i, 1));
			a->pages[page + i] = true;
		}
	}
	return 0;
}

static void record_page(struct gr_debt *d, uint64_t page)
{
	uint64_t word = htole64(1ull << (page % 64));
	uint64_t first = page / 64 * 64;

	gr_debt_record(d, first, &word, d->pages - first < 64 ? d->pages - first : 64);
}

TEST(a_page_has_debt_from_the_fetch_to_the_rearm)
{
	static struct asked a = { .fail_at = -1 };
	struct gr_debt d;

	ASSERT_EQ(gr_debt_init(&d, 1000, NULL), 0);
	a.debt = &d;
	ASSERT(!gr_debt_due(&d, 0, 1000));
	record_page(&d, 70);
	record_page(&d, 999);
	ASSERT(gr_debt_due(&d, 70, 1) && gr_debt_due(&d, 0, 1000) && gr_debt_due(&d, 999, 1));
	ASSERT(!gr_debt_due(&d, 71, 928) && !gr_debt_due(&d, 0, 70) && !gr_debt_due(&d, 70, 0));
	ASSERT_EQ(gr_debt_rearm(&d, 64, 64, note_clear, &a, NULL), 0);
	ASSERT_EQ(a.calls, 1u);
	ASSERT(a.pages[70] && !a.pages[999]);
	ASSERT(!gr_debt_due(&d, 0, 999));
	/* Once: a second consumer asks the kernel for nothing. */
	ASSERT_EQ(gr_debt_rearm(&d, 64, 64, note_clear, &a, NULL), 0);
	ASSERT_EQ(a.calls, 1u);
	ASSERT_EQ(gr_debt_rearm(&d, 990, 10, note_clear, &a, NULL), 0);
	ASSERT(a.pages[999] && !gr_debt_due(&d, 0, 1000));
	gr_debt_destroy(&d);
}

TEST(a_run_clears_no_page_outside_it)
{
	static struct asked a = { .fail_at = -1 };
	uint64_t ones[2] = { ~0ull, ~0ull };
	struct gr_debt d;

	ASSERT_EQ(gr_debt_init(&d, 128, NULL), 0);
	a.debt = &d;
	gr_debt_record(&d, 0, ones, 128);
	ASSERT_EQ(gr_debt_rearm(&d, 60, 8, note_clear, &a, NULL), 0);
	for (unsigned int i = 0; i < 128; i++) {
		ASSERT_EQ(a.pages[i], i >= 60 && i < 68);
		ASSERT_EQ(gr_debt_due(&d, i, 1), !(i >= 60 && i < 68));
	}
	gr_debt_destroy(&d);
}

TEST(a_clear_that_fails_keeps_the_debt)
{
	static struct asked a = { .fail_at = 1 };
	struct gr_debt d;
	struct gr_error err;

	ASSERT_EQ(gr_debt_init(&d, PAGES_MAX, NULL), 0);
	a.debt = &d;
	record_page(&d, 5);
	record_page(&d, 150000); /* far enough for another piece */
	ASSERT_EQ(gr_debt_rearm(&d, 0, PAGES_MAX, note_clear, &a, &err), -EIO);
	ASSERT_STR_EQ(err.msg, "clear failed");
	ASSERT(!gr_debt_due(&d, 5, 1) && gr_debt_due(&d, 150000, 1));
	gr_debt_destroy(&d);
}

TEST(bits_behind_the_end_of_a_fetch_do_not_count)
{
	uint64_t ones = ~0ull;
	struct gr_debt d;

	ASSERT_EQ(gr_debt_init(&d, 70, NULL), 0);
	gr_debt_record(&d, 64, &ones, 3);
	ASSERT(gr_debt_due(&d, 66, 1) && !gr_debt_due(&d, 67, 3) && !gr_debt_due(&d, 0, 64));
	gr_debt_reset(&d);
	ASSERT(!gr_debt_due(&d, 0, 70));
	gr_debt_destroy(&d);
}

TEST(random_fetches_and_rearms_agree_with_an_array_of_bools)
{
	static struct asked a;
	static bool owed[PAGES_MAX];
	uint64_t rnd = test_seed();
	struct gr_debt d;

	for (int round = 0; round < 300; round++) {
		uint64_t pages = 1 + test_rand(&rnd) % (round % 10 ? 300 : PAGES_MAX);

		memset(owed, 0, sizeof(owed));
		ASSERT_EQ(gr_debt_init(&d, pages, NULL), 0);
		for (int op = 0; op < 10; op++) {
			uint64_t at = test_rand(&rnd) % pages,
				 n = test_rand(&rnd) % (pages - at + 1);

			for (int i = 0; i < 20; i++) {
				uint64_t page = test_rand(&rnd) % pages;

				record_page(&d, page);
				owed[page] = true;
			}
			memset(&a, 0, sizeof(a));
			a.debt = &d;
			a.fail_at = -1;
			ASSERT_EQ(gr_debt_rearm(&d, at, n, note_clear, &a, NULL), 0);
			for (uint64_t i = 0; i < pages; i++) {
				bool in = i >= at && i < at + n;

				ASSERT_EQ(a.pages[i], owed[i] && in);
				owed[i] = owed[i] && !in;
				ASSERT_EQ(gr_debt_due(&d, i, 1), owed[i]);
			}
		}
		gr_debt_destroy(&d);
	}
}

TEST_MAIN()
