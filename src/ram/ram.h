/* SPDX-License-Identifier: MIT */
/*
 * The insides of the RAM list. Writers change everything under `lock`; readers see two
 * things that RCU publishes: the list of blocks, biggest first, for walks, and the index,
 * an immutable object with sorted arrays, for lookups. Each change builds a new index and
 * allocates all it needs before the first pointer is published, so a change that fails has
 * changed nothing.
 */
#ifndef GR_RAM_RAM_H
#define GR_RAM_RAM_H

#include "base/memory.h"
#include "base/mutex.h"
#include "ram/index.h"
#include "ram/windows.h"
#include <guestram/ram_change.h>
#include <guestram/rculist.h>

struct gr_ram {
	struct gr_ram_index *index; /* (r) lock */
	struct gr_rcu_list blocks;	     /* (r) lock */
	gr_atomic_u64 version;		     /* (a) */
	uint32_t page_bytes;		     /* (c) the guest's */
	struct gr_dirty *dirty;		     /* (c) */
	struct gr_rcu_queue *queue;	     /* (c) */
	uint32_t blocks_alive;		     /* (a) listed or still referenced; a futex word */
	struct gr_mutex lock;		     /* the list mutex */
	struct gr_ram_listener *listeners;   /* (l) in the order they came */
	unsigned int frozen;		     /* (l) */
	const char *frozen_why;		     /* (l) of the last freeze */
	struct gr_mutex discard_lock;	     /* memory that goes while its block stays */
	uint32_t loading;		     /* (a) 1: from an image, while it runs */
	uint32_t tables;		     /* (a) gr_ram_table_get(), writable, not put back */
	uint32_t tables_forbidden;	     /* (a) how many trackers see no other process */
	unsigned int discard_holds[GR_RAM_DISCARD_HOLDS]; /* (discard_lock) how many of each */
	struct gr_ram_discard_watch *discard_watches;	  /* (discard_lock) */
	struct gr_mutex removed_lock;
	struct gr_block *removed; /* (removed_lock) off the list, and not freed yet */
};

/*
 * Who must know of content that goes without a store that write protection could see: discards and
 * remaps. Called under discard_lock, with the whole pages that go. Either may be NULL.
 */
struct gr_ram_discard_watch {
	/*
	 * They are about to go. May refuse with a negative errno; others may have been asked before.
	 * `lost`: the host's memory failed there. They are replaced, and whoever reads them is killed.
	 */
	int (*before)(void *opaque, struct gr_ram_block *block, uint64_t offset, uint64_t bytes,
		      bool lost, struct gr_error *err);
	/* They went, or perhaps a part, with what the mapping knew of them; they are not marked yet. */
	void (*after)(void *opaque, struct gr_ram_block *block, uint64_t offset, uint64_t bytes);
	void *opaque;
	struct gr_ram_discard_watch *next; /* (discard_lock) */
};

/* A block with what only the library sees. */
struct gr_block {
	struct gr_ram_block pub;       /* first: the two convert */
	uint32_t refs;		       /* (a) the list has one until a grace period after del */
	bool listed;		       /* (a) changes under the list mutex */
	bool list_gone;		       /* (removed_lock) of the references none is the list's */
	struct gr_block *removed_next; /* (removed_lock) */
	struct gr_block **removed_at;  /* (removed_lock) what points to it; NULL: never was removed */
	struct gr_rcu_list_node node;  /* (r) ram->blocks */
	struct gr_rcu_head rcu;
	struct gr_memory memory;       /* (c) what is mapped at host, by us unless release() is set */
	bool own_memory;	       /* (c) we mapped it */
	struct gr_windows *windows;    /* (c) host is NULL: what is mapped instead */
	char *made_path;	       /* the file that came with it; until the block is on the list */
	bool made_longer;	       /* (c) its file was empty, or there was none */
	struct gr_file_identity file;  /* (c) of the fd, if it did not come with a memfd of ours */
	bool named;		       /* (c) its file was opened by its path: others can do the same */
	bool file_locked;	       /* nobody else has mapped it since; as above */
	int lock_fd;		       /* that has the lock if pub.fd shares its locks, or -1; as above */
	struct gr_block_id *ids;       /* (l) the texts of all ids it ever had */
	enum gr_ram_numa numa_policy;  /* (c) */
	uint64_t numa_nodes;	       /* (c) */
	uint32_t stores_only;	       /* (a) protected, and system calls that write there get EFAULT */
	uint64_t discards;	       /* (discard_lock) how often a piece was thrown away */
	uint64_t *gone;		       /* (discard_lock) bit set: granule unplugged; NULL: none ever was */
	struct gr_ram_populate_listener *populate_listeners; /* (discard_lock) in the order they came */
	void (*release)(void *host, uint64_t max_bytes, void *opaque); /* (c) */
	void *opaque;		       /* (c) */
};

static inline struct gr_block *gr_block(const struct gr_ram_block *block)
{
	return (struct gr_block *)(uintptr_t)block;
}

/* block.c: checks the description, maps the memory; on the list of nobody yet. */
int gr_block_create(struct gr_ram *ram, const struct gr_ram_block_desc *desc,
		    struct gr_block **ret_block, struct gr_error *err);
/* Gives one reference back after a grace period: the list's own. */
void gr_block_put_later(struct gr_block *block);
/* It is off the list; before listeners hear of it. */
void gr_block_removed(struct gr_block *block);
/*
 * Does match() say yes to a block that was taken off the list, and that somebody has a reference to
 * besides the list itself? It takes no locks.
 */
bool gr_ram_removed_in_use(struct gr_ram *ram,
			   bool (*match)(void *opaque, const struct gr_ram_block *block),
			   void *opaque) GR_EXCLUDES(ram->removed_lock);

/* backing.c: fills host, fd, fd_offset, page_bytes and memory; the reverse. */
int gr_backing_map(struct gr_block *block, const struct gr_ram_block_desc *desc,
		   struct gr_error *err);
void gr_backing_unmap(struct gr_block *block);
/* The block is not to be: files are as they were before it. Before gr_backing_unmap(). */
void gr_backing_undo(struct gr_block *block);
/* It is on the list: files stay. */
void gr_backing_keep(struct gr_block *block);

/* backing_file.c: the fd of a block of GR_RAM_FILE or GR_RAM_FD, long enough, or an error. */
int gr_backing_open(struct gr_block *block, const struct gr_ram_block_desc *desc,
		    struct gr_error *err);

/* policy.c: what the flags ask for beyond the mapping itself. */
int gr_policy_check(const struct gr_ram_block_desc *desc, struct gr_error *err);
int gr_policy_apply(struct gr_block *block, const struct gr_ram_block_desc *desc,
		    struct gr_error *err);

/* prealloc.c */
int gr_prealloc(struct gr_block *block, const struct gr_ram_prealloc *how, struct gr_error *err);

/* Those of them that a new mapping of a piece needs again. */
int gr_policy_again(struct gr_block *block, size_t offset, size_t bytes, struct gr_error *err);

/* name.c: is it one? A copy that lives as long as the block, NULL: no memory. */
int gr_block_id_check(const char *id, struct gr_error *err);
const char *gr_block_id_keep(struct gr_block *block, const char *id);
void gr_block_ids_free(struct gr_block *block);
/* Is the block on the list, and the list not frozen? */
int gr_ram_changeable_locked(const struct gr_ram *ram, const struct gr_ram_block *block,
			     struct gr_error *err) GR_REQUIRES(ram->lock);

/*
 * discard.c: whole units within the block? Has nobody one of these holds? And can its memory be given
 * back?
 */
int gr_ram_range_check(const struct gr_ram_block *block, uint64_t offset, uint64_t bytes,
		       uint64_t unit, struct gr_error *err);
int gr_ram_discard_unforbidden_locked(const struct gr_ram_block *block, unsigned int forbidding,
				      struct gr_error *err) GR_REQUIRES(block->ram->discard_lock);
int gr_ram_discard_allowed_locked(const struct gr_ram_block *block, unsigned int forbidding,
				  struct gr_error *err) GR_REQUIRES(block->ram->discard_lock);
/* Gives it back, wherever it is mapped. 0 or a negative errno. */
int gr_ram_give_back_locked(struct gr_ram_block *block, uint64_t offset, uint64_t bytes)
	GR_REQUIRES(block->ram->discard_lock);
/* The same, marks it, and says what went wrong. */
int gr_ram_throw_away_locked(struct gr_ram_block *block, uint64_t offset, uint64_t bytes,
			     struct gr_error *err) GR_REQUIRES(block->ram->discard_lock);
void gr_ram_discard_watch_add(struct gr_ram *ram, struct gr_ram_discard_watch *watch)
	GR_EXCLUDES(ram->discard_lock);
/* When it returns nobody is in one of its functions. */
void gr_ram_discard_watch_del(struct gr_ram *ram, struct gr_ram_discard_watch *watch)
	GR_EXCLUDES(ram->discard_lock);
int gr_ram_discard_begins_locked(struct gr_ram_block *block, uint64_t offset, uint64_t bytes,
				 bool lost, struct gr_error *err)
	GR_REQUIRES(block->ram->discard_lock);
void gr_ram_discard_ended_locked(struct gr_ram_block *block, uint64_t offset, uint64_t bytes)
	GR_REQUIRES(block->ram->discard_lock);
/*
 * table.c: from a success until gr_ram_tables_allow() no other process is given memory that it
 * may write. -EINVAL: one has it already.
 */
GR_MUST_CHECK int gr_ram_tables_forbid(struct gr_ram *ram, struct gr_error *err);
void gr_ram_tables_allow(struct gr_ram *ram);

/*
 * backing_file.c: whether the other end of a move may have the block's very memory, which x-ignore-shared then leaves where
 * it is: a file that is mapped shared and that others find by its name. With `promised` also a
 * descriptor's memory of which the caller says so (GR_RAM_SHARED): nobody can see it from here, and a
 * QEMU does not take such memory for shared.
 */
bool gr_ram_block_is_shared_file(const struct gr_ram_block *block, bool promised);

/*
 * loading.c: from begin to end the machine may run, but who passes over untouched pages may not read
 * its memory: the check says -EBUSY, and why.
 */
GR_MUST_CHECK int gr_ram_loading_begin(struct gr_ram *ram, struct gr_error *err);
void gr_ram_loading_end(struct gr_ram *ram);
GR_MUST_CHECK int gr_ram_loaded_check(const struct gr_ram *ram, struct gr_error *err);

/* populate.c: what is plugged of these bytes is about to be other memory; then it is there. */
void gr_ram_tell_memory_goes_locked(struct gr_ram_block *block, uint64_t offset, uint64_t bytes)
	GR_REQUIRES(block->ram->discard_lock);
int gr_ram_tell_memory_came_locked(struct gr_ram_block *block, uint64_t offset, uint64_t bytes,
				   struct gr_error *err) GR_REQUIRES(block->ram->discard_lock);
void gr_block_gone_free(struct gr_block *block);

/* place.c: the smallest gap of the index that fits. */
int gr_ram_place(const struct gr_ram *ram, const struct gr_ram_index *index, uint64_t bytes,
		 gr_ram_addr_t *ret_offset, struct gr_error *err);
/* The first RAM address that can never be used. */
uint64_t gr_ram_addr_max(const struct gr_ram *ram);

/* region.c: is the region sound by itself and free in the index? Sets readonly if its block is. */
int gr_ram_region_check(const struct gr_ram *ram, const struct gr_ram_index *index,
			struct gr_ram_region *region, struct gr_error *err);

/* listener.c: all listeners see the change, or none does. Either argument may be NULL. */
int gr_ram_notify_add_locked(struct gr_ram *ram, struct gr_ram_block *block,
			     const struct gr_ram_region *region, struct gr_error *err)
	GR_REQUIRES(ram->lock);
int gr_ram_notify_resize_locked(struct gr_ram *ram, struct gr_ram_block *block, uint64_t old,
				uint64_t used, struct gr_error *err) GR_REQUIRES(ram->lock);
/* The regions of the index that show the block, then the block. */
void gr_ram_notify_block_del_locked(struct gr_ram *ram, struct gr_ram_block *block,
				    const struct gr_ram_index *old) GR_REQUIRES(ram->lock);
void gr_ram_notify_region_del_locked(struct gr_ram *ram, const struct gr_ram_region *region)
	GR_REQUIRES(ram->lock);

/*
 * list.c: publishes the new index and returns the old one, which readers still use: tell the
 * listeners, then have it freed later.
 */
struct gr_ram_index *gr_ram_index_publish_locked(struct gr_ram *ram, struct gr_ram_index *index)
	GR_REQUIRES(ram->lock);
void gr_ram_index_free_later(struct gr_ram *ram, struct gr_ram_index *index);

/* lookup.c: the region at an address, through the thread's cache. */
const struct gr_ram_region *gr_ram_region_at_rcu(const struct gr_ram_index *index, gr_gpa_t gpa)
	GR_REQUIRES_SHARED(gr_rcu_section);

#endif
