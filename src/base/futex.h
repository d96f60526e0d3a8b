/* SPDX-License-Identifier: MIT */
/*
 * Sleep on a word, wake who sleeps on it. Words are always 32 bits wide, whatever the host:
 * half of a 64-bit word would be the wrong half on big-endian machines. One file per
 * platform: futex(2), WaitOnAddress(), or semaphores.
 *
 * A wait may return for no reason (a signal, a wake meant for an earlier user of the
 * same address): every caller looks at the word again in a loop.
 */
#ifndef GR_BASE_FUTEX_H
#define GR_BASE_FUTEX_H

#include "base/compiler.h"

#define GR_FUTEX_FOR_EVER UINT64_MAX

/*
 * Sleeps while *word == expected, at most timeout_ns. Returns 0 when woken or for no
 * reason, -EAGAIN when the word was different, -ETIMEDOUT, or -EINTR.
 */
int gr_futex_wait(uint32_t *word, uint32_t expected, uint64_t timeout_ns);

/* Wakes n sleepers or more. Touches only the address, not the memory. */
void gr_futex_wake(uint32_t *word, int n);
#define GR_FUTEX_ALL INT32_MAX

#endif
