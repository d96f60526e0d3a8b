/* SPDX-License-Identifier: MIT */
/* Records of the 'ram' section, version 4. */
#include "stream/reader_internal.h"
#include <inttypes.h>

/* A page record after its header: which block it means, and what came of it. */
struct page_record {
	uint64_t byte;	 /* where in the stream */
	uint64_t offset; /* in the block */
	size_t n;	 /* bytes of header and id */
	uint32_t block;
};

static const char *block_name(const struct gr_stream_reader *r, uint32_t block)
{
	return r->blocks.entries[block].id;
}

static int bad_page(struct gr_stream_reader *r, const struct page_record *p, int code,
		    const char *what)
{
	return reader_fail(r, code, p->byte, "block '%s', page 0x%" PRIx64 ": %s",
			   reader_printable(block_name(r, p->block)).text, p->offset, what);
}

static int check_range(struct gr_stream_reader *r, const struct page_record *p, uint64_t bytes)
{
	if (reader_has_range(r, p->block, p->offset, bytes)) {
		return 0;
	}
	return reader_fail(r, -EBADMSG, p->byte,
			   "block '%s', page 0x%" PRIx64 ": 0x%" PRIx64
			   " bytes there go past the end, 0x%" PRIx64,
			   reader_printable(block_name(r, p->block)).text, p->offset, bytes,
			   r->blocks.entries[p->block].used_bytes);
}

/* Block and offset of a record whose header stands at pos; consumes nothing. */
static int locate(struct gr_stream_reader *r, uint64_t word, struct page_record *p)
{
	char id[GR_STREAM_ID_BYTES_MAX + 1];
	uint64_t mask = r->page_bytes - 1;
	size_t n;
	int code;

	p->byte = r->at;
	p->offset = word & ~mask;
	p->n = READER_HEADER_BYTES;
	p->block = r->last_block;
	if (word & GR_RAM_CONTINUE) {
		if (p->block == (uint32_t)GR_BLOCK_NONE) {
			return reader_fail(r, -EBADMSG, p->byte,
					   "page 0x%" PRIx64
					   " of the same block as before, but there "
					   "was none",
					   p->offset);
		}
		return 0;
	}
	code = reader_str8(r, p->n, "a block's id", id, &n);
	if (code < 0) {
		return code;
	}
	p->n += n;
	if (p->block == (uint32_t)GR_BLOCK_NONE || strcmp(block_name(r, p->block), id) != 0) {
		p->block = gr_block_table_find(&r->blocks, id);
	}
	if (p->block == (uint32_t)GR_BLOCK_NONE) {
		return reader_fail(r, -EBADMSG, p->byte,
				   "page 0x%" PRIx64 " of block '%s', which was not announced",
				   p->offset, reader_printable(id).text);
	}
	return 0;
}

static int next_page(struct gr_stream_reader *r, struct gr_stream_record *rec,
		     struct page_record *p)
{
	int code = check_range(r, p, r->page_bytes);

	if (code < 0) {
		return code;
	}
	r->last_block = p->block;
	reader_consume(r, p->n);
	return reader_page(r, rec, p->offset);
}

static int next_zero(struct gr_stream_reader *r, struct gr_stream_record *rec,
		     struct page_record *p)
{
	enum { CONTINUED_BYTES = READER_HEADER_BYTES + 1 };
	int code = check_range(r, p, r->page_bytes);
	uint64_t bytes = r->page_bytes;
	uint8_t fill;

	if (code == 0) {
		code = reader_need(r, p->n + 1, "a zero page");
	}
	if (code < 0) {
		return code;
	}
	fill = r->buf[r->pos + p->n];
	r->last_block = p->block;
	reader_consume(r, p->n + 1);
	/* Those that follow and are here already: a run costs the consumer one record. */
	while (reader_buffered(r) >= CONTINUED_BYTES &&
	       gr_get_be64(r->buf + r->pos) ==
		       ((p->offset + bytes) | GR_RAM_ZERO | GR_RAM_CONTINUE) &&
	       r->buf[r->pos + READER_HEADER_BYTES] == fill &&
	       reader_has_range(r, p->block, p->offset + bytes, r->page_bytes)) {
		bytes += r->page_bytes;
		reader_consume(r, CONTINUED_BYTES);
	}
	rec->kind = GR_STREAM_ZERO;
	rec->zero.block = p->block;
	rec->zero.fill = fill;
	rec->zero.offset = p->offset;
	rec->zero.bytes = bytes;
	return 1;
}

/* A range's length, checked; its header is consumed. */
static int range_header(struct gr_stream_reader *r, struct page_record *p, uint64_t *ret_bytes)
{
	int code = reader_need(r, p->n + 8, "the header of a range");
	uint64_t bytes;

	if (code < 0) {
		return code;
	}
	bytes = gr_get_be64(r->buf + r->pos + p->n);
	if (bytes == 0 || !GR_IS_ALIGNED(bytes, (uint64_t)r->page_bytes)) {
		return bad_page(r, p, -EBADMSG, "a range that is not whole pages");
	}
#ifndef GR_MUTANT_READER_RANGE_UNCHECKED
	code = check_range(r, p, bytes);
	if (code < 0) {
		return code;
	}
#endif
	r->last_block = p->block;
	reader_consume(r, p->n + 8);
	*ret_bytes = bytes;
	return 0;
}

static int next_page_range(struct gr_stream_reader *r, struct gr_stream_record *rec,
			   struct page_record *p)
{
	int code = range_header(r, p, &r->range_bytes);

	r->range_offset = p->offset;
	return code < 0 ? code : reader_range(r, rec);
}

static int next_zero_range(struct gr_stream_reader *r, struct gr_stream_record *rec,
			   struct page_record *p)
{
	uint64_t bytes = 0;
	int code = range_header(r, p, &bytes);

	if (code < 0) {
		return code;
	}
	rec->kind = GR_STREAM_ZERO;
	rec->zero.block = p->block;
	rec->zero.offset = p->offset;
	rec->zero.bytes = bytes;
	return 1;
}

static int next_xbzrle(struct gr_stream_reader *r, struct gr_stream_record *rec,
		       struct page_record *p)
{
	int code = check_range(r, p, r->page_bytes);
	const uint8_t *payload;
	uint16_t bytes;

	if (code == 0) {
		code = reader_need(r, p->n + 3, "an XBZRLE page");
	}
	if (code < 0) {
		return code;
	}
	if (r->buf[r->pos + p->n] != GR_XBZRLE_ENCODING) {
		return bad_page(r, p, -EBADMSG, "an XBZRLE encoding that is not known");
	}
	bytes = gr_get_be16(r->buf + r->pos + p->n + 1);
	if (bytes > r->page_bytes) {
		return bad_page(r, p, -EBADMSG, "an XBZRLE delta longer than the page");
	}
	code = reader_need(r, p->n + 3 + bytes, "an XBZRLE page");
	if (code < 0) {
		return code;
	}
	payload = r->buf + r->pos + p->n + 3;
	if (gr_xbzrle_check(payload, bytes, r->page_bytes) < 0) {
		return bad_page(r, p, -EBADMSG, "an XBZRLE delta that does not decode");
	}
	r->last_block = p->block;
	reader_consume(r, p->n + 3 + bytes);
	rec->kind = GR_STREAM_XBZRLE;
	rec->xbzrle.block = p->block;
	rec->xbzrle.offset = p->offset;
	rec->xbzrle.payload = payload;
	rec->xbzrle.payload_bytes = bytes;
	return 1;
}

/* Becomes a page here, for which the stage has room: whoever takes records need not know. */
static int next_compressed(struct gr_stream_reader *r, struct gr_stream_record *rec,
			   struct page_record *p)
{
	int code = check_range(r, p, r->page_bytes);
	uint32_t bytes;

	if (code == 0) {
		code = reader_need(r, p->n + 4, "a compressed page");
	}
	if (code < 0) {
		return code;
	}
	bytes = gr_get_be32(r->buf + r->pos + p->n);
	if (bytes > gr_deflated_bytes_max(r->page_bytes)) {
		return bad_page(r, p, -EBADMSG, "a compressed page longer than any can be");
	}
	code = reader_need(r, p->n + 4 + bytes, "a compressed page");
	if (code < 0) {
		return code;
	}
	code = gr_inflate_page(&r->inflate, r->buf + r->pos + p->n + 4, bytes, r->stage,
			       r->page_bytes);
	if (code < 0) {
		return bad_page(r, p, code,
				code == -EOPNOTSUPP
					? "is compressed, and this was built without zlib"
				: code == -ENOMEM ? "out of memory for decompression"
						  : "a compressed page that is not one page");
	}
	r->last_block = p->block;
	r->offsets[0] = p->offset;
	reader_consume(r, p->n + 4 + bytes);
	rec->kind = GR_STREAM_PAGES;
	rec->pages.block = p->block;
	rec->pages.count = 1;
	rec->pages.offsets = r->offsets;
	rec->pages.data = r->stage;
	return 1;
}

static int check_length(struct gr_stream_reader *r, uint64_t byte, const char *id, uint64_t bytes)
{
	if (bytes == 0 || bytes > GR_STREAM_BLOCK_BYTES_MAX ||
	    !GR_IS_ALIGNED(bytes, (uint64_t)r->page_bytes)) {
		return reader_fail(r, -EBADMSG, byte,
				   "block '%s': an impossible length, 0x%" PRIx64,
				   reader_printable(id).text, bytes);
	}
	return 0;
}

static int commit_blocks(struct gr_stream_reader *r, uint64_t byte)
{
	const char *id = "";
	int code = gr_block_table_commit(&r->blocks, &id);

	switch (code) {
	case 0:
		return 0;
	case -EEXIST:
		return reader_fail(r, -EBADMSG, byte, "block '%s' is in the list twice",
				   reader_printable(id).text);
	case -EINVAL:
		return reader_fail(r, -EBADMSG, byte,
				   "block '%s' changed its maximum but not its incarnation",
				   reader_printable(id).text);
	case -ENOSPC:
		return reader_fail(r, -E2BIG, byte, "too many blocks");
	default:
		return reader_fail(r, code, byte, "out of memory for the list of blocks");
	}
}

/* MEM_SIZE: the list of START. It ends when the lengths make up the total. */
static int next_blocks(struct gr_stream_reader *r, struct gr_stream_record *rec, uint64_t total)
{
	uint64_t list_byte = r->at, left = total;

	if (r->section != GR_SECTION_START || r->has_blocks) {
		return reader_fail(r, -EBADMSG, r->at, "a second list of blocks");
	}
	reader_consume(r, READER_HEADER_BYTES);
	while (left) {
		struct gr_stream_block *b;
		uint64_t byte = r->at;
		size_t n, fixed = r->ignore_shared ? 16 : 8;
		int code;

		if (r->blocks.pending_count == GR_STREAM_BLOCKS_MAX) {
			return reader_fail(r, -E2BIG, byte, "more than %d blocks",
					   GR_STREAM_BLOCKS_MAX);
		}
		b = gr_block_table_pend(&r->blocks);
		if (!b) {
			return reader_fail(r, -ENOMEM, byte,
					   "out of memory for the list of blocks");
		}
		code = reader_str8(r, 0, "a block's id", b->id, &n);
		if (code == 0) {
			code = reader_need(r, n + fixed, "the list of blocks");
		}
		if (code < 0) {
			return code;
		}
		b->used_bytes = gr_get_be64(r->buf + r->pos + n);
		b->max_bytes = b->used_bytes;
		b->gpa = r->ignore_shared ? gr_get_be64(r->buf + r->pos + n + 8)
					  : GR_STREAM_GPA_NONE;
		code = check_length(r, byte, b->id, b->used_bytes);
		if (code < 0) {
			return code;
		}
		if (b->used_bytes > left) {
			return reader_fail(
				r, -EBADMSG, byte,
				"block '%s': the lengths exceed the list's total, 0x%" PRIx64,
				reader_printable(b->id).text, total);
		}
		left -= b->used_bytes;
		reader_consume(r, n + fixed);
	}
	r->has_blocks = true;
	rec->kind = GR_STREAM_BLOCKS;
	rec->blocks.total_bytes = total;
	if (commit_blocks(r, list_byte) < 0) {
		return r->failed;
	}
	rec->blocks.count = r->blocks.count;
	return 1;
}

/* Which file the block is, behind its entry. */
static int announced_file(struct gr_stream_reader *r, struct gr_stream_block *b)
{
	const uint8_t *p;
	int code = reader_need(r, GR_RAM_ANNOUNCE_FILE_BYTES, "an announcement of blocks");

	if (code < 0) {
		return code;
	}
	p = r->buf + r->pos;
	memcpy(b->file.boot, p, GR_BOOT_ID_BYTES);
	b->file.device = gr_get_be64(p + 16);
	b->file.inode = gr_get_be64(p + 24);
	b->file_offset = gr_get_be64(p + 32);
	reader_consume(r, GR_RAM_ANNOUNCE_FILE_BYTES);
	return 0;
}

static int announced_block(struct gr_stream_reader *r, struct gr_stream_block *b)
{
	uint64_t byte = r->at;
	const uint8_t *p;
	bool has_file;
	size_t n;
	int code = reader_str8(r, 0, "a block's id", b->id, &n);

	if (code == 0) {
		code = reader_need(r, n + GR_RAM_ANNOUNCE_FIXED_BYTES, "an announcement of blocks");
	}
	if (code < 0) {
		return code;
	}
	p = r->buf + r->pos + n;
	b->incarnation = gr_get_be64(p);
	b->used_bytes = gr_get_be64(p + 8);
	b->max_bytes = gr_get_be64(p + 16);
	b->page_bytes = gr_get_be32(p + 24);
	has_file = (gr_get_be32(p + 28) & GR_RAM_ANNOUNCE_FILE) != 0;
	b->flags = gr_get_be32(p + 28) & ~GR_RAM_ANNOUNCE_FILE;
	b->gpa = gr_get_be64(p + 32);
	code = check_length(r, byte, b->id, b->used_bytes);
	if (code == 0) {
		code = check_length(r, byte, b->id, b->max_bytes);
	}
	if (code < 0) {
		return code;
	}
	if (b->incarnation == 0 || b->used_bytes > b->max_bytes ||
	    !GR_IS_POWER_OF_TWO(b->page_bytes) || b->page_bytes < r->page_bytes ||
	    (b->gpa != GR_STREAM_GPA_NONE && (b->gpa > UINT64_MAX - b->max_bytes ||
					      !GR_IS_ALIGNED(b->gpa, (uint64_t)r->page_bytes)))) {
		return reader_fail(r, -EBADMSG, byte,
				   "block '%s': impossible: incarnation %" PRIu64
				   ", length 0x%" PRIx64 " of 0x%" PRIx64
				   ", page %u, at 0x%" PRIx64,
				   reader_printable(b->id).text, b->incarnation, b->used_bytes,
				   b->max_bytes, b->page_bytes, b->gpa);
	}
	reader_consume(r, n + GR_RAM_ANNOUNCE_FIXED_BYTES);
	return has_file ? announced_file(r, b) : 0;
}

static int next_announce(struct gr_stream_reader *r, struct gr_stream_record *rec, uint64_t count)
{
	uint64_t list_byte = r->at, total = 0;

	if (!r->has_blocks) {
		return reader_fail(r, -EBADMSG, r->at,
				   "blocks are announced before the first list");
	}
	if (count > GR_STREAM_BLOCKS_MAX) {
		return reader_fail(r, -E2BIG, r->at, "%" PRIu64 " blocks; at most %d", count,
				   GR_STREAM_BLOCKS_MAX);
	}
	reader_consume(r, READER_HEADER_BYTES);
	while (count--) {
		struct gr_stream_block *b = gr_block_table_pend(&r->blocks);
		int code =
			b ? announced_block(r, b)
			  : reader_fail(r, -ENOMEM, r->at, "out of memory for the list of blocks");

		if (code < 0) {
			return code;
		}
		total += b->used_bytes; /* cannot wrap: 2^16 times 2^47, see check_length() */
	}
	r->last_block = (uint32_t)GR_BLOCK_NONE;
	if (commit_blocks(r, list_byte) < 0) {
		return r->failed;
	}
	rec->kind = GR_STREAM_ANNOUNCE;
	rec->blocks.total_bytes = total;
	rec->blocks.count = r->blocks.count;
	return 1;
}

static int next_eos(struct gr_stream_reader *r, struct gr_stream_record *rec)
{
	enum { FOOTER_BYTES = 5 };
	const uint8_t *footer;
	int code = reader_need(r, READER_HEADER_BYTES + FOOTER_BYTES, "a section's footer");

	if (code < 0) {
		return code;
	}
	if (!r->has_blocks) {
		return reader_fail(r, -EBADMSG, r->at,
				   "section 'ram' starts without a list of blocks");
	}
	footer = r->buf + r->pos + READER_HEADER_BYTES;
	if (footer[0] != GR_SECTION_FOOTER) {
		return reader_fail(r, -EBADMSG, r->at + READER_HEADER_BYTES,
				   "0x%02x instead of the footer of section 'ram'", footer[0]);
	}
#ifndef GR_MUTANT_READER_FOOTER
	if (gr_get_be32(footer + 1) != r->ram_id) {
		return reader_fail(r, -EBADMSG, r->at + READER_HEADER_BYTES,
				   "the footer of section %u at the end of section %u ('ram')",
				   gr_get_be32(footer + 1), r->ram_id);
	}
#endif
	reader_consume(r, READER_HEADER_BYTES + FOOTER_BYTES);
	r->state = READER_AT_SECTION;
	rec->kind = GR_STREAM_EOS;
	rec->eos.section = r->section;
	return 1;
}

static int next_flush(struct gr_stream_reader *r, struct gr_stream_record *rec, bool at_eos)
{
	if (!r->has_blocks) {
		return reader_fail(r, -EBADMSG, r->at, "section 'ram' starts without a list of blocks");
	}
	if (!at_eos) {
		reader_consume(r, READER_HEADER_BYTES);
	}
	r->eos_told = at_eos;
	rec->kind = GR_STREAM_FLUSH;
	rec->flush.at_eos = at_eos;
	return 1;
}

/* A target with pages of 1 KiB does not say so; offsets then reach into our flags. */
static bool looks_smaller(uint64_t flags)
{
	uint64_t kind = flags & 0x3ff & ~(uint64_t)GR_RAM_CONTINUE;

	return (flags & 0xc00) && (kind == GR_RAM_PAGE || kind == GR_RAM_ZERO);
}

static int unsupported(struct gr_stream_reader *r, uint64_t word, uint64_t flags)
{
	static const struct {
		uint64_t flag;
		const char *name;
	} known[] = {
		{ GR_RAM_FULL, "FULL (obsolete)" },
		{ GR_RAM_HOOK, "HOOK (RDMA)" },
		{ GR_RAM_MULTIFD_FLUSH, "MULTIFD_FLUSH (capability multifd)" },
		{ GR_RAM_ZERO_RANGE, "ZERO_RANGE (not agreed with this peer)" },
		{ GR_RAM_PAGE_RANGE, "PAGE_RANGE (not agreed with this peer)" },
		{ GR_RAM_ANNOUNCE, "ANNOUNCE (not agreed with this peer)" },
	};

	for (size_t i = 0; i < GR_ARRAY_SIZE(known); i++) {
		if ((flags & ~(uint64_t)GR_RAM_CONTINUE) == known[i].flag) {
			return reader_fail(r, -EOPNOTSUPP, r->at,
					   "a record of type %s, page 0x%" PRIx64
					   ", which cannot be followed",
					   known[i].name, word & ~(uint64_t)(r->page_bytes - 1));
		}
	}
	return reader_fail(r, -EBADMSG, r->at,
			   "a record with the flags 0x%" PRIx64 ", page 0x%" PRIx64 "%s", flags,
			   word & ~(uint64_t)(r->page_bytes - 1),
			   looks_smaller(flags) ? " (pages of 1 KiB, as old ARM machines have, "
						  "cannot be received)"
						: "");
}

/* Records that belong to a page: the header, the id, and what their kind brings. */
static int next_page_record(struct gr_stream_reader *r, struct gr_stream_record *rec, uint64_t word,
			    uint64_t kind)
{
	struct page_record p;
	int code = locate(r, word, &p);

	if (code < 0) {
		return code;
	}
	switch (kind) {
	case GR_RAM_PAGE:
		return next_page(r, rec, &p);
	case GR_RAM_ZERO:
		return next_zero(r, rec, &p);
	case GR_RAM_XBZRLE:
		return next_xbzrle(r, rec, &p);
	case GR_RAM_COMPRESS_PAGE:
		return next_compressed(r, rec, &p);
	case GR_RAM_PAGE_RANGE:
		return next_page_range(r, rec, &p);
	default:
		return next_zero_range(r, rec, &p);
	}
}

int reader_ram(struct gr_stream_reader *r, struct gr_stream_record *rec)
{
	uint64_t word, flags, kind;
	int code;

	if (r->range_bytes > 0) {
		return reader_range(r, rec);
	}
	if (r->predict && r->staging &&
	    reader_buffered(r) < (size_t)READER_HEADER_BYTES + r->page_bytes) {
		code = reader_stage_run(r, rec);
		if (code != 0) {
			return code;
		}
	}
	r->predict = false;
	code = reader_need(r, READER_HEADER_BYTES, "section 'ram'");
	if (code < 0) {
		return code;
	}
	word = gr_get_be64(r->buf + r->pos);
	flags = word & (r->page_bytes - 1);
	kind = flags & ~(uint64_t)GR_RAM_CONTINUE;
	if (kind == GR_RAM_PAGE || kind == GR_RAM_ZERO || kind == GR_RAM_XBZRLE ||
	    kind == GR_RAM_COMPRESS_PAGE ||
	    ((kind == GR_RAM_ZERO_RANGE || kind == GR_RAM_PAGE_RANGE) && r->extensions)) {
		return next_page_record(r, rec, word, kind);
	}
	if (flags == GR_RAM_MEM_SIZE) {
		return next_blocks(r, rec, word - flags);
	}
	if (flags == GR_RAM_ANNOUNCE && r->extensions) {
		return next_announce(r, rec, word / r->page_bytes);
	}
	if (r->flushes && (word == GR_RAM_MULTIFD_FLUSH || (word == GR_RAM_EOS && !r->eos_told))) {
		return next_flush(r, rec, word == GR_RAM_EOS);
	}
	if (word == GR_RAM_EOS) {
		r->eos_told = false;
		return next_eos(r, rec);
	}
	return unsupported(r, word, flags);
}
