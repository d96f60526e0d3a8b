/* SPDX-License-Identifier: MIT */
/*
 * How an epoch's pages get out. For each run of dirty pages, in this order:
 *
 *   harvested    the epoch was begun after the sync: the bits are cleared        (O2)
 *   re-armed     the trackers watch these pages again                            (O4)
 *   looked at    is it a hole? is it zero? Both are reads, so not before
 *   sent         from where they are; the kernel has taken the bytes on return
 *   done         out of the epoch: an abort would not bring them back
 *
 * The block is looked up for each batch, in a section that ends before anything blocks; the
 * reference keeps its memory while the batch is on its way, even if it is unplugged meanwhile.
 */
#include "migrate/source.h"
#include <errno.h>
#include <stdlib.h>
#include <string.h>

int gr_source_close_section(struct gr_source *s, struct gr_error *err)
{
	if (!s->section) {
		return 0;
	}
	s->section = false;
	s->section_pages = 0;
	return gr_stream_write_eos(s->writer, err);
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
	rc = open_section(s, err);
	if (rc == 0) {
		rc = gr_source_blocks_describe(&s->table, &descs, err);
	}
	if (rc == 0) {
		rc = gr_stream_write_announce(s->writer, descs, s->table.count, err);
	}
	free(descs);
	stats = gr_progress_lock(&s->progress);
	stats->blocks_announced++;
	stats->total_bytes = s->table.total_pages * s->page_bytes;
	gr_progress_unlock(&s->progress);
	return rc;
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
	}
}

/*
 * The run of dirty pages at or after the cursor. Runs can be as long as RAM and finding
 * their end costs by their length, so the end of the present one is kept; nobody but us
 * takes pages out of our epoch.
 */
static bool next_run(struct gr_source *s, uint64_t *ret_first, uint64_t *ret_pages)
{
	if (s->cursor >= s->run_end) {
		if (!gr_dirty_epoch_next(s->consumer, s->cursor, ret_first, ret_pages)) {
			return false;
		}
		s->cursor = *ret_first;
		s->run_end = *ret_first + *ret_pages;
	}
	*ret_first = s->cursor;
	*ret_pages = s->run_end - s->cursor;
	return true;
}

/* Guest memory is written while we look: each word on its own, no order wanted. */
__attribute__((no_sanitize("thread"))) static bool words_are_zero(const uint64_t *w, size_t n)
{
	const volatile uint64_t *v = w;

	/* Most pages that are not zero show it in the first of three words. */
	if (v[0] != 0 || v[n / 2] != 0 || v[n - 1] != 0) {
		return false;
	}
	for (size_t i = 0; i < n; i += 8) {
		uint64_t any = w[i] | w[i + 1] | w[i + 2] | w[i + 3] | w[i + 4] | w[i + 5] |
			       w[i + 6] | w[i + 7];

		if (any != 0) {
			return false;
		}
	}
	return true;
}

#if GR_TSAN
/* The system call's own reads would be reported; our copy's are not. */
__attribute__((no_sanitize("thread"))) static void copy_racy(uint8_t *to, const uint8_t *from,
							     size_t bytes)
{
	for (size_t i = 0; i < bytes; i += sizeof(uint64_t)) {
		*(volatile uint64_t *)(void *)(to + i) =
			*(const volatile uint64_t *)(const void *)(from + i);
	}
}

static void bounce(struct gr_source *s)
{
	for (uint32_t i = 0; i < s->batch.count; i++) {
		copy_racy(s->bounce + i * s->page_bytes, s->batch.pages[i], s->page_bytes);
		s->batch.pages[i] = s->bounce + i * s->page_bytes;
	}
}
#else
static void bounce(struct gr_source *s)
{
	(void)s;
}
#endif

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
	return rc;
}

/* Whether [offset, *ret_end) is a hole; remembers how far the block is filled. */
static bool is_hole(struct gr_source *s, uint64_t offset, uint64_t end, uint64_t *ret_end)
{
	const struct gr_ram_block *block = s->batch.block;
	struct gr_source_extent *x = &s->extent;
	uint64_t far;

	if (x->incarnation == block->incarnation && offset >= x->begin && offset < x->end) {
		*ret_end = GR_MIN(end, x->end);
		return false;
	}
	/* A page that is filled stays so until it is discarded, which costs a wasted look. */
	if (gr_holes_next(&s->holes, block, offset, s->batch.entry->used_bytes, &far)) {
		*ret_end = GR_MIN(end, far);
		return true;
	}
	*x = (struct gr_source_extent){ block->incarnation, offset, far };
	*ret_end = GR_MIN(end, far);
	return false;
}

/* Looks at pages that are there; stops when the batch is full. Returns where. */
static int look(struct gr_source *s, uint64_t offset, uint64_t end, uint64_t *ret_at,
		struct gr_error *err)
{
	struct gr_source_batch *b = &s->batch;
	uint64_t at = offset;
	int rc = 0;

	for (; rc == 0 && at < end && b->count < b->room && b->looks < GR_SOURCE_BATCH_LOOKS;
	     at += s->page_bytes) {
		const uint8_t *page = gr_source_fault_early_page(s, b->block, at);

		page = page ? page : b->block->host + at;
		b->looks++;
		if (words_are_zero((const uint64_t *)(const void *)page, s->page_bytes / 8)) {
			rc = add_zeros(s, at, s->page_bytes, err);
			continue;
		}
		b->offsets[b->count] = at;
		b->pages[b->count++] = page;
	}
	*ret_at = at;
	return rc;
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
		if (is_hole(s, at, piece, &piece)) {
			rc = add_zeros(s, at, piece - at, err);
			b->hole_pages += (piece - at) / s->page_bytes;
			b->looks++;
			at = piece;
		} else {
			rc = look(s, at, piece, &at, err);
		}
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
	bounce(s);
	if (rc == 0 && b->count > 0) {
		rc = gr_stream_write_pages(s->writer, b->entry->id, b->offsets, b->pages, b->count,
					   err);
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
	s->section_pages += b->count;
	stats = gr_progress_lock(&s->progress);
	stats->normal_pages += b->count;
	stats->zero_pages += b->zero_pages;
	stats->untouched_pages += b->hole_pages;
	stats->final_pages += s->final ? b->count + b->zero_pages : 0;
	stats->remaining_bytes = left * s->page_bytes;
	stats->transferred_bytes = gr_stream_writer_bytes(s->writer);
	stats->section_ns_max = s->watch.ns_max;
	stats->bandwidth_bytes_per_s = gr_model_bandwidth(&s->model);
	gr_progress_unlock(&s->progress);
}

static int send_from(struct gr_source *s, const struct gr_source_block *e, struct gr_error *err)
{
	struct gr_source_batch *b = &s->batch;
	uint64_t piece = gr_pacing_piece(&s->pacing, GR_SOURCE_BATCH_PAGES * s->page_bytes);
	int rc;

	b->entry = e;
	b->count = b->looks = b->runs = 0;
	b->zero_bytes = b->zero_pages = b->hole_pages = 0;
	b->room = s->paused ? GR_SOURCE_BATCH_PAGES
			    : (uint32_t)GR_MAX(piece / s->page_bytes, (uint64_t)1);
	b->block = entry_block(s, e);
	if (!b->block) {
		/* Unplugged: its pages are nobody's, the next announcement says so. */
		gr_dirty_epoch_done(s->consumer, s->cursor, e->first_page + e->pages - s->cursor);
		s->cursor = e->first_page + e->pages;
		return 1;
	}
	rc = fill_batch(s, e, err);
	if (rc == 0) {
		rc = write_batch(s, err);
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
	uint64_t bytes = gr_stream_writer_bytes(s->writer), begin = gr_clock_ns(), now;
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
			return 0;
		}
		e = gr_source_blocks_at(&s->table, first);
		if (!e || e->first_page >= first + pages) {
			gr_dirty_epoch_done(s->consumer, first, pages);
			s->cursor = first + pages;
			e = NULL;
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
	bytes = gr_stream_writer_bytes(s->writer) - bytes;
	gr_pacing_sent(&s->pacing, bytes, now);
	if (s->batch.count > 0 && rc > 0) {
		gr_model_sample(&s->model, bytes, now - begin);
	}
	return rc;
}
