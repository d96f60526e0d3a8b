/* SPDX-License-Identifier: MIT */
/*
 * Consumers and their epochs: private sets of pages that a harvest fills (harvest.c). A
 * consumer's pending set belongs to the harvest lock, its open epoch to its own thread, so
 * that commit, search and done take no lock.
 *
 * Argument (L3). For consumer c, a page stored to since c's copy of it is in the live bitmap,
 * in c->pend, in c->set, or in the set of an epoch that c keeps. Begin moves pend and live to set.
 * Another consumer's begin moves live to c->pend, under the lock. Abort moves set back to pend,
 * ORing, never replacing: pend may hold newer bits of the same pages. Commit drops set only after c
 * read the pages, and a store after that read marks again: its mark cannot have found the bit of
 * this epoch, which was cleared before the fence, and the fence ran before the read. An epoch that
 * is kept differs in nothing: it only stands between its begin and its end while others begin.
 * Defer moves live to c->pend, as another consumer's begin does, and takes out of c->set what is in
 * c->pend: the two together are as before. A page that stays in c->set was not live, or its mark
 * is still to come; nobody reads it because of this look, its fence was that of begin.
 *
 * Model: models/dirty_epoch.pml.
 */
#include "base/atomic.h"
#include "base/endian.h"
#include "bitmap/dirty.h"
#include <errno.h>
#include <string.h>

static void swap_bits(struct gr_bits *a, struct gr_bits *b)
{
	struct gr_bits t = *a;

	*a = *b;
	*b = t;
}

static void kept_free(struct gr_dirty_epoch *e)
{
	struct gr_dirty_epoch **where = &e->consumer->kept;

	while (*where != e) {
		where = &(*where)->next;
	}
	*where = e->next;
	gr_bits_destroy(&e->set);
	free(e);
}

static void consumer_free(struct gr_dirty_consumer *c)
{
	while (c->kept) {
		kept_free(c->kept);
	}
	gr_bits_destroy(&c->pend);
	gr_bits_destroy(&c->set);
	free(c->name);
	free(c);
}

static struct gr_dirty_consumer *consumer_create(struct gr_dirty *dirty, const char *name)
{
	struct gr_dirty_consumer *c = calloc(1, sizeof(*c));

	if (!c) {
		return NULL;
	}
	c->dirty = dirty;
	c->name = strdup(name);
	if (!c->name || gr_bits_init(&c->pend) != 0 || gr_bits_init(&c->set) != 0) {
		consumer_free(c);
		return NULL;
	}
	return c;
}

static int list_consumer_locked(struct gr_dirty *dirty, struct gr_dirty_consumer *c,
				enum gr_dirty_start start, struct gr_error *err)
	GR_REQUIRES(dirty->lock)
{
	size_t chunks = (size_t)(dirty->pages / GR_BITS_CHUNK_PAGES);

	if (dirty->consumers == GR_DIRTY_CONSUMERS_MAX) {
		return gr_error_set(err, -ENOSPC,
				    "dirty memory: consumer '%s' would be one more than %d",
				    c->name, GR_DIRTY_CONSUMERS_MAX);
	}
	if (gr_bits_grow(&c->pend, chunks) != 0 || gr_bits_grow(&c->set, chunks) != 0) {
		return gr_error_set(err, -ENOMEM, "dirty memory: no memory for consumer '%s'",
				    c->name);
	}
	/*
	 * What is live now is older than c: the others get it. The fence in there is needed here
	 * too: c's first copy of a page counts from this clear (O2).
	 */
	gr_dirty_harvest_locked(dirty, NULL, NULL);
	dirty->consumer[dirty->consumers++] = c;
	if (start == GR_DIRTY_START_FULL) {
		gr_bits_fill(&c->pend);
	}
	return 0;
}

int gr_dirty_consumer_add(struct gr_dirty *dirty, const char *name, enum gr_dirty_start start,
			  struct gr_dirty_consumer **ret_consumer, struct gr_error *err)
{
	struct gr_dirty_consumer *c = consumer_create(dirty, name);
	int ret;

	if (!c) {
		return gr_error_set(err, -ENOMEM, "dirty memory: no memory for consumer '%s'",
				    name);
	}
	gr_dirty_lock(dirty);
	ret = list_consumer_locked(dirty, c, start, err);
	gr_dirty_unlock(dirty);
	if (ret < 0) {
		consumer_free(c);
		return ret;
	}
	*ret_consumer = c;
	return 0;
}

void gr_dirty_consumer_del(struct gr_dirty_consumer *consumer)
{
	struct gr_dirty *d;
	unsigned int i = 0;

	if (!consumer) {
		return;
	}
	d = consumer->dirty;
	gr_dirty_lock(d);
	while (i < d->consumers && d->consumer[i] != consumer) {
		i++;
	}
	GR_ASSERT(i < d->consumers);
	d->consumer[i] = d->consumer[--d->consumers];
	gr_dirty_unlock(d);
	consumer_free(consumer);
}

int gr_dirty_epoch_begin(struct gr_dirty_consumer *consumer, uint64_t *ret_pages,
			 struct gr_error *err)
{
	struct gr_dirty *d = consumer->dirty;

	if (consumer->open) {
		return gr_error_set(err, -EBUSY, "consumer '%s' has an epoch open", consumer->name);
	}
	gr_dirty_lock(d);
	/* The set is empty without an epoch. Pending pages need no further fence: H2. */
	swap_bits(&consumer->pend, &consumer->set);
	gr_dirty_harvest_locked(d, &consumer->set, consumer);
	gr_dirty_unlock(d);
	consumer->open = true;
	if (ret_pages) {
		*ret_pages = consumer->set.pages;
	}
	return 0;
}

bool gr_dirty_epoch_next(const struct gr_dirty_consumer *consumer, uint64_t from,
			 uint64_t *ret_first, uint64_t *ret_pages)
{
	return gr_bits_next_run(&consumer->set, from, ret_first, ret_pages);
}

void gr_dirty_epoch_done(struct gr_dirty_consumer *consumer, uint64_t page, uint64_t pages)
{
	(void)gr_bits_clear_range(&consumer->set, page, pages);
}

uint64_t gr_dirty_epoch_defer(struct gr_dirty_consumer *consumer)
{
	uint64_t at = 0, left = 0, first, pages;
	struct gr_dirty *d = consumer->dirty;

	gr_dirty_lock(d);
#ifdef GR_MUTANT_DEFER_TAKES_FOR_NOBODY
	gr_dirty_harvest_locked(d, NULL, consumer);
#else
	gr_dirty_harvest_locked(d, NULL, NULL);
#endif
	/* From one to the other: where the epoch has nothing more, whatever was marked again is passed over. */
	while (gr_bits_find_set(&consumer->set, at, &at) &&
	       gr_bits_next_run(&consumer->pend, at, &first, &pages)) {
		left += gr_bits_clear_range(&consumer->set, first, pages);
		at = first + pages;
	}
#ifdef GR_MUTANT_DEFER_DROPS_PENDING
	gr_bits_clear(&consumer->pend);
#endif
	gr_dirty_unlock(d);
	return left;
}

bool gr_dirty_epoch_next_waiting(const struct gr_dirty_consumer *consumer, uint64_t from,
				 uint64_t *ret_page)
{
	struct gr_dirty *d = consumer->dirty;
	bool found;

	*ret_page = from;
	gr_dirty_lock(d);
	found = gr_bits_find_set(&consumer->pend, from, ret_page);
	gr_dirty_unlock(d);
	return found;
}

/*
 * How many of a range's pages there are. What the set itself covers may be more: a growth that
 * failed half way leaves larger sets behind, and bits there would have no place in the others.
 * Growth reaches the sets before anybody can know of the new pages: none of those is cut.
 */
static uint64_t covered_pages(const struct gr_dirty_consumer *consumer, uint64_t page,
			      uint64_t pages)
{
	uint64_t covered = gr_dirty_pages(consumer->dirty);

	return page < covered ? GR_MIN(pages, covered - page) : 0;
}

void gr_dirty_epoch_add(struct gr_dirty_consumer *consumer, uint64_t page, uint64_t pages)
{
	if (!consumer->open) {
		gr_die("gr_dirty_epoch_add: consumer '%s' has no epoch open", consumer->name);
	}
	(void)gr_bits_set_range(&consumer->set, page, covered_pages(consumer, page, pages));
}

uint64_t gr_dirty_epoch_count(const struct gr_dirty_consumer *consumer, uint64_t page,
			      uint64_t pages)
{
	return gr_bits_count(&consumer->set, page, pages);
}

void gr_dirty_epoch_export_le(const struct gr_dirty_consumer *consumer, uint64_t page,
			      uint64_t pages, void *words)
{
	uint64_t covered = covered_pages(consumer, page, pages);
	uint64_t rest = GR_DIV_ROUND_UP(pages, GR_BITS_PER_WORD) -
			GR_DIV_ROUND_UP(covered, GR_BITS_PER_WORD); /* words of 0 behind it */
	unsigned char *out = words;

	GR_ASSERT(page % GR_BITS_PER_WORD == 0);
	for (uint64_t at = 0; at < covered; at += GR_BITS_PER_WORD, out += sizeof(uint64_t)) {
		uint64_t left = covered - at, x = gr_bits_word(&consumer->set, page + at);

		if (left < GR_BITS_PER_WORD) {
			x &= gr_bits_mask(0, (unsigned int)left - 1);
		}
		x = gr_le64(x);
		memcpy(out, &x, sizeof(x));
	}
	memset(out, 0, (size_t)rest * sizeof(uint64_t));
}

void gr_dirty_epoch_import_le(struct gr_dirty_consumer *consumer, uint64_t page, uint64_t pages,
			      const void *words)
{
	const unsigned char *in = words;

	GR_ASSERT(page % GR_BITS_PER_WORD == 0);
	if (!consumer->open) {
		gr_die("gr_dirty_epoch_import_le: consumer '%s' has no epoch open", consumer->name);
	}
	pages = covered_pages(consumer, page, pages);
	for (uint64_t at = 0; at < pages; at += GR_BITS_PER_WORD, in += sizeof(uint64_t)) {
		uint64_t left = pages - at, x;

		memcpy(&x, in, sizeof(x));
		x = gr_le64(x);
		if (left < GR_BITS_PER_WORD) {
			x &= gr_bits_mask(0, (unsigned int)left - 1);
		}
		gr_bits_or_word(&consumer->set, page + at, x);
	}
}

int gr_dirty_epoch_keep(struct gr_dirty_consumer *consumer, struct gr_dirty_epoch **ret_epoch,
			struct gr_error *err)
{
	struct gr_dirty *d = consumer->dirty;
	struct gr_dirty_epoch *e;
	int ret;

	if (!consumer->open) {
		return gr_error_set(err, -EINVAL, "consumer '%s' has no epoch open",
				    consumer->name);
	}
	e = calloc(1, sizeof(*e));
	ret = e ? gr_bits_init(&e->set) : -ENOMEM;
	gr_dirty_lock(d); /* growth works on the consumer's sets */
	if (ret == 0) {
		ret = gr_bits_grow(&e->set, (size_t)(d->pages / GR_BITS_CHUNK_PAGES));
	}
	if (ret == 0) {
		swap_bits(&e->set, &consumer->set);
	}
	gr_dirty_unlock(d);
	if (ret < 0) {
		if (e) {
			gr_bits_destroy(&e->set);
		}
		free(e);
		return gr_error_set(err, ret, "no memory to keep an epoch of consumer '%s'",
				    consumer->name);
	}
	e->consumer = consumer;
	e->next = consumer->kept;
	consumer->kept = e;
	consumer->open = false;
	*ret_epoch = e;
	return 0;
}

void gr_dirty_kept_commit(struct gr_dirty_epoch *epoch)
{
	if (epoch) {
		kept_free(epoch);
	}
}

void gr_dirty_kept_abort(struct gr_dirty_epoch *epoch)
{
	struct gr_dirty *d;

	if (!epoch) {
		return;
	}
	d = epoch->consumer->dirty;
	gr_dirty_lock(d);
#ifndef GR_MUTANT_KEPT_ABORT_DROPS
	/* What is pending covers at least as much: it has grown since, if anything. */
	gr_bits_or(&epoch->consumer->pend, &epoch->set);
#endif
	gr_dirty_unlock(d);
	kept_free(epoch);
}

uint64_t gr_dirty_kept_pages(const struct gr_dirty_epoch *epoch)
{
	return epoch->set.pages;
}

uint64_t gr_dirty_epoch_pages(const struct gr_dirty_consumer *consumer)
{
	return consumer->set.pages;
}

uint64_t gr_dirty_pending_pages(struct gr_dirty_consumer *consumer)
{
	struct gr_dirty *d = consumer->dirty;
	uint64_t pages;

	gr_dirty_lock(d);
	pages = consumer->pend.pages;
	gr_dirty_unlock(d);
	return pages;
}

int gr_dirty_epoch_commit(struct gr_dirty_consumer *consumer)
{
	if (!consumer->open) {
		return -EINVAL;
	}
	gr_bits_clear(&consumer->set);
	consumer->open = false;
	return 0;
}

int gr_dirty_epoch_abort(struct gr_dirty_consumer *consumer)
{
	struct gr_dirty *d = consumer->dirty;

	if (!consumer->open) {
		return -EINVAL;
	}
	gr_dirty_lock(d);
#ifdef GR_MUTANT_ABORT_OVERWRITES_PENDING
	swap_bits(&consumer->set, &consumer->pend);
#elif !defined(GR_MUTANT_ABORT_DROPS_EPOCH)
	/* OR the smaller into the larger; no fence: nothing live is cleared. */
	if (consumer->set.pages > consumer->pend.pages) {
		swap_bits(&consumer->set, &consumer->pend);
	}
	gr_bits_or(&consumer->pend, &consumer->set);
#endif
	gr_dirty_unlock(d);
	gr_bits_clear(&consumer->set);
	consumer->open = false;
	return 0;
}
