/* SPDX-License-Identifier: MIT */
/* Guest memory lent: the block stays, and so does a window of it, until it is put back. */
#include "base/atomic.h"
#include "ram/piece.h"
#include <errno.h>

static int take(struct gr_piece *piece, gr_gpa_t gpa, bool write, struct gr_ram_iov *iov,
		struct gr_error *err)
{
	struct gr_ram_block *block = piece->region->block;
	int ret = gr_piece_open(piece, gpa, write, err);

	if (ret < 0) {
		return ret;
	}
	gr_ram_block_get(block);
	*iov = (struct gr_ram_iov){
		.iov = { piece->host, piece->bytes }, .block = block, .offset = piece->offset,
		.write = write, .window = piece->window,
	};
#ifdef GR_MUTANT_IOV_MARKS_WHEN_TAKEN
	if (write) {
		gr_ram_mark(block, piece->offset, piece->bytes);
	}
#endif
	return 0;
}

int gr_ram_iov_get(struct gr_ram *ram, gr_gpa_t gpa, uint64_t bytes, bool write,
		   struct gr_ram_iov *iov, unsigned int iov_max, unsigned int *ret_iov,
		   struct gr_error *err)
{
	GR_RCU_READ_GUARD();
	const struct gr_ram_index *index = gr_rcu_dereference(ram->index);
	uint64_t pieces = 0;
	int ret = gr_pieces_check_rcu(index, gpa, bytes, write, iov_max, &pieces, err);

	if (ret < 0) {
		return ret;
	}
	if (pieces > iov_max) {
		return gr_error_set(err, -ENOSPC,
				    "%#llx bytes at guest address %#llx are in more than %u pieces",
				    (unsigned long long)bytes, (unsigned long long)gpa.v, iov_max);
	}
	for (unsigned int i = 0; i < pieces; i++) {
		struct gr_piece p = { 0 };
		bool there = gr_piece_at_rcu(index, gpa, bytes, &p);

		GR_ASSERT(there); /* checked above, in the same index */
		ret = take(&p, gpa, write, &iov[i], err);
		if (ret < 0) {
			gr_ram_iov_put(iov, i, 0);
			return ret;
		}
		gpa.v += p.bytes;
		bytes -= p.bytes;
	}
	*ret_iov = (unsigned int)pieces;
	return 0;
}

int gr_ram_translate(struct gr_ram *ram, gr_gpa_t gpa, uint64_t bytes, bool write,
		     struct gr_ram_iov *iov, struct gr_error *err)
{
	GR_RCU_READ_GUARD();
	const struct gr_ram_index *index = gr_rcu_dereference(ram->index);
	struct gr_piece p;

	if (bytes == 0) {
		return gr_error_set(err, -EINVAL, "translating no bytes at guest address %#llx",
				    (unsigned long long)gpa.v);
	}
	if (!gr_piece_at_rcu(index, gpa, bytes, &p)) {
		return gr_piece_fault(-EFAULT, gpa, err);
	}
	if (write && p.region->readonly) {
		return gr_piece_fault(-EROFS, gpa, err);
	}
	return take(&p, gpa, write, iov, err);
}

void gr_ram_iov_put(struct gr_ram_iov *iov, unsigned int entries, uint64_t bytes_done)
{
	for (unsigned int i = 0; i < entries; i++) {
		uint64_t n = GR_MIN(bytes_done, (uint64_t)iov[i].iov.iov_len);

#ifndef GR_MUTANT_IOV_MARKS_WHEN_TAKEN
		if (iov[i].write) {
			gr_ram_mark(iov[i].block, iov[i].offset, n); /* O1: with the bytes done */
		}
#endif
		bytes_done -= n;
		if (iov[i].window) {
			gr_window_unpin(iov[i].window);
		}
		gr_ram_block_put(iov[i].block); /* last: the window goes with it */
		iov[i].block = NULL; /* a second put of this entry does nothing */
		iov[i].window = NULL;
		iov[i].write = false;
	}
}
