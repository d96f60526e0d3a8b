/* SPDX-License-Identifier: MIT */
/**
 * guestram/event.h - one bit that threads can wait for, and "run this exactly once".
 *
 * A struct gr_event is set or not set; waiting sleeps until it is set. It is one futex
 * word: setting an event that is already set, and setting one that nobody waits for, cost
 * no system call. A struct gr_once runs a function once, however many threads ask.
 *
 *     struct gr_event work = GR_EVENT_INIT(false);
 *
 *     // the thread that produces              // the one thread that consumes
 *     queue_add(&queue, item);                 for (;;) {
 *     gr_event_set(&work);                             gr_event_reset(&work);
 *                                                      if (!queue_empty(&queue)) { ...; continue; }
 *                                                      gr_event_wait(&work);
 *                                              }
 *
 * The consumer resets *before* it looks: gr_event_set() orders what was written before it
 * against its own look at the event, gr_event_reset() orders itself against what is read
 * after it. So either the consumer sees the item, or the producer sees the reset and the
 * wait returns. A wait that returns also sees what was written before the set.
 *
 * Threads: any number may set, reset and wait. A wait that slept returns once the event was
 * set, even if it has been reset since. Caveats: the bit is not a count: two sets before a
 * wait let it go once. An event may be freed as soon as the last wait has returned (setting
 * touches nothing after the word changed).
 */
#ifndef GUESTRAM_EVENT_H
#define GUESTRAM_EVENT_H

#include <guestram/types.h>

GR_BEGIN_DECLS

/** An event. Lives where the caller puts it; needs no destroying. */
struct gr_event {
	/*
	 * (a) private. The low two bits: set, free (nobody waits) or busy (somebody may wait);
	 * above them, how many times it was set.
	 */
	uint32_t word;
};

/* Private to the implementation and the initialiser below. */
#define GR_EVENT_WORD_SET  0u
#define GR_EVENT_WORD_FREE 1u
#define GR_EVENT_WORD_BUSY 3u

/** Static initialiser: an event that starts set (true) or not set (false). */
#define GR_EVENT_INIT(is_set) { (is_set) ? GR_EVENT_WORD_SET : GR_EVENT_WORD_FREE }

/**
 * Initialise an event.
 * @param ev  The event.
 * @param set Whether it starts set.
 * @context Before any other thread knows the event.
 */
GR_EXPORT void gr_event_init(struct gr_event *ev, bool set);

/**
 * Set the event and wake everybody who waits.
 * @param ev The event.
 * @context Any thread, also a signal handler. Does not sleep. Full fence before its look
 *          at the event; what was written before is seen by whoever the wait lets go.
 */
GR_EXPORT void gr_event_set(struct gr_event *ev);

/**
 * Make the event not set.
 * @param ev The event.
 * @context Any thread. Does not sleep. Full fence after the change.
 */
GR_EXPORT void gr_event_reset(struct gr_event *ev);

/**
 * Sleep until the event is set; returns at once if it is.
 * @param ev The event.
 * @context Any thread, outside a read-side section for anybody who respects latency. Sleeps.
 */
GR_EXPORT void gr_event_wait(struct gr_event *ev);

/**
 * Sleep until the event is set or the time is up.
 * @param ev         The event.
 * @param timeout_ns How long at most; 0 only looks.
 * @return true if the event was set, false if the time was up.
 * @units   timeout_ns: nanoseconds of the monotonic clock.
 * @context As gr_event_wait().
 */
GR_EXPORT bool gr_event_wait_timeout(struct gr_event *ev, uint64_t timeout_ns);

/**
 * Ask without sleeping.
 * @param ev The event.
 * @return true if it is set now; then what was written before the set is visible.
 * @context Any.
 */
GR_EXPORT bool gr_event_is_set(struct gr_event *ev);

/** The state of something that must happen once. All zero: not yet. */
struct gr_once {
	uint32_t state; /* (a) private */
};

/** Static initialiser. */
#define GR_ONCE_INIT { 0 }

/* Private: state of a gr_once whose function has returned. */
#define GR_ONCE_DONE 3u

/* Private: the path for everything but "already done". */
GR_EXPORT void gr_once_slow(struct gr_once *once, void (*fn)(void));

/**
 * Run a function unless it has run already; on return it has finished, whoever ran it.
 * @param once One per function, initialised with GR_ONCE_INIT.
 * @param fn   Runs in the first caller; the others sleep until it has returned.
 * @context Any thread. May sleep. fn must not use the same once. A child forked while fn runs in
 *          another thread must not use the once.
 */
static inline void gr_once(struct gr_once *once, void (*fn)(void))
{
	/* Pairs with the release in gr_once_slow(): what fn wrote is visible. */
	if (GR_UNLIKELY(__atomic_load_n(&once->state, __ATOMIC_ACQUIRE) != GR_ONCE_DONE)) {
		gr_once_slow(once, fn);
	}
}

GR_END_DECLS
#endif
