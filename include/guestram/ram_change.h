/* SPDX-License-Identifier: MIT */
/**
 * guestram/ram_change.h - what a block of RAM may go through while the guest runs.
 *
 * A block may get another length, another id, join or leave migrations; pieces of it may be
 * thrown away (a balloon), plugged and unplugged (virtio-mem), replaced after a memory error, or
 * written back to their file. Whatever changes content marks it dirty afterwards (ordering O1),
 * since no tracker sees such a change.
 *
 *     gr_ram_block_resize(block, 64 << 10, &err);         // ROM grew, up to max_bytes
 *     gr_ram_discard(block, offset, 2 << 20, &err);       // the guest does not need it now
 *     gr_ram_remap(block, offset, 4096, &err);            // the host's memory failed there
 *
 * Throwing memory away has two enemies: devices that have it pinned (their pages would not be the
 * guest's any more), and devices that must not hear of zeroes that come and go. Whoever is one
 * takes a hold (gr_ram_discard_hold()); whoever cannot live without discards takes one too; holds
 * that contradict each other are refused. A device that maps only what is plugged listens instead
 * (gr_ram_populate_listener_add()).
 *
 * Threads: everything here is called outside read-side sections, by any thread that holds a
 * reference to the block or otherwise knows that it stays. Lengths, ids and gr_ram_block_set_migratable()
 * change under the list mutex, as does all of guestram/ram.h; discards, remaps, holds and plugging have a
 * mutex of their own for the machine, inside of the list mutex.
 */
#ifndef GUESTRAM_RAM_CHANGE_H
#define GUESTRAM_RAM_CHANGE_H

#include <guestram/ram.h>

GR_BEGIN_DECLS

/**
 * Change a block's length. No byte changes: what is cut off is still there when the block grows
 * again (discard it first to give it back), and what grows is dirty for every consumer. Regions
 * stay as they are; cut off only what no region shows. A migration that has announced the block
 * cannot follow: it fails, and the guest goes on at the source.
 *
 * @param block      A block on the list.
 * @param used_bytes New length, a multiple of the guest's page size, from 1 page to max_bytes.
 * @param err        May be NULL.
 * @return 0 or a negative errno; on failure nothing has changed, and listeners were told so.
 * @errors  -EINVAL such a length; -ENOENT not on the list; -EBUSY a region shows what would be cut
 *          off, or the list is frozen; what a listener's veto returned.
 * @context Outside a read-side section. Takes the list mutex. Changes gr_ram_version().
 * @source  QEMU's qemu_ram_resize().
 */
GR_EXPORT GR_MUST_CHECK int gr_ram_block_resize(struct gr_ram_block *block, uint64_t used_bytes,
						struct gr_error *err) GR_EXCLUDES(gr_rcu_section);

/**
 * Give a block that has none an id.
 * @param block A block on the list.
 * @param id    1 to 255 bytes; copied, and kept as long as the block.
 * @param err   May be NULL.
 * @return 0 or a negative errno.
 * @errors  -EINVAL empty or too long; -EEXIST another block has it, or this one has one; -ENOENT not
 *          on the list; -EBUSY the list is frozen; -ENOMEM.
 * @context As gr_ram_block_resize().
 */
GR_EXPORT GR_MUST_CHECK int gr_ram_block_set_id(struct gr_ram_block *block, const char *id,
						struct gr_error *err) GR_EXCLUDES(gr_rcu_section);

/**
 * Take a block's id away; it is free for another one at once. Who has read block->id may go on
 * reading what it read.
 * @param block A block on the list that takes no part in migrations.
 * @param err   May be NULL.
 * @return 0 or a negative errno.
 * @errors  -EINVAL it takes part in migrations; -ENOENT it has none, or is not on the list; -EBUSY the
 *          list is frozen; -ENOMEM.
 * @context As gr_ram_block_resize().
 */
GR_EXPORT GR_MUST_CHECK int gr_ram_block_unset_id(struct gr_ram_block *block,
						  struct gr_error *err) GR_EXCLUDES(gr_rcu_section);

/**
 * Let a block take part in migrations, or not (GR_RAM_NO_MIGRATE). Migrations that run notice; a
 * block that joins is dirty for every consumer, all of it.
 * @param block      A block on the list.
 * @param migratable Whether it takes part from now on.
 * @param err        May be NULL.
 * @return 0 or a negative errno.
 * @errors  -EINVAL it has no id, or a migration could not store to it; -ENOENT not on the list; -EBUSY
 *          the list is frozen.
 * @context As gr_ram_block_resize().
 */
GR_EXPORT GR_MUST_CHECK int gr_ram_block_set_migratable(struct gr_ram_block *block, bool migratable,
							struct gr_error *err)
	GR_EXCLUDES(gr_rcu_section);

/**
 * Replace the memory behind a piece of a block, after the host reported it broken: whole host
 * pages (huge ones too) of the same file and place, with the same policies, and whole pages of the
 * guest where those are larger. They read as zeroes then (private pages of a file: as the file) and
 * are dirty. Populate listeners hear of the pieces that go, before, and come again, after: a device
 * that maps the block maps the new memory.
 *
 * @param block  The block.
 * @param offset First byte; rounded down to block->page_bytes or the machine's page, if that is larger.
 * @param bytes  How many; rounded up.
 * @param err    May be NULL.
 * @return 0 or a negative errno; on failure the old memory may be there still.
 * @errors  -EINVAL beyond the block; -ENOTSUP it is the caller's memory; -EROFS a shared file that is
 *          mapped for reading only (GR_RAM_HOST_READONLY); -EBUSY somebody holds GR_RAM_NO_DISCARDS,
 *          who would go on using the old memory; what mmap(2) says; what a listener refused the
 *          new memory with (it is there all the same, that listener does without it).
 * @context Outside a read-side section. Who uses these bytes meanwhile sees either memory.
 * @source  QEMU's qemu_ram_remap().
 */
GR_EXPORT GR_MUST_CHECK int gr_ram_remap(struct gr_ram_block *block, uint64_t offset,
					 uint64_t bytes, struct gr_error *err)
	GR_EXCLUDES(gr_rcu_section);

/**
 * Write back: what was stored to a piece of the block is in its file, on the disk, when this
 * returns. Memory without a file has nothing to write back.
 * @param block  The block.
 * @param offset First byte.
 * @param bytes  How many.
 * @param err    May be NULL.
 * @return 0 or a negative errno.
 * @errors  -EINVAL beyond the block; -EIO and others of msync(2).
 * @context Outside a read-side section. May take as long as the disk.
 */
GR_EXPORT GR_MUST_CHECK int gr_ram_sync(struct gr_ram_block *block, uint64_t offset, uint64_t bytes,
					struct gr_error *err) GR_EXCLUDES(gr_rcu_section);

/** Holds on discards; counted, for the whole machine. */
enum gr_ram_discard_hold {
	GR_RAM_NO_DISCARDS,	      /**< nobody may: memory is pinned */
	GR_RAM_NO_SIMPLE_DISCARDS,    /**< only by gr_ram_depopulate(), which listeners hear of */
	GR_RAM_NEEDS_DISCARDS,	      /**< gr_ram_discard() must work: a balloon, postcopy */
	GR_RAM_NEEDS_DEPOPULATE,      /**< gr_ram_depopulate() must work: virtio-mem */
	GR_RAM_DISCARD_HOLDS,	      /**< (how many there are) */
};

/**
 * Take a hold. When it has been taken, no discard that it forbids is in progress.
 * @param ram  The machine's RAM.
 * @param hold Which.
 * @param err  May be NULL.
 * @return 0 or a negative errno.
 * @errors  -EBUSY another hold contradicts it; the message says which. -EINVAL no such hold.
 * @context Outside a read-side section.
 * @source  QEMU's ram_block_discard_disable(), _require() and their kin.
 */
GR_EXPORT GR_MUST_CHECK int gr_ram_discard_hold(struct gr_ram *ram, enum gr_ram_discard_hold hold,
						struct gr_error *err) GR_EXCLUDES(gr_rcu_section);
/** Give a hold back. @param ram The machine's RAM. @param hold One that was taken (dies otherwise).
 *  @context As gr_ram_discard_hold(). */
GR_EXPORT void gr_ram_discard_release(struct gr_ram *ram, enum gr_ram_discard_hold hold)
	GR_EXCLUDES(gr_rcu_section);
/** @param ram The machine's RAM. @param hold Which. @return Whether anybody has it. @context As
 *  gr_ram_discard_hold(). */
GR_EXPORT bool gr_ram_discard_held(struct gr_ram *ram, enum gr_ram_discard_hold hold)
	GR_EXCLUDES(gr_rcu_section);

/**
 * Throw the memory behind a piece of a block away: it reads as zeroes (private pages of a file: as
 * the file), has none until it is stored to, and is dirty.
 *
 * @param block  The block.
 * @param offset First byte, a multiple of block->page_bytes and of the guest's page size.
 * @param bytes  How many, likewise.
 * @param err    May be NULL.
 * @return 0 or a negative errno; on failure some of it may be gone.
 * @errors  -EINVAL such a range; -EBUSY a hold forbids it; -EROFS a block that is mapped for reading
 *          only; -ENOTSUP the caller's memory without an fd (and not GR_RAM_PRIVATE), a file
 *          system or system without holes, or memory that is locked and cannot be thrown away as
 *          such (the caller's own mlock(2), GR_RAM_LOCK with GR_RAM_SHARED, kernels before 5.18).
 * @context Outside a read-side section. Not for pieces that gr_ram_populate() manages.
 */
GR_EXPORT GR_MUST_CHECK int gr_ram_discard(struct gr_ram_block *block, uint64_t offset,
					   uint64_t bytes, struct gr_error *err)
	GR_EXCLUDES(gr_rcu_section);

/**
 * Who maps what is plugged and nothing else (VFIO). Either may be NULL.
 *
 * Both run in the thread that makes the change, under the machine's mutex of discards and outside of
 * read-side sections (under the list mutex too if a gr_ram_listener made the change). They may look
 * blocks up, access guest memory, take and put iovecs and references, and mark; they may not call
 * functions of this header nor what takes the list mutex: they would wait for themselves.
 */
struct gr_ram_populate_listener {
	/** May refuse with a negative errno: those who were told before are told the reverse. */
	int (*populate)(void *opaque, struct gr_ram_block *block, uint64_t offset, uint64_t bytes,
			struct gr_error *err);
	/** The memory goes when this returns: unmap it. */
	void (*depopulate)(void *opaque, struct gr_ram_block *block, uint64_t offset,
			   uint64_t bytes);
	void *opaque;
	struct gr_ram_populate_listener *next; /**< (l) the library's */
};

/**
 * Listen to one block. What is populated is replayed first. A new block is populated all over.
 * @param block    The block.
 * @param listener Stays the caller's until it is removed.
 * @param err      May be NULL.
 * @return 0 or what the listener itself refused with (it then heard the reverse of what it took).
 * @context Outside a read-side section.
 */
GR_EXPORT GR_MUST_CHECK int gr_ram_populate_listener_add(struct gr_ram_block *block,
							 struct gr_ram_populate_listener *listener,
							 struct gr_error *err)
	GR_EXCLUDES(gr_rcu_section);
/**
 * Stop listening; what is populated is replayed as going.
 * @param block    The block.
 * @param listener One that was added (dies otherwise). Before the block's last reference goes.
 * @context As gr_ram_populate_listener_add().
 */
GR_EXPORT void gr_ram_populate_listener_del(struct gr_ram_block *block,
					    struct gr_ram_populate_listener *listener)
	GR_EXCLUDES(gr_rcu_section);

/**
 * Plug a piece of a block: tells the listeners of what was not plugged yet, all of it or none. That is
 * dirty: consumers may have taken it for zeroes as long as it was unplugged (migrations do), and memory
 * of a private file, for one, shows the file.
 * @param block  The block.
 * @param offset First byte, a multiple of block->granule_bytes.
 * @param bytes  How many, likewise.
 * @param err    May be NULL.
 * @return 0 or a negative errno; on failure it is as it was.
 * @errors  -EINVAL such a range; what a listener refused with.
 * @context As gr_ram_populate_listener_add().
 */
GR_EXPORT GR_MUST_CHECK int gr_ram_populate(struct gr_ram_block *block, uint64_t offset,
					    uint64_t bytes, struct gr_error *err)
	GR_EXCLUDES(gr_rcu_section);

/**
 * Unplug a piece of a block: tells the listeners, then throws the memory away as gr_ram_discard()
 * does. Nobody should store to it until it is plugged again. Of what is unplugged already nobody is told again.
 * @param block  The block.
 * @param offset First byte, a multiple of block->granule_bytes.
 * @param bytes  How many, likewise.
 * @param err    May be NULL.
 * @return 0 or a negative errno; on failure what was not thrown away is plugged, and the listeners
 *         have been told so.
 * @errors  As gr_ram_discard(), but that GR_RAM_NO_SIMPLE_DISCARDS does not forbid it; -ENOMEM.
 * @context As gr_ram_populate_listener_add().
 */
GR_EXPORT GR_MUST_CHECK int gr_ram_depopulate(struct gr_ram_block *block, uint64_t offset,
					      uint64_t bytes, struct gr_error *err)
	GR_EXCLUDES(gr_rcu_section);

/**
 * @param block  The block.
 * @param offset First byte.
 * @param bytes  How many.
 * @return Whether all of it is plugged; false beyond the block.
 * @context As gr_ram_populate_listener_add().
 */
GR_EXPORT bool gr_ram_populated(struct gr_ram_block *block, uint64_t offset, uint64_t bytes)
	GR_EXCLUDES(gr_rcu_section);

/** A region as another process can map it: a line of vhost-user's memory table. */
struct gr_ram_table_entry {
	gr_gpa_t gpa;		    /**< where the guest sees it */
	uint64_t bytes;		    /**< how long */
	void *host;		    /**< where this process has it */
	int fd;			    /**< what to map; the block's own, open until it is put back */
	uint64_t fd_offset;	    /**< from where, bytes */
	bool readonly;		    /**< the guest may not write it */
	struct gr_ram_block *block; /**< kept alive until put back */
};

/**
 * Fill a memory table: all regions, by guest address, of one moment. Keep it as long as another
 * process may write this memory: meanwhile tracking starts only with GR_WRITERS_REPORTING.
 * @param ram         The machine's RAM.
 * @param entries     Filled; put them back with gr_ram_table_put().
 * @param entries_max How many there is room for.
 * @param ret_entries Set on success: how many were filled.
 * @param err         May be NULL.
 * @return 0 or a negative errno; on failure nothing needs to be put back.
 * @errors  -ENOSPC more regions; -ENOTSUP the memory of a region has no fd, or stores to it do not
 *          reach the fd (GR_RAM_PRIVATE); the message names the block; -EBUSY dirty tracking
 *          goes on that was started without GR_WRITERS_REPORTING, and a region may be written.
 * @context Any thread; enters a read-side section.
 */
GR_EXPORT GR_MUST_CHECK int gr_ram_table_get(struct gr_ram *ram, struct gr_ram_table_entry *entries,
					     unsigned int entries_max, unsigned int *ret_entries,
					     struct gr_error *err);
/**
 * Put a table back: the other process cannot write any more.
 * @param entries What was filled, all of it.
 * @param count   How many.
 * @context Any thread.
 */
GR_EXPORT void gr_ram_table_put(struct gr_ram_table_entry *entries, unsigned int count);

GR_END_DECLS
#endif
