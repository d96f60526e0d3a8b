/* SPDX-License-Identifier: MIT */
/**
 * guestram/loop.h - one thread that waits for many things: descriptors, deadlines, calls.
 *
 * A loop calls a function when a descriptor can be read or written, when a deadline has come,
 * or because somebody asked for a call. Whoever runs it is its thread while it runs; handlers
 * are added, changed and removed from any thread, also from handlers, their own too, and
 * nobody waits for the loop: it looks its handlers up under RCU.
 *
 *     static void on_input(void *opaque)
 *     {
 *             read((int)(intptr_t)opaque, ...);
 *     }
 *
 *     struct gr_loop_fd_desc desc = {
 *             .size = sizeof(desc), .fd = fd, .events = GR_LOOP_READ,
 *             .read = on_input, .opaque = (void *)(intptr_t)fd,
 *     };
 *
 *     gr_loop_create(NULL, &loop, &err);
 *     gr_loop_add_fd(loop, &desc, &handler, &err);
 *     gr_loop_run(loop, &err);                  // until gr_loop_stop(loop), from anywhere
 *     gr_loop_del_sync(handler);
 *     close(fd);                                // only now: nobody reads it any more
 *     gr_loop_free(loop);
 *
 * What removing means:
 * - After gr_loop_del() has returned no call of the handler begins. One that has begun may
 *   still be running if another thread removes than the loop's.
 * - After gr_loop_del_sync() has returned none is running either (but the caller's own).
 * - `release` is called once, when the call in progress has ended and a grace period after
 *   that has passed: the place to free what `opaque` points to, and to close the descriptor
 *   if the handler was removed by gr_loop_del().
 * The same holds for turning events off and for setting a timer to GR_LOOP_NEVER: no call
 * that was not wanted any more begins afterwards.
 *
 * Handlers run outside read-side sections, without any lock of the library's: they may
 * wait, for a grace period too, though whatever else the loop has to do waits with them. A
 * sleeping loop is parked (gr_rcu_park(); a quiescent-state thread is offline): no grace
 * period waits for its thread or disturbs it.
 *
 * Caveats:
 * - Remove a handler before its descriptor is closed. Closed too early, it is called no more (or,
 *   where the loop uses poll(2), for whatever gets the number next), and harms nobody else.
 * - One handler for a descriptor in a loop; the same descriptor may be in several loops.
 * - Events are level-triggered: a read function that leaves bytes is called again. An error or
 *   a hang-up counts as whatever events are wanted.
 * - On Windows descriptors are sockets, and `fd` is (int)socket: nothing is lost, since handles
 *   there have 32 significant bits. Winsock is started as long as there is a loop or a notifier.
 * - After fork() the loop is the parent's: the child may not use it, nor free it.
 *
 * Source: the fd handlers under RCU of QEMU's RCU series (Bonzini 2011); the interface is ours.
 */
#ifndef GUESTRAM_LOOP_H
#define GUESTRAM_LOOP_H

#include <guestram/error.h>
#include <guestram/rcu.h>
#include <guestram/types.h>

GR_BEGIN_DECLS

/** Runs handlers. */
struct gr_loop;

/** A descriptor's or a timer's place in a loop. Lives until it is removed. */
struct gr_loop_handler;

/** No time limit, or a timer that does not fire. */
#define GR_LOOP_NEVER UINT64_MAX

/** What a loop is like. Zero means the default everywhere but in size. */
struct gr_loop_params {
	size_t size;		    /**< sizeof(struct gr_loop_params) */
	struct gr_rcu_queue *queue; /**< whose callbacks release handlers; NULL: the default one.
				     *   Must outlive them */
};

/**
 * Create a loop. It does nothing until somebody runs it.
 * @param params   NULL: defaults.
 * @param ret_loop Set on success only; free it with gr_loop_free().
 * @param err      May be NULL.
 * @return 0 or a negative errno.
 * @errors  -EINVAL a wrong size; -ENOMEM; -EMFILE, -ENFILE no descriptor left; -EIO
 *          Windows: no socket to wake it with can be had.
 * @context Any thread. Linux uses epoll, Windows WSAPoll(), others poll(2); GR_LOOP_BACKEND=poll
 *          in the environment chooses the last on Linux too.
 */
GR_EXPORT GR_MUST_CHECK int gr_loop_create(const struct gr_loop_params *params,
					   struct gr_loop **ret_loop, struct gr_error *err);

/**
 * Free a loop. Calls that were asked for and have not been made are made here.
 * @param loop May be NULL. Its handlers must have been removed (dies otherwise).
 * @context No thread runs the loop (dies otherwise) or uses it any more.
 */
GR_EXPORT void gr_loop_free(struct gr_loop *loop);

/**
 * Wait until there is something to do, and do all of it once.
 * @param loop       The loop.
 * @param timeout_ns How long to wait at most; 0 only looks, GR_LOOP_NEVER waits for ever.
 * @param err        May be NULL.
 * @return How many functions were called, or a negative errno. 0: the time is up, a signal came,
 *         or gr_loop_stop() asked for the return.
 * @units   timeout_ns: nanoseconds.
 * @errors  -ENOMEM.
 * @context One thread at a time, not in a handler of the same loop (dies in either case). Outside
 *          a read-side section. Sleeps.
 */
GR_EXPORT GR_MUST_CHECK int gr_loop_step(struct gr_loop *loop, uint64_t timeout_ns,
					 struct gr_error *err) GR_EXCLUDES(gr_rcu_section);

/**
 * Run until gr_loop_stop().
 * @param loop The loop.
 * @param err  May be NULL.
 * @return 0 when it was stopped, or a negative errno.
 * @errors  As gr_loop_step().
 * @context As gr_loop_step().
 */
GR_EXPORT GR_MUST_CHECK int gr_loop_run(struct gr_loop *loop, struct gr_error *err)
	GR_EXCLUDES(gr_rcu_section);

/**
 * Have gr_loop_run() or gr_loop_step() return when what it has begun is done; if nobody is in
 * there now, the next one returns without waiting.
 * @param loop The loop.
 * @context Any thread, also in handlers and in a signal handler. Does not sleep.
 */
GR_EXPORT void gr_loop_stop(struct gr_loop *loop);

/** What a descriptor is waited for. */
#define GR_LOOP_READ  1u
#define GR_LOOP_WRITE 2u

/** A descriptor's handler. Zero what you do not set. */
struct gr_loop_fd_desc {
	size_t size;		       /**< sizeof(struct gr_loop_fd_desc) */
	int fd;			       /**< stays the caller's; Windows: (int)SOCKET, see above */
	unsigned int events;	       /**< GR_LOOP_READ, GR_LOOP_WRITE, both, or 0: none for now */
	void (*read)(void *opaque);    /**< bytes, a connection, the end, or an error are there */
	void (*write)(void *opaque);   /**< bytes are taken, or an error is there */
	void (*release)(void *opaque); /**< nobody uses opaque any more; may be NULL */
	void *opaque;
};

/**
 * Wait for a descriptor from now on. A loop that sleeps takes notice at once.
 * @param loop        The loop.
 * @param desc        What to wait for; copied.
 * @param ret_handler Set on success only; remove it with gr_loop_del() or gr_loop_del_sync().
 *                    Its functions may be called before this returns.
 * @param err         May be NULL.
 * @return 0 or a negative errno.
 * @errors  -EINVAL a wrong size, unknown events or one without its function; -EBADF no open
 *          descriptor (Windows: no open socket); -EEXIST the loop has a handler for it; -EPERM
 *          it cannot be waited for (a plain file); -ENOMEM; -ENOSPC the system's limit for epoll.
 * @context Any thread, also in handlers and in a read-side section.
 */
GR_EXPORT GR_MUST_CHECK int gr_loop_add_fd(struct gr_loop *loop, const struct gr_loop_fd_desc *desc,
					   struct gr_loop_handler **ret_handler,
					   struct gr_error *err);

/**
 * Change what a descriptor is waited for.
 * @param handler From gr_loop_add_fd(), not removed.
 * @param events  As in its desc.
 * @param err     May be NULL.
 * @return 0 or a negative errno; on failure nothing is changed.
 * @errors  -EINVAL unknown events, or one without its function; -EBADF, -ENOENT the descriptor
 *          was closed before its handler was removed; -ENOMEM; -ENOSPC.
 * @context Any thread, also in handlers and in a read-side section.
 */
GR_EXPORT GR_MUST_CHECK int gr_loop_set_events(struct gr_loop_handler *handler, unsigned int events,
					       struct gr_error *err);

/**
 * Have the loop run the callbacks of a queue that has no thread, in slices with which descriptors
 * and timers take turns. The loop waits for no grace period: it hears when one is over.
 * @param loop        The loop.
 * @param queue       With GR_RCU_QUEUE_NO_THREAD (dies otherwise). Remove the handler before
 *                    gr_rcu_queue_free(); what is queued then runs there.
 * @param ret_handler Set on success only; for gr_loop_del() or gr_loop_del_sync().
 * @param err         May be NULL.
 * @return 0 or a negative errno.
 * @errors  As gr_loop_add_fd().
 * @context Any thread, also in handlers.
 */
GR_EXPORT GR_MUST_CHECK int gr_loop_add_queue(struct gr_loop *loop, struct gr_rcu_queue *queue,
					      struct gr_loop_handler **ret_handler,
					      struct gr_error *err);

/** A timer. */
struct gr_loop_timer_desc {
	size_t size;		       /**< sizeof(struct gr_loop_timer_desc) */
	void (*fire)(void *opaque);    /**< the deadline has passed; may set the next one */
	void (*release)(void *opaque); /**< nobody uses opaque any more; may be NULL */
	void *opaque;
};

/**
 * Add a timer; it does not run before gr_loop_set_timer().
 * @param loop        The loop.
 * @param desc        Copied.
 * @param ret_handler Set on success only; remove it with gr_loop_del() or gr_loop_del_sync().
 * @param err         May be NULL.
 * @return 0 or a negative errno.
 * @errors  -EINVAL a wrong size or no function; -ENOMEM.
 * @context Any thread, also in handlers and in a read-side section.
 */
GR_EXPORT GR_MUST_CHECK int gr_loop_add_timer(struct gr_loop *loop,
					      const struct gr_loop_timer_desc *desc,
					      struct gr_loop_handler **ret_handler,
					      struct gr_error *err);

/**
 * Have a timer fire once, not before the deadline and as soon as the loop can after it. Replaces
 * the deadline that it had.
 * @param handler     From gr_loop_add_timer(), not removed.
 * @param deadline_ns On the clock of gr_loop_now_ns(); one that is past fires in the loop's next
 *                    round. GR_LOOP_NEVER: do not fire.
 * @units   deadline_ns: nanoseconds.
 * @context Any thread, also in handlers, its own too, and in a read-side section.
 */
GR_EXPORT void gr_loop_set_timer(struct gr_loop_handler *handler, uint64_t deadline_ns);

/**
 * The clock of the timers: monotonic.
 * @return Nanoseconds since some time in the past.
 * @context Any.
 */
GR_EXPORT uint64_t gr_loop_now_ns(void);

/**
 * Remove a handler: none of its functions is called from now on. One that another thread (the
 * loop's) is in may still be running.
 * @param handler A descriptor's or a timer's, not removed before (dies if it finds out). Not
 *                valid any more, except in its own call.
 * @context Any thread, also in handlers, its own too, and in a read-side section. Never sleeps.
 */
GR_EXPORT void gr_loop_del(struct gr_loop_handler *handler);

/**
 * Remove a handler and wait until its call in progress has ended. In the loop's own thread there
 * is none but perhaps the caller, which is not waited for.
 * @param handler As for gr_loop_del().
 * @context Any thread, outside a read-side section (dies inside one), without any lock that the
 *          handler takes. Sleeps.
 */
GR_EXPORT void gr_loop_del_sync(struct gr_loop_handler *handler) GR_EXCLUDES(gr_rcu_section);

/** Embedded in an object of the caller's that the loop shall call back with. */
struct gr_loop_deferred {
	struct gr_loop_deferred *next;
	void (*func)(struct gr_loop_deferred *deferred);
};

/**
 * Have the loop's thread call func(deferred) once, soon: a "bottom half".
 * @param loop     The loop.
 * @param deferred Stays untouched until func has it; asking for a second call before that
 *                 corrupts the list.
 * @param func     May free the object, and ask for the next call with it. Calls are made in
 *                 the order in which they were asked for.
 * @context Any thread, also in handlers, in a read-side section and in a signal handler.
 *          Lock-free; never sleeps. One system call if the loop sleeps, none otherwise.
 */
GR_EXPORT void gr_loop_defer(struct gr_loop *loop, struct gr_loop_deferred *deferred,
			     void (*func)(struct gr_loop_deferred *deferred));

/**
 * An event (guestram/event.h) that a loop can wait for, as can KVM and other processes: a bit with
 * a descriptor that is readable when it is set. Setting it again costs no system call.
 */
struct gr_notifier {
	int fd;	       /* (c) private: readable when set... */
	int write_fd;  /* (c) ...by writing here; the same one where there is eventfd(2) */
	uint32_t word; /* (a) private: 1 set by gr_notifier_set() */
};

/**
 * Make a notifier that is not set.
 * @param notifier The caller's memory; destroy it with gr_notifier_destroy().
 * @param err      May be NULL.
 * @return 0 or a negative errno.
 * @errors  -EMFILE, -ENFILE no descriptor left; -ENOMEM; -EIO Windows: no network.
 * @context Before any other thread knows it.
 */
GR_EXPORT GR_MUST_CHECK int gr_notifier_init(struct gr_notifier *notifier, struct gr_error *err);

/**
 * Close its descriptor.
 * @param notifier Initialised. Nobody uses it any more, and no loop has a handler for it.
 * @context Any thread.
 */
GR_EXPORT void gr_notifier_destroy(struct gr_notifier *notifier);

/**
 * The descriptor to wait for: for gr_loop_add_fd() with GR_LOOP_READ, poll(2) or, on Linux, where
 * it is an eventfd, for others that write to it.
 * @param notifier Initialised.
 * @return The descriptor; it stays the notifier's.
 * @context Any.
 */
GR_EXPORT int gr_notifier_fd(const struct gr_notifier *notifier);

/**
 * Set it. What was written before is seen by whoever clears it.
 * @param notifier Initialised.
 * @context Any thread, also a signal handler. Never sleeps.
 */
GR_EXPORT void gr_notifier_set(struct gr_notifier *notifier);

/**
 * Clear it, *before* looking for what it announced (as with gr_event_reset()).
 * @param notifier Initialised.
 * @return true if it was set, also by others through the descriptor.
 * @context One thread at a time. Never sleeps.
 */
GR_EXPORT bool gr_notifier_clear(struct gr_notifier *notifier);

GR_END_DECLS
#endif
