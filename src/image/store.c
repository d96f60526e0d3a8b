/* SPDX-License-Identifier: MIT */
#include "image/store.h"
#include "base/atomic.h"
#include "image/direct.h"
#include "image/file.h"
#include "image/part.h"
#include "stream/writer.h"
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <unistd.h>

/* What a block has in memory. Bit i of both: page i. */
struct block {
	struct gr_image_place place;
	uint64_t *present; /* its bytes are in the file and count */
	uint64_t *written; /* its place in the file was written at some time */
};

struct gr_image_store {
	struct gr_part part;
	struct gr_direct direct; /* to part.fd, for pages */
	uint64_t begin;		 /* where the image begins in the file */
	uint32_t page_bytes;
	uint32_t section_id;
	uint8_t *config;
	size_t config_bytes;
	struct block *blocks;
	size_t count;
	uint64_t ram_end; /* behind the last block's pages */
};

int gr_image_store_create_with(const char *path, const struct gr_image_store_params *params,
			       struct gr_image_store **ret_store, struct gr_error *err)
{
	struct gr_image_store *s = calloc(1, sizeof(*s));
	int rc;

	if (!s) {
		return gr_error_set(err, -ENOMEM, "out of memory");
	}
	s->begin = params->offset;
	s->direct.direct_fd = -1;
	rc = params->offset > GR_IMAGE_OFFSET_MAX
		     ? gr_error_set(err, -EFBIG, "%s: no file has a byte %" PRIu64, path,
				    params->offset)
		     : 0;
	s->part.fd = -1;
	if (rc == 0) {
		rc = gr_part_open(&s->part, path, params->offset, err);
	}
	if (rc < 0) {
		gr_image_store_free(s);
		return rc;
	}
	gr_direct_open(&s->direct, s->part.fd, params->direct, true);
	*ret_store = s;
	return 0;
}

int gr_image_store_create(const char *path, struct gr_image_store **ret_store, struct gr_error *err)
{
	static const struct gr_image_store_params none = { 0 };

	return gr_image_store_create_with(path, &none, ret_store, err);
}

void gr_image_store_free(struct gr_image_store *s)
{
	if (!s) {
		return;
	}
	gr_direct_close(&s->direct);
	gr_part_close(&s->part);
	for (size_t i = 0; i < s->count; i++) {
		free(s->blocks[i].present);
		free(s->blocks[i].written);
	}
	free(s->blocks);
	free(s->config);
	free(s);
}

void gr_image_store_discard(struct gr_image_store *s)
{
	if (s) {
		gr_part_discard(&s->part);
	}
	gr_image_store_free(s);
}

static int cannot_write(const struct gr_image_store *s, int rc, uint64_t at, struct gr_error *err)
{
	return gr_error_set(err, rc, "%s: cannot write at byte %" PRIu64 ": %s", s->part.part_path,
			    at, strerror(-rc));
}

static int write_at(struct gr_image_store *s, const void *data, size_t n, uint64_t at,
		    struct gr_error *err)
{
	int rc = gr_file_pwrite(s->part.fd, data, n, at);

	return rc < 0 ? cannot_write(s, rc, at, err) : 0;
}

int gr_image_store_config(struct gr_image_store *s, const void *raw, size_t bytes,
			  uint32_t page_bytes, struct gr_error *err)
{
	struct gr_image_config config;
	int rc = gr_image_config_parse(raw, bytes, &config, err);

	if (rc == 0) {
		rc = gr_image_config_rewrite(raw, &config, true, &s->config, &s->config_bytes, err);
	}
	if (rc < 0) {
		return rc;
	}
	s->page_bytes = page_bytes;
	return write_at(s, s->config, s->config_bytes, s->begin, err);
}

int gr_image_store_machine(struct gr_image_store *s, const char *machine, uint32_t page_bytes,
			   struct gr_error *err)
{
	uint8_t raw[GR_STREAM_CONFIG_BYTES_MAX];
	size_t bytes = 0;
	int rc = gr_stream_config_build(raw, machine, page_bytes, &bytes, err);

	return rc < 0 ? rc : gr_image_store_config(s, raw, bytes, page_bytes, err);
}

static int make_blocks(struct gr_image_store *s, const struct gr_image_place *places, size_t n,
		       struct gr_error *err)
{
	uint64_t bitmap_bytes = 0;

	s->blocks = calloc(n, sizeof(*s->blocks));
	if (!s->blocks) {
		return gr_error_set(err, -ENOMEM, "out of memory");
	}
	s->count = n;
	for (size_t i = 0; i < n; i++) {
		uint64_t bytes = gr_image_bitmap_bytes(places[i].used_bytes, s->page_bytes);

		bitmap_bytes += bytes;
		if (bitmap_bytes > GR_IMAGE_BITMAP_BYTES_MAX) {
			return gr_error_set(err, -EFBIG,
					    "block '%s': more RAM than an image can hold",
					    places[i].id);
		}
		s->blocks[i].place = places[i];
		s->blocks[i].present = calloc(1, bytes);
		s->blocks[i].written = calloc(1, bytes);
		if (!s->blocks[i].present || !s->blocks[i].written) {
			return gr_error_set(err, -ENOMEM, "block '%s': no memory for its bitmap",
					    places[i].id);
		}
	}
	return 0;
}

static int write_block_header(struct gr_image_store *s, const struct gr_image_place *p,
			      struct gr_error *err)
{
	uint8_t buf[1 + GR_STREAM_ID_BYTES_MAX + 8 + GR_IMAGE_MAPPED_HEADER_BYTES];
	size_t id_bytes = strlen(p->id);
	uint8_t *w = buf + 1 + id_bytes;

	buf[0] = (uint8_t)id_bytes;
	memcpy(buf + 1, p->id, id_bytes);
	gr_put_be64(w, p->used_bytes);
	gr_put_be32(w + 8, GR_IMAGE_MAPPED_VERSION);
	gr_put_be64(w + 12, s->page_bytes);
	gr_put_be64(w + 20, p->bitmap_at);
	gr_put_be64(w + 28, p->pages_at);
	return write_at(s, buf, (size_t)(w + 36 - buf), p->header_at, err);
}

int gr_image_store_blocks(struct gr_image_store *s, uint32_t section_id,
			  const struct gr_image_place *places, size_t n, struct gr_error *err)
{
	uint8_t start[1 + 4 + 1 + 3 + 4 + 4 + 8];
	struct gr_image_place *laid_out = calloc(n, sizeof(*laid_out));
	uint64_t total = 0;
	int rc;

	if (!laid_out) {
		return gr_error_set(err, -ENOMEM, "out of memory");
	}
	memcpy(laid_out, places, n * sizeof(*laid_out));
	rc = gr_image_layout(s->begin + s->config_bytes + sizeof(start), s->page_bytes, laid_out, n,
			     &s->ram_end, err);
	if (rc == 0) {
		rc = make_blocks(s, laid_out, n, err);
	}
	for (size_t i = 0; rc == 0 && i < n; i++) {
		total += laid_out[i].used_bytes;
		rc = write_block_header(s, &laid_out[i], err);
	}
	free(laid_out);
	if (rc < 0) {
		return rc;
	}
	/* So that writers side by side need not wait for each other to make it longer. If it cannot
	 * be so long, the first write there says so, with block and page. */
	(void)!ftruncate(s->part.fd, (off_t)s->ram_end);
	s->section_id = section_id;
	start[0] = GR_SECTION_START;
	gr_put_be32(start + 1, section_id);
	start[5] = 3;
	memcpy(start + 6, GR_RAM_SECTION_NAME, 3);
	gr_put_be32(start + 9, 0);
	gr_put_be32(start + 13, GR_RAM_SECTION_VERSION);
	gr_put_be64(start + 17, total | GR_RAM_MEM_SIZE);
	return write_at(s, start, sizeof(start), s->begin + s->config_bytes, err);
}

/* The pages of [page, end) that are in the word of `page`; how many, in *ret_n. */
static uint64_t word_mask(uint64_t page, uint64_t end, uint64_t *ret_n)
{
	*ret_n = GR_MIN(64 - page % 64, end - page);
	return *ret_n == 64 ? UINT64_MAX : ((UINT64_C(1) << *ret_n) - 1) << (page % 64);
}

/* Other pages of a word may be another thread's. No order: they are read when all threads have
 * ended. */
static void set_pages(uint64_t *word, uint64_t mask)
{
#ifdef GR_MUTANT_IMAGE_PLAIN_MARKS
	*(volatile uint64_t *)word |= mask;
#else
	(void)gr_or_acq_rel(word, mask);
#endif
}

static void clear_pages(uint64_t *word, uint64_t mask)
{
#ifdef GR_MUTANT_IMAGE_PLAIN_MARKS
	*(volatile uint64_t *)word &= ~mask;
#else
	(void)gr_and_acq_rel(word, ~mask);
#endif
}

static void mark_run(uint64_t *bits, uint64_t page, uint64_t n)
{
	for (uint64_t end = page + n, k; page < end; page += k) {
		uint64_t mask = word_mask(page, end, &k);

		set_pages(&bits[page / 64], mask);
	}
}

static bool marked(const uint64_t *bits, uint64_t page)
{
	return (gr_load_relaxed(&bits[page / 64]) >> (page % 64)) & 1;
}

int gr_image_store_run(struct gr_image_store *s, size_t block, uint64_t offset, const void *data,
		       size_t bytes, struct gr_error *err)
{
	struct block *b = &s->blocks[block];
	uint64_t at = b->place.pages_at + offset;
	int rc = gr_direct_pwrite(&s->direct, data, bytes, at);

	if (rc < 0) {
		return cannot_write(s, rc, at, err);
	}
	mark_run(b->present, offset / s->page_bytes, bytes / s->page_bytes);
	mark_run(b->written, offset / s->page_bytes, bytes / s->page_bytes);
	return 0;
}

int gr_image_store_pages(struct gr_image_store *s, size_t block, const uint64_t *offsets,
			 size_t count, const uint8_t *data, uint32_t *ret_bad, struct gr_error *err)
{
	for (size_t i = 0, n; i < count; i += n) {
		int rc;

		for (n = 1; i + n < count; n++) {
			if (offsets[i + n] != offsets[i] + n * s->page_bytes) {
				break;
			}
		}
		rc = gr_image_store_run(s, block, offsets[i], data + i * s->page_bytes,
					n * s->page_bytes, err);
		if (rc < 0) {
			*ret_bad = (uint32_t)i;
			return rc;
		}
	}
	return 0;
}

void gr_image_store_zero(struct gr_image_store *s, size_t block, uint64_t offset, uint64_t bytes)
{
	struct block *b = &s->blocks[block];
	uint64_t end = (offset + bytes) / s->page_bytes;

#ifdef GR_MUTANT_IMAGE_ZERO_KEEPS_PAGE
	return;
#endif
	/* The bytes of before stay where they are until the end: nobody reads a page that is
	 * not present, and most of them are written again. */
	for (uint64_t page = offset / s->page_bytes, k; page < end; page += k) {
		uint64_t mask = word_mask(page, end, &k);

		clear_pages(&b->present[page / 64], mask);
	}
}

int gr_image_store_page_read(struct gr_image_store *s, size_t block, uint64_t offset, uint8_t *page,
			     struct gr_error *err)
{
	struct block *b = &s->blocks[block];
	uint64_t at = b->place.pages_at + offset;
	int rc;

#ifdef GR_MUTANT_IMAGE_STALE_BASE
	if (!marked(b->written, offset / s->page_bytes)) {
#else
	if (!marked(b->present, offset / s->page_bytes)) {
#endif
		memset(page, 0, s->page_bytes);
		return 0;
	}
	rc = gr_file_pread(s->part.fd, page, s->page_bytes, at);
	if (rc < 0) {
		return gr_error_set(err, rc, "%s: cannot read back byte %" PRIu64 ": %s",
				    s->part.part_path, at, strerror(-rc));
	}
	return 0;
}

/* Pages that were written and are zero now: give their space back, or write zeros. */
static int drop_stale_pages(struct gr_image_store *s, struct block *b, struct gr_error *err)
{
	uint64_t pages = b->place.used_bytes / s->page_bytes;

	for (uint64_t page = 0, n; page < pages; page += n) {
		int rc;

		if (b->present[page / 64] == b->written[page / 64]) {
			n = 64 - page % 64;
			continue;
		}
		for (n = 0; page + n < pages && marked(b->written, page + n) &&
			    !marked(b->present, page + n);
		     n++) {
		}
		if (n == 0) {
			n = 1;
			continue;
		}
		rc = gr_file_zero(s->part.fd, b->place.pages_at + page * s->page_bytes,
				  n * s->page_bytes);
		if (rc < 0) {
			return gr_error_set(err, rc,
					    "%s: block '%s', page at %#" PRIx64
					    ": cannot make it zero: %s",
					    s->part.part_path, b->place.id, page * s->page_bytes,
					    strerror(-rc));
		}
	}
	return 0;
}

/* The file's bitmap is made of 64-bit words of a little-endian machine. */
static int write_bitmap(struct gr_image_store *s, const struct block *b, struct gr_error *err)
{
	uint64_t bytes = gr_image_bitmap_bytes(b->place.used_bytes, s->page_bytes);
	uint8_t buf[4096];

	for (uint64_t at = 0, n; at < bytes; at += n) {
		int rc;

		n = GR_MIN(bytes - at, (uint64_t)sizeof(buf));
		for (uint64_t i = 0; i < n; i += 8) {
			uint64_t word = htole64(b->present[(at + i) / 8]);

			memcpy(buf + i, &word, 8);
		}
		rc = write_at(s, buf, n, b->place.bitmap_at + at, err);
		if (rc < 0) {
			return rc;
		}
	}
	return 0;
}

/* START's end, an empty END, and the stamp. */
static int write_frame(struct gr_image_store *s, size_t tail_bytes, uint64_t *ret_tail_at,
		       struct gr_error *err)
{
	uint8_t frame[13 + 5 + 13];
	uint8_t stamp[GR_IMAGE_STAMP_BYTES] = GR_IMAGE_STAMP_MAGIC;
	const struct gr_image_place *first = &s->blocks[0].place;
	int rc;

	gr_put_be64(frame, GR_RAM_EOS);
	frame[8] = GR_SECTION_FOOTER;
	gr_put_be32(frame + 9, s->section_id);
	frame[13] = GR_SECTION_END;
	gr_put_be32(frame + 14, s->section_id);
	memcpy(frame + 18, frame, 13);
	rc = write_at(s, frame, sizeof(frame), s->ram_end, err);
	if (rc < 0) {
		return rc;
	}
	gr_put_be64(stamp + 8, tail_bytes);
	*ret_tail_at = s->ram_end + sizeof(frame);
	return write_at(s, stamp, sizeof(stamp),
			first->bitmap_at + gr_image_bitmap_bytes(first->used_bytes, s->page_bytes),
			err);
}

int gr_image_store_finish(struct gr_image_store *s, const void *tail, size_t bytes,
			  struct gr_error *err)
{
	uint64_t tail_at = 0;
	int rc = 0;

	for (size_t i = 0; rc == 0 && i < s->count; i++) {
		rc = drop_stale_pages(s, &s->blocks[i], err);
		if (rc == 0) {
			rc = write_bitmap(s, &s->blocks[i], err);
		}
	}
	if (rc == 0) {
		rc = write_frame(s, bytes, &tail_at, err);
	}
	if (rc == 0) {
		rc = write_at(s, tail, bytes, tail_at, err);
	}
	return rc < 0 ? rc : gr_part_commit(&s->part, err);
}

bool gr_image_store_direct(const struct gr_image_store *s, char *why, size_t bytes)
{
	gr_direct_why(&s->direct, why, bytes);
	return gr_direct_is_on(&s->direct);
}
