/* SPDX-License-Identifier: MIT */
/*
 * Ranges of pages, between peers of ours. Their header says all there is to check before the first
 * byte of them comes, so they may be read where they belong. What the consumer has no memory for
 * is read into the stage and delivered as pages.
 */
#include "base/hook.h"
#include "stream/reader_internal.h"

enum {
	PIECE_BYTES = 1 << 20, /* at once, where they belong */
	AHEAD_BYTES = 64,      /* the next header; more would be pages that want to be copied again */
};

static uint8_t *memory_at(struct gr_stream_reader *r, uint64_t offset)
{
	if (!r->memory.page) {
		return NULL;
	}
	return r->memory.page(r->memory.opaque, &r->blocks.entries[r->last_block], offset);
}

/* Reads so many bytes of pages, and what has come of the next header. memory: to is there; or NULL. */
static int fill(struct gr_stream_reader *r, const struct gr_stream_memory *memory, uint8_t *to,
		size_t bytes)
{
	size_t have = GR_MIN(reader_buffered(r), bytes);

	memcpy(to, r->buf + r->pos, have);
	reader_consume(r, have);
	while (have < bytes) {
		struct iovec iov[2] = { { to + have, bytes - have }, { r->buf, AHEAD_BYTES } };
		ssize_t got;

		r->pos = 0;
		r->end = 0;
		GR_HOOK(memory ? "range: target chosen" : "range: through the stage");
#ifdef GR_MUTANT_RANGE_READ_FAULTS
		memory = NULL;
#endif
		got = reader_source(r, memory, iov, 2);
		if (got <= 0) {
			return got < 0 ? (int)got
				       : reader_fail(r, -EPIPE, r->at,
						     "the stream ends inside a page of block '%s'",
						     reader_printable(r->blocks.entries[r->last_block].id)
							     .text);
		}
		r->at += GR_MIN((size_t)got, bytes - have);
		if ((size_t)got > bytes - have) {
			r->end = (size_t)got - (bytes - have);
			got = (ssize_t)(bytes - have);
		}
		have += (size_t)got;
	}
	return 0;
}

static void deliver_pages(struct gr_stream_reader *r, struct gr_stream_record *rec, uint32_t count)
{
	for (uint32_t i = 0; i < count; i++) {
		r->offsets[i] = r->range_offset + (uint64_t)i * r->page_bytes;
	}
	rec->kind = GR_STREAM_PAGES;
	rec->pages.block = r->last_block;
	rec->pages.count = count;
	rec->pages.offsets = r->offsets;
	rec->pages.data = r->stage;
}

int reader_range(struct gr_stream_reader *r, struct gr_stream_record *rec)
{
	uint8_t *memory = memory_at(r, r->range_offset);
	uint64_t max = memory ? PIECE_BYTES : (uint64_t)r->run_pages_max * r->page_bytes;
	size_t bytes = r->page_bytes;
	int code;

	max = GR_MIN(max, r->range_bytes);
	while (bytes < max) {
		const uint8_t *next = memory_at(r, r->range_offset + bytes);

		if (memory ? next != memory + bytes : next != NULL) {
			break;
		}
		bytes += r->page_bytes;
	}
	code = memory ? fill(r, &r->memory, memory, bytes) : fill(r, NULL, r->stage, bytes);
	if (code < 0) {
		if (memory && r->memory.torn) {
			r->memory.torn(r->memory.opaque, &r->blocks.entries[r->last_block],
				       r->range_offset, bytes);
		}
		return code;
	}
	if (memory) {
		rec->kind = GR_STREAM_STORED;
		rec->stored.block = r->last_block;
		rec->stored.offset = r->range_offset;
		rec->stored.bytes = bytes;
	} else {
		deliver_pages(r, rec, (uint32_t)(bytes / r->page_bytes));
	}
	r->range_offset += bytes;
	r->range_bytes -= bytes;
	return 1;
}
