/* SPDX-License-Identifier: MIT */
/*
 * How a page of the moment gets into the image, by one of two ways:
 *
 *   about to be written    it is copied into the buffer, and its writer goes on; the copy is written
 *                          out later. No room: it is kept, and its writer waits, until there is
 *   the walk comes first   it is taken with its neighbours, copied, released; then written out
 *
 * Either way the page is protected until it has been copied, and nobody waits for the disk but who
 * finds no room. What is in the buffer goes first: it makes room.
 */
#include "base/zero.h"
#include "image/snapshot_state.h"
#include "ram/copy.h"
#include "ram/untouched.h"
#include <errno.h>
#include <stdlib.h>

/* ---- before a write -------------------------------------------------------------------- */

enum gr_cbw_verdict gr_snapshot_before_write(void *opaque, const struct gr_cbw_piece *piece)
{
	struct gr_snapshot *s = opaque;
	struct gr_signals saved;
	bool kept = false;
	int ret;

	gr_snapshot_buffer_lock(&s->buffer, &saved);
	if (!piece->host) {
		ret = -EHWPOISON;
	} else if (gr_snapshot_buffer_keeps_locked(&s->buffer)) {
		ret = -ENOBUFS; /* room goes first to who waits for it */
	} else {
		ret = gr_snapshot_buffer_put_locked(&s->buffer, piece);
	}
	if (ret == -ENOBUFS && s->params.when_full == GR_SNAPSHOT_WAIT) {
		ret = gr_snapshot_buffer_keep_locked(&s->buffer, piece);
		kept = ret == 0;
	}
	if (ret < 0 && s->given_up == 0) {
		s->given_up = ret;
	}
	gr_snapshot_buffer_unlock(&s->buffer, &saved);
	gr_event_set(&s->work);
	if (ret < 0) {
		return GR_CBW_ABANDON;
	}
#ifdef GR_MUTANT_SNAPSHOT_KEEPS_NOBODY
	return GR_CBW_SAVED;
#endif
	return kept ? GR_CBW_KEEP : GR_CBW_SAVED;
}

static int why_given_up(struct gr_snapshot *s, struct gr_error *err)
{
	struct gr_signals saved;
	int why;

	gr_snapshot_buffer_lock(&s->buffer, &saved);
	why = s->given_up;
	gr_snapshot_buffer_unlock(&s->buffer, &saved);
	switch (why) {
	case 0:
		return 0;
	case -ENOBUFS:
		return gr_error_set(
			err, why,
			"the buffer of %llu bytes is full: the guest writes faster than "
			"the disk; give it more, or let stores wait",
			(unsigned long long)s->params.buffer_bytes);
	case -EHWPOISON:
		return gr_error_set(err, why, "the host has lost memory that was not saved yet");
	default:
		return gr_error_set(err, why,
				    "a page that is about to be written cannot be copied: %s",
				    strerror(-why));
	}
}

/* Who waits for room gets it, as far as there is some. */
static int admit(struct gr_snapshot *s, struct gr_error *err)
{
	struct gr_cbw_piece piece;
	int ret;

	while ((ret = gr_snapshot_buffer_admit(&s->buffer, &piece)) > 0) {
		gr_cbw_release(s->cbw, &piece);
	}
	return ret == 0 ? 0
			: gr_error_set(err, ret,
				       "a page that is about to be written cannot be read: %s",
				       strerror(-ret));
}

/* ---- batches --------------------------------------------------------------------------- */

static const struct gr_source_block *entry_of(const struct gr_snapshot *s,
					      const struct gr_ram_block *block)
{
	uint64_t first = block->offset.v / s->page_bytes;
	const struct gr_source_block *e = gr_source_blocks_at(&s->table, first);

	/* A block without a name is in no image. */
	return e && e->first_page == first ? e : NULL;
}

struct place {
	uint64_t offset, copy;
};

static int by_offset(const void *a, const void *b)
{
	const struct place *x = a, *y = b;

	return (x->offset > y->offset) - (x->offset < y->offset);
}

/* The oldest copies, of one block, in the order of the file. Whether there were any. */
static bool take_copies(struct gr_snapshot *s)
{
	struct gr_snapshot_batch *b = &s->batch;
	struct place place[GR_SNAPSHOT_BATCH_PAGES];
	const struct gr_ram_block *block;
	uint64_t head, count = gr_snapshot_buffer_count(&s->buffer, &head);
	uint32_t n = 0;

	if (count == 0) {
		return false;
	}
	block = gr_snapshot_buffer_copy(&s->buffer, head)->block;
	for (; n < GR_MIN(count, (uint64_t)GR_SNAPSHOT_BATCH_PAGES); n++) {
		const struct gr_snapshot_copy *copy = gr_snapshot_buffer_copy(&s->buffer, head + n);

		if (copy->block != block) {
			break;
		}
		place[n] = (struct place){ .offset = copy->offset, .copy = head + n };
	}
	qsort(place, n, sizeof(place[0]), by_offset);
	b->entry = entry_of(s, block);
	for (uint32_t i = 0; i < n; i++) {
		b->offsets[i] = place[i].offset;
		memcpy(b->pages + i * s->page_bytes,
		       gr_snapshot_buffer_page(&s->buffer, place[i].copy), s->page_bytes);
	}
	b->count = b->entry ? n : 0;
	gr_snapshot_buffer_drop(&s->buffer, n);
	return true;
}

/* Pages that are there: those that are not zero into the batch. */
static int add_pages(struct gr_snapshot *s, const struct gr_ram_block *block, uint64_t offset,
		     uint64_t end, uint64_t *zeroes, struct gr_error *err)
{
	struct gr_snapshot_batch *b = &s->batch;

	for (; offset < end; offset += s->page_bytes) {
		uint8_t *to = b->pages + b->count * s->page_bytes;
		const uint8_t *page = block->host + offset;
		int ret;

		if (gr_holes_must_read(&s->holes, block)) {
			ret = gr_holes_read(&s->holes, block, offset, to);
			if (ret < 0) {
				return gr_error_set(err, ret,
						    "block '%s': its file cannot be read: %s",
						    block->id, strerror(-ret));
			}
			page = to;
		}
		if (gr_page_is_zero(page, s->page_bytes)) {
			(*zeroes)++;
			continue;
		}
		if (page != to) {
			gr_copy_from_guest(to, page, s->page_bytes);
		}
		b->offsets[b->count++] = offset;
	}
	return 0;
}

static void count_zeroes(struct gr_snapshot *s, uint64_t zeroes, uint64_t untouched)
{
	struct gr_migrate_stats *stats = gr_progress_lock(&s->progress);

	stats->zero_pages += zeroes + untouched;
	stats->untouched_pages += untouched;
	gr_progress_unlock(&s->progress);
}

/* Whether [offset, *ret_end) is a hole, *ret_end at most end. To ask costs by the length of the
 * data. */
static bool is_hole(struct gr_snapshot *s, const struct gr_ram_block *block, uint64_t offset,
		    uint64_t end, uint64_t *ret_end)
{
	struct gr_snapshot_extent *x = &s->extent;

	if (x->block != block || offset < x->begin || offset >= x->end) {
		x->block = block;
		x->begin = offset;
		x->hole = gr_holes_next(&s->holes, block, offset, s->batch.entry->used_bytes,
					&x->end);
	}
	*ret_end = GR_MIN(end, x->end);
	return x->hole;
}

/* A piece into the batch. Nothing of it can be written or thrown away meanwhile. */
static int take_piece(struct gr_snapshot *s, struct gr_ram_block *block, uint64_t offset,
		      uint64_t end, struct gr_error *err)
{
	uint64_t zeroes = 0, untouched = 0, at;
	int ret = 0;

	s->batch.count = 0;
	s->batch.entry = entry_of(s, block);
	for (; ret == 0 && s->batch.entry && offset < end; offset = at) {
		bool skip;

		gr_ram_look_begin(block);
		skip = !gr_ram_plugged_locked(block, offset, end, &at) ||
		       is_hole(s, block, offset, at, &at);
		gr_ram_look_end(block);
		if (skip) {
			untouched += (at - offset) / s->page_bytes;
		} else {
			ret = add_pages(s, block, offset, at, &zeroes, err);
		}
	}
	count_zeroes(s, zeroes, untouched);
	return ret;
}

/* 1, or a negative errno. */
static int write_batch(struct gr_snapshot *s, struct gr_error *err)
{
	struct gr_snapshot_batch *b = &s->batch;
	uint64_t bytes = b->count * s->page_bytes;
	struct gr_migrate_stats *stats;
	uint32_t bad = 0;
	int ret;

	if (b->count == 0) {
		return 1;
	}
	ret = gr_image_store_pages(s->store, b->entry->wire_index, b->offsets, b->count, b->pages,
				   &bad, err);
	if (ret < 0) {
		return gr_error_prefix(err, "block '%s', page at %#llx: ", b->entry->id,
				       (unsigned long long)b->offsets[bad]);
	}
	gr_pacing_sent(&s->pacing, bytes, gr_clock_ns());
	stats = gr_progress_lock(&s->progress);
	stats->normal_pages += b->count;
	stats->transferred_bytes += bytes;
	gr_progress_unlock(&s->progress);
	return 1;
}

/* ---- steps ----------------------------------------------------------------------------- */

/* 1: the walk had something, 0: nothing is left. */
static int walk(struct gr_snapshot *s, struct gr_error *err)
{
	struct gr_cbw_piece piece;
	int ret = gr_cbw_next(s->cbw, GR_SNAPSHOT_BATCH_PAGES * s->page_bytes, &piece, err);

	if (ret <= 0) {
		return ret;
	}
#ifdef GR_MUTANT_SNAPSHOT_RELEASES_FIRST
	gr_cbw_release(s->cbw, &piece);
#endif
	ret = take_piece(s, piece.block, piece.offset, piece.offset + piece.bytes, err);
#ifndef GR_MUTANT_SNAPSHOT_RELEASES_FIRST
	/* Before it is written: the disk may take its time. */
	gr_cbw_release(s->cbw, &piece);
#endif
	return ret < 0 ? ret : 1;
}

/* Nothing is to be had: 0 all is saved, or 1 somebody is still copying. */
static int wait_for_copies(struct gr_snapshot *s)
{
	struct gr_cbw_stats stats;
	uint64_t head;

	gr_cbw_stats(s->cbw, &stats);
	if (stats.released_bytes < stats.bytes) {
		(void)gr_event_wait_timeout(&s->work, GR_NS_PER_MS);
		return 1;
	}
	/* What was copied before the last release is in the buffer by now. */
	return gr_snapshot_buffer_count(&s->buffer, &head) > 0;
}

static int save_some(struct gr_snapshot *s, struct gr_error *err)
{
	int ret = admit(s, err);

	if (ret < 0) {
		return ret;
	}
	if (take_copies(s)) {
		ret = admit(s, err); /* before the disk is waited for */
		return ret < 0 ? ret : write_batch(s, err);
	}
	ret = walk(s, err);
	if (ret > 0) {
		return write_batch(s, err);
	}
	return ret < 0 ? ret : wait_for_copies(s);
}

int gr_snapshot_save_some(struct gr_snapshot *s, struct gr_error *err)
{
	int ret, why;

	gr_event_reset(&s->work);
	ret = save_some(s, err);
	why = why_given_up(s, err); /* weighs more than that it was */
	return why < 0 ? why : ret;
}
