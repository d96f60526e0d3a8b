/* SPDX-License-Identifier: MIT */
/*
 * Where a migration is: its state, changed only along the legal transitions, and its
 * counts. The driving thread updates, any thread looks and cancels.
 */
#ifndef GR_MIGRATE_PROGRESS_H
#define GR_MIGRATE_PROGRESS_H

#include "base/clock.h"
#include "base/mutex.h"
#include <guestram/channel.h>
#include <guestram/migrate.h>

/* How often progress() of the machine is called. */
#define GR_PROGRESS_INTERVAL_NS (100 * GR_NS_PER_MS)

struct gr_progress {
	struct gr_mutex lock;
	struct gr_migrate_stats stats; /* (l) */
	uint64_t begin_ns;	       /* (l) when it left NONE */
	uint64_t told_ns;	       /* (o) when the machine's progress() was called last */
	bool go_on;		       /* (l) from PRE_SWITCHOVER */
	bool keep_channel;	       /* (l) a cancel does not break the channel by itself */
};

void gr_progress_init(struct gr_progress *p);
void gr_progress_destroy(struct gr_progress *p);

/**
 * Change the state, if the table of transitions allows it.
 * @param p  The progress.
 * @param to The new state.
 * @return Whether it is the state now. False: somebody has cancelled.
 */
bool gr_progress_move(struct gr_progress *p, enum gr_migrate_state to);

/** @param p The progress. @return The state. */
enum gr_migrate_state gr_progress_state(struct gr_progress *p);

/** @param p The progress. @return Whether the driver shall stop. */
bool gr_progress_cancelling(struct gr_progress *p);

/**
 * Cancel: from any thread. Breaks the channel, so that a thread that sleeps in it wakes up,
 * unless gr_progress_keep_channel() was called.
 * @param p       The progress.
 * @param channel The migration's.
 */
void gr_progress_cancel(struct gr_progress *p, struct gr_channel *channel);

/**
 * From now on a cancel only changes the state: the peer may have everything, and what
 * becomes of the cancel is the driver's to find out.
 * @param p The progress.
 * @return false if it has been cancelled already.
 */
bool gr_progress_keep_channel(struct gr_progress *p);

/** Go on from PRE_SWITCHOVER. @param p The progress. @return Whether it is the state. */
bool gr_progress_go_on(struct gr_progress *p);

/** @param p The progress. @return Whether that was called. */
bool gr_progress_goes_on(struct gr_progress *p);

/** @param p The progress. @param ret_stats Filled. */
void gr_progress_snapshot(struct gr_progress *p, struct gr_migrate_stats *ret_stats);

/**
 * Lock and unlock around changes of stats; the state is not changed this way.
 * @param p The progress.
 * @return The counts.
 */
struct gr_migrate_stats *gr_progress_lock(struct gr_progress *p) GR_ACQUIRE(p->lock);
void gr_progress_unlock(struct gr_progress *p) GR_RELEASE(p->lock);

/**
 * Call fn with a snapshot: at once if now is set, else if it is time.
 * @param p      The progress.
 * @param fn     May be NULL.
 * @param opaque For fn.
 * @param now    Do not wait for the interval to end.
 * @return Whether the interval had ended (or now).
 */
bool gr_progress_tell(struct gr_progress *p,
		      void (*fn)(void *opaque, const struct gr_migrate_stats *stats), void *opaque,
		      bool now);

#endif
