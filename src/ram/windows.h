/* SPDX-License-Identifier: MIT */
/*
 * Memory that is mapped when it is used: a file larger than the address space that one wants to
 * spend on it, seen through a bounded number of windows. A window that is pinned stays where it is;
 * of the others the one that was used longest ago makes room.
 */
#ifndef GR_RAM_WINDOWS_H
#define GR_RAM_WINDOWS_H

#include "base/memory.h"
#include <guestram/ram.h>

struct gr_windows;
struct gr_window;

/* `file` says what to map and how; its host and bytes are not used. NULL: no memory. */
struct gr_windows *gr_windows_create(const struct gr_memory *file, uint64_t file_bytes,
				     size_t window_bytes, unsigned int windows_max);
/* Nothing is pinned any more. NULL is fine. */
void gr_windows_free(struct gr_windows *all);

/* How many of so many bytes from an offset on lie in the same window. */
uint64_t gr_windows_clip(const struct gr_windows *all, uint64_t offset, uint64_t bytes);
/*
 * So many bytes from an offset on, all in one window, mapped until it is unpinned. The file system has
 * given what they need: to read them, or to write them too, raises no signal. -EBUSY: all windows are
 * pinned; -ENOSPC: the file system is full; otherwise what mmap(2) says.
 */
int gr_windows_pin(struct gr_windows *all, uint64_t offset, uint64_t bytes, bool write,
		   struct gr_window **ret_window, uint8_t **ret_host);
void gr_window_unpin(struct gr_window *window);
/* gr_memory_discard() of a piece of the file: whole pages. */
int gr_windows_discard(struct gr_windows *all, uint64_t offset, uint64_t bytes);
void gr_windows_stats(struct gr_windows *all, struct gr_ram_window_stats *stats);

#endif
