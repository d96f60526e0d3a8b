/* SPDX-License-Identifier: MIT */
/* An open image: what the file's parser (open.c) finds and the others use. */
#ifndef GR_IMAGE_IMAGE_H
#define GR_IMAGE_IMAGE_H

#include "image/format.h"
#include "stream/tail.h"
#include <guestram/image.h>

/* All of it is constant after gr_image_open(). */
struct gr_image_part {
	struct gr_image_place place;
	uint64_t *present; /* bit i: page i is in the file */
	uint64_t present_pages;
};

struct gr_image {
	int fd;
	char *path;
	uint64_t begin; /* where it begins in the file; places are counted from the file's start */
	uint64_t file_bytes;
	uint64_t disk_bytes;
	uint8_t *config_raw;
	struct gr_image_config config;
	uint32_t page_bytes;
	uint32_t section_id;
	struct gr_image_part *parts;
	uint32_t count;
	uint64_t ram_bytes;
	uint64_t tail_at;
	struct gr_tail tail;
	bool terminated;
	struct gr_tail_device *devices;
	size_t device_count;
};

/**
 * Whether a page is in the file.
 * @param part The block.
 * @param page Index.
 * @return true if it is; otherwise it is zero.
 */
static inline bool gr_image_part_present(const struct gr_image_part *part, uint64_t page)
{
	return (part->present[page / 64] >> (page % 64)) & 1;
}

/**
 * How far the state of a page goes on.
 * @param part The block.
 * @param page Where to begin.
 * @param end  Not beyond this.
 * @return Pages from page on that are all present, or all not; at least 1.
 */
uint64_t gr_image_part_run(const struct gr_image_part *part, uint64_t page, uint64_t end);

/**
 * A message about bytes of a block that cannot be read.
 * @param image  The image.
 * @param part   The block.
 * @param offset Bytes in the block.
 * @param rc     What gr_file_pread() said.
 * @param err    May be NULL.
 * @return rc.
 */
int gr_image_cannot_read(const struct gr_image *image, const struct gr_image_part *part,
			 uint64_t offset, int rc, struct gr_error *err);

#endif
