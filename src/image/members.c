/* SPDX-License-Identifier: MIT */
#include "image/members.h"
#include <errno.h>
#include <guestram/rcu.h>
#include <stdlib.h>

static void let_go(struct gr_image_members *m)
{
	for (uint32_t i = 0; i < m->count; i++) {
		if (m->of[i].block) {
			gr_ram_block_put(m->of[i].block);
		}
	}
	m->count = 0;
}

int gr_image_members_list(struct gr_image_members *m, struct gr_ram *ram, struct gr_error *err)
{
	struct gr_ram_block *block;
	uint32_t room = 0, n;

	/* Counted and taken in one section each time: more may have come before the room was there.
	 */
	for (;;) {
		n = 0;
		gr_rcu_read_lock();
		gr_ram_for_each_block_rcu(block, ram) {
			const char *id = gr_rcu_dereference(block->id); /* once: it may change */

			if ((gr_ram_block_flags(block) & GR_RAM_NO_MIGRATE) != 0 || id[0] == '\0') {
				continue;
			}
			if (n++ < room) {
				gr_ram_block_get(block);
				m->of[m->count++] = (struct gr_image_member){
					.block = block,
					.id = id,
					.bytes = gr_ram_block_used_bytes(block),
				};
			}
		}
		gr_rcu_read_unlock();
		if (n <= room) {
			break;
		}
		let_go(m);
		free(m->of);
		room = n;
		m->of = calloc(room, sizeof(*m->of));
		if (!m->of) {
			return gr_error_set(err, -ENOMEM, "no memory to list %u blocks", n);
		}
	}
	if (n == 0) {
		return gr_error_set(err, -ENOENT, "the machine has no blocks");
	}
	for (uint32_t i = 0; i < m->count; i++) {
		if (!m->of[i].block->host) {
			return gr_error_set(
				err, -ENOTSUP,
				"block '%s' is mapped on demand: such blocks have no place "
				"in images",
				m->of[i].id);
		}
	}
	return 0;
}

void gr_image_members_cut(struct gr_image_members *m, uint64_t page_bytes)
{
	m->piece_bytes = GR_MAX((uint64_t)GR_IMAGE_PIECE_BYTES, 64 * page_bytes);
	m->pieces = 0;
	m->bytes = 0;
	for (uint32_t i = 0; i < m->count; i++) {
		m->of[i].first_piece = m->pieces;
		m->pieces += GR_DIV_ROUND_UP(m->of[i].bytes, m->piece_bytes);
		m->bytes += m->of[i].bytes;
	}
}

uint32_t gr_image_members_piece(const struct gr_image_members *m, uint64_t piece,
				uint64_t *ret_offset, uint64_t *ret_end)
{
	uint32_t low = 0, high = m->count;

	while (low + 1 < high) {
		uint32_t mid = low + (high - low) / 2;

		if (m->of[mid].first_piece <= piece) {
			low = mid;
		} else {
			high = mid;
		}
	}
	*ret_offset = (piece - m->of[low].first_piece) * m->piece_bytes;
	*ret_end = GR_MIN(*ret_offset + m->piece_bytes, m->of[low].bytes);
	return low;
}

bool gr_image_members_hole(const struct gr_image_members *m, uint32_t index, struct gr_holes *holes,
			   struct gr_image_extent *x, uint64_t offset, uint64_t end,
			   uint64_t *ret_end)
{
	if (x->index != index || offset < x->from || offset >= x->to) {
		x->index = index;
		x->from = offset;
		x->hole = gr_holes_next(holes, m->of[index].block, offset, m->of[index].bytes,
					&x->to);
	}
	*ret_end = GR_MIN(end, x->to);
	return x->hole;
}

void gr_image_members_free(struct gr_image_members *m)
{
	let_go(m);
	free(m->of);
	*m = (struct gr_image_members){ 0 };
}
