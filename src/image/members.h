/* SPDX-License-Identifier: MIT */
/*
 * The blocks of a machine that go into an image or come from one, each with a reference, cut into
 * pieces that threads take. A piece is whole words of the block's page map.
 */
#ifndef GR_IMAGE_MEMBERS_H
#define GR_IMAGE_MEMBERS_H

#include "base/compiler.h"
#include "migrate/holes.h"
#include <guestram/ram.h>

/* So many bytes are read or written at once, and in order. */
enum { GR_IMAGE_PIECE_BYTES = 4 << 20 };

struct gr_image_member {
	struct gr_ram_block *block;
	const char *id; /* as it was when it was listed */
	uint64_t bytes;
	uint64_t first_piece;
};

/* Zero it first. One thread fills it, then any read it. */
struct gr_image_members {
	struct gr_image_member *of;
	uint32_t count;
	uint64_t pieces;
	uint64_t piece_bytes;
	uint64_t bytes; /* of all */
};

/**
 * All blocks that take part in migrations.
 * @param m   Zero.
 * @param ram The machine.
 * @param err May be NULL.
 * @return 0 or a negative errno; gr_image_members_free() it anyway.
 * @errors -ENOENT there is none; -ENOTSUP one that has no address; -ENOMEM.
 */
GR_MUST_CHECK int gr_image_members_list(struct gr_image_members *m, struct gr_ram *ram,
					struct gr_error *err);

/** Cut them into pieces. @param m Filled. @param page_bytes The guest's page. */
void gr_image_members_cut(struct gr_image_members *m, uint64_t page_bytes);

/**
 * Where a piece is.
 * @param m          Cut.
 * @param piece      Below m->pieces.
 * @param ret_offset Bytes in the block.
 * @param ret_end    The same.
 * @return Index of the member.
 */
uint32_t gr_image_members_piece(const struct gr_image_members *m, uint64_t piece,
				uint64_t *ret_offset, uint64_t *ret_end);

/* What one thread found out last. Zero it first. */
struct gr_image_extent {
	uint32_t index;
	uint64_t from, to; /* all of one kind; none if they are equal */
	bool hole;
};

/**
 * As gr_holes_next(), for who asks piece by piece: to find where data ends costs as much as there
 * is, so what is beyond the piece is kept. What others fill meanwhile is not what this thread asks
 * about.
 * @param m       Filled.
 * @param index   Which block.
 * @param holes   This thread's.
 * @param x       This thread's.
 * @param offset  From which byte on.
 * @param end     To which.
 * @param ret_end Where the piece of one kind ends, at most end.
 * @return Whether it is a hole.
 */
bool gr_image_members_hole(const struct gr_image_members *m, uint32_t index, struct gr_holes *holes,
			   struct gr_image_extent *x, uint64_t offset, uint64_t end,
			   uint64_t *ret_end);

/** @param m Zero or filled. Gives the references back. */
void gr_image_members_free(struct gr_image_members *m);

#endif
