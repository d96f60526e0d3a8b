/* SPDX-License-Identifier: MIT */
#include "base/futex.h"
#include "base/clock.h"
#include <errno.h>
#include <windows.h>

int gr_futex_wait(uint32_t *word, uint32_t expected, uint64_t timeout_ns)
{
	DWORD ms = INFINITE;

	if (timeout_ns != GR_FUTEX_FOR_EVER) {
		/* Up: a wait of 0 ms would be a busy loop. A long one ends early, for no reason. */
		uint64_t up =
			GR_DIV_ROUND_UP(GR_MIN(timeout_ns, GR_NS_PER_S * 1000000), GR_NS_PER_MS);

		ms = (DWORD)up;
	}
	if (WaitOnAddress(word, &expected, sizeof(expected), ms)) {
		return 0;
	}
	return GetLastError() == ERROR_TIMEOUT ? -ETIMEDOUT : 0;
}

void gr_futex_wake(uint32_t *word, int n)
{
	/*
	 * Never WakeByAddressSingle(): under Wine 8 it may go to a thread whose wait has just ended
	 * for no reason, and grace periods then have no driver. Too many wakes are no harm: they
	 * look again.
	 */
	(void)n;
	WakeByAddressAll(word);
}
