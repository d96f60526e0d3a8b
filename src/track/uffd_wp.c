/* SPDX-License-Identifier: MIT */
/*
 * Dirty tracking by asynchronous userfaultfd write protection and PAGEMAP_SCAN.
 *
 * Each page of an armed block has the uffd-wp bit, in its page table entry or, where no page
 * is yet, in a marker entry. That works for memory of any kind. The first store to a page (by
 * this process, a system call it makes, or a KVM vCPU whose slot uses this mapping) makes the
 * kernel drop the bit, without telling anybody. PAGEMAP_SCAN finds the pages without the bit
 * and sets it again, TLB flush included, in one call: report and re-arm cannot be told
 * apart, so there is no debt and rearm does nothing (O4; the row "scan" of the model).
 *
 * Two decisions that look like details:
 *
 * The whole block is protected at the start, also where nothing is. Besides saving reports of
 * pages that were only read, this gives every page a page table, and with it an entry where
 * the kernel can tell "not written" from "written and then taken away". That costs 8 bytes
 * per page (0.2 %) and makes a scan of an idle block cost about 2 ms per GiB.
 *
 * The scan asks for written pages and nothing else. A shared page that was written and then
 * reclaimed (swapped out, its mapping zapped) leaves an empty entry, which counts as written
 * but not as present or swapped: whoever asks for those too loses the store.
 *
 * What it cannot see, whoever does it must mark: another mapping of the file, another
 * process, write() on the fd, a hole punched or memory discarded, and DMA into pages that
 * were pinned earlier (O_DIRECT reads, registered buffers, VFIO): the kernel notes such a
 * store when it pins, not when the bytes arrive.
 */
#include "track/uffd_wp.h"
#include "base/compiler.h"
#include "base/uapi.h"
#include "track/report.h"
#include "track/tracker.h"
#include <errno.h>
#include <linux/userfaultfd.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

enum {
	REGIONS_MAX = 1024,	     /* what one scan call can report */
	PROTECT_BYTES_MAX = 1 << 30, /* one call holds off changes of the address space */
};

struct uffd_wp {
	struct gr_tracker base;
	int uffd;			/* (c) */
	int pagemap;			/* (c) */
	uint64_t host_page_bytes;	/* (c) */
	struct gr_page_region *regions; /* (driver's report lock) */
};

static struct uffd_wp *uffd_wp_of(struct gr_tracker *t)
{
	return gr_container_of(t, struct uffd_wp, base);
}

static uint64_t block_start(const struct gr_ram_block *block)
{
	return (uint64_t)(uintptr_t)block->host;
}

/* Blocks are mapped in whole host pages, whatever the guest's page size is. */
static uint64_t whole_pages(const struct uffd_wp *u, const struct gr_ram_block *block,
			    uint64_t bytes)
{
	uint64_t unit = GR_MAX(u->host_page_bytes, block->page_bytes);

	return GR_ROUND_UP(bytes, unit);
}

static int uffd_wp_protect(struct uffd_wp *u, uint64_t start, uint64_t bytes, struct gr_error *err)
{
	while (bytes > 0) {
		uint64_t n = GR_MIN(bytes, (uint64_t)PROTECT_BYTES_MAX);
		struct uffdio_writeprotect wp = { .range = { start, n },
						  .mode = UFFDIO_WRITEPROTECT_MODE_WP };

		if (ioctl(u->uffd, UFFDIO_WRITEPROTECT, &wp) < 0) {
			if (errno == EAGAIN || errno == EINTR) {
				continue;
			}
			return gr_error_set(err, -errno, "UFFDIO_WRITEPROTECT: %s",
					    strerror(errno));
		}
		start += n;
		bytes -= n;
	}
	return 0;
}

static void uffd_wp_block_del(struct gr_tracker *t, struct gr_ram_block *block)
{
	struct uffd_wp *u = uffd_wp_of(t);
	struct uffdio_range range = { block_start(block), whole_pages(u, block, block->max_bytes) };

	/* Takes the protection off as well. Fails only where nothing is registered any more. */
	(void)ioctl(u->uffd, UFFDIO_UNREGISTER, &range);
}

static int uffd_wp_block_add(struct gr_tracker *t, struct gr_ram_block *block, struct gr_error *err)
{
	struct uffd_wp *u = uffd_wp_of(t);
	uint64_t bytes = whole_pages(u, block, block->max_bytes);
	struct uffdio_register reg = { .range = { block_start(block), bytes },
				       .mode = UFFDIO_REGISTER_MODE_WP };
	int ret;

	if (ioctl(u->uffd, UFFDIO_REGISTER, &reg) < 0) {
		ret = -errno;
		gr_error_set(err, ret, "UFFDIO_REGISTER: %s%s", strerror(errno),
			     errno == EBUSY ? " (another userfaultfd has this memory)" : "");
	} else {
		ret = uffd_wp_protect(u, block_start(block), bytes, err);
		if (ret < 0) {
			uffd_wp_block_del(t, block);
		}
	}
	if (ret < 0) {
		gr_error_prefix(err, "block '%s' cannot be tracked by uffd-wp: ", block->id);
	}
	return ret;
}

/*
 * One call finds, reports and protects some of [at, end). Returns where it stopped, or a
 * negative errno. Regions may repeat when a scan goes on: bits are set, never counted.
 */
static int scan_some(struct uffd_wp *u, struct gr_ram_block *block, uint64_t at, uint64_t end,
		     uint64_t *ret_at, struct gr_error *err)
{
	struct gr_pm_scan_arg scan = {
		.size = sizeof(scan),
#ifdef GR_MUTANT_UFFD_NO_PROTECT
		.flags = GR_PM_SCAN_CHECK_WPASYNC,
#else
		.flags = GR_PM_SCAN_WP_MATCHING | GR_PM_SCAN_CHECK_WPASYNC,
#endif
		.start = at,
		.end = end,
		.vec = (uint64_t)(uintptr_t)u->regions,
		.vec_len = REGIONS_MAX,
#ifdef GR_MUTANT_UFFD_ASKS_FOR_PRESENT
		.category_mask = GR_PAGE_IS_WRITTEN | GR_PAGE_IS_PRESENT,
#else
		.category_mask = GR_PAGE_IS_WRITTEN,
#endif
		.return_mask = GR_PAGE_IS_WRITTEN,
	};
	int found = ioctl(u->pagemap, GR_PAGEMAP_SCAN, &scan);

	if (found < 0) {
		return gr_error_set(err, -errno, "PAGEMAP_SCAN: %s%s", strerror(errno),
				    errno == EPERM ? " (its memory was mapped anew?)" : "");
	}
	for (int i = 0; i < found; i++) {
		const struct gr_page_region *r = &u->regions[i];

		gr_report_range(block, r->start - block_start(block), r->end - r->start);
	}
	if (scan.walk_end <= at) {
		return gr_error_set(err, -EIO, "PAGEMAP_SCAN does not advance");
	}
	*ret_at = scan.walk_end;
	return 0;
}

static int uffd_wp_sync_block(struct gr_tracker *t, struct gr_ram_block *block,
			      struct gr_error *err)
{
	struct uffd_wp *u = uffd_wp_of(t);
	uint64_t start = block_start(block), at = start;
	/* What a resize opens up later is marked by the resize. */
	uint64_t end = start + whole_pages(u, block, gr_ram_block_used_bytes(block));
	int ret;

	while (at < end) {
		ret = scan_some(u, block, at, end, &at, err);
		if (ret == -EINTR || ret == -EAGAIN) {
			/* It may have protected what it did not tell. */
			gr_report_range(block, at - start, end - at);
			continue;
		}
		if (ret < 0) {
			gr_report_range(block, at - start, end - at);
			gr_error_prefix(err, "block '%s': ", block->id);
			return ret;
		}
	}
	return 0;
}

static void uffd_wp_destroy(struct gr_tracker *t)
{
	struct uffd_wp *u = uffd_wp_of(t);

	if (u->uffd >= 0) {
		close(u->uffd);
	}
	if (u->pagemap >= 0) {
		close(u->pagemap);
	}
	free(u->regions);
	free(u);
}

static const struct gr_tracker_ops uffd_wp_ops = {
	.name = "uffd-wp",
	.covers = GR_WRITERS_KVM_VCPUS | GR_WRITERS_MAPPING | GR_WRITERS_STORES,
	.destroy = uffd_wp_destroy,
	.block_add = uffd_wp_block_add,
	.block_del = uffd_wp_block_del,
	.sync_block = uffd_wp_sync_block,
};

/* Tries it on both kinds of memory that blocks are made of. */
static int uffd_wp_open(struct uffd_wp *u, struct gr_error *err)
{
	int ret, memfd;

	u->uffd = gr_uffd_open(GR_UFFD_FEATURES_TRACK, err);
	if (u->uffd < 0) {
		return u->uffd;
	}
	u->pagemap = gr_pagemap_open(err);
	if (u->pagemap < 0) {
		return u->pagemap;
	}
	ret = gr_uffd_wp_try(u->uffd, u->pagemap, -1, err);
	if (ret < 0) {
		return ret;
	}
	memfd = memfd_create("guestram-probe", MFD_CLOEXEC);
	if (memfd < 0) {
		return gr_error_set(err, -errno, "memfd_create: %s", strerror(errno));
	}
	if (ftruncate(memfd, (off_t)u->host_page_bytes) < 0) {
		ret = gr_error_set(err, -errno, "ftruncate of a memfd: %s", strerror(errno));
	} else {
		ret = gr_uffd_wp_try(u->uffd, u->pagemap, memfd, err);
	}
	close(memfd);
	return ret;
}

int gr_tracker_uffd_wp_create(struct gr_ram *ram, const struct gr_tracker_params *params,
			      struct gr_tracker **ret_tracker, struct gr_error *err)
{
	struct uffd_wp *u = calloc(1, sizeof(*u));
	int ret;

	(void)params;
	if (!u) {
		return gr_error_set(err, -ENOMEM, "no memory for the uffd-wp tracker");
	}
	u->base.ops = &uffd_wp_ops;
	u->base.ram = ram;
	u->uffd = u->pagemap = -1;
	u->host_page_bytes = (uint64_t)sysconf(_SC_PAGESIZE);
	u->regions = calloc(REGIONS_MAX, sizeof(*u->regions));
	ret = u->regions ? uffd_wp_open(u, err)
			 : gr_error_set(err, -ENOMEM, "no memory for the uffd-wp tracker");
	if (ret < 0) {
		uffd_wp_destroy(&u->base);
		gr_error_prefix(err, "uffd-wp cannot be used: ");
		return ret;
	}
	*ret_tracker = &u->base;
	return 0;
}
