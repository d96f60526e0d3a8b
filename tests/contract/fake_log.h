/* SPDX-License-Identifier: MIT */
/*
 * A tracker with the semantics of KVM's dirty log, for machines without KVM and for stores
 * at the exact moment that hurts. One block is tracked, the one whose id is "guest".
 *
 *   store   a protected page traps: its bit is set and it becomes writable; a writable one
 *           leaves no trace
 *   GET     copies the bits; with manual protect it changes nothing, without it clears them
 *           and protects
 *   CLEAR   for each bit of the mask: clears it and protects; no stale translation is left
 *           when it returns
 */
#ifndef FAKE_LOG_H
#define FAKE_LOG_H

#include "base/compiler.h"
#include "oracle.h"
#include "track/debt.h"
#include "track/report.h"
#include "track/tracker.h"
#include <endian.h>

enum { FAKE_WORDS_MAX = 64 };

struct fake_log {
	struct gr_tracker base;
	bool manual_protect;
	bool initially_set; /* all pages are dirty and writable at the start, with manual protect */
	/* Called at these moments, if set, with none of the fake's locks held. */
	void (*after_get)(struct fake_log *f);
	void (*before_clear)(struct fake_log *f);
	void *opaque;
	unsigned int clears;

	struct gr_ram_block *block;
	uint64_t pages;
	struct gr_debt debt;
	pthread_mutex_t kernel; /* protects what is below */
	uint64_t protected_words[FAKE_WORDS_MAX];
	uint64_t dirty_words[FAKE_WORDS_MAX];
};

static inline struct fake_log *fake_log_of(struct gr_tracker *t)
{
	return gr_container_of(t, struct fake_log, base);
}

/* The guest stores a word into a page. */
static inline void fake_store(struct fake_log *f, uint64_t page, uint64_t value)
{
	uint64_t bit = 1ull << (page % 64);

	pthread_mutex_lock(&f->kernel);
	if (f->protected_words[page / 64] & bit) {
		f->protected_words[page / 64] &= ~bit;
		f->dirty_words[page / 64] |= bit;
	}
	gr_copy_to_guest(f->block->host + page * ORACLE_PAGE, &value, sizeof(value));
	pthread_mutex_unlock(&f->kernel);
}

static inline void fake_destroy(struct gr_tracker *t)
{
	free(fake_log_of(t));
}

static inline int fake_block_add(struct gr_tracker *t, struct gr_ram_block *block,
				 struct gr_error *err)
{
	struct fake_log *f = fake_log_of(t);

	if (strcmp(block->id, "guest") != 0) {
		return 0;
	}
	f->block = block;
	f->pages = block->max_bytes / ORACLE_PAGE;
	ASSERT_LE(f->pages, (uint64_t)FAKE_WORDS_MAX * 64);
	memset(f->protected_words, f->initially_set ? 0 : 0xff, sizeof(f->protected_words));
	memset(f->dirty_words, f->initially_set ? 0xff : 0, sizeof(f->dirty_words));
	return gr_debt_init(&f->debt, f->pages, err);
}

static inline void fake_block_del(struct gr_tracker *t, struct gr_ram_block *block)
{
	struct fake_log *f = fake_log_of(t);

	if (block == f->block) {
		gr_debt_destroy(&f->debt);
		f->block = NULL;
	}
}

static inline int fake_sync(struct gr_tracker *t, struct gr_error *err)
{
	struct fake_log *f = fake_log_of(t);
	uint64_t words_le[FAKE_WORDS_MAX];

	(void)err;
	pthread_mutex_lock(&f->kernel);
	for (unsigned int w = 0; w < FAKE_WORDS_MAX; w++) {
		words_le[w] = htole64(f->dirty_words[w]);
		if (!f->manual_protect) {
			f->protected_words[w] |= f->dirty_words[w];
			f->dirty_words[w] = 0;
		}
	}
	pthread_mutex_unlock(&f->kernel);
	if (f->after_get) {
		f->after_get(f);
	}
	if (f->manual_protect) {
		gr_debt_fetched(&f->debt, 0, f->block, 0, words_le, f->pages, ORACLE_PAGE);
	} else {
		gr_report_le(f->block, 0, words_le, f->pages, ORACLE_PAGE);
	}
	return 0;
}

static inline bool fake_repeats(struct gr_tracker *t)
{
	return fake_log_of(t)->manual_protect;
}

static inline int fake_clear(void *opaque, uint64_t page, uint64_t pages, const uint64_t *mask_le,
			     struct gr_error *err)
{
	struct fake_log *f = opaque;

	(void)err;
	if (f->before_clear) {
		f->before_clear(f);
	}
	pthread_mutex_lock(&f->kernel);
	for (uint64_t w = 0; w < (pages + 63) / 64; w++) {
		uint64_t mask = le64toh(mask_le[w]);

		f->dirty_words[page / 64 + w] &= ~mask;
		f->protected_words[page / 64 + w] |= mask;
	}
	f->clears++;
	pthread_mutex_unlock(&f->kernel);
	return 0;
}

static inline bool fake_rearm_due(struct gr_tracker *t, struct gr_ram_block *block, uint64_t offset,
				  uint64_t bytes)
{
	struct fake_log *f = fake_log_of(t);

	return block == f->block &&
	       gr_debt_due(&f->debt, offset / ORACLE_PAGE, bytes / ORACLE_PAGE);
}

static inline int fake_rearm(struct gr_tracker *t, struct gr_ram_block *block, uint64_t offset,
			     uint64_t bytes, struct gr_error *err)
{
	struct fake_log *f = fake_log_of(t);

	ASSERT_PTR_EQ(block, f->block);
	return gr_debt_rearm(&f->debt, offset / ORACLE_PAGE, bytes / ORACLE_PAGE, fake_clear, f,
			     err);
}

static inline struct fake_log *fake_log_use_set(struct gr_track *track, bool manual_protect,
						bool initially_set)
{
	static const struct gr_tracker_ops ops = {
		.name = "fake-log",
		.covers = GR_WRITERS_KVM_VCPUS,
		.destroy = fake_destroy,
		.block_add = fake_block_add,
		.block_del = fake_block_del,
		.sync = fake_sync,
		.repeats = fake_repeats,
		.rearm_due = fake_rearm_due,
		.rearm = fake_rearm,
	};
	struct fake_log *f = calloc(1, sizeof(*f));

	ASSERT(f);
	f->base.ops = &ops;
	f->manual_protect = manual_protect;
	f->initially_set = initially_set;
	ASSERT_EQ(pthread_mutex_init(&f->kernel, NULL), 0);
	ASSERT_EQ(gr_track_use_tracker(track, &f->base, NULL), 0);
	return f;
}

static inline struct fake_log *fake_log_use(struct gr_track *track, bool manual_protect)
{
	return fake_log_use_set(track, manual_protect, false);
}

#endif
