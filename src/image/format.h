/* SPDX-License-Identifier: MIT */
/*
 * The file: QEMU's migration stream in the mapped-ram layout (QEMU 9.0 and later).
 *
 *   header, configuration with the capability "mapped-ram"
 *   START of 'ram': be64 total | MEM_SIZE, then for each block
 *     str8 id, be64 used bytes
 *     be32 version 1, be64 page bytes, be64 bitmap's place, be64 pages' place
 *     bitmap, one bit a page, least significant first, set = the page is in the file
 *     padding to a multiple of 1 MiB (ours: of a page, in front of a small block)
 *     the pages, each at its place; those that are zero are holes
 *   EOS, footer
 *   PART sections with nothing in them, END with nothing in it
 *   device tail: FULL sections, EOF, description
 *
 * Readers take the alignment from the header and only insist on a multiple of the page;
 * so small blocks go without 1 MiB of padding each, and the file of a small guest stays
 * small.
 *
 * In the padding in front of the first block's pages we leave a stamp, which QEMU skips:
 * how long the device tail is. It lets us tell a whole file from a torn one also where
 * the sender left the description out.
 */
#ifndef GR_IMAGE_FORMAT_H
#define GR_IMAGE_FORMAT_H

#include "stream/wire.h"
#include <guestram/error.h>

#define GR_IMAGE_CAPABILITY "mapped-ram"
enum {
	GR_IMAGE_MAPPED_HEADER_BYTES = 28, /* version, page size, two offsets: packed */
	GR_IMAGE_MAPPED_VERSION = 1,
	GR_IMAGE_ALIGN_BYTES = 1 << 20,
	GR_IMAGE_STAMP_BYTES = 24, /* magic, be64 tail bytes, be64 reserved: zero */
	GR_IMAGE_CAPABILITIES_MAX = 64,
	GR_IMAGE_BLOCKS_MAX = 4096, /* QEMU machines have some tens; the list is searched */
};
#define GR_IMAGE_STAMP_MAGIC "GRstamp1"
/* From here on a block's pages begin at a multiple of 1 MiB: at most 1.6 % of padding. */
#define GR_IMAGE_ALIGN_FROM_BYTES (UINT64_C(64) << 20)
/* An image may begin here at the latest (file:PATH,offset=N): far below where sums of places would
 * wrap. */
#define GR_IMAGE_OFFSET_MAX (UINT64_C(1) << 60)
/* Bitmaps of all blocks together, as kept in memory: 32 TiB of RAM. */
#define GR_IMAGE_BITMAP_BYTES_MAX (UINT64_C(1) << 30)

/* A configuration section taken apart. Pointers go into the bytes that were parsed. */
struct gr_image_config {
	char machine[GR_STREAM_MACHINE_BYTES_MAX + 1];
	uint32_t page_bytes; /* 4096 unless it says otherwise */
	bool mapped;	     /* the capability mapped-ram is there */
	size_t bytes;	     /* of the whole: where the next section begins */
	bool has_section;    /* there is more than the file header */
	/* the subsection of the capabilities, if capabilities_bytes is not 0 */
	size_t capabilities_at;
	size_t capabilities_bytes;
};

/**
 * Take file header and configuration section apart.
 * @param data   Begins with the file header; may go on behind the configuration.
 * @param n      Bytes of it.
 * @param config Filled on success.
 * @param err    May be NULL.
 * @return 0 or a negative errno.
 * @errors -EBADMSG not a migration stream, cut off, or a length beyond its maximum;
 *         -EOPNOTSUPP a subsection or version unknown to us. The byte is named.
 */
GR_MUST_CHECK int gr_image_config_parse(const uint8_t *data, size_t n,
					struct gr_image_config *config, struct gr_error *err);

/**
 * The same configuration with or without the capability mapped-ram.
 * @param data      What gr_image_config_parse() has parsed.
 * @param config    What came out.
 * @param mapped    Whether the capability shall be there.
 * @param ret_data  The new bytes, to be freed.
 * @param ret_bytes How many.
 * @param err       May be NULL.
 * @return 0, -ENOMEM, or -EFBIG: it would not fit into GR_STREAM_CONFIG_BYTES_MAX.
 */
GR_MUST_CHECK int gr_image_config_rewrite(const uint8_t *data, const struct gr_image_config *config,
					  bool mapped, uint8_t **ret_data, size_t *ret_bytes,
					  struct gr_error *err);

/* Where a block is in the file. */
struct gr_image_place {
	char id[GR_STREAM_ID_BYTES_MAX + 1];
	uint64_t used_bytes;
	uint64_t header_at; /* str8 id */
	uint64_t bitmap_at;
	uint64_t pages_at;
};

/**
 * Bytes of a block's bitmap in the file: whole 64-bit words.
 * @param used_bytes Of the block.
 * @param page_bytes Of a page.
 * @return Bytes.
 */
static inline uint64_t gr_image_bitmap_bytes(uint64_t used_bytes, uint32_t page_bytes)
{
	return GR_DIV_ROUND_UP(used_bytes / page_bytes, 64) * 8;
}

/**
 * Lay blocks out, in their order.
 * @param at         Where the first block's header goes.
 * @param page_bytes Of the target.
 * @param places     id and used_bytes are given, the rest is filled.
 * @param n          How many.
 * @param ret_end    Where the pages of the last one end.
 * @param err        May be NULL.
 * @return 0 or -EFBIG: no file can be as long as that.
 */
GR_MUST_CHECK int gr_image_layout(uint64_t at, uint32_t page_bytes, struct gr_image_place *places,
				  size_t n, uint64_t *ret_end, struct gr_error *err);

#endif
