/* SPDX-License-Identifier: MIT */
/*
 * The way of a snapshot. The moment is made of these steps, in this order:
 *
 *   the block list is frozen    image and copy have the same blocks
 *   the machine stops           nobody writes its memory (O6)
 *   the blocks are listed
 *   all memory is protected     gr_cbw_start(): what it holds now is what will be shown
 *   the devices' state is saved
 *   the machine runs on, the list is thawed
 *
 * Nothing of it waits for the disk: the file is laid out afterwards. However it ends,
 * snapshot_end() undoes what was done to the machine; it is called before the end of a failure is
 * reported.
 */
#include "base/memory.h"
#include "image/snapshot_state.h"
#include "migrate/source.h"
#include "migrate/state_writer.h"
#include "ram/ram.h"
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>

#define FROZEN_WHY "a snapshot is about to start"

/* ---- create and free ------------------------------------------------------------------- */

static int check_params(struct gr_ram *ram, const char *path,
			const struct gr_snapshot_params *params, const struct gr_source_ops *ops,
			struct gr_error *err)
{
	if (!ram || !path) {
		return gr_error_set(err, -EINVAL, "a snapshot needs RAM and a path");
	}
	if (params && params->size != sizeof(*params)) {
		return gr_error_set(err, -EINVAL, "gr_snapshot_params.size is %zu, not %zu",
				    params->size, sizeof(*params));
	}
	if (params && params->when_full != GR_SNAPSHOT_WAIT &&
	    params->when_full != GR_SNAPSHOT_ABORT) {
		return gr_error_set(err, -EINVAL, "gr_snapshot_params.when_full is unknown: %d",
				    (int)params->when_full);
	}
	if (params && params->buffer_bytes != 0 && params->buffer_bytes < gr_ram_page_bytes(ram)) {
		return gr_error_set(err, -EINVAL, "a buffer of %llu bytes has no room for a page",
				    (unsigned long long)params->buffer_bytes);
	}
	if (ops && (!ops->pause || !ops->resume || !ops->save)) {
		return gr_error_set(err, -EINVAL, "a snapshot needs pause, resume and save");
	}
	if (gr_ram_page_bytes(ram) > gr_page_bytes()) {
		return gr_error_set(
			err, -ENOTSUP,
			"no snapshot of pages of %u bytes on a host whose pages have %zu",
			gr_ram_page_bytes(ram), gr_page_bytes());
	}
	return 0;
}

static int snapshot_init(struct gr_snapshot *s, const char *path, struct gr_error *err)
{
	int ret = gr_snapshot_buffer_init(&s->buffer, s->page_bytes, s->params.buffer_bytes, err);

	if (ret == 0) {
		ret = gr_holes_init(&s->holes, s->page_bytes, err);
	}
	if (ret < 0) {
		return ret;
	}
	s->machine = strdup(s->params.machine ? s->params.machine : "guestram");
	if (!s->machine) {
		return gr_error_set(err, -ENOMEM, "no memory for a snapshot");
	}
	return gr_image_store_create(path, &s->store, err);
}

int gr_snapshot_create(struct gr_ram *ram, const char *path,
		       const struct gr_snapshot_params *params, const struct gr_source_ops *ops,
		       struct gr_snapshot **ret_snapshot, struct gr_error *err)
{
	struct gr_snapshot *s;
	int ret = check_params(ram, path, params, ops, err);

	if (ret < 0) {
		return ret;
	}
	s = calloc(1, sizeof(*s));
	if (!s) {
		return gr_error_set(err, -ENOMEM, "no memory for a snapshot");
	}
	s->ram = ram;
	s->page_bytes = gr_ram_page_bytes(ram);
	s->stopped = !ops;
	if (ops) {
		s->ops = *ops;
	}
	if (params) {
		s->params = *params;
	}
	if (s->params.writers == 0) {
		s->params.writers = GR_WRITERS_MARKED;
	}
	if (s->params.buffer_bytes == 0) {
		s->params.buffer_bytes = GR_SNAPSHOT_BUFFER_BYTES;
	}
	gr_progress_init(&s->progress);
	(void)gr_progress_keep_channel(&s->progress); /* there is none */
	gr_tail_builder_init(&s->tail, (uint32_t)s->page_bytes);
	gr_event_init(&s->work, false);
	ret = snapshot_init(s, path, err);
	if (ret < 0) {
		gr_snapshot_free(s);
		return ret;
	}
	*ret_snapshot = s;
	return 0;
}

static void set_cbw(struct gr_snapshot *s, struct gr_cbw *cbw)
{
	struct gr_signals saved;

	gr_snapshot_buffer_lock(&s->buffer, &saved);
	if (!cbw && s->cbw) {
		gr_cbw_stats(s->cbw, &s->cbw_stats);
	}
	s->cbw = cbw;
	gr_snapshot_buffer_unlock(&s->buffer, &saved);
}

/* The copy before write ends, and everybody who waits goes on. 0: all was shown as it was. */
static int end_copy(struct gr_snapshot *s, struct gr_error *err)
{
	struct gr_cbw *cbw = s->cbw;

	if (!cbw) {
		return 0;
	}
	set_cbw(s, NULL); /* nobody else uses it any more */
	return gr_cbw_end(cbw, err);
}

/* The moment is over, or did not come. */
static void run_on(struct gr_snapshot *s)
{
	if (s->paused) {
		s->paused = false;
		s->ops.resume(s->ops.opaque);
	}
}

static void thaw(struct gr_snapshot *s)
{
	if (s->frozen) {
		s->frozen = false;
		gr_ram_thaw(s->ram);
	}
}

static void snapshot_end(struct gr_snapshot *s)
{
	if (s->cbw) {
#ifndef GR_MUTANT_SNAPSHOT_FAILS_HELD
		gr_cbw_abandon(s->cbw); /* counts who waits, which the end does not */
		(void)end_copy(s, NULL);
#endif
	}
	run_on(s);
	thaw(s);
#ifdef GR_MUTANT_SNAPSHOT_LEAVES_PART
	gr_image_store_free(s->store);
#else
	gr_image_store_discard(s->store);
#endif
	s->store = NULL;
	s->phase = GR_SNAPSHOT_ENDED;
}

void gr_snapshot_free(struct gr_snapshot *s)
{
	if (!s) {
		return;
	}
	snapshot_end(s);
	gr_snapshot_buffer_destroy(&s->buffer);
	gr_tail_builder_destroy(&s->tail);
	gr_source_blocks_destroy(&s->table);
	gr_holes_destroy(&s->holes);
	gr_progress_destroy(&s->progress);
	free(s->batch.offsets);
	free(s->batch.pages);
	free(s->machine);
	free(s);
}

/* ---- other threads --------------------------------------------------------------------- */

void gr_snapshot_cancel(struct gr_snapshot *s)
{
	struct gr_signals saved;

	gr_progress_cancel(&s->progress, NULL);
	if (!gr_progress_cancelling(&s->progress)) {
		return; /* it has ended */
	}
	gr_snapshot_buffer_lock(&s->buffer, &saved);
	if (s->cbw) {
		gr_cbw_abandon(s->cbw);
	}
	gr_snapshot_buffer_unlock(&s->buffer, &saved);
	gr_event_set(&s->work);
}

void gr_snapshot_stats(struct gr_snapshot *s, struct gr_snapshot_stats *ret_stats)
{
	struct gr_snapshot_buffer *b = &s->buffer;
	struct gr_cbw_stats cbw;
	struct gr_signals saved;

	*ret_stats = (struct gr_snapshot_stats){ .buffer_bytes = s->params.buffer_bytes };
	gr_progress_snapshot(&s->progress, &ret_stats->move);
	gr_snapshot_buffer_lock(b, &saved);
	if (s->cbw) {
		gr_cbw_stats(s->cbw, &cbw);
	} else {
		cbw = s->cbw_stats;
	}
	ret_stats->buffered_bytes = (b->tail - b->head) * b->page_bytes;
	ret_stats->buffered_bytes_max = b->most * b->page_bytes;
	ret_stats->copied_pages = b->tail;
	ret_stats->move.zero_pages += b->zero_pages;
	gr_snapshot_buffer_unlock(b, &saved);
	ret_stats->below = cbw.stalls;
	ret_stats->above = cbw.kept_stalls;
	if (ret_stats->move.state != GR_MIGRATE_COMPLETED) {
		uint64_t done =
			(ret_stats->move.normal_pages + ret_stats->move.zero_pages) * s->page_bytes;

		ret_stats->move.remaining_bytes =
			ret_stats->move.total_bytes - GR_MIN(done, ret_stats->move.total_bytes);
	}
}

/* ---- the moment ------------------------------------------------------------------------ */

/* The largest page of a block: it is copied as a whole. */
static uint64_t largest_page(const struct gr_snapshot *s, const char **ret_id)
{
	uint64_t largest = s->page_bytes;

	*ret_id = "";
	for (uint32_t i = 0; i < s->table.count; i++) {
		if (s->table.entries[i].page_bytes > largest) {
			largest = s->table.entries[i].page_bytes;
			*ret_id = s->table.entries[i].id;
		}
	}
	return GR_MAX(largest, (uint64_t)gr_page_bytes());
}

static int list_blocks(struct gr_snapshot *s, struct gr_error *err)
{
	int ret = gr_source_blocks_fill(&s->table, s->ram, &s->watch, err);
	struct gr_migrate_stats *stats;
	const char *id;
	uint64_t largest;

	if (ret < 0) {
		return ret;
	}
	if (s->table.count == 0 || s->table.count > GR_IMAGE_BLOCKS_MAX) {
		return gr_error_set(err, -EINVAL, "%u blocks: an image has 1 to %d", s->table.count,
				    GR_IMAGE_BLOCKS_MAX);
	}
	largest = largest_page(s, &id);
	if (s->params.buffer_bytes < largest) {
		return gr_error_set(err, -EINVAL,
				    "block '%s' has pages of %llu bytes: the buffer must have room "
				    "for one",
				    id, (unsigned long long)largest);
	}
	s->batch.room =
		(uint32_t)GR_MAX(largest / s->page_bytes, (uint64_t)GR_SNAPSHOT_BATCH_PAGES);
	stats = gr_progress_lock(&s->progress);
	stats->total_bytes = s->table.total_pages * s->page_bytes;
	stats->rounds = 1;
	gr_progress_unlock(&s->progress);
	return 0;
}

static int save_state(struct gr_snapshot *s, struct gr_error *err)
{
	struct gr_state_writer writer = { &s->tail, GR_SOURCE_RAM_SECTION + 1 };
	int ret = s->stopped ? 0 : s->ops.save(s->ops.opaque, &writer, err);

	return ret < 0 ? gr_error_prefix(err, "saving the devices: ") : 0;
}

static int protect(struct gr_snapshot *s, struct gr_error *err)
{
	const struct gr_cbw_params params = { .size = sizeof(params),
					      .writers = s->params.writers,
					      .before_write = gr_snapshot_before_write,
					      .opaque = s };
	struct gr_cbw *cbw;
	int ret = gr_cbw_start(s->ram, &params, &cbw, err);

	if (ret == 0) {
		set_cbw(s, cbw);
		/* Who cancelled before had none to give up. */
		if (gr_progress_cancelling(&s->progress)) {
			gr_cbw_abandon(cbw);
		}
	}
	return ret;
}

static int moment(struct gr_snapshot *s, struct gr_error *err)
{
	int ret = 0;

	if (!s->stopped) {
		ret = s->ops.pause(s->ops.opaque, err);
		if (ret < 0) {
			return gr_error_prefix(err, "the machine cannot be stopped: ");
		}
		s->paused = true;
	}
	ret = list_blocks(s, err);
#ifdef GR_MUTANT_SNAPSHOT_PROTECTS_LATE
	run_on(s);
#endif
	if (ret == 0) {
		ret = protect(s, err);
	}
#ifdef GR_MUTANT_SNAPSHOT_SAVES_LATE
	run_on(s);
#endif
	if (ret == 0) {
		ret = save_state(s, err);
	}
	run_on(s);
	return ret;
}

/* ---- the file -------------------------------------------------------------------------- */

static int lay_out(struct gr_snapshot *s, struct gr_error *err)
{
	struct gr_image_place *places = calloc(s->table.count, sizeof(*places));
	int ret = gr_image_store_machine(s->store, s->machine, (uint32_t)s->page_bytes, err);

	if (!places) {
		return gr_error_set(err, -ENOMEM, "no memory to lay out an image");
	}
	for (uint32_t i = 0; i < s->table.count; i++) {
		const struct gr_source_block *e = &s->table.entries[i];
		struct gr_image_place *p = &places[e->wire_index];

		(void)snprintf(p->id, sizeof(p->id), "%s", e->id);
		p->used_bytes = e->used_bytes;
	}
	if (ret == 0) {
		ret = gr_image_store_blocks(s->store, GR_SOURCE_RAM_SECTION, places, s->table.count,
					    err);
	}
	free(places);
	return ret;
}

/* ---- steps ----------------------------------------------------------------------------- */

static int move(struct gr_snapshot *s, enum gr_migrate_state to, struct gr_error *err)
{
	return gr_progress_move(&s->progress, to) ? 0 : gr_error_set(err, -ECANCELED, "cancelled");
}

static int step_start(struct gr_snapshot *s, struct gr_error *err)
{
	int ret = move(s, GR_MIGRATE_SETUP, err);
	struct gr_migrate_stats *stats;
	uint64_t began;

	/* Before the machine stands: a vCPU that waits for its memory would be waited for. */
	ret = ret < 0 ? ret : gr_ram_loaded_check(s->ram, err);
	if (ret < 0) {
		return ret;
	}
	gr_ram_freeze(s->ram, FROZEN_WHY);
	s->frozen = true;
	began = gr_clock_ns();
	ret = moment(s, err);
	stats = gr_progress_lock(&s->progress);
	stats->downtime_ns = s->stopped ? 0 : gr_clock_ns() - began;
	gr_progress_unlock(&s->progress);
	thaw(s);
	if (ret == 0 && gr_progress_cancelling(&s->progress)) {
		ret = gr_error_set(err, -ECANCELED, "cancelled");
	}
	if (ret == 0) {
		s->batch.offsets = calloc(s->batch.room, sizeof(*s->batch.offsets));
		s->batch.pages = malloc(s->batch.room * s->page_bytes);
		ret = s->batch.offsets && s->batch.pages
			      ? lay_out(s, err)
			      : gr_error_set(err, -ENOMEM, "no memory for a snapshot");
	}
	if (ret < 0) {
		return ret;
	}
	gr_pacing_init(&s->pacing, s->params.bandwidth_bytes_per_s_max, gr_clock_ns());
	s->phase = GR_SNAPSHOT_PAGES;
	return move(s, GR_MIGRATE_ACTIVE, err);
}

/* Sleeps a slice of what the bandwidth limit asks for. Returns whether to go on writing. */
static bool pace(struct gr_snapshot *s)
{
	uint64_t wait = gr_pacing_wait_ns(&s->pacing, gr_clock_ns());
	struct timespec slice = gr_timespec_from_ns(GR_MIN(wait, GR_PACING_SLICE_NS));

	if (wait > 0) {
		(void)clock_nanosleep(CLOCK_MONOTONIC, 0, &slice, NULL);
	}
	return wait <= GR_PACING_SLICE_NS;
}

static int step_pages(struct gr_snapshot *s, struct gr_error *err)
{
	int ret;

	(void)gr_progress_tell(&s->progress, s->ops.progress, s->ops.opaque, false);
	if (!pace(s)) {
		return 0;
	}
	ret = gr_snapshot_save_some(s, err);
	if (ret == 0) {
		ret = end_copy(s, err); /* the guest is free from here on */
		s->phase = GR_SNAPSHOT_FINISH;
	}
	return ret < 0 ? ret : 0;
}

static int step_finish(struct gr_snapshot *s, struct gr_error *err)
{
	const uint8_t *data = NULL;
	size_t bytes = 0;
	int ret = move(s, GR_MIGRATE_DEVICE, err);

	if (ret == 0) {
		ret = gr_tail_builder_finish(&s->tail, &data, &bytes, err);
	}
	if (ret == 0) {
		ret = gr_image_store_finish(s->store, data, bytes, err);
	}
	if (ret < 0) {
		return ret;
	}
	gr_image_store_free(s->store);
	s->store = NULL;
	snapshot_end(s);
	return move(s, GR_MIGRATE_COMPLETED,
		    err); /* from CANCELLING too: the cancel came too late */
}

static int step(struct gr_snapshot *s, struct gr_error *err)
{
	switch (s->phase) {
	case GR_SNAPSHOT_START:
		return step_start(s, err);
	case GR_SNAPSHOT_PAGES:
		return step_pages(s, err);
	case GR_SNAPSHOT_FINISH:
		return step_finish(s, err);
	case GR_SNAPSHOT_ENDED:
	default:
		return 0;
	}
}

static int snapshot_fail(struct gr_snapshot *s, int ret)
{
	snapshot_end(s);
	/* A cancel may have come first; the copy then says that it was abandoned. */
	if (!gr_progress_move(&s->progress, GR_MIGRATE_FAILED)) {
		(void)gr_progress_move(&s->progress, GR_MIGRATE_CANCELLED);
		ret = gr_error_set(&s->error, -ECANCELED, "cancelled");
	}
	(void)gr_progress_tell(&s->progress, s->ops.progress, s->ops.opaque, true);
	return ret;
}

int gr_snapshot_step(struct gr_snapshot *s, struct gr_error *err)
{
	if (s->phase != GR_SNAPSHOT_ENDED) {
		int ret = gr_progress_cancelling(&s->progress) ? -ECANCELED : step(s, &s->error);

		/* A callback may have left a message and gone on all the same. */
		s->error.code = ret < 0 ? snapshot_fail(s, ret) : 0;
	}
	if (s->error.code < 0) {
		if (err) {
			*err = s->error;
		}
		return s->error.code;
	}
	return s->phase != GR_SNAPSHOT_ENDED;
}

int gr_snapshot_run(struct gr_snapshot *s, struct gr_error *err)
{
	int ret;

	do {
		ret = gr_snapshot_step(s, err);
	} while (ret > 0);
	return ret;
}
