/* SPDX-License-Identifier: MIT */
/**
 * guestram/rcu_queue.h - callbacks that run after a grace period.
 *
 * gr_rcu_call() hands an object over to a queue; a worker thread waits for a grace period
 * and then calls back, holding a lock of the caller's if the queue has one.
 * <guestram/rcu.h> includes this header.
 */
#ifndef GUESTRAM_RCU_QUEUE_H
#define GUESTRAM_RCU_QUEUE_H

#include <guestram/rcu.h>

GR_BEGIN_DECLS

/** Embedded in an object that a callback will free. Needs no initialisation. */
struct gr_rcu_head {
	struct gr_rcu_head *next;
	void (*func)(struct gr_rcu_head *head);
};

/** Callbacks with one worker thread, and perhaps a lock that is held while they run. */
struct gr_rcu_queue;

/** What a queue is like. Zero means the default everywhere but in size. */
struct gr_rcu_queue_params {
	size_t size;		     /**< sizeof(struct gr_rcu_queue_params) */
	const char *name;	     /**< of the worker thread, cut to 15 bytes; copied */
	void (*lock)(void *opaque);  /**< held while callbacks run; both or none */
	void (*unlock)(void *opaque);
	void *opaque;		     /**< for lock and unlock */
};

/** At most so many callbacks run before the queue's lock is released and taken again... */
#define GR_RCU_SLICE_CALLBACKS 64
/** ...and no callback starts later than this after the lock was taken. */
#define GR_RCU_SLICE_NS 200000

/**
 * Create a callback queue.
 * @param params    NULL: no lock, a default name.
 * @param ret_queue Set on success only; free it with gr_rcu_queue_free().
 * @param err       May be NULL.
 * @return 0 or a negative errno.
 * @errors  -EINVAL a wrong size, or only one of lock and unlock; -ENOMEM.
 * @context Any thread. The worker thread starts with the first callback. The lock is
 *          taken by the worker with nothing else held, never while it waits for readers, and
 *          in slices: others that wait for it get their turn between.
 */
GR_EXPORT GR_MUST_CHECK int gr_rcu_queue_create(const struct gr_rcu_queue_params *params,
						struct gr_rcu_queue **ret_queue,
						struct gr_error *err);

/**
 * Run what is queued, stop the worker and free the queue.
 * @param queue May be NULL. Not the default queue. Nobody may add callbacks to it any more but
 *              its own callbacks.
 * @context As gr_rcu_barrier().
 */
GR_EXPORT void gr_rcu_queue_free(struct gr_rcu_queue *queue) GR_EXCLUDES(gr_rcu_section);

/**
 * Have func(head) run after a grace period, on the queue's worker thread.
 * @param queue NULL: the default queue, which has no lock.
 * @param head  In the object; must stay untouched until func has it. Queueing it a second
 *              time before that corrupts the queue.
 * @param func  May free the object, queue callbacks (the same head too), enter and leave
 *              sections, and sleep, which delays the queue.
 * @context Any thread, also inside a section and in callbacks; not in a signal handler.
 *          Lock-free; the first call starts a thread. Callbacks of one thread on one
 *          queue run in the order they were queued.
 */
GR_EXPORT void gr_rcu_call(struct gr_rcu_queue *queue, struct gr_rcu_head *head,
			   void (*func)(struct gr_rcu_head *head));

/**
 * Wait until every callback queued before has run. Costs no grace period when none is queued.
 * @param queue NULL: the default queue.
 * @context Outside a section and not in a callback of this queue (dies in either), without the
 *          queue's lock held, nor any lock that a callback or a reader's section takes. Sleeps.
 */
GR_EXPORT void gr_rcu_barrier(struct gr_rcu_queue *queue) GR_EXCLUDES(gr_rcu_section);

GR_END_DECLS
#endif
