/* SPDX-License-Identifier: MIT */
#include "stream/copy.h"
#include <errno.h>
#include <stdlib.h>
#include <string.h>

static const char *block_id(const struct gr_stream_copy *c, uint32_t block)
{
	return gr_stream_reader_block(c->reader, block)->id;
}

static int copy_blocks(struct gr_stream_copy *c, struct gr_error *err)
{
	uint32_t n = gr_stream_reader_block_count(c->reader);
	struct gr_stream_block_desc *list = calloc(n + 1u, sizeof(*list));
	int rc;

	if (!list) {
		return gr_error_set(err, -ENOMEM, "out of memory");
	}
	for (uint32_t i = 0; i < n; i++) {
		const struct gr_stream_block *b = gr_stream_reader_block(c->reader, i);

		list[i] = (struct gr_stream_block_desc){
			.id = b->id, .used_bytes = b->used_bytes, .gpa = b->gpa
		};
	}
	rc = gr_stream_write_start(c->writer, gr_stream_reader_section_id(c->reader), list, n, err);
	free(list);
	c->in_section = true;
	return rc;
}

static int copy_pages(struct gr_stream_copy *c, const struct gr_stream_record *rec,
		      struct gr_error *err)
{
	const void *page[GR_STREAM_RUN_PAGES_MAX];
	size_t page_bytes = gr_stream_reader_page_bytes(c->reader);

	for (uint32_t i = 0; i < rec->pages.count; i++) {
		page[i] = rec->pages.data + i * page_bytes;
	}
	c->normal_pages += rec->pages.count;
	return gr_stream_write_pages(c->writer, block_id(c, rec->pages.block), rec->pages.offsets,
				     page, rec->pages.count, err);
}

/* Pages that are filled with another byte than 0: newer receivers take them as pages only. */
static int copy_filled(struct gr_stream_copy *c, const struct gr_stream_record *rec,
		       uint64_t offset, struct gr_error *err)
{
	size_t page_bytes = gr_stream_reader_page_bytes(c->reader);
	void *page = malloc(page_bytes);
	const void *const pages[] = { page };
	int rc;

	if (!page) {
		return gr_error_set(err, -ENOMEM, "out of memory");
	}
	memset(page, rec->zero.fill, page_bytes);
	c->normal_pages++;
	rc = gr_stream_write_pages(c->writer, block_id(c, rec->zero.block), &offset, pages, 1, err);
	free(page);
	return rc;
}

static int copy_zeros(struct gr_stream_copy *c, const struct gr_stream_record *rec,
		      struct gr_error *err)
{
	uint64_t page_bytes = gr_stream_reader_page_bytes(c->reader);
	int rc = 0;

	for (uint64_t at = 0; at < rec->zero.bytes && rc == 0; at += page_bytes) {
		if (rec->zero.fill != 0) {
			rc = copy_filled(c, rec, rec->zero.offset + at, err);
			continue;
		}
		c->zero_pages++;
		rc = gr_stream_write_zero(c->writer, block_id(c, rec->zero.block),
					  rec->zero.offset + at, err);
	}
	return rc;
}

static int copy_in_section(struct gr_stream_copy *c, const struct gr_stream_record *rec,
			   struct gr_error *err)
{
	if (!c->in_section) {
		int rc = gr_stream_write_section(c->writer, gr_stream_reader_section(c->reader),
						 err);

		if (rc < 0) {
			return rc;
		}
		c->in_section = true;
	}
	if (rec->kind == GR_STREAM_PAGES) {
		return copy_pages(c, rec, err);
	}
	if (rec->kind == GR_STREAM_ZERO) {
		return copy_zeros(c, rec, err);
	}
	if (rec->kind == GR_STREAM_XBZRLE) {
		c->xbzrle_pages++;
		return gr_stream_write_xbzrle(c->writer, block_id(c, rec->xbzrle.block),
					      rec->xbzrle.offset, rec->xbzrle.payload,
					      rec->xbzrle.payload_bytes, err);
	}
	if (rec->kind == GR_STREAM_FLUSH) {
		return rec->flush.at_eos ? gr_stream_write_eos_word(c->writer, err)
					 : gr_stream_write_flush_record(c->writer, err);
	}
	c->in_section = false;
	return gr_stream_write_eos(c->writer, err);
}

int gr_stream_copy_record(struct gr_stream_copy *c, const struct gr_stream_record *rec,
			  struct gr_error *err)
{
	switch (rec->kind) {
	case GR_STREAM_CONFIG:
		gr_stream_writer_set_page_bytes(c->writer, rec->config.page_bytes);
		if (rec->config.ignore_shared) {
			gr_stream_writer_set_ignore_shared(c->writer);
		}
		return gr_stream_write_raw(c->writer, rec->config.raw, rec->config.raw_bytes, err);
	case GR_STREAM_COMMAND:
		return gr_stream_write_command(c->writer, rec->command.command, rec->command.data,
					       rec->command.data_bytes, err);
	case GR_STREAM_RAM_START:
		return 0; /* goes out with the list of blocks */
	case GR_STREAM_BLOCKS:
		return copy_blocks(c, err);
	case GR_STREAM_PAGES:
	case GR_STREAM_ZERO:
	case GR_STREAM_XBZRLE:
	case GR_STREAM_FLUSH:
	case GR_STREAM_EOS:
		return copy_in_section(c, rec, err);
	case GR_STREAM_TAIL:
		return gr_stream_write_raw(c->writer, rec->tail.data, rec->tail.bytes, err);
	case GR_STREAM_STORED: /* it has no memory */
	case GR_STREAM_ANNOUNCE:
		break;
	}
	return gr_error_set(err, -EOPNOTSUPP, "a list of blocks that changes cannot be passed on");
}
