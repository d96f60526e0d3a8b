/* SPDX-License-Identifier: MIT */
#include "image/store.h"
#include "image/file.h"
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <libgen.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

/* What a block has in memory. Bit i of both: page i. */
struct block {
	struct gr_image_place place;
	uint64_t *present; /* its bytes are in the file and count */
	uint64_t *written; /* its place in the file was written at some time */
};

struct gr_image_store {
	int fd;
	char *path;
	char *part_path;
	uint32_t page_bytes;
	uint32_t section_id;
	uint8_t *config;
	size_t config_bytes;
	struct block *blocks;
	size_t count;
	uint64_t ram_end; /* behind the last block's pages */
};

/* The image takes the place of what has its name: never that of a device or a folder. */
static int check_name(const char *path, struct gr_error *err)
{
	struct stat st;

	if (stat(path, &st) < 0 || S_ISREG(st.st_mode)) {
		return 0; /* what else is wrong with the path is found out with path.part */
	}
	if (S_ISDIR(st.st_mode)) {
		return gr_error_set(err, -EISDIR, "%s: %s", path, strerror(EISDIR));
	}
	return gr_error_set(err, -EINVAL, "%s: exists and is not a regular file", path);
}

/* Opens and locks path.part; -EAGAIN: its name has moved on meanwhile. */
static int try_part(struct gr_image_store *s, struct gr_error *err)
{
	struct stat ours, named;

	/* Guest RAM is nobody else's to read. */
	s->fd = open(s->part_path, O_RDWR | O_CREAT | O_NOFOLLOW | O_CLOEXEC, 0600);
	if (s->fd < 0 || fstat(s->fd, &ours) < 0) {
		return gr_error_set(err, -errno, "%s: %s", s->part_path, strerror(errno));
	}
	if (!S_ISREG(ours.st_mode)) {
		return gr_error_set(err, -EINVAL, "%s: exists and is not a regular file",
				    s->part_path);
	}
	if (flock(s->fd, LOCK_EX | LOCK_NB) < 0) {
		return errno == EWOULDBLOCK
			       ? gr_error_set(err, -EBUSY, "%s: somebody else is writing it",
					      s->part_path)
			       : gr_error_set(err, -errno, "%s: cannot be locked: %s", s->part_path,
					      strerror(errno));
	}
	/* Who had the lock before us may have given the file its final name. */
	if (lstat(s->part_path, &named) < 0 || named.st_ino != ours.st_ino ||
	    named.st_dev != ours.st_dev) {
		return -EAGAIN;
	}
	return 0;
}

static int open_part(struct gr_image_store *s, struct gr_error *err)
{
	int rc;

	while ((rc = try_part(s, err)) == -EAGAIN) {
		(void)close(s->fd);
		s->fd = -1;
	}
	return rc;
}

int gr_image_store_create(const char *path, struct gr_image_store **ret_store, struct gr_error *err)
{
	struct gr_image_store *s = calloc(1, sizeof(*s));
	int rc;

	if (!s) {
		return gr_error_set(err, -ENOMEM, "out of memory");
	}
	s->fd = -1;
	s->path = strdup(path);
	if (!s->path || asprintf(&s->part_path, "%s.part", path) < 0) {
		s->part_path = NULL;
		rc = gr_error_set(err, -ENOMEM, "out of memory");
		goto out;
	}
#ifdef GR_MUTANT_IMAGE_EARLY_NAME
	(void)snprintf(s->part_path, strlen(path) + 1, "%s", path);
#endif
	rc = check_name(path, err);
	if (rc == 0) {
		rc = open_part(s, err);
	}
	if (rc < 0) {
		goto out;
	}
	/* Cut off only once it is ours. */
	if (ftruncate(s->fd, 0) < 0) {
		rc = gr_error_set(err, -errno, "%s: %s", s->part_path, strerror(errno));
		goto out;
	}
	*ret_store = s;
	return 0;
out:
	gr_image_store_free(s);
	return rc;
}

void gr_image_store_free(struct gr_image_store *s)
{
	if (!s) {
		return;
	}
	if (s->fd >= 0) {
		(void)close(s->fd);
	}
	for (size_t i = 0; i < s->count; i++) {
		free(s->blocks[i].present);
		free(s->blocks[i].written);
	}
	free(s->blocks);
	free(s->config);
	free(s->part_path);
	free(s->path);
	free(s);
}

static int write_at(struct gr_image_store *s, const void *data, size_t n, uint64_t at,
		    struct gr_error *err)
{
	int rc = gr_file_pwrite(s->fd, data, n, at);

	if (rc < 0) {
		return gr_error_set(err, rc, "%s: cannot write at byte %" PRIu64 ": %s",
				    s->part_path, at, strerror(-rc));
	}
	return 0;
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
	return write_at(s, s->config, s->config_bytes, 0, err);
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
	rc = gr_image_layout(s->config_bytes + sizeof(start), s->page_bytes, laid_out, n,
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
	s->section_id = section_id;
	start[0] = GR_SECTION_START;
	gr_put_be32(start + 1, section_id);
	start[5] = 3;
	memcpy(start + 6, GR_RAM_SECTION_NAME, 3);
	gr_put_be32(start + 9, 0);
	gr_put_be32(start + 13, GR_RAM_SECTION_VERSION);
	gr_put_be64(start + 17, total | GR_RAM_MEM_SIZE);
	return write_at(s, start, sizeof(start), s->config_bytes, err);
}

static void mark(uint64_t *bits, uint64_t page)
{
	bits[page / 64] |= UINT64_C(1) << (page % 64);
}

static bool marked(const uint64_t *bits, uint64_t page)
{
	return (bits[page / 64] >> (page % 64)) & 1;
}

int gr_image_store_pages(struct gr_image_store *s, size_t block, const uint64_t *offsets,
			 size_t count, const uint8_t *data, uint32_t *ret_bad, struct gr_error *err)
{
	struct block *b = &s->blocks[block];

	for (size_t i = 0, n; i < count; i += n) {
		uint64_t first = offsets[i] / s->page_bytes;
		int rc;

		for (n = 1; i + n < count; n++) {
			if (offsets[i + n] != offsets[i] + n * s->page_bytes) {
				break;
			}
		}
		rc = write_at(s, data + i * s->page_bytes, n * s->page_bytes,
			      b->place.pages_at + offsets[i], err);
		if (rc < 0) {
			*ret_bad = (uint32_t)i;
			return rc;
		}
		for (size_t k = 0; k < n; k++) {
			mark(b->present, first + k);
			mark(b->written, first + k);
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
	for (uint64_t page = offset / s->page_bytes; page < end;) {
		if (page % 64 == 0 && end - page >= 64) {
			b->present[page / 64] = 0;
			page += 64;
		} else {
			b->present[page / 64] &= ~(UINT64_C(1) << (page % 64));
			page++;
		}
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
	rc = gr_file_pread(s->fd, page, s->page_bytes, at);
	if (rc < 0) {
		return gr_error_set(err, rc, "%s: cannot read back byte %" PRIu64 ": %s",
				    s->part_path, at, strerror(-rc));
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
		rc = gr_file_zero(s->fd, b->place.pages_at + page * s->page_bytes,
				  n * s->page_bytes);
		if (rc < 0) {
			return gr_error_set(
				err, rc,
				"%s: block '%s', page at %#" PRIx64 ": cannot make it zero: %s",
				s->part_path, b->place.id, page * s->page_bytes, strerror(-rc));
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

/* The name and the data have to be on disk before anybody is told so. */
static int commit(struct gr_image_store *s, struct gr_error *err)
{
	char *folder_of = strdup(s->path);
	int folder = -1, rc = 0;

	if (!folder_of) {
		return gr_error_set(err, -ENOMEM, "out of memory");
	}
	if (fdatasync(s->fd) < 0) {
		rc = gr_error_set(err, -errno, "%s: %s", s->part_path, strerror(errno));
		goto out;
	}
	folder = open(dirname(folder_of), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (rename(s->part_path, s->path) < 0) {
		rc = gr_error_set(err, -errno, "%s: cannot be renamed to %s: %s", s->part_path,
				  s->path, strerror(errno));
		goto out;
	}
	/* EINVAL: a file system that has no such thing */
	if (folder >= 0 && fsync(folder) < 0 && errno != EINVAL) {
		rc = gr_error_set(err, -errno, "%s: its folder cannot be written to disk: %s",
				  s->path, strerror(errno));
	}
out:
	if (folder >= 0) {
		(void)close(folder);
	}
	free(folder_of);
	return rc;
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
	return rc < 0 ? rc : commit(s, err);
}
