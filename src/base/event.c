/* SPDX-License-Identifier: MIT */
/*
 * Events. The word is SET, FREE (not set, nobody sleeps) or BUSY (not set, somebody may
 * sleep), with a count of sets above. Steps: set: FREE or BUSY -> SET with the next count,
 * wakes all if it was BUSY; reset: SET -> FREE; wait: FREE -> BUSY, then sleeps while the word
 * is that very BUSY. The wake is skipped only when set saw FREE or SET, and then no thread
 * sleeps: a sleeper made the word BUSY first, and only a set takes BUSY away, waking all who
 * made it so. A sleeper that the kernel has not yet put to sleep finds the word changed and
 * does not sleep. The count tells a sleeper that it was let go although the event has been
 * reset since and others wait already (it wraps after 2^30 sets between two of its looks).
 *
 * The fences make "write; set" against "reset; read" a store-buffer pattern with a fence
 * on each side: not both of them can miss the other (E1 and E2 below).
 *
 * Model: models/event.pml.
 *
 * Source: the QemuEvent of QEMU (util/qemu-thread-posix.c, facts only), with the orders
 * as they were corrected there in 2023.
 */
#include <guestram/event.h>
#include "base/atomic.h"
#include "base/clock.h"
#include "base/futex.h"
#include <errno.h>

#define WORD_STATE 3u /* the rest counts */

static uint32_t state_of(uint32_t word)
{
	return word & WORD_STATE;
}

void gr_event_init(struct gr_event *ev, bool set)
{
	gr_store_relaxed(&ev->word, set ? GR_EVENT_WORD_SET : GR_EVENT_WORD_FREE);
}

void gr_event_set(struct gr_event *ev)
{
	uint32_t seen;

	/* E1: what the caller wrote, before our look at the word. Pairs with E2. */
	gr_fence();
	seen = gr_load_relaxed(&ev->word);
#ifdef GR_MUTANT_EVENT_SET_SKIPS_BUSY
	while (state_of(seen) == GR_EVENT_WORD_FREE) {
#else
	while (state_of(seen) != GR_EVENT_WORD_SET) {
#endif
		/* Release: pairs with the acquires in wait. Nothing touches *ev after this. */
		if (gr_cas_acq_rel(&ev->word, &seen, (seen | WORD_STATE) + 1)) {
			if (state_of(seen) == GR_EVENT_WORD_BUSY) {
				gr_futex_wake(&ev->word, GR_FUTEX_ALL);
			}
			return;
		}
	}
}

void gr_event_reset(struct gr_event *ev)
{
	/*
	 * One OR does SET -> FREE and leaves FREE and BUSY alone. Acquire: what was written before
	 * the set that we take back is visible to what we read next.
	 */
	(void)gr_or_acq_rel(&ev->word, GR_EVENT_WORD_FREE);
	/* E2: the reset, before what the caller reads next. Pairs with E1. */
	gr_fence();
}

/* Returns true when set; otherwise the word is *ret_busy and the caller may sleep on it. */
static bool become_busy(struct gr_event *ev, uint32_t *ret_busy)
{
	uint32_t seen = gr_load_acquire(&ev->word);

	while (state_of(seen) == GR_EVENT_WORD_FREE) {
		if (gr_cas_acq_rel(&ev->word, &seen, seen | GR_EVENT_WORD_BUSY)) {
			seen |= GR_EVENT_WORD_BUSY;
		}
	}
	*ret_busy = seen;
	return state_of(seen) == GR_EVENT_WORD_SET;
}

/* Only a set takes this BUSY away, so a sleeper that finds anything else was woken by one. */
static bool still_busy(const struct gr_event *ev, uint32_t busy)
{
	/* Acquire: a reset after the set is part of its release sequence (both are RMWs). */
	return gr_load_acquire(&ev->word) == busy;
}

void gr_event_wait(struct gr_event *ev)
{
	uint32_t busy;

	if (become_busy(ev, &busy)) {
		return;
	}
	do {
		(void)gr_futex_wait(&ev->word, busy, GR_FUTEX_FOR_EVER);
	} while (still_busy(ev, busy));
}

bool gr_event_wait_timeout(struct gr_event *ev, uint64_t timeout_ns)
{
	uint64_t now = gr_clock_ns();
	uint64_t end = timeout_ns > UINT64_MAX - 1 - now ? UINT64_MAX - 1 : now + timeout_ns;
	uint32_t busy;

	if (timeout_ns == 0) {
		return gr_event_is_set(ev);
	}
	if (become_busy(ev, &busy)) {
		return true; /* it was set: that it may be reset by now is no time-out */
	}
	do {
		now = gr_clock_ns();
		if (now >= end) {
			return false;
		}
		(void)gr_futex_wait(&ev->word, busy, end - now);
	} while (still_busy(ev, busy));
	return true;
}

bool gr_event_is_set(struct gr_event *ev)
{
	/* Acquire: pairs with the compare-and-swap in gr_event_set(). */
	return state_of(gr_load_acquire(&ev->word)) == GR_EVENT_WORD_SET;
}
