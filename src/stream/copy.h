/* SPDX-License-Identifier: MIT */
/*
 * A stream passed on: each record that the reader has checked is written again. What comes out is
 * what came in, byte for byte, if the sender lays it out as QEMU does.
 */
#ifndef GR_STREAM_COPY_H
#define GR_STREAM_COPY_H

#include "stream/reader.h"
#include "stream/writer.h"

/* Zero-initialise. */
struct gr_stream_copy {
	struct gr_stream_reader *reader;
	struct gr_stream_writer *writer;
	uint64_t normal_pages, zero_pages, xbzrle_pages;
	bool in_section; /* of 'ram', in the output */
};

/**
 * Write one record.
 * @param c   Reader and writer, borrowed.
 * @param rec What gr_stream_next() delivered.
 * @param err May be NULL.
 * @return 0 or a negative errno.
 * @errors -EOPNOTSUPP a record of our own peers, who were not told that we take it; as the writer.
 */
GR_MUST_CHECK int gr_stream_copy_record(struct gr_stream_copy *c,
					const struct gr_stream_record *rec, struct gr_error *err);

#endif
