/* SPDX-License-Identifier: MIT */
/*
 * The relay. One thread passes the stream on; once the source has asked for answers another one
 * passes these back, until the destination says SHUT, which is the last: then the stream is over,
 * whatever the tail looks like (who loads the devices knows where it ends, we do not). The first
 * that fails breaks both channels, so that nobody waits for the other.
 */
#include "migrate/relay.h"
#include "base/atomic.h"
#include "base/clock.h"
#include "base/signals.h"
#include "migrate/relay_channels.h"
#include "stream/copy.h"
#include "stream/return_path.h"
#include "stream/tail.h"
#include <errno.h>
#include <guestram/relay.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

/* For a first byte of whoever connects, and for the main channel once another one has come. */
#define LIMIT_NS (60 * GR_NS_PER_S)

enum {
	PROGRESS_NS = 100000000,
	LAST_WORD_S = 1, /* for what a destination that is gone has said before */
};

struct relay {
	struct gr_channel *from, *to;	   /* the main channel's */
	struct gr_relay_channels *further; /* NULL: there are none */
	struct gr_stream_copy copy;
	struct gr_tail tail;
	struct gr_migrate_stats stats;
	const struct gr_relay_params *params;
	uint64_t began_ns, shown_ns;
	/* the thread of the answers */
	pthread_t thread;
	bool answers;	   /* there is one */
	uint32_t finished; /* (a) the destination has everything */
	uint32_t in_tail;  /* (a) */
	uint32_t refused;  /* (a) the destination has said that it failed */
	bool own;	   /* what went wrong went wrong here or at the source, and first */
	int answers_rc;
	struct gr_error answers_err;
};

static void break_both(struct relay *r)
{
	gr_channel_shutdown(r->from);
	gr_channel_shutdown(r->to);
}

static int judge(struct relay *r, uint32_t value, struct gr_error *err)
{
	if (value != 0) {
		return gr_error_set(err, -EREMOTEIO,
				    "the destination has failed (it says %u); see its own messages",
				    value);
	}
	if (!gr_load_acquire(&r->in_tail)) {
		return gr_error_set(
			err, -EBADMSG,
			"the destination says that it has everything before it was sent");
	}
	gr_store_release(&r->finished, 1u);
	gr_channel_shutdown(r->from); /* the other thread need not wait for more */
	return 0;
}

/* From now on whatever fails may come of it. */
static void note_refusal(struct relay *r)
{
	gr_store_release(&r->refused, 1u); /* pairs with has_failed() */
	if (r->further) {
		gr_relay_channels_refused(r->further);
	}
}

static int pass_answers(struct relay *r, struct gr_error *err)
{
	struct gr_return_path_reader reader = { 0 };
	struct gr_return_path_message msg;
	int rc;

	while ((rc = gr_return_path_next(&reader, r->to, &msg, err)) > 0) {
		/* Ours would take it for leave to change the blocks. */
#ifndef GR_MUTANT_RELAY_PASSES_FEATURES
		if (msg.type == GR_RETURN_FEATURES) {
			continue;
		}
#endif
		if (msg.type == GR_RETURN_SHUT && msg.value != 0) {
			note_refusal(r); /* before the source acts on it */
		}
		rc = gr_return_path_write(r->from, &msg, err);
		if (rc < 0) {
			return rc;
		}
		if (msg.type == GR_RETURN_SHUT) {
			return judge(r, msg.value, err);
		}
	}
	return rc < 0 ? rc : gr_error_set(err, -EPIPE, "the destination has closed the connection");
}

static void *answers_main(void *opaque)
{
	struct relay *r = opaque;

	r->answers_rc = pass_answers(r, &r->answers_err);
	if (r->answers_rc < 0) {
		break_both(r);
	}
	return NULL;
}

static int start_answers(struct relay *r, struct gr_error *err)
{
	struct gr_signals saved;
	int rc;

	if (r->answers) {
		return 0;
	}
	if (!gr_channel_is_duplex(r->to) || !gr_channel_is_duplex(r->from)) {
		return gr_error_set(err, -ENOTSUP,
				    "the source asks for answers (capability return-path), which "
				    "%s cannot carry",
				    gr_channel_name(gr_channel_is_duplex(r->to) ? r->from : r->to));
	}
	gr_signals_block(&saved); /* the program's handlers are not for this thread */
	rc = pthread_create(&r->thread, NULL, answers_main, r);
	gr_signals_restore(&saved);
	if (rc != 0) {
		return gr_error_set(err, -rc, "cannot make a thread: %s", strerror(rc));
	}
	r->answers = true;
	return 0;
}

static void update_stats(struct relay *r)
{
	struct gr_relay_totals further = { 0 };

	if (r->further) {
		gr_relay_channels_totals(r->further, &further);
	}
	r->stats.transferred_bytes = gr_stream_writer_bytes(r->copy.writer) + further.bytes;
	r->stats.normal_pages = r->copy.normal_pages + further.normal_pages;
	r->stats.zero_pages = r->copy.zero_pages + further.zero_pages;
	r->stats.xbzrle_pages = r->copy.xbzrle_pages;
	r->stats.total_time_ns = gr_clock_ns() - r->began_ns;
	r->stats.bandwidth_bytes_per_s = (uint64_t)((double)r->stats.transferred_bytes * 1e9 /
						    (double)(r->stats.total_time_ns + 1));
}

static void show(struct relay *r)
{
	uint64_t now = gr_clock_ns();

	if (r->params->progress && now - r->shown_ns >= PROGRESS_NS) {
		r->shown_ns = now;
		update_stats(r);
		r->params->progress(r->params->opaque, &r->stats);
	}
}

/*
 * What the destination must see before the source goes on. Where further channels meet both wait
 * for it: the destination's stand still, and so may the source's, until the main channel has said
 * so.
 */
static bool is_to_be_seen(const struct gr_stream_record *rec)
{
#ifndef GR_MUTANT_RELAY_HOLDS_MEETINGS
	if (rec->kind == GR_STREAM_FLUSH) {
		return true;
	}
#endif
	return rec->kind == GR_STREAM_COMMAND || rec->kind == GR_STREAM_EOS ||
	       rec->kind == GR_STREAM_TAIL;
}

/* Before it is passed on: what comes back may be faster than we are. */
static int note_record(struct relay *r, const struct gr_stream_record *rec, struct gr_error *err)
{
	if (rec->kind == GR_STREAM_TAIL) {
		gr_store_release(&r->in_tail, 1u);
	}
	if (!r->further) {
		return 0;
	}
	if (rec->kind == GR_STREAM_CONFIG) {
		gr_relay_channels_set_page_bytes(r->further, rec->config.page_bytes);
	}
	if (rec->kind == GR_STREAM_TAIL) {
		gr_relay_channels_over(r->further);
	}
	return rec->kind == GR_STREAM_FLUSH
		       ? gr_relay_channels_meet(r->further, rec->flush.at_eos, err)
		       : 0;
}

/*
 * Something has failed that is not a write to the destination. What the destination says later
 * comes of that: it notices that there is no more.
 */
static int has_failed(struct relay *r, int rc)
{
	r->own = !gr_load_acquire(&r->refused); /* pairs with note_refusal() */
#ifdef GR_MUTANT_RELAY_BLAMES_THE_DESTINATION
	r->own = false;
#endif
	return rc;
}

static int pass_record(struct relay *r, const struct gr_stream_record *rec, struct gr_error *err)
{
	int rc = note_record(r, rec, err);

	if (rc < 0) {
		return has_failed(r, rc);
	}
	rc = gr_stream_copy_record(&r->copy, rec, err);
	if (rc < 0) {
		return rc;
	}
	if (rec->kind == GR_STREAM_TAIL && !r->params->allow_unterminated) {
		rc = gr_tail_append(&r->tail, rec->tail.data, rec->tail.bytes, err);
	}
	if (rc == 0 && rec->kind == GR_STREAM_COMMAND &&
	    rec->command.command == GR_COMMAND_OPEN_RETURN_PATH) {
		rc = start_answers(r, err);
	}
	if (rec->kind == GR_STREAM_BLOCKS) {
		r->stats.total_bytes = rec->blocks.total_bytes;
	}
	r->stats.rounds += rec->kind == GR_STREAM_EOS && rec->eos.section != GR_SECTION_START;
	if (rc < 0) {
		return has_failed(r, rc);
	}
	return is_to_be_seen(rec) ? gr_stream_flush(r->copy.writer, err) : 0;
}

static int pass_stream(struct relay *r, struct gr_error *err)
{
	struct gr_stream_record rec;
	int rc;

	while ((rc = gr_stream_next(r->copy.reader, &rec, err)) > 0) {
		rc = pass_record(r, &rec, err);
		if (rc < 0) {
			/* If it is gone, it may have said why. */
			gr_channel_end_writing(r->to);
			return rc;
		}
		show(r);
	}
	if (rc == 0 && !r->params->allow_unterminated) {
		rc = gr_tail_finish(&r->tail, false, err);
	}
	return rc < 0 ? has_failed(r, rc) : gr_stream_flush(r->copy.writer, err);
}

/* What the destination says weighs more than that it cannot be written to, and nothing else. */
static int end_answers(struct relay *r, int rc, struct gr_error *err)
{
	struct timespec until;
	bool ended = false;

	if (rc < 0) {
		(void)clock_gettime(CLOCK_REALTIME, &until);
		until.tv_sec += LAST_WORD_S;
		ended = pthread_timedjoin_np(r->thread, NULL, &until) == 0;
		break_both(r);
	}
	if (!ended) {
		(void)pthread_join(r->thread, NULL);
	}
	if (r->finished) {
		return 0;
	}
	if (rc == 0 || rc == -ECANCELED || (r->answers_rc == -EREMOTEIO && !r->own)) {
		rc = r->answers_rc;
		if (err) {
			*err = r->answers_err;
		}
	}
	return rc;
}

static int pass_all(struct relay *r, struct gr_error *err)
{
	struct gr_stream_source source = gr_stream_source_channel(r->from);
	int rc = gr_stream_reader_create(&source, &r->copy.reader, err);

	if (rc == 0) {
		gr_stream_reader_allow_ignore_shared(
			r->copy.reader); /* for the destination to judge */
	}
	if (rc == 0 && r->further) {
		gr_stream_reader_allow_flush(r->copy.reader);
	}
	rc = rc < 0 ? rc : gr_stream_writer_create(r->to, &r->copy.writer, err);
	rc = rc < 0 ? rc : pass_stream(r, err);
	if (rc < 0 && r->further) {
		gr_relay_channels_main_failed(r->further);
	}
	if (r->answers) {
		return end_answers(r, rc, err);
	}
	if (rc < 0) {
		break_both(r);
	}
	return rc;
}

static int check_params(struct relay *r, const struct gr_relay_params *params, struct gr_error *err)
{
	static const struct gr_relay_params none = { .size = sizeof(none) };

	r->params = params ? params : &none;
	if (r->params->size != sizeof(*params)) {
		return gr_error_set(err, -EINVAL, "parameters of another version");
	}
	gr_tail_init(&r->tail, 0);
	r->began_ns = r->shown_ns = gr_clock_ns();
	return 0;
}

static void end(struct relay *r, int rc, struct gr_migrate_stats *ret_stats)
{
	if (rc == 0 && ret_stats) {
		r->stats.state = GR_MIGRATE_COMPLETED;
		update_stats(r);
		*ret_stats = r->stats;
	}
	gr_tail_destroy(&r->tail);
	gr_stream_writer_free(r->copy.writer);
	gr_stream_reader_free(r->copy.reader);
}

int gr_relay(struct gr_channel *from, struct gr_channel *to, const struct gr_relay_params *params,
	     struct gr_migrate_stats *ret_stats, struct gr_error *err)
{
	struct relay r = { .from = from, .to = to };
	int rc;

	if (!from || !to) {
		return gr_error_set(err, -EINVAL, "no channel");
	}
	rc = check_params(&r, params, err);
	if (rc < 0) {
		return rc;
	}
	rc = pass_all(&r, err);
	end(&r, rc, ret_stats);
	return rc;
}

/* What went wrong on a further channel is the reason for what went wrong on the main one. */
static int pass_all_channels(struct relay *r, struct gr_error *err)
{
	int rc = gr_relay_channels_main(r->further, err);

	if (rc < 0) {
		return rc;
	}
	r->from = r->further->main;
	r->to = r->further->to;
	r->began_ns = gr_clock_ns();
	rc = pass_all(r, err);
	if (rc == 0 && !r->finished) {
		rc = gr_relay_channels_drain(r->further, err);
	} else if (rc < 0) {
		int further = gr_relay_channels_failed(r->further, err);

		rc = further < 0 ? further : rc;
	}
	return rc;
}

int gr_relay_serve_within(struct gr_channel_listener *listener, const char *to_uri,
			  uint64_t limit_ns, const struct gr_relay_params *params,
			  struct gr_migrate_stats *ret_stats, struct gr_error *err)
{
	struct gr_relay_channels further;
	struct relay r = { .further = &further };
	int rc, to_rc;

	if (!listener || !to_uri || gr_channel_listener_fd(listener) < 0) {
		return gr_error_set(err, -EINVAL, "no listener at tcp: or unix:, or nowhere to go");
	}
	rc = check_params(&r, params, err);
	rc = rc < 0 ? rc : gr_relay_channels_start(&further, listener, to_uri, limit_ns, err);
	if (rc < 0) {
		return rc;
	}
	rc = pass_all_channels(&r, err);
	gr_relay_channels_end(&further, rc == 0);
	end(&r, rc, ret_stats);
	to_rc = gr_relay_channels_close(&further, rc == 0 ? err : NULL);
	return rc < 0 ? rc : to_rc;
}

int gr_relay_serve(struct gr_channel_listener *listener, const char *to_uri,
		   const struct gr_relay_params *params, struct gr_migrate_stats *ret_stats,
		   struct gr_error *err)
{
	return gr_relay_serve_within(listener, to_uri, LIMIT_NS, params, ret_stats, err);
}
