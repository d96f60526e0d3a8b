/* SPDX-License-Identifier: MIT */
#include "image/resume_pages.h"
#include "base/memory.h"
#include <errno.h>
#include <inttypes.h>
#include <linux/userfaultfd.h>
#include <string.h>
#include <sys/ioctl.h>

/* ---- the calls ------------------------------------------------------------------------- */

static void wake(struct gr_resume_pages *p, uint64_t start, uint64_t bytes)
{
	struct uffdio_range range = { start, bytes };

	(void)ioctl(p->server.uffd, UFFDIO_WAKE, &range);
}

/* The host's page of a touch: what is around it, in a larger page of the image, may be there. */
static void place_zero(struct gr_resume_pages *p, uint64_t address)
{
	uint64_t host = gr_page_bytes(), start = address - address % host;
	struct uffdio_zeropage zero = { .range = { start, host } };

	while (ioctl(p->server.uffd, UFFDIO_ZEROPAGE, &zero) < 0) {
		if (errno != EAGAIN) {
			wake(p, start, host); /* it is there already, or nothing is */
			return;
		}
	}
}

/*
 * Puts bytes where nothing is. O5: what is there already stays as it is, which is a success.
 * Another negative errno: no memory for them. One call places within one mapping, and a block may
 * have become several: its owner may give a part of it a policy, lock it, keep it out of dumps.
 */
static int place(struct gr_resume_pages *p, uint64_t start, const uint8_t *data, uint64_t bytes)
{
	uint64_t host = gr_page_bytes(), max = bytes;

	for (uint64_t done = 0; done < bytes;) {
		struct uffdio_copy copy = {
			.dst = start + done,
			.src = (uint64_t)(uintptr_t)(data + done),
			.len = GR_MIN(bytes - done, max),
		};

		if (ioctl(p->server.uffd, UFFDIO_COPY, &copy) == 0) {
			done += copy.len;
			continue;
		}
		if (copy.copy > 0) {
			done += (uint64_t)copy.copy;
			continue;
		}
		switch (errno) {
		case EAGAIN: /* the mappings were changing */
			break;
		case EEXIST:
#ifdef GR_MUTANT_RESUME_STORES_LATE
			memcpy((void *)(uintptr_t)(start + done), data + done, host);
#endif
			wake(p, start + done, host);
			done += host;
			break;
		case ENOENT:
#ifndef GR_MUTANT_RESUME_ONE_MAPPING
			if (copy.len > host) {
				max = host; /* more than one mapping: page by page */
				break;
			}
#endif
			/* nothing is mapped there any more: nobody can miss it */
			wake(p, start + done, copy.len);
			done += copy.len;
			break;
		case ESRCH: /* the process ends */
			return 0;
		default:
			return -errno;
		}
	}
	return 0;
}

static void tell(struct gr_resume_pages *p)
{
	gr_event_set(&p->discarder);
	gr_event_set(&p->finisher);
}

/* ---- taking and bringing --------------------------------------------------------------- */

/* Takes pages from `page` on that are left, in a row, at most n. How many. */
static uint64_t take_locked(struct gr_resume_pages *p, struct gr_resume_range *r, uint64_t page,
			    uint64_t n) GR_REQUIRES(p->lock)
{
	uint64_t end = gr_unit_find(r->taken, page, GR_MIN(page + n, r->pages), true);

	(void)p;
	for (uint64_t i = page; i < end; i++) {
		gr_unit_set(r->taken, i);
	}
	return end - page;
}

static void give_back(struct gr_resume_pages *p, struct gr_resume_range *r, uint64_t page,
		      uint64_t n, const struct gr_error *why)
{
	struct gr_signals saved;
	uint64_t size = p->image->page_bytes;
	bool starting;

	gr_uffd_lock(&p->lock, &saved);
	for (uint64_t i = page; i < page + n; i++) {
		gr_unit_clear(r->taken, i);
	}
	r->ahead = GR_MIN(r->ahead, page);
	if (!p->failed) {
		p->failed = true;
		p->err = *why;
		gr_event_reset(&p->unfailed);
	}
	starting = p->starting;
	gr_uffd_unlock(&p->lock, &saved);
	tell(p);
	if (starting) {
		/* Who touched one of them while another thread had it asks again, and is answered.
		 */
		wake(p, r->start + page * size, n * size);
	}
}

static void set_done_locked(struct gr_resume_pages *p, struct gr_resume_range *r, uint64_t page,
			    uint64_t n) GR_REQUIRES(p->lock)
{
	for (uint64_t i = page; i < page + n; i++) {
		p->left -= !gr_unit_test(r->done, i);
		gr_unit_set(r->done, i);
	}
}

/* Pages that the caller has taken: reads and places them, or gives them back. */
static int bring(struct gr_resume_pages *p, struct gr_resume_range *r, uint64_t page, uint64_t n,
		 uint8_t *buffer)
{
	struct gr_signals saved;
	uint64_t size = p->image->page_bytes, offset = page * size;
	struct gr_error err = { 0 };
	int rc = gr_direct_pread(&p->direct, buffer, n * size, r->part->place.pages_at + offset);

	if (rc < 0) {
		(void)gr_image_cannot_read(p->image, r->part, offset, rc, &err);
	} else {
		rc = place(p, r->start + offset, buffer, n * size);
		if (rc < 0) {
			(void)gr_error_set(&err, rc, "block '%s' at %#" PRIx64 ": no memory: %s",
					   r->part->place.id, offset, strerror(-rc));
		}
	}
#ifdef GR_MUTANT_RESUME_ERROR_IS_ZERO
	rc = 0;
#endif
	if (rc < 0) {
		give_back(p, r, page, n, &err);
		return rc;
	}
	gr_uffd_lock(&p->lock, &saved);
	set_done_locked(p, r, page, n);
	gr_uffd_unlock(&p->lock, &saved);
	tell(p);
	return 0;
}

uint8_t *gr_resume_buffer(const struct gr_resume_pages *p, size_t bytes)
{
	size_t page = GR_MAX((size_t)p->image->page_bytes, gr_page_bytes());

	return gr_aligned_alloc(page, GR_ROUND_UP(bytes, page));
}

/* Pages of one read; at least one. */
static uint64_t pages_of(const struct gr_resume_pages *p, uint64_t bytes)
{
	return GR_MAX(bytes / p->image->page_bytes, UINT64_C(1));
}

static struct gr_resume_range *range_at(struct gr_resume_pages *p, uint64_t address)
{
	for (uint32_t low = 0, high = p->ranges; low < high;) {
		uint32_t mid = low + (high - low) / 2;
		struct gr_resume_range *r = &p->range[mid];

		if (address < r->start) {
			high = mid;
		} else if (address - r->start >= r->pages * p->image->page_bytes) {
			low = mid + 1;
		} else {
			return r;
		}
	}
	return NULL;
}

/* The touched page could not be brought. Whether nobody can have it tried again: all is lost. */
static bool is_lost(struct gr_resume_pages *p)
{
	struct gr_signals saved;
	bool lost;

	gr_uffd_lock(&p->lock, &saved);
	lost = p->starting;
	p->lost |= lost;
	gr_uffd_unlock(&p->lock, &saved);
	return lost;
}

void gr_resume_touched(void *pages, uint64_t address)
{
	struct gr_signals saved;
	struct gr_resume_pages *p = pages;
	struct gr_resume_range *r = range_at(p, address);
	uint64_t page, n = 0;
	bool done;

	if (!r) {
		return; /* not registered by us: cannot be */
	}
	page = (address - r->start) / p->image->page_bytes;
	gr_uffd_lock(&p->lock, &saved);
	done = gr_unit_test(r->done, page);
	if (!done) {
		p->touches++;
		n = take_locked(p, r, page, pages_of(p, GR_RESUME_TOUCH_BYTES));
	}
	gr_uffd_unlock(&p->lock, &saved);
	if (done) {
		place_zero(p, address);
	} else if (n > 0 && bring(p, r, page, n, p->touch_buffer) < 0 && is_lost(p)) {
		place_zero(p, address);
	}
	/* else somebody is bringing it, and placing it wakes who sleeps */
}

/* The next pages that nobody has. */
static struct gr_resume_range *take_ahead_locked(struct gr_resume_pages *p, uint64_t *ret_page,
						 uint64_t *ret_n) GR_REQUIRES(p->lock)
{
	for (uint32_t i = 0; i < p->ranges && !p->failed; i++) {
		struct gr_resume_range *r = &p->range[i];

#ifdef GR_MUTANT_RESUME_STORES_LATE
		if (r->ahead < r->pages) {
			*ret_page = r->ahead;
			*ret_n = GR_MIN(pages_of(p, GR_RESUME_AHEAD_BYTES), r->pages - r->ahead);
			r->ahead += *ret_n;
			return r;
		}
#endif
		r->ahead = gr_unit_find(r->taken, r->ahead, r->pages, false);
		if (r->ahead < r->pages) {
			*ret_page = r->ahead;
			*ret_n = take_locked(p, r, r->ahead, pages_of(p, GR_RESUME_AHEAD_BYTES));
			r->ahead += *ret_n;
			return r;
		}
	}
	return NULL;
}

int gr_resume_ahead(struct gr_resume_pages *p, uint8_t *buffer, uint64_t *ret_bytes)
{
	struct gr_signals saved;
	struct gr_resume_range *r;
	uint64_t page = 0, n = 0;
	bool failed;

	gr_uffd_lock(&p->lock, &saved);
	r = take_ahead_locked(p, &page, &n);
	failed = p->failed;
	gr_uffd_unlock(&p->lock, &saved);
	if (!r) {
		return failed ? -EIO : 0;
	}
	if (bring(p, r, page, n, buffer) < 0) {
		return -EIO;
	}
	*ret_bytes = n * p->image->page_bytes;
	return 1;
}

/* ---- what happens to memory meanwhile --------------------------------------------------- */

/* Takes what is left of [page, end); whether all of it is done. */
static bool settle_locked(struct gr_resume_pages *p, struct gr_resume_range *r, uint64_t page,
			  uint64_t end) GR_REQUIRES(p->lock)
{
	uint64_t at = page;

	while ((at = gr_unit_find(r->taken, at, end, false)) < end) {
		uint64_t n = take_locked(p, r, at, end - at);

		set_done_locked(p, r, at, n);
		p->discarded += n;
		at += n;
	}
	return gr_unit_find(r->done, page, end, false) == end;
}

void gr_resume_discard(struct gr_resume_pages *p, struct gr_ram_block *block, uint64_t offset,
		       uint64_t bytes)
{
	struct gr_signals saved;
	struct gr_resume_range *r = range_at(p, (uint64_t)(uintptr_t)block->host);
	uint64_t size = p->image->page_bytes, page = offset / size, end;
	bool settled;

	if (!r || r->block != block || page >= r->pages) {
		return;
	}
	end = GR_MIN(GR_DIV_ROUND_UP(offset + bytes, size), r->pages);
	for (;;) {
		gr_event_reset(&p->discarder);
		gr_uffd_lock(&p->lock, &saved);
		settled = settle_locked(p, r, page, end);
		gr_uffd_unlock(&p->lock, &saved);
#ifdef GR_MUTANT_RESUME_DISCARD_WAITS_FOR_NOBODY
		settled = true;
#endif
		if (settled) {
			break;
		}
		gr_event_wait(&p->discarder); /* somebody is bringing one of them: not for long */
	}
#ifndef GR_MUTANT_RESUME_DISCARD_WAKES_NOBODY
	/* Who sleeps on one that could not be read gets zeroes now; nobody else would wake them. */
	wake(p, r->start + page * size, (end - page) * size);
#endif
	tell(p);
}

void gr_resume_try_again(struct gr_resume_pages *p)
{
	tell(p);
	for (uint32_t i = 0; i < p->ranges; i++) {
		wake(p, p->range[i].start, p->range[i].pages * p->image->page_bytes);
	}
}
