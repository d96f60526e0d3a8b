/* SPDX-License-Identifier: MIT */
/*
 * For tests of the stream layer: bytes put together by hand (not by the writer under
 * test), a source that gives them out in any pieces, and a trace of what a reader
 * delivered that does not depend on how it was cut into records.
 */
#ifndef STREAM_KIT_H
#define STREAM_KIT_H

#include "stream/reader.h"
#include "stream/tail.h"
#include <stdio.h>
#include <stdlib.h>

/* Bytes that grow. */
struct kit_bytes {
	uint8_t *p;
	size_t n, capacity;
};

static inline void kit_raw(struct kit_bytes *b, const void *data, size_t n)
{
	if (b->n + n > b->capacity) {
		b->capacity = 2 * (b->n + n) + 4096;
		b->p = realloc(b->p, b->capacity);
		if (!b->p) {
			abort();
		}
	}
	if (n) {
		memcpy(b->p + b->n, data, n);
	}
	b->n += n;
}

static inline void kit_u8(struct kit_bytes *b, unsigned int v)
{
	uint8_t c = (uint8_t)v;

	kit_raw(b, &c, 1);
}

static inline void kit_be16(struct kit_bytes *b, unsigned int v)
{
	kit_u8(b, v >> 8);
	kit_u8(b, v & 255);
}

static inline void kit_be32(struct kit_bytes *b, uint32_t v)
{
	kit_be16(b, v >> 16);
	kit_be16(b, v & 0xffff);
}

static inline void kit_be64(struct kit_bytes *b, uint64_t v)
{
	kit_be32(b, (uint32_t)(v >> 32));
	kit_be32(b, (uint32_t)v);
}

static inline void kit_str8(struct kit_bytes *b, const char *s)
{
	kit_u8(b, (unsigned int)strlen(s));
	kit_raw(b, s, strlen(s));
}

static inline void kit_free(struct kit_bytes *b)
{
	free(b->p);
	memset(b, 0, sizeof(*b));
}

/* Frames that most streams share. The ram section has id 2. */
static inline void kit_config(struct kit_bytes *b)
{
	kit_raw(b, "QEVM\0\0\0\3\7\0\0\0\4test", 17);
}

static inline void kit_start(struct kit_bytes *b)
{
	kit_u8(b, 1);
	kit_be32(b, 2);
	kit_str8(b, "ram");
	kit_be32(b, 0);
	kit_be32(b, 4);
}

static inline void kit_part(struct kit_bytes *b, unsigned int type)
{
	kit_u8(b, type);
	kit_be32(b, 2);
}

static inline void kit_eos(struct kit_bytes *b)
{
	kit_be64(b, 0x10);
	kit_u8(b, 0x7e);
	kit_be32(b, 2);
}

/* Configuration and a START with "a" of 16 pages and "bb" of 8 pages. */
static inline void kit_two_blocks(struct kit_bytes *b)
{
	kit_config(b);
	kit_start(b);
	kit_be64(b, 0x18000 | 4);
	kit_str8(b, "a");
	kit_be64(b, 0x10000);
	kit_str8(b, "bb");
	kit_be64(b, 0x8000);
	kit_eos(b);
}

static inline void kit_page(struct kit_bytes *b, const char *id, uint64_t offset, uint32_t seed)
{
	uint8_t page[4096];

	for (size_t i = 0; i < sizeof(page); i++) {
		seed = seed * 1664525u + 1013904223u;
		page[i] = (uint8_t)(seed >> 24);
	}
	kit_be64(b, offset | 8 | (id ? 0 : 0x20));
	if (id) {
		kit_str8(b, id);
	}
	kit_raw(b, page, sizeof(page));
}

/*
 * COMPRESS_PAGE with the bytes of kit_page(), of which the zlib stream holds the first n (up to
 * 4096): header, one stored block, checksum.
 */
static inline void kit_compressed(struct kit_bytes *b, const char *id, uint64_t offset,
				  uint32_t seed, unsigned int n)
{
	struct kit_bytes page = { 0 };
	uint32_t sum = 1, sums = 0;
	const uint8_t *p;

	kit_page(&page, NULL, 0, seed);
	p = page.p + 8;
	for (unsigned int i = 0; i < n; i++) {
		sum = (sum + p[i]) % 65521;
		sums = (sums + sum) % 65521;
	}
	kit_be64(b, offset | 0x100 | (id ? 0 : 0x20));
	if (id) {
		kit_str8(b, id);
	}
	kit_be32(b, 2 + 5 + n + 4);
	kit_be16(b, 0x7801);
	kit_u8(b, 1); /* the last block, stored */
	kit_u8(b, n & 255);
	kit_u8(b, n >> 8);
	kit_u8(b, ~n & 255);
	kit_u8(b, ~n >> 8 & 255);
	kit_raw(b, p, n);
	kit_be16(b, sums);
	kit_be16(b, sum);
	kit_free(&page);
}

static inline void kit_zero(struct kit_bytes *b, const char *id, uint64_t offset, unsigned int fill)
{
	kit_be64(b, offset | 2 | (id ? 0 : 0x20));
	if (id) {
		kit_str8(b, id);
	}
	kit_u8(b, fill);
}

/* One device, EOF and its description. */
static inline void kit_tail(struct kit_bytes *b)
{
	static const char json[] =
		"{\"page_size\": 4096, \"devices\": [{\"name\": \"timer\", \"instance_id\": 0, "
		"\"vmsd_name\": \"timer\", \"version\": 2, \"fields\": []}]}";

	kit_u8(b, 4);
	kit_be32(b, 0);
	kit_str8(b, "timer");
	kit_be32(b, 0);
	kit_be32(b, 2);
	kit_raw(b, "\1\2\3\4\5\6\7\10", 8);
	kit_u8(b, 0x7e);
	kit_be32(b, 0);
	kit_u8(b, 0);
	kit_u8(b, 6);
	kit_be32(b, sizeof(json) - 1);
	kit_raw(b, json, sizeof(json) - 1);
}

/* A source: the bytes in pieces of 1..piece_max, varied by seed; 0 = whatever is asked for. */
struct kit_source {
	const uint8_t *data;
	size_t n, pos;
	size_t piece_max;
	uint64_t seed;
	int error_at_end; /* negative errno instead of the end */
};

static inline ssize_t kit_readv(void *opaque, const struct iovec *iov, int n, struct gr_error *err)
{
	struct kit_source *s = opaque;
	size_t left = s->n - s->pos, done = 0;

	if (left == 0 && s->error_at_end) {
		return gr_error_set(err, s->error_at_end, "source failed");
	}
	if (s->piece_max) {
		size_t piece;

		s->seed = s->seed * 6364136223846793005u + 1442695040888963407u;
		piece = 1 + (size_t)(s->seed >> 33) % s->piece_max;
		left = GR_MIN(left, piece);
	}
	for (int i = 0; i < n && left; i++) {
		size_t piece = GR_MIN(iov[i].iov_len, left);

		memcpy(iov[i].iov_base, s->data + s->pos, piece);
		s->pos += piece;
		left -= piece;
		done += piece;
	}
	return (ssize_t)done;
}

/* What a reader delivered, cut down to single pages and single bytes. */
struct kit_trace {
	uint64_t hash;
	uint64_t pages, zeros, deltas, eos, commands, announces, tail_bytes, records;
	/* zeros that may go on in the next record: mixed in when they do not */
	char zero_id[GR_STREAM_ID_BYTES_MAX + 1];
	uint64_t zero_from, zero_to;
	uint8_t zero_fill;
	int rc; /* of the last gr_stream_next() */
	bool tail_complete;
	struct gr_error err;
};

static inline void kit_mix(struct kit_trace *t, const void *data, size_t n)
{
	const uint8_t *p = data;

	for (size_t i = 0; i < n; i++) {
		t->hash = (t->hash ^ p[i]) * 0x100000001b3u;
	}
}

static inline void kit_mix_page(struct kit_trace *t, char kind, const char *id, uint64_t offset)
{
	kit_mix(t, &kind, 1);
	kit_mix(t, id, strlen(id) + 1);
	kit_mix(t, &offset, sizeof(offset));
}

static inline void kit_end_zeros(struct kit_trace *t)
{
	if (t->zero_to > t->zero_from) {
		kit_mix_page(t, 'Z', t->zero_id, t->zero_from);
		kit_mix(t, &t->zero_to, sizeof(t->zero_to));
		kit_mix(t, &t->zero_fill, 1);
	}
	t->zero_from = t->zero_to;
}

/* However a range of zeros is cut into records, it is mixed in as one. */
static inline void kit_mix_zeros(struct kit_trace *t, const char *id, uint64_t offset,
				 uint64_t bytes, uint8_t fill)
{
	if (t->zero_to > t->zero_from && t->zero_to == offset && t->zero_fill == fill &&
	    strcmp(t->zero_id, id) == 0) {
		t->zero_to += bytes;
		return;
	}
	kit_end_zeros(t);
	(void)snprintf(t->zero_id, sizeof(t->zero_id), "%s", id);
	t->zero_from = offset;
	t->zero_to = offset + bytes;
	t->zero_fill = fill;
}

/* Aborts when a record breaks the reader's promises: also the oracle of the fuzzer. */
static inline void kit_check(bool good)
{
	if (!good) {
		abort();
	}
}

/* Memory for pages of ranges: a window that begins again at its end; one page in four has none. */
static inline uint8_t *kit_memory(void *opaque, struct gr_stream_block *block, uint64_t offset)
{
	enum { WINDOW = 8 << 16 };
	static uint8_t window[WINDOW + (1 << 16)];

	(void)opaque;
	kit_check(block->alive && offset < block->used_bytes);
	return offset >> 12 & 4 && offset >> 12 & 1 ? NULL : window + offset % WINDOW;
}

static inline void kit_trace_record(struct kit_trace *t, struct gr_stream_reader *r,
				    const struct gr_stream_record *rec)
{
	uint32_t page = gr_stream_reader_page_bytes(r), count = gr_stream_reader_block_count(r);
	const struct gr_stream_block *b;

	t->records++;
	if (rec->kind != GR_STREAM_ZERO) {
		kit_end_zeros(t);
	}
	switch (rec->kind) {
	case GR_STREAM_CONFIG:
		kit_mix(t, "C", 1);
		kit_mix(t, rec->config.machine, strlen(rec->config.machine));
		kit_mix(t, rec->config.raw, rec->config.raw_bytes);
		break;
	case GR_STREAM_COMMAND:
		kit_mix(t, &rec->command.command, sizeof(rec->command.command));
		kit_mix(t, rec->command.data, rec->command.data_bytes);
		t->commands++;
		break;
	case GR_STREAM_RAM_START:
		kit_mix(t, &rec->ram_start.section_id, sizeof(rec->ram_start.section_id));
		break;
	case GR_STREAM_FLUSH:
		kit_check(count > 0);
		kit_mix(t, rec->flush.at_eos ? "f" : "F", 1);
		break;
	case GR_STREAM_BLOCKS:
	case GR_STREAM_ANNOUNCE:
		kit_check(rec->blocks.count == count);
		for (uint32_t i = 0; i < count; i++) {
			b = gr_stream_reader_block(r, i);
			if (b->alive) {
				kit_check(b->id[0] && b->used_bytes && b->used_bytes % page == 0 &&
					  b->used_bytes <= b->max_bytes);
				kit_mix_page(t, 'B', b->id, b->used_bytes);
				kit_mix(t, &b->gpa, sizeof(b->gpa));
			}
		}
		t->announces += rec->kind == GR_STREAM_ANNOUNCE;
		break;
	case GR_STREAM_PAGES:
		kit_check(rec->pages.block < count && rec->pages.count >= 1 &&
			  rec->pages.count <= GR_STREAM_RUN_PAGES_MAX);
		b = gr_stream_reader_block(r, rec->pages.block);
		for (uint32_t i = 0; i < rec->pages.count; i++) {
			uint64_t offset = rec->pages.offsets[i];

			kit_check(b->alive && offset % page == 0 && offset < b->used_bytes);
			kit_mix_page(t, 'P', b->id, offset);
			kit_mix(t, rec->pages.data + (size_t)i * page, page);
		}
		t->pages += rec->pages.count;
		break;
	case GR_STREAM_ZERO:
		kit_check(rec->zero.block < count && rec->zero.bytes > 0);
		b = gr_stream_reader_block(r, rec->zero.block);
		kit_check(b->alive && rec->zero.offset % page == 0 && rec->zero.bytes % page == 0 &&
			  rec->zero.bytes <= b->used_bytes &&
			  rec->zero.offset <= b->used_bytes - rec->zero.bytes);
		kit_mix_zeros(t, b->id, rec->zero.offset, rec->zero.bytes, rec->zero.fill);
		t->zeros += rec->zero.bytes / page;
		break;
	case GR_STREAM_XBZRLE: {
		uint8_t *scratch = calloc(1, page);

		kit_check(rec->xbzrle.block < count && scratch);
		b = gr_stream_reader_block(r, rec->xbzrle.block);
		kit_check(b->alive && rec->xbzrle.offset % page == 0 &&
			  rec->xbzrle.offset < b->used_bytes);
		kit_check(gr_xbzrle_decode(scratch, rec->xbzrle.payload, rec->xbzrle.payload_bytes,
					   page) == 0);
		kit_mix_page(t, 'X', b->id, rec->xbzrle.offset);
		kit_mix(t, rec->xbzrle.payload, rec->xbzrle.payload_bytes);
		free(scratch);
		t->deltas++;
		break;
	}
	case GR_STREAM_EOS:
		kit_mix(t, &rec->eos.section, sizeof(rec->eos.section));
		t->eos++;
		break;
	case GR_STREAM_TAIL:
		kit_check(rec->tail.bytes > 0);
		kit_mix(t, rec->tail.data, rec->tail.bytes);
		t->tail_bytes += rec->tail.bytes;
		break;
	case GR_STREAM_STORED:
		kit_check(rec->stored.block < count && rec->stored.bytes > 0);
		b = gr_stream_reader_block(r, rec->stored.block);
		kit_check(b->alive && rec->stored.offset % page == 0 &&
			  rec->stored.bytes % page == 0 && rec->stored.bytes <= b->used_bytes &&
			  rec->stored.offset <= b->used_bytes - rec->stored.bytes);
		for (uint64_t at = 0; at < rec->stored.bytes; at += page) {
			uint64_t offset = rec->stored.offset + at;

			kit_mix_page(t, 'P', b->id, offset);
			kit_mix(t,
				kit_memory(NULL, gr_stream_reader_block(r, rec->stored.block),
					   offset),
				page);
		}
		t->pages += rec->stored.bytes / page;
		break;
	default:
		abort();
	}
}

enum {
	KIT_EXTENSIONS = 1,
	KIT_NO_STAGING = 2,
	KIT_FLUSH = 4,
	KIT_SHARED = 8,
	KIT_MEMORY = 16, /* ranges are received into kit_memory() */
};

/* Reads a whole stream. The result is 0 only if the tail was complete, too. */
static inline struct kit_trace kit_trace(struct kit_source *source, int flags)
{
	struct gr_stream_source src = { kit_readv, source };
	struct kit_trace t = { .hash = 0xcbf29ce484222325u };
	struct gr_stream_reader *r;
	struct gr_stream_record rec;
	struct gr_tail tail;

	kit_check(gr_stream_reader_create(&src, &r, NULL) == 0);
	if (flags & KIT_EXTENSIONS) {
		gr_stream_reader_allow_extensions(r);
	}
	if (flags & KIT_SHARED) {
		gr_stream_reader_allow_ignore_shared(r);
	}
	if (flags & KIT_FLUSH) {
		gr_stream_reader_allow_flush(r);
	}
	if (flags & KIT_MEMORY) {
		struct gr_stream_memory memory = { .page = kit_memory };

		gr_stream_reader_set_memory(r, &memory);
	}
	if (flags & KIT_NO_STAGING) {
		gr_stream_reader_disable_staging(r);
	}
	gr_tail_init(&tail, 0);
	while ((t.rc = gr_stream_next(r, &rec, &t.err)) > 0) {
		kit_trace_record(&t, r, &rec);
		if (rec.kind == GR_STREAM_TAIL) {
			kit_check(gr_tail_append(&tail, rec.tail.data, rec.tail.bytes, NULL) == 0);
		}
	}
	kit_end_zeros(&t);
	if (t.rc < 0) {
		struct gr_error again = { 0 };

		kit_check(t.err.code == t.rc && t.err.msg[0]);
		kit_check(gr_stream_next(r, &rec, &again) == t.rc &&
			  strcmp(again.msg, t.err.msg) == 0);
	} else {
		t.tail_complete = gr_tail_is_complete(&tail);
		t.rc = gr_tail_finish(&tail, false, &t.err);
		kit_check((t.rc == 0) == t.tail_complete);
	}
	gr_tail_destroy(&tail);
	gr_stream_reader_free(r);
	return t;
}

static inline struct kit_trace kit_trace_bytes(const struct kit_bytes *b, int flags)
{
	struct kit_source s = { .data = b->p, .n = b->n };

	return kit_trace(&s, flags);
}

#endif
