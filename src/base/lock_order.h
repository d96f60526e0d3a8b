/* SPDX-License-Identifier: MIT */
/*
 * Every mutex of the library, outermost first: a thread that holds one may only take one of
 * a higher rank (checked with -Ddebug_checks=true). Never wait for a grace period with a
 * mutex held that a reader may take inside a section.
 *
 * Locks that the caller brings (a callback queue's lock, for instance) come before all
 * of these: the library calls them with none of its own held.
 */
#ifndef GR_BASE_LOCK_ORDER_H
#define GR_BASE_LOCK_ORDER_H

enum gr_lock_rank {
	/* One migration's state machine. Not what its threads exchange by queues. */
	GR_RANK_MIGRATE = 10,
	/* A machine's tracker driver: who is in use, how often started. */
	GR_RANK_TRACK_DRIVER = 20,
	/* Its reports, from the fetch to the last mark, and re-arming. Not the bits. */
	GR_RANK_TRACK_REPORT = 25,
	/* The writers of a RAM list. Readers take nothing; block memory is not covered. */
	GR_RANK_RAM = 30,
	/* Discards of one machine, what forbids them and who listens. Held while they are called. */
	GR_RANK_RAM_DISCARD = 35,
	/* The list of RAM listeners, held while they are called. */
	GR_RANK_LISTENER = 40,
	/* A tracker driver's array of blocks. Not the blocks. */
	GR_RANK_TRACK_BLOCKS = 45,
	/* The blocks that were removed and are still referenced. Not their references. */
	GR_RANK_RAM_REMOVED = 47,
	/* The copies that a snapshot has not written out. Held over a copy, and while one is given up. */
	GR_RANK_SNAPSHOT = 48,
	/* One tracker's own state. Not the dirty memory. */
	GR_RANK_TRACKER = 50,
	/* The windows of one block that is mapped on demand. Held over a mapping call, not over copies. */
	GR_RANK_RAM_WINDOWS = 54,
	/* The list of all dirty memories, for fork. Not their content. */
	GR_RANK_DIRTY_LIST = 55,
	/* Growth, consumers and epochs of one dirty memory. Markers take nothing. */
	GR_RANK_DIRTY = 60,
	/* One loop's handlers and timers. Not held while a handler runs; the loop walks by RCU. */
	GR_RANK_LOOP = 65,
	/* One fork between liburcu's hooks at a time. Held while callbacks end; they must not want it. */
	GR_RANK_URCU_FORK = 66,
	/* The list of liburcu's call_rcu_data, and who uses each. Not the queues. */
	GR_RANK_URCU = 67,
	/* The list of QEMU's notifiers. Not held while one is called. */
	GR_RANK_QEMU_NOTIFIERS = 68,
	/* Who drives the grace period. Held while it waits for readers: only ever tried. */
	GR_RANK_RCU_GP = 70,
	/* How deep quiet times are nested. Held over the process-wide fence that begins one. */
	GR_RANK_RCU_QUIET = 75,
	/* The list of all callback queues, for fork. Not the queues themselves. */
	GR_RANK_RCU_QUEUES = 80,
	/* One callback queue's current batch. Never held while a callback runs. */
	GR_RANK_RCU_QUEUE = 90,
	/* The list of all domains, for fork and for threads that end. Not their readers. */
	GR_RANK_RCU_DOMAINS = 95,
	/* A driver's marks in reader records, and that records stay. Short; not taken by fork. */
	GR_RANK_RCU_REGISTRY = 100,
	/* The list of domains and of each one's readers change: a few stores. For fork. */
	GR_RANK_RCU_LISTS = 105,
	/* What the checking build knows about the caller's locks. Nothing is called with it held. */
	GR_RANK_RCU_CHECKS = 110,
	/* Who sets one of the application's handlers. Innermost: nothing is called with it held. */
	GR_RANK_HANDLER = 120,
};

#endif
