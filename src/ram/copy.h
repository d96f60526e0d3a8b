/* SPDX-License-Identifier: MIT */
/*
 * Copies to and from guest memory. The guest stores to its memory whenever it likes, and
 * no lock of ours stops it: such bytes are racy by nature, as they are for a device. This is
 * the one place that touches them, so that the race is visible as such: aligned words of up
 * to 8 bytes are read and written in one piece (a ring index that the guest updates is
 * never seen half), and ThreadSanitizer is told not to look.
 */
#ifndef GR_RAM_COPY_H
#define GR_RAM_COPY_H

#include <stddef.h>

void gr_copy_from_guest(void *to, const void *guest, size_t bytes);
void gr_copy_to_guest(void *guest, const void *from, size_t bytes);
void gr_fill_guest(void *guest, unsigned char byte, size_t bytes);
/*
 * Exchanges 1, 2, 4 or 8 aligned bytes if they are those at `expected`, which gets what was there;
 * sequentially consistent, as the guest's own locked instructions are. Whether it did.
 */
_Bool gr_cmpxchg_guest(void *guest, void *expected, const void *desired, size_t bytes);

#endif
