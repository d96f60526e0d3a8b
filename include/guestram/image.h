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
 * A machine of one's own is saved and loaded without a stream, by several threads, around the page cache
 * where the file system can do that:
 *
 *     struct gr_image_save_params p = { .size = sizeof(p), .threads = 4, .direct = true };
 *     gr_image_save(ram, "vm.ram", &p, &stats, &err);            // it is stopped
 *     gr_image_load(image, other_ram, NULL, &ops, &stats, &err); // before it runs
 *
 * Threads: an open image may be read from several threads, and be loaded into several machines.
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
	uint64_t offset;         /**< receive: where in the file the image begins; bytes in front of
				  *   it stay what they are */
	const struct gr_multifd *multifd; /**< further channels (guestram/multifd.h); NULL: none */
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
/**
 * Open an image that does not begin with the file, as QEMU and libvirt write them (file:PATH,offset=N).
 * @param path      The file.
 * @param offset    Its first byte of the image.
 * @param ret_image Set on success only.
 * @param err       May be NULL.
 * @return 0 or a negative errno.
 * @errors  As gr_image_open().
 * @context Any thread.
 */
GR_EXPORT GR_MUST_CHECK int gr_image_open_at(const char *path, uint64_t offset,
					     struct gr_image **ret_image, struct gr_error *err);
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

/** How saving or loading went. */
struct gr_image_stats {
	uint64_t data_pages;     /**< with bytes in the file */
	uint64_t zero_pages;     /**< the others */
	uint64_t total_time_ns;
	bool direct;             /**< pages went around the page cache */
	char why_not_direct[96]; /**< if it was asked for and they did not: why; else "" */
};

/** How to save. Zero what you do not set. */
struct gr_image_save_params {
	size_t size;             /**< sizeof(struct gr_image_save_params) */
	const char *machine;     /**< machine name in the image; NULL: "guestram" */
	uint64_t offset;         /**< where in the file the image begins; bytes in front of it stay
				  *   what they are */
	unsigned int threads;    /**< that write, the caller's among them; at most 64 */
	bool direct;             /**< write pages around the page cache where that is possible */
	/** Save vCPUs and devices with gr_state_put(). NULL: there are none. */
	int (*save)(void *opaque, struct gr_state_writer *writer, struct gr_error *err);
	void *opaque;            /**< for save() */
};

/**
 * Save a machine that does not run. All blocks that take part in migrations are in the image. Pages that are
 * zero take no space, and memory that nobody touched is not read. The file appears under its name only when
 * it is complete and on disk; until then it is path + ".part", which stays after a failure.
 *
 * @param ram       The machine's RAM. Nobody stores to it or gives memory back meanwhile.
 * @param path      The image; an older one is replaced.
 * @param params    May be NULL.
 * @param ret_stats Set on success; may be NULL.
 * @param err       May be NULL.
 * @return 0 or a negative errno.
 * @errors  -EISDIR, -EINVAL path is a folder, a device or the like; -EBUSY somebody else writes there;
 *          -ENOTSUP a block that is mapped on demand; -ENOSPC and other file errors, with block and page;
 *          what save() returned.
 * @context Any thread, outside a read-side section. Blocks.
 */
GR_EXPORT GR_MUST_CHECK int gr_image_save(struct gr_ram *ram, const char *path,
					  const struct gr_image_save_params *params,
					  struct gr_image_stats *ret_stats, struct gr_error *err)
	GR_EXCLUDES(gr_rcu_section);

/** How to load. Zero what you do not set. */
struct gr_image_load_params {
	size_t size;             /**< sizeof(struct gr_image_load_params) */
	const char *machine;     /**< expected machine name; NULL: any */
	unsigned int threads;    /**< that read, the caller's among them; at most 64 */
	bool direct;             /**< read pages around the page cache where that is possible */
};

/**
 * Load an image into a machine that does not run. Blocks that it has are filled (their lengths must agree),
 * others are created.
 *
 * @param image     The image.
 * @param ram       The machine's RAM.
 * @param params    May be NULL.
 * @param ops       load, complete and block_add are as for a destination. May be NULL.
 * @param ret_stats Set on success; may be NULL.
 * @param err       May be NULL.
 * @return 0: the guest may run; or a negative errno: it must not, its RAM is undefined.
 * @errors  -EINVAL another machine, page size or length of a block; file errors with block and place;
 *          what ops returned.
 * @context One thread for each machine, outside a read-side section. Blocks.
 */
GR_EXPORT GR_MUST_CHECK int gr_image_load(struct gr_image *image, struct gr_ram *ram,
					  const struct gr_image_load_params *params,
					  const struct gr_destination_ops *ops,
					  struct gr_image_stats *ret_stats, struct gr_error *err)
	GR_EXCLUDES(gr_rcu_section);

GR_END_DECLS
#endif
