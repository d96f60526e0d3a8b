/* SPDX-License-Identifier: MIT */
/*
 * Once. NEW -> RUNNING (one caller wins and runs) -> DONE; RUNNING -> AWAITED by those who
 * sleep, so that the winner knows whether to wake.
 */
#include <guestram/event.h>
#include "base/atomic.h"
#include "base/futex.h"

enum { ONCE_NEW = 0, ONCE_RUNNING = 1, ONCE_AWAITED = 2, ONCE_DONE = GR_ONCE_DONE };

void gr_once_slow(struct gr_once *once, void (*fn)(void))
{
	uint32_t seen = ONCE_NEW;

	if (gr_cas_acq_rel(&once->state, &seen, ONCE_RUNNING)) {
		fn();
		/* Release: pairs with the acquire loads below and in gr_once(). */
		if (gr_xchg_acq_rel(&once->state, ONCE_DONE) == ONCE_AWAITED) {
			gr_futex_wake(&once->state, GR_FUTEX_ALL);
		}
		return;
	}
	while (seen != ONCE_DONE) {
		if (seen == ONCE_RUNNING && !gr_cas_acq_rel(&once->state, &seen, ONCE_AWAITED)) {
			continue;
		}
		(void)gr_futex_wait(&once->state, ONCE_AWAITED, GR_FUTEX_FOR_EVER);
		seen = gr_load_acquire(&once->state);
	}
}
