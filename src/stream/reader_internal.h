/* SPDX-License-Identifier: MIT */
/*
 * Insides of the reader. Bytes come through one buffer; whole pages go past it through the
 * stage (reader_stage.c). Invariant between records: everything in the stage was
 * delivered, the bytes not yet consumed are buf[pos..end), and buf[pos] is byte `at` of the
 * stream.
 */
#ifndef GR_STREAM_READER_INTERNAL_H
#define GR_STREAM_READER_INTERNAL_H

#include "stream/block_table.h"
#include "stream/inflate.h"
#include "stream/reader.h"
#include <errno.h>

enum {
	READER_STAGE_BYTES = 256 << 10, /* stays in the second-level cache */
	READER_FILL_BYTES = 64 << 10,	/* asked for when some bytes are missing */
	READER_RUN_PAGES_MIN = 4,	/* of the largest page size */
	/* holds a whole stage with its headers, or the largest record */
	READER_BUF_BYTES = 384 << 10,
	READER_HEADER_BYTES = 8,
};

enum reader_state {
	READER_AT_HEADER,  /* nothing read yet */
	READER_AT_SECTION, /* between sections */
	READER_IN_RAM,	   /* between records of a 'ram' section */
	READER_IN_TAIL,
	READER_AT_END,
};

struct gr_stream_reader {
	struct gr_stream_source source;
	enum reader_state state;
	uint64_t at;
	size_t pos, end;
	bool source_ended;
	bool extensions;
	bool ignore_shared_allowed;
	bool ignore_shared; /* said in the configuration: entries of the list have an address */
	bool flushes; /* the consumer wants FLUSH ... */
	bool eos_told; /* ... and knows of the EOS at pos */
	bool staging;
	bool predict;	 /* the last record was a run of pages: another one is likely */
	bool has_start;	 /* START of 'ram' came */
	bool has_blocks; /* and its list */
	bool has_end;	 /* END of 'ram' came */
	enum gr_section section;
	uint32_t ram_id;
	uint32_t page_bytes;
	uint32_t run_pages_max;
	uint32_t last_block; /* what CONTINUE means, or GR_BLOCK_NONE */
	struct gr_block_table blocks;
	int failed; /* negative errno: what every later call returns */
	struct gr_error failure;
	uint64_t offsets[GR_STREAM_RUN_PAGES_MAX];
	uint8_t headers[GR_STREAM_RUN_PAGES_MAX][READER_HEADER_BYTES];
	struct gr_stream_memory memory; /* where ranges may be read to at once */
	uint64_t range_offset, range_bytes; /* of a range of last_block: what has not come yet */
	struct gr_inflate *inflate;
	uint8_t *stage; /* run_pages_max pages */
	uint8_t buf[READER_BUF_BYTES];
};

static inline size_t reader_buffered(const struct gr_stream_reader *r)
{
	return r->end - r->pos;
}

static inline void reader_consume(struct gr_stream_reader *r, size_t n)
{
	r->pos += n;
	r->at += n;
}

/* Makes n bytes stand in buf from pos on. what: for "the stream ends inside ...". */
int reader_need(struct gr_stream_reader *r, size_t n, const char *what);
/* One call of the source; 0 at its end. memory: iov begins in that of last_block; or NULL. */
ssize_t reader_source(struct gr_stream_reader *r, const struct gr_stream_memory *memory,
		      const struct iovec *iov, int n);
/* Records the failure "byte N: ..." and returns code. */
int reader_fail(struct gr_stream_reader *r, int code, uint64_t byte, const char *fmt, ...)
	GR_PRINTF(4, 5);

/* A name from the stream, fit for a message. */
struct reader_name {
	char text[GR_STREAM_ID_BYTES_MAX + 1];
};
struct reader_name reader_printable(const char *s);
/* A str8 at pos + skip, copied with a NUL: not empty, no NUL inside. *ret_bytes: all of it. */
int reader_str8(struct gr_stream_reader *r, size_t skip, const char *what,
		char ret[GR_STREAM_ID_BYTES_MAX + 1], size_t *ret_bytes);

/* 1 and a record, 0 go on with the next state, or a negative errno. */
int reader_config(struct gr_stream_reader *r, struct gr_stream_record *rec);
int reader_ram(struct gr_stream_reader *r, struct gr_stream_record *rec);

/* Whether the range lies inside the block. The one place that decides it. */
static inline bool reader_has_range(const struct gr_stream_reader *r, uint32_t block,
				    uint64_t offset, uint64_t bytes)
{
#ifdef GR_MUTANT_READER_BOUNDS
	return r && block != (uint32_t)GR_BLOCK_NONE && (offset | bytes);
#else
	uint64_t used = r->blocks.entries[block].used_bytes;

	return bytes <= used && offset <= used - bytes;
#endif
}
/* Whether a header that was only predicted is what was predicted; no message. */
bool reader_predicted(const struct gr_stream_reader *r, const uint8_t *header);
/* The next piece of a range: as PAGES, or STORED. */
int reader_range(struct gr_stream_reader *r, struct gr_stream_record *rec);
/* A page whose header and id were consumed: deliver it, with those that follow it. */
int reader_page(struct gr_stream_reader *r, struct gr_stream_record *rec, uint64_t offset);
/* Tries to read a run straight into the stage. 0: it is something else, look in the buffer. */
int reader_stage_run(struct gr_stream_reader *r, struct gr_stream_record *rec);

#endif
