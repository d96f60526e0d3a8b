/* SPDX-License-Identifier: MIT */
/**
 * guestram/ram.h - the RAM of one machine: blocks, lookups, hotplug, access.
 *
 * A machine's RAM is a list of blocks that threads read without any lock while others
 * add and remove blocks. A block has a place in the flat RAM address space, memory in
 * this process, and (usually) a region: where the guest sees it. Removing a block takes it
 * off the list at once; its memory goes when a grace period is over and every iovec taken
 * from it was put back.
 *
 *     struct gr_ram_block_desc desc = {
 *             .size = sizeof(desc), .id = "ram", .used_bytes = 512 << 20,
 *             .mapped = true, .gpa = gr_gpa(0),
 *     };
 *     gr_ram_create(NULL, &ram, &err);
 *     gr_ram_block_add(ram, &desc, &block, &err);
 *     gr_ram_write(ram, gr_gpa(0x1000), bytes, sizeof(bytes), &err);
 *
 *     gr_rcu_read_lock();
 *     block = gr_ram_block_by_gpa_rcu(ram, gr_gpa(0x1000), &offset, &len);
 *     ... use the block ...
 *     gr_rcu_read_unlock();                      // the block may go from here on
 *
 * Threads: writers (add, del, region_add, region_del, listeners) may run at the same time
 * from any threads: they take the list's own mutex and need no outer lock. Readers take
 * nothing; functions that end in _rcu are called within a read-side section and what they
 * return dies with it. To walk on after a change, enter a section before dropping your own
 * lock, then walk: the downgrade idiom of docs/architecture.md.
 *
 * Caveats: gr_ram_write() and iovecs mark what they change. A thread that stores through
 * a host pointer marks with gr_ram_mark() after the store, or a tracker that sees such
 * stores must be running (guestram/track.h).
 */
#ifndef GUESTRAM_RAM_H
#define GUESTRAM_RAM_H

#include <guestram/dirty.h>
#include <guestram/error.h>
#include <guestram/iovec.h>
#include <guestram/rcu.h>
#include <guestram/types.h>

GR_BEGIN_DECLS

enum {
	GR_RAM_ID_BYTES_MAX = 255,  /**< longest block id, as on the wire */
	GR_RAM_BLOCKS_MAX = 65536,  /**< most blocks of one machine */
};

struct gr_ram;

/** Where a block's memory comes from. */
enum gr_ram_backing {
	GR_RAM_MEMFD,     /**< a sealed memfd: has an fd for other processes (the default) */
	GR_RAM_ANONYMOUS, /**< memory without a file */
	GR_RAM_CALLER,    /**< the caller's memory, given back by release() */
	GR_RAM_FILE,      /**< the file at `path`, or a nameless one in that directory */
	GR_RAM_FD,        /**< a file or memfd that the caller has open */
	/** A file (`path`, or `fd` if path is NULL) of which only what is in use is mapped, in windows:
	 *  for a guest that is larger than the address space to spend on it. Its host address is NULL:
	 *  use gr_ram_read(), gr_ram_write(), gr_ram_translate() or iovecs. KVM cannot run on it and a
	 *  migration cannot read it, so set GR_RAM_NO_MIGRATE. A page's space in the file system is asked
	 *  for before its first use, so that a full one is -ENOSPC and no SIGBUS. On file systems that
	 *  write each change to a new place (btrfs, ZFS, files with shared extents) that does not last:
	 *  a later store may need space again, and be killed for the lack of it. */
	GR_RAM_ON_DEMAND,
};

/**
 * Properties of a block. What the system cannot do is refused, never left out silently:
 * gr_ram_block_add() then says -ENOTSUP and what.
 */
enum gr_ram_block_flags {
	GR_RAM_READONLY = 1 << 0,     /**< the guest may not write it (ROM) */
	GR_RAM_NO_MIGRATE = 1 << 1,   /**< not part of a migration */
	/** Stores reach the file and all who map it; ANONYMOUS: children of fork() see them.
	 *  MEMFD is shared anyway; so are FILE and FD unless PRIVATE is set. FD and CALLER (with its
	 *  fd only): also a promise that the machine at the other end of a migration has this very
	 *  memory, for gr_source_params.ignore_shared. */
	GR_RAM_SHARED = 1 << 2,
	/** FILE, FD: stores stay in this process, the file never changes. CALLER: a promise that
	 *  host is private memory without a file, which gr_ram_discard() then may throw away. */
	GR_RAM_PRIVATE = 1 << 3,
	/** Swap space is not set aside: more memory may be promised than there is; refused (-ENOTSUP)
	 *  where the system counts all memory whatever one asks for. Shared files have none set aside
	 *  anyway. With huge pages, a store may find none left and end the process, so use it with
	 *  PREALLOC only. */
	GR_RAM_NO_RESERVE = 1 << 4,
	/** FILE, FD: mapped without write permission here too, and the file is opened for reading
	 *  only. Implies READONLY; takes no part in migrations, so set NO_MIGRATE as well. */
	GR_RAM_HOST_READONLY = 1 << 5,
	GR_RAM_PREALLOC = 1 << 6,     /**< all memory is there before the block is: see prealloc */
	/** Transparent huge pages where they fit. ANONYMOUS memory gets them also while it is received
	 *  or loaded from an image (a page that comes makes all of its huge page resident), not
	 *  while a lazily resumed machine asks for single pages. Files in memory, so MEMFD, get
	 *  some only where the administrator has set shmem_enabled. */
	GR_RAM_THP = 1 << 7,
	GR_RAM_NO_DUMP = 1 << 8,      /**< not in core files */
	GR_RAM_NO_FORK = 1 << 9,      /**< not in children of fork() */
	/** Pages of equal content may become one (KSM). That is done to private memory in ordinary
	 *  pages only: ANONYMOUS, or with PRIVATE; others are refused (-ENOTSUP), MEMFD too. */
	GR_RAM_MERGE = 1 << 10,
	GR_RAM_LOCK = 1 << 11,        /**< all of it in memory, never swapped out */
	/** FILE, FD: the file is on persistent memory, which is mapped itself (MAP_SYNC):
	 *  gr_ram_sync() then costs no I/O. */
	GR_RAM_PERSISTENT = 1 << 12,
};

/**
 * Which NUMA nodes a block's memory is taken from. A policy is refused (-ENOTSUP) with a shared file
 * that is on a disk: its pages are where they were first read. Of a private file it is for what is
 * stored to; what is only read is the file's.
 */
enum gr_ram_numa {
	GR_RAM_NUMA_DEFAULT,    /**< the thread's own policy */
	GR_RAM_NUMA_PREFERRED,  /**< the node, others when it is full */
	GR_RAM_NUMA_BIND,       /**< the nodes and no others */
	GR_RAM_NUMA_INTERLEAVE, /**< the nodes in turn, page by page */
};

/** How memory is put behind a new block (GR_RAM_PREALLOC). Zero means the default. */
struct gr_ram_prealloc {
	/** How many threads work on it, the calling one among them. They run where the caller may
	 *  run (its CPU affinity). 0: one for each CPU, at most 16, each with 64 MiB or more. */
	unsigned int threads;
	/**
	 * Called by the adding thread between its pieces of work, and at the end with done ==
	 * total. A negative errno stops the work, and gr_ram_block_add() fails with it. May be NULL.
	 */
	int (*progress)(uint64_t done_bytes, uint64_t total_bytes, void *opaque);
	void *opaque;               /**< for progress() */
};

/**
 * What gr_ram_block_add() shall add. Zero what you do not set.
 */
struct gr_ram_block_desc {
	size_t size;                /**< sizeof(struct gr_ram_block_desc) */
	/** Unique, 1 to 255 bytes; copied. NULL or "" with GR_RAM_NO_MIGRATE: none for now. */
	const char *id;
	uint64_t used_bytes;        /**< length now, a multiple of the page size, above 0 */
	uint64_t max_bytes;         /**< room to grow to; 0 means used_bytes */
	enum gr_ram_backing backing;
	unsigned int flags;         /**< enum gr_ram_block_flags */
	bool mapped;                /**< also add a region that maps the whole block at gpa */
	gr_gpa_t gpa;               /**< where, if mapped */
	/** GR_RAM_CALLER: page-aligned, max_bytes long. What flags ask for (LOCK, NO_FORK, NO_DUMP, THP,
	 *  MERGE, a NUMA policy) is done to this memory and stays so when it is released, or when
	 *  adding fails: undo it, or unmap it. */
	void *host;
	/** GR_RAM_FD: the file; a duplicate is kept. An empty one is made long enough, as that of `path`
	 *  is, with the same undoing and the same lock. GR_RAM_CALLER: fd behind host, or -1 if none;
	 *  not taken. Whoever makes the file shorter while it is in use ends this process by
	 *  SIGBUS: give files that only you can change, or sealed ones. */
	int fd;
	uint64_t fd_offset;         /**< FILE, FD, CALLER: where it starts in the file, bytes */
	uint64_t incarnation;       /**< 0: a fresh one is made (the normal case) */
	/** GR_RAM_CALLER: called once, when nothing in the library uses host any more: by whoever gives
	 *  the last reference back, mostly the thread of the reclaim queue, under no lock of the list's.
	 *  It may call all but gr_ram_free(). */
	void (*release)(void *host, uint64_t max_bytes, void *opaque);
	void *opaque;               /**< for release() */
	/** GR_RAM_FILE: a file, made with mode 0600 if there is none and made max_bytes long if it
	 *  is empty (both are undone when adding fails; meanwhile it has a lock, flock(2), and others
	 *  who add it get -EBUSY); or a directory. Copied. */
	const char *path;
	uint64_t page_bytes;        /**< MEMFD, ANONYMOUS: size of huge pages; 0: ordinary pages */
	uint64_t align_bytes;       /**< the host address is a multiple of this power of two; 0: of
				     *   2 MiB if it is as long, of the page size otherwise */
	enum gr_ram_numa numa_policy;
	uint64_t numa_nodes;        /**< bit n is node n; 0 with NUMA_DEFAULT */
	struct gr_ram_prealloc prealloc;
	/** In what pieces gr_ram_populate() works: divides max_bytes, a multiple of the page sizes, a
	 *  power of two. 0: as small as can be. */
	uint64_t granule_bytes;
	/** ON_DEMAND: length of a window, a power of two, whole pages; 0: 2 MiB. */
	uint64_t window_bytes;
	/** ON_DEMAND: how many are mapped at most; 0: 64. Those in use (iovecs that were taken) stay;
	 *  of the others the one that was used longest ago makes room. */
	unsigned int windows_max;
};

/**
 * A block, as readers see it. Everything here is constant while the block exists, but its id,
 * its length (gr_ram_block_used_bytes()) and its flags (gr_ram_block_flags()); see
 * guestram/ram_change.h.
 */
struct gr_ram_block {
	gr_ram_addr_t offset;       /**< (c) start in RAM address space, a multiple of 64 pages */
	uint64_t max_bytes;         /**< (c) room in RAM address space */
	gr_atomic_u64 used_bytes_atomic; /**< (a) read through gr_ram_block_used_bytes() */
	uint8_t *host;              /**< (c) where this process has it mapped; NULL: ON_DEMAND */
	struct gr_ram *ram;         /**< (c) the machine */
	int fd;                     /**< (c) fd behind it, or -1; the block's own, do not close */
	unsigned int flags_atomic;  /**< (a) read through gr_ram_block_flags() */
	uint64_t fd_offset;         /**< (c) where the block starts in fd, bytes */
	uint64_t incarnation;       /**< (c) never the same for two blocks, even with one id */
	uint64_t page_bytes;        /**< (c) page size of the host memory behind it */
	uint64_t granule_bytes;     /**< (c) in what pieces it is plugged and unplugged */
	enum gr_ram_backing backing; /**< (c) */
	/** (r) "" if it has none. What was read stays readable as long as the block. */
	const char *id;
};

/** @param block A block. @return Its length now, in bytes. @context Any. */
static inline uint64_t gr_ram_block_used_bytes(const struct gr_ram_block *block)
{
	return __atomic_load_n(&block->used_bytes_atomic, __ATOMIC_ACQUIRE);
}

/** @param block A block. @return Its enum gr_ram_block_flags now. @context Any. */
static inline unsigned int gr_ram_block_flags(const struct gr_ram_block *block)
{
	return __atomic_load_n(&block->flags_atomic, __ATOMIC_ACQUIRE);
}

/** What gr_ram_create() shall make. Zero what you do not set. */
struct gr_ram_params {
	size_t size;                /**< sizeof(struct gr_ram_params) */
	uint32_t page_bytes;        /**< the guest's page size, a power of two; 0 means 4096 */
	struct gr_rcu_queue *queue; /**< where reclaim callbacks run; NULL: the default queue */
};

/**
 * Create a machine's RAM, without blocks.
 *
 * @param params  May be NULL for defaults; copied. A queue must outlive the RAM.
 * @param ret_ram Set on success only.
 * @param err     May be NULL.
 * @return 0 or a negative errno.
 * @errors  -EINVAL page size no power of two between 1 KiB and 2 MiB; -ENOMEM.
 * @context Any thread.
 */
GR_EXPORT GR_MUST_CHECK int gr_ram_create(const struct gr_ram_params *params,
					  struct gr_ram **ret_ram, struct gr_error *err);

/**
 * Free it with all its blocks. Waits until the last reclaim has run; every taken iovec and
 * block reference must have been given back, no other thread may use it.
 * @param ram May be NULL.
 * @context Outside a read-side section. Sleeps.
 */
GR_EXPORT void gr_ram_free(struct gr_ram *ram) GR_EXCLUDES(gr_rcu_section);

/** @param ram The machine's RAM. @return The guest's page size in bytes. @context Any. */
GR_EXPORT uint32_t gr_ram_page_bytes(const struct gr_ram *ram);

/** @param ram The machine's RAM. @return Its dirty memory (borrowed). @context Any. */
GR_EXPORT struct gr_dirty *gr_ram_dirty(struct gr_ram *ram);

/**
 * A number that changes whenever the list of blocks changes. Read it before a walk; if it
 * is another one afterwards, the walk may have missed a block.
 * @param ram The machine's RAM.
 * @return The version, 64 bits, only ever grows.
 * @context Any.
 */
GR_EXPORT uint64_t gr_ram_version(const struct gr_ram *ram);

/**
 * Add a block of RAM while the guest runs (memory hotplug).
 *
 * The dirty memory is grown first and the block is published last (ordering O3): no reader
 * finds a block whose dirty bits do not exist. All its pages begin dirty, for every consumer.
 *
 * @param ram       The machine's RAM.
 * @param desc      What to add; copied.
 * @param ret_block Set on success only; may be NULL. Lives until gr_ram_block_del() and a
 *                  grace period.
 * @param err       May be NULL.
 * @return 0 or a negative errno; on failure nothing has changed.
 * @errors  -EINVAL sizes zero, not page multiples or overflowing, id empty or too long, a
 *          flag or field that the backing does not have, a file that is too short; -EEXIST the
 *          id is taken or the guest addresses overlap another region; -ENOSPC too many blocks,
 *          or no space left in the file system (GR_RAM_PREALLOC); -ENOMEM no memory, address
 *          space or huge pages; -ENOTSUP the system cannot do what a flag asks for; -EPERM,
 *          -ENOMEM GR_RAM_LOCK beyond RLIMIT_MEMLOCK; what open(2), mmap(2) or mbind(2) says;
 *          what a listener's veto or prealloc.progress() returned.
 * @context Any thread, outside a read-side section. Takes the list mutex. Sleeps.
 * @source  QEMU 7.2 ram_block_add(); find_ram_offset(): best fit.
 */
GR_EXPORT GR_MUST_CHECK int gr_ram_block_add(struct gr_ram *ram,
					     const struct gr_ram_block_desc *desc,
					     struct gr_ram_block **ret_block, struct gr_error *err)
	GR_EXCLUDES(gr_rcu_section);

/**
 * Remove a block and its regions while the guest runs (memory unplug). Readers that found
 * it go on using it until their section ends; returns without waiting for them.
 *
 * @param block The block; it must be on the list.
 * @param err   May be NULL.
 * @return 0 or a negative errno; on failure nothing has changed.
 * @errors  -ENOENT it was removed already (by another thread); -EBUSY removal is frozen
 *          (gr_ram_freeze()); what a listener's veto returned.
 * @context Any thread, outside a read-side section. The caller guarantees that the block
 *          cannot have been reclaimed: it holds a reference or is the one who removes it.
 */
GR_EXPORT int gr_ram_block_del(struct gr_ram_block *block, struct gr_error *err)
	GR_EXCLUDES(gr_rcu_section);

/**
 * Remove the block with this id: find and remove in one step, so that of two threads who
 * try, one wins and the other gets -ENOENT.
 * @param ram The machine's RAM.
 * @param id  The id.
 * @param err May be NULL.
 * @return 0 or a negative errno, as gr_ram_block_del().
 * @context As gr_ram_block_del().
 */
GR_EXPORT int gr_ram_block_del_by_id(struct gr_ram *ram, const char *id, struct gr_error *err)
	GR_EXCLUDES(gr_rcu_section);

/**
 * Freeze the list: adding and removing blocks fails with -EBUSY and `why` until thawed.
 * Counted. A migration towards a peer that cannot follow changes does this.
 * @param ram The machine's RAM.
 * @param why Goes into the errors of those who are refused; a string that stays.
 * @context Any thread, outside a read-side section.
 */
GR_EXPORT void gr_ram_freeze(struct gr_ram *ram, const char *why) GR_EXCLUDES(gr_rcu_section);
/** Undo one gr_ram_freeze(). @param ram The machine's RAM. @context As gr_ram_freeze(). */
GR_EXPORT void gr_ram_thaw(struct gr_ram *ram) GR_EXCLUDES(gr_rcu_section);

/**
 * Keep a block's memory alive beyond the read-side section it was found in.
 * @param block A block found in this section.
 * @context In a read-side section, or with a reference held already.
 */
GR_EXPORT void gr_ram_block_get(struct gr_ram_block *block);
/** Give a reference back. @param block May be NULL. @context Any; may release the memory. */
GR_EXPORT void gr_ram_block_put(struct gr_ram_block *block);
/**
 * Whether the block is still on the list.
 * @param block A block the caller keeps alive.
 * @return false once gr_ram_block_del() has taken it off.
 * @context Any.
 */
GR_EXPORT bool gr_ram_block_listed(const struct gr_ram_block *block);

/**
 * Find a free place in the RAM address space: the smallest gap that fits.
 * @param ram        The machine's RAM.
 * @param bytes      How much room.
 * @param ret_offset Set on success only.
 * @param err        May be NULL.
 * @return 0 or a negative errno.
 * @errors  -EINVAL bytes is zero; -ENOSPC nothing fits.
 * @context Any thread; the answer may be outdated at once when others add blocks.
 */
GR_EXPORT GR_MUST_CHECK int gr_ram_find_offset(struct gr_ram *ram, uint64_t bytes,
					       gr_ram_addr_t *ret_offset, struct gr_error *err)
	GR_EXCLUDES(gr_rcu_section);

/* Private: as much of the published index as a lookup with a hint needs; see src/ram/lookup.c. */
struct gr_ram_span {
	uint64_t start;
	uint64_t bytes;
	struct gr_ram_block *block;
};
struct gr_ram_index_ {
	struct gr_rcu_head rcu;
	uint32_t blocks, others[3];
	const void *other_ways[3];
	struct gr_ram_span by_offset[1]; /* as many as there are; C++ knows no open arrays */
};
/* Private: when no hint helps. */
GR_EXPORT struct gr_ram_block *gr_ram_block_find_slow_rcu(struct gr_ram *ram, gr_ram_addr_t addr)
	GR_REQUIRES_SHARED(gr_rcu_section);
#ifndef _WIN32 /* thread-local variables are function calls there */
extern GR_EXPORT __thread uint32_t gr_ram_span_hint_[2] __attribute__((tls_model("initial-exec")));

/* Private: the span at the place that hint i of this thread names, if it has the address. */
static inline const struct gr_ram_span *gr_ram_span_hinted_(const struct gr_ram_index_ *index,
							    unsigned int i, uint64_t addr)
{
	uint32_t hint = __atomic_load_n(&gr_ram_span_hint_[i], __ATOMIC_RELAXED);
	const struct gr_ram_span *span = &index->by_offset[hint];

	return GR_LIKELY(hint < index->blocks && addr - span->start < span->bytes) ? span : NULL;
}
#endif

/**
 * Find the block at a RAM address. Costs a compare when it is the thread's last one, and
 * log2(blocks) otherwise; writes nothing that another thread reads.
 *
 * @param ram  The machine's RAM.
 * @param addr RAM address.
 * @return The block, or NULL.
 * @context In a read-side section.
 */
static inline struct gr_ram_block *gr_ram_block_find_rcu(struct gr_ram *ram, gr_ram_addr_t addr)
	GR_REQUIRES_SHARED(gr_rcu_section);
static inline struct gr_ram_block *gr_ram_block_find_rcu(struct gr_ram *ram, gr_ram_addr_t addr)
{
#ifndef _WIN32
	const struct gr_ram_index_ *index = __atomic_load_n(
		(const struct gr_ram_index_ *const *)(const void *)ram, __ATOMIC_CONSUME);

	/* Two, for who alternates. Whatever they are, they are held against this very index. */
	const struct gr_ram_span *span = gr_ram_span_hinted_(index, 0, addr.v);

	if (GR_LIKELY(span) || GR_LIKELY(span = gr_ram_span_hinted_(index, 1, addr.v))) {
		return span->block;
	}
#endif
	return gr_ram_block_find_slow_rcu(ram, addr);
}

/**
 * Find the block that the guest sees at an address.
 *
 * @param ram        The machine's RAM.
 * @param gpa        Guest physical address.
 * @param ret_offset Set if found: the byte's offset in the block. May be NULL.
 * @param ret_bytes  Set if found: how many bytes from there on are in the same region. May
 *                   be NULL.
 * @return The block, or NULL.
 * @context In a read-side section.
 */
GR_EXPORT struct gr_ram_block *gr_ram_block_by_gpa_rcu(struct gr_ram *ram, gr_gpa_t gpa,
						       uint64_t *ret_offset, uint64_t *ret_bytes)
	GR_REQUIRES_SHARED(gr_rcu_section);

/**
 * Find the block that a host pointer points into.
 * @param ram        The machine's RAM.
 * @param host       Any pointer.
 * @param ret_offset Set if found: the byte's offset in the block. May be NULL.
 * @return The block, or NULL.
 * @context In a read-side section.
 */
GR_EXPORT struct gr_ram_block *gr_ram_block_by_host_rcu(struct gr_ram *ram, const void *host,
							uint64_t *ret_offset)
	GR_REQUIRES_SHARED(gr_rcu_section);

/**
 * Find a block by its id.
 * @param ram The machine's RAM.
 * @param id  The id.
 * @return The block, or NULL.
 * @context In a read-side section.
 */
GR_EXPORT struct gr_ram_block *gr_ram_block_by_id_rcu(struct gr_ram *ram, const char *id)
	GR_REQUIRES_SHARED(gr_rcu_section);

/**
 * Walk the blocks, biggest first (the order in which a migration announces them).
 * @param ram   The machine's RAM.
 * @param block The last one, or NULL for the first.
 * @return The next block, or NULL at the end. A block removed meanwhile still leads on.
 * @context In a read-side section, the same one for the whole walk.
 */
GR_EXPORT struct gr_ram_block *gr_ram_block_next_rcu(struct gr_ram *ram,
						     struct gr_ram_block *block)
	GR_REQUIRES_SHARED(gr_rcu_section);

#define gr_ram_for_each_block_rcu(block, ram)                                                      \
	for ((block) = gr_ram_block_next_rcu((ram), NULL); (block);                                \
	     (block) = gr_ram_block_next_rcu((ram), (block)))

/** How the windows of a GR_RAM_ON_DEMAND block are used. */
struct gr_ram_window_stats {
	unsigned int mapped;        /**< mapped now */
	unsigned int pinned;        /**< of these in use now */
	uint64_t hits;              /**< uses that found their window mapped */
	uint64_t misses;            /**< those that did not */
	uint64_t evictions;         /**< windows that made room for others */
};

/**
 * @param block A block.
 * @param stats Filled; zeroes if it is not GR_RAM_ON_DEMAND.
 * @context In the section it was found in, or with a reference held.
 */
GR_EXPORT void gr_ram_window_stats(struct gr_ram_block *block, struct gr_ram_window_stats *stats);

/** Sums over all blocks. */
struct gr_ram_totals {
	unsigned int blocks;        /**< how many blocks */
	unsigned int regions;       /**< and regions */
	uint64_t used_bytes;        /**< their lengths */
	uint64_t max_bytes;         /**< what they may become */
	uint64_t migratable_bytes;  /**< lengths of those that take part in migrations */
	uint64_t end;               /**< the first RAM address behind all of them */
	uint64_t page_bytes_min;    /**< smallest page of the host's behind one; 0: no blocks */
	uint64_t page_bytes_max;    /**< and the largest */
};

/**
 * Sum the blocks up.
 * @param ram    The machine's RAM.
 * @param totals Filled: one moment's blocks.
 * @context In a read-side section.
 */
GR_EXPORT void gr_ram_totals_rcu(struct gr_ram *ram, struct gr_ram_totals *totals)
	GR_REQUIRES_SHARED(gr_rcu_section);

/** What gr_ram_format() writes. */
enum gr_ram_view {
	GR_RAM_VIEW_BLOCKS,  /**< a line for each block, as QEMU's `info ramblock` */
	GR_RAM_VIEW_REGIONS, /**< what the guest sees where, as QEMU's `info mtree -f` */
};

/**
 * Write the list of blocks or regions as text: one moment's list, in the order of its addresses.
 * @param ram   The machine's RAM.
 * @param view  Which.
 * @param buf   Filled as far as it goes, always with a terminating 0. May be NULL if bytes is 0.
 * @param bytes Its size.
 * @return How long the text is, without the 0: not below bytes means that it was cut off.
 * @context Any thread; enters a read-side section.
 */
GR_EXPORT size_t gr_ram_format(struct gr_ram *ram, enum gr_ram_view view, char *buf, size_t bytes);

/** A piece of guest physical address space that shows a piece of a block. */
struct gr_ram_region {
	gr_gpa_t gpa;               /**< where the guest sees it */
	uint64_t bytes;             /**< how long */
	struct gr_ram_block *block; /**< what it shows */
	uint64_t block_offset;      /**< from which byte of the block on */
	bool readonly;              /**< guest writes are refused */
};

/**
 * Map a piece of a block for the guest. (gr_ram_block_add() with .mapped does it for the
 * usual case.) One block may be mapped more than once.
 *
 * @param ram    The machine's RAM.
 * @param region What to map where; copied.
 * @param err    May be NULL.
 * @return 0 or a negative errno; on failure nothing has changed.
 * @errors  -EINVAL not page multiples, empty, overflowing or beyond the block; -EEXIST
 *          overlaps another region; -ENOENT the block is not on the list; a listener's veto.
 * @context Any thread, outside a read-side section. Takes the list mutex.
 */
GR_EXPORT GR_MUST_CHECK int gr_ram_region_add(struct gr_ram *ram,
					      const struct gr_ram_region *region,
					      struct gr_error *err) GR_EXCLUDES(gr_rcu_section);

/**
 * Unmap the region that starts at an address.
 * @param ram The machine's RAM.
 * @param gpa Start of the region.
 * @param err May be NULL.
 * @return 0 or a negative errno.
 * @errors  -ENOENT no region starts there.
 * @context As gr_ram_region_add().
 */
GR_EXPORT int gr_ram_region_del(struct gr_ram *ram, gr_gpa_t gpa, struct gr_error *err)
	GR_EXCLUDES(gr_rcu_section);

/**
 * Find the region that starts at or after an address: for walks in address order.
 * @param ram        The machine's RAM.
 * @param gpa        Where to look from.
 * @param ret_region Set if found.
 * @return Whether there is one.
 * @context In a read-side section.
 */
GR_EXPORT bool gr_ram_region_next_rcu(struct gr_ram *ram, gr_gpa_t gpa,
				      struct gr_ram_region *ret_region)
	GR_REQUIRES_SHARED(gr_rcu_section);

/**
 * Who wants to know of blocks and regions: KVM's memory slots, a tracker, vhost-user. Any callback may
 * be NULL. An _add or _resize may refuse (negative errno): the change is then taken back everywhere
 * and the caller gets the error.
 *
 * All callbacks run in the thread that makes the change, under the list mutex and outside of read-side
 * sections, in the order of the changes. They
 *
 *   - may look blocks and regions up, access guest memory, take and put iovecs and references, mark,
 *     read the version, format the list; wait for a grace period;
 *   - may use consumers and epochs of the dirty memory;
 *   - may discard, plug, unplug and remap pieces of blocks, take holds, and add and remove populate
 *     listeners (guestram/ram_change.h), which come under a mutex of their own that is inside this one;
 *   - may not call what takes the list mutex: adding, removing, resizing and renaming blocks, regions,
 *     these listeners, freezing; nor start, sync or stop a tracker or step a migration. They would
 *     wait for themselves.
 *
 * An _add is told of before readers can find it, a _del after they cannot any more (those that have
 * found it may be using it still).
 */
struct gr_ram_listener {
	int (*block_add)(void *opaque, struct gr_ram_block *block, struct gr_error *err);
	void (*block_del)(void *opaque, struct gr_ram_block *block);
	int (*region_add)(void *opaque, const struct gr_ram_region *region, struct gr_error *err);
	void (*region_del)(void *opaque, const struct gr_ram_region *region);
	void *opaque;
	struct gr_ram_listener *next; /**< (l) the library's */
	/** The block's length is about to change, or not after all (the reverse of what was said). */
	int (*block_resize)(void *opaque, struct gr_ram_block *block, uint64_t old_bytes,
			    uint64_t new_bytes, struct gr_error *err);
};

/**
 * Add a listener; what exists is replayed to it first (blocks, then regions).
 * @param ram      The machine's RAM.
 * @param listener Stays the caller's; must live until it is removed.
 * @param err      May be NULL.
 * @return 0 or what the listener's own replayed callback refused with (it then has seen a
 *         _del for each _add).
 * @context Any thread, outside a read-side section.
 */
GR_EXPORT GR_MUST_CHECK int gr_ram_listener_add(struct gr_ram *ram,
						struct gr_ram_listener *listener,
						struct gr_error *err) GR_EXCLUDES(gr_rcu_section);

/**
 * Remove a listener; it is told that everything goes (regions, then blocks).
 * @param ram      The machine's RAM.
 * @param listener One that was added.
 * @context As gr_ram_listener_add().
 */
GR_EXPORT void gr_ram_listener_del(struct gr_ram *ram, struct gr_ram_listener *listener)
	GR_EXCLUDES(gr_rcu_section);

/**
 * Mark bytes of a block as written, after storing them through its host pointer (O1).
 * @param block  The block.
 * @param offset First byte, in the block.
 * @param bytes  How many; 0 is allowed.
 * @context In the read-side section the block was found in, or with a reference held.
 */
GR_EXPORT void gr_ram_mark(struct gr_ram_block *block, uint64_t offset, uint64_t bytes);

/**
 * Read guest memory, across region and block borders.
 *
 * @param ram   The machine's RAM.
 * @param gpa   From where.
 * @param buf   To where.
 * @param bytes How many; 0 is allowed.
 * @param err   May be NULL.
 * @return 0 or a negative errno.
 * @errors  -EFAULT some address is not mapped; -EBUSY all windows of an ON_DEMAND block are in
 *          use, -ENOSPC its file is in memory that is full, or another errno of mmap(2) for it. What was read before it is in buf, the message
 *          names the address.
 * @context Any thread. Enters short read-side sections, as gr_ram_write(). Concurrent guest stores
 *          may be seen in part, as on hardware.
 */
GR_EXPORT int gr_ram_read(struct gr_ram *ram, gr_gpa_t gpa, void *buf, size_t bytes,
			  struct gr_error *err);

/**
 * Write guest memory as a device does, across region and block borders, and mark it.
 *
 * @param ram   The machine's RAM.
 * @param gpa   To where.
 * @param buf   From where.
 * @param bytes How many; 0 is allowed.
 * @param err   May be NULL.
 * @return 0 or a negative errno.
 * @errors  -EFAULT some address is not mapped, -EROFS it is read-only; nothing was written (more
 *          than 64 KiB: unless the address was unplugged meanwhile). -EBUSY as gr_ram_read(), -ENOSPC
 *          no space left for an ON_DEMAND block in its file system: what lies before the address that
 *          the message names was written and marked.
 * @context Any thread. Enters short read-side sections: what is longer than 64 KiB is done piece by
 *          piece, outside of them.
 */
GR_EXPORT int gr_ram_write(struct gr_ram *ram, gr_gpa_t gpa, const void *buf, size_t bytes,
			   struct gr_error *err);

/**
 * Fill guest memory with one byte, across region and block borders, and mark it.
 * @param ram   The machine's RAM.
 * @param gpa   From where on.
 * @param byte  With what.
 * @param bytes How many; 0 is allowed.
 * @param err   May be NULL.
 * @return 0 or a negative errno.
 * @errors  As gr_ram_write().
 * @context As gr_ram_write().
 */
GR_EXPORT int gr_ram_fill(struct gr_ram *ram, gr_gpa_t gpa, uint8_t byte, uint64_t bytes,
			  struct gr_error *err);

/**
 * Compare guest memory with what is expected and, if it is that, exchange it, in one step that
 * the guest's own atomic instructions respect; a full fence either way. Marks it if it changed.
 *
 * @param ram         The machine's RAM.
 * @param gpa         Where; a multiple of bytes.
 * @param expected    The bytes that must be there; on return those that were.
 * @param desired     The new ones.
 * @param bytes       1, 2, 4 or 8.
 * @param ret_swapped Set on success: whether it was exchanged.
 * @param err         May be NULL.
 * @return 0 or a negative errno.
 * @errors  -EINVAL such a length or address; else as gr_ram_write().
 * @context Any thread; enters a read-side section.
 */
GR_EXPORT GR_MUST_CHECK int gr_ram_cmpxchg(struct gr_ram *ram, gr_gpa_t gpa, void *expected,
					   const void *desired, size_t bytes, bool *ret_swapped,
					   struct gr_error *err);

/** A piece of guest memory lent for I/O. */
struct gr_ram_iov {
	struct iovec iov;           /**< the bytes in this process */
	struct gr_ram_block *block; /**< kept alive until put back */
	uint64_t offset;            /**< where iov starts in the block */
	bool write;                 /**< will be marked when put back */
	void *window;               /**< the library's */
};

/**
 * Take guest memory as iovecs, for I/O that outlives a read-side section. The blocks stay
 * until the iovecs are put back, even if they are unplugged meanwhile.
 *
 * @param ram     The machine's RAM.
 * @param gpa     From where.
 * @param bytes   How many.
 * @param write   Whether the I/O writes guest memory.
 * @param iov     Filled, one entry per region crossed (and per window of an ON_DEMAND block).
 * @param iov_max How many entries it has room for.
 * @param ret_iov Set on success: entries filled.
 * @param err     May be NULL.
 * @return 0 or a negative errno; on failure nothing was taken.
 * @errors  -EFAULT, -EROFS, -EBUSY as gr_ram_write(); -ENOSPC more than iov_max pieces, or no space
 *          for an ON_DEMAND block (the message says which).
 * @context Any thread; enters a read-side section.
 */
GR_EXPORT GR_MUST_CHECK int gr_ram_iov_get(struct gr_ram *ram, gr_gpa_t gpa, uint64_t bytes,
					   bool write, struct gr_ram_iov *iov, unsigned int iov_max,
					   unsigned int *ret_iov, struct gr_error *err);

/**
 * Take one piece of guest memory: as much as lies in one piece in this process too.
 *
 * @param ram   The machine's RAM.
 * @param gpa   From where.
 * @param bytes How many at most, above 0.
 * @param write Whether it is for writing.
 * @param iov   Set on success; iov->iov.iov_len says how many bytes it is. gr_ram_iov_put() it.
 * @param err   May be NULL.
 * @return 0 or a negative errno; on failure nothing was taken.
 * @errors  As gr_ram_iov_get(); -EINVAL bytes is 0.
 * @context Any thread; enters a read-side section.
 */
GR_EXPORT GR_MUST_CHECK int gr_ram_translate(struct gr_ram *ram, gr_gpa_t gpa, uint64_t bytes,
					     bool write, struct gr_ram_iov *iov,
					     struct gr_error *err);

/**
 * Put iovecs back. What was written is marked now, not when it was taken (O1).
 * @param iov        The entries.
 * @param entries    How many.
 * @param bytes_done How many bytes, from the first entry on, the I/O has written. Ignored
 *                   for reads.
 * @context Any thread; may release the memory of a removed block.
 */
GR_EXPORT void gr_ram_iov_put(struct gr_ram_iov *iov, unsigned int entries, uint64_t bytes_done);

GR_END_DECLS
#endif
