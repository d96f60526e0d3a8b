/* SPDX-License-Identifier: MIT */
#include "migrate/holes.h"
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/sysinfo.h>
#include <sys/vfs.h>
#include <unistd.h>

/* /proc/PID/pagemap: bit 63 present, bit 62 swapped. */
#define PAGEMAP_FILLED	(UINT64_C(3) << 62)
#define PAGEMAP_SWAPPED (UINT64_C(1) << 62)

int gr_holes_init(struct gr_holes *h, uint64_t page_bytes, struct gr_error *err)
{
	*h = (struct gr_holes){
		.page_bytes = page_bytes,
		.host_page_bytes = (uint64_t)sysconf(_SC_PAGESIZE),
		.pagemap_fd = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC),
		.map = malloc(GR_HOLES_MAP_PAGES * sizeof(*h->map)),
		.in_core = malloc(GR_HOLES_MAP_PAGES),
	};
	if (!h->map || !h->in_core) {
		gr_holes_destroy(h);
		return gr_error_set(err, -ENOMEM, "no memory to look for holes");
	}
	return 0;
}

void gr_holes_destroy(struct gr_holes *h)
{
	if (h->page_bytes != 0 && h->pagemap_fd >= 0) {
		close(h->pagemap_fd);
	}
	free(h->map);
	free(h->in_core);
	*h = (struct gr_holes){ .pagemap_fd = -1 };
}

/*
 * A hole ends at the last whole page before the data, data at the first whole page of the
 * hole; a page that is partly filled is data.
 */
static uint64_t clip(const struct gr_holes *h, uint64_t offset, uint64_t at, uint64_t end,
		     bool *hole)
{
	uint64_t page = h->page_bytes;

	if (at >= end) {
		return end;
	}
	if (*hole) {
		at &= ~(page - 1);
		if (at == offset) {
			*hole = false;
			return offset + page;
		}
		return at;
	}
	return GR_MIN(GR_ROUND_UP(at, page), end);
}

/* Sixteen places all over the file: at the first that is a hole the seek goes on to the next data, once. */
static bool samples_are_data(int fd, off_t bytes)
{
	enum { SAMPLES = 16 };

	for (off_t i = 0; i < SAMPLES; i++) {
		off_t at = bytes / SAMPLES * i;

		if (lseek(fd, at, SEEK_DATA) != at) {
			return false;
		}
	}
	return true;
}

/*
 * Whether a file in memory has all its pages, as most guests' have after a while: to seek its next
 * hole costs by the pages on the way (17 ms for 1 GiB), this does not. Pages that fallocate() gave and nobody
 * has written count as allocated and are holes all the same: they are found out by the file's last ones, and, for who
 * walks once, by samples all over it. Where those are written, or something is allocated behind the end, holes are
 * taken for data, and read.
 */
static bool looks_filled(int fd, bool samples)
{
	enum { TMPFS = 0x01021994, BLOCK_BYTES = 512, LAST_BYTES = 256 << 10 };
	struct stat st;
	struct statfs fs;

	return fstat(fd, &st) == 0 && st.st_blocks >= GR_DIV_ROUND_UP(st.st_size, BLOCK_BYTES) &&
	       fstatfs(fd, &fs) == 0 && fs.f_type == TMPFS &&
	       lseek(fd, GR_MAX(st.st_size - LAST_BYTES, (off_t)0), SEEK_HOLE) == st.st_size &&
	       (!samples || samples_are_data(fd, st.st_size));
}

/* A walk asks at each piece of data, and the samples are not worth more than one walk of the block. */
static bool is_filled(struct gr_holes *h, const struct gr_ram_block *block)
{
	if (!h->walks_once) {
		return looks_filled(block->fd, false);
	}
#ifndef GR_MUTANT_HOLES_SAMPLED_AGAIN
	if (h->walked == block->incarnation) {
		return h->filled;
	}
#endif
	h->walked = block->incarnation;
	h->filled = looks_filled(block->fd, true);
	return h->filled;
}

static bool next_by_seek(struct gr_holes *h, const struct gr_ram_block *block, uint64_t offset,
			 uint64_t end, uint64_t *ret_end)
{
	off_t base = (off_t)block->fd_offset;
	off_t at = lseek(block->fd, base + (off_t)offset, SEEK_DATA);
	bool hole = true;

	if (at < 0) {
		/* ENXIO: nothing but hole to the end of the file. Else: it cannot say. */
		*ret_end = end;
		return errno == ENXIO;
	}
	if (at == base + (off_t)offset) {
		hole = false;
		/* the next hole may be far to seek */
		if (end - offset <= h->page_bytes || is_filled(h, block)) {
			*ret_end = end;
			return false;
		}
		at = lseek(block->fd, at, SEEK_HOLE);
		if (at < 0) {
			*ret_end = end;
			return false;
		}
	}
	*ret_end = clip(h, offset, (uint64_t)(at - base), end, &hole);
	return hole;
}

static bool swap_is_used(void)
{
	struct sysinfo info;

	return sysinfo(&info) < 0 || info.freeswap != info.totalswap;
}

/*
 * The page map calls a page swapped that has no memory but a note in its place: so it is with
 * every untouched page of a block that userfaultfd protects. mincore() tells them from
 * pages that are on the move, and if nothing at all is swapped out, the rest are notes.
 * Clears the bit of those.
 */
static void forget_notes(struct gr_holes *h, uint64_t address, uint64_t n)
{
	uint64_t size = h->host_page_bytes;
	unsigned char *in_core = h->in_core;

	if (swap_is_used() || mincore((void *)(uintptr_t)address, n * size, in_core) < 0 ||
	    swap_is_used()) {
		return;
	}
	for (uint64_t i = 0; i < n; i++) {
		if ((in_core[i] & 1) == 0) {
			h->map[i] &= ~PAGEMAP_FILLED;
		}
	}
}

static bool next_by_map(struct gr_holes *h, const struct gr_ram_block *block, uint64_t offset,
			uint64_t end, uint64_t *ret_end)
{
	uint64_t size = h->host_page_bytes;
	uint64_t first = offset & ~(size - 1);
	uint64_t pages = GR_DIV_ROUND_UP(end - first, size);
	uint64_t address = (uint64_t)(uintptr_t)block->host + first;
	bool hole, swapped = false;
	uint64_t n, i = 0;
	ssize_t got;

	*ret_end = end;
	if (h->pagemap_fd < 0) {
		return false;
	}
	pages = GR_MIN(pages, (uint64_t)GR_HOLES_MAP_PAGES);
	got = pread(h->pagemap_fd, h->map, pages * sizeof(*h->map),
		    (off_t)(address / size * sizeof(*h->map)));
	if (got < (ssize_t)sizeof(*h->map)) {
		return false;
	}
	n = (uint64_t)got / sizeof(*h->map);
	for (i = 0; i < n; i++) {
		swapped |= (h->map[i] & PAGEMAP_FILLED) == PAGEMAP_SWAPPED;
	}
	if (swapped) {
		forget_notes(h, address, n);
	}
	hole = (h->map[0] & PAGEMAP_FILLED) == 0;
	for (i = 0; i < n && ((h->map[i] & PAGEMAP_FILLED) == 0) == hole; i++) {
	}
	*ret_end = clip(h, offset, first + i * size, end, &hole);
	return hole;
}

bool gr_holes_next(struct gr_holes *h, const struct gr_ram_block *block, uint64_t offset,
		   uint64_t end, uint64_t *ret_end)
{
	switch (block->backing) {
	case GR_RAM_MEMFD:
		return next_by_seek(h, block, offset, end, ret_end);
	case GR_RAM_ANONYMOUS:
		if (gr_ram_block_flags(block) & GR_RAM_SHARED) {
			break; /* absent from our page table, and yet a child may have filled it */
		}
		return next_by_map(h, block, offset, end, ret_end);
	case GR_RAM_FILE:
	case GR_RAM_FD:
	case GR_RAM_CALLER:
		if (block->fd >= 0 && next_by_seek(h, block, offset, end, ret_end)) {
			return next_by_map(h, block, offset, *ret_end, ret_end);
		}
		if (block->fd >= 0) {
			return false;
		}
		if (gr_ram_block_flags(block) & GR_RAM_PRIVATE) { /* a promise: nobody else fills it */
			return next_by_map(h, block, offset, end, ret_end);
		}
		break;
	case GR_RAM_ON_DEMAND: /* not for migrations */
	default:
		break;
	}
	*ret_end = end;
	return false;
}

int gr_holes_read(const struct gr_holes *h, const struct gr_ram_block *block, uint64_t offset,
		  uint8_t *page)
{
	for (uint64_t done = 0; done < h->page_bytes;) {
		ssize_t n = pread(block->fd, page + done, h->page_bytes - done,
				  (off_t)(block->fd_offset + offset + done));

		if (n <= 0 && !(n < 0 && errno == EINTR)) {
			return n < 0 ? -errno : -EIO;
		}
		done += n > 0 ? (uint64_t)n : 0;
	}
	return 0;
}
