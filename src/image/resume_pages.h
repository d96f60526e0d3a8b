/* SPDX-License-Identifier: MIT */
/*
 * The pages of a machine that resumes: who brings which, and when they are there. A page is
 *
 *   left    not in memory; who touches it sleeps
 *   taken   one thread has it: the one that serves the touch, or one that loads ahead
 *   done    it is there, or it is zero and need not be, or it was discarded
 *
 * and goes this way once (O5, place once): what came first, a store of the guest included, is never
 * followed by a copy from the image. Taking is done under the lock, reading and placing without it.
 * A read that fails gives the pages back to left: who touched them sleeps on until somebody tries
 * again. While the machine is still being started nobody could: who touched them reads zeroes, and
 * the start fails.
 *
 * Pages that the image does not have are done from the start; like those that were discarded they
 * get zeroes when they are touched.
 */
#ifndef GR_IMAGE_RESUME_PAGES_H
#define GR_IMAGE_RESUME_PAGES_H

#include "base/mutex.h"
#include "image/direct.h"
#include "image/image.h"
#include "image/members.h"
#include "track/uffd_server.h"
#include <guestram/event.h>

enum {
	GR_RESUME_TOUCH_BYTES = 64 << 10,  /* brought for one touch: the page and what follows it */
	GR_RESUME_AHEAD_BYTES = 256 << 10, /* brought ahead at once, by each thread */
};

/* A block that is served. */
struct gr_resume_range {
	struct gr_ram_block *block;	  /* (c) */
	const struct gr_image_part *part; /* (c) */
	uint64_t start;			  /* (c) host address */
	uint64_t pages;			  /* (c) */
	uint64_t *taken;		  /* (lock) taken or done */
	uint64_t *done;			  /* (lock) */
	uint64_t ahead;			  /* (lock) every page below is taken */
	bool registered;		  /* (c) once all are */
};

struct gr_resume_pages {
	struct gr_image *image; /* (c) */
	struct gr_uffd_server server;
	struct gr_direct direct;
	struct gr_resume_range *range; /* (c) by address */
	uint32_t ranges;	       /* (c) */
	uint8_t *touch_buffer;	       /* the server's thread's */
	/* Something below has changed: for the one who discards (discards take turns), and for the
	 * thread that ends it all. Each has one that waits, who resets, looks and then sleeps. */
	struct gr_event discarder, finisher;
	/* Set while nothing has failed (changes under the lock): others that load ahead wait. */
	struct gr_event unfailed;
	struct gr_mutex lock;
	uint64_t left;	     /* (lock) pages that are not done */
	uint64_t touches;    /* (lock) faults on pages that were not done */
	uint64_t discarded;  /* (lock) pages that were thrown away before they came */
	bool failed;	     /* (lock) a read has failed, and nobody has tried again */
	struct gr_error err; /* (lock) the first failure since then */
	bool starting;	     /* (lock) devices are being loaded by who would have it tried again */
	bool lost;	     /* (lock) who touched a page while it started read what is not there */
};

/* Room for what one thread brings, or NULL. For gr_aligned_free(). */
uint8_t *gr_resume_buffer(const struct gr_resume_pages *p, size_t bytes);

/* The fault handler: gr_uffd_server's fault(). */
void gr_resume_touched(void *pages, uint64_t address);

/*
 * Bring some pages that nobody has touched. 1: some were brought (*ret_bytes); 0: none are left to
 * take; -EIO: a read has failed.
 */
int gr_resume_ahead(struct gr_resume_pages *p, uint8_t *buffer, uint64_t *ret_bytes);

/* Whole pages are about to be thrown away: whoever brings them has done so, and nobody will. */
void gr_resume_discard(struct gr_resume_pages *p, struct gr_ram_block *block, uint64_t offset,
		       uint64_t bytes);

/* A failure has been forgotten: everybody who sleeps asks again. */
void gr_resume_try_again(struct gr_resume_pages *p);

#endif
