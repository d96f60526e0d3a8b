/* SPDX-License-Identifier: MIT */
/* What is in an open image. */
#include "image/file.h"
#include "image/image.h"
#include <errno.h>
#include <inttypes.h>

void gr_image_info(const struct gr_image *image, struct gr_image_info *ret_info)
{
	*ret_info = (struct gr_image_info){
		.machine = image->config.machine,
		.blocks = image->count,
		.devices = (uint32_t)image->device_count,
		.ram_bytes = image->ram_bytes,
		.file_bytes = image->file_bytes,
		.disk_bytes = image->disk_bytes,
		.tail_bytes = image->file_bytes - image->tail_at,
		.terminated = image->terminated,
	};
}

int gr_image_block(const struct gr_image *image, uint32_t index, struct gr_image_block *ret_block)
{
	const struct gr_image_part *part;

	if (index >= image->count) {
		return -ENOENT;
	}
	part = &image->parts[index];
	*ret_block = (struct gr_image_block){
		.id = part->place.id,
		.used_bytes = part->place.used_bytes,
		.page_bytes = image->page_bytes,
		.present_pages = part->present_pages,
		.data_offset = part->place.pages_at,
	};
	return 0;
}

int gr_image_device(const struct gr_image *image, uint32_t index,
		    struct gr_image_device *ret_device)
{
	if (index >= image->device_count) {
		return -ENOENT;
	}
	*ret_device = (struct gr_image_device){
		.name = image->devices[index].name,
		.instance = image->devices[index].instance_id,
		.version = image->devices[index].version,
	};
	return 0;
}

uint64_t gr_image_part_run(const struct gr_image_part *part, uint64_t page, uint64_t end)
{
	/* the words are seen so that the pages looked for are zeros */
	uint64_t flip = gr_image_part_present(part, page) ? UINT64_MAX : 0;
	uint64_t at = page;

	while (at < end) {
		uint64_t word = (part->present[at / 64] ^ flip) >> (at % 64);

		if (word != 0) {
			at += (uint64_t)__builtin_ctzll(word);
			break;
		}
		at += 64 - at % 64;
	}
	return GR_MIN(at, end) - page;
}

int gr_image_cannot_read(const struct gr_image *image, const struct gr_image_part *part,
			 uint64_t offset, int rc, struct gr_error *err)
{
	int code = rc == -ETIMEDOUT ? -EIO : rc; /* a disk's is no "wait longer" of ours */

	return gr_error_set(err, code, "%s: block '%s' at %#" PRIx64 ", byte %" PRIu64 ": %s",
			    image->path, part->place.id, offset, part->place.pages_at + offset,
			    rc == -EPIPE ? "the file was cut" : strerror(-rc));
}

int gr_image_read(struct gr_image *image, uint32_t index, uint64_t offset, void *buf, size_t bytes,
		  struct gr_error *err)
{
	const struct gr_image_part *part;
	uint8_t *to = buf;
	uint64_t end;

	if (index >= image->count) {
		return gr_error_set(err, -EINVAL, "%s: no block %u", image->path, index);
	}
	part = &image->parts[index];
	if (__builtin_add_overflow(offset, bytes, &end) || end > part->place.used_bytes) {
		return gr_error_set(err, -EINVAL, "%s: block '%s' ends at %#" PRIx64, image->path,
				    part->place.id, part->place.used_bytes);
	}
	while (offset < end) {
		uint64_t page = offset / image->page_bytes;
		uint64_t run =
			gr_image_part_run(part, page, GR_DIV_ROUND_UP(end, image->page_bytes));
		size_t n = GR_MIN((page + run) * image->page_bytes, end) - offset;

		if (!gr_image_part_present(part, page)) {
			memset(to, 0, n);
		} else {
			int rc = gr_file_pread(image->fd, to, n, part->place.pages_at + offset);

			if (rc < 0) {
				return gr_image_cannot_read(image, part, offset, rc, err);
			}
		}
		to += n;
		offset += n;
	}
	return 0;
}
