/* SPDX-License-Identifier: MIT */
/*
 * The process-wide fence: the heavy half of an asymmetric pair.
 *
 * A thread that only has a compiler barrier (gr_barrier()) between two accesses, and
 * another that calls gr_heavy_fence() between its two, are ordered as if both had a full
 * fence: the kernel makes every running thread of the process pass one, and a thread that
 * does not run passes one when it is switched in. The cost is an interrupt to each CPU
 * that runs this process; a vCPU leaves guest mode for it. So: few, and never in a loop.
 *
 * Whether there is one is decided once for the process's life, before main. On Linux it is
 * membarrier(2) with the private expedited command, registered and tried; never the global
 * commands (they take milliseconds). On Windows it is FlushProcessWriteBuffers(), but not under
 * Wine. Other systems have none. Not under ThreadSanitizer, which cannot see it, and not with
 * GR_FORCE_FENCES=1 in the environment (tests). Where there is none, the light half must be
 * a full fence too; gr_heavy_fence() is then just one for the caller.
 *
 * A fork child is registered again before it runs.
 */
#ifndef GR_BASE_HEAVY_FENCE_H
#define GR_BASE_HEAVY_FENCE_H

#include "base/compiler.h"

/* The same answer for the whole life of the process. */
bool gr_heavy_fence_available(void);

/* Dies if the kernel stops offering what it offered at the start: readers rely on it. */
void gr_heavy_fence(void);

/* How many times the kernel was asked, for tests and statistics. */
uint64_t gr_heavy_fence_count(void);

/* Each platform's own, for heavy_fence.c. Tries: true if issue() will work from now on. */
bool gr_heavy_fence_prepare(void);
void gr_heavy_fence_issue(void);

#endif
