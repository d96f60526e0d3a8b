/* SPDX-License-Identifier: MIT */
/*
 * Opens an image that anybody may have written: every length is checked against the file
 * before it is believed, and what is wrong is said with the byte.
 */
#include "image/file.h"
#include "image/image.h"
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

/* The file is read through a window that moves forward. */
struct parser {
	struct gr_image *image;
	uint64_t at;
	struct gr_error *err;
};

static int bad(struct parser *p, uint64_t at, const char *what)
{
	return gr_error_set(p->err, -EBADMSG, "byte %" PRIu64 ": %s", at, what);
}

static int take(struct parser *p, void *buf, size_t n)
{
	int rc;

	if (p->at > p->image->file_bytes || n > p->image->file_bytes - p->at) {
		return gr_error_set(p->err, -EBADMSG, "byte %" PRIu64 ": the image is incomplete",
				    p->image->file_bytes);
	}
	rc = gr_file_pread(p->image->fd, buf, n, p->at);
	if (rc == -EPIPE) { /* somebody cut it while we read */
		return bad(p, p->at, "the image is incomplete");
	}
	if (rc < 0) {
		return gr_error_set(p->err, rc, "byte %" PRIu64 ": %s", p->at, strerror(-rc));
	}
	p->at += n;
	return 0;
}

static int parse_config(struct parser *p)
{
	struct gr_image *image = p->image;
	size_t n = 0;
	int rc;

	if (p->at < image->file_bytes) {
		n = GR_MIN(image->file_bytes - p->at, (uint64_t)GR_STREAM_CONFIG_BYTES_MAX);
	}

	image->config_raw = malloc(GR_STREAM_CONFIG_BYTES_MAX);
	if (!image->config_raw) {
		return gr_error_set(p->err, -ENOMEM, "out of memory");
	}
	rc = take(p, image->config_raw, n);
	if (rc == 0) {
		rc = gr_image_config_parse(image->config_raw, n, &image->config, p->err);
		if (rc < 0 && image->begin > 0) {
			(void)gr_error_prefix(p->err, "counted from byte %" PRIu64 ": ",
					      image->begin);
		}
	}
	if (rc < 0) {
		return rc == -EOPNOTSUPP ? -EBADMSG : rc;
	}
	p->at = image->begin + image->config.bytes;
	if (image->config.has_section && !image->config.mapped) {
		return bad(p, p->at, "a migration stream, but not one in the mapped-ram layout");
	}
	image->page_bytes = image->config.page_bytes;
	return 0;
}

static int parse_start(struct parser *p, uint64_t *ret_total)
{
	uint8_t start[1 + 4 + 1 + 3 + 4 + 4 + 8];
	uint64_t at = p->at, total;
	int rc = take(p, start, sizeof(start));

	if (rc < 0) {
		return rc;
	}
	if (start[0] != GR_SECTION_START || start[5] != 3 ||
	    memcmp(start + 6, GR_RAM_SECTION_NAME, 3) != 0 || gr_get_be32(start + 9) != 0) {
		return bad(p, at, "the section 'ram' should begin here");
	}
	if (gr_get_be32(start + 13) != GR_RAM_SECTION_VERSION) {
		return bad(p, at, "the section 'ram' is of another version");
	}
	total = gr_get_be64(start + 17);
	if ((total & 0xfff) != GR_RAM_MEM_SIZE) {
		return bad(p, at + 17, "the list of blocks should begin here");
	}
	p->image->section_id = gr_get_be32(start + 1);
	*ret_total = total & ~UINT64_C(0xfff);
	return 0;
}

/* The header of one block; the part is filled but for its bitmap. */
static int parse_block_header(struct parser *p, struct gr_image_part *part)
{
	struct gr_image_place *place = &part->place;
	uint8_t head[8 + GR_IMAGE_MAPPED_HEADER_BYTES], id_bytes;
	uint64_t at = p->at;
	int rc = take(p, &id_bytes, 1);

	if (rc == 0) {
		rc = take(p, place->id, id_bytes);
	}
	if (rc == 0) {
		rc = take(p, head, sizeof(head));
	}
	if (rc < 0) {
		return rc;
	}
	place->id[id_bytes] = '\0';
	if (id_bytes == 0 || strlen(place->id) != id_bytes) {
		return bad(p, at, "a block without a proper name");
	}
	place->header_at = at;
	place->used_bytes = gr_get_be64(head);
	place->bitmap_at = gr_get_be64(head + 20);
	place->pages_at = gr_get_be64(head + 28);
	if (gr_get_be32(head + 8) > GR_IMAGE_MAPPED_VERSION) {
		return bad(p, at, "a block in a newer layout");
	}
	if (gr_get_be64(head + 12) != p->image->page_bytes) {
		return bad(p, at, "a block with pages of another size than the machine's");
	}
	return 0;
}

/* Everything a block says about places must be in the file, in order, without overlaps. */
static int check_place(struct parser *p, const struct gr_image_place *place)
{
	uint64_t file_bytes = p->image->file_bytes, bitmap_bytes;
	uint32_t page_bytes = p->image->page_bytes;

	if (place->used_bytes == 0 || place->used_bytes % page_bytes != 0 ||
	    place->used_bytes > GR_STREAM_BLOCK_BYTES_MAX) {
		return gr_error_set(p->err, -EBADMSG,
				    "byte %" PRIu64 ": block '%s' of %#" PRIx64 " bytes",
				    place->header_at, place->id, place->used_bytes);
	}
	bitmap_bytes = gr_image_bitmap_bytes(place->used_bytes, page_bytes);
	if (place->bitmap_at < p->at || place->bitmap_at > file_bytes ||
	    bitmap_bytes > file_bytes - place->bitmap_at) {
		return gr_error_set(p->err, -EBADMSG,
				    "byte %" PRIu64 ": the bitmap of block '%s' is not in the file",
				    place->header_at, place->id);
	}
#ifdef GR_MUTANT_IMAGE_TRUSTS_PLACES
	return 0;
#endif
	if (place->pages_at % page_bytes != 0 ||
	    place->pages_at < place->bitmap_at + bitmap_bytes || place->pages_at > file_bytes ||
	    place->used_bytes > file_bytes - place->pages_at) {
		return gr_error_set(p->err, -EBADMSG,
				    "byte %" PRIu64 ": the pages of block '%s' are not in the file",
				    place->header_at, place->id);
	}
	return 0;
}

static int load_bitmap(struct parser *p, struct gr_image_part *part, uint64_t *budget)
{
	uint64_t bytes = gr_image_bitmap_bytes(part->place.used_bytes, p->image->page_bytes);
	uint64_t words = bytes / 8;
	uint64_t pages = part->place.used_bytes / p->image->page_bytes;
	int rc;

	if (bytes > *budget) {
		return gr_error_set(p->err, -EFBIG,
				    "byte %" PRIu64 ": block '%s': more RAM than an image can hold",
				    part->place.header_at, part->place.id);
	}
	*budget -= bytes;
	part->present = malloc(bytes);
	if (!part->present) {
		return gr_error_set(p->err, -ENOMEM, "block '%s': no memory for its bitmap",
				    part->place.id);
	}
	p->at = part->place.bitmap_at;
	rc = take(p, part->present, bytes);
	if (rc < 0) {
		return rc;
	}
	for (uint64_t i = 0; i < words; i++) {
		uint64_t word = le64toh(part->present[i]);

		if (i == words - 1 && pages % 64 != 0) { /* bits beyond the block mean nothing */
			word &= (UINT64_C(1) << (pages % 64)) - 1;
		}
		part->present[i] = word;
		part->present_pages += (uint64_t)__builtin_popcountll(word);
	}
	return 0;
}

static int add_part(struct gr_image *image, struct gr_image_part **ret_part, struct gr_error *err)
{
	/* grows with what the file really has: doubled when a power of two is reached */
	if (GR_IS_POWER_OF_TWO(image->count) || image->count == 0) {
		size_t n = image->count == 0 ? 1 : (size_t)image->count * 2;
		struct gr_image_part *parts = reallocarray(image->parts, n, sizeof(*parts));

		if (!parts) {
			return gr_error_set(err, -ENOMEM, "out of memory");
		}
		image->parts = parts;
	}
	*ret_part = &image->parts[image->count];
	memset(*ret_part, 0, sizeof(**ret_part));
	return 0;
}

static bool id_taken(const struct gr_image *image, const char *id)
{
	for (uint32_t i = 0; i < image->count; i++) {
		if (strcmp(image->parts[i].place.id, id) == 0) {
			return true;
		}
	}
	return false;
}

static int parse_blocks(struct parser *p, uint64_t total)
{
	struct gr_image *image = p->image;
	uint64_t budget = GR_IMAGE_BITMAP_BYTES_MAX;

	while (image->ram_bytes < total) {
		struct gr_image_part *part = NULL;
		uint64_t at = p->at;
		int rc = add_part(image, &part, p->err);

		if (rc == 0) {
			rc = parse_block_header(p, part);
		}
		if (rc == 0) {
			rc = check_place(p, &part->place);
		}
		if (rc < 0) {
			return rc;
		}
		if (part->place.used_bytes > total - image->ram_bytes) {
			return bad(p, at, "the blocks are larger than their total");
		}
		if (image->count == GR_IMAGE_BLOCKS_MAX) {
			return bad(p, at, "too many blocks");
		}
		if (id_taken(image, part->place.id)) {
			return gr_error_set(p->err, -EBADMSG,
					    "byte %" PRIu64 ": a second block '%s'", at,
					    part->place.id);
		}
		image->count++; /* from here on gr_image_close() frees its bitmap */
		rc = load_bitmap(p, part, &budget);
		if (rc < 0) {
			return rc;
		}
		image->ram_bytes += part->place.used_bytes;
		p->at = part->place.pages_at + part->place.used_bytes;
	}
	return image->count == 0 ? bad(p, p->at, "an image without blocks") : 0;
}

/* What ends a section of 'ram' here: flushes of QEMU's channels, EOS, footer. */
static int parse_section_end(struct parser *p)
{
	uint8_t word[8], footer[5];
	uint64_t at, flags;
	int rc;

	do {
		at = p->at;
		rc = take(p, word, sizeof(word));
		if (rc < 0) {
			return rc;
		}
		flags = gr_get_be64(word);
	} while (flags == GR_RAM_MULTIFD_FLUSH);
	if (flags != GR_RAM_EOS) {
		return bad(p, at, "page records in an image: pages have their places");
	}
	at = p->at;
	rc = take(p, footer, sizeof(footer));
	if (rc < 0) {
		return rc;
	}
	if (footer[0] != GR_SECTION_FOOTER || gr_get_be32(footer + 1) != p->image->section_id) {
		return bad(p, at, "the footer of section 'ram' should be here");
	}
	return 0;
}

/* Behind the type of a COMMAND: a QEMU of version 10 or later announces the switch-over. */
static int skip_command(struct parser *p, uint64_t at)
{
	uint8_t head[4];
	int rc = take(p, head, sizeof(head));

	if (rc < 0) {
		return rc;
	}
	if (gr_get_be16(head) != GR_COMMAND_SWITCHOVER_START || gr_get_be16(head + 2) != 0) {
		return bad(p, at, "a command that has no place in an image");
	}
	return 0;
}

/* { PART | COMMAND }* [END] COMMAND*, up to the first byte of the tail. */
static int parse_sections(struct parser *p)
{
	int rc = parse_section_end(p);
	bool ended = false;

	while (rc == 0) {
		uint8_t head[5];
		uint64_t at = p->at;

		rc = take(p, head, 1);
		if (rc < 0) {
			return rc;
		}
		if (head[0] == GR_SECTION_COMMAND) {
			rc = skip_command(p, at);
			continue;
		}
		if (ended || (head[0] != GR_SECTION_PART && head[0] != GR_SECTION_END)) {
			p->at = at;
			return 0;
		}
		rc = take(p, head + 1, 4);
		if (rc < 0) {
			return rc;
		}
		if (gr_get_be32(head + 1) != p->image->section_id) {
			return bad(p, at, "a section of something else than 'ram'");
		}
		ended = head[0] == GR_SECTION_END;
		rc = parse_section_end(p);
	}
	return rc;
}

/* Our stamp: how long the tail has to be. Not there: an image of somebody else's. */
static int read_stamp(struct parser *p, bool *ret_stamped, uint64_t *ret_tail_bytes)
{
	const struct gr_image_place *first = &p->image->parts[0].place;
	uint8_t stamp[GR_IMAGE_STAMP_BYTES];
	int rc;

	p->at = first->bitmap_at + gr_image_bitmap_bytes(first->used_bytes, p->image->page_bytes);
	*ret_stamped = false;
	if (first->pages_at - p->at < sizeof(stamp)) {
		return 0;
	}
	rc = take(p, stamp, sizeof(stamp));
	if (rc == 0 && memcmp(stamp, GR_IMAGE_STAMP_MAGIC, 8) == 0) {
		*ret_stamped = true;
		*ret_tail_bytes = gr_get_be64(stamp + 8);
	}
	return rc;
}

static int read_tail(struct parser *p)
{
	struct gr_image *image = p->image;
	uint8_t buf[16 << 10];

	gr_tail_init(&image->tail, 0);
	p->at = image->tail_at;
	while (p->at < image->file_bytes) {
		size_t n = GR_MIN(image->file_bytes - p->at, (uint64_t)sizeof(buf));
		int rc = take(p, buf, n);

		if (rc == 0) {
			rc = gr_tail_append(&image->tail, buf, n, p->err);
		}
		if (rc < 0) {
			return rc;
		}
	}
	return 0;
}

static int parse_tail(struct parser *p)
{
	struct gr_image *image = p->image;
	uint64_t want = 0, have = image->file_bytes - image->tail_at;
	bool stamped;
	int rc = read_stamp(p, &stamped, &want);

#ifdef GR_MUTANT_IMAGE_TRUSTS_STAMP
	want = have;
#endif
	if (rc == 0 && stamped && want != have) {
		return gr_error_set(p->err, -EBADMSG,
				    "byte %" PRIu64 ": the image is %s: %" PRIu64
				    " bytes of device state instead of %" PRIu64,
				    image->file_bytes, have < want ? "incomplete" : "too long",
				    have, want);
	}
	if (rc == 0) {
		rc = read_tail(p);
	}
	if (rc < 0) {
		return rc;
	}
	image->terminated = gr_tail_is_complete(&image->tail);
	if (!image->terminated) {
		/* with the stamp we know that it is all the sender had */
		return stamped ? 0
			       : gr_error_set(p->err, -EBADMSG,
					      "byte %" PRIu64
					      ": the image is incomplete: no description "
					      "ends with its last byte",
					      image->file_bytes);
	}
	return gr_tail_devices(&image->tail, &image->devices, &image->device_count, p->err);
}

static int parse(struct gr_image *image, struct gr_error *err)
{
	struct parser p = { .image = image, .at = image->begin, .err = err };
	uint64_t total = 0;
	int rc = parse_config(&p);

	if (rc == 0) {
		rc = parse_start(&p, &total);
	}
	if (rc == 0) {
		rc = parse_blocks(&p, total);
	}
	if (rc == 0) {
		rc = parse_sections(&p);
		image->tail_at = p.at;
	}
	return rc == 0 ? parse_tail(&p) : rc;
}

int gr_image_open(const char *path, struct gr_image **ret_image, struct gr_error *err)
{
	return gr_image_open_at(path, 0, ret_image, err);
}

int gr_image_open_at(const char *path, uint64_t offset, struct gr_image **ret_image,
		     struct gr_error *err)
{
	struct gr_image *image = calloc(1, sizeof(*image));
	struct stat st;
	int rc;

	if (!image) {
		return gr_error_set(err, -ENOMEM, "out of memory");
	}
	image->begin = offset;
	gr_tail_init(&image->tail, 0);
	image->path = strdup(path);
	/* O_NONBLOCK: a FIFO must not keep us */
	image->fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
	if (!image->path || image->fd < 0 || fstat(image->fd, &st) < 0) {
		rc = gr_error_set(err, -errno, "%s: %s", path, strerror(errno));
		goto out;
	}
	if (!S_ISREG(st.st_mode)) {
		rc = gr_error_set(err, -EBADMSG, "%s: not a file", path);
		goto out;
	}
	image->file_bytes = (uint64_t)st.st_size;
	image->disk_bytes = (uint64_t)st.st_blocks * 512;
	rc = parse(image, err);
	if (rc < 0) {
		(void)gr_error_prefix(err, "%s: ", path);
		goto out;
	}
	*ret_image = image;
	return 0;
out:
	gr_image_close(image);
	return rc;
}

void gr_image_close(struct gr_image *image)
{
	if (!image) {
		return;
	}
	for (uint32_t i = 0; i < image->count; i++) {
		free(image->parts[i].present);
	}
	free(image->parts);
	free(image->devices);
	gr_tail_destroy(&image->tail);
	free(image->config_raw);
	if (image->fd >= 0) {
		(void)close(image->fd);
	}
	free(image->path);
	free(image);
}
