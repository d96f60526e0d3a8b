/* SPDX-License-Identifier: MIT */
/*
 * A line on standard error that says how far a move is, rewritten in place; nothing at all
 * where standard error is not a terminal.
 */
#ifndef TOOL_PROGRESS_H
#define TOOL_PROGRESS_H

#include <guestram/migrate.h>
#include <stdbool.h>
#include <stdint.h>

struct progress {
	const char *what; /* "receiving" */
	bool visible;
	uint64_t shown_ns; /* when the line was last written; 0 never */
};

/** @param p The caller's memory. @param what The word in front; borrowed. */
void progress_begin(struct progress *p, const char *what);

/** Show how far it is, a few times a second. @param opaque A struct progress. @param stats Now. */
void progress_show(void *opaque, const struct gr_migrate_stats *stats);

/** Remove the line. @param p Begun; may have ended. */
void progress_end(struct progress *p);

#endif
