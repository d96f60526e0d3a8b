/* SPDX-License-Identifier: MIT */
/*
 * Staged scatter. After a page another page of the same block is likely, so the next read
 * asks for { header, page } many times over: headers into a small array, pages one behind
 * the other into the stage. Only then are the headers looked at. What was guessed right is
 * a run of pages, in place for the consumer; from the first wrong guess on the bytes are
 * moved together again into the buffer and parsed there. A page's bytes are never
 * delivered before its header was checked, and memory of the guest is never the target
 * of a read.
 *
 * A read asks for much and takes what is there. It is repeated only while the first header
 * or the page of a checked header is incomplete: those bytes must come, whatever the peer
 * waits for.
 */
#include "stream/reader_internal.h"
#include <stdio.h>

bool reader_predicted(const struct gr_stream_reader *r, const uint8_t *header)
{
	uint64_t word = gr_get_be64(header);
	uint64_t mask = r->page_bytes - 1;

#ifdef GR_MUTANT_STAGED_HEADERS
	return true;
#endif
	return (word & mask) == (GR_RAM_PAGE | GR_RAM_CONTINUE) &&
	       reader_has_range(r, r->last_block, word & ~mask, r->page_bytes);
}

/* The place of byte n of the sequence header 0, page 0, header 1, ...; *left: to its end. */
static uint8_t *stage_at(struct gr_stream_reader *r, size_t n, size_t *left)
{
	size_t slot_bytes = READER_HEADER_BYTES + r->page_bytes;
	size_t slot = n / slot_bytes, in_slot = n % slot_bytes;

	if (in_slot < READER_HEADER_BYTES) {
		*left = READER_HEADER_BYTES - in_slot;
		return &r->headers[slot][in_slot];
	}
	in_slot -= READER_HEADER_BYTES;
	*left = r->page_bytes - in_slot;
	return r->stage + slot * r->page_bytes + in_slot;
}

/* Copies n bytes from the buffer to place `to` of the sequence. */
static void stage_put(struct gr_stream_reader *r, size_t to, size_t n)
{
	while (n) {
		size_t left;
		uint8_t *place = stage_at(r, to, &left);
		size_t piece = GR_MIN(left, n);

		memcpy(place, r->buf + r->pos, piece);
		r->pos += piece;
		to += piece;
		n -= piece;
	}
}

/* Closes the gaps: bytes from..to of the sequence go to the (empty) buffer. */
static void unstage(struct gr_stream_reader *r, size_t from, size_t to)
{
	GR_ASSERT(r->pos == r->end && to - from <= READER_BUF_BYTES);
	r->pos = 0;
	r->end = 0;
	while (from < to) {
		size_t left;
		const uint8_t *place = stage_at(r, from, &left);
		size_t piece = GR_MIN(left, to - from);

		memcpy(r->buf + r->end, place, piece);
		r->end += piece;
		from += piece;
	}
}

/* Reads into the sequence from place `filled` on. */
static ssize_t stage_read(struct gr_stream_reader *r, size_t filled)
{
	size_t slot_bytes = READER_HEADER_BYTES + r->page_bytes;
	size_t slot = filled / slot_bytes, left;
	struct iovec iov[2 * GR_STREAM_RUN_PAGES_MAX];
	int n = 0;

	/* what is left of the slot that has begun, then whole ones */
	while (filled % slot_bytes || n == 0) {
		uint8_t *place = stage_at(r, filled, &left);

		iov[n++] = (struct iovec){ place, left };
		filled += left;
	}
	while (++slot < r->run_pages_max) {
		iov[n++] = (struct iovec){ r->headers[slot], READER_HEADER_BYTES };
		iov[n++] = (struct iovec){ r->stage + slot * r->page_bytes, r->page_bytes };
	}
	return reader_source(r, NULL, iov, n);
}

static int deliver(struct gr_stream_reader *r, struct gr_stream_record *rec, uint32_t count)
{
	uint64_t mask = r->page_bytes - 1;

	for (uint32_t i = 0; i < count; i++) {
		r->offsets[i] = gr_get_be64(r->headers[i]) & ~mask;
	}
	rec->kind = GR_STREAM_PAGES;
	rec->pages.block = r->last_block;
	rec->pages.count = count;
	rec->pages.offsets = r->offsets;
	rec->pages.data = r->stage;
	r->predict = true;
	return 1;
}

/*
 * The first `filled` bytes of the sequence are in place and the buffer is empty; r->at
 * belongs to place `from`. Reads on until the first page is whole.
 */
static int run(struct gr_stream_reader *r, struct gr_stream_record *rec, size_t from, size_t filled)
{
	size_t slot_bytes = READER_HEADER_BYTES + r->page_bytes;
	uint32_t count = 0;

	r->pos = 0;
	r->end = 0;
#ifdef GR_MUTANT_STAGED_WAITS
	while (filled < r->run_pages_max * slot_bytes) {
#else
	while (filled < slot_bytes) {
#endif
		ssize_t got;

		if (filled >= READER_HEADER_BYTES && !reader_predicted(r, r->headers[0])) {
			break;
		}
		got = stage_read(r, filled);
		if (got < 0) {
			return (int)got;
		}
		if (got == 0) {
			break;
		}
		filled += (size_t)got;
	}
	while (count < filled / slot_bytes && reader_predicted(r, r->headers[count])) {
		count++;
	}
	if (count == 0 && from > 0) {
		/* Only the end of the source brings us here: the header was checked before. */
		return reader_fail(r, -EPIPE, r->at + (filled - from),
				   "the stream ends inside a page of block '%s'",
				   reader_printable(r->blocks.entries[r->last_block].id).text);
	}
	unstage(r, count ? count * slot_bytes : from, filled);
	if (count == 0) {
		return 0;
	}
	r->at += count * slot_bytes - from;
	return deliver(r, rec, count);
}

int reader_stage_run(struct gr_stream_reader *r, struct gr_stream_record *rec)
{
	size_t have = reader_buffered(r);

	if (have >= READER_HEADER_BYTES && !reader_predicted(r, r->buf + r->pos)) {
		return 0;
	}
	stage_put(r, 0, have);
	return run(r, rec, 0, have);
}

/* Whole pages that stand in the buffer already. */
static uint32_t take_buffered(struct gr_stream_reader *r, uint32_t count)
{
	size_t slot_bytes = READER_HEADER_BYTES + r->page_bytes;

	while (count < r->run_pages_max && reader_buffered(r) >= slot_bytes &&
	       reader_predicted(r, r->buf + r->pos)) {
		stage_put(r, count * slot_bytes, slot_bytes);
		r->at += slot_bytes;
		count++;
	}
	return count;
}

int reader_page(struct gr_stream_reader *r, struct gr_stream_record *rec, uint64_t offset)
{
	size_t have = GR_MIN(reader_buffered(r), (size_t)r->page_bytes);

	gr_put_be64(r->headers[0], offset | GR_RAM_PAGE | GR_RAM_CONTINUE);
	if (!r->staging) {
		char what[GR_ERROR_MSG_BYTES];
		int code;

		(void)snprintf(what, sizeof(what), "a page of block '%s'",
			       reader_printable(r->blocks.entries[r->last_block].id).text);
		code = reader_need(r, r->page_bytes, what);
		if (code < 0) {
			return code;
		}
		have = r->page_bytes;
	}
	stage_put(r, READER_HEADER_BYTES, have);
	if (have < r->page_bytes) {
		/* r->at stands behind the header, which is place 8 of the sequence */
		return run(r, rec, READER_HEADER_BYTES, READER_HEADER_BYTES + have);
	}
	r->at += have;
	return deliver(r, rec, r->staging ? take_buffered(r, 1) : 1);
}
