/* SPDX-License-Identifier: MIT */
/*
 * The debt of a tracker whose fetch does not protect (KVM's log with manual protect, rings):
 * which pages were fetched from the kernel and not re-armed since.
 *
 *   gr_debt_fetched()   in sync:  record the debt, then mark       (report.h)
 *   gr_debt_due()       no lock:  may these pages be read as they are?
 *   gr_debt_rearm()     in rearm: clear() for debt & run; then drop the debt
 *
 * Why this set and not the epoch's own pages: consumer A fetched, re-armed and read P; the
 * guest stored to P again, the kernel has the bit and nobody else; B, to whom P is still
 * pending, would wipe that bit by clearing P once more, and A never learns. A page without
 * debt was re-armed by somebody since it was fetched, or never fetched: its next store will
 * be in the next fetch.
 *
 * Why this order: recorded after the mark, a consumer harvests the mark in between, finds no
 * debt and reads a page that is still writable without trace. Dropped before clear()
 * returned, another consumer finds no debt and reads; the guest stores through the mapping
 * that is still writable; and the clear() wipes the bit.
 *
 * One set covers one piece of memory (a KVM slot, a block) in pages counted from its start.
 * record and rearm are serialised by the caller (the driver's report lock does it); due may
 * run against both.
 *
 * Model: models/dirty_rearm.pml.
 */
#ifndef GR_TRACK_DEBT_H
#define GR_TRACK_DEBT_H

#include <guestram/error.h>

struct gr_debt {
	uint64_t pages;	 /* (c) */
	uint64_t *words; /* (a) bit n of word w: page 64 * w + n */
};

/* All pages free of debt. Untouched parts cost no memory. */
int gr_debt_init(struct gr_debt *debt, uint64_t pages, struct gr_error *err);
void gr_debt_destroy(struct gr_debt *debt);
/* Forget all of it (tracking starts afresh). Nobody else may use it meanwhile. */
void gr_debt_reset(struct gr_debt *debt);

/*
 * Record what was fetched: little-endian words as the kernel gives them, bit 0 of the first
 * is `page`, a multiple of 64. Call gr_debt_fetched() (report.h), which also marks.
 */
void gr_debt_record(struct gr_debt *debt, uint64_t page, const void *words_le, uint64_t pages);

/* Whether any of these pages has debt. Any thread, no lock. */
bool gr_debt_due(const struct gr_debt *debt, uint64_t page, uint64_t pages);

/*
 * Have clear() protect what has debt among these pages, then drop that debt. clear() gets
 * pieces as KVM_CLEAR_DIRTY_LOG wants them: `page` a multiple of 64, `pages` a multiple of 64
 * or up to the end of the set, the mask in little-endian words without a bit that has no
 * debt; pieces without debt are left out. It returns when no stale translation is left. If
 * it fails, that debt stays and the error is returned.
 */
int gr_debt_rearm(struct gr_debt *debt, uint64_t page, uint64_t pages,
		  int (*clear)(void *opaque, uint64_t page, uint64_t pages, const uint64_t *mask_le,
			       struct gr_error *err),
		  void *opaque, struct gr_error *err);

#endif
