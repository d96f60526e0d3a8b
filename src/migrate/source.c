/* SPDX-License-Identifier: MIT */
/*
 * The source's road: one function per phase (enum gr_source_phase), each a bounded piece of
 * work. Precopy after Clark et al., "Live Migration of Virtual Machines", NSDI 2005.
 *
 * However it ends, source_end() undoes what was done to the machine: it runs again if we had
 * stopped it, its trackers and its block list are as before, and our consumer is gone.
 * Other consumers of the dirty memory never notice: each sync gave them all marks.
 */
#include "migrate/source.h"
#include "migrate/multifd_send.h"
#include "migrate/state_writer.h"
#include "ram/ram.h"
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define FROZEN_WHY "a migration to a peer that cannot follow changes is running"
#define FROZEN_END "a migration is about to switch over"

int gr_state_put(struct gr_state_writer *writer, const char *id, uint32_t instance,
		 uint32_t version, const void *data, size_t bytes, struct gr_error *err)
{
	gr_tail_builder_add(writer->tail, writer->section_id++, id, instance, version, data, bytes);
	if (writer->tail->err.code < 0 && err) {
		*err = writer->tail->err;
	}
	return writer->tail->err.code;
}

static int source_init(struct gr_source *s, struct gr_error *err)
{
	int rc = gr_holes_init(&s->holes, s->page_bytes, err);

	if (rc < 0) {
		return rc;
	}
	s->machine = strdup(s->params.machine ? s->params.machine : "guestram");
	s->bounce = malloc(GR_SOURCE_BATCH_PAGES * s->page_bytes); /* there when it is used */
	if (!s->machine || !s->bounce) {
		return gr_error_set(err, -ENOMEM, "no memory for a source");
	}
	rc = gr_stream_writer_create(s->channel, &s->writer, err);
	if (rc == 0) {
		rc = gr_source_xbzrle_init(s, err);
	}
	if (rc == 0) {
		rc = gr_source_multifd_init(s, err);
	}
	if (rc < 0) {
		return rc;
	}
	return gr_dirty_consumer_add(gr_ram_dirty(s->ram), "migration", GR_DIRTY_START_FULL,
				     &s->consumer, err);
}

static int check_params(struct gr_ram *ram, struct gr_channel *channel,
			const struct gr_source_params *params, const struct gr_source_ops *ops,
			struct gr_error *err)
{
	if (!ram || !channel) {
		return gr_error_set(err, -EINVAL, "a source needs RAM and a channel");
	}
	if (params && params->size != sizeof(*params)) {
		return gr_error_set(err, -EINVAL, "gr_source_params.size is %zu, not %zu",
				    params->size, sizeof(*params));
	}
	if (ops && (!ops->pause || !ops->resume || !ops->save)) {
		return gr_error_set(err, -EINVAL, "a source needs pause, resume and save");
	}
	if (params && params->auto_converge && (!ops || !ops->throttle)) {
		return gr_error_set(err, -EINVAL, "auto-converge needs a machine that can be throttled");
	}
	if (params && (params->throttle_trigger_percent > 100 ||
		       params->throttle_initial_percent > 99 ||
		       params->throttle_increment_percent > 99 || params->throttle_max_percent > 99)) {
		return gr_error_set(err, -EINVAL,
				    "a throttle takes 1 to 99 percent, its trigger is at most 100");
	}
	return 0;
}

static unsigned int default_percent(unsigned int percent, unsigned int otherwise)
{
	return percent ? percent : otherwise;
}

int gr_source_create(struct gr_ram *ram, struct gr_track *track, struct gr_channel *channel,
		     const struct gr_source_params *params, const struct gr_source_ops *ops,
		     struct gr_source **ret_source, struct gr_error *err)
{
	struct gr_source *s;
	int rc = check_params(ram, channel, params, ops, err);

	if (rc < 0) {
		return rc;
	}
	s = calloc(1, sizeof(*s));
	if (!s) {
		return gr_error_set(err, -ENOMEM, "no memory for a source");
	}
	s->ram = ram;
	s->track = track;
	s->channel = channel;
	s->page_bytes = gr_ram_page_bytes(ram);
	s->stopped = !ops;
	s->table.ignore_shared = params && params->ignore_shared;
	if (ops) {
		s->ops = *ops;
	}
	if (params) {
		s->params = *params;
	}
	if (s->params.uuid) {
		memcpy(s->uuid, s->params.uuid, sizeof(s->uuid));
		s->params.uuid = s->uuid;
	}
	s->throttle.trigger = default_percent(s->params.throttle_trigger_percent, 50);
	s->throttle.initial = default_percent(s->params.throttle_initial_percent, 20);
	s->throttle.increment = default_percent(s->params.throttle_increment_percent, 10);
	s->throttle.max = default_percent(s->params.throttle_max_percent, 99);
	if (s->params.downtime_ns_max == 0) {
		s->params.downtime_ns_max = GR_SOURCE_DOWNTIME_NS;
	}
	s->model.limit_ns = s->params.downtime_ns_max;
	s->model.pause_ns = s->params.expected.pause_ns;
	s->model.state_ns = s->params.expected.state_ns;
	/* Until the last word it has been sent, too. */
	s->model.state_bytes =
		s->params.expected.answer_ns == 0 ? s->params.expected.state_bytes : 0;
	s->model.bytes_per_s_max = s->params.bandwidth_bytes_per_s_max;
	gr_progress_init(&s->progress);
	gr_tail_builder_init(&s->tail, (uint32_t)s->page_bytes);
	rc = source_init(s, err);
	if (rc < 0) {
		gr_source_free(s);
		return rc;
	}
	*ret_source = s;
	return 0;
}

/* Everything that was done to the machine is undone; what else may be held is given back. */
static void source_end(struct gr_source *s, bool completed)
{
	/* First: what is on its way belongs to the epoch, and its pages to blocks. */
	if (s->multifd) {
		gr_multifd_send_stop(s->multifd);
	}
	if (s->paused && !completed) {
		s->ops.resume(s->ops.opaque);
	}
	s->paused = false;
	if (s->throttle.percent != 0) {
		s->throttle.percent = 0;
		s->ops.throttle(s->ops.opaque, 0);
	}
	if (s->epoch) {
		(void)gr_dirty_epoch_abort(s->consumer);
		s->epoch = false;
	}
	gr_dirty_consumer_del(s->consumer);
	s->consumer = NULL;
	if (s->tracking) {
		gr_track_stop(s->track);
		s->tracking = false;
	}
	if (s->frozen) {
		gr_ram_thaw(s->ram);
		s->frozen = false;
	}
	gr_source_fault_end(s);
	s->phase = GR_SOURCE_ENDED;
}

void gr_source_free(struct gr_source *s)
{
	if (!s) {
		return;
	}
	if (s->phase != GR_SOURCE_ENDED) {
		source_end(s, false);
	}
	gr_multifd_send_free(s->multifd);
	gr_stream_writer_free(s->writer);
	gr_tail_builder_destroy(&s->tail);
	gr_source_blocks_destroy(&s->table);
	gr_holes_destroy(&s->holes);
	gr_source_xbzrle_end(s);
	gr_progress_destroy(&s->progress);
	free(s->bounce);
	free(s->machine);
	free(s);
}

void gr_source_cancel(struct gr_source *s)
{
	gr_progress_cancel(&s->progress, s->channel);
	if (s->multifd && gr_progress_cancelling(&s->progress)) {
		gr_multifd_send_abort(s->multifd);
	}
}

int gr_source_continue(struct gr_source *s, struct gr_error *err)
{
	if (gr_progress_go_on(&s->progress)) {
		return 0;
	}
	return gr_error_set(err, -EINVAL, "the migration is in state '%s', not '%s'",
			    gr_migrate_state_name(gr_progress_state(&s->progress)),
			    gr_migrate_state_name(GR_MIGRATE_PRE_SWITCHOVER));
}

void gr_source_stats(struct gr_source *s, struct gr_migrate_stats *ret_stats)
{
	gr_progress_snapshot(&s->progress, ret_stats);
}

static int cancelled(struct gr_error *err)
{
	return gr_error_set(err, -ECANCELED, "cancelled");
}

static int move(struct gr_source *s, enum gr_migrate_state to, struct gr_error *err)
{
	return gr_progress_move(&s->progress, to) ? 0 : cancelled(err);
}

static void freeze(struct gr_source *s, const char *why)
{
	if (!s->frozen) {
		gr_ram_freeze(s->ram, why);
		s->frozen = true;
	}
}

static int no_ack(struct gr_error *err)
{
	return gr_error_set(err, -EINVAL,
			    "switchover-ack needs a destination that answers on a return path");
}

static int step_setup(struct gr_source *s, struct gr_error *err)
{
	unsigned int writers = s->params.writers ? s->params.writers : GR_WRITERS_MARKED;
	int rc = gr_ram_loaded_check(s->ram, err);

	if (rc == 0) {
		rc = move(s, GR_MIGRATE_SETUP, err);
	}
	if (rc < 0) {
		return rc;
	}
	/* Tracked from here on: what was stored before is in the first, full round. */
	if (s->track && !s->stopped) {
		rc = gr_track_start(s->track, writers, err);
		if (rc < 0) {
			return rc;
		}
		s->tracking = true;
	}
	/* A destination looks at nothing before all its channels have come. */
	if (s->multifd) {
		rc = gr_multifd_send_start(s->multifd, err);
		if (rc < 0) {
			return rc;
		}
	}
	rc = gr_stream_write_config(s->writer, s->machine, (uint32_t)s->page_bytes, err);
	if (rc == 0 && s->params.ignore_shared) {
		rc = gr_stream_write_ignore_shared(s->writer, err);
	}
	if (rc == 0 && s->params.uuid) {
		rc = gr_stream_write_uuid(s->writer, s->params.uuid, err);
	}
	s->phase = GR_SOURCE_START;
	if (rc == 0 && !s->params.plain && gr_channel_is_duplex(s->channel)) {
		rc = gr_source_ask_peer(s, err);
		s->phase = GR_SOURCE_PEER;
	} else if (rc == 0 && s->params.switchover_ack) {
		rc = no_ack(err);
	}
	return rc;
}

static int step_peer(struct gr_source *s, struct gr_error *err)
{
	struct gr_migrate_stats *stats;
	int rc = gr_source_await_peer(s, err);

	if (rc != 0) {
		return rc < 0 ? rc : 0;
	}
	if (s->params.switchover_ack && !s->answer_expected) {
		return no_ack(err);
	}
	stats = gr_progress_lock(&s->progress);
	stats->peer_is_guestram = s->ours;
	gr_progress_unlock(&s->progress);
	s->phase = GR_SOURCE_START;
	return 0;
}

static int step_start(struct gr_source *s, struct gr_error *err)
{
	struct gr_stream_block_desc *descs = NULL;
	struct gr_migrate_stats *stats;
	int rc;

	if (!s->ours) {
		freeze(s, FROZEN_WHY);
	}
	gr_source_multifd_set_dialect(s);
	s->table.promised = s->ours;
	s->table.tells_files = s->file_identity;
	rc = gr_source_blocks_fill(&s->table, s->ram, &s->watch, err);
	if (rc == 0) {
		rc = gr_source_blocks_describe(&s->table, &descs, err);
	}
	if (rc == 0) {
		rc = gr_stream_write_start(s->writer, GR_SOURCE_RAM_SECTION, descs, s->table.count,
					   err);
	}
	if (rc == 0 && s->ours) {
		rc = gr_source_meet_announcement(s, err);
	}
	if (rc == 0 && s->ours) {
		rc = gr_stream_write_announce(s->writer, descs, s->table.count, err);
	}
	free(descs);
	if (rc == 0 && s->ours) {
		rc = gr_stream_flush(s->writer, err);
	}
	if (rc == 0) {
		rc = gr_source_meet(s, err);
	}
	if (rc == 0) {
		rc = gr_stream_write_eos(s->writer, err);
	}
	if (rc == 0) {
		rc = gr_stream_flush(s->writer, err);
	}
	if (rc < 0) {
		return rc;
	}
	stats = gr_progress_lock(&s->progress);
	stats->blocks_announced = s->ours ? 1 : 0;
	stats->total_bytes = s->table.total_pages * s->page_bytes;
	stats->remaining_bytes = stats->total_bytes;
	stats->xbzrle_cache_bytes = gr_page_cache_bytes(&s->cache);
	gr_progress_unlock(&s->progress);
	gr_pacing_init(&s->pacing, s->params.bandwidth_bytes_per_s_max, gr_clock_ns());
	s->phase = s->stopped ? GR_SOURCE_SWITCH : GR_SOURCE_HARVEST;
	return move(s, GR_MIGRATE_ACTIVE, err);
}

/* Sleeps a slice of what the bandwidth limit asks for. Returns whether to go on sending. */
static bool pace(struct gr_source *s)
{
	uint64_t wait = gr_pacing_wait_ns(&s->pacing, gr_clock_ns());
	struct timespec slice = gr_timespec_from_ns(GR_MIN(wait, GR_PACING_SLICE_NS));

	if (wait > 0) {
		(void)clock_nanosleep(CLOCK_MONOTONIC, 0, &slice, NULL);
	}
	return wait <= GR_PACING_SLICE_NS;
}

static int step_round(struct gr_source *s, struct gr_error *err)
{
	int rc;

	if (gr_progress_tell(&s->progress, s->ops.progress, s->ops.opaque, false)) {
		rc = gr_source_check_peer(s, err);
		if (rc < 0) {
			return rc;
		}
	}
	if (!pace(s)) {
		return 0;
	}
	rc = gr_source_look_again(s, err);
	if (rc == 0) {
		rc = gr_source_send_batch(s, err);
	}
	if (rc < 0) {
		return rc;
	}
	if (rc == 0) {
		rc = gr_source_end_round(s, err);
		s->phase = s->switch_next ? GR_SOURCE_SWITCH : GR_SOURCE_HARVEST;
	}
	return rc < 0 ? rc : 0;
}

/* A part of the downtime has ended, and the next one begins. */
static void end_part(struct gr_source *s, uint64_t *part)
{
	uint64_t now = gr_clock_ns();
	struct gr_migrate_stats *stats;

	*part = s->stopped ? 0 : now - s->part_ns;
	s->part_ns = now;
	stats = gr_progress_lock(&s->progress);
	stats->downtime = s->downtime;
	gr_progress_unlock(&s->progress);
}

/* The machine stops: nothing writes its memory from here on (O6). */
static int stop_machine(struct gr_source *s, struct gr_error *err)
{
	int rc;

	s->pause_ns = s->part_ns = gr_clock_ns();
	if (!s->stopped) {
		rc = s->ops.pause(s->ops.opaque, err);
		if (rc < 0) {
			gr_error_prefix(err, "the machine cannot be stopped: ");
			return rc;
		}
		s->paused = true;
		end_part(s, &s->downtime.pause_ns);
	}
	return 0;
}

/* The guest stands still here and does not run over there: who asked for it does what it wants. */
static int step_paused(struct gr_source *s, struct gr_error *err)
{
	bool skip = s->params.fault == GR_FAULT_SKIP_FINAL_SYNC && s->switch_next;
	uint64_t pages;
	int rc = 0;

	if (s->params.pause_before_switchover) {
#ifndef GR_MUTANT_SWITCH_WITHOUT_CONTINUE
		if (!gr_progress_goes_on(&s->progress)) {
			return gr_source_wait_slice(s, err);
		}
#endif
		rc = move(s, GR_MIGRATE_DEVICE, err);
		if (rc < 0) {
			return rc;
		}
	}
	s->final = true;
	s->part_ns = gr_clock_ns(); /* what somebody waited for before is not the harvest's */
	if (!skip) {
		/* What is left of the open epoch comes back in this one. */
		if (s->epoch) {
			(void)gr_dirty_epoch_abort(s->consumer);
			s->epoch = false;
		}
		rc = gr_source_harvest(s, &pages, err);
		end_part(s, &s->downtime.harvest_ns);
	}
#ifdef GR_MUTANT_MIGRATE_HARVEST_BEFORE_PAUSE
	if (rc == 0) {
		rc = stop_machine(s, err);
	}
#endif
	s->phase = GR_SOURCE_FINAL;
	return rc;
}

static int step_switch(struct gr_source *s, struct gr_error *err)
{
	int rc;

	/* A block that came now would not get across. */
	freeze(s, FROZEN_END);
	rc = gr_source_close_section(s, err);
	if (rc == 0 && gr_source_reads_early(s)) {
		rc = gr_source_fault_early_read(s, err);
	}
	if (rc == 0 && !s->params.pause_before_switchover) {
		rc = move(s, GR_MIGRATE_DEVICE, err);
	}
#ifndef GR_MUTANT_MIGRATE_HARVEST_BEFORE_PAUSE
	if (rc == 0) {
		rc = stop_machine(s, err);
	}
#endif
	if (rc == 0 && s->params.pause_before_switchover) {
		rc = move(s, GR_MIGRATE_PRE_SWITCHOVER, err);
		(void)gr_progress_tell(&s->progress, s->ops.progress, s->ops.opaque, true);
	}
	if (rc < 0) {
		return rc;
	}
	s->phase = GR_SOURCE_PAUSED;
	return s->params.pause_before_switchover ? 0 : step_paused(s, err);
}

static int step_final(struct gr_source *s, struct gr_error *err)
{
	int rc;

	/* While a guest waits there is no limit; a machine that was stopped already can wait. */
	if (s->stopped && !pace(s)) {
		return 0;
	}
	(void)gr_progress_tell(&s->progress, s->ops.progress, s->ops.opaque, false);
	rc = gr_source_send_batch(s, err);
	if (rc != 0) {
		return rc < 0 ? rc : 0;
	}
	(void)gr_dirty_epoch_commit(s->consumer);
	s->epoch = false;
	rc = gr_source_end_round(s, err);
	end_part(s, &s->downtime.pages_ns);
	s->phase = GR_SOURCE_DEVICES;
	return rc;
}

static int step_devices(struct gr_source *s, struct gr_error *err)
{
	struct gr_state_writer writer = { &s->tail, GR_SOURCE_RAM_SECTION + 1 };
	const uint8_t *data = NULL;
	size_t bytes = 0, eof = 0;
	int rc = 0;

	if (!s->stopped) {
		rc = s->ops.save(s->ops.opaque, &writer, err);
		if (rc < 0) {
			gr_error_prefix(err, "saving the devices: ");
		}
	}
	s->downtime.state_bytes = s->tail.tail.bytes;
	end_part(s, &s->downtime.state_ns);
	if (rc == 0) {
		eof = s->tail.tail.bytes;
		rc = gr_tail_builder_finish(&s->tail, &data, &bytes, err);
	}
	/* All but the end mark and what follows: until that is out a cancel breaks the channel. */
	if (rc == 0) {
		rc = gr_stream_write_raw(s->writer, data, eof, err);
	}
	if (rc == 0) {
		rc = gr_stream_flush(s->writer, err);
		s->last = data + eof;
		s->last_bytes = bytes - eof;
	}
	s->phase = GR_SOURCE_COMMIT;
	return rc;
}

/*
 * What the destination needs to start the guest. After the first of these bytes nobody can take
 * the move back, so a cancel has to come before or it is too late; and as it cannot wake us any
 * more, we do not begin before there is room for them.
 */
static int step_commit(struct gr_source *s, struct gr_error *err)
{
	int rc;

	if (!gr_source_can_write(s)) {
		return 0;
	}
	if (!gr_progress_keep_channel(&s->progress)) {
		return cancelled(err);
	}
	rc = gr_stream_write_raw(s->writer, s->last, s->last_bytes, err);
	if (rc == 0) {
		rc = gr_stream_flush(s->writer, err);
	}
	s->phase = GR_SOURCE_ANSWER;
	return rc;
}

static int step_answer(struct gr_source *s, struct gr_error *err)
{
	struct gr_migrate_stats *stats;
	int rc = s->answer_expected ? gr_source_await_answer(s, err) : 0;

	if (rc != 0) {
		return rc < 0 ? rc : 0;
	}
	end_part(s, &s->downtime.answer_ns);
	stats = gr_progress_lock(&s->progress);
	stats->downtime_ns = s->stopped ? 0 : gr_clock_ns() - s->pause_ns;
	stats->transferred_bytes = gr_source_bytes(s);
	stats->remaining_bytes = 0;
	gr_progress_unlock(&s->progress);
	/* From CANCELLING too: the cancel came too late. */
	rc = move(s, GR_MIGRATE_COMPLETED, err);
	if (rc == 0) {
		source_end(s, true);
	}
	return rc;
}

static int step(struct gr_source *s, struct gr_error *err)
{
	switch (s->phase) {
	case GR_SOURCE_SETUP:
		return step_setup(s, err);
	case GR_SOURCE_PEER:
		return step_peer(s, err);
	case GR_SOURCE_START:
		return step_start(s, err);
	case GR_SOURCE_HARVEST:
		return gr_source_next_round(s, err);
	case GR_SOURCE_ROUND:
		return step_round(s, err);
	case GR_SOURCE_SWITCH:
		return step_switch(s, err);
	case GR_SOURCE_PAUSED:
		return step_paused(s, err);
	case GR_SOURCE_FINAL:
		return step_final(s, err);
	case GR_SOURCE_DEVICES:
		return step_devices(s, err);
	case GR_SOURCE_COMMIT:
		return step_commit(s, err);
	case GR_SOURCE_ANSWER:
		return step_answer(s, err);
	case GR_SOURCE_ENDED:
	default:
		return 0;
	}
}

/* A broken connection is often the destination's refusal: ask it. */
static int explain(struct gr_source *s, int rc)
{
	struct gr_error said = { 0 };

	if ((rc == -EPIPE || rc == -ECONNRESET) && gr_source_check_peer(s, &said) == -EREMOTEIO) {
		s->error = said;
		return -EREMOTEIO;
	}
	return rc;
}

static int source_fail(struct gr_source *s, int rc)
{
	if (!gr_progress_cancelling(&s->progress)) {
		rc = explain(s, rc);
	}
	source_end(s, false);
	/* A cancel may have come first, also while the peer was asked or the guest resumed. */
	if (!gr_progress_move(&s->progress, GR_MIGRATE_FAILED)) {
		rc = cancelled(&s->error);
		(void)gr_progress_move(&s->progress, GR_MIGRATE_CANCELLED);
	}
	(void)gr_progress_tell(&s->progress, s->ops.progress, s->ops.opaque, true);
	return rc;
}

int gr_source_step(struct gr_source *s, struct gr_error *err)
{
	int rc = 0;

	if (s->phase != GR_SOURCE_ENDED) {
		if (s->phase != GR_SOURCE_ANSWER && gr_progress_cancelling(&s->progress)) {
			rc = -ECANCELED;
		} else {
			rc = step(s, &s->error);
		}
		if (rc < 0) {
			s->error.code = source_fail(s, rc);
		}
	}
	if (s->error.code < 0) {
		if (err) {
			*err = s->error;
		}
		return s->error.code;
	}
	if (s->phase != GR_SOURCE_ENDED) {
		return 1;
	}
	return 0;
}

int gr_source_run(struct gr_source *s, struct gr_error *err)
{
	int rc;

	do {
		rc = gr_source_step(s, err);
	} while (rc > 0);
	return rc;
}
