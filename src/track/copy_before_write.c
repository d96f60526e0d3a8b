/* SPDX-License-Identifier: MIT */
/*
 * Copy before write. A page is
 *
 *   left       protected, nobody was shown it
 *   taken      protected, the owner's: by next(), or by a fault that before_write() is asked about
 *   released   open
 *
 * and goes this way once. Taking is done under the lock, so that each page has one taker; releasing
 * opens the page and says so afterwards. A fault on a page that is taken needs no answer: its
 * release will wake whoever waits. The lock is not held while the owner is asked, nor over an
 * opening.
 *
 * What goes without a fault (discards) is taken like by a fault, before it goes.
 *
 * To give up is to open everything: from then on a page that is being saved may change, so next()
 * and end() fail. That end() returns 0 is the proof that it did not happen.
 */
#include "base/clock.h"
#include "base/mutex.h"
#include "ram/ram.h"
#include "track/stalls.h"
#include "track/uffd_server.h"
#include <errno.h>
#include <guestram/copy_before_write.h>
#include <guestram/track.h>
#include <string.h>

struct range {
	struct gr_uffd_range at; /* (c) */
	uint64_t used_bytes;	 /* (c) of the block, at the start; the last unit may be longer */
	uint64_t units;		 /* (c) */
	uint64_t *taken;	 /* (lock) taken or released */
	uint64_t *released;	 /* (lock) */
	size_t set_bytes;	 /* (c) */
};

struct gr_cbw {
	struct gr_uffd_server server;
	struct gr_ram *ram;	     /* (c) */
	struct gr_cbw_params params; /* (c) */
	struct gr_ram_discard_watch watch;
	struct range *range; /* (c) by address */
	unsigned int ranges; /* (c) */
	unsigned int armed;  /* (c) after the start: all */

	struct gr_mutex lock;
	bool over;		   /* (lock) abandoned, or ending: nobody is asked any more */
	unsigned int walk_range;   /* (lock) nothing is left before this place */
	uint64_t walk_unit;	   /* (lock) */
	struct gr_cbw_stats stats; /* (lock) */
	struct gr_stalls stalls;   /* (lock) */
};

/* ---- ranges and pieces ----------------------------------------------------------------- */

static struct range *range_at(struct gr_cbw *cbw, uint64_t address)
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

static struct gr_cbw_piece piece_of(const struct range *r, uint64_t unit, uint64_t units)
{
	uint64_t offset = unit * r->at.unit;
	struct gr_cbw_piece piece = { .block = r->at.block,
				      .offset = offset,
				      .bytes = GR_MIN(units * r->at.unit, r->used_bytes - offset),
				      .host = r->at.block->host + offset };

	return piece;
}

/* Which units a piece is; dies if it is none of ours. */
static struct range *units_of(struct gr_cbw *cbw, const struct gr_cbw_piece *piece, uint64_t *first,
			      uint64_t *end)
{
	struct range *r = range_at(cbw, (uint64_t)(uintptr_t)piece->block->host);
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

static void open_units(struct gr_cbw *cbw, const struct range *r, uint64_t first, uint64_t units)
{
	gr_uffd_open_range(&cbw->server, r->at.start + first * r->at.unit, units * r->at.unit);
}

/* They are open: whoever waited there goes on. */
static void count_stalls_locked(struct gr_cbw *cbw, const struct range *r, uint64_t first,
				uint64_t units) GR_REQUIRES(cbw->lock)
{
	gr_stalls_go(&cbw->stalls, r->at.start + first * r->at.unit, units * r->at.unit,
		     gr_clock_ns());
}

static void release_units(struct gr_cbw *cbw, struct range *r, uint64_t first, uint64_t end)
{
	bool owned = true;

	/* Who comes between these two steps is not stopped any more, or was woken. */
	open_units(cbw, r, first, end - first);
	gr_mutex_lock(&cbw->lock);
	for (uint64_t i = first; i < end; i++) {
		owned &= gr_unit_test(r->taken, i) && !gr_unit_test(r->released, i);
		gr_unit_set(r->released, i);
	}
	count_stalls_locked(cbw, r, first, end - first);
	cbw->stats.released_bytes += piece_of(r, first, end - first).bytes;
	gr_mutex_unlock(&cbw->lock);
	if (!owned) {
		gr_die("gr_cbw_release: block '%s': pages that the owner does not have",
		       r->at.block->id);
	}
}

/* Whether it was not over already. */
static bool set_over(struct gr_cbw *cbw)
{
	bool was;

	gr_mutex_lock(&cbw->lock);
	was = cbw->over;
	cbw->over = true;
	gr_mutex_unlock(&cbw->lock);
	return !was;
}

static void open_all(struct gr_cbw *cbw)
{
	for (unsigned int i = 0; i < cbw->ranges; i++) {
		open_units(cbw, &cbw->range[i], 0, cbw->range[i].units);
	}
	gr_mutex_lock(&cbw->lock);
	for (unsigned int i = 0; i < cbw->ranges; i++) {
		count_stalls_locked(cbw, &cbw->range[i], 0, cbw->range[i].units);
	}
	gr_mutex_unlock(&cbw->lock);
}

void gr_cbw_abandon(struct gr_cbw *cbw)
{
	if (gr_uffd_server_ours(&cbw->server) && set_over(cbw)) {
		open_all(cbw);
	}
}

/* ---- before a write -------------------------------------------------------------------- */

enum unit_state { LEFT, TAKEN, RELEASED };

/*
 * Takes it if it is left: then it is the caller's to ask about. What it was. since_ns: a store waits
 * for it since then; 0: none does.
 */
static enum unit_state take(struct gr_cbw *cbw, struct range *r, uint64_t unit, uint64_t since_ns)
{
	enum unit_state state;

	gr_mutex_lock(&cbw->lock);
	if (cbw->over || gr_unit_test(r->released, unit)) {
		state = RELEASED; /* or as good as that: it is open, or about to be */
	} else if (gr_unit_test(r->taken, unit)) {
		state = TAKEN;
	} else {
		state = LEFT;
#ifndef GR_MUTANT_CBW_TAKES_TWICE
		gr_unit_set(r->taken, unit);
#endif
		cbw->stats.written_bytes += piece_of(r, unit, 1).bytes;
	}
	if (state != RELEASED && since_ns != 0) {
		gr_stalls_wait(&cbw->stalls, r->at.start + unit * r->at.unit, since_ns);
	}
	gr_mutex_unlock(&cbw->lock);
	return state;
}

/* About a page just taken. Whether it is open now. */
static bool ask(struct gr_cbw *cbw, struct range *r, uint64_t unit)
{
	struct gr_cbw_piece piece = piece_of(r, unit, 1);

#ifdef GR_MUTANT_CBW_OPENS_FIRST
	open_units(cbw, r, unit, 1);
#endif
	switch (cbw->params.before_write(cbw->params.opaque, &piece)) {
	case GR_CBW_SAVED:
		release_units(cbw, r, unit, unit + 1);
		return true;
	case GR_CBW_KEEP:
		gr_mutex_lock(&cbw->lock);
		cbw->stats.kept++;
		gr_stalls_keep(&cbw->stalls, r->at.start + unit * r->at.unit);
		gr_mutex_unlock(&cbw->lock);
		return false;
	case GR_CBW_ABANDON:
	default:
		gr_cbw_abandon(cbw);
		return true;
	}
}

static void on_fault(void *opaque, uint64_t address)
{
	struct gr_cbw *cbw = opaque;
	struct range *r = range_at(cbw, address);
	uint64_t unit;

	if (!r) {
		return;
	}
	unit = (address - r->at.start) / r->at.unit;
	switch (take(cbw, r, unit, cbw->server.read_ns)) {
	case LEFT:
		(void)ask(cbw, r, unit);
		break;
	case RELEASED:
		open_units(cbw, r, unit, 1);
		break;
	case TAKEN:
		break; /* its release wakes */
	}
}

static int before_discard(void *opaque, struct gr_ram_block *block, uint64_t offset, uint64_t bytes,
			  struct gr_error *err)
{
	struct gr_cbw *cbw = opaque;
	struct range *r = range_at(cbw, (uint64_t)(uintptr_t)block->host);
	uint64_t end;

	if (!gr_uffd_server_ours(&cbw->server) || !r || r->at.block != block || bytes == 0) {
		return 0;
	}
#ifdef GR_MUTANT_CBW_DISCARD_UNASKED
	return 0;
#endif
	end = GR_MIN(GR_DIV_ROUND_UP(offset + bytes, r->at.unit), r->units);
	for (uint64_t unit = offset / r->at.unit; unit < end; unit++) {
		enum unit_state state = take(cbw, r, unit, 0);

		if (state == TAKEN || (state == LEFT && !ask(cbw, r, unit))) {
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
		struct range *r = &cbw->range[cbw->walk_range];
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
	bool over, found;

	if (!gr_uffd_server_ours(&cbw->server)) {
		return gr_error_set(err, -ECANCELED,
				    "a copy before write is not its owner's children's");
	}
	gr_mutex_lock(&cbw->lock);
	over = cbw->over;
	found = !over && next_locked(cbw, bytes_max, piece);
	gr_mutex_unlock(&cbw->lock);
	return over ? gr_error_set(err, -ECANCELED, "the copy before write was abandoned") : found;
}

void gr_cbw_release(struct gr_cbw *cbw, const struct gr_cbw_piece *piece)
{
	uint64_t first, end;
	struct range *r = units_of(cbw, piece, &first, &end);

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
	gr_mutex_lock(&cbw->lock);
	*stats = cbw->stats;
	stats->stalls = gr_stall_summary(&cbw->stalls.quick);
	stats->kept_stalls = gr_stall_summary(&cbw->stalls.kept);
	gr_mutex_unlock(&cbw->lock);
}

/* ---- start and end --------------------------------------------------------------------- */

static bool covered(const struct gr_ram_block *block)
{
	unsigned int flags = gr_ram_block_flags(block);

	return block->host && !(flags & (GR_RAM_NO_MIGRATE | GR_RAM_HOST_READONLY));
}

static int by_address(const void *a, const void *b)
{
	const struct range *x = a, *y = b;

	return x->at.start < y->at.start ? -1 : x->at.start > y->at.start;
}

/* The blocks of one moment, each with a reference. */
static int list_blocks(struct gr_cbw *cbw, struct gr_error *err)
{
	unsigned int room = 0, n;

	for (;;) {
		struct gr_ram_block *block;

		n = 0;
		gr_rcu_read_lock();
		gr_ram_for_each_block_rcu(block, cbw->ram) {
			if (covered(block) && n++ < room) {
				gr_ram_block_get(block);
				cbw->range[n - 1].at.block = block;
			}
		}
		gr_rcu_read_unlock();
		cbw->ranges = GR_MIN(n, room);
		if (n <= room) {
			break;
		}
		for (unsigned int i = 0; i < cbw->ranges; i++) {
			gr_ram_block_put(cbw->range[i].at.block);
		}
		cbw->ranges = 0;
		free(cbw->range);
		room = n + n / 4;
		cbw->range = calloc(room, sizeof(*cbw->range));
		if (!cbw->range) {
			return gr_error_set(err, -ENOMEM, "no memory to list %u blocks", n);
		}
	}
	for (unsigned int i = 0; i < n; i++) {
		struct range *r = &cbw->range[i];

		r->used_bytes = gr_ram_block_used_bytes(r->at.block);
		r->at = gr_uffd_range_of(r->at.block, r->used_bytes);
		r->units = r->at.bytes / r->at.unit;
		cbw->stats.bytes += r->used_bytes;
	}
	if (n > 0) {
		qsort(cbw->range, n, sizeof(*cbw->range), by_address);
	}
	return 0;
}

static int arm(struct gr_cbw *cbw, struct range *r, struct gr_error *err)
{
	int ret;

	r->set_bytes = GR_ROUND_UP(GR_DIV_ROUND_UP(r->units, 64) * 8, gr_page_bytes());
	r->taken = gr_pages_alloc(r->set_bytes);
	r->released = gr_pages_alloc(r->set_bytes);
	if (!r->taken || !r->released) {
		return gr_error_set(err, -ENOMEM, "no memory for a copy before write of block '%s'",
				    r->at.block->id);
	}
	ret = gr_uffd_arm(&cbw->server, &r->at, err);
	if (ret < 0) {
		gr_error_prefix(err, "no copy before write: ");
	}
	return ret;
}

/* Nobody is asked any more. Everybody goes on. */
static void disarm(struct gr_cbw *cbw)
{
	bool ours = gr_uffd_server_ours(&cbw->server);

	for (unsigned int i = 0; i < cbw->ranges; i++) {
		struct range *r = &cbw->range[i];

		if (i < cbw->armed && ours) {
			gr_uffd_disarm(&cbw->server, &r->at);
		}
		if (r->taken) {
			gr_pages_free(r->taken, r->set_bytes);
		}
		if (r->released) {
			gr_pages_free(r->released, r->set_bytes);
		}
		gr_ram_block_put(r->at.block);
	}
	free(cbw->range);
	gr_uffd_server_close(&cbw->server);
	if (ours) { /* in a child it may be anybody's */
		gr_mutex_destroy(&cbw->lock);
	}
	free(cbw);
}

static int check_writers(const struct gr_cbw *cbw, unsigned int writers, struct gr_error *err)
{
	unsigned int by_kernel = GR_WRITERS_KVM_VCPUS | GR_WRITERS_MAPPING | GR_WRITERS_MARKED;

	if (writers & (GR_WRITERS_OUTSIDE | GR_WRITERS_REPORTING)) {
		return gr_error_set(
			err, -EINVAL,
			"no copy before write: writers outside this mapping (another mapping, "
			"another process, write() on the file) cannot be stopped");
	}
	if (writers & ~(by_kernel | GR_WRITERS_STORES)) {
		return gr_error_set(err, -EINVAL, "no copy before write: unknown writers %#x",
				    writers);
	}
	if ((writers & by_kernel) && !cbw->server.kernel_faults) {
		return gr_error_set(err, -EINVAL,
				    "no copy before write of what system calls or KVM "
				    "write: " GR_UFFD_USER_FAULTS_WHY);
	}
	return 0;
}

int gr_cbw_start(struct gr_ram *ram, const struct gr_cbw_params *params, struct gr_cbw **ret_cbw,
		 struct gr_error *err)
{
	struct gr_cbw *cbw;
	int ret;

	if (params->size != sizeof(*params)) {
		return gr_error_set(err, -EINVAL,
				    "no copy before write: parameters of another version");
	}
	if (!params->before_write) {
		return gr_error_set(err, -EINVAL, "no copy before write: nobody to ask");
	}
	cbw = calloc(1, sizeof(*cbw));
	if (!cbw) {
		return gr_error_set(err, -ENOMEM, "no memory for a copy before write");
	}
	cbw->ram = ram;
	cbw->params = *params;
	ret = gr_uffd_server_open(&cbw->server, on_fault, cbw, err);
	if (ret < 0) {
		free(cbw);
		gr_error_prefix(err, "no copy before write: ");
		return ret;
	}
	gr_mutex_init(&cbw->lock, GR_RANK_TRACKER);
	cbw->watch = (struct gr_ram_discard_watch){ .before = before_discard, .opaque = cbw };
	ret = check_writers(cbw, params->writers, err);
	if (ret == 0) {
		ret = list_blocks(cbw, err);
	}
	for (; ret == 0 && cbw->armed < cbw->ranges; cbw->armed += ret == 0) {
		ret = arm(cbw, &cbw->range[cbw->armed], err);
	}
	if (ret == 0 && !params->no_thread) {
		ret = gr_uffd_server_run(&cbw->server, err);
	}
	if (ret < 0) {
		disarm(cbw);
		return ret;
	}
	gr_ram_discard_watch_add(ram, &cbw->watch);
	*ret_cbw = cbw;
	return 0;
}

int gr_cbw_end(struct gr_cbw *cbw, struct gr_error *err)
{
	struct gr_cbw_stats stats;
	bool abandoned;

	if (!cbw) {
		return 0;
	}
	if (cbw->server.running && pthread_equal(cbw->server.thread, pthread_self())) {
		gr_die("gr_cbw_end() from within before_write()");
	}
	/* Their last questions are answered before we count. */
	if (gr_uffd_server_ours(&cbw->server)) {
		abandoned = !set_over(cbw);
		open_all(cbw); /* a listener may store under the lock that the next but one takes */
	} else {
		abandoned = true; /* a child's copy is nothing */
	}
	gr_uffd_server_stop(&cbw->server);
	gr_ram_discard_watch_del(cbw->ram, &cbw->watch);
	stats = cbw->stats;
	disarm(cbw);
	if (abandoned) {
		return gr_error_set(err, -ECANCELED, "the copy before write was abandoned");
	}
	if (stats.released_bytes != stats.bytes) {
		return gr_error_set(err, -ECANCELED,
				    "the copy before write ended with %llu of %llu bytes saved",
				    (unsigned long long)stats.released_bytes,
				    (unsigned long long)stats.bytes);
	}
	return 0;
}
