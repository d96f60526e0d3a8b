/* SPDX-License-Identifier: MIT */
/**
 * guestram/image.h - a machine's RAM and device state as a file.
 *
 * An image is a QEMU migration stream in the mapped-ram layout (QEMU 9.0 and later): each
 * page has its own place, so that a page received twice is written twice to the same place
 * and the file never grows beyond RAM, bitmaps and device state. The device state is kept
 * as an opaque tail. An image is complete only if its description ends with the last byte.
 *
 *     gr_image_receive(channel, "vm.ram", NULL, &stats, &err);   // from a running QEMU
 *     gr_image_open("vm.ram", &image, &err);
 *     gr_image_send(image, channel, NULL, &stats, &err);         // into a QEMU -incoming
 *
 * Threads: an open image may be read from several threads.
 */
#ifndef GUESTRAM_IMAGE_H
#define GUESTRAM_IMAGE_H

#include <guestram/channel.h>
#include <guestram/error.h>
#include <guestram/migrate.h>
#include <guestram/types.h>

GR_BEGIN_DECLS

struct gr_image;

/** How to receive into a file. Zero what you do not set. */
struct gr_image_params {
	size_t size;             /**< sizeof(struct gr_image_params) */
	bool allow_unterminated; /**< accept a stream without the closing description */
	/** Called now and then; may be NULL. */
	void (*progress)(void *opaque, const struct gr_migrate_stats *stats);
	void *opaque;
};

/**
 * Receive a migration stream into an image. The file appears under its name only when it
 * is complete: until then it is path + ".part", which stays when the stream breaks off.
 *
 * @param channel   An open incoming channel; borrowed.
 * @param path      The image; an older one is replaced.
 * @param params    May be NULL.
 * @param ret_stats Set on success; may be NULL.
 * @param err       May be NULL.
 * @return 0 or a negative errno.
 * @errors  -EBADMSG the stream is wrong or incomplete; -EISDIR, -EINVAL path is a folder, a
 *          device or the like; -EBUSY somebody else receives there; -ENOSPC and other file
 *          errors.
 * @context Any thread. Blocks. The source is acknowledged only after the data is on disk.
 */
GR_EXPORT GR_MUST_CHECK int gr_image_receive(struct gr_channel *channel, const char *path,
					     const struct gr_image_params *params,
					     struct gr_migrate_stats *ret_stats,
					     struct gr_error *err);

/**
 * Open an image and check that it is complete.
 * @param path      The file.
 * @param ret_image Set on success only.
 * @param err       May be NULL.
 * @return 0 or a negative errno.
 * @errors  -ENOENT and other file errors; -EBADMSG no image, or incomplete: what and where.
 * @context Any thread.
 */
GR_EXPORT GR_MUST_CHECK int gr_image_open(const char *path, struct gr_image **ret_image,
					  struct gr_error *err);
/** Close it. @param image May be NULL. @context Any. */
GR_EXPORT void gr_image_close(struct gr_image *image);

/** A block in an image. */
struct gr_image_block {
	const char *id;         /**< borrowed from the image */
	uint64_t used_bytes;
	uint32_t page_bytes;
	uint64_t present_pages; /**< pages with bytes; the others are zero */
	uint64_t data_offset;   /**< where page 0 is in the file, bytes */
};

/** A device section in an image. */
struct gr_image_device {
	const char *name;       /**< borrowed from the image */
	uint32_t instance;
	uint32_t version;
};

/** What an image has. */
struct gr_image_info {
	const char *machine;    /**< machine name; borrowed from the image */
	uint32_t blocks;
	uint32_t devices;
	uint64_t ram_bytes;     /**< sum of the blocks' lengths */
	uint64_t file_bytes;    /**< length of the file */
	uint64_t disk_bytes;    /**< what it occupies */
	uint64_t tail_bytes;    /**< device state and description */
	bool terminated;        /**< the description ends with the last byte */
};

/** @param image The image. @param ret_info Filled. @context Any. */
GR_EXPORT void gr_image_info(const struct gr_image *image, struct gr_image_info *ret_info);

/**
 * @param image     The image.
 * @param index     Below gr_image_info.blocks.
 * @param ret_block Filled.
 * @return 0 or -ENOENT.
 * @context Any.
 */
GR_EXPORT int gr_image_block(const struct gr_image *image, uint32_t index,
			     struct gr_image_block *ret_block);

/**
 * @param image      The image.
 * @param index      Below gr_image_info.devices.
 * @param ret_device Filled.
 * @return 0 or -ENOENT.
 * @context Any.
 */
GR_EXPORT int gr_image_device(const struct gr_image *image, uint32_t index,
			      struct gr_image_device *ret_device);

/**
 * Read a block's bytes.
 * @param image  The image.
 * @param index  Which block.
 * @param offset From which byte of the block on.
 * @param buf    To where.
 * @param bytes  How many.
 * @param err    May be NULL.
 * @return 0 or a negative errno.
 * @errors  -EINVAL beyond the block; file errors.
 * @context Any thread.
 */
GR_EXPORT GR_MUST_CHECK int gr_image_read(struct gr_image *image, uint32_t index, uint64_t offset,
					  void *buf, size_t bytes, struct gr_error *err);

/**
 * Send an image as a plain migration stream, with the device state untouched, to a QEMU of
 * the same version and machine started with -incoming.
 * @param image     The image.
 * @param channel   An open outgoing channel; borrowed.
 * @param params    May be NULL.
 * @param ret_stats Set on success; may be NULL.
 * @param err       May be NULL.
 * @return 0 or a negative errno.
 * @errors  Channel and file errors.
 * @context Any thread. Blocks.
 */
GR_EXPORT GR_MUST_CHECK int gr_image_send(struct gr_image *image, struct gr_channel *channel,
					  const struct gr_image_params *params,
					  struct gr_migrate_stats *ret_stats,
					  struct gr_error *err);

GR_END_DECLS
#endif
