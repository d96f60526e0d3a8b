/* SPDX-License-Identifier: MIT */
#include "migrate/relay_channels.h"
#include "base/clock.h"
#include "base/log.h"
#include "base/signals.h"
#include <errno.h>
#include <inttypes.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>

enum {
	LAST_WORD_S = 1, /* for what a destination that goes has to say on the main channel */
	PAUSE_MS = 100,	 /* before the next one is accepted, where one could not be served */
};

bool gr_relay_channels_wait(struct gr_relay_channels *c, uint64_t until_ns)
{
	struct timespec until = gr_timespec_from_ns(until_ns);

	if (until_ns == UINT64_MAX) {
		gr_mutex_wait(&c->lock, &c->changed);
		return true;
	}
	return gr_mutex_wait_until(&c->lock, &c->changed, &until);
}

/* ---- errors ---------------------------------------------------------------------------- */

static void break_further_locked(struct gr_relay_channels *c) GR_REQUIRES(c->lock)
{
	c->stopped = true;
	for (unsigned int i = 0; i < RELAY_PLACES; i++) {
		if (c->places[i].from) {
			gr_channel_shutdown(c->places[i].from);
		}
		if (c->places[i].to) {
			gr_channel_shutdown(c->places[i].to);
		}
	}
	(void)pthread_cond_broadcast(&c->changed);
}

/* Of the main channel nothing more is read; who still writes to it, or hears, has a last moment. */
static void break_main_locked(struct gr_relay_channels *c) GR_REQUIRES(c->lock)
{
	uint64_t until = gr_clock_ns() + LAST_WORD_S * GR_NS_PER_S;
	bool in_time = true;

	if (!c->main) {
		return;
	}
	gr_channel_end_reading(c->main);
	while (!c->main_ended && in_time) {
		in_time = gr_relay_channels_wait(c, until);
	}
	if (!c->main_ended) {
		gr_channel_shutdown(c->main);
		if (c->to) {
			gr_channel_shutdown(c->to);
		}
	}
}

/* Keeps the first error; err is complete. */
static void fail(struct gr_relay_channels *c, int rc, bool to_failed, const struct gr_error *err)
{
	gr_mutex_lock(&c->lock);
	if (!c->stopped) {
		c->error = *err;
		c->error.code = rc;
		c->to_failed = to_failed;
		break_further_locked(c);
		break_main_locked(c);
	}
	gr_mutex_unlock(&c->lock);
}

/* ---- who comes ------------------------------------------------------------------------- */

static void *channel_main(void *opaque)
{
	struct gr_relay_channel *ch = opaque;
	struct gr_relay_channels *c = ch->all;
	struct gr_error err = { 0 };
	int rc = gr_relay_channel_run(ch, &err);

	if (rc < 0 && ch->scan.greeted) {
		gr_error_prefix(&err, "multifd channel %u: ", ch->scan.id);
	}
	if (rc < 0) {
		fail(c, rc, ch->to_failed, &err);
	}
	gr_mutex_lock(&c->lock);
	if (!ch->further && ch->from) { /* a stranger */
		(void)gr_channel_close(ch->from, NULL);
		ch->from = NULL;
	}
	ch->ended = true;
	(void)pthread_cond_broadcast(&c->changed);
	gr_mutex_unlock(&c->lock);
	return NULL;
}

static void join(struct gr_relay_channel *ch)
{
	if (ch->started) {
		(void)pthread_join(ch->thread, NULL);
		ch->started = false;
	}
}

/* NULL: stopped, or to be cancelled. Strangers give their places back; more channels than a source
 * can have are refused before. */
static struct gr_relay_channel *find_place(struct gr_relay_channels *c)
{
	int wake_fd = gr_channel_listener_wake_fd(c->listener);
	struct gr_relay_channel *ch = NULL;

	gr_mutex_lock(&c->lock);
	while (!ch && !c->stopped) {
		for (unsigned int i = 0; !ch && i < RELAY_PLACES; i++) {
			struct gr_relay_channel *p = &c->places[i];

			ch = !p->in_use || (p->ended && !p->further) ? p : NULL;
		}
		if (!ch && gr_channel_poll(-1, 0, wake_fd, 0) == -ECANCELED) {
			break; /* nobody but us hears it now */
		}
		if (!ch) {
			(void)gr_relay_channels_wait(c, gr_clock_ns() + PAUSE_MS * GR_NS_PER_MS);
		}
	}
	gr_mutex_unlock(&c->lock);
	return ch;
}

static int start_channel(struct gr_relay_channels *c, struct gr_channel *from, struct gr_error *err)
{
	struct gr_relay_channel *ch = find_place(c);
	struct gr_signals saved;
	int rc;

	if (!ch) {
		(void)gr_channel_close(from, NULL);
		return gr_error_set(err, -ECANCELED, "%s: listening was ended",
				    gr_channel_listener_uri(c->listener));
	}
	join(ch);
	gr_mutex_lock(&c->lock);
	memset(ch, 0, sizeof(*ch));
	ch->all = c;
	ch->in_use = true;
	ch->from = from;
	if (c->stopped) {
		gr_channel_shutdown(from); /* what is there already has been */
	}
	gr_mutex_unlock(&c->lock);
	gr_signals_block(&saved); /* the program's handlers are not for these threads */
	rc = pthread_create(&ch->thread, NULL, channel_main, ch);
	gr_signals_restore(&saved);
	ch->started = rc == 0;
	if (rc == 0) {
		return 0;
	}
	gr_mutex_lock(&c->lock);
	ch->in_use = false;
	ch->from = NULL;
	gr_mutex_unlock(&c->lock);
	(void)gr_channel_close(from, NULL);
	return gr_error_set(err, -rc, "cannot make a thread: %s", strerror(rc));
}

static void set_arriving(struct gr_relay_channels *c, bool arriving)
{
	gr_mutex_lock(&c->lock);
	c->arriving = arriving;
	(void)pthread_cond_broadcast(&c->changed);
	gr_mutex_unlock(&c->lock);
}

/* At any moment who has come is in the listener's queue, arriving, or in a place. */
static int accept_one(struct gr_relay_channels *c, struct gr_error *err)
{
	struct gr_channel *from;
	int rc = gr_channel_listener_wait(c->listener, -1, err);

	if (rc < 0) {
		return rc;
	}
	set_arriving(c, true);
	rc = gr_channel_accept(c->listener, &from, err);
	if (rc == 0) {
		rc = start_channel(c, from, err);
	}
	set_arriving(c, false);
	return rc;
}

/*
 * Descriptors or memory may be short for a while, and whom they are short for may be a stranger. If
 * it was one of the migration's it will be missed where all meet.
 */
static bool goes_on(struct gr_relay_channels *c, int rc, const struct gr_error *err)
{
	bool has_main;

	gr_mutex_lock(&c->lock);
	has_main = c->main != NULL;
	gr_mutex_unlock(&c->lock);
#ifdef GR_MUTANT_RELAY_STRANGER_ENDS_ALL
	has_main = false;
#endif
	if (rc == -ECANCELED || !has_main) {
		return false;
	}
	gr_log(GR_LOG_WARN, "turned away: %s", err->msg);
	(void)gr_channel_poll(-1, 0, gr_channel_listener_wake_fd(c->listener), PAUSE_MS);
	return true;
}

static void *accept_main(void *opaque)
{
	struct gr_relay_channels *c = opaque;
	struct gr_error err = { 0 };
	int rc;

	do {
		rc = accept_one(c, &err);
	} while (rc == 0 || goes_on(c, rc, &err));
	fail(c, rc, false, &err);
	return NULL;
}

/* ---- the main thread ------------------------------------------------------------------- */

static void init_changed(struct gr_relay_channels *c)
{
	pthread_condattr_t attr;

	(void)pthread_condattr_init(&attr);
	(void)pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
	(void)pthread_cond_init(&c->changed, &attr);
	(void)pthread_condattr_destroy(&attr);
}

int gr_relay_channels_start(struct gr_relay_channels *c, struct gr_channel_listener *l,
			    const char *to_uri, uint64_t limit_ns, struct gr_error *err)
{
	struct gr_signals saved;
	struct gr_uri uri;
	int rc = gr_uri_parse(to_uri, &uri, err);

	memset(c, 0, sizeof(*c));
	if (rc < 0) {
		return rc;
	}
	c->to_many = gr_uri_is_socket(&uri);
	gr_uri_destroy(&uri);
	c->listener = l;
	c->to_uri = to_uri;
	c->limit_ns = limit_ns;
	c->places = calloc(RELAY_PLACES, sizeof(c->places[0]));
	if (!c->places) {
		return gr_error_set(err, -ENOMEM, "no memory for channels");
	}
	gr_mutex_init(&c->lock, GR_RANK_MIGRATE);
	init_changed(c);
	gr_signals_block(&saved);
	rc = pthread_create(&c->acceptor, NULL, accept_main, c);
	gr_signals_restore(&saved);
	if (rc != 0) {
		(void)gr_relay_channels_close(c, NULL);
		return gr_error_set(err, -rc, "cannot make a thread: %s", strerror(rc));
	}
	return 0;
}

static int error_locked(struct gr_relay_channels *c, struct gr_error *err) GR_REQUIRES(c->lock)
{
	if (c->error.code < 0 && err) {
		*err = c->error;
	}
	return c->error.code;
}

int gr_relay_channels_main(struct gr_relay_channels *c, struct gr_error *err)
{
	struct gr_channel *to = NULL;
	int rc;

	gr_mutex_lock(&c->lock);
	while (!c->main && !c->stopped) {
		gr_mutex_wait(&c->lock, &c->changed);
	}
	rc = error_locked(c, err);
	gr_mutex_unlock(&c->lock);
	rc = rc < 0 ? rc : gr_channel_connect(c->to_uri, &to, err);
	if (rc < 0) {
		return rc;
	}
	gr_mutex_lock(&c->lock);
	c->to = to;
	c->connected = true;
	rc = error_locked(c, err);
	(void)pthread_cond_broadcast(&c->changed);
	gr_mutex_unlock(&c->lock);
	return rc;
}

void gr_relay_channels_set_page_bytes(struct gr_relay_channels *c, uint32_t page_bytes)
{
	gr_mutex_lock(&c->lock);
	c->page_bytes = page_bytes;
	(void)pthread_cond_broadcast(&c->changed);
	gr_mutex_unlock(&c->lock);
}

int gr_relay_channels_meet(struct gr_relay_channels *c, bool at_eos, struct gr_error *err)
{
	int rc = 0;

	if (at_eos && c->flushes) {
		return 0;
	}
	c->flushes |= !at_eos;
	gr_mutex_lock(&c->lock);
	c->meetings++;
	for (unsigned int i = 0; rc == 0 && i < RELAY_PLACES; i++) {
		const struct gr_relay_channel *ch = &c->places[i];

		if (ch->further && ch->ended && ch->syncs < c->meetings) {
			rc = gr_error_set(err, -EPIPE,
					  "multifd channel %u: byte %" PRIu64
					  ": the source has closed it before the end",
					  (unsigned int)ch->greeting.id, ch->passed);
		}
	}
	gr_mutex_unlock(&c->lock);
	return rc;
}

void gr_relay_channels_over(struct gr_relay_channels *c)
{
	gr_mutex_lock(&c->lock);
	c->over = true;
	gr_mutex_unlock(&c->lock);
}

static void totals_locked(struct gr_relay_channels *c, struct gr_relay_totals *t)
	GR_REQUIRES(c->lock)
{
	*t = (struct gr_relay_totals){ 0 };
	for (unsigned int i = 0; i < RELAY_PLACES; i++) {
		t->bytes += c->places[i].passed;
		t->normal_pages += c->places[i].normal_pages;
		t->zero_pages += c->places[i].zero_pages;
	}
}

void gr_relay_channels_totals(struct gr_relay_channels *c, struct gr_relay_totals *ret_totals)
{
	*ret_totals = (struct gr_relay_totals){ 0 };
	if (c->places) {
		gr_mutex_lock(&c->lock);
		totals_locked(c, ret_totals);
		gr_mutex_unlock(&c->lock);
	}
}

/* A further channel that is not through; silent: that waits for its source. */
static const struct gr_relay_channel *open_one_locked(const struct gr_relay_channels *c,
						      bool silent) GR_REQUIRES(c->lock)
{
	for (unsigned int i = 0; i < RELAY_PLACES; i++) {
		const struct gr_relay_channel *ch = &c->places[i];

		bool counts = !silent || !ch->writing;

#ifdef GR_MUTANT_RELAY_HURRIES_THE_DESTINATION
		counts = true;
#endif
		if (ch->further && !ch->ended && counts) {
			return ch;
		}
	}
	return NULL;
}

/* Somebody who has come may turn out to be a further channel. */
static bool may_be_more_locked(const struct gr_relay_channels *c) GR_REQUIRES(c->lock)
{
#ifdef GR_MUTANT_RELAY_FORGETS_WHO_CAME
	return false;
#endif
	if (c->arriving ||
	    gr_channel_poll(gr_channel_listener_fd(c->listener), POLLIN, -1, 0) == 0) {
		return true;
	}
	for (unsigned int i = 0; i < RELAY_PLACES; i++) {
		if (c->places[i].in_use && !c->places[i].ended) {
			return true;
		}
	}
	return false;
}

/* Nothing has moved for as long as the limit. 0: a destination that is slow; 1: nobody is left but
 * who has not said what it is. */
static int judge_locked(const struct gr_relay_channels *c, struct gr_error *err)
	GR_REQUIRES(c->lock)
{
	const struct gr_relay_channel *silent = open_one_locked(c, true);

	if (silent) {
		return gr_error_set(
			err, -ETIMEDOUT,
			"multifd channel %u: the source has closed the main channel and "
			"not this one",
			(unsigned int)silent->greeting.id);
	}
	return open_one_locked(c, false) ? 0 : 1;
}

int gr_relay_channels_drain(struct gr_relay_channels *c, struct gr_error *err)
{
	struct gr_relay_totals before, now;
	int rc = 0;

#ifdef GR_MUTANT_RELAY_DOES_NOT_DRAIN
	return 0;
#endif
	gr_mutex_lock(&c->lock);
	totals_locked(c, &now);
	while (rc == 0 && !c->stopped && (open_one_locked(c, false) || may_be_more_locked(c))) {
		/* As long as something moves it may take what it takes. */
		bool in_time = gr_relay_channels_wait(c, gr_clock_ns() + c->limit_ns);

		before = now;
		totals_locked(c, &now);
		if (!in_time && now.bytes == before.bytes) {
			rc = judge_locked(c, err);
		}
	}
	rc = rc < 0 ? rc : error_locked(c, err);
	gr_mutex_unlock(&c->lock);
	return rc;
}

void gr_relay_channels_refused(struct gr_relay_channels *c)
{
	gr_mutex_lock(&c->lock);
	c->refused = c->error.code == 0 || c->to_failed;
#ifdef GR_MUTANT_RELAY_BLAMES_THE_DESTINATION
	c->refused = true;
#endif
	gr_mutex_unlock(&c->lock);
}

void gr_relay_channels_main_failed(struct gr_relay_channels *c)
{
	gr_mutex_lock(&c->lock);
	c->stopped = true;
	(void)pthread_cond_broadcast(&c->changed);
	gr_mutex_unlock(&c->lock);
}

int gr_relay_channels_failed(struct gr_relay_channels *c, struct gr_error *err)
{
	int rc;

	gr_mutex_lock(&c->lock);
	rc = c->refused ? 0 : error_locked(c, err);
	gr_mutex_unlock(&c->lock);
	return rc;
}

/* Who still passes something on is not needed any more. */
static void stop_waiting_locked(struct gr_relay_channels *c) GR_REQUIRES(c->lock)
{
	c->stopped = true;
	for (unsigned int i = 0; i < RELAY_PLACES; i++) {
		if (c->places[i].from) {
			gr_channel_stop_waiting(c->places[i].from);
		}
		if (c->places[i].to) {
			gr_channel_stop_waiting(c->places[i].to);
		}
	}
	(void)pthread_cond_broadcast(&c->changed);
}

void gr_relay_channels_end(struct gr_relay_channels *c, bool well)
{
	gr_mutex_lock(&c->lock);
	c->main_ended = true;
	if (well) {
		stop_waiting_locked(c);
	} else {
		break_further_locked(c);
	}
	gr_mutex_unlock(&c->lock);
	gr_channel_listener_shutdown(c->listener);
	(void)pthread_join(c->acceptor, NULL);
	for (unsigned int i = 0; i < RELAY_PLACES; i++) {
		join(&c->places[i]);
	}
}

int gr_relay_channels_close(struct gr_relay_channels *c, struct gr_error *err)
{
	int rc;

	if (!c->places) {
		return 0;
	}
	for (unsigned int i = 0; i < RELAY_PLACES; i++) {
		(void)gr_channel_close(c->places[i].to, NULL);
		(void)gr_channel_close(c->places[i].from, NULL);
	}
	rc = gr_channel_close(c->to, err);
	(void)gr_channel_close(c->main, NULL);
	free(c->places);
	(void)pthread_cond_destroy(&c->changed);
	gr_mutex_destroy(&c->lock);
	return rc;
}
