/* SPDX-License-Identifier: MIT */
#include "stream/writer.h"
#include <errno.h>
#include <inttypes.h>

enum {
	WRITER_BUF_BYTES = 64 << 10,
	WRITER_BATCH_PAGES = 64, /* per system call; fewer than 32 cost, more gain nothing */
	PAGE_HEADER_BYTES = 8,
	RAW_COPY_BYTES_MAX = 4096, /* larger pieces are sent from where they are */
};

struct gr_stream_writer {
	struct gr_channel *ch;
	uint64_t bytes;
	size_t used; /* of buf */
	uint32_t page_bytes;
	uint32_t section_id;
	bool in_section;
	bool eos_said; /* of the section, without the footer */
	bool ignore_shared; /* the list of blocks has their addresses */
	char last_id[GR_STREAM_ID_BYTES_MAX + 1]; /* what CONTINUE means; "" = nothing yet */
	int failed;				  /* what the channel said */
	struct gr_error failure;
	uint8_t headers[WRITER_BATCH_PAGES][PAGE_HEADER_BYTES];
	uint8_t buf[WRITER_BUF_BYTES];
};

int gr_stream_writer_create(struct gr_channel *ch, struct gr_stream_writer **ret_writer,
			    struct gr_error *err)
{
	struct gr_stream_writer *w = malloc(sizeof(*w));

	if (!w) {
		return gr_error_set(err, -ENOMEM, "stream writer: out of memory");
	}
	memset(w, 0, offsetof(struct gr_stream_writer, headers));
	w->ch = ch;
	w->page_bytes = GR_STREAM_PAGE_BYTES_DEFAULT;
	*ret_writer = w;
	return 0;
}

void gr_stream_writer_free(struct gr_stream_writer *w)
{
	free(w);
}

void gr_stream_writer_set_page_bytes(struct gr_stream_writer *w, uint32_t page_bytes)
{
	w->page_bytes = page_bytes;
}

uint64_t gr_stream_writer_bytes(const struct gr_stream_writer *w)
{
	return w->bytes;
}

/* Everything gathered, then the vector; the first entry of iov is left free for the former. */
static int send_all(struct gr_stream_writer *w, struct iovec *iov, int n, struct gr_error *err)
{
	if (w->failed == 0) {
		iov[0] = (struct iovec){ w->buf, w->used };
		w->failed = gr_channel_writev_all(w->ch, iov, n, &w->failure);
		w->used = 0;
	}
	if (w->failed < 0 && err) {
		*err = w->failure;
	}
	return w->failed;
}

int gr_stream_flush(struct gr_stream_writer *w, struct gr_error *err)
{
	struct iovec iov[1];

	if (w->used == 0 && w->failed == 0) {
		return 0;
	}
	return send_all(w, iov, 1, err);
}

static int put(struct gr_stream_writer *w, const void *data, size_t n, struct gr_error *err)
{
	w->bytes += n;
	if (n > WRITER_BUF_BYTES - w->used) {
		int code = gr_stream_flush(w, err);

		if (code < 0) {
			return code;
		}
	}
	if (w->failed < 0) {
		if (err) {
			*err = w->failure;
		}
		return w->failed;
	}
	memcpy(w->buf + w->used, data, n);
	w->used += n;
	return 0;
}

int gr_stream_write_raw(struct gr_stream_writer *w, const void *data, size_t n,
			struct gr_error *err)
{
	struct iovec iov[2] = { { NULL, 0 }, { (void *)(uintptr_t)data, n } };

	if (n <= RAW_COPY_BYTES_MAX) {
		return put(w, data, n, err);
	}
	w->bytes += n;
	return send_all(w, iov, 2, err);
}

int gr_stream_config_build(uint8_t *out, const char *machine, uint32_t page_bytes,
			   size_t *ret_bytes, struct gr_error *err)
{
	static const char name[] = "configuration/target-page-bits";
	size_t n = strlen(machine), at = 0;

	if (n > GR_STREAM_MACHINE_BYTES_MAX) {
		return gr_error_set(err, -EINVAL, "the machine's name has %zu bytes; at most %d", n,
				    GR_STREAM_MACHINE_BYTES_MAX);
	}
	if (!GR_IS_POWER_OF_TWO(page_bytes) || page_bytes < 1u << GR_STREAM_PAGE_BITS_MIN ||
	    page_bytes > 1u << GR_STREAM_PAGE_BITS_MAX) {
		return gr_error_set(err, -EINVAL, "a page size of %u cannot be sent", page_bytes);
	}
	gr_put_be32(out, GR_STREAM_MAGIC);
	gr_put_be32(out + 4, GR_STREAM_VERSION);
	out[8] = GR_SECTION_CONFIGURATION;
	gr_put_be32(out + 9, (uint32_t)n);
	memcpy(out + 13, machine, n);
	at = 13 + n;
	if (page_bytes != GR_STREAM_PAGE_BYTES_DEFAULT) {
		out[at++] = GR_SECTION_SUBSECTION;
		out[at++] = sizeof(name) - 1;
		memcpy(out + at, name, sizeof(name) - 1);
		at += sizeof(name) - 1;
		gr_put_be32(out + at, 1);
		gr_put_be32(out + at + 4, (uint32_t)__builtin_ctz(page_bytes));
		at += 8;
	}
	*ret_bytes = at;
	return 0;
}

int gr_stream_write_config(struct gr_stream_writer *w, const char *machine, uint32_t page_bytes,
			   struct gr_error *err)
{
	uint8_t out[GR_STREAM_CONFIG_BYTES_MAX];
	size_t bytes = 0;
	int rc = gr_stream_config_build(out, machine, page_bytes, &bytes, err);

	if (rc < 0) {
		return rc;
	}
	w->page_bytes = page_bytes;
	return put(w, out, bytes, err);
}

/* A str8 at out; returns its bytes, 0 if the id cannot be sent. */
static size_t put_id(uint8_t *out, const char *id)
{
	size_t n = strlen(id);

	if (n == 0 || n > GR_STREAM_ID_BYTES_MAX) {
		return 0;
	}
	out[0] = (uint8_t)n;
	memcpy(out + 1, id, n);
	return 1 + n;
}

void gr_stream_writer_set_ignore_shared(struct gr_stream_writer *w)
{
	w->ignore_shared = true;
}

/* A subsection of the configuration up to its version, which is 1. */
static size_t put_subsection(uint8_t *out, const char *name)
{
	size_t n = strlen(name);

	out[0] = GR_SECTION_SUBSECTION;
	out[1] = (uint8_t)n;
	memcpy(out + 2, name, n);
	gr_put_be32(out + 2 + n, 1);
	return 2 + n + 4;
}

int gr_stream_write_ignore_shared(struct gr_stream_writer *w, struct gr_error *err)
{
	static const char name[] = "configuration/capabilities";
	uint8_t out[2 + sizeof(name) + 4 + 4 + sizeof(GR_CAPABILITY_IGNORE_SHARED)];
	size_t at = put_subsection(out, name);

	gr_put_be32(out + at, 1);
	at += 4 + put_id(out + at + 4, GR_CAPABILITY_IGNORE_SHARED);
	w->ignore_shared = true;
	return put(w, out, at, err);
}

int gr_stream_write_uuid(struct gr_stream_writer *w, const uint8_t *uuid, struct gr_error *err)
{
	static const char name[] = "configuration/uuid";
	uint8_t out[2 + sizeof(name) + 4 + GR_STREAM_UUID_BYTES];
	size_t at = put_subsection(out, name);

	memcpy(out + at, uuid, GR_STREAM_UUID_BYTES);
	return put(w, out, at + GR_STREAM_UUID_BYTES, err);
}

static int check_block(const struct gr_stream_writer *w, const struct gr_stream_block_desc *b,
		       struct gr_error *err)
{
	size_t n = strlen(b->id);

	if (n == 0 || n > GR_STREAM_ID_BYTES_MAX) {
		return gr_error_set(err, -EINVAL, "block '%s': an id of %zu bytes cannot be sent",
				    b->id, n);
	}
	if (b->used_bytes == 0 || b->used_bytes > GR_STREAM_BLOCK_BYTES_MAX ||
	    !GR_IS_ALIGNED(b->used_bytes, (uint64_t)w->page_bytes)) {
		return gr_error_set(err, -EINVAL, "block '%s': 0x%" PRIx64 " bytes cannot be sent",
				    b->id, b->used_bytes);
	}
	return 0;
}

static int check_list(const struct gr_stream_writer *w, const struct gr_stream_block_desc *blocks,
		      size_t n, uint64_t *ret_total, struct gr_error *err)
{
	uint64_t total = 0;

	if (n > GR_STREAM_BLOCKS_MAX) {
		return gr_error_set(err, -EINVAL, "%zu blocks; at most %d can be sent", n,
				    GR_STREAM_BLOCKS_MAX);
	}
	for (size_t i = 0; i < n; i++) {
		int code = check_block(w, &blocks[i], err);

		if (code < 0) {
			return code;
		}
		total += blocks[i].used_bytes;
	}
	*ret_total = total;
	return 0;
}

static int put_be64(struct gr_stream_writer *w, uint64_t v, struct gr_error *err)
{
	uint8_t out[8];

	gr_put_be64(out, v);
	return put(w, out, sizeof(out), err);
}

int gr_stream_write_start(struct gr_stream_writer *w, uint32_t section_id,
			  const struct gr_stream_block_desc *blocks, size_t n, struct gr_error *err)
{
	uint8_t out[1 + GR_STREAM_ID_BYTES_MAX + 32];
	uint64_t total;
	size_t at;
	int code = check_list(w, blocks, n, &total, err);

	if (code < 0) {
		return code;
	}
	GR_ASSERT(!w->in_section);
	w->in_section = true;
	w->section_id = section_id;
	w->last_id[0] = '\0';
	out[0] = GR_SECTION_START;
	gr_put_be32(out + 1, section_id);
	at = 5 + put_id(out + 5, GR_RAM_SECTION_NAME);
	gr_put_be32(out + at, 0);
	gr_put_be32(out + at + 4, GR_RAM_SECTION_VERSION);
	gr_put_be64(out + at + 8, total | GR_RAM_MEM_SIZE);
	code = put(w, out, at + 16, err);
	for (size_t i = 0; i < n && code == 0; i++) {
		at = put_id(out, blocks[i].id);
		gr_put_be64(out + at, blocks[i].used_bytes);
		at += 8;
		if (w->ignore_shared) {
			gr_put_be64(out + at, blocks[i].gpa == UINT64_MAX ? 0 : blocks[i].gpa);
			at += 8;
		}
		code = put(w, out, at, err);
	}
	return code;
}

int gr_stream_write_section(struct gr_stream_writer *w, enum gr_section section,
			    struct gr_error *err)
{
	uint8_t out[5];

	GR_ASSERT(!w->in_section && (section == GR_SECTION_PART || section == GR_SECTION_END));
	w->in_section = true;
	out[0] = (uint8_t)section;
	gr_put_be32(out + 1, w->section_id);
	return put(w, out, sizeof(out), err);
}

int gr_stream_write_eos(struct gr_stream_writer *w, struct gr_error *err)
{
	uint8_t out[13];

	size_t said = w->eos_said ? 8 : 0;

	GR_ASSERT(w->in_section);
	w->in_section = false;
	w->eos_said = false;
	gr_put_be64(out, GR_RAM_EOS);
	out[8] = GR_SECTION_FOOTER;
	gr_put_be32(out + 9, w->section_id);
	return put(w, out + said, sizeof(out) - said, err);
}

int gr_stream_write_eos_word(struct gr_stream_writer *w, struct gr_error *err)
{
	GR_ASSERT(w->in_section && !w->eos_said);
	w->eos_said = true;
	return put_be64(w, GR_RAM_EOS, err);
}

int gr_stream_write_flush_record(struct gr_stream_writer *w, struct gr_error *err)
{
	GR_ASSERT(w->in_section);
	return put_be64(w, GR_RAM_MULTIFD_FLUSH, err);
}

/* Header of a page record, with the id if it is another block than before. */
static int put_header(struct gr_stream_writer *w, const char *id, uint64_t offset,
		      enum gr_ram_flag kind, struct gr_error *err)
{
	uint8_t out[PAGE_HEADER_BYTES + 1 + GR_STREAM_ID_BYTES_MAX];
	bool same = *w->last_id && strcmp(w->last_id, id) == 0;
	size_t n = 0;

	GR_ASSERT(w->in_section && GR_IS_ALIGNED(offset, (uint64_t)w->page_bytes));
	if (!same) {
		n = put_id(out + PAGE_HEADER_BYTES, id);
		if (n == 0) {
			return gr_error_set(err, -EINVAL, "block '%s': the id cannot be sent", id);
		}
		memcpy(w->last_id, id, n); /* without its length, with its NUL */
	}
	gr_put_be64(out, offset | (uint64_t)kind | (same ? (uint64_t)GR_RAM_CONTINUE : 0u));
	return put(w, out, PAGE_HEADER_BYTES + n, err);
}

/* A batch: the first header is in the buffer, the others go between the pages. */
static int send_pages(struct gr_stream_writer *w, const uint64_t *offsets, const void *const *pages,
		      size_t n, struct gr_error *err)
{
	struct iovec iov[1 + 2 * WRITER_BATCH_PAGES];
	int at = 1; /* 0: what was gathered */

	for (size_t i = 0; i < n; i++) {
		if (i > 0) {
			GR_ASSERT(GR_IS_ALIGNED(offsets[i], (uint64_t)w->page_bytes));
			gr_put_be64(w->headers[i], offsets[i] | GR_RAM_PAGE | GR_RAM_CONTINUE);
			iov[at++] = (struct iovec){ w->headers[i], PAGE_HEADER_BYTES };
			w->bytes += PAGE_HEADER_BYTES;
		}
		iov[at++] = (struct iovec){ (void *)(uintptr_t)pages[i], w->page_bytes };
		w->bytes += w->page_bytes;
	}
	return send_all(w, iov, at, err);
}

int gr_stream_write_pages(struct gr_stream_writer *w, const char *id, const uint64_t *offsets,
			  const void *const *pages, size_t n, struct gr_error *err)
{
	while (n) {
		size_t batch = GR_MIN(n, (size_t)WRITER_BATCH_PAGES);
		int code = put_header(w, id, offsets[0], GR_RAM_PAGE, err);

		if (code == 0) {
			code = send_pages(w, offsets, pages, batch, err);
		}
		if (code < 0) {
			return code;
		}
		offsets += batch;
		pages += batch;
		n -= batch;
	}
	return 0;
}

/* What of a run goes by reference has left it. */
static int refer(struct gr_stream_writer *w, const struct gr_channel_file *file, struct iovec *run,
		 struct gr_error *err)
{
	int code = gr_stream_flush(w, err);

	if (code == 0) {
		w->failed = gr_channel_refer(w->ch, file, run, &w->failure);
	}
	if (code == 0 && w->failed < 0 && err) {
		*err = w->failure;
	}
	return w->failed;
}

int gr_stream_write_page_range(struct gr_stream_writer *w, const char *id, uint64_t offset,
			       const void *data, size_t bytes, const struct gr_channel_file *file,
			       struct gr_error *err)
{
	struct iovec iov[2] = { { NULL, 0 }, { (void *)(uintptr_t)data, bytes } };
	int code = put_header(w, id, offset, GR_RAM_PAGE_RANGE, err);

	GR_ASSERT(bytes && GR_IS_ALIGNED(bytes, (size_t)w->page_bytes));
	if (code == 0) {
		code = put_be64(w, bytes, err);
	}
	if (code == 0 && gr_channel_may_refer(w->ch, file, &iov[1])) {
		code = refer(w, file, &iov[1], err);
	}
	w->bytes += bytes;
	return code < 0 ? code : send_all(w, iov, 2, err);
}

int gr_stream_write_zero(struct gr_stream_writer *w, const char *id, uint64_t offset,
			 struct gr_error *err)
{
	static const uint8_t fill; /* newer receivers refuse any other */
	int code = put_header(w, id, offset, GR_RAM_ZERO, err);

	return code < 0 ? code : put(w, &fill, 1, err);
}

int gr_stream_write_xbzrle(struct gr_stream_writer *w, const char *id, uint64_t offset,
			   const void *payload, size_t n, struct gr_error *err)
{
	uint8_t out[3] = { GR_XBZRLE_ENCODING };
	int code;

	if (n > w->page_bytes || n > UINT16_MAX) {
		return gr_error_set(err, -EINVAL, "block '%s': a delta of %zu bytes cannot be sent",
				    id, n);
	}
	gr_put_be16(out + 1, (uint16_t)n);
	code = put_header(w, id, offset, GR_RAM_XBZRLE, err);
	if (code == 0) {
		code = put(w, out, sizeof(out), err);
	}
	return code < 0 ? code : put(w, payload, n, err);
}

int gr_stream_write_zero_range(struct gr_stream_writer *w, const char *id, uint64_t offset,
			       uint64_t bytes, struct gr_error *err)
{
	int code;

	GR_ASSERT(bytes && GR_IS_ALIGNED(bytes, (uint64_t)w->page_bytes));
	code = put_header(w, id, offset, GR_RAM_ZERO_RANGE, err);
	return code < 0 ? code : put_be64(w, bytes, err);
}

int gr_stream_write_announce(struct gr_stream_writer *w, const struct gr_stream_block_desc *blocks,
			     size_t n, struct gr_error *err)
{
	uint8_t out[1 + GR_STREAM_ID_BYTES_MAX + GR_RAM_ANNOUNCE_FIXED_BYTES + GR_RAM_ANNOUNCE_FILE_BYTES];
	uint64_t total;
	int code = check_list(w, blocks, n, &total, err);

	if (code < 0) {
		return code;
	}
	GR_ASSERT(w->in_section);
	w->last_id[0] = '\0';
	code = put_be64(w, n * (uint64_t)w->page_bytes | GR_RAM_ANNOUNCE, err);
	for (size_t i = 0; i < n && code == 0; i++) {
		const struct gr_stream_block_desc *b = &blocks[i];
		size_t at = put_id(out, b->id);

		gr_put_be64(out + at, b->incarnation);
		gr_put_be64(out + at + 8, b->used_bytes);
		gr_put_be64(out + at + 16, b->max_bytes);
		gr_put_be32(out + at + 24, b->page_bytes);
		gr_put_be32(out + at + 28, b->flags | (b->file ? GR_RAM_ANNOUNCE_FILE : 0));
		gr_put_be64(out + at + 32, b->gpa);
		at += GR_RAM_ANNOUNCE_FIXED_BYTES;
		if (b->file) {
			memcpy(out + at, b->file->boot, GR_BOOT_ID_BYTES);
			gr_put_be64(out + at + 16, b->file->device);
			gr_put_be64(out + at + 24, b->file->inode);
			gr_put_be64(out + at + 32, b->file_offset);
			at += GR_RAM_ANNOUNCE_FILE_BYTES;
		}
		code = put(w, out, at, err);
	}
	return code;
}

int gr_stream_write_command(struct gr_stream_writer *w, enum gr_command command, const void *data,
			    uint16_t n, struct gr_error *err)
{
	uint8_t out[5];
	int code;

	GR_ASSERT(!w->in_section);
	out[0] = GR_SECTION_COMMAND;
	gr_put_be16(out + 1, (uint16_t)command);
	gr_put_be16(out + 3, n);
	code = put(w, out, sizeof(out), err);
	return code < 0 || n == 0 ? code : put(w, data, n, err);
}

int gr_stream_write_ping(struct gr_stream_writer *w, uint32_t value, struct gr_error *err)
{
	uint8_t out[4];

	gr_put_be32(out, value);
	return gr_stream_write_command(w, GR_COMMAND_PING, out, sizeof(out), err);
}
