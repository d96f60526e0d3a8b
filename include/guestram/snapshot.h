/* SPDX-License-Identifier: MIT */
/**
 * guestram/snapshot.h - a machine's RAM and state as an image, while it runs.
 *
 * The image is a consistent cut: what all memory and all devices held at one moment. For that moment
 * the machine stands still; its state is saved, its memory write-protected, and it runs on. Then all pages
 * are written out, in whatever time the disk takes. A page that the guest is about to overwrite is copied
 * first, into a buffer of bounded size; the store that waits for it waits for a copy of one page. When
 * the buffer is full, stores wait for the disk, or the snapshot is given up, as chosen.
 *
 *     struct gr_snapshot_params p = { .size = sizeof(p), .writers = GR_WRITERS_STORES };
 *     gr_snapshot_create(ram, "vm.ram", &p, &ops, &snapshot, &err);
 *     status = gr_snapshot_run(snapshot, &err);    // or gr_snapshot_step() from a loop
 *     gr_snapshot_stats(snapshot, &stats);
 *     gr_snapshot_free(snapshot);
 *
 * The image is what guestram/image.h reads: QEMU's mapped-ram layout. It has its name only when it is
 * whole and on disk. A snapshot that fails, is given up or is cancelled leaves no file, an older image
 * of that name as it was, and the guest running. Where it is the folder that cannot be written to disk
 * in the end it fails and the new image has the name, perhaps not after a crash of the host.
 *
 * Threads: one thread drives it (run or step), best one of its own: steps wait for the disk. Cancel and
 * stats from any thread. Another thread, the library's, makes the copies.
 *
 * Caveats: those of guestram/copy_before_write.h, on which this stands. In short: writers that cannot
 * be stopped are refused (other mappings, other processes, without privilege also system calls and KVM);
 * blocks in files on a disk are refused; memory is in the hands of one userfaultfd, so this does not go
 * together with a tracker that uses it. Blocks may come, go and change their size: the image has those of the
 * moment, as they were. Giving memory back that is not saved yet is as a store to it, but instead of waiting it
 * is -EBUSY. Memory that the host has lost before it was saved ends the snapshot with -EHWPOISON.
 */
#ifndef GUESTRAM_SNAPSHOT_H
#define GUESTRAM_SNAPSHOT_H

#include <guestram/copy_before_write.h>
#include <guestram/error.h>
#include <guestram/migrate.h>
#include <guestram/ram.h>
#include <guestram/types.h>

GR_BEGIN_DECLS

struct gr_snapshot;

/** What becomes of a store to a page that is not saved yet when the buffer is full. */
enum gr_snapshot_when_full {
	GR_SNAPSHOT_WAIT,  /**< it waits until the disk has taken something */
	GR_SNAPSHOT_ABORT, /**< the snapshot ends with -ENOBUFS, and it goes on at once */
};

/** How to take a snapshot. Zero what you do not set. */
struct gr_snapshot_params {
	size_t size;             /**< sizeof(struct gr_snapshot_params) */
	const char *machine;     /**< machine name in the image; NULL: "guestram" */
	unsigned int writers;    /**< enum gr_writers: who writes this machine's memory;
				  *   0: GR_WRITERS_MARKED */
	uint64_t buffer_bytes;   /**< of copies, at most; 0: 64 MiB. At least the largest page */
	enum gr_snapshot_when_full when_full;
	uint64_t bandwidth_bytes_per_s_max; /**< 0: as fast as the disk */
};

/** How a snapshot does. */
struct gr_snapshot_stats {
	/** State, pages, bytes and times as for a migration. downtime_ns: how long the guest was
	 *  stopped. transferred_bytes: given to the file. */
	struct gr_migrate_stats move;
	uint64_t buffer_bytes;       /**< what there is */
	uint64_t buffered_bytes;     /**< copies in it now */
	uint64_t buffered_bytes_max; /**< the most it had */
	uint64_t copied_pages;       /**< copied because they were about to be written */
	struct gr_cbw_stalls below;  /**< stores that waited for a copy */
	struct gr_cbw_stalls above;  /**< stores that waited for room in the buffer */
};

/**
 * Prepare a snapshot. The guest does not notice.
 *
 * @param ram          The machine's RAM.
 * @param path         The image; an older one is replaced at the end.
 * @param params       May be NULL; copied.
 * @param ops          pause, resume and save, as for a source; progress too. Copied. NULL: the machine is
 *                     stopped and has no state.
 * @param ret_snapshot Set on success only.
 * @param err          May be NULL.
 * @return 0 or a negative errno.
 * @errors  -EINVAL; -EISDIR path is a folder; -EBUSY somebody else writes there; -ENOTSUP the guest's
 *          pages are larger than the host's; -ENOMEM; file errors.
 * @context Any thread, outside a read-side section.
 */
GR_EXPORT GR_MUST_CHECK int gr_snapshot_create(struct gr_ram *ram, const char *path,
					       const struct gr_snapshot_params *params,
					       const struct gr_source_ops *ops,
					       struct gr_snapshot **ret_snapshot,
					       struct gr_error *err) GR_EXCLUDES(gr_rcu_section);

/**
 * Take it: from the moment until the image is on disk.
 * @param snapshot The snapshot.
 * @param err      May be NULL.
 * @return 0 when the image is complete, or a negative errno: there is none.
 * @errors  -ECANCELED; -ENOBUFS the buffer was full and GR_SNAPSHOT_ABORT was chosen; what
 *          gr_cbw_start() and the ops returned; -ENOSPC, -EIO and other file errors, with the place.
 * @context One thread. Blocks. Outside a read-side section.
 */
GR_EXPORT GR_MUST_CHECK int gr_snapshot_run(struct gr_snapshot *snapshot, struct gr_error *err)
	GR_EXCLUDES(gr_rcu_section);

/**
 * Do a bounded piece of the work: the start, some pages, or the end. After the first one the guest runs.
 * @param snapshot The snapshot.
 * @param err      May be NULL.
 * @return 1 there is more, 0 done as gr_snapshot_run(), or a negative errno.
 * @context As gr_snapshot_run(); blocks at most for some pages on the disk, or as long as the bandwidth
 *          limit asks for (20 ms at most), and at the end until all is on disk.
 */
GR_EXPORT GR_MUST_CHECK int gr_snapshot_step(struct gr_snapshot *snapshot, struct gr_error *err)
	GR_EXCLUDES(gr_rcu_section);

/**
 * Ask it to end. All stores go on at once, even if the disk hangs. Too late once the image is being
 * given its name: gr_snapshot_run() then returns 0.
 * @param snapshot The snapshot.
 * @context Any thread; returns at once.
 */
GR_EXPORT void gr_snapshot_cancel(struct gr_snapshot *snapshot);

/**
 * @param snapshot  The snapshot.
 * @param ret_stats Filled.
 * @context Any thread.
 */
GR_EXPORT void gr_snapshot_stats(struct gr_snapshot *snapshot,
				 struct gr_snapshot_stats *ret_stats);

/**
 * Free it; gives it up if it has not ended.
 * @param snapshot May be NULL.
 * @context Its thread, outside a read-side section. Before gr_ram_free().
 */
GR_EXPORT void gr_snapshot_free(struct gr_snapshot *snapshot) GR_EXCLUDES(gr_rcu_section);

GR_END_DECLS
#endif
