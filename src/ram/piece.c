/* SPDX-License-Identifier: MIT */
#include "ram/piece.h"
#include <errno.h>
#include <string.h>

int gr_piece_fault(int code, gr_gpa_t gpa, struct gr_error *err)
{
	return gr_error_set(err, code, code == -EROFS ? "guest address %#llx is read-only" :
							"guest address %#llx is not mapped",
			    (unsigned long long)gpa.v);
}

bool gr_piece_at_rcu(const struct gr_ram_index *index, gr_gpa_t gpa, uint64_t bytes,
		     struct gr_piece *piece)
{
	const struct gr_ram_region *r = gr_ram_region_at_rcu(index, gpa);
	const struct gr_windows *windows;

	if (!r) {
		return false;
	}
	windows = gr_block(r->block)->windows;
	*piece = (struct gr_piece){ .region = r, .offset = r->block_offset + (gpa.v - r->gpa.v) };
	bytes = GR_MIN(bytes, r->bytes - (gpa.v - r->gpa.v));
	if (windows) {
		bytes = gr_windows_clip(windows, piece->offset, bytes);
	}
	piece->bytes = (size_t)bytes; /* what is mapped fits in a size_t */
	return true;
}

int gr_piece_open(struct gr_piece *piece, gr_gpa_t gpa, bool write, struct gr_error *err)
{
	struct gr_ram_block *block = piece->region->block;
	int ret;

	if (block->host) {
		piece->host = block->host + piece->offset;
		return 0;
	}
	ret = gr_windows_pin(gr_block(block)->windows, piece->offset, piece->bytes, write,
			     &piece->window, &piece->host);
	if (ret == -EBUSY) {
		return gr_error_set(err, ret,
				    "guest address %#llx: all windows of block '%s' are in use",
				    (unsigned long long)gpa.v, block->id);
	}
	return ret == 0 ? 0 :
			  gr_error_set(err, ret, "guest address %#llx: mapping a window of block '%s': %s",
				       (unsigned long long)gpa.v, block->id, strerror(-ret));
}

void gr_piece_close(const struct gr_piece *piece)
{
	if (piece->window) {
		gr_window_unpin(piece->window);
	}
}

int gr_pieces_check_rcu(const struct gr_ram_index *index, gr_gpa_t gpa, uint64_t bytes, bool write,
			uint64_t pieces_max, uint64_t *ret_pieces, struct gr_error *err)
{
	uint64_t pieces = 0;
	struct gr_piece p;

	/* No region reaches the last byte of the address space: an address cannot wrap. */
	while (bytes != 0 && pieces <= pieces_max) {
		if (!gr_piece_at_rcu(index, gpa, bytes, &p)) {
			return gr_piece_fault(-EFAULT, gpa, err);
		}
		if (write && p.region->readonly) {
			return gr_piece_fault(-EROFS, gpa, err);
		}
		gpa.v += p.bytes;
		bytes -= p.bytes;
		pieces++;
	}
	*ret_pieces = pieces;
	return 0;
}

void gr_ram_window_stats(struct gr_ram_block *block, struct gr_ram_window_stats *stats)
{
	*stats = (struct gr_ram_window_stats){ 0 };
	if (gr_block(block)->windows) {
		gr_windows_stats(gr_block(block)->windows, stats);
	}
}
