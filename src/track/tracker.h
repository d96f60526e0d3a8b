/* SPDX-License-Identifier: MIT */
/*
 * What a dirty tracker is to the driver (track.c). A tracker is one file that embeds struct
 * gr_tracker and fills a table of operations; the driver owns the rest: counting starts,
 * coverage, being the RAM listener, keeping blocks alive, and one lock around all reports.
 *
 * Order of calls for one tracker (each op may be NULL unless it says otherwise):
 *
 *   create                        gr_track_use(): probe, open what it needs
 *     start                       first gr_track_start()
 *       block_add, region_add     what exists is replayed; then as it changes
 *         sync | sync_block       any number of times
 *         rearm_due, rearm
 *       region_del, block_del     as it changes; then all that is left
 *     stop                        last gr_track_stop(); start may come again
 *   destroy                       gr_track_free()
 *
 * Locks held by the driver around an op:
 *
 *   start, stop        control lock and report lock
 *   block_*, region_*  the list mutex; NOT the report lock (a plug never waits for a sync),
 *                      so a block or region may go while sync or rearm work on it
 *   sync, sync_block,  report lock (one at a time, whoever asks): it is released only
 *   rearm              after the marks, so that another consumer's sync cannot return
 *                      while bits are in transit
 *   rearm_due          none
 *
 * A tracker takes its own lock (GR_RANK_TRACKER) inside these, never calls back into the
 * RAM list, and never holds a read-side section over a system call.
 *
 * O4, in the order that models/ proves:
 *   sync   fetch from the kernel; record the debt; mark            (gr_debt_fetched())
 *   rearm  ask the kernel to protect debt & run; then drop the debt (gr_debt_rearm())
 * A tracker whose fetch protects in the same call has no debt and leaves rearm NULL.
 */
#ifndef GR_TRACK_TRACKER_H
#define GR_TRACK_TRACKER_H

#include <guestram/track.h>

struct gr_tracker;

struct gr_tracker_ops {
	const char *name;    /* for messages, e.g. "uffd-wp" */
	unsigned int covers; /* enum gr_writers it sees */
	/* Those whose writes would fail while it tracks, and why; they are refused. */
	unsigned int breaks;
	const char *breaks_why;

	/* Frees the tracker. Required. */
	void (*destroy)(struct gr_tracker *t);

	/* Tracking begins, before the first block_add; and ends, after the last block_del. */
	int (*start)(struct gr_tracker *t, struct gr_error *err);
	void (*stop)(struct gr_tracker *t);

	/*
	 * A block or region to watch from the return on. Called before the block can be found
	 * by anyone (or in the replay). A refusal undoes the plug, or the start. _del comes
	 * once for each _add that succeeded; the block's memory is still mapped then.
	 */
	int (*block_add)(struct gr_tracker *t, struct gr_ram_block *block, struct gr_error *err);
	void (*block_del)(struct gr_tracker *t, struct gr_ram_block *block);
	int (*region_add)(struct gr_tracker *t, const struct gr_ram_region *region,
			  struct gr_error *err);
	void (*region_del)(struct gr_tracker *t, const struct gr_ram_region *region);

	/*
	 * Fetch and mark (report.h). `sync` does all at once; `sync_block` is called for each
	 * block that was added, with a reference held by the driver. An error for a block that
	 * was removed meanwhile is ignored by the driver. After an error nothing that was
	 * fetched may be unmarked: when in doubt mark more.
	 */
	int (*sync)(struct gr_tracker *t, struct gr_error *err);
	int (*sync_block)(struct gr_tracker *t, struct gr_ram_block *block, struct gr_error *err);

	/*
	 * Whether sync reports what it has reported before, until that is re-armed. NULL: never.
	 */
	bool (*repeats)(struct gr_tracker *t);

	/*
	 * Whether rearm has anything to do for these bytes: a look at the debt without a lock,
	 * so that a page without debt costs nothing. NULL: always, if there is a rearm.
	 */
	bool (*rearm_due)(struct gr_tracker *t, struct gr_ram_block *block, uint64_t offset,
			  uint64_t bytes);
	/*
	 * Protect again what was fetched and not re-armed since, in these bytes of the block
	 * (of every region that shows them), TLB flush included.
	 */
	int (*rearm)(struct gr_tracker *t, struct gr_ram_block *block, uint64_t offset,
		     uint64_t bytes, struct gr_error *err);
};

/* Embedded in each tracker. */
struct gr_tracker {
	const struct gr_tracker_ops *ops; /* (c) */
	struct gr_ram *ram;		  /* (c) the machine; set by the driver before start */
};

/*
 * One constructor per kind, called by gr_track_use(): probes, opens, and says in err why it
 * cannot be had here (-ENOTSUP). Sets *ret_tracker on success only.
 */
int gr_tracker_uffd_wp_create(struct gr_ram *ram, const struct gr_tracker_params *params,
			      struct gr_tracker **ret_tracker, struct gr_error *err);
int gr_tracker_uffd_sync_create(struct gr_ram *ram, const struct gr_tracker_params *params,
				struct gr_tracker **ret_tracker, struct gr_error *err);
int gr_tracker_kvm_log_create(struct gr_ram *ram, const struct gr_tracker_params *params,
			      struct gr_tracker **ret_tracker, struct gr_error *err);
int gr_tracker_kvm_ring_create(struct gr_ram *ram, const struct gr_tracker_params *params,
			       struct gr_tracker **ret_tracker, struct gr_error *err);

/*
 * Take a tracker into use that was made elsewhere (the tests' own). The driver owns it from
 * here on, also when this fails.
 */
int gr_track_use_tracker(struct gr_track *track, struct gr_tracker *tracker, struct gr_error *err);

/* Whether a sync may report pages again that nobody has stored to, because they were not re-armed. */
bool gr_track_repeats(const struct gr_track *track);

#endif
