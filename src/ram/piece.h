/* SPDX-License-Identifier: MIT */
/* Guest memory piece by piece: what lies in one piece for the guest and in this process. */
#ifndef GR_RAM_PIECE_H
#define GR_RAM_PIECE_H

#include "ram/ram.h"

struct gr_piece {
	const struct gr_ram_region *region;
	uint64_t offset; /* in the block */
	size_t bytes;
	uint8_t *host;		  /* gr_piece_open() sets it */
	struct gr_window *window; /* to be unpinned; NULL: none */
};

/* The piece at gpa, of at most so many bytes; false if nothing is mapped there. */
bool gr_piece_at_rcu(const struct gr_ram_index *index, gr_gpa_t gpa, uint64_t bytes,
		     struct gr_piece *piece) GR_REQUIRES_SHARED(gr_rcu_section);
/* Its address, until it is closed or its window (by then somebody else's) is unpinned. */
int gr_piece_open(struct gr_piece *piece, gr_gpa_t gpa, bool write, struct gr_error *err);
void gr_piece_close(const struct gr_piece *piece);

/* Is all of it mapped, and writable if asked? Counts the pieces; beyond pieces_max it stops. */
int gr_pieces_check_rcu(const struct gr_ram_index *index, gr_gpa_t gpa, uint64_t bytes, bool write,
			uint64_t pieces_max, uint64_t *ret_pieces, struct gr_error *err)
	GR_REQUIRES_SHARED(gr_rcu_section);
/* -EFAULT or -EROFS, in words. */
int gr_piece_fault(int code, gr_gpa_t gpa, struct gr_error *err);

#endif
