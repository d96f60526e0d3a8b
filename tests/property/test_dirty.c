/* SPDX-License-Identifier: MIT */
/*
 * Random operations on dirty memory against a model that is too simple to be wrong: for each
 * consumer one bool per page for "will be in its next epoch" and one for "is in its open
 * epoch". Pages are those of some windows, which lie across the borders of words, lines, groups
 * and chunks, where mistakes live.
 */
#include "bitmap/dirty.h"
#include "harness.h"
#include <errno.h>
#include <guestram/dirty.h>
#include <stdlib.h>

#define CHUNK ((uint64_t)GR_BITS_CHUNK_PAGES)

enum {
	WINDOW = 320,
	WINDOWS = 9,
	PAGES = WINDOW * WINDOWS,
	LINE = GR_BITS_LINE_PAGES,
	GROUP = GR_BITS_GROUP_PAGES,
};

/* All are multiples of 64, for gr_dirty_or_le(). */
static const uint64_t window_at[WINDOWS] = {
	0,
	5 * LINE - 128, /* across lines */
	GROUP - 192,	/* across groups */
	CHUNK / 2,
	CHUNK - 128, /* across chunks */
	CHUNK + GROUP * 3 - 64,
	2 * CHUNK - 256,
	3 * CHUNK - 64,
	4 * CHUNK - WINDOW, /* the very end */
};

struct model {
	struct gr_dirty_consumer *c;
	bool open;
	bool next[PAGES];	     /* marked, and not in an epoch since */
	bool set[PAGES];	     /* in the open epoch */
	struct gr_dirty_epoch *kept; /* one that was set aside, or NULL */
	bool kept_set[PAGES];
};

static struct gr_dirty *dirty;
static struct model models[GR_DIRTY_CONSUMERS_MAX];
static uint64_t rng;

static uint64_t page_of(unsigned int i)
{
	return window_at[i / WINDOW] + i % WINDOW;
}

static unsigned int roll(unsigned int n)
{
	return (unsigned int)(test_rand(&rng) % n);
}

/* A range inside one window that is covered; false if it is not. */
static bool some_range(unsigned int *ret_first, unsigned int *ret_n)
{
	unsigned int first = roll(PAGES), room = WINDOW - first % WINDOW;
	unsigned int n = roll(3) ? roll(GR_MIN(room, 70u) + 1) : roll(room + 1);

	*ret_first = first;
	*ret_n = n;
	return window_at[first / WINDOW] + WINDOW <= gr_dirty_pages(dirty);
}

static void model_mark(unsigned int first, unsigned int n)
{
	for (unsigned int k = 0; k < GR_DIRTY_CONSUMERS_MAX; k++) {
		for (unsigned int i = first; models[k].c && i < first + n; i++) {
			models[k].next[i] = true;
		}
	}
}

static void mark_some(void)
{
	unsigned int first, n;

	if (!some_range(&first, &n)) {
		return;
	}
	gr_rcu_read_lock();
	if (roll(2)) {
		gr_dirty_mark_range(dirty, page_of(first), n);
	} else {
		for (unsigned int i = first; i < first + n; i++) {
			gr_dirty_mark(dirty, page_of(i));
		}
	}
	gr_rcu_read_unlock();
	model_mark(first, n);
}

static void or_some(void)
{
	unsigned char words[1 + WINDOW / 8];
	unsigned int first, n, count = 0, shift = roll(2);

	if (!some_range(&first, &n)) {
		return;
	}
	first -= first % WINDOW % 64;
	n = GR_MIN(n, WINDOW - first % WINDOW);
	for (size_t i = 0; i < sizeof(words); i++) {
		words[i] = roll(2) ? (unsigned char)roll(256) : 0;
	}
	for (unsigned int i = 0; i < n; i++) {
		if (words[shift + i / 8] >> (i % 8) & 1) {
			model_mark(first + i, 1);
			count++;
		}
	}
	gr_rcu_read_lock();
	ASSERT_EQ(gr_dirty_or_le(dirty, page_of(first), words + shift, n), count);
	gr_rcu_read_unlock();
}

static uint64_t count(const bool *set)
{
	uint64_t n = 0;

	for (unsigned int i = 0; i < PAGES; i++) {
		n += set[i];
	}
	return n;
}

static void check_epoch(struct model *m)
{
	bool seen[PAGES] = { false };
	uint64_t at = 0, first, pages, before = 0;

	ASSERT_EQ(gr_dirty_epoch_pages(m->c), count(m->set));
	while (gr_dirty_epoch_next(m->c, at, &first, &pages)) {
		ASSERT_GT(pages, (uint64_t)0);
		/* As long as it goes: two runs never touch. */
		ASSERT(first > before || before == 0);
		for (unsigned int i = 0; i < PAGES; i++) {
			seen[i] = seen[i] || page_of(i) - first < pages;
		}
		at = before = first + pages;
	}
	ASSERT_MEM_EQ(seen, m->set, sizeof(seen));
}

static void begin(struct model *m)
{
	uint64_t pages = 77;

	if (m->open) {
		ASSERT_EQ(gr_dirty_epoch_begin(m->c, &pages, NULL), -EBUSY);
		ASSERT_EQ(pages, (uint64_t)77);
		return;
	}
	ASSERT_EQ(gr_dirty_epoch_begin(m->c, &pages, NULL), 0);
	memcpy(m->set, m->next, sizeof(m->set));
	memset(m->next, 0, sizeof(m->next));
	m->open = true;
	ASSERT_EQ(pages, count(m->set));
	check_epoch(m);
}

static void end_epoch(struct model *m, bool abort)
{
	int want = m->open ? 0 : -EINVAL;

	if (abort) {
		ASSERT_EQ(gr_dirty_epoch_abort(m->c), want);
		for (unsigned int i = 0; i < PAGES; i++) {
			m->next[i] = m->next[i] || m->set[i];
		}
	} else {
		ASSERT_EQ(gr_dirty_epoch_commit(m->c), want);
	}
	memset(m->set, 0, sizeof(m->set));
	m->open = false;
	ASSERT_EQ(gr_dirty_epoch_pages(m->c), (uint64_t)0);
	ASSERT_LE(gr_dirty_pending_pages(m->c), count(m->next));
}

static void keep_or_end(struct model *m, bool abort)
{
	if (!m->kept) {
		if (!m->open) {
			ASSERT_EQ(gr_dirty_epoch_keep(m->c, &m->kept, NULL), -EINVAL);
			return;
		}
		ASSERT_EQ(gr_dirty_epoch_keep(m->c, &m->kept, NULL), 0);
		memcpy(m->kept_set, m->set, sizeof(m->set));
		memset(m->set, 0, sizeof(m->set));
		m->open = false;
		ASSERT_EQ(gr_dirty_kept_pages(m->kept), count(m->kept_set));
		return;
	}
	if (abort) {
		gr_dirty_kept_abort(m->kept);
		for (unsigned int i = 0; i < PAGES; i++) {
			m->next[i] = m->next[i] || m->kept_set[i];
		}
	} else {
		gr_dirty_kept_commit(m->kept);
	}
	m->kept = NULL;
}

static void defer(struct model *m)
{
	uint64_t left = 0, page = 0;
	unsigned int at = roll(PAGES);
	bool waits;

	for (unsigned int i = 0; i < PAGES; i++) {
		left += m->set[i] && m->next[i];
		m->set[i] = m->set[i] && !m->next[i];
	}
	ASSERT_EQ(gr_dirty_epoch_defer(m->c), left);
	waits = gr_dirty_epoch_next_waiting(m->c, page_of(at), &page);
	while (at < PAGES && !m->next[at]) {
		at++;
	}
	ASSERT_EQ(waits, at < PAGES);
	ASSERT(!waits || page == page_of(at));
	check_epoch(m);
}

static void change_epoch(struct model *m)
{
	unsigned int first, n;
	bool add = roll(2);

	if (!m->open || !some_range(&first, &n)) {
		return;
	}
	if (add) {
		gr_dirty_epoch_add(m->c, page_of(first), n);
	} else {
		gr_dirty_epoch_done(m->c, page_of(first), n);
	}
	memset(m->set + first, add, n);
	check_epoch(m);
}

static void add_or_del(struct model *m)
{
	enum gr_dirty_start start = roll(4) ? GR_DIRTY_START_CLEAN : GR_DIRTY_START_FULL;
	uint64_t pages = gr_dirty_pages(dirty);

	if (m->c) {
		gr_dirty_consumer_del(m->c);
		memset(m, 0, sizeof(*m));
		return;
	}
	ASSERT_EQ(gr_dirty_consumer_add(dirty, "model", start, &m->c, NULL), 0);
	if (start == GR_DIRTY_START_CLEAN) {
		return;
	}
	/* The first epoch is everything; leave the windows of it. */
	ASSERT_EQ(gr_dirty_epoch_begin(m->c, NULL, NULL), 0);
	ASSERT_EQ(gr_dirty_epoch_pages(m->c), pages);
	m->open = true;
	for (unsigned int w = 0; w < WINDOWS; w++) {
		uint64_t from = w ? window_at[w - 1] + WINDOW : 0;

		gr_dirty_epoch_done(m->c, from, window_at[w] - from);
	}
	for (unsigned int i = 0; i < PAGES; i++) {
		m->set[i] = page_of(i) < pages;
	}
	check_epoch(m);
}

static void step(void)
{
	struct model *m = &models[roll(GR_DIRTY_CONSUMERS_MAX)];
	unsigned int what = roll(100);

	if (what < 40) {
		mark_some();
	} else if (what < 55) {
		or_some();
	} else if (what == 55) {
		ASSERT_EQ(gr_dirty_grow(dirty, (1 + roll(4)) * CHUNK, NULL), 0);
	} else if (what < 58 || !m->c) {
		add_or_del(m);
	} else if (what < 70) {
		begin(m);
	} else if (what < 75) {
		keep_or_end(m, roll(2));
	} else if (what < 80) {
		defer(m);
	} else if (what < 90) {
		change_epoch(m);
	} else {
		end_epoch(m, what >= 95);
	}
}

TEST(random_operations_agree_with_a_model)
{
	unsigned int steps = test_under_tsan() || test_under_asan() ? 4000 : 20000;

	rng = test_seed();
	ASSERT_EQ(gr_dirty_create(1, &dirty, NULL), 0);
	for (unsigned int i = 0; i < steps; i++) {
		step();
	}
	for (unsigned int k = 0; k < GR_DIRTY_CONSUMERS_MAX; k++) {
		if (models[k].c) {
			end_epoch(&models[k], true);
			begin(&models[k]);
			gr_dirty_consumer_del(models[k].c);
		}
	}
	gr_dirty_free(dirty);
}

/* ---- private sets, where ranges are wide ---------------------------------------------- */

enum { WIDE = 5 * GR_BITS_GROUP_PAGES };

/* Across a chunk's border. */
static const uint64_t wide_at = CHUNK - 2 * GR_BITS_GROUP_PAGES;

static void check_wide(const struct gr_bits *bits, const bool *model)
{
	static bool seen[WIDE];
	uint64_t first, pages, n = 0;

	memset(seen, 0, sizeof(seen));
	for (uint64_t at = 0; gr_bits_next_run(bits, at, &first, &pages); at = first + pages) {
		ASSERT_LE(wide_at, first);
		ASSERT_LE(first + pages, wide_at + WIDE);
		memset(seen + (first - wide_at), true, (size_t)pages);
		n += pages;
	}
	ASSERT_EQ(n, bits->pages);
	ASSERT_MEM_EQ(seen, model, sizeof(seen));
}

TEST(sets_of_wide_ranges_agree_with_a_model)
{
	unsigned int steps = test_under_tsan() || test_under_asan() ? 120 : 3000;
	static bool model[2][WIDE];
	struct gr_bits bits[2];

	rng = test_seed();
	for (int i = 0; i < 2; i++) {
		ASSERT_EQ(gr_bits_init(&bits[i]), 0);
		ASSERT_EQ(gr_bits_grow(&bits[i], 3), 0);
	}
	for (unsigned int i = 0; i < steps; i++) {
		unsigned int k = roll(2), what = roll(100), first = roll(WIDE);
		unsigned int n = roll(WIDE - first) + 1;
		uint64_t before = bits[k].pages, changed;

		if (roll(2)) { /* whole groups or lines, exactly or nearly */
			unsigned int unit = roll(2) ? GROUP : LINE;

			first -= first % unit;
			n = GR_MIN((roll(5) + 1) * unit, WIDE - first) - roll(2);
		}
		if (what < 45) {
			changed = gr_bits_set_range(&bits[k], wide_at + first, n);
			ASSERT_EQ(bits[k].pages, before + changed);
			memset(model[k] + first, true, n);
		} else if (what < 90) {
			changed = gr_bits_clear_range(&bits[k], wide_at + first, n);
			ASSERT_EQ(bits[k].pages, before - changed);
			memset(model[k] + first, false, n);
		} else if (what < 96) {
			gr_bits_or(&bits[k], &bits[1 - k]);
			for (unsigned int p = 0; p < WIDE; p++) {
				model[k][p] = model[k][p] || model[1 - k][p];
			}
		} else if (what == 96) {
			gr_bits_clear(&bits[k]);
			memset(model[k], false, sizeof(model[k]));
		} else {
			changed = 0;
			for (unsigned int p = first; p < first + n; p++) {
				changed += model[k][p];
			}
			ASSERT_EQ(gr_bits_count(&bits[k], wide_at + first, n), changed);
		}
		check_wide(&bits[k], model[k]);
	}
	gr_bits_destroy(&bits[0]);
	gr_bits_destroy(&bits[1]);
}

/* Groups with any number of lines, which come, go and come back in any order. */
TEST(sets_of_scattered_pages_agree_with_a_model)
{
	unsigned int steps = test_under_tsan() || test_under_asan() ? 6000 : 200000;
	static bool model[WIDE];
	struct gr_bits bits;
	uint64_t pages = 0;

	rng = test_seed();
	ASSERT_EQ(gr_bits_init(&bits), 0);
	ASSERT_EQ(gr_bits_grow(&bits, 2), 0);
	for (unsigned int i = 0; i < steps; i++) {
		/* It fills, it empties, it fills again. */
		bool set = roll(8) < (i / (steps / 6) % 2 ? 1 : 7);
		unsigned int first = roll(4) ? roll(WIDE) : roll(WIDE / LINE) * LINE, n = 1;
		uint64_t changed = 0;

		if (!set && roll(2)) {
			n = GR_MIN(roll(3 * LINE) + 1, WIDE - first);
		}
		for (unsigned int p = first; p < first + n; p++) {
			changed += model[p] != set;
			model[p] = set;
		}
		if (set) {
			ASSERT_EQ(gr_bits_set_range(&bits, wide_at + first, n), changed);
			pages += changed;
		} else {
			ASSERT_EQ(gr_bits_clear_range(&bits, wide_at + first, n), changed);
			pages -= changed;
		}
		ASSERT_EQ(bits.pages, pages);
		if (i % 1000 == 0) {
			check_wide(&bits, model);
		}
	}
	check_wide(&bits, model);
	ASSERT_EQ(gr_bits_clear_range(&bits, 0, 2 * CHUNK), pages);
	ASSERT_EQ(bits.lines, 0u); /* an empty set begins anew */
	gr_bits_destroy(&bits);
}

TEST(lines_that_come_and_go_take_the_places_of_each_other)
{
	struct gr_bits bits;

	ASSERT_EQ(gr_bits_init(&bits), 0);
	ASSERT_EQ(gr_bits_grow(&bits, 1), 0);
	(void)gr_bits_set_range(&bits, CHUNK - 1, 1); /* so that it is never empty */
	for (unsigned int i = 0; i < 1000; i++) {
		(void)gr_bits_set_range(&bits, i, 1);
		(void)gr_bits_clear_range(&bits, i, 1);
	}
	ASSERT_EQ(bits.pages, (uint64_t)1);
	ASSERT_LE(bits.lines, (uint32_t)GR_BITS_GROUP_LINES);
	gr_bits_destroy(&bits);
}

TEST_MAIN()
