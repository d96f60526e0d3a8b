/* SPDX-License-Identifier: MIT */
/**
 * guestram/dirty.h - which pages were written, for several askers at once.
 *
 * Dirty memory is one bit per page in a hierarchical bitmap that grows under RCU while
 * writers mark it; no bit ever moves. Up to GR_DIRTY_CONSUMERS_MAX consumers (a
 * migration, a snapshot, a rate meter) each see every page written since their own last
 * commit. A harvest opens an epoch: commit it when the data is safe, abort it and its
 * pages come back.
 *
 *     gr_dirty_mark_range(d, first, pages);               // writers, any thread
 *
 *     gr_dirty_consumer_add(d, "backup", GR_DIRTY_START_FULL, &c, &err);
 *     gr_dirty_epoch_begin(c, &dirty_pages, &err);
 *     for (uint64_t at = 0; gr_dirty_epoch_next(c, at, &first, &pages); at = first + pages)
 *             save(first, pages);                         // read the bytes after begin
 *     gr_dirty_epoch_commit(c);                           // or gr_dirty_epoch_abort(c)
 *
 * A consumer has one epoch at a time to search and tick off. If the data is only on its way then,
 * gr_dirty_epoch_keep() sets the epoch aside and the next one may begin.
 *
 * Page numbers are RAM addresses divided by the page size of the machine's RAM; this
 * layer knows no RAM block. gr_ram_dirty() gives a machine's dirty memory.
 *
 * Threads: marks from any thread, also from a signal handler; they take no lock. The
 * calls on one consumer come from one thread at a time. Different consumers are
 * independent. A child of fork() has its own copy of the marks and may harvest them with the
 * consumers of the thread that forked.
 *
 * Caveats: between two harvests the number of live dirty bits is not known exactly; the
 * size of an epoch is. With a write-protecting tracker a harvest is right only after
 * gr_track_sync(), and a page may be read only after gr_track_rearm() (guestram/track.h).
 */
#ifndef GUESTRAM_DIRTY_H
#define GUESTRAM_DIRTY_H

#include <guestram/error.h>
#include <guestram/rcu.h>
#include <guestram/types.h>

GR_BEGIN_DECLS

enum { GR_DIRTY_CONSUMERS_MAX = 8 };

struct gr_dirty;
struct gr_dirty_consumer;

/**
 * Create dirty memory for so many pages, all clean.
 *
 * @param pages     How many pages it covers at first; 0 is allowed. Rounded up to whole
 *                  chunks.
 * @param ret_dirty Set on success only.
 * @param err       May be NULL.
 * @return 0 or a negative errno.
 * @errors  -ENOMEM, also for more than 2^37 pages (2^32 on 32-bit hosts).
 * @context Any thread. Allocates.
 */
GR_EXPORT GR_MUST_CHECK int gr_dirty_create(uint64_t pages, struct gr_dirty **ret_dirty,
					    struct gr_error *err);

/**
 * Free dirty memory. No marker, no consumer and no epoch may be left.
 * @param dirty May be NULL.
 * @context Outside a read-side section. Waits for a grace period.
 */
GR_EXPORT void gr_dirty_free(struct gr_dirty *dirty) GR_EXCLUDES(gr_rcu_section);

/**
 * Grow to cover at least so many pages; markers and consumers go on meanwhile. Never
 * shrinks. New pages are clean.
 *
 * @param dirty The dirty memory.
 * @param pages Number of pages to cover afterwards.
 * @param err   May be NULL.
 * @return 0 or a negative errno; on failure nothing has changed.
 * @errors  -ENOMEM, as gr_dirty_create().
 * @context Any thread; takes the harvest lock, allocates. The caller publishes whatever
 *          needs the new pages after this returns (ordering O3).
 * @source  S. Hajnoczi, QEMU's DirtyMemoryBlocks (2015): copy pointers, never bits.
 */
GR_EXPORT GR_MUST_CHECK int gr_dirty_grow(struct gr_dirty *dirty, uint64_t pages,
					  struct gr_error *err);

/**
 * How many pages are covered.
 * @param dirty The dirty memory.
 * @return Number of pages, a multiple of the chunk size.
 * @context Any thread.
 */
GR_EXPORT uint64_t gr_dirty_pages(const struct gr_dirty *dirty);

/*
 * Private: as much of dirty memory as a marker needs in order to see that there is nothing to do.
 * Laid out as src/bitmap has it, which checks that.
 */
enum {
	GR_DIRTY_LINE_PAGES_ = 512,
	GR_DIRTY_GROUP_PAGES_ = 64 * GR_DIRTY_LINE_PAGES_,
	GR_DIRTY_CHUNK_PAGES_ = 64 * GR_DIRTY_GROUP_PAGES_,
};
struct gr_dirty_chunk_ {
	const uint64_t *leaf;
	const uint64_t *sum;
	const uint64_t *head;
	size_t together;
};
struct gr_dirty_map_ {
	struct gr_rcu_head rcu;
	size_t chunks;
	size_t inlined; /* as many, or 0 if markers need a fence of their own */
	struct gr_dirty_chunk_ chunk[1]; /* as many as there are; C++ knows no open arrays */
};
/* Private: whatever is not as expected. */
GR_EXPORT void gr_dirty_mark_slow(struct gr_dirty *dirty, uint64_t page)
	GR_REQUIRES_SHARED(gr_rcu_section);

/* Private: is bit n of words[n / 64] set? */
static inline bool gr_dirty_bit_(const uint64_t *words, uint64_t n)
{
	/* Acquire, pairs with the RMW that set it, before the look at the next level (L1). */
	return __atomic_load_n(&words[n / 64], __ATOMIC_ACQUIRE) >> (n % 64) & 1;
}

/* Private: the page's bit and both summary bits above it are set, and no fence is needed. */
static inline bool gr_dirty_is_marked_(struct gr_dirty *dirty, uint64_t page)
{
	/* L5: pairs with the publication in gr_dirty_grow(). */
	const struct gr_dirty_map_ *map = __atomic_load_n(
		(const struct gr_dirty_map_ *const *)(const void *)dirty, __ATOMIC_CONSUME);
	uint64_t p = page % GR_DIRTY_CHUNK_PAGES_;
	const struct gr_dirty_chunk_ *c;

	if (GR_UNLIKELY(page / GR_DIRTY_CHUNK_PAGES_ >= map->inlined)) {
		return false;
	}
	__atomic_signal_fence(__ATOMIC_SEQ_CST); /* L2: the caller's stores before the look */
	c = &map->chunk[page / GR_DIRTY_CHUNK_PAGES_];
	return gr_dirty_bit_(c->leaf, p) && gr_dirty_bit_(c->sum, p / GR_DIRTY_LINE_PAGES_) &&
	       gr_dirty_bit_(c->head, p / GR_DIRTY_GROUP_PAGES_);
}

/**
 * Mark one page as written. The bytes must have been stored before (ordering O1).
 *
 * A page that is marked already costs three loads and no shared write; see
 * docs/dirty-memory.md for why that is enough.
 *
 * @param dirty The dirty memory.
 * @param page  Page number, below gr_dirty_pages().
 * @context Any thread, in a read-side section that was entered before the caller looked
 *          the page's block up. Async-signal-safe. Never blocks.
 */
static inline void gr_dirty_mark(struct gr_dirty *dirty, uint64_t page)
	GR_REQUIRES_SHARED(gr_rcu_section);
static inline void gr_dirty_mark(struct gr_dirty *dirty, uint64_t page)
{
	if (GR_UNLIKELY(!gr_dirty_is_marked_(dirty, page))) {
		gr_dirty_mark_slow(dirty, page);
	}
}

/**
 * Mark a range of pages, by words rather than by bits.
 * @param dirty The dirty memory.
 * @param page  First page.
 * @param pages How many; 0 is allowed.
 * @context As gr_dirty_mark().
 */
GR_EXPORT void gr_dirty_mark_range(struct gr_dirty *dirty, uint64_t page, uint64_t pages)
	GR_REQUIRES_SHARED(gr_rcu_section);

/**
 * OR a foreign bitmap in (KVM's dirty log): little-endian 64-bit words, bit 0 of word 0
 * is `page`.
 *
 * @param dirty The dirty memory.
 * @param page  First page, a multiple of 64.
 * @param words The bitmap, GR_DIV_ROUND_UP(pages, 64) words, unaligned is fine.
 * @param pages How many bits count; what lies behind them in the last word is ignored.
 * @return How many bits were set in `words`.
 * @context As gr_dirty_mark().
 */
GR_EXPORT uint64_t gr_dirty_or_le(struct gr_dirty *dirty, uint64_t page, const void *words,
				  uint64_t pages) GR_REQUIRES_SHARED(gr_rcu_section);

/** How a consumer begins. */
enum gr_dirty_start {
	GR_DIRTY_START_CLEAN, /**< its first epoch has what is written from now on */
	GR_DIRTY_START_FULL,  /**< its first epoch also has every page covered now */
};

/**
 * Add a consumer.
 *
 * @param dirty The dirty memory.
 * @param name  For messages; copied.
 * @param start How it begins.
 * @param ret_consumer Set on success only.
 * @param err   May be NULL.
 * @return 0 or a negative errno; on failure nothing has changed.
 * @errors  -ENOSPC there are GR_DIRTY_CONSUMERS_MAX already; -ENOMEM.
 * @context Any thread; takes the harvest lock.
 */
GR_EXPORT GR_MUST_CHECK int gr_dirty_consumer_add(struct gr_dirty *dirty, const char *name,
						  enum gr_dirty_start start,
						  struct gr_dirty_consumer **ret_consumer,
						  struct gr_error *err);

/**
 * Remove a consumer, also with an epoch open. The others notice nothing.
 * @param consumer May be NULL.
 * @context Any thread; takes the harvest lock.
 */
GR_EXPORT void gr_dirty_consumer_del(struct gr_dirty_consumer *consumer);

/**
 * Open an epoch: take every page that was marked since this consumer's last commit.
 *
 * Clears the live bits and runs one process-wide barrier if there were any, so that a
 * caller who reads a page's bytes after this call misses no store whose mark found its
 * bit already set (ordering O2).
 *
 * @param consumer  Whose epoch.
 * @param ret_pages Set on success: exact number of pages in the epoch. May be NULL.
 * @param err       May be NULL.
 * @return 0 or a negative errno.
 * @errors  -EBUSY an epoch of this consumer is open.
 * @context One thread per consumer; takes the harvest lock. Never allocates. Cost follows
 *          what is dirty, not what exists.
 */
GR_EXPORT GR_MUST_CHECK int gr_dirty_epoch_begin(struct gr_dirty_consumer *consumer,
						 uint64_t *ret_pages, struct gr_error *err);

/**
 * Find the next run of pages in the open epoch.
 *
 * @param consumer  Whose epoch.
 * @param from      First page to look at.
 * @param ret_first Set if found: first page of the run.
 * @param ret_pages Set if found: its length, as long as it goes.
 * @return Whether there is one at or after `from`.
 * @context The consumer's thread. Takes no lock.
 */
GR_EXPORT bool gr_dirty_epoch_next(const struct gr_dirty_consumer *consumer, uint64_t from,
				   uint64_t *ret_first, uint64_t *ret_pages);

/**
 * Take pages out of the open epoch: they are safe now and an abort will not bring them
 * back.
 * @param consumer Whose epoch.
 * @param page     First page.
 * @param pages    How many.
 * @context The consumer's thread.
 */
GR_EXPORT void gr_dirty_epoch_done(struct gr_dirty_consumer *consumer, uint64_t page,
				   uint64_t pages);

/**
 * Leave pages of the open epoch to the next one: those that have been marked again since it began.
 * They are in that one whatever happens to this, so a consumer that works its way through a long epoch need
 * not save them twice. Pages that were done already and have been marked again are as before: in the
 * next epoch.
 *
 * With a tracker call gr_track_sync() before, or only software marks are seen. One that reports pages
 * again and again until they are re-armed (KVM's log with manual protect) has all that is
 * not done yet left to the next epoch.
 *
 * @param consumer Whose epoch. Without an open one nothing is left to the next.
 * @return How many pages left the open epoch.
 * @context The consumer's thread; takes the harvest lock. Costs what is dirty.
 * @source  Clark et al., "Live Migration of Virtual Machines", NSDI 2005: pages that are skipped.
 */
GR_EXPORT uint64_t gr_dirty_epoch_defer(struct gr_dirty_consumer *consumer);

/**
 * Find a page that is in the next epoch whatever comes: one that gr_dirty_epoch_defer() found, sent
 * or not, or that another consumer's harvest has found.
 * @param consumer Whose epoch.
 * @param from     Where to begin.
 * @param ret_page Set: the first such page at from or after it.
 * @return true if there is one.
 * @context The consumer's thread; takes the harvest lock.
 */
GR_EXPORT bool gr_dirty_epoch_next_waiting(const struct gr_dirty_consumer *consumer, uint64_t from,
					   uint64_t *ret_page);

/**
 * Put pages into the open epoch, as if they had been dirty when it began: for a consumer
 * that learns of a page by other means (a block that appeared).
 * @param consumer Whose epoch.
 * @param page     First page.
 * @param pages    How many.
 * @context The consumer's thread.
 */
GR_EXPORT void gr_dirty_epoch_add(struct gr_dirty_consumer *consumer, uint64_t page,
				  uint64_t pages);

/**
 * How many pages the open epoch still has.
 * @param consumer Whose epoch.
 * @return Exact number; 0 without an epoch.
 * @context The consumer's thread.
 */
GR_EXPORT uint64_t gr_dirty_epoch_pages(const struct gr_dirty_consumer *consumer);

/**
 * How many pages of a range the open epoch has: with the epoch as a snapshot, "was this line of
 * the screen written?"
 * @param consumer Whose epoch.
 * @param page     First page.
 * @param pages    How many to look at.
 * @return Exact number, 0 if none. Costs what is set there.
 * @context The consumer's thread.
 */
GR_EXPORT uint64_t gr_dirty_epoch_count(const struct gr_dirty_consumer *consumer, uint64_t page,
					uint64_t pages);

/**
 * Write a range of the open epoch as a bitmap for others: little-endian 64-bit words, bit 0 of
 * word 0 is `page`.
 * @param consumer Whose epoch.
 * @param page     First page, a multiple of 64.
 * @param pages    How many; what lies behind them in the last word is 0.
 * @param words    Filled: GR_DIV_ROUND_UP(pages, 64) words; unaligned is fine.
 * @context The consumer's thread.
 */
GR_EXPORT void gr_dirty_epoch_export_le(const struct gr_dirty_consumer *consumer, uint64_t page,
					uint64_t pages, void *words);

/**
 * Put a bitmap's pages into the open epoch: what gr_dirty_epoch_export_le() wrote, perhaps in
 * another process or before a restart.
 * @param consumer Whose epoch.
 * @param page     First page, a multiple of 64.
 * @param pages    How many bits count; pages that are not covered are left out.
 * @param words    The bitmap, as in gr_dirty_or_le().
 * @context The consumer's thread.
 */
GR_EXPORT void gr_dirty_epoch_import_le(struct gr_dirty_consumer *consumer, uint64_t page,
					uint64_t pages, const void *words);

/** An epoch that was set aside: still open, while its consumer has begun others. */
struct gr_dirty_epoch;

/**
 * Set the open epoch aside, so that the next one may begin before it is known whether this
 * one's pages are safe (data on its way to a disk or a peer). Any number may be kept.
 *
 * @param consumer  Whose epoch.
 * @param ret_epoch Set on success only. End it by gr_dirty_kept_commit() or
 *                  gr_dirty_kept_abort(); gr_dirty_consumer_del() ends all that are left.
 * @param err       May be NULL.
 * @return 0 or a negative errno; on failure the epoch is open as before.
 * @errors  -EINVAL no epoch is open; -ENOMEM.
 * @context The consumer's thread; takes the harvest lock.
 */
GR_EXPORT GR_MUST_CHECK int gr_dirty_epoch_keep(struct gr_dirty_consumer *consumer,
						struct gr_dirty_epoch **ret_epoch,
						struct gr_error *err);
/**
 * The pages of a kept epoch are safe: forget them. They may end in any order.
 * @param epoch From gr_dirty_epoch_keep(); gone afterwards. May be NULL.
 * @context The consumer's thread.
 */
GR_EXPORT void gr_dirty_kept_commit(struct gr_dirty_epoch *epoch);
/**
 * Give a kept epoch up: its pages come back in the epoch that begins next.
 * @param epoch From gr_dirty_epoch_keep(); gone afterwards. May be NULL.
 * @context The consumer's thread; takes the harvest lock.
 */
GR_EXPORT void gr_dirty_kept_abort(struct gr_dirty_epoch *epoch);
/** @param epoch A kept epoch. @return How many pages it has. @context The consumer's thread. */
GR_EXPORT uint64_t gr_dirty_kept_pages(const struct gr_dirty_epoch *epoch);

/**
 * How many pages wait for this consumer's next epoch, as far as harvests (its own and the
 * others') know of them.
 * @param consumer Whose.
 * @return Exact number of pending pages; live bits that nobody harvested are not in it.
 * @context Any thread; takes the harvest lock.
 */
GR_EXPORT uint64_t gr_dirty_pending_pages(struct gr_dirty_consumer *consumer);

/**
 * Upper estimate of the live dirty pages: 64 for each word that has any, and all pages of
 * ranges that were marked as a whole.
 * @param dirty The dirty memory.
 * @return Number of pages, never less than the truth at the time of the call.
 * @context Any thread; takes no lock.
 */
GR_EXPORT uint64_t gr_dirty_live_estimate(const struct gr_dirty *dirty);

/**
 * Close the epoch: its pages are safe.
 * @param consumer Whose.
 * @return 0, or -EINVAL when none is open.
 * @context The consumer's thread. Takes no lock.
 */
GR_EXPORT int gr_dirty_epoch_commit(struct gr_dirty_consumer *consumer);

/**
 * Give the epoch up: what is left in it comes back in the next one.
 * @param consumer Whose.
 * @return 0, or -EINVAL when none is open.
 * @context The consumer's thread; takes the harvest lock.
 */
GR_EXPORT int gr_dirty_epoch_abort(struct gr_dirty_consumer *consumer);

GR_END_DECLS
#endif
