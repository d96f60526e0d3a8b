/* SPDX-License-Identifier: MIT */
/*
 * Pages that follow each other as one record, towards a peer of ours that has said that it takes
 * them so: it can read them where they belong, as it knows of all of them before the first
 * byte. What else saves a copy is here too: pages by reference.
 */
#include "migrate/source.h"

enum { RANGE_PAGES_MIN = 4 }; /* fewer go as pages, many of them with one system call */

/*
 * Pages may go out by reference: the peer reads them later, and what the guest stores meanwhile it
 * sees or does not. A page that it sees changed was marked by that store (O1), is in a later round
 * and comes again. After the last round nothing is stored before the peer has said that everything is
 * in its place, or the machine runs on here and the peer's is given up. So only towards
 * those who say it: who does not may still have to read when the source is done.
 */
struct gr_channel_file gr_source_file_of(const struct gr_source *s, const struct gr_ram_block *block)
{
	struct gr_channel_file file = { .fd = block->fd,
					.offset = block->fd_offset,
					.host = block->host,
					.bytes = block->max_bytes };
	bool shown = (block->backing == GR_RAM_MEMFD || block->backing == GR_RAM_FILE ||
		      block->backing == GR_RAM_FD) &&
		     block->fd >= 0 && block->page_bytes == s->holes.host_page_bytes &&
		     s->params.fault == GR_FAULT_NONE; /* damage is done to what is copied */

#ifndef GR_MUTANT_SOURCE_REFERS_PRIVATE
	shown &= (gr_ram_block_flags(block) & GR_RAM_PRIVATE) == 0; /* the file has other bytes */
#endif
#ifndef GR_MUTANT_SOURCE_REFERS_UNANSWERED
	shown &= s->answer_expected;
#endif
	return shown ? file : (struct gr_channel_file){ .fd = -1 };
}

static bool uses_ranges(const struct gr_source *s)
{
	return s->page_ranges && !s->multifd && !gr_source_uses_xbzrle(s);
}

uint32_t gr_source_room(const struct gr_source *s)
{
	uint32_t bytes_max = (uint32_t)GR_SOURCE_BATCH_BYTES / (uint32_t)s->page_bytes;

	/* A packet, a range, or what is written by one system call. */
	return s->multifd || uses_ranges(s) ? GR_MIN((uint32_t)GR_SOURCE_BATCH_PAGES, bytes_max)
					    : GR_STREAM_RUN_PAGES_MAX;
}

/* How many pages from the i-th on lie side by side, in the block and in memory. */
static uint32_t run_at(const struct gr_source *s, uint32_t i)
{
	const struct gr_source_batch *b = &s->batch;
	uint32_t n = 1;

	while (i + n < b->count && b->offsets[i + n] == b->offsets[i] + n * s->page_bytes &&
	       (const uint8_t *)b->pages[i + n] ==
		       (const uint8_t *)b->pages[i] + n * s->page_bytes) {
		n++;
	}
	return n;
}

static int send_range(struct gr_source *s, uint32_t i, uint32_t n, struct gr_error *err)
{
	const struct gr_source_batch *b = &s->batch;
	struct gr_channel_file file = gr_source_file_of(s, b->block);

	return gr_stream_write_page_range(s->writer, b->entry->id, b->offsets[i], b->pages[i],
					  n * s->page_bytes, &file, err);
}

int gr_source_send_pages(struct gr_source *s, struct gr_error *err)
{
	const struct gr_source_batch *b = &s->batch;
	uint32_t first = 0, i = 0, n;
	int rc = 0;

	for (; rc == 0 && i < b->count && uses_ranges(s); i += n) {
		n = run_at(s, i);
		if (n < RANGE_PAGES_MIN) {
			continue;
		}
		rc = gr_stream_write_pages(s->writer, b->entry->id, &b->offsets[first],
					   &b->pages[first], i - first, err);
		if (rc == 0) {
			rc = send_range(s, i, n, err);
		}
		first = i + n;
	}
	return rc < 0 ? rc
		      : gr_stream_write_pages(s->writer, b->entry->id, &b->offsets[first],
					      &b->pages[first], b->count - first, err);
}
