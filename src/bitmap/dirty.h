/* SPDX-License-Identifier: MIT */
/*
 * The insides of dirty memory: the live bitmap that markers write, and the consumers.
 * The protocol and its argument are in mark.c (markers) and harvest.c (harvesters); the
 * orderings O1 to O6 are stated in docs/dirty-memory.md.
 */
#ifndef GR_BITMAP_DIRTY_H
#define GR_BITMAP_DIRTY_H

#include "base/mutex.h"
#include "base/signals.h"
#include "bitmap/bits.h"
#include <guestram/dirty.h>

/* The upper end of a chunk. whole: a bit says that all pages of the group are set, whatever its
 * lines say. */
struct gr_dirty_head {
	uint64_t top;	/* (a) */
	uint64_t whole; /* (a) */
};

/*
 * Where the live words of a chunk are. Chunks that came together have their heads side by side, and
 * their sums: so a harvest of few pages in much memory reads both in order.
 */
struct gr_dirty_chunk {
	uint64_t *leaf;		    /* (c) GR_DIRTY_LEAVES words */
	uint64_t *sum;		    /* (c) GR_BITS_GROUPS words: a bit for each line of leaves */
	struct gr_dirty_head *head; /* (c) */
	size_t together; /* (c) in the first chunk of a mapping: how many it has; 0 in the others */
};

enum { GR_DIRTY_LEAVES = GR_BITS_CHUNK_PAGES / GR_BITS_PER_WORD };

/* What a marker needs to find a word. Replaced as a whole when dirty memory grows. */
struct gr_dirty_map {
	struct gr_rcu_head rcu;
	size_t chunks; /* (c) */
	/* (c) how many of them the inline half of a mark may look at: all, or 0 where there is no
	 * process-wide fence and markers have their own */
	size_t inlined;
	struct gr_dirty_chunk
		chunk[]; /* (c) what they point to lives as long as the dirty memory */
};

struct gr_dirty {
	struct gr_dirty_map *map; /* (r) lock */
	gr_atomic_u64 pages;	  /* (a) covered; follows map */
	struct gr_mutex lock;	  /* the harvest lock: markers never take it; see gr_dirty_lock() */
	struct gr_signals saved;  /* (l) of who has the lock */
	unsigned int consumers;	  /* (l) */
	struct gr_dirty_consumer *consumer[GR_DIRTY_CONSUMERS_MAX]; /* (l) */
	uint64_t fences;       /* (l) process-wide fences run, for tests */
	bool forked;	       /* (l) in a child of fork() that has not harvested yet */
	struct gr_dirty *next; /* the list's lock (fork.c) */
};

struct gr_dirty_consumer {
	struct gr_dirty *dirty;	     /* (c) */
	char *name;		     /* (c) */
	struct gr_bits pend;	     /* (l) what harvests found since this consumer's last begin */
	struct gr_bits set;	     /* (o) the open epoch; empty without one */
	bool open;		     /* (o) */
	struct gr_dirty_epoch *kept; /* (o) epochs that were set aside */
};

struct gr_dirty_epoch {
	struct gr_dirty_consumer *consumer; /* (c) */
	struct gr_dirty_epoch *next;	    /* (o) */
	struct gr_bits set;		    /* (o) covers what there was; never grows */
};

/* fork.c. Who has the harvest lock has no signals: a handler may fork, which takes it. */
void gr_dirty_lock(struct gr_dirty *dirty) GR_ACQUIRE(dirty->lock);
void gr_dirty_unlock(struct gr_dirty *dirty) GR_RELEASE(dirty->lock);

/*
 * Move every live bit to `to` (may be NULL) and to the pending set of every consumer but
 * `skip` (may be NULL), then run the process-wide fence if there was any.
 */
void gr_dirty_harvest_locked(struct gr_dirty *dirty, struct gr_bits *to,
			     const struct gr_dirty_consumer *skip) GR_REQUIRES(dirty->lock);

/* fork.c: from now on fork() finds the harvest lock free, until unlisted. 0 or -ENOMEM. */
int gr_dirty_fork_list(struct gr_dirty *dirty);
void gr_dirty_fork_unlist(struct gr_dirty *dirty);

#endif
