/* SPDX-License-Identifier: MIT */
/**
 * guestram/track.h - dirty trackers: who finds out that the guest wrote a page.
 *
 * A tracker turns stores that nobody announces into marks in the dirty memory. One machine
 * has one gr_track, which drives any number of trackers and gives what they report to every
 * consumer of the dirty memory, in one place.
 *
 *     gr_track_create(ram, &track, &err);
 *     gr_track_use(track, GR_TRACKER_UFFD_WP, NULL, &err);       // before the guest runs
 *     gr_track_start(track, GR_WRITERS_MAPPING | GR_WRITERS_MARKED, &err);
 *     ...
 *     gr_track_sync(track, &err);                                // reports -> marks
 *     gr_dirty_epoch_begin(consumer, NULL, &err);                // marks -> epoch
 *     gr_track_rearm(track, addr, bytes, &err);                  // O4: protect again
 *     ... now read the bytes ...
 *
 * Coverage: a tracker sees some writers and not others. gr_track_start() is told who writes
 * this machine's memory, and refuses with the reason when no chosen tracker sees one of them.
 *
 *   tracker   KVM_VCPUS  MAPPING  MARKED, REPORTING  OUTSIDE
 *   software     -          -           yes            -
 *   KVM log     yes         -            -             -
 *   KVM ring    yes         -            -             -
 *   uffd-wp     yes (*)    yes           -             -
 *   uffd-sync   yes (*)    yes (+)       -             -
 *
 *   (*) when the KVM slots use the blocks' own mapping, as gr_kvm_memory does.
 *   (+) a process without privilege gets it for stores alone (GR_WRITERS_STORES): its system calls
 *       into watched memory, and KVM_RUN, would fail with EFAULT, so whoever names KVM_VCPUS, MAPPING
 *       or MARKED is refused.
 *
 * Threads: use, start and stop from one thread at a time; sync and rearm from any thread
 * that drives a consumer. Plugging and unplugging go on meanwhile and wait for no sync.
 *
 * Caveats: no tracker sees stores through a second mapping of a block, of another process that
 * has its fd, or write() on the fd. What the library knows of is refused: two blocks that map the
 * same bytes of a file (a start, or the plug that comes later, fails; a removed block counts as long as
 * somebody has a reference to it), and memory tables that are out, unless their holders are
 * GR_WRITERS_REPORTING. Whoever lets others exist has to name
 * GR_WRITERS_OUTSIDE, and is refused. Discarding memory and punching holes is invisible to write
 * protection: who does it marks (and under uffd-sync uses gr_ram_discard(), since anonymous memory
 * loses its protection together with its pages). So is DMA into pages that were pinned before
 * (O_DIRECT reads, registered buffers, VFIO), which the kernel notes when it pins and not when
 * the bytes arrive: take such memory as an iovec, and it is marked when it is put back. A fork's
 * child has no trackers: what it stores is tracked in no way.
 */
#ifndef GUESTRAM_TRACK_H
#define GUESTRAM_TRACK_H

#include <guestram/error.h>
#include <guestram/ram.h>
#include <guestram/types.h>

GR_BEGIN_DECLS

/** The trackers there are. */
enum gr_tracker_kind {
	GR_TRACKER_SOFTWARE, /**< code that marks; always in force */
	GR_TRACKER_KVM_LOG,  /**< KVM's dirty log, with manual protect where offered */
	GR_TRACKER_UFFD_WP,  /**< userfaultfd write protection (async) and PAGEMAP_SCAN;
			      *   needs no privilege, tracks memory of any kind */
	GR_TRACKER_KVM_RING, /**< KVM's dirty rings, one per vCPU: costs what is written, not
			      *   what exists; instead of the log */
	GR_TRACKER_UFFD_SYNC, /**< userfaultfd write protection whose faults a thread of ours serves:
			       *   each first store waits for it. For kernels that cannot do
			       *   GR_TRACKER_UFFD_WP (Linux 5.19 will do). To keep what a store will
			       *   replace see guestram/copy_before_write.h */
};

/** Who writes guest memory. */
enum gr_writers {
	GR_WRITERS_KVM_VCPUS = 1 << 0, /**< virtual CPUs of KVM */
	GR_WRITERS_MAPPING = 1 << 1,   /**< stores and system calls of this process through
					*   gr_ram_block.host, without marks */
	GR_WRITERS_MARKED = 1 << 2,    /**< gr_ram_write(), iovecs, gr_ram_mark() */
	GR_WRITERS_OUTSIDE = 1 << 3,   /**< another mapping, another process, write() on the fd */
	GR_WRITERS_STORES = 1 << 4,    /**< stores of this process through gr_ram_block.host, marked
					*   or not (gr_ram_write() too), and no system calls: what
					*   MAPPING and MARKED have in common */
	GR_WRITERS_REPORTING = 1 << 5, /**< who has a memory table (gr_ram_table_get()) and tells
					*   what it wrote (vhost-user's log), which you then mark */
};

struct gr_track;
struct gr_kvm_memory;

/** What some trackers need. Zero what you do not set. */
struct gr_tracker_params {
	size_t size;               /**< sizeof(struct gr_tracker_params) */
	struct gr_kvm_memory *kvm; /**< GR_TRACKER_KVM_LOG and _RING: the machine's slots */
	uint32_t ring_entries;     /**< GR_TRACKER_KVM_RING: pages per vCPU's ring, a power of
				    *   two; 0: 4096 */
	/** GR_TRACKER_KVM_LOG: the first sync reports all pages, and until then none is protected
	 *  (KVM_DIRTY_LOG_INITIALLY_SET). The start costs the guest nothing, and each page is
	 *  protected when it is read first: for a machine whose consumers begin full, as
	 *  migrations do. -ENOTSUP where KVM does not have it. */
	bool log_initially_set;
};

/**
 * Keep a KVM machine's memory slots in step with a machine's RAM: one slot per region,
 * through the blocks' own mapping. A slot that goes away is synchronised before, with the
 * vCPUs out of the guest (kick), so that no dirty bit is lost with it. The VM's slot numbers
 * (of address space 0) belong to it: add no slots of your own.
 *
 * @param ram     The machine's RAM.
 * @param vm_fd   KVM's VM file descriptor; borrowed.
 * @param kick    Called before a slot is removed, with the list's mutex held: has every vCPU
 *                leave the guest and stay out until resume(). It may not wait for anyone
 *                who changes the list. May be NULL when no vCPU runs meanwhile.
 * @param resume  The other half; may be NULL.
 * @param opaque  For both.
 * @param ret_kvm Set on success only.
 * @param err     May be NULL.
 * @return 0 or a negative errno.
 * @errors  What KVM_SET_USER_MEMORY_REGION returns; -ENOTSUP on other systems.
 * @context Any thread, outside a read-side section.
 */
GR_EXPORT GR_MUST_CHECK int gr_kvm_memory_create(struct gr_ram *ram, int vm_fd,
						 void (*kick)(void *opaque),
						 void (*resume)(void *opaque), void *opaque,
						 struct gr_kvm_memory **ret_kvm,
						 struct gr_error *err);
/**
 * Remove all slots and free.
 * @param kvm May be NULL. A tracker that uses it may go on, and reports nothing any more.
 * @context Outside a read-side section.
 */
GR_EXPORT void gr_kvm_memory_free(struct gr_kvm_memory *kvm);

/**
 * Make a vCPU's dirty ring known. Right after KVM_CREATE_VCPU, before it first runs, for each
 * vCPU; without GR_TRACKER_KVM_RING in use it does nothing. A vCPU that was there before goes on
 * with the ring that it had; it must not run meanwhile.
 * @param kvm     The machine's slots.
 * @param vcpu_fd KVM's vCPU file descriptor; borrowed until gr_kvm_vcpu_del().
 * @param err     May be NULL.
 * @return 0 or a negative errno.
 * @errors  What mapping its ring returned; -ENOMEM; -ENOTSUP on other systems.
 * @context Any thread.
 */
GR_EXPORT GR_MUST_CHECK int gr_kvm_vcpu_add(struct gr_kvm_memory *kvm, int vcpu_fd,
					    struct gr_error *err);
/**
 * A vCPU goes: what is in its ring is marked first. It does not run any more, unless it is added
 * again. KVM keeps a vCPU as long as its VM, so the ring stays mapped until the slots are freed.
 * @param kvm     The machine's slots.
 * @param vcpu_fd As it was added; one that was not is ignored.
 * @context Any thread.
 */
GR_EXPORT void gr_kvm_vcpu_del(struct gr_kvm_memory *kvm, int vcpu_fd);
/**
 * A vCPU left the guest with KVM_EXIT_DIRTY_RING_FULL: empty the rings, then enter it again.
 * @param kvm The machine's slots.
 * @param err May be NULL.
 * @return 0 or a negative errno: the rings cannot be emptied, the vCPU cannot go on.
 * @context The vCPU's thread, outside a read-side section, with no lock that kick() needs.
 */
GR_EXPORT GR_MUST_CHECK int gr_kvm_ring_full(struct gr_kvm_memory *kvm, struct gr_error *err);

/**
 * Create the tracker driver of a machine. The software tracker is always in use.
 * @param ram       The machine's RAM.
 * @param ret_track Set on success only.
 * @param err       May be NULL.
 * @return 0 or a negative errno.
 * @errors  -ENOMEM.
 * @context Any thread.
 */
GR_EXPORT GR_MUST_CHECK int gr_track_create(struct gr_ram *ram, struct gr_track **ret_track,
					    struct gr_error *err);
/**
 * Stop and free it; before gr_ram_free().
 * @param track May be NULL.
 * @context Outside a read-side section; no other thread uses it.
 */
GR_EXPORT void gr_track_free(struct gr_track *track);

/**
 * Take a tracker into use: probes that it works here and prepares it. Before the first
 * vCPU runs.
 * @param track  The driver.
 * @param kind   Which.
 * @param params May be NULL where the tracker needs nothing.
 * @param err    May be NULL.
 * @return 0 or a negative errno.
 * @errors  -ENOTSUP this machine does not offer it, with the reason; -EBUSY tracking has
 *          started; -EEXIST it is in use already.
 * @context One thread at a time, outside a read-side section.
 */
GR_EXPORT GR_MUST_CHECK int gr_track_use(struct gr_track *track, enum gr_tracker_kind kind,
					 const struct gr_tracker_params *params,
					 struct gr_error *err);

/**
 * Start tracking. Counted: the trackers stop with the last gr_track_stop().
 * @param track   The driver.
 * @param writers Who writes this machine's memory (enum gr_writers).
 * @param err     May be NULL.
 * @return 0 or a negative errno; on failure nothing tracks that did not before.
 * @errors  -EINVAL a writer is covered by no tracker in use; the message names both.
 *          GR_WRITERS_OUTSIDE is always refused in this version. Two blocks map the same bytes
 *          of a file; a memory table is out, without GR_WRITERS_REPORTING. -EBUSY a removed block that
 *          is still referenced maps the same bytes of a file as one that is there. What the kernel says
 *          when a block cannot be tracked; the message names the block.
 * @context Any thread, outside a read-side section. What is stored after the return is
 *          tracked.
 */
GR_EXPORT GR_MUST_CHECK int gr_track_start(struct gr_track *track, unsigned int writers,
					   struct gr_error *err);
/**
 * Undo one gr_track_start(). Stores that were not synced before the last stop are not reported.
 * @param track The driver.
 * @context As gr_track_start(). Dies if nothing was started.
 */
GR_EXPORT void gr_track_stop(struct gr_track *track);

/**
 * Fetch what the trackers know and mark it in the dirty memory, for every consumer (O4).
 * Without a start it does nothing: software marks need no sync.
 * @param track The driver.
 * @param err   May be NULL.
 * @return 0 or a negative errno. After an error the pages in question are marked or still
 *         known to the tracker; none is forgotten.
 * @context Any thread, outside a read-side section. Takes the tracker locks.
 */
GR_EXPORT GR_MUST_CHECK int gr_track_sync(struct gr_track *track, struct gr_error *err);

/**
 * Before reading pages of an epoch: have the trackers watch them again (O4). Pages that
 * nobody fetched since they were last re-armed cost nothing.
 * @param track The driver.
 * @param block The block; kept alive by the caller.
 * @param offset First byte in the block, a page multiple.
 * @param bytes How many, a page multiple.
 * @param err   May be NULL.
 * @return 0 or a negative errno.
 * @context Any thread, outside a read-side section. May take a tracker lock.
 */
GR_EXPORT GR_MUST_CHECK int gr_track_rearm(struct gr_track *track, struct gr_ram_block *block,
					   uint64_t offset, uint64_t bytes, struct gr_error *err);

/**
 * The names of the trackers in use, for messages.
 * @param track The driver.
 * @param buf   Filled: names joined by '+', e.g. "uffd-wp+software".
 * @param bytes Its size.
 * @context Any thread, not beside gr_track_use().
 */
GR_EXPORT void gr_track_describe(const struct gr_track *track, char *buf, size_t bytes);

/** One thing this machine offers, or why not. */
struct gr_feature {
	const char *name;    /**< e.g. "membarrier", "uffd-wp-async", "kvm-dirty-log" */
	bool available;      /**< whether guestram can use it here and now */
	char detail[160];    /**< how, or why not */
};

/**
 * Find out what this machine offers, by trying (never by version).
 * @param features Filled.
 * @param max      Room, GR_FEATURES_MAX is enough.
 * @return How many were filled.
 * @context Any thread; opens and closes file descriptors.
 */
GR_EXPORT unsigned int gr_features_probe(struct gr_feature *features, unsigned int max);
enum { GR_FEATURES_MAX = 32 };

GR_END_DECLS
#endif
