/* SPDX-License-Identifier: MIT */
#include "image/snapshot_buffer.h"
#include "base/memory.h"
#include "base/zero.h"
#include "ram/copy.h"
#include <errno.h>
#include <stdlib.h>

int gr_snapshot_buffer_init(struct gr_snapshot_buffer *b, uint64_t page_bytes, uint64_t bytes,
			    struct gr_error *err)
{
	int ret;

	gr_mutex_init(&b->lock, GR_RANK_SNAPSHOT);
	b->page_bytes = page_bytes;
	b->slots = bytes / page_bytes;
	ret = gr_holes_init(&b->holes, page_bytes, err);
	if (ret < 0) {
		return ret;
	}
	b->pages = gr_pages_alloc(b->slots * page_bytes);
	b->of = gr_pages_alloc(b->slots * sizeof(*b->of));
	if (!b->pages || !b->of) {
		return gr_error_set(err, -ENOMEM, "no memory for a buffer of %llu bytes",
				    (unsigned long long)bytes);
	}
	return 0;
}

void gr_snapshot_buffer_destroy(struct gr_snapshot_buffer *b)
{
	if (b->page_bytes == 0) {
		return;
	}
	if (b->pages) {
		gr_pages_free(b->pages, b->slots * b->page_bytes);
	}
	if (b->of) {
		gr_pages_free(b->of, b->slots * sizeof(*b->of));
	}
	gr_holes_destroy(&b->holes);
	free(b->kept);
	gr_mutex_destroy(&b->lock);
}

void gr_snapshot_buffer_lock(struct gr_snapshot_buffer *b, struct gr_signals *saved)
{
	gr_signals_block(saved);
	gr_mutex_lock(&b->lock);
}

void gr_snapshot_buffer_unlock(struct gr_snapshot_buffer *b, const struct gr_signals *saved)
{
	gr_mutex_unlock(&b->lock);
	gr_signals_restore(saved);
}

/* One page that is there, into the next slot. It is not zero: 1; zero: 0; no room or not readable:
 * < 0. */
static int put_page_locked(struct gr_snapshot_buffer *b, const struct gr_cbw_piece *piece,
			   uint64_t at) GR_REQUIRES(b->lock)
{
	uint8_t *to = b->pages + b->tail % b->slots * b->page_bytes;
	const uint8_t *page = piece->host + at;
	int ret;

	if (gr_holes_must_read(&b->holes, piece->block)) {
		if (b->tail - b->head == b->slots) {
			return -ENOBUFS;
		}
		ret = gr_holes_read(&b->holes, piece->block, piece->offset + at, to);
		if (ret < 0 || gr_page_is_zero(to, b->page_bytes)) {
			return ret;
		}
		page = to;
	} else if (gr_page_is_zero(page, b->page_bytes)) {
		return 0;
	}
#ifndef GR_MUTANT_SNAPSHOT_NO_BOUND
	if (b->tail - b->head == b->slots) {
		return -ENOBUFS;
	}
#endif
	if (page != to) {
		gr_copy_from_guest(to, page, b->page_bytes);
	}
	b->of[b->tail++ % b->slots] =
		(struct gr_snapshot_copy){ .block = piece->block, .offset = piece->offset + at };
	return 1;
}

int gr_snapshot_buffer_put_locked(struct gr_snapshot_buffer *b, const struct gr_cbw_piece *piece)
{
	uint64_t tail = b->tail, zeroes = 0, end;

	/* Holes are not looked at: a look gives some kinds of memory a page. */
	for (uint64_t at = 0; at < piece->bytes; at = end) {
		bool hole = gr_holes_next(&b->holes, piece->block, piece->offset + at,
					  piece->offset + piece->bytes, &end);

		end -= piece->offset;
		if (hole) {
			zeroes += (end - at) / b->page_bytes;
			continue;
		}
		for (; at < end; at += b->page_bytes) {
			int ret = put_page_locked(b, piece, at);

			if (ret < 0) {
				b->tail = tail;
				return ret;
			}
			zeroes += ret == 0;
		}
	}
	b->zero_pages += zeroes;
	b->most = GR_MAX(b->most, b->tail - b->head);
	return 0;
}

int gr_snapshot_buffer_keep_locked(struct gr_snapshot_buffer *b, const struct gr_cbw_piece *piece)
{
	if (b->kept_tail - b->kept_head == b->kept_room) {
		uint64_t room = GR_MAX(2 * b->kept_room, UINT64_C(64));
		struct gr_cbw_piece *kept = malloc(room * sizeof(*kept));

		if (!kept) {
			return -ENOMEM;
		}
		for (uint64_t i = b->kept_head; i < b->kept_tail; i++) {
			kept[i % room] = b->kept[i % b->kept_room];
		}
		free(b->kept);
		b->kept = kept;
		b->kept_room = room;
	}
	b->kept[b->kept_tail++ % b->kept_room] = *piece;
	return 0;
}

int gr_snapshot_buffer_admit(struct gr_snapshot_buffer *b, struct gr_cbw_piece *piece)
{
	struct gr_signals saved;
	int ret = 0;

	gr_snapshot_buffer_lock(b, &saved);
	if (gr_snapshot_buffer_keeps_locked(b)) {
		*piece = b->kept[b->kept_head % b->kept_room];
		ret = gr_snapshot_buffer_put_locked(b, piece);
		b->kept_head += ret == 0;
		ret = ret == -ENOBUFS ? 0 : ret < 0 ? ret : 1;
	}
	gr_snapshot_buffer_unlock(b, &saved);
	return ret;
}

uint64_t gr_snapshot_buffer_count(struct gr_snapshot_buffer *b, uint64_t *ret_head)
{
	struct gr_signals saved;
	uint64_t count;

	gr_snapshot_buffer_lock(b, &saved);
	*ret_head = b->head;
	count = b->tail - b->head;
	gr_snapshot_buffer_unlock(b, &saved);
	return count;
}

void gr_snapshot_buffer_drop(struct gr_snapshot_buffer *b, uint64_t count)
{
	struct gr_signals saved;

	gr_snapshot_buffer_lock(b, &saved);
	b->head += count;
	gr_snapshot_buffer_unlock(b, &saved);
}
