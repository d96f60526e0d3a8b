/* SPDX-License-Identifier: MIT */
/*
 * Pieces of work that several threads take one after the other: the caller's own, and as many more
 * as were asked for. The first that fails ends it.
 */
#ifndef GR_IMAGE_PARALLEL_H
#define GR_IMAGE_PARALLEL_H

#include "base/compiler.h"
#include <guestram/error.h>

enum { GR_IMAGE_THREADS_MAX = 64 };

struct gr_parallel {
	/**
	 * One thread's work: set up what it needs, take pieces until there are none.
	 * @param p   This.
	 * @param err Never NULL.
	 * @return 0 or a negative errno.
	 */
	int (*work)(struct gr_parallel *p, struct gr_error *err);
	void *opaque;
	uint64_t pieces;     /* (c) how many there are */
	gr_atomic_u64 next;  /* (a) the first that nobody has */
	int failed;	     /* (a) the first failure */
	struct gr_error err; /* of that one; when all have ended */
};

/**
 * Do it all.
 * @param p       work, opaque and pieces are set, the rest is zero.
 * @param threads 0 and 1: the caller alone. If the system has fewer, fewer do it.
 * @param err     May be NULL.
 * @return 0 or the first failure.
 */
GR_MUST_CHECK int gr_parallel_run(struct gr_parallel *p, unsigned int threads,
				  struct gr_error *err);

/**
 * The next piece.
 * @param p         Running.
 * @param ret_piece Below p->pieces.
 * @return false: none is left, or somebody has failed.
 */
bool gr_parallel_next(struct gr_parallel *p, uint64_t *ret_piece);

#endif
