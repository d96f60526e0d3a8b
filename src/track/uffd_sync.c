/* SPDX-License-Identifier: MIT */
/*
 * Dirty tracking by synchronous userfaultfd write protection: each first store to a page stops its
 * writer until our thread has marked the page and opened it. It costs a fault and two switches
 * of threads per page and epoch, where uffd-wp costs a fault within the kernel; but it knows
 * of a store before the store happens, and needs no PAGEMAP_SCAN.
 *
 * A page is protected or open, and the set of open pages is the tracker's debt (O4): an open page
 * may be written without trace, so it is protected before anybody reads it. A fault marks its
 * page and adds it to the debt under the lock that rearm takes, so that whoever has harvested the
 * mark and rearms finds the debt; and it opens the page last, so that a store that has happened is
 * marked already when its writer is stopped. What opens without a fault, because its protection
 * went with its memory (a discard, a remap), joins the debt before that is marked. Model:
 * models/dirty_rearm.pml, -DUFFD.
 *
 * There is nothing to fetch: a store that has happened was marked before it did.
 */
#include "base/hook.h"
#include "ram/ram.h"
#include "track/report.h"
#include "track/tracker.h"
#include "track/uffd_server.h"
#include <errno.h>
#include <string.h>

struct range {
	struct gr_uffd_range at; /* (c) */
	uint64_t *open;		 /* (lock) units */
	size_t set_bytes;	 /* (c) */
};

struct uffd_sync {
	struct gr_tracker base;
	struct gr_uffd_server server;
	struct gr_ram_discard_watch watch;
	struct gr_mutex lock;
	struct range **range; /* (lock; changed with the list mutex too) by address */
	size_t count;	      /* (as range) */
	size_t room;	      /* (as range) */
};

static struct uffd_sync *uffd_sync_of(struct gr_tracker *t)
{
	return gr_container_of(t, struct uffd_sync, base);
}

/* ---- the ranges ------------------------------------------------------------------------ */

/* The first range that ends behind the address: where it is, or would be. */
static size_t place_locked(const struct uffd_sync *u, uint64_t address) GR_REQUIRES(u->lock)
{
	size_t low = 0, high = u->count;

	while (low < high) {
		size_t mid = low + (high - low) / 2;

		if (u->range[mid]->at.start + u->range[mid]->at.bytes > address) {
			high = mid;
		} else {
			low = mid + 1;
		}
	}
	return low;
}

static struct range *find_locked(const struct uffd_sync *u, uint64_t address) GR_REQUIRES(u->lock)
{
	size_t i = place_locked(u, address);

	return i < u->count && u->range[i]->at.start <= address ? u->range[i] : NULL;
}

static struct range *find_block_locked(const struct uffd_sync *u, const struct gr_ram_block *block)
	GR_REQUIRES(u->lock)
{
	struct range *r = find_locked(u, (uint64_t)(uintptr_t)block->host);

	return r && r->at.block == block ? r : NULL;
}

/* There is room; see make_room(). */
static void insert_locked(struct uffd_sync *u, struct range *r) GR_REQUIRES(u->lock)
{
	size_t i = place_locked(u, r->at.start);

	memmove(&u->range[i + 1], &u->range[i], (u->count - i) * sizeof(struct range *));
	u->range[i] = r;
	u->count++;
}

static struct range *take_out_locked(struct uffd_sync *u, const struct gr_ram_block *block)
	GR_REQUIRES(u->lock)
{
	struct range *r = find_block_locked(u, block);

	if (r) {
		size_t i = place_locked(u, r->at.start);

		u->count--;
		memmove(&u->range[i], &u->range[i + 1], (u->count - i) * sizeof(struct range *));
	}
	return r;
}

static void range_free(struct range *r)
{
	if (r) {
		gr_pages_free(r->open, r->set_bytes);
		free(r);
	}
}

static struct range *range_make(struct gr_ram_block *block)
{
	struct range *r = calloc(1, sizeof(*r));

	if (!r) {
		return NULL;
	}
	r->at = gr_uffd_range_of(block, block->max_bytes);
	r->set_bytes =
		GR_ROUND_UP(GR_DIV_ROUND_UP(r->at.bytes / r->at.unit, 64) * 8, gr_page_bytes());
	r->open = gr_pages_alloc(r->set_bytes);
	if (!r->open) {
		free(r);
		return NULL;
	}
	return r;
}

/* ---- faults ---------------------------------------------------------------------------- */

static void fault_locked(struct uffd_sync *u, struct range *r, uint64_t unit) GR_REQUIRES(u->lock)
{
	uint64_t offset = unit * r->at.unit, start = r->at.start + offset;

	if (gr_unit_test(r->open, unit)) {
		gr_uffd_open_range(&u->server, start, r->at.unit);
		return;
	}
#ifdef GR_MUTANT_UFFD_SYNC_OPENS_FIRST
	gr_uffd_open_range(&u->server, start, r->at.unit);
	GR_HOOK("uffd_sync fault: opened");
#endif
	gr_unit_set(r->open, unit);
	gr_report_range(r->at.block, offset, r->at.unit);
#ifndef GR_MUTANT_UFFD_SYNC_OPENS_FIRST
	gr_uffd_open_range(&u->server, start, r->at.unit);
	GR_HOOK("uffd_sync fault: opened");
#endif
}

static void on_fault(void *opaque, uint64_t address)
{
	struct uffd_sync *u = opaque;
	struct gr_signals saved;
	struct range *r;

	gr_uffd_lock(&u->lock, &saved);
	r = find_locked(u, address);
	/* None: its block was removed, and whoever waited there was woken. */
	if (r) {
		fault_locked(u, r, (address - r->at.start) / r->at.unit);
	}
	gr_uffd_unlock(&u->lock, &saved);
}

/* Memory went, and its protection with it: debt, before the mark that the discard will make. */
static void on_discard(void *opaque, struct gr_ram_block *block, uint64_t offset, uint64_t bytes)
{
	struct uffd_sync *u = opaque;
#ifndef GR_MUTANT_UFFD_SYNC_DISCARD_FORGETS
	struct gr_signals saved;
	struct range *r;

	if (!gr_uffd_server_ours(&u->server)) {
		return;
	}
	gr_uffd_lock(&u->lock, &saved);
	r = find_block_locked(u, block);
	if (r && bytes > 0) {
		uint64_t end = GR_MIN(GR_DIV_ROUND_UP(offset + bytes, r->at.unit),
				      r->at.bytes / r->at.unit);

		for (uint64_t i = offset / r->at.unit; i < end; i++) {
			gr_unit_set(r->open, i);
		}
		gr_uffd_register_again(&u->server, r->at.start + offset / r->at.unit * r->at.unit,
				       (end - offset / r->at.unit) * r->at.unit);
	}
	gr_uffd_unlock(&u->lock, &saved);
#else
	(void)u;
	(void)block;
	(void)offset;
	(void)bytes;
#endif
}

/* ---- the tracker ----------------------------------------------------------------------- */

static int uffd_sync_start(struct gr_tracker *t, struct gr_error *err)
{
	struct uffd_sync *u = uffd_sync_of(t);
	int ret = gr_uffd_server_run(&u->server, err);

	if (ret == 0) {
		gr_ram_discard_watch_add(t->ram, &u->watch);
	}
	return ret;
}

/* No block is armed any more, nobody waits. */
static void uffd_sync_stop(struct gr_tracker *t)
{
	struct uffd_sync *u = uffd_sync_of(t);

	gr_ram_discard_watch_del(t->ram, &u->watch);
	gr_uffd_server_stop(&u->server);
}

static void uffd_sync_block_del(struct gr_tracker *t, struct gr_ram_block *block)
{
	struct uffd_sync *u = uffd_sync_of(t);
	struct gr_signals saved;
	struct range *r;

	if (!gr_uffd_server_ours(&u->server)) {
		return; /* what a child has of it goes with the tracker */
	}
	/* Under the lock, so that no fault is served halfway. */
	gr_uffd_lock(&u->lock, &saved);
	r = take_out_locked(u, block);
	if (r) {
		gr_uffd_disarm(&u->server, &r->at);
	}
	gr_uffd_unlock(&u->lock, &saved);
	range_free(r);
}

/*
 * For one range more. It is allocated without the lock: malloc()'s own may be held by a thread
 * whose handler waits for a fault to be served.
 */
static bool make_room(struct uffd_sync *u)
{
	size_t room = u->room ? 2 * u->room : 16;
	struct range **more, **old = u->range;
	struct gr_signals saved;

	if (u->count < u->room) {
		return true;
	}
	more = calloc(room, sizeof(struct range *));
	if (!more) {
		return false;
	}
	gr_uffd_lock(&u->lock, &saved);
	if (old) {
		memcpy(more, old, u->count * sizeof(struct range *));
	}
	u->range = more;
	u->room = room;
	gr_uffd_unlock(&u->lock, &saved);
	free(old);
	return true;
}

static int uffd_sync_block_add(struct gr_tracker *t, struct gr_ram_block *block,
			       struct gr_error *err)
{
	struct uffd_sync *u = uffd_sync_of(t);
	struct gr_signals saved;
	struct range *r;
	int ret;

	if (!gr_uffd_server_ours(&u->server)) {
		return 0;
	}
	r = make_room(u) ? range_make(block) : NULL;
	if (!r) {
		return gr_error_set(err, -ENOMEM, "no memory to track block '%s'", block->id);
	}
	/* In the table before it is protected: a fault there must find it. */
	gr_uffd_lock(&u->lock, &saved);
	insert_locked(u, r);
	gr_uffd_unlock(&u->lock, &saved);
	ret = gr_uffd_arm(&u->server, &r->at, err);
	if (ret < 0) {
		uffd_sync_block_del(t, block);
		gr_error_prefix(err, "block '%s' cannot be tracked by uffd-sync: ", block->id);
	}
	return ret;
}

static int rearm_locked(struct uffd_sync *u, struct range *r, uint64_t offset, uint64_t bytes,
			struct gr_error *err) GR_REQUIRES(u->lock)
{
	uint64_t end =
		GR_MIN(GR_DIV_ROUND_UP(offset + bytes, r->at.unit), r->at.bytes / r->at.unit);
	uint64_t first = gr_unit_find(r->open, offset / r->at.unit, end, true), last = first;
	int ret;

	if (first >= end) {
		return 0;
	}
	for (uint64_t i = first; i < end; i = gr_unit_find(r->open, i + 1, end, true)) {
		last = i;
	}
	/* In one call with what is protected in between: that stays as it is. */
	ret = gr_uffd_protect(&u->server, &r->at, r->at.start + first * r->at.unit,
			      (last + 1 - first) * r->at.unit, err);
	for (uint64_t i = first; ret == 0 && i <= last; i++) {
		gr_unit_clear(r->open, i);
	}
	return ret;
}

static int uffd_sync_rearm(struct gr_tracker *t, struct gr_ram_block *block, uint64_t offset,
			   uint64_t bytes, struct gr_error *err)
{
	struct uffd_sync *u = uffd_sync_of(t);
	struct gr_signals saved;
	struct range *r;
	int ret = 0;

	if (bytes == 0 || !gr_uffd_server_ours(&u->server)) {
		return 0;
	}
	gr_uffd_lock(&u->lock, &saved);
	r = find_block_locked(u, block);
	if (r) {
		ret = rearm_locked(u, r, offset, bytes, err);
	}
	gr_uffd_unlock(&u->lock, &saved);
	return ret;
}

static void uffd_sync_destroy(struct gr_tracker *t)
{
	struct uffd_sync *u = uffd_sync_of(t);
	bool ours = gr_uffd_server_ours(&u->server);

	/* What is left of a parent's tracker in a child; there the lock may be anybody's. */
	for (size_t i = 0; i < u->count; i++) {
		GR_ASSERT(!ours);
		range_free(u->range[i]);
	}
	free(u->range);
	gr_uffd_server_close(&u->server);
	if (ours) {
		gr_mutex_destroy(&u->lock);
	}
	free(u);
}

#define UFFD_SYNC_OPS                                                                \
	.name = "uffd-sync", .destroy = uffd_sync_destroy, .start = uffd_sync_start, \
	.stop = uffd_sync_stop, .block_add = uffd_sync_block_add,                    \
	.block_del = uffd_sync_block_del, .rearm = uffd_sync_rearm

static const struct gr_tracker_ops all_faults = {
	UFFD_SYNC_OPS,
	.covers = GR_WRITERS_KVM_VCPUS | GR_WRITERS_MAPPING | GR_WRITERS_STORES,
};

/* Code that marks also lends memory to system calls (iovecs), and those would fail. */
static const struct gr_tracker_ops user_faults = {
	UFFD_SYNC_OPS,
	.covers = GR_WRITERS_STORES,
	.breaks = GR_WRITERS_KVM_VCPUS | GR_WRITERS_MAPPING | GR_WRITERS_MARKED,
	.breaks_why = GR_UFFD_USER_FAULTS_WHY,
};

int gr_tracker_uffd_sync_create(struct gr_ram *ram, const struct gr_tracker_params *params,
				struct gr_tracker **ret_tracker, struct gr_error *err)
{
	struct uffd_sync *u = calloc(1, sizeof(*u));
	int ret;

	(void)params;
	if (!u) {
		return gr_error_set(err, -ENOMEM, "no memory for the uffd-sync tracker");
	}
	ret = gr_uffd_server_open(&u->server, on_fault, u, err);
	if (ret < 0) {
		free(u);
		gr_error_prefix(err, "uffd-sync cannot be used: ");
		return ret;
	}
	u->base.ops = u->server.kernel_faults ? &all_faults : &user_faults;
	u->base.ram = ram;
	u->watch = (struct gr_ram_discard_watch){ .after = on_discard, .opaque = u };
	gr_mutex_init(&u->lock, GR_RANK_TRACKER);
	*ret_tracker = &u->base;
	return 0;
}
