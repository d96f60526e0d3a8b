/* SPDX-License-Identifier: MIT */
/*
 * Copy before write. A page is
 *
 *   left       protected, nobody was shown it
 *   taken      protected, the owner's: by next(), or by a fault that before_write() is asked about
 *   released   open, or about to be
 *
 * and goes this way once. Taking is done under the lock, so that each page has one taker; so is
 * releasing, which opens the page afterwards. A fault in between opens it too; one on a page that
 * is taken needs no answer: its release will wake whoever waits. The lock is not held while the
 * owner is asked, nor over an opening.
 *
 * What goes without a fault (discards) is taken like by a fault, before it goes. What the host has
 * lost (remaps) cannot be read any more: it is told of without bytes.
 *
 * To give up is to open everything: from then on a page that is being saved may change, so next()
 * and end() fail. That end() returns 0 is the proof that it did not happen.
 */
#include "track/copy_before_write.h"
#include "base/clock.h"
#include <errno.h>

/* ---- ranges and pieces ----------------------------------------------------------------- */

struct gr_cbw_range *gr_cbw_range_at(struct gr_cbw *cbw, uint64_t address)
{
	unsigned int low = 0, high = cbw->ranges;

	while (low < high) {
		unsigned int mid = low + (high - low) / 2;

		if (cbw->range[mid].at.start + cbw->range[mid].at.bytes > address) {
			high = mid;
		} else {
			low = mid + 1;
		}
	}
	return low < cbw->ranges && cbw->range[low].at.start <= address ? &cbw->range[low] : NULL;
}

static struct gr_cbw_piece piece_of(const struct gr_cbw_range *r, uint64_t unit, uint64_t units)
{
	uint64_t offset = unit * r->at.unit;
	struct gr_cbw_piece piece = { .block = r->at.block,
				      .offset = offset,
				      .bytes = GR_MIN(units * r->at.unit, r->used_bytes - offset),
				      .host = r->at.block->host + offset };

	return piece;
}

/* Which units a piece is; dies if it is none of ours. */
static struct gr_cbw_range *units_of(struct gr_cbw *cbw, const struct gr_cbw_piece *piece,
				     uint64_t *first, uint64_t *end)
{
	struct gr_cbw_range *r = gr_cbw_range_at(cbw, (uint64_t)(uintptr_t)piece->block->host);
	uint64_t last;

	if (!r || r->at.block != piece->block || piece->offset % r->at.unit != 0 ||
	    __builtin_add_overflow(piece->offset, piece->bytes, &last) || last > r->used_bytes ||
	    (last % r->at.unit != 0 && last != r->used_bytes)) {
		gr_die("gr_cbw_release: not pages of a copy before write");
	}
	*first = piece->offset / r->at.unit;
	*end = GR_DIV_ROUND_UP(last, r->at.unit);
	return r;
}

static void open_units(struct gr_cbw *cbw, const struct gr_cbw_range *r, uint64_t first,
		       uint64_t units)
{
	gr_uffd_open_range(&cbw->server, r->at.start + first * r->at.unit, units * r->at.unit);
}

/* They are open, `bytes` of them released: whoever waited there goes on. */
static void count_open(struct gr_cbw *cbw, const struct gr_cbw_range *r, uint64_t first,
		       uint64_t units, uint64_t bytes)
{
	struct gr_signals saved;

	gr_uffd_lock(&cbw->lock, &saved);
	cbw->stats.released_bytes += bytes;
	gr_stalls_go(&cbw->stalls, r->at.start + first * r->at.unit, units * r->at.unit,
		     gr_clock_ns());
	gr_uffd_unlock(&cbw->lock, &saved);
}

static void release_units(struct gr_cbw *cbw, struct gr_cbw_range *r, uint64_t first, uint64_t end)
{
	struct gr_signals saved;
	bool owned = true;

	gr_uffd_lock(&cbw->lock, &saved);
	for (uint64_t i = first; i < end; i++) {
		owned &= gr_unit_test(r->taken, i) && !gr_unit_test(r->released, i);
		gr_unit_set(r->released, i);
	}
	gr_uffd_unlock(&cbw->lock, &saved);
	if (!owned) {
		gr_die("gr_cbw_release: block '%s': pages that the owner does not have",
		       r->at.block->id);
	}
	/* Last: whoever gets on with a store may at once give the page back. */
	open_units(cbw, r, first, end - first);
	count_open(cbw, r, first, end - first, piece_of(r, first, end - first).bytes);
}

bool gr_cbw_set_over(struct gr_cbw *cbw)
{
	struct gr_signals saved;
	bool was;

	gr_uffd_lock(&cbw->lock, &saved);
	was = cbw->over;
	cbw->over = true;
	gr_uffd_unlock(&cbw->lock, &saved);
	return !was;
}

void gr_cbw_open_all(struct gr_cbw *cbw)
{
	for (unsigned int i = 0; i < cbw->ranges; i++) {
		open_units(cbw, &cbw->range[i], 0, cbw->range[i].units);
	}
	for (unsigned int i = 0; i < cbw->ranges; i++) {
		count_open(cbw, &cbw->range[i], 0, cbw->range[i].units, 0);
	}
}

void gr_cbw_abandon(struct gr_cbw *cbw)
{
	if (gr_uffd_server_ours(&cbw->server) && gr_cbw_set_over(cbw)) {
		gr_cbw_open_all(cbw);
	}
}

/* ---- before a write -------------------------------------------------------------------- */

enum unit_state { LEFT, TAKEN, RELEASED };

/*
 * Takes it if it is left: then it is the caller's to ask about. What it was. since_ns: a store
 * waits for it since then; 0: none does. lost: nobody can read it.
 */
static enum unit_state take(struct gr_cbw *cbw, struct gr_cbw_range *r, uint64_t unit,
			    uint64_t since_ns, bool lost)
{
	uint64_t bytes = piece_of(r, unit, 1).bytes;
	struct gr_signals saved;
	enum unit_state state;

	gr_uffd_lock(&cbw->lock, &saved);
	if (cbw->over || gr_unit_test(r->released, unit)) {
		state = RELEASED; /* or as good as that: it is open, or about to be */
	} else if (gr_unit_test(r->taken, unit)) {
		state = TAKEN;
	} else {
		state = LEFT;
#ifndef GR_MUTANT_CBW_TAKES_TWICE
		gr_unit_set(r->taken, unit);
#endif
		cbw->stats.written_bytes += bytes;
		cbw->stats.lost_bytes += lost ? bytes : 0;
	}
	if (state != RELEASED && since_ns != 0) {
		gr_stalls_wait(&cbw->stalls, r->at.start + unit * r->at.unit, since_ns);
	}
	gr_uffd_unlock(&cbw->lock, &saved);
	return state;
}

/* About a page just taken. Whether it is open now. */
static bool ask(struct gr_cbw *cbw, struct gr_cbw_range *r, uint64_t unit, bool lost)
{
	struct gr_cbw_piece piece = piece_of(r, unit, 1);
	struct gr_signals saved;

	if (lost) {
		piece.host = NULL;
	}
#ifdef GR_MUTANT_CBW_OPENS_FIRST
	open_units(cbw, r, unit, 1);
#endif
	switch (cbw->params.before_write(cbw->params.opaque, &piece)) {
	case GR_CBW_SAVED:
		release_units(cbw, r, unit, unit + 1);
		return true;
	case GR_CBW_KEEP:
		gr_uffd_lock(&cbw->lock, &saved);
		cbw->stats.kept++;
		gr_stalls_keep(&cbw->stalls, r->at.start + unit * r->at.unit);
		gr_uffd_unlock(&cbw->lock, &saved);
		return false;
	case GR_CBW_ABANDON:
	default:
		gr_cbw_abandon(cbw);
		return true;
	}
}

void gr_cbw_on_fault(void *opaque, uint64_t address)
{
	struct gr_cbw *cbw = opaque;
	struct gr_cbw_range *r = gr_cbw_range_at(cbw, address);
	uint64_t unit;

	if (!r) {
		return;
	}
	unit = (address - r->at.start) / r->at.unit;
	switch (take(cbw, r, unit, cbw->server.read_ns, false)) {
	case LEFT:
		(void)ask(cbw, r, unit, false);
		break;
	case RELEASED:
		open_units(cbw, r, unit, 1);
		break;
	case TAKEN:
		break; /* its release wakes */
	}
}

int gr_cbw_before_discard(void *opaque, struct gr_ram_block *block, uint64_t offset, uint64_t bytes,
			  bool lost, struct gr_error *err)
{
	struct gr_cbw *cbw = opaque;
	struct gr_cbw_range *r = gr_cbw_range_at(cbw, (uint64_t)(uintptr_t)block->host);
	uint64_t end;

	if (!gr_uffd_server_ours(&cbw->server) || !r || r->at.block != block || bytes == 0) {
		return 0;
	}
#ifdef GR_MUTANT_CBW_DISCARD_UNASKED
	return 0;
#endif
	end = GR_MIN(GR_DIV_ROUND_UP(offset + bytes, r->at.unit), r->units);
	for (uint64_t unit = offset / r->at.unit; unit < end; unit++) {
		enum unit_state state = take(cbw, r, unit, 0, lost);

		if (state == TAKEN || (state == LEFT && !ask(cbw, r, unit, lost))) {
			return gr_error_set(
				err, -EBUSY,
				"block '%s': a snapshot has not saved the page at %#llx yet",
				block->id, (unsigned long long)(unit * r->at.unit));
		}
	}
	return 0;
}

/* ---- the walk -------------------------------------------------------------------------- */

static bool next_locked(struct gr_cbw *cbw, uint64_t bytes_max, struct gr_cbw_piece *piece)
	GR_REQUIRES(cbw->lock)
{
	for (; cbw->walk_range < cbw->ranges; cbw->walk_range++, cbw->walk_unit = 0) {
		struct gr_cbw_range *r = &cbw->range[cbw->walk_range];
		uint64_t first = gr_unit_find(r->taken, cbw->walk_unit, r->units, false), end;

		if (first == r->units) {
			continue;
		}
		end = first + GR_MAX(bytes_max / r->at.unit, UINT64_C(1));
		end = gr_unit_find(r->taken, first, GR_MIN(end, r->units), true);
		for (uint64_t i = first; i < end; i++) {
			gr_unit_set(r->taken, i);
		}
		cbw->walk_unit = end;
		*piece = piece_of(r, first, end - first);
		cbw->stats.walked_bytes += piece->bytes;
		return true;
	}
	return false;
}

int gr_cbw_next(struct gr_cbw *cbw, uint64_t bytes_max, struct gr_cbw_piece *piece,
		struct gr_error *err)
{
	struct gr_signals saved;
	bool over, found;

	if (!gr_uffd_server_ours(&cbw->server)) {
		return gr_error_set(err, -ECANCELED,
				    "a copy before write is not its owner's children's");
	}
	gr_uffd_lock(&cbw->lock, &saved);
	over = cbw->over;
	found = !over && next_locked(cbw, bytes_max, piece);
	gr_uffd_unlock(&cbw->lock, &saved);
	return over ? gr_error_set(err, -ECANCELED, "the copy before write was abandoned") : found;
}

void gr_cbw_release(struct gr_cbw *cbw, const struct gr_cbw_piece *piece)
{
	uint64_t first, end;
	struct gr_cbw_range *r = units_of(cbw, piece, &first, &end);

	if (first < end && gr_uffd_server_ours(&cbw->server)) {
		release_units(cbw, r, first, end);
	}
}

int gr_cbw_fd(const struct gr_cbw *cbw)
{
	return cbw->server.uffd;
}

unsigned int gr_cbw_serve(struct gr_cbw *cbw)
{
	return gr_uffd_server_ours(&cbw->server) ? gr_uffd_server_serve(&cbw->server) : 0;
}

void gr_cbw_stats(struct gr_cbw *cbw, struct gr_cbw_stats *stats)
{
	struct gr_signals saved;

	gr_uffd_lock(&cbw->lock, &saved);
	*stats = cbw->stats;
	stats->stalls = gr_stall_summary(&cbw->stalls.quick);
	stats->kept_stalls = gr_stall_summary(&cbw->stalls.kept);
	gr_uffd_unlock(&cbw->lock, &saved);
}
