/* SPDX-License-Identifier: MIT */
/*
 * Writers that no tracker sees: said to be there by the caller, or found. Two blocks that show the
 * same bytes of a file are one memory under two numbers: what is stored through one of them is
 * seen, and marked, for that one alone.
 */
#ifndef GR_TRACK_COVERAGE_H
#define GR_TRACK_COVERAGE_H

#include "track/tracker.h"

/* 0, or -EINVAL: one of `writers` is seen by none of the trackers, whose names those are, or
 * broken. */
GR_MUST_CHECK int gr_coverage_check(struct gr_tracker *const *trackers, unsigned int count,
				    const char *names, unsigned int writers, struct gr_error *err);

/* What blocks there are show of which files. One user at a time. */
struct gr_shown {
	struct gr_shown_piece
		*piece; /* shared mappings first, then private ones; by file and place */
	size_t pieces, room;
};

/*
 * The block comes; -EINVAL if it shows bytes that another one shows, which the message names;
 * -EBUSY if one shows them that was removed and is still referenced by others than the list. Blocks
 * without a file, and those that nobody can write here, are ignored.
 */
GR_MUST_CHECK int gr_shown_add(struct gr_shown *shown, const struct gr_ram_block *block,
			       struct gr_error *err);
/* It goes; one that is not there is ignored. */
void gr_shown_del(struct gr_shown *shown, const struct gr_ram_block *block);

#endif
