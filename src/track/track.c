/* SPDX-License-Identifier: MIT */
/*
 * The driver of a machine's trackers: which are in use, who is covered, when they start and
 * stop, and one lock around what they fetch.
 *
 * Locks, outermost first:
 *   control  use, start, stop: who is in use, how often started
 *   report   sync and rearm, from the fetch to the last mark (O4); start and stop, so that
 *            neither runs beside a sync
 *   (the RAM list's mutex, which the listener callbacks come with)
 *   blocks   the array of blocks: short, a leaf but for what RCU takes
 * Plugging takes no report lock, so it never waits for a scan; a sync works on references
 * to the blocks that were there when it began. A block that comes later begins dirty
 * everywhere; one that goes meanwhile has its errors ignored.
 */
#include "base/compiler.h"
#include "base/mutex.h"
#include "ram/ram.h"
#include "track/coverage.h"
#include "track/tracker.h"
#include <errno.h>
#include <stdio.h>
#include <string.h>

enum { TRACKERS_MAX = 4 };

#define SOFTWARE_NAME "software"

struct gr_track {
	struct gr_ram *ram; /* (c) */

	struct gr_mutex control;
	unsigned int kinds;  /* (control) a bit per enum gr_tracker_kind in use */
	unsigned int starts; /* (control and report to write, either to read) */

	struct gr_mutex report;
	struct gr_tracker *trackers[TRACKERS_MAX]; /* (as starts; constant while started) */
	unsigned int tracker_count;		   /* (as starts; constant while started) */
	struct gr_ram_listener listener;	   /* (c) on the RAM list while started */
	bool tables_forbidden;			   /* (as starts) until the last stop */
	struct gr_shown shown;			   /* (list mutex) */

	struct gr_mutex blocks_lock;
	struct gr_ram_block **blocks; /* (blocks_lock) a reference each */
	size_t block_count;	      /* (blocks_lock) */
	size_t block_room;	      /* (blocks_lock) */
};

/* ---- the blocks ---------------------------------------------------------------------- */

static int blocks_put_in(struct gr_track *track, struct gr_ram_block *block, struct gr_error *err)
{
	int ret = 0;

	gr_mutex_lock(&track->blocks_lock);
	if (track->block_count == track->block_room) {
		size_t room = track->block_room ? 2 * track->block_room : 16;
		struct gr_ram_block **more = realloc(track->blocks, room * sizeof(*more));

		if (more) {
			track->blocks = more;
			track->block_room = room;
		} else {
			ret = -ENOMEM;
		}
	}
	if (ret == 0) {
		gr_ram_block_get(block);
		track->blocks[track->block_count++] = block;
	}
	gr_mutex_unlock(&track->blocks_lock);
	return ret < 0 ? gr_error_set(err, ret, "no memory to track block '%s'", block->id) : 0;
}

/* Whether it was there; its reference is the caller's then. */
static bool blocks_take_out(struct gr_track *track, const struct gr_ram_block *block)
{
	bool found = false;

	gr_mutex_lock(&track->blocks_lock);
	for (size_t i = 0; i < track->block_count && !found; i++) {
		if (track->blocks[i] == block) {
			track->blocks[i] = track->blocks[--track->block_count];
			found = true;
		}
	}
	gr_mutex_unlock(&track->blocks_lock);
	return found;
}

static bool blocks_have(struct gr_track *track, const struct gr_ram_block *block)
{
	bool found = false;

	gr_mutex_lock(&track->blocks_lock);
	for (size_t i = 0; i < track->block_count && !found; i++) {
		found = track->blocks[i] == block;
	}
	gr_mutex_unlock(&track->blocks_lock);
	return found;
}

struct snapshot {
	struct gr_ram_block **blocks;
	size_t count;
};

static int snapshot_take(struct gr_track *track, struct snapshot *s, struct gr_error *err)
{
	size_t room = 0;

	memset(s, 0, sizeof(*s));
	for (;;) {
		size_t count;

		gr_mutex_lock(&track->blocks_lock);
		count = track->block_count;
		if (count <= room) {
			for (size_t i = 0; i < count; i++) {
				gr_ram_block_get(track->blocks[i]);
				s->blocks[i] = track->blocks[i];
			}
			s->count = count;
		}
		gr_mutex_unlock(&track->blocks_lock);
		if (count <= room) {
			return 0;
		}
		free(s->blocks);
		room = count + count / 4;
		s->blocks = malloc(room * sizeof(*s->blocks));
		if (!s->blocks) {
			return gr_error_set(err, -ENOMEM, "no memory to list %zu blocks", count);
		}
	}
}

/* May run a block's release(): with no lock of ours held. */
static void snapshot_drop(struct snapshot *s)
{
	for (size_t i = 0; i < s->count; i++) {
		gr_ram_block_put(s->blocks[i]);
	}
	free(s->blocks);
}

/* ---- the RAM listener: under the list mutex ------------------------------------------- */

/*
 * What is mapped for reading only, or on demand, has no stores through a mapping of its own that a
 * tracker could see, and takes no part in migrations. It must not keep others from being tracked.
 */
static bool trackable(const struct gr_ram_block *block)
{
#ifdef GR_MUTANT_TRACK_READONLY
	return true;
#else
	return block->host && !(gr_ram_block_flags(block) & GR_RAM_HOST_READONLY);
#endif
}

static int on_block_add(void *opaque, struct gr_ram_block *block, struct gr_error *err)
{
	struct gr_track *track = opaque;
	int ret = gr_shown_add(&track->shown, block, err);
	unsigned int i;

	if (ret < 0 || !trackable(block)) {
		return ret;
	}
	for (i = 0; i < track->tracker_count && ret == 0; i++) {
		struct gr_tracker *t = track->trackers[i];

		ret = t->ops->block_add ? t->ops->block_add(t, block, err) : 0;
	}
	if (ret < 0) {
		i--; /* the one that refused has nothing to undo */
	} else {
		/* Armed before a sync can see it. */
		ret = blocks_put_in(track, block, err);
	}
	if (ret < 0) {
		gr_shown_del(&track->shown, block);
	}
	while (ret < 0 && i-- > 0) {
		struct gr_tracker *t = track->trackers[i];

		if (t->ops->block_del) {
			t->ops->block_del(t, block);
		}
	}
	return ret;
}

static void on_block_del(void *opaque, struct gr_ram_block *block)
{
	struct gr_track *track = opaque;
	bool found;

	gr_shown_del(&track->shown, block);
	if (!trackable(block)) {
		return;
	}
	/* First out of the array: a sync that fails on it from here on finds it gone. */
	found = blocks_take_out(track, block);
	GR_ASSERT(found);
	for (unsigned int i = track->tracker_count; i-- > 0;) {
		struct gr_tracker *t = track->trackers[i];

		if (t->ops->block_del) {
			t->ops->block_del(t, block);
		}
	}
	gr_ram_block_put(block); /* not the last one: the list's own is still there */
}

static int on_region_add(void *opaque, const struct gr_ram_region *region, struct gr_error *err)
{
	struct gr_track *track = opaque;
	int ret;

	for (unsigned int i = 0; i < track->tracker_count; i++) {
		struct gr_tracker *t = track->trackers[i];

		ret = t->ops->region_add ? t->ops->region_add(t, region, err) : 0;
		if (ret == 0) {
			continue;
		}
		while (i-- > 0) {
			t = track->trackers[i];
			if (t->ops->region_del) {
				t->ops->region_del(t, region);
			}
		}
		return ret;
	}
	return 0;
}

static void on_region_del(void *opaque, const struct gr_ram_region *region)
{
	struct gr_track *track = opaque;

	for (unsigned int i = track->tracker_count; i-- > 0;) {
		struct gr_tracker *t = track->trackers[i];

		if (t->ops->region_del) {
			t->ops->region_del(t, region);
		}
	}
}

/* ---- in use --------------------------------------------------------------------------- */

int gr_track_create(struct gr_ram *ram, struct gr_track **ret_track, struct gr_error *err)
{
	struct gr_track *track = calloc(1, sizeof(*track));

	if (!track) {
		return gr_error_set(err, -ENOMEM, "no memory for the tracker driver");
	}
	track->ram = ram;
	track->kinds = 1u << GR_TRACKER_SOFTWARE;
	gr_mutex_init(&track->control, GR_RANK_TRACK_DRIVER);
	gr_mutex_init(&track->report, GR_RANK_TRACK_REPORT);
	gr_mutex_init(&track->blocks_lock, GR_RANK_TRACK_BLOCKS);
	track->listener = (struct gr_ram_listener){
		.block_add = on_block_add,
		.block_del = on_block_del,
		.region_add = on_region_add,
		.region_del = on_region_del,
		.opaque = track,
	};
	*ret_track = track;
	return 0;
}

/* With control and report held, or nobody else left. */
static void all_stop(struct gr_track *track)
{
	gr_ram_listener_del(track->ram, &track->listener);
	for (unsigned int i = track->tracker_count; i-- > 0;) {
		struct gr_tracker *t = track->trackers[i];

		if (t->ops->stop) {
			t->ops->stop(t);
		}
	}
	if (track->tables_forbidden) {
		gr_ram_tables_allow(track->ram);
		track->tables_forbidden = false;
	}
}

void gr_track_free(struct gr_track *track)
{
	if (!track) {
		return;
	}
	if (track->starts > 0) {
		all_stop(track);
	}
	for (unsigned int i = track->tracker_count; i-- > 0;) {
		track->trackers[i]->ops->destroy(track->trackers[i]);
	}
	GR_ASSERT(track->block_count == 0);
	free(track->blocks);
	free(track->shown.piece);
	gr_mutex_destroy(&track->blocks_lock);
	gr_mutex_destroy(&track->report);
	gr_mutex_destroy(&track->control);
	free(track);
}

static int add_tracker_locked(struct gr_track *track, struct gr_tracker *t, struct gr_error *err)
{
	if (track->starts > 0) {
		return gr_error_set(err, -EBUSY,
				    "tracker '%s' comes too late: tracking has started",
				    t->ops->name);
	}
	if (track->tracker_count == TRACKERS_MAX) {
		return gr_error_set(err, -ENOSPC, "tracker '%s' is one too many (%d)", t->ops->name,
				    TRACKERS_MAX);
	}
	t->ram = track->ram;
	gr_mutex_lock(&track->report);
	track->trackers[track->tracker_count++] = t;
	gr_mutex_unlock(&track->report);
	return 0;
}

int gr_track_use_tracker(struct gr_track *track, struct gr_tracker *tracker, struct gr_error *err)
{
	int ret;

	gr_mutex_lock(&track->control);
	ret = add_tracker_locked(track, tracker, err);
	gr_mutex_unlock(&track->control);
	if (ret < 0) {
		tracker->ops->destroy(tracker);
	}
	return ret;
}

static const struct {
	const char *name;
	int (*create)(struct gr_ram *ram, const struct gr_tracker_params *params,
		      struct gr_tracker **ret_tracker, struct gr_error *err);
} kinds[] = {
	[GR_TRACKER_SOFTWARE] = { SOFTWARE_NAME, NULL },
	[GR_TRACKER_KVM_LOG] = { "kvm-log", gr_tracker_kvm_log_create },
	[GR_TRACKER_KVM_RING] = { "kvm-ring", gr_tracker_kvm_ring_create },
	[GR_TRACKER_UFFD_WP] = { "uffd-wp", gr_tracker_uffd_wp_create },
	[GR_TRACKER_UFFD_SYNC] = { "uffd-sync", gr_tracker_uffd_sync_create },
};

static int use_locked(struct gr_track *track, unsigned int kind,
		      const struct gr_tracker_params *params, struct gr_error *err)
{
	struct gr_tracker *t;
	int ret;

	if (kind >= GR_ARRAY_SIZE(kinds) || !kinds[kind].name) {
		return gr_error_set(err, -ENOTSUP, "there is no tracker number %u", kind);
	}
	if (track->kinds & (1u << kind)) {
		return gr_error_set(err, -EEXIST, "tracker '%s' is in use already",
				    kinds[kind].name);
	}
	if (track->starts > 0) {
		return gr_error_set(err, -EBUSY,
				    "tracker '%s' comes too late: tracking has started",
				    kinds[kind].name);
	}
	ret = kinds[kind].create(track->ram, params, &t, err);
	if (ret < 0) {
		return ret;
	}
	ret = add_tracker_locked(track, t, err);
	if (ret < 0) {
		t->ops->destroy(t);
		return ret;
	}
	track->kinds |= 1u << kind;
	return 0;
}

int gr_track_use(struct gr_track *track, enum gr_tracker_kind kind,
		 const struct gr_tracker_params *params, struct gr_error *err)
{
	int ret;

	gr_mutex_lock(&track->control);
	ret = use_locked(track, (unsigned int)kind, params, err);
	gr_mutex_unlock(&track->control);
	return ret;
}

static void describe(struct gr_tracker *const *trackers, unsigned int count, char *buf,
		     size_t bytes)
{
	size_t at = 0;

	for (unsigned int i = 0; i < count && at < bytes; i++) {
		at += (size_t)snprintf(buf + at, bytes - at, "%s+", trackers[i]->ops->name);
	}
	if (at < bytes) {
		(void)snprintf(buf + at, bytes - at, SOFTWARE_NAME);
	}
}

void gr_track_describe(const struct gr_track *track, char *buf, size_t bytes)
{
	/* Trackers are only ever added, and by the thread that may ask here. */
	describe(track->trackers, track->tracker_count, buf, bytes);
}

/* ---- coverage ------------------------------------------------------------------------- */

static int check_coverage(const struct gr_track *track, unsigned int writers, struct gr_error *err)
{
	char names[96];

	describe(track->trackers, track->tracker_count, names, sizeof(names));
	return gr_coverage_check(track->trackers, track->tracker_count, names, writers, err);
}

/* ---- start and stop ------------------------------------------------------------------- */

static int all_start(struct gr_track *track, struct gr_error *err)
{
	unsigned int i;
	int ret = 0;

	for (i = 0; i < track->tracker_count; i++) {
		struct gr_tracker *t = track->trackers[i];

		ret = t->ops->start ? t->ops->start(t, err) : 0;
		if (ret < 0) {
			break;
		}
	}
	if (ret == 0) {
		/* Replays every block, under the list mutex: none is missed, none twice. */
		ret = gr_ram_listener_add(track->ram, &track->listener, err);
	}
	while (ret < 0 && i-- > 0) {
		struct gr_tracker *t = track->trackers[i];

		if (t->ops->stop) {
			t->ops->stop(t);
		}
	}
	return ret;
}

/* Nobody sees what another process writes, unless it says so itself. */
static int forbid_tables(struct gr_track *track, unsigned int writers, struct gr_error *err)
{
	int ret;

#ifdef GR_MUTANT_TRACK_IGNORES_TABLES
	return 0;
#endif
	if ((writers & GR_WRITERS_REPORTING) || track->tables_forbidden) {
		return 0;
	}
	ret = gr_ram_tables_forbid(track->ram, err);
	track->tables_forbidden = ret == 0;
	return ret;
}

int gr_track_start(struct gr_track *track, unsigned int writers, struct gr_error *err)
{
	int ret;

	gr_mutex_lock(&track->control);
	ret = check_coverage(track, writers, err);
	if (ret == 0) {
		gr_mutex_lock(&track->report);
		ret = forbid_tables(track, writers, err);
		if (ret == 0 && track->starts == 0) {
			ret = all_start(track, err);
		}
		if (ret == 0) {
			track->starts++;
		} else if (track->starts == 0 && track->tables_forbidden) {
			gr_ram_tables_allow(track->ram);
			track->tables_forbidden = false;
		}
		gr_mutex_unlock(&track->report);
	}
	gr_mutex_unlock(&track->control);
	return ret;
}

void gr_track_stop(struct gr_track *track)
{
	gr_mutex_lock(&track->control);
	if (track->starts == 0) {
		gr_die("gr_track_stop() without gr_track_start()");
	}
	gr_mutex_lock(&track->report);
	if (--track->starts == 0) {
		all_stop(track);
	}
	gr_mutex_unlock(&track->report);
	gr_mutex_unlock(&track->control);
}

/* ---- sync and re-arm (O4) ------------------------------------------------------------- */

static int sync_tracker(struct gr_track *track, struct gr_tracker *t, const struct snapshot *s,
			struct gr_error *err)
{
	struct gr_error why;
	int first = 0, ret;

	if (t->ops->sync) {
		first = t->ops->sync(t, err);
	}
	for (size_t i = 0; t->ops->sync_block && i < s->count; i++) {
		ret = t->ops->sync_block(t, s->blocks[i], &why);
		if (ret < 0 && first == 0 && blocks_have(track, s->blocks[i])) {
			first = gr_error_set(err, ret, "%s: %s", t->ops->name, why.msg);
		}
	}
	return first;
}

int gr_track_sync(struct gr_track *track, struct gr_error *err)
{
	struct snapshot s;
	int first = 0, ret;

	/* Before the lock, because giving references back comes after it. */
	ret = snapshot_take(track, &s, err);
	if (ret < 0) {
		return ret;
	}
#ifndef GR_MUTANT_TRACK_SYNC_UNLOCKED
	gr_mutex_lock(&track->report);
#endif
	for (unsigned int i = 0; track->starts > 0 && i < track->tracker_count; i++) {
		/* All of them, also after an error: a report that was fetched is marked. */
		ret = sync_tracker(track, track->trackers[i], &s, first < 0 ? NULL : err);
		first = first < 0 ? first : ret;
	}
#ifndef GR_MUTANT_TRACK_SYNC_UNLOCKED
	gr_mutex_unlock(&track->report);
#endif
	snapshot_drop(&s);
	return first;
}

bool gr_track_repeats(const struct gr_track *track)
{
	for (unsigned int i = 0; i < track->tracker_count; i++) {
		struct gr_tracker *t = track->trackers[i];

		if (t->ops->repeats && t->ops->repeats(t)) {
			return true;
		}
	}
	return false;
}

int gr_track_rearm(struct gr_track *track, struct gr_ram_block *block, uint64_t offset,
		   uint64_t bytes, struct gr_error *err)
{
	int ret = 0;

#ifdef GR_MUTANT_TRACK_NO_REARM
	return 0;
#endif
	if (!trackable(block)) {
		return 0;
	}
	/* Trackers and their number do not change while a consumer is at work. */
	for (unsigned int i = 0; i < track->tracker_count && ret == 0; i++) {
		struct gr_tracker *t = track->trackers[i];

		if (!t->ops->rearm ||
		    (t->ops->rearm_due && !t->ops->rearm_due(t, block, offset, bytes))) {
			continue;
		}
		gr_mutex_lock(&track->report);
		if (track->starts > 0) {
			ret = t->ops->rearm(t, block, offset, bytes, err);
		}
		gr_mutex_unlock(&track->report);
	}
	return ret;
}
