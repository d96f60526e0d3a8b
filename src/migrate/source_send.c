/* SPDX-License-Identifier: MIT */
/*
 * How an epoch's pages get out. For each run of dirty pages, in this order:
 *
 *   harvested    the epoch was begun after the sync: the bits are cleared        (O2)
 *   re-armed     the trackers watch these pages again                            (O4)
 *   looked at    is it a hole, or unplugged? is it zero? All are reads, so not before
 *   sent         from where they are; the kernel has taken the bytes on return
 *   done         out of the epoch: an abort would not bring them back
 *
 * The block is looked up for each batch, in a section that ends before anything blocks; the
 * reference keeps its memory while the batch is on its way, even if it is unplugged meanwhile.
 */
#include "base/zero.h"
#include "migrate/source.h"
#include "ram/untouched.h"
#include <errno.h>
#include <stdlib.h>
#include <string.h>

int gr_source_close_section(struct gr_source *s, struct gr_error *err)
{
	int rc;

	if (!s->section) {
		return 0;
	}
	rc = gr_source_meet_section(s, err);
	s->section = false;
	s->section_pages = 0;
	if (rc == 0) {
		rc = gr_stream_write_eos(s->writer, err);
	}
	/* Who has met waits for what is behind it. */
	return rc == 0 && s->multifd ? gr_stream_flush(s->writer, err) : rc;
}

static int open_section(struct gr_source *s, struct gr_error *err)
{
	int rc;

	if (s->section && !s->final && s->section_pages >= GR_SOURCE_SECTION_PAGES) {
		rc = gr_source_close_section(s, err);
		if (rc < 0) {
			return rc;
		}
	}
	if (s->section) {
		return 0;
	}
	s->section = true;
	return gr_stream_write_section(s->writer, s->final ? GR_SECTION_END : GR_SECTION_PART, err);
}

int gr_source_end_round(struct gr_source *s, struct gr_error *err)
{
	int rc = 0;

	/* The last section has to be there, and a round's last word has to be in one. */
	if (s->multifd || s->final) {
		rc = open_section(s, err);
	}
	if (rc == 0) {
		rc = gr_source_meet_round(s, err);
	}
	if (rc == 0) {
		rc = gr_source_close_section(s, err);
	}
	return rc == 0 && !s->final ? gr_stream_flush(s->writer, err) : rc;
}

int gr_source_follow_blocks(struct gr_source *s, struct gr_error *err)
{
	struct gr_stream_block_desc *descs = NULL;
	struct gr_migrate_stats *stats;
	int rc;

	if (gr_ram_version(s->ram) == s->table.version) {
		return 0;
	}
	rc = gr_source_blocks_fill(&s->table, s->ram, &s->watch, err);
	if (rc < 0) {
		return rc;
	}
	/* Towards a QEMU the list is frozen: what has changed was before that. */
	if (!s->ours) {
		return 0;
	}
#ifndef GR_MUTANT_XBZRLE_KEEPS_ABSENT
	/* A block that left the list and is there again is empty over there. */
	gr_page_cache_clear(&s->cache);
#endif
	rc = open_section(s, err);
	if (rc == 0) {
		rc = gr_source_blocks_describe(&s->table, &descs, err);
	}
	if (rc == 0) {
		rc = gr_source_meet_announcement(s, err);
	}
	if (rc == 0) {
		rc = gr_stream_write_announce(s->writer, descs, s->table.count, err);
	}
	if (rc == 0 && s->multifd) {
		rc = gr_stream_flush(s->writer, err);
	}
	free(descs);
	stats = gr_progress_lock(&s->progress);
	stats->blocks_announced++;
	stats->total_bytes = s->table.total_pages * s->page_bytes;
	gr_progress_unlock(&s->progress);
	return rc;
}

/* The destination has the very memory: x-ignore-shared. */
static bool stays(const struct gr_source_block *e)
{
#ifdef GR_MUTANT_SOURCE_SENDS_SHARED
	return e && false;
#endif
	return e->ignored;
}

void gr_source_trim_epoch(struct gr_source *s)
{
	uint64_t at = 0, first, pages;

	while (gr_dirty_epoch_next(s->consumer, at, &first, &pages)) {
		const struct gr_source_block *e = gr_source_blocks_at(&s->table, first);
		uint64_t end = first + pages;

		if (!e || e->first_page >= end) {
			gr_dirty_epoch_done(s->consumer, first, pages);
			at = end;
			continue;
		}
		if (e->first_page > first) {
			gr_dirty_epoch_done(s->consumer, first, e->first_page - first);
		}
		at = e->first_page + e->pages;
		if (stays(e)) {
			first = GR_MAX(first, e->first_page);
			gr_dirty_epoch_done(s->consumer, first, GR_MIN(at, end) - first);
		}
	}
}

/*
 * Leaves out the piece at the cursor if a page of what is left of it waits for the next round. If not, *end is
 * cut to where the next such piece begins.
 */
static bool puts_off(struct gr_source *s, uint64_t *end)
{
	const uint64_t size = GR_MAX(GR_SOURCE_PIECE_BYTES / s->page_bytes, (uint64_t)1);
	uint64_t page, piece;

	if (s->waiting_pages == 0 || s->catches_up ||
	    !gr_dirty_epoch_next_waiting(s->consumer, s->cursor, &page)) {
		return false;
	}
	piece = page / size * size;
#ifdef GR_MUTANT_PUT_OFF_WHAT_IS_BEFORE
	(void)end;
#else
	if (piece > s->cursor) {
		*end = GR_MIN(*end, piece);
		return false;
	}
#endif
	s->cursor = piece + size;
#ifndef GR_MUTANT_PUT_OFF_FOR_GOOD
	s->put_off = true;
#endif
	return true;
}

/*
 * The run of dirty pages at or after the cursor. Runs can be as long as RAM and finding
 * their end costs by their length, so the end of the present one is kept; nobody but us
 * takes pages out of our epoch, and gr_source_look_again() has it looked for anew.
 */
static bool next_run(struct gr_source *s, uint64_t *ret_first, uint64_t *ret_pages)
{
	uint64_t first, pages, end;

	do {
		if (s->cursor >= s->run_end) {
			if (!gr_dirty_epoch_next(s->consumer, s->cursor, &first, &pages)) {
				return false;
			}
			s->cursor = first;
			s->run_end = first + pages;
		}
		end = s->run_end;
	} while (puts_off(s, &end));
	*ret_first = s->cursor;
	*ret_pages = end - s->cursor;
	return true;
}

/* The guest writes meanwhile; each word is copied once. */
__attribute__((no_sanitize("thread"))) static void copy_racy(uint8_t *to, const uint8_t *from,
							     size_t bytes)
{
	for (size_t i = 0; i < bytes; i += sizeof(uint64_t)) {
		*(uint64_t *)(void *)(to + i) =
			*(const volatile uint64_t *)(const void *)(from + i);
	}
}

static int flush_zeros(struct gr_source *s, struct gr_error *err)
{
	struct gr_source_batch *b = &s->batch;
	uint64_t end = b->zero_offset + b->zero_bytes;
	int rc = 0;

	if (b->zero_bytes == 0) {
		return 0;
	}
	if (s->ours && b->zero_bytes > s->page_bytes) {
		rc = gr_stream_write_zero_range(s->writer, b->entry->id, b->zero_offset,
						b->zero_bytes, err);
	} else if (s->multifd && !s->ours && s->dialect == GR_MULTIFD_9_0) {
		rc = gr_source_send_zero_packets(s, b->zero_offset, b->zero_bytes, err);
	} else {
		/* A QEMU is told of each page by name. */
		for (uint64_t at = b->zero_offset; rc == 0 && at < end; at += s->page_bytes) {
			rc = gr_stream_write_zero(s->writer, b->entry->id, at, err);
		}
	}
	b->zero_bytes = 0;
	return rc;
}

static int add_zeros(struct gr_source *s, uint64_t offset, uint64_t bytes, struct gr_error *err)
{
	struct gr_source_batch *b = &s->batch;
	int rc = 0;

	if (b->zero_bytes != 0 && b->zero_offset + b->zero_bytes != offset) {
		rc = flush_zeros(s, err);
	}
	if (b->zero_bytes == 0) {
		b->zero_offset = offset;
	}
	b->zero_bytes += bytes;
	b->zero_pages += bytes / s->page_bytes;
	gr_source_xbzrle_zero(s, offset, bytes);
	return rc;
}

/* Whether [offset, *ret_end) is a hole; remembers how far the block is filled. */
static bool is_hole_locked(struct gr_source *s, uint64_t offset, uint64_t end, uint64_t *ret_end)
	GR_REQUIRES(s->batch.block->ram->discard_lock)
{
	const struct gr_ram_block *block = s->batch.block;
	struct gr_source_extent *x = &s->extent;
	uint64_t discards = gr_ram_discards_locked(s->batch.block), far;

#ifdef GR_MUTANT_MIGRATE_STALE_EXTENT
	discards = 0;
#endif
	if (x->incarnation == block->incarnation && x->discards == discards && offset >= x->begin &&
	    offset < x->end) {
		*ret_end = GR_MIN(end, x->end);
		return false;
	}
	if (gr_holes_next(&s->holes, block, offset, s->batch.entry->used_bytes, &far)) {
		*ret_end = GR_MIN(end, far);
		return true;
	}
	*x = (struct gr_source_extent){ block->incarnation, discards, offset, far };
	*ret_end = GR_MIN(end, far);
	return false;
}

/*
 * Whether [offset, *ret_end) is zero without having been touched, and is not to be: unplugged, or a
 * hole.
 */
static bool is_untouched_locked(struct gr_source *s, uint64_t offset, uint64_t end, uint64_t *ret_end)
	GR_REQUIRES(s->batch.block->ram->discard_lock)
{
#ifndef GR_MUTANT_MIGRATE_READS_UNPLUGGED
	if (!gr_ram_plugged_locked(s->batch.block, offset, end, &end)) {
		*ret_end = end;
		return true;
	}
#endif
	return is_hole_locked(s, offset, end, ret_end);
}

/*
 * A page is sent from where it is while discards go on: the kernel's read may give back to a page what
 * was just taken from it. Where that can fail (huge pages), and where it is to be expected (pieces of
 * this block are thrown away), the page is copied before discards may go on. Rare enough for
 * the rest; see gr_source_forget_unplugged(). Differences are made of copies too (source_xbzrle.c).
 */
static bool must_copy_locked(struct gr_source *s)
	GR_REQUIRES(s->batch.block->ram->discard_lock)
{
	const struct gr_ram_block *block = s->batch.block;

	/* TSan would report the system call's reads. */
	return GR_TSAN || gr_source_uses_xbzrle(s) ||
	       block->page_bytes > s->holes.host_page_bytes ||
	       gr_ram_discards_locked(s->batch.block) != 0;
}

/* The page, at most read into `own`. NULL: it cannot be read. */
static const uint8_t *page_at(struct gr_source *s, uint64_t offset, uint8_t *own)
{
	const struct gr_ram_block *block = s->batch.block;
	const uint8_t *page = gr_source_fault_early_page(s, block, offset);

	if (page) {
		return page;
	}
	if (gr_holes_must_read(&s->holes, block)) {
		return gr_holes_read(&s->holes, block, offset, own) == 0 ? own : NULL;
	}
	return block->host + offset;
}

/* Random pages cost a miss each, and one after the other they would be waited for. */
static void look_ahead(const struct gr_source *s, uint64_t offset, uint64_t end)
{
	const struct gr_ram_block *block = s->batch.block;

	offset += GR_SOURCE_LOOK_AHEAD * s->page_bytes;
	if (block->host && offset < end) {
		__builtin_prefetch(block->host + offset);
	}
}

/*
 * Looks at pages that are there; stops when the batch is full, or at one that cannot be read. Returns
 * where. Writes nothing, which might have to wait: the zeros are in zero_map.
 */
static uint64_t look_locked(struct gr_source *s, uint64_t offset, uint64_t end)
	GR_REQUIRES(s->batch.block->ram->discard_lock)
{
	struct gr_source_batch *b = &s->batch;
	bool copy = must_copy_locked(s);
	uint64_t at = offset, i = 0;

	for (; at < end && b->count < b->room && b->looks < GR_SOURCE_BATCH_LOOKS;
	     at += s->page_bytes, i++) {
		uint8_t *own = s->bounce + b->count * s->page_bytes;
		const uint8_t *page = page_at(s, at, own);

		if (!page) {
			break;
		}
		b->looks++;
		look_ahead(s, at, end);
		if (gr_page_is_zero(page, s->page_bytes)) {
			b->zero_map[i / 64] |= UINT64_C(1) << i % 64;
			continue;
		}
		b->zero_map[i / 64] &= ~(UINT64_C(1) << i % 64);
		if (copy && page != own) {
			copy_racy(own, page, s->page_bytes);
			page = own;
		}
		b->direct |= !copy;
		b->offsets[b->count] = at;
		b->pages[b->count++] = page;
	}
	return at;
}

static int add_looked_at(struct gr_source *s, uint64_t offset, uint64_t end, struct gr_error *err)
{
	int rc = 0;

	for (uint64_t at = offset, i = 0; rc == 0 && at < end; at += s->page_bytes, i++) {
		if (s->batch.zero_map[i / 64] >> i % 64 & 1) {
			rc = add_zeros(s, at, s->page_bytes, err);
		}
	}
	return rc;
}

/* The next piece of a run: returns how far it goes, in *ret_at. */
static int add_piece(struct gr_source *s, uint64_t offset, uint64_t end, uint64_t *ret_at,
		     struct gr_error *err)
{
	struct gr_source_batch *b = &s->batch;
	uint64_t at;
	bool untouched;

	gr_ram_look_begin(s->batch.block);
	untouched = is_untouched_locked(s, offset, end, &at);
	if (!untouched) {
		at = look_locked(s, offset, at);
	}
	gr_ram_look_end(s->batch.block);
	*ret_at = at;
	if (!untouched && at == offset) {
		return gr_error_set(err, -EIO, "its file cannot be read");
	}
	if (!untouched) {
		return add_looked_at(s, offset, at, err);
	}
	b->hole_pages += (at - offset) / s->page_bytes;
	b->looks++;
	return add_zeros(s, offset, at - offset, err);
}

#ifdef GR_MUTANT_MIGRATE_REARM_LATE
#	define REARM_LATE true
#else
#	define REARM_LATE false
#endif

/* Nobody writes any more in the final round: nothing to watch. */
static int rearm(struct gr_source *s, uint64_t offset, uint64_t end, struct gr_error *err)
{
	if (!s->track || s->final) {
		return 0;
	}
	return gr_track_rearm(s->track, s->batch.block, offset, end - offset, err);
}

/* One run of dirty pages of the batch's block, as far as the batch has room. */
static int add_run(struct gr_source *s, uint64_t first, uint64_t pages, struct gr_error *err)
{
	struct gr_source_batch *b = &s->batch;
	uint64_t offset = (first - b->entry->first_page) * s->page_bytes;
	uint64_t at = offset, end = offset + pages * s->page_bytes, piece;
	int rc = 0;

	while (rc == 0 && at < end && b->count < b->room && b->looks < GR_SOURCE_BATCH_LOOKS) {
		uint64_t begin = at;

		piece = GR_MIN(end, at + (GR_SOURCE_BATCH_LOOKS - b->looks) * s->page_bytes);
		/* O4: before anything is read, holes included. */
		if (!REARM_LATE) {
			rc = rearm(s, begin, piece, err);
		}
		if (rc < 0) {
			return rc;
		}
		rc = add_piece(s, at, piece, &at, err);
		if (rc == 0 && REARM_LATE) {
			rc = rearm(s, begin, at, err);
		}
	}
	b->run_first[b->runs] = first;
	b->run_pages[b->runs++] = (at - offset) / s->page_bytes;
	s->cursor = first + (at - offset) / s->page_bytes;
	return rc;
}

/* Finds the block of an entry, with a reference; NULL if it is not that one any more. */
static struct gr_ram_block *entry_block(struct gr_source *s, const struct gr_source_block *e)
{
	struct gr_ram_block *block;

	gr_section_enter(&s->watch);
	block = gr_ram_block_find_rcu(s->ram, gr_ram_addr(e->first_page * s->page_bytes));
	if (block && block->incarnation == e->incarnation) {
		gr_ram_block_get(block);
	} else {
		block = NULL;
	}
	gr_section_leave(&s->watch);
	return block;
}

/* Collects runs of one block until the batch is full or the block has no more. */
static int fill_batch(struct gr_source *s, const struct gr_source_block *e, struct gr_error *err)
{
	struct gr_source_batch *b = &s->batch;
	uint64_t first, pages, end = e->first_page + e->pages;
	int rc = 0;

	while (rc == 0 && b->count < b->room && b->looks < GR_SOURCE_BATCH_LOOKS &&
	       b->runs < GR_SOURCE_BATCH_RUNS && next_run(s, &first, &pages) && first < end) {
		rc = add_run(s, first, GR_MIN(pages, end - first), err);
	}
	if (rc < 0) {
		gr_error_prefix(err, "block '%s', page %llu: ", e->id,
				(unsigned long long)(s->cursor - e->first_page));
	}
	return rc;
}

static int write_batch(struct gr_source *s, struct gr_error *err)
{
	struct gr_source_batch *b = &s->batch;
	int rc = flush_zeros(s, err);

	if (s->params.fault == GR_FAULT_LOSE_PAGE) {
		gr_source_fault_lose_page(s);
	}
	b->found = b->count;
	if (rc == 0 && gr_source_uses_xbzrle(s)) {
		rc = gr_source_xbzrle_send(s, err);
	}
	if (rc == 0 && b->count > 0 && s->multifd) {
		rc = gr_source_send_packet(s, err);
	} else if (rc == 0 && b->count > 0) {
		rc = gr_source_send_pages(s, err);
		if (rc < 0) {
			gr_error_prefix(err, "block '%s', page %llu: ", b->entry->id,
					(unsigned long long)(b->offsets[0] / s->page_bytes));
		}
	}
	/* The kernel has the bytes, or nothing is done. */
	if (rc == 0) {
		rc = gr_stream_flush(s->writer, err);
	}
	return rc;
}

static void count_batch(struct gr_source *s)
{
	struct gr_source_batch *b = &s->batch;
	struct gr_migrate_stats *stats;
	uint64_t left;

	for (uint32_t i = 0; i < b->runs; i++) {
		gr_dirty_epoch_done(s->consumer, b->run_first[i], b->run_pages[i]);
	}
	left = gr_dirty_epoch_pages(s->consumer);
	s->section_pages += b->found;
	stats = gr_progress_lock(&s->progress);
	stats->normal_pages += b->count;
	stats->zero_pages += b->zero_pages;
	stats->untouched_pages += b->hole_pages;
	stats->xbzrle_pages += b->xbzrle_pages;
	stats->xbzrle_bytes += b->xbzrle_bytes;
	stats->xbzrle_unchanged_pages += b->xbzrle_unchanged;
	stats->xbzrle_misses += b->xbzrle_misses;
	stats->xbzrle_overflows += b->xbzrle_overflows;
	stats->final_pages += s->final ? b->found + b->zero_pages : 0;
	/* Pages of a block that went in mid-round are in no total any more. */
	stats->remaining_bytes =
		GR_MIN((left + s->waiting_pages) * s->page_bytes, stats->total_bytes);
	stats->transferred_bytes = gr_source_bytes(s);
	stats->section_ns_max = s->watch.ns_max;
	stats->bandwidth_bytes_per_s = gr_model_bandwidth(&s->model);
	gr_progress_unlock(&s->progress);
}

void gr_source_forget_unplugged(struct gr_ram_block *block, uint64_t discards,
				const uint64_t *offsets, uint32_t count, uint64_t page_bytes)
{
	bool discarded;

	gr_ram_look_begin(block);
	discarded = gr_ram_discards_locked(block) != discards;
	gr_ram_look_end(block);
	for (uint32_t i = 0; discarded && i < count; i++) {
		gr_ram_forget_unplugged(block, offsets[i], page_bytes);
	}
}

static int send_from(struct gr_source *s, const struct gr_source_block *e, struct gr_error *err)
{
	struct gr_source_batch *b = &s->batch;
	uint64_t piece = gr_pacing_piece(&s->pacing, gr_source_room(s) * s->page_bytes);
	int rc;

	b->entry = e;
	b->count = b->looks = b->runs = 0;
	b->zero_bytes = b->zero_pages = b->hole_pages = 0;
	b->found = 0;
	b->xbzrle_pages = b->xbzrle_bytes = b->xbzrle_unchanged = 0;
	b->xbzrle_misses = b->xbzrle_overflows = 0;
	b->room = s->paused ? gr_source_room(s)
			    : (uint32_t)GR_MAX(piece / s->page_bytes, (uint64_t)1);
	b->block = entry_block(s, e);
	if (!b->block) {
		/* Unplugged: its pages are nobody's, the next announcement says so. */
		gr_dirty_epoch_done(s->consumer, s->cursor, e->first_page + e->pages - s->cursor);
		s->cursor = e->first_page + e->pages;
		return 1;
	}
	b->direct = false;
	gr_ram_look_begin(b->block);
	b->discards = gr_ram_discards_locked(b->block);
	gr_ram_look_end(b->block);
	rc = fill_batch(s, e, err);
	if (rc == 0) {
		rc = write_batch(s, err);
	}
	if (b->direct) {
		gr_source_forget_unplugged(b->block, b->discards, b->offsets, b->count, s->page_bytes);
	}
	gr_ram_block_put(b->block);
	if (rc < 0) {
		return rc;
	}
	count_batch(s);
	return 1;
}

int gr_source_send_batch(struct gr_source *s, struct gr_error *err)
{
	uint64_t begin = gr_clock_ns(), bytes, now;
	const struct gr_source_block *e;
	uint64_t first, pages;
	int rc;

	/* A new block's pages may be in this epoch: it is announced before any of them. */
	rc = gr_source_follow_blocks(s, err);
	if (rc < 0) {
		return rc;
	}
	do {
		if (!next_run(s, &first, &pages)) {
			if (!s->put_off) {
				return 0;
			}
			/* Then what was put off. */
			s->put_off = false;
			s->catches_up = true;
			s->cursor = s->run_end = 0;
			e = NULL;
			continue;
		}
		e = gr_source_blocks_at(&s->table, first);
		/* One that stays may have come in the middle of an epoch. */
		if (e && e->first_page <= first && stays(e)) {
			pages = GR_MIN(pages, e->first_page + e->pages - first);
			e = NULL;
		} else if (e && stays(e)) {
			pages = GR_MIN(pages, e->first_page - first);
			e = NULL;
		} else if (e && e->first_page >= first + pages) {
			e = NULL;
		}
		if (!e) {
			gr_dirty_epoch_done(s->consumer, first, pages);
			s->cursor = first + pages;
		}
	} while (!e);
	s->cursor = GR_MAX(first, e->first_page);
	if (s->cursor > first) {
		gr_dirty_epoch_done(s->consumer, first, s->cursor - first);
	}
	rc = open_section(s, err);
	if (rc == 0) {
		rc = send_from(s, e, err);
	}
	now = gr_clock_ns();
	/* Further channels go on between two batches. */
	bytes = gr_source_bytes(s) - s->bytes_seen;
	s->bytes_seen += bytes;
	gr_pacing_sent(&s->pacing, bytes, now);
	if (s->batch.found > 0 && rc > 0) {
		gr_model_sample(&s->model, s->batch.found, bytes, now - begin);
	}
	return rc;
}
