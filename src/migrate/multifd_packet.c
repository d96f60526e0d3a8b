/* SPDX-License-Identifier: MIT */
#include "migrate/multifd_packet.h"
#include "base/hook.h"
#include <errno.h>
#include <stdlib.h>
#include <string.h>

void gr_packet_context_init(struct gr_packet_context *c, const struct gr_sink *sink,
			    enum gr_multifd_compression compression)
{
	*c = (struct gr_packet_context){ .sink = *sink, .compression = compression };
	gr_mutex_init(&c->sink_lock, GR_RANK_MIGRATE);
}

void gr_packet_context_destroy(struct gr_packet_context *c)
{
	gr_mutex_destroy(&c->sink_lock);
	free(c->blocks);
}

int gr_packet_context_blocks(struct gr_packet_context *c, struct gr_stream_reader *reader,
			     struct gr_error *err)
{
	uint32_t n = gr_stream_reader_block_count(reader);
	struct gr_stream_block *copy = calloc(n ? n : 1, sizeof(*copy));

	if (!copy) {
		return gr_error_set(err, -ENOMEM, "no memory for the list of blocks");
	}
	free(c->blocks);
	c->blocks = copy;
	c->count = 0;
	for (uint32_t i = 0; i < n; i++) {
		const struct gr_stream_block *block = gr_stream_reader_block(reader, i);

		if (block->alive) {
			copy[c->count++] = *block;
		}
	}
	return 0;
}

void gr_packet_context_enter(struct gr_packet_context *c) GR_NO_TSA
{
	if (!c->sink.ops->parallel) {
		gr_mutex_lock(&c->sink_lock);
	}
}

void gr_packet_context_leave(struct gr_packet_context *c) GR_NO_TSA
{
	if (!c->sink.ops->parallel) {
		gr_mutex_unlock(&c->sink_lock);
	}
}

int gr_packet_reader_init(struct gr_packet_reader *r, struct gr_error *err)
{
	r->stage = malloc(GR_MULTIFD_DATA_BYTES);
	if (r->context->compression == GR_MULTIFD_NONE) {
		return r->stage ? 0 : gr_error_set(err, -ENOMEM, "no memory for packets");
	}
	r->packed = malloc(GR_MULTIFD_PAYLOAD_BYTES_MAX);
	if (!r->stage || !r->packed) {
		return gr_error_set(err, -ENOMEM, "no memory for packets");
	}
	return gr_multifd_codec_open(&r->codec, r->context->compression, false, 0, err);
}

void gr_packet_reader_destroy(struct gr_packet_reader *r)
{
	gr_multifd_codec_close(&r->codec);
	free(r->packed);
	free(r->stage);
}

/* Reads the whole header, or what is missing of it; 0 at an end in front of it. */
static int fill_header(struct gr_packet_reader *r, size_t bytes, struct gr_error *err)
{
	while (r->raw_bytes < bytes) {
		struct iovec iov = { r->raw + r->raw_bytes, bytes - r->raw_bytes };
		ssize_t got = gr_channel_readv(r->channel, &iov, 1, err);

		if (got < 0) {
			return (int)got;
		}
		if (got == 0) {
			return r->raw_bytes == 0
				       ? 0
				       : gr_error_set(err, -EPIPE, "it ends inside of a header");
		}
		r->raw_bytes += (size_t)got;
	}
	r->raw_bytes = 0;
	return 1;
}

int gr_packet_greeting(struct gr_packet_reader *r, struct gr_multifd_greeting *ret_g,
		       struct gr_error *err)
{
	int rc = fill_header(r, GR_MULTIFD_GREETING_BYTES, err);

	if (rc == 0) {
		return gr_error_set(err, -EPIPE, "it ends before its greeting");
	}
	return rc < 0 ? rc : gr_multifd_greeting_parse(r->raw, ret_g, err);
}

int gr_packet_next(struct gr_packet_reader *r, struct gr_error *err)
{
	uint32_t page_bytes = r->context->page_bytes;
	int rc = fill_header(r, gr_multifd_header_bytes(page_bytes), err);

	if (rc <= 0) {
		return rc;
	}
	rc = gr_multifd_header_parse(r->raw, page_bytes, &r->header, err);
	if (rc == 0 && r->header.pages > 0 && r->header.compression != r->context->compression) {
		rc = gr_error_set(err, -EBADMSG,
				  "pages with compression %s, but %s is set here: both sides must "
				  "have the same",
				  gr_multifd_compression_name(r->header.compression),
				  gr_multifd_compression_name(r->context->compression));
	}
	if (rc < 0) {
		gr_error_prefix(err, "packet %llu: ", (unsigned long long)r->packets);
		return rc;
	}
	r->packets++;
	return 1;
}

static struct gr_stream_block *find_block(struct gr_packet_reader *r)
{
	const struct gr_packet_context *c = r->context;

	for (uint32_t i = 0; i < c->count; i++) {
		uint32_t at = (r->block + i) % c->count;

		if (strcmp(c->blocks[at].id, r->header.block) == 0) {
			r->block = at;
			return &c->blocks[at];
		}
	}
	return NULL;
}

/* ---- where pages go -------------------------------------------------------------------- */

/*
 * One entry for each run of pages whose memory follows each other, in the order of the packet: in
 * the stage those that are not to be read in place. Returns how many.
 */
static int plan(struct gr_packet_reader *r, struct gr_stream_block *block)
{
	const struct gr_sink *sink = &r->context->sink;
	bool in_memory = sink->ops->parallel && sink->ops->page_memory;
	uint32_t page_bytes = r->context->page_bytes;
	int n = 0;

	memset(r->in_place, 0, sizeof(r->in_place));
	for (uint32_t i = 0; i < r->header.pages; i++) {
		uint8_t *at = in_memory ? sink->ops->page_memory(sink->opaque, block,
								 r->header.offsets[i])
					: NULL;

		if (at) {
			r->in_place[i / 64] |= UINT64_C(1) << i % 64;
		} else {
			at = r->stage + (size_t)i * page_bytes;
		}
		if (n > 0 && (uint8_t *)r->iov[n - 1].iov_base + r->iov[n - 1].iov_len == at) {
			r->iov[n - 1].iov_len += page_bytes;
		} else {
			r->iov[n++] = (struct iovec){ at, page_bytes };
		}
	}
	return n;
}

/* Reads the payload, and as much of the next header as has come. Changes iov. */
static int read_payload(struct gr_packet_reader *r, struct gr_stream_block *block, struct iovec *iov, int n,
			size_t bytes, struct gr_error *err)
{
	const struct gr_sink *sink = &r->context->sink;
	struct gr_stream_source source = gr_stream_source_channel(r->channel);
	struct gr_stream_memory memory = { .stores_only = sink->ops->stores_only,
					   .opaque = sink->opaque };
	struct iovec *end = iov + n + 1;

	iov[n] = (struct iovec){ r->raw, gr_multifd_header_bytes(r->context->page_bytes) };
	while (bytes > 0) {
		ssize_t got;
		size_t left;

#ifdef GR_MUTANT_PACKET_READ_FAULTS
		memory.stores_only = NULL;
#endif
		got = gr_stream_read_guest(&source, &memory, block, iov, (int)(end - iov), err);
		if (got <= 0) {
			return got < 0 ? (int)got
				       : gr_error_set(err, -EPIPE, "it ends inside of a packet");
		}
		left = (size_t)got;
		if (left > bytes) {
			r->raw_bytes = left - bytes;
			return 0;
		}
		bytes -= left;
		for (; left > 0 && left >= iov->iov_len; iov++) {
			left -= iov->iov_len;
		}
		iov->iov_base = (uint8_t *)iov->iov_base + left;
		iov->iov_len -= left;
	}
	return 0;
}

static bool in_place(const struct gr_packet_reader *r, uint32_t i)
{
	return (r->in_place[i / 64] >> i % 64 & 1) != 0;
}

/* It failed: bytes may have come into each page that was to be read in place. */
static void tear(struct gr_packet_reader *r, struct gr_stream_block *block)
{
	const struct gr_sink *sink = &r->context->sink;

	for (uint32_t i = 0; i < r->header.pages; i++) {
		if (in_place(r, i)) {
			sink->ops->torn(sink->opaque, block, r->header.offsets[i],
					r->context->page_bytes);
		}
	}
}

static int read_pages(struct gr_packet_reader *r, struct gr_stream_block *block, int n,
		      struct gr_error *err)
{
	struct iovec packed[2] = { { r->packed, r->header.payload_bytes } };
	int rc;

	if (r->header.compression == GR_MULTIFD_NONE) {
		return read_payload(r, block, r->iov, n, r->header.payload_bytes, err);
	}
	rc = read_payload(r, block, packed, 1, r->header.payload_bytes, err);
	if (rc < 0) {
		return rc;
	}
	return gr_multifd_unpack(&r->codec, r->packed, r->header.payload_bytes, r->iov,
				 (unsigned int)n, err);
}

/* ---- giving them to the sink ----------------------------------------------------------- */

/* Pages i to i + n - 1 of the packet are in the stage. */
static int place(struct gr_packet_reader *r, struct gr_stream_block *block, uint32_t i, uint32_t n,
		 struct gr_error *err)
{
	const struct gr_sink *sink = &r->context->sink;
	uint32_t page_bytes = r->context->page_bytes, bad = 0;
	int rc = 0;

	for (uint32_t end = i + n; rc == 0 && i < end; i += n) {
		n = GR_MIN(end - i, (uint32_t)GR_STREAM_RUN_PAGES_MAX);
		rc = sink->ops->pages(sink->opaque, block, n, &r->header.offsets[i],
				      r->stage + (size_t)i * page_bytes, &bad, err);
		if (rc < 0) {
			bad = GR_MIN(bad, n - 1);
			gr_error_prefix(err, "page 0x%llx: ",
					(unsigned long long)r->header.offsets[i + bad]);
		}
	}
	return rc;
}

static int give_pages(struct gr_packet_reader *r, struct gr_stream_block *block,
		      struct gr_error *err)
{
	const struct gr_sink *sink = &r->context->sink;
	uint64_t page_bytes = r->context->page_bytes;
	const uint64_t *offsets = r->header.offsets;
	int rc = 0;

	for (uint32_t i = 0, n; rc == 0 && i < r->header.pages; i += n) {
		bool there = in_place(r, i);

		for (n = 1; i + n < r->header.pages && in_place(r, i + n) == there &&
			    (!there || offsets[i + n] == offsets[i] + n * page_bytes);
		     n++) {
		}
		if (there) {
			sink->ops->stored(sink->opaque, block, offsets[i], n * page_bytes);
		} else {
			rc = place(r, block, i, n, err);
		}
	}
	return rc;
}

static int give_zeros(struct gr_packet_reader *r, struct gr_stream_block *block,
		      struct gr_error *err)
{
	const struct gr_sink *sink = &r->context->sink;
	const uint64_t *offsets = r->header.offsets + r->header.pages;
	uint64_t page_bytes = r->context->page_bytes;
	int rc = 0;

	for (uint32_t i = 0, n; rc == 0 && i < r->header.zero_pages; i += n) {
		for (n = 1;
		     i + n < r->header.zero_pages && offsets[i + n] == offsets[i] + n * page_bytes;
		     n++) {
		}
		rc = sink->ops->zero(sink->opaque, block, offsets[i], n * page_bytes, err);
		if (rc < 0) {
			gr_error_prefix(err, "page 0x%llx: ", (unsigned long long)offsets[i]);
		}
	}
	return rc;
}

static int give(struct gr_packet_reader *r, struct gr_stream_block *block, struct gr_error *err)
{
	int rc = give_pages(r, block, err);

	return rc < 0 ? rc : give_zeros(r, block, err);
}

static int give_in_turn(struct gr_packet_reader *r, struct gr_stream_block *block,
			struct gr_error *err)
{
	int rc;

	gr_packet_context_enter(r->context);
	rc = give(r, block, err);
	gr_packet_context_leave(r->context);
	return rc;
}

static int take(struct gr_packet_reader *r, struct gr_error *err)
{
	struct gr_stream_block *block = find_block(r);
	int rc;

	if (!block || !block->user) {
		return gr_error_set(err, -EBADMSG, "block '%s', which was not announced",
				    r->header.block);
	}
	rc = gr_multifd_header_check(&r->header, block->used_bytes, r->context->page_bytes, err);
	if (rc < 0) {
		return rc;
	}
	if (r->header.pages) {
		int n = plan(r, block);

		GR_HOOK("packet: targets chosen");
		rc = read_pages(r, block, n, err);
	}
	if (rc == 0) {
		rc = give_in_turn(r, block, err);
	}
	if (rc < 0) {
		tear(r, block);
		gr_error_prefix(err, "block '%s': ", block->id);
	}
	return rc;
}

int gr_packet_take(struct gr_packet_reader *r, struct gr_error *err)
{
	int rc = take(r, err);

	if (rc < 0) {
		gr_error_prefix(err, "packet %llu: ", (unsigned long long)r->packets - 1);
	}
	return rc;
}
