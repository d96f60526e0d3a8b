/* SPDX-License-Identifier: MIT */
/**
 * guestram/rcu_queue.h - callbacks that run after a grace period.
 *
 * gr_rcu_call() hands an object over to a queue; a worker thread waits for a grace period
 * and then calls back, holding a lock of the caller's if the queue has one.
 * <guestram/rcu.h> includes this header.
 *
 *     struct conf { int limit; struct gr_rcu_head rcu; };
 *
 *     gr_rcu_free(old, rcu);                      // free(old) when no reader has it any more
 *     gr_rcu_call(queue, &old->rcu, put_conf);    // put_conf(&old->rcu), perhaps under a lock
 *
 * Classes: most callbacks of a queue with a lock run with it held, in bounded slices. Those
 * of gr_rcu_free() and gr_rcu_call_nolock() never take it. Callbacks of one thread, one class
 * and one queue run in the order of the calls; what thread-exit destructors queue that run after
 * the library's own is in order among itself, and what a signal handler queues in the middle of a
 * call of its thread comes before what is called later only.
 *
 * Limits: a queue over its soft limit stops gathering callbacks and hurries; over its hard limit
 * calls wait until the worker has caught up. A call that must not wait (inside a section, on a
 * quiescent-state thread that is online, in a callback, with the queue's lock held) never does,
 * and no call waits longer than
 * GR_RCU_LIMIT_WAIT_NS: an application that holds a lock which a callback or a reader needs
 * becomes slow, with a warning, and does not hang.
 *
 * A queue without a thread (GR_RCU_QUEUE_NO_THREAD) belongs to somebody's event loop: its fd is
 * readable when gr_rcu_queue_poll() has something to do.
 *
 * fork(): what was queued before runs in both processes; a callback that another thread was in
 * the middle of does not run again in the child.
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

struct gr_rcu_domain; /* <guestram/rcu_domain.h> */

/** Callbacks with one worker thread, and perhaps a lock that is held while they run. */
struct gr_rcu_queue;

/** No worker thread: the owner calls gr_rcu_queue_poll(). */
#define GR_RCU_QUEUE_NO_THREAD 1u
/** The worker runs on the CPU that is named in cpu only. */
#define GR_RCU_QUEUE_PIN 2u

/** What a queue is like. Zero means the default everywhere but in size. */
struct gr_rcu_queue_params {
	size_t size;		    /**< sizeof(struct gr_rcu_queue_params) */
	const char *name;	    /**< of the worker thread, cut to 15 bytes; copied */
	void (*lock)(void *opaque); /**< held while callbacks run; both or none */
	void (*unlock)(void *opaque);
	/** Does the calling thread hold the lock? Recommended: what must not wait then does not. */
	bool (*is_locked)(void *opaque);
	void *opaque;		      /**< for lock, unlock and is_locked */
	struct gr_rcu_domain *domain; /**< whose grace periods; NULL: the default domain */
	unsigned flags;		      /**< GR_RCU_QUEUE_... */
	int cpu;		      /**< with GR_RCU_QUEUE_PIN */
	size_t soft_count;	      /**< hurry above so many callbacks; 0: 10000 */
	size_t hard_count;	      /**< calls wait above so many callbacks; 0: never */
	size_t soft_bytes;	      /**< as soft_count, for gr_rcu_call_sized(); 0: 64 MiB */
	size_t hard_bytes;	      /**< as hard_count; 0: never */
};

/** At most so many callbacks run before the queue's lock is released and taken again... */
#define GR_RCU_SLICE_CALLBACKS 64
/** ...and no callback starts later than this after the lock was taken. */
#define GR_RCU_SLICE_NS 200000
/** No call waits longer for a queue over its hard limit. */
#define GR_RCU_LIMIT_WAIT_NS 100000000

/**
 * Create a callback queue.
 * @param params    NULL: no lock, a default name.
 * @param ret_queue Set on success only; free it with gr_rcu_queue_free().
 * @param err       May be NULL.
 * @return 0 or a negative errno.
 * @errors  -EINVAL a wrong size, an unknown flag, or only one of lock and unlock; -ENOMEM; with
 *          GR_RCU_QUEUE_NO_THREAD what making an fd may say, -ENOTSUP but on Linux and Windows.
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
 *              time before that is an error that is often, not always, noticed (it dies).
 * @param func  May free the object, queue callbacks (the same head too), enter and leave
 *              sections, and sleep, which delays the queue. Must not release the queue's lock, not
 *              even for a moment: somebody else would run what follows.
 * @context Any thread, also inside a section and in callbacks. Also in a signal handler once the
 *          worker runs (the first call starts it) if the queue has no hard limit. Never fails,
 *          lock-free; waits only for a queue over its hard limit.
 */
GR_EXPORT void gr_rcu_call(struct gr_rcu_queue *queue, struct gr_rcu_head *head,
			   void (*func)(struct gr_rcu_head *head));

/**
 * As gr_rcu_call(), and the queue's lock is not held when func runs.
 * @param queue NULL: the default queue.
 * @param head  As in gr_rcu_call().
 * @param func  As in gr_rcu_call(); it may take the queue's lock itself.
 * @context As gr_rcu_call().
 */
GR_EXPORT void gr_rcu_call_nolock(struct gr_rcu_queue *queue, struct gr_rcu_head *head,
				  void (*func)(struct gr_rcu_head *head));

/**
 * As gr_rcu_call(), and say how much memory waits with it, for the limits on bytes.
 * @param queue NULL: the default queue.
 * @param head  As in gr_rcu_call().
 * @param func  As in gr_rcu_call().
 * @param bytes What func will give back, roughly.
 * @context As gr_rcu_call().
 */
GR_EXPORT void gr_rcu_call_sized(struct gr_rcu_queue *queue, struct gr_rcu_head *head,
				 void (*func)(struct gr_rcu_head *head), size_t bytes);

/** Private to gr_rcu_free(): free(the object) whose head is offset bytes from its start. */
GR_EXPORT void gr_rcu_free_at(struct gr_rcu_head *head, size_t offset);

/** gr_rcu_free() takes heads at most so far into their object. */
#define GR_RCU_FREE_OFFSET_MAX 4095

/**
 * free(ptr) after a grace period, without a callback function and without any lock.
 * ptr is evaluated once; field is its struct gr_rcu_head, in the first 4096 bytes.
 */
#define gr_rcu_free(ptr, field)                                                                    \
	gr_rcu_free_at(                                                                            \
		&(ptr)->field,                                                                     \
		sizeof(char[offsetof(__typeof__(*(ptr)), field) <= GR_RCU_FREE_OFFSET_MAX ? 1      \
											  : -1]) - \
			1 + offsetof(__typeof__(*(ptr)), field))

/**
 * Wait until every callback queued before has run. Costs no grace period when none is queued.
 * @param queue NULL: the default queue.
 * @context Outside a section and not in a callback of this queue (dies in either), without the
 *          queue's lock held (dies if is_locked says so), nor any lock that a callback or a
 *          reader's section takes. Sleeps. Runs the callbacks itself where there is no worker.
 */
GR_EXPORT void gr_rcu_barrier(struct gr_rcu_queue *queue) GR_EXCLUDES(gr_rcu_section);

/**
 * Have func(head) run when every callback queued before has run. Costs no grace period
 * when none is queued.
 * @param queue NULL: the default queue.
 * @param head  As in gr_rcu_call().
 * @param func  As in gr_rcu_call(): runs with the queue's lock held.
 * @context Any thread, also inside a section and in callbacks; not in a signal handler. A
 * thread-less queue's owner must go on polling.
 */
GR_EXPORT void gr_rcu_barrier_async(struct gr_rcu_queue *queue, struct gr_rcu_head *head,
				    void (*func)(struct gr_rcu_head *head));

/**
 * As gr_rcu_barrier(), with the queue's lock held by the caller: released while waiting for
 * the grace period (and for callbacks that run without it), held again while the others run,
 * here, and on return. So whatever the lock protects may have changed on return, exactly as
 * if the caller had released it. Nothing queued: the lock is not released.
 * @param queue A queue with a lock. One without: as gr_rcu_barrier().
 * @context As gr_rcu_barrier(), but with the lock held, once. Dies if is_locked denies that.
 */
GR_EXPORT void gr_rcu_drain(struct gr_rcu_queue *queue) GR_EXCLUDES(gr_rcu_section);

/**
 * The fd of a queue without a thread: readable when gr_rcu_queue_poll() has something to do.
 * @param queue With GR_RCU_QUEUE_NO_THREAD (dies otherwise).
 * @return The fd, the queue's: only poll it. A fork child has the same number and another
 *         event behind it: it adds the fd to its epoll sets again. -1 if the child could make none.
 * @context Any.
 */
GR_EXPORT GR_MUST_CHECK int gr_rcu_queue_fd(struct gr_rcu_queue *queue);

/**
 * Run callbacks of a queue without a thread. Never waits for readers: the default queue's
 * worker sees to the grace period, and the fd tells when it is over.
 * @param queue With GR_RCU_QUEUE_NO_THREAD (dies otherwise).
 * @param max   At most so many callbacks; 0: any number.
 * @param ns    Start none later than this; 0: no limit.
 * @return How many have run. If more could, the fd is readable again.
 * @context Outside a section. Takes the queue's lock for those that need it, in slices,
 *          unless is_locked says that it is held. Two threads that poll at once: one does nothing.
 */
GR_EXPORT size_t gr_rcu_queue_poll(struct gr_rcu_queue *queue, size_t max, uint64_t ns)
	GR_EXCLUDES(gr_rcu_section);

/**
 * Note a queue for the calling thread: storage for layers that have "the current thread's queue".
 * gr_rcu_call(NULL, ...) goes to the default queue nevertheless.
 * @param queue NULL: none. Must not be freed while it is noted.
 * @context Any.
 */
GR_EXPORT void gr_rcu_set_thread_queue(struct gr_rcu_queue *queue);

/**
 * What gr_rcu_set_thread_queue() noted on this thread.
 * @return The queue, or NULL.
 * @context Any.
 */
GR_EXPORT GR_MUST_CHECK struct gr_rcu_queue *gr_rcu_get_thread_queue(void);

/** Numbers about a queue. The last seven only grow. */
struct gr_rcu_queue_stats {
	uint64_t length;	   /**< callbacks that have not begun */
	uint64_t bytes;		   /**< of those that came by gr_rcu_call_sized(), roughly */
	uint64_t high_water;	   /**< highest length seen */
	uint64_t high_water_bytes; /**< highest bytes seen */
	uint64_t run;		   /**< callbacks run */
	uint64_t batches;	   /**< grace periods that they took */
	uint64_t slice_ns_max;	   /**< longest that the lock was held in one slice */
	uint64_t limit_waits;	   /**< calls that waited for a queue over its hard limit */
	uint64_t limit_passes;	   /**< calls that went on over it: must not wait, or waited long */
};

/**
 * Read a queue's numbers.
 * @param queue     NULL: the default queue.
 * @param ret_stats Filled in.
 * @context Any thread; not in a signal handler. Takes a mutex for a moment.
 */
GR_EXPORT void gr_rcu_queue_stats_get(struct gr_rcu_queue *queue,
				      struct gr_rcu_queue_stats *ret_stats);

GR_END_DECLS
#endif
