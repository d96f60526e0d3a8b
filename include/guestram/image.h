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
	const uint8_t *uuid;     /**< receive: 16 bytes, refuse a stream that says another one (QEMU's
				  *   validate-uuid); NULL: any */
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
 * it is complete and on disk; until then it is path + ".part", which stays after a failure. Where the folder
 * cannot be written to disk in the end it fails and the new image has the name, perhaps not after a crash.
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

/** A machine that runs while its memory still comes from an image. */
struct gr_image_resume;

/** How far it is. */
enum gr_image_resume_state {
	GR_IMAGE_RESUME_LOADING,
	GR_IMAGE_RESUME_COMPLETED, /**< all memory is there: the image is not needed any more */
	GR_IMAGE_RESUME_FAILED,    /**< something could not be read; gr_image_resume_retry() */
};

/** How to resume. Zero what you do not set. */
struct gr_image_resume_params {
	size_t size;             /**< sizeof(struct gr_image_resume_params) */
	const char *machine;     /**< expected machine name; NULL: any */
	/** Who will touch the memory before it is complete (enum gr_writers of guestram/track.h; here readers
	 *  count as well). */
	unsigned int writers;
	unsigned int threads;    /**< that load ahead; at least 1, at most 16 */
	uint64_t bandwidth_bytes_per_s_max; /**< of loading ahead; 0: no limit */
	bool direct;             /**< read around the page cache where that is possible */
};

/**
 * Load an image's devices and let the machine run at once; its memory comes while it runs. Who touches a
 * page that has not come waits for it alone; threads load the others ahead. It takes some milliseconds
 * whatever the machine's size.
 *
 * What the machine had before is gone. Blocks that cannot be waited for (huge pages, files, the caller's
 * memory; GR_RAM_PREALLOC, GR_RAM_LOCK) are loaded before it returns.
 *
 * Until it is completed a migration, a live snapshot, gr_image_save() of the machine and a dirty rate by
 * sampling fail with -EBUSY, and so does tracking by userfaultfd; KVM's trackers, software marks and discards work as ever.
 *
 * A page that cannot be read: nothing is made up and nobody gets a signal. Who touched it waits, the state is
 * FAILED, gr_image_resume_wait() says what and where, and gr_image_resume_retry() tries again once the
 * reason is mended. If it cannot be mended the machine is lost: end the process. Only load and complete,
 * which run before anybody could try again, read zeroes there, and the start fails.
 *
 *     gr_image_open("vm.ram", &image, &err);
 *     gr_image_resume_start(image, ram, &params, &ops, &resume, &err);
 *     ... the machine runs ...
 *     gr_image_resume_wait(resume, UINT64_MAX, &err);   // or gr_image_resume_fd() in a loop
 *     gr_image_resume_end(resume, &err);
 *     gr_image_close(image);
 *
 * @param image      Borrowed until gr_image_resume_end(). Its file must not be changed meanwhile.
 * @param ram        A machine that does not run. Nobody else uses its memory.
 * @param params     Copied.
 * @param ops        load, complete and block_add are as for a destination. May be NULL.
 * @param ret_resume Set on success only.
 * @param err        May be NULL.
 * @return 0: the machine may run; or a negative errno: it must not, its RAM is undefined.
 * @errors  As gr_image_load(), and -ENOTSUP, -EPERM no userfaultfd here, with the reason: load it at once;
 *          -EINVAL a writer that cannot be made to wait: others than this process, and without privilege all
 *          but GR_WRITERS_STORES; -EBUSY the memory is tracked by userfaultfd, or loading already.
 * @context Outside a read-side section. Starts threads.
 */
GR_EXPORT GR_MUST_CHECK int gr_image_resume_start(struct gr_image *image, struct gr_ram *ram,
						  const struct gr_image_resume_params *params,
						  const struct gr_destination_ops *ops,
						  struct gr_image_resume **ret_resume,
						  struct gr_error *err) GR_EXCLUDES(gr_rcu_section);

/** @param resume It. @return A descriptor that is readable while it is completed or failed. @context Any. */
GR_EXPORT int gr_image_resume_fd(const struct gr_image_resume *resume);

/**
 * Wait until it is completed or failed.
 * @param resume     It.
 * @param timeout_ns How long at most.
 * @param err        May be NULL.
 * @return 0: completed; -ETIMEDOUT; or why it failed, with block and place in the file.
 * @context Any thread, outside a read-side section.
 */
GR_EXPORT GR_MUST_CHECK int gr_image_resume_wait(struct gr_image_resume *resume,
						 uint64_t timeout_ns, struct gr_error *err);

/** Try again what failed; those who wait go on if it succeeds. @param resume It. @context Any thread. */
GR_EXPORT void gr_image_resume_retry(struct gr_image_resume *resume);

/** Counters. */
struct gr_image_resume_stats {
	enum gr_image_resume_state state;
	uint64_t total_bytes;     /**< what had to come while it runs */
	uint64_t left_bytes;      /**< what has not come yet */
	uint64_t discarded_bytes; /**< what was thrown away before it came */
	uint64_t touches;         /**< pages that somebody waited for */
	uint64_t start_ns;        /**< how long gr_image_resume_start() took */
	uint64_t total_ns;        /**< from there until it was completed or failed, or until now */
	bool direct;              /**< reads go around the page cache */
	char why_not_direct[96];  /**< if that was asked for and is not so: why; else "" */
};

/** @param resume It. @param ret_stats Filled. @context Any thread. */
GR_EXPORT void gr_image_resume_stats(struct gr_image_resume *resume,
				     struct gr_image_resume_stats *ret_stats);

/**
 * End it and free it. Before it is completed this is the end of the machine: what has not come reads as
 * zero from then on, also for those who wait.
 * @param resume May be NULL.
 * @param err    May be NULL.
 * @return 0: all memory had come. -ECANCELED: it had not, or this is a child from before the end, to which
 *         nothing comes.
 * @context Outside a read-side section; no other thread uses it. Before gr_ram_free().
 */
GR_EXPORT int gr_image_resume_end(struct gr_image_resume *resume, struct gr_error *err)
	GR_EXCLUDES(gr_rcu_section);

GR_END_DECLS
#endif
