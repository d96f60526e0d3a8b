/* SPDX-License-Identifier: MIT */
/*
 * What a round sends, and when the last one comes.
 *
 * A page that the guest writes to while it waits for its turn would be sent twice: now, and in the
 * next round, since it has been written to. So the trackers are asked again in the middle of the
 * first round, which is the long one, and what they name of the rest is left to the second (Clark
 * et al. do this too). Not in later rounds: each begins at the first page, so what is written all
 * the time would be sent at low addresses and never at high ones, and what pages take on the wire,
 * which the model learns from the rounds, would be that of the low ones.
 *
 * What lies near a page that was written to may be next: such pieces of RAM go last in that round,
 * so that more of their pages have been written to, and are left to the second one, when it is their turn.
 *
 * No page is cleared here, read or sent on the strength of this look: its mark goes from the live
 * bits to the next epoch, and out of this one only if it is in the next. What was sent before and
 * is written to now is in the next epoch as well (docs/dirty-memory.md). So the orderings are those
 * of two harvests, and it does not matter whether a look comes, or how late.
 */
#include "migrate/source.h"
#include "track/tracker.h"

/* A look took so long. */
static void set_next_look(struct gr_source *s, uint64_t now, uint64_t took_ns)
{
	uint64_t wait = s->params.look_ns != 0
				? s->params.look_ns
				: GR_MAX(GR_SOURCE_LOOK_NS, took_ns * GR_SOURCE_LOOK_COST);

	s->look_ns = wait > UINT64_MAX - now ? UINT64_MAX : now + wait;
}

int gr_source_harvest(struct gr_source *s, uint64_t *ret_pages, struct gr_error *err)
{
	uint64_t begin = gr_clock_ns(), now;
	struct gr_migrate_stats *stats;
	int rc = 0;

	if (gr_source_reads_early(s) && !s->final) {
		rc = gr_source_fault_early_read(s, err);
	}
	if (rc == 0 && s->track && !s->stopped) {
		rc = gr_track_sync(s->track, err);
	}
	if (rc == 0) {
		rc = gr_dirty_epoch_begin(s->consumer, NULL, err);
	}
	if (rc < 0) {
		return rc;
	}
	s->epoch = true;
	s->cursor = s->run_end = 0;
	s->put_off = s->catches_up = false;
	s->lost = false;
	/* After begin: a block whose marks are in the epoch is in the list by now. */
	rc = gr_source_follow_blocks(s, err);
	if (rc < 0) {
		return rc;
	}
	gr_source_trim_epoch(s);
	s->waiting_pages = 0;
	*ret_pages = gr_dirty_epoch_pages(s->consumer);
	now = gr_clock_ns();
	gr_model_harvest(&s->model, *ret_pages, now - begin, now);
	set_next_look(s, now, now - begin);
	s->rounds++;
	stats = gr_progress_lock(&s->progress);
	stats->rounds = s->rounds;
	stats->remaining_bytes = *ret_pages * s->page_bytes;
	stats->dirty_pages_per_s = s->model.dirty_pages_per_s;
	gr_progress_unlock(&s->progress);
	return 0;
}

/*
 * A log that repeats itself names what was not sent yet, written to or not: all of RAM, if all its
 * bits were set at the start.
 */
static bool may_look(const struct gr_source *s)
{
#ifndef GR_MUTANT_LOOK_DEFERS_REPEATED
	if (s->track && gr_track_repeats(s->track)) {
		return false;
	}
#endif
#ifdef GR_MUTANT_LOOK_IN_ALL_ROUNDS
	return true;
#endif
	return s->rounds == 1 && !s->stopped && s->params.fault == GR_FAULT_NONE;
}

/* Whether the rest of the round takes longer than the harvest that is to shorten it. */
static bool pays(const struct gr_source *s)
{
	unsigned __int128 bytes =
		(unsigned __int128)gr_dirty_epoch_pages(s->consumer) * s->page_bytes;
	uint64_t bandwidth = gr_model_bandwidth(&s->model);

	return bytes * GR_NS_PER_S > (unsigned __int128)bandwidth * s->model.harvest_ns;
}

int gr_source_look_again(struct gr_source *s, struct gr_error *err)
{
	uint64_t begin = gr_clock_ns(), deferred, now;
	struct gr_migrate_stats *stats;
	int rc = 0;

	if (begin < s->look_ns || !may_look(s) || !pays(s)) {
		return 0;
	}
	if (s->track) {
		rc = gr_track_sync(s->track, err);
	}
	if (rc < 0) {
		return rc;
	}
#ifdef GR_MUTANT_LOOK_CLEARS_BEHIND
	/* As if all of it were still to be sent in this round. */
	(void)gr_dirty_epoch_abort(s->consumer);
	(void)!gr_dirty_epoch_begin(s->consumer, NULL, NULL);
#endif
	deferred = gr_dirty_epoch_defer(s->consumer);
	s->waiting_pages += deferred;
	s->run_end = s->cursor; /* the run may have lost pages */
	now = gr_clock_ns();
	set_next_look(s, now, now - begin);
	stats = gr_progress_lock(&s->progress);
	stats->deferred_pages += deferred;
	gr_progress_unlock(&s->progress);
	return 0;
}

/* The guest is slowed down if that is wanted and needed. */
static void throttle(struct gr_source *s, uint64_t pages)
{
	unsigned int before = s->throttle.percent, percent;
	struct gr_migrate_stats *stats;

	if (!s->params.auto_converge) {
		return;
	}
	/* The first harvest is all there is, not what was dirtied. */
	percent = gr_throttle_harvest(&s->throttle, s->rounds > 1 ? pages * s->page_bytes : 0,
				      gr_source_bytes(s), gr_clock_ns());
	if (percent != before) {
		s->ops.throttle(s->ops.opaque, percent);
		stats = gr_progress_lock(&s->progress);
		stats->throttle_percent = percent;
		gr_progress_unlock(&s->progress);
	}
}

/* As QEMU: who waits for the destination's word waits for it whatever the rest. */
static bool may_switch(const struct gr_source *s)
{
#ifdef GR_MUTANT_SWITCH_WITHOUT_ACK
	(void)s;
	return true;
#else
	return !s->params.switchover_ack || s->switchover_acked;
#endif
}

/* Nothing to send: an empty section lets the destination look whether it is ready. */
static int wait_for_ack(struct gr_source *s, struct gr_error *err)
{
	int rc = 0;

	if (!s->section) {
		s->section = true;
		rc = gr_stream_write_section(s->writer, GR_SECTION_PART, err);
	}
	if (rc == 0) {
		rc = gr_source_close_section(s, err);
	}
	if (rc == 0) {
		rc = gr_stream_flush(s->writer, err);
	}
	return rc < 0 ? rc : gr_source_wait_slice(s, err);
}

/* A guest may be stopped that fits into the limit; if it soon stands still for much less, then. */
static bool switches(struct gr_source *s, uint64_t pages, uint64_t wire_bytes)
{
	if (pages == 0 || (s->params.rounds_max != 0 && s->rounds > s->params.rounds_max)) {
		return true;
	}
	if (!gr_model_fits(&s->model, pages, wire_bytes)) {
		return false;
	}
	return !gr_model_gains(&s->model, pages, wire_bytes) || s->gains++ == GR_SOURCE_GAINS;
}

int gr_source_next_round(struct gr_source *s, struct gr_error *err)
{
	struct gr_migrate_stats *stats;
	const uint64_t wire_bytes = s->page_bytes + sizeof(uint64_t);
	uint64_t pages, expected;
	int rc;

	if (s->epoch) {
		(void)gr_dirty_epoch_commit(s->consumer);
		s->epoch = false;
	}
	rc = gr_source_harvest(s, &pages, err);
	if (rc < 0) {
		return rc;
	}
	throttle(s, pages);
	expected = gr_model_downtime_ns(&s->model, pages, wire_bytes);
	stats = gr_progress_lock(&s->progress);
	stats->expected_downtime_ns = expected == UINT64_MAX ? 0 : expected;
	gr_progress_unlock(&s->progress);
	(void)gr_progress_tell(&s->progress, s->ops.progress, s->ops.opaque, true);
	s->phase = GR_SOURCE_ROUND;
	/* Rounds may be too short for who looks now and then. */
	if (!may_switch(s)) {
		rc = gr_source_check_peer(s, err);
		if (rc < 0) {
			return rc;
		}
	}
	/* The first harvest is everything there is: at least one round goes first. */
	if (s->rounds > 1 && !may_switch(s)) {
		return pages == 0 ? wait_for_ack(s, err) : 0;
	}
	if (s->rounds > 1 && switches(s, pages, wire_bytes)) {
		s->switch_next = true;
		/* To be sure of damage the fault sends these while the guest goes on writing. */
		if (s->params.fault != GR_FAULT_SKIP_FINAL_SYNC) {
			s->phase = GR_SOURCE_SWITCH;
		}
	}
	return 0;
}
