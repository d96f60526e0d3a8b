/* SPDX-License-Identifier: MIT */
/*
 * A copy before write from the inside: copy_before_write.c knows how a page is taken and released,
 * copy_before_write_start.c which pages there are, and who may come between.
 */
#ifndef GR_TRACK_COPY_BEFORE_WRITE_H
#define GR_TRACK_COPY_BEFORE_WRITE_H

#include "base/mutex.h"
#include "ram/ram.h"
#include "track/coverage.h"
#include "track/stalls.h"
#include "track/uffd_server.h"
#include <guestram/copy_before_write.h>

struct gr_cbw_range {
	struct gr_uffd_range at; /* (c) */
	uint64_t used_bytes;	 /* (c) of the block, at the start; the last unit may be longer */
	uint64_t units;		 /* (c) */
	uint64_t *taken;	 /* (lock) taken or released */
	uint64_t *released;	 /* (lock) */
	size_t set_bytes;	 /* (c) */
};

struct gr_cbw {
	struct gr_uffd_server server;
	struct gr_ram *ram;	     /* (c) */
	struct gr_cbw_params params; /* (c) */
	struct gr_ram_discard_watch watch;
	struct gr_ram_listener listener;
	struct gr_shown shown;	    /* (list mutex) which bytes of files are mapped */
	struct gr_cbw_range *range; /* (list mutex while listing, then c) by address */
	unsigned int ranges;	    /* (as range) */
	unsigned int room;	    /* (as range) */
	bool listing;		    /* (list mutex) blocks that come are part of it */

	/* What the start has done so far; (c) after it. */
	bool tables_forbidden, listens, watches;
	unsigned int armed; /* ranges */

	struct gr_mutex lock;	   /* by gr_uffd_lock() */
	bool over;		   /* (lock) abandoned, or ending: nobody is asked any more */
	unsigned int walk_range;   /* (lock) nothing is left before this place */
	uint64_t walk_unit;	   /* (lock) */
	struct gr_cbw_stats stats; /* (lock) */
	struct gr_stalls stalls;   /* (lock) */
};

struct gr_cbw_range *gr_cbw_range_at(struct gr_cbw *cbw, uint64_t address);
/* Nobody is asked any more. Whether it was not so already. */
bool gr_cbw_set_over(struct gr_cbw *cbw);
/* Everybody who waits goes on. */
void gr_cbw_open_all(struct gr_cbw *cbw);

/* Of struct gr_uffd_server and struct gr_ram_discard_watch. */
void gr_cbw_on_fault(void *opaque, uint64_t address);
int gr_cbw_before_discard(void *opaque, struct gr_ram_block *block, uint64_t offset, uint64_t bytes,
			  bool lost, struct gr_error *err);

#endif
