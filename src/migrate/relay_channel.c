/* SPDX-License-Identifier: MIT */
/* One connection of a source's: what it is, and its bytes if it is a further channel. */
#include "base/clock.h"
#include "base/log.h"
#include "migrate/relay_channels.h"
#include <errno.h>
#include <inttypes.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>

static int cancelled(struct gr_error *err)
{
	return gr_error_set(err, -ECANCELED, "cancelled");
}

/* Strangers do not end a migration that is under way; they are no channel of it. */
static int turn_away(const char *why)
{
	gr_log(GR_LOG_WARN, "turned away: %s", why);
	return 0;
}

/* ---- before its first byte is passed on ------------------------------------------------ */

static int give_main(struct gr_relay_channel *ch)
{
	struct gr_relay_channels *c = ch->all;
	bool first;

	gr_mutex_lock(&c->lock);
	first = !c->main;
#ifdef GR_MUTANT_RELAY_SECOND_SOURCE
	first = true;
#endif
	if (first) {
		c->main = ch->from;
		ch->from = NULL;
		(void)pthread_cond_broadcast(&c->changed);
	}
	gr_mutex_unlock(&c->lock);
	return first ? 0 : turn_away("a second source's main channel");
}

/* Whoever has come has said it is a further one: all of the greeting, in time. */
static int read_greeting(struct gr_relay_channel *ch, struct gr_error *err)
{
	uint64_t until = gr_clock_ns() + ch->all->limit_ns;

	while (!ch->scan.greeted) {
		uint8_t *to = ch->hello + ch->scan.bytes;
		struct iovec iov = { to, gr_multifd_scan_room(&ch->scan, sizeof(ch->hello)) };
		uint64_t now = gr_clock_ns();
		uint64_t ms = now < until ? (until - now) / GR_NS_PER_MS : 0;
		ssize_t got;
		int rc = gr_channel_poll(gr_channel_fd(ch->from), POLLIN, ch->from->wake_fd,
					 (int)ms);

		if (rc < 0) {
			return gr_error_set(err, rc, "a greeting that does not end: %s",
					    strerror(-rc));
		}
		got = gr_channel_readv(ch->from, &iov, 1, err);
		if (got <= 0) {
			return got < 0 ? (int)got : gr_multifd_scan_end(&ch->scan, err);
		}
		rc = gr_multifd_scan(&ch->scan, to, (size_t)got, err);
		if (rc < 0) {
			return rc;
		}
	}
	return 0;
}

/* Gives back the place of one whose source has gone, of an attempt that came to nothing. */
static bool drop_gone_locked(struct gr_relay_channels *c, struct gr_relay_channel *ch)
	GR_REQUIRES(c->lock)
{
#ifdef GR_MUTANT_RELAY_KEEPS_THE_DEAD
	return false;
#endif
	if (ch->further && !ch->admitted && !c->stopped && gr_multifd_has_gone(ch->from)) {
		ch->further = false;
		c->further--;
		(void)pthread_cond_broadcast(&c->changed);
	}
	return !ch->further;
}

/* Why it cannot be one of those that are there; NULL: it can. */
static const char *clash_locked(struct gr_relay_channels *c, const struct gr_multifd_greeting *g)
	GR_REQUIRES(c->lock)
{
#ifdef GR_MUTANT_RELAY_TAKES_ANY_GREETING
	return NULL;
#endif
	for (unsigned int i = 0; i < RELAY_PLACES; i++) {
		struct gr_relay_channel *other = &c->places[i];

		if (!other->further || drop_gone_locked(c, other)) {
			continue;
		}
		if (memcmp(other->greeting.uuid, g->uuid, sizeof(g->uuid)) != 0) {
			return "a further channel of another machine";
		}
		if (other->greeting.id == g->id) {
			return "a further channel with a number that is taken";
		}
	}
	return NULL;
}

/* 1: it is one of the migration's; 0: turned away. */
static int enter(struct gr_relay_channel *ch, struct gr_error *err)
{
	struct gr_relay_channels *c = ch->all;
	struct gr_multifd_greeting g;
	bool too_many = false;
	const char *clash;
	int rc = gr_multifd_greeting_parse(ch->hello, &g, err);

	if (rc < 0) {
		return rc;
	}
	gr_mutex_lock(&c->lock);
	clash = clash_locked(c, &g);
	if (!clash) {
		ch->greeting = g;
		ch->further = true;
		too_many = ++c->further > GR_MULTIFD_CHANNELS_MAX;
	}
	gr_mutex_unlock(&c->lock);
	if (too_many) {
		return gr_error_set(err, -E2BIG, "the source has more than %d further channels",
				    GR_MULTIFD_CHANNELS_MAX);
	}
	return clash ? turn_away(clash) : 1;
}

/* Waits for the main channel to be connected. 1: it is; 0: nobody waits any more. */
static int await_main(struct gr_relay_channel *ch, struct gr_error *err)
{
	struct gr_relay_channels *c = ch->all;
	uint64_t until = gr_clock_ns() + c->limit_ns;
	bool in_time = true, stopped, gone;

	gr_mutex_lock(&c->lock);
#ifndef GR_MUTANT_RELAY_FURTHER_FIRST
	while (ch->further && !c->connected && !c->stopped && in_time) {
		in_time = gr_relay_channels_wait(c, c->main ? UINT64_MAX : until) || c->main;
	}
#endif
	stopped = c->stopped;
	gone = drop_gone_locked(c, ch);
	ch->admitted = !gone;
	gr_mutex_unlock(&c->lock);
	if (stopped) {
		return cancelled(err);
	}
	if (gone || in_time) {
		return !gone;
	}
	return gr_error_set(err, -ETIMEDOUT, "it has come, but in %" PRIu64 " ms no main channel",
			    c->limit_ns / (uint64_t)GR_NS_PER_MS);
}

static int connect_further(struct gr_relay_channel *ch, struct gr_error *err)
{
	struct gr_relay_channels *c = ch->all;
	struct gr_channel *to;
	bool stopped;
	int rc;

#ifndef GR_MUTANT_RELAY_OPENS_AGAIN
	if (!c->to_many) {
		return gr_error_set(err, -EINVAL,
				    "%s: further channels need a socket: tcp: or unix:", c->to_uri);
	}
#endif
	rc = gr_channel_connect(c->to_uri, &to, err);
	if (rc < 0) {
		ch->to_failed = true;
		return rc;
	}
	gr_mutex_lock(&c->lock);
	stopped = c->stopped;
	ch->to = to; /* from now on whoever breaks the channels breaks this one, too */
	gr_mutex_unlock(&c->lock);
	return stopped ? cancelled(err) : 0;
}

/* ---- its bytes ------------------------------------------------------------------------- */

/* Headers are as long as pages are short: that the main channel says. */
static int await_page_bytes(struct gr_relay_channel *ch, struct gr_error *err)
{
	struct gr_relay_channels *c = ch->all;
	bool stopped;

	gr_mutex_lock(&c->lock);
	while (c->page_bytes == 0 && !c->stopped) {
		gr_mutex_wait(&c->lock, &c->changed);
	}
	ch->scan.page_bytes = c->page_bytes;
	stopped = c->stopped;
	gr_mutex_unlock(&c->lock);
	return stopped ? cancelled(err) : 0;
}

static void count(struct gr_relay_channel *ch)
{
	struct gr_relay_channels *c = ch->all;

	gr_mutex_lock(&c->lock);
	ch->writing = false;
	ch->passed = ch->scan.bytes;
	ch->normal_pages = ch->scan.normal_pages;
	ch->zero_pages = ch->scan.zero_pages;
	ch->syncs = ch->scan.syncs;
	gr_mutex_unlock(&c->lock);
}

static void begin_writing(struct gr_relay_channel *ch)
{
	gr_mutex_lock(&ch->all->lock);
	ch->writing = true;
	gr_mutex_unlock(&ch->all->lock);
}

static bool is_over(struct gr_relay_channel *ch)
{
	bool over;

	gr_mutex_lock(&ch->all->lock);
	over = ch->all->over;
	gr_mutex_unlock(&ch->all->lock);
	return over;
}

/*
 * A destination closes a further channel when it has what it needs. A QEMU 7.2 may have an empty
 * packet to send yet, and takes it for a failure if nobody reads that: it is read, and goes
 * nowhere. What brings pages, or a SYNC, must have been written.
 */
static int put(struct gr_relay_channel *ch, const uint8_t *data, size_t n, struct gr_error *err)
{
	bool needed;
	int rc = 0;

	begin_writing(ch);
	if (!ch->deaf) {
		rc = gr_channel_write_all(ch->to, data, n, err);
		ch->deaf = rc < 0 && rc != -ECANCELED && is_over(ch);
	}
	needed = ch->scan.needed > gr_channel_bytes_written(ch->to);
#ifdef GR_MUTANT_RELAY_LOSES_PACKETS
	needed = false;
#endif
	if (ch->deaf && rc == 0 && needed) {
		rc = gr_error_set(err, -EPIPE, "%s: closed before its last packet",
				  gr_channel_name(ch->to));
	}
	if (rc < 0 && !(ch->deaf && !needed)) {
		ch->to_failed = true;
		gr_error_prefix(err, "to the destination: ");
		return rc;
	}
	return 0;
}

/* The source has closed it. What is missing then nobody can bring any more. */
static int take_end(struct gr_relay_channel *ch, struct gr_error *err)
{
	struct gr_relay_channels *c = ch->all;
	int rc = gr_multifd_scan_end(&ch->scan, err);
	bool early;

	if (rc < 0) {
		return rc;
	}
	gr_mutex_lock(&c->lock);
	early = ch->syncs < c->meetings;
	ch->ended = !early; /* else when that is known: not to be taken for a good end before */
	gr_mutex_unlock(&c->lock);
	if (early) {
		return gr_error_set(err, -EPIPE,
				    "byte %" PRIu64 ": the source has closed it before the end",
				    ch->scan.bytes);
	}
	gr_channel_end_writing(ch->to);
	return 0;
}

static int pass(struct gr_relay_channel *ch, uint8_t *chunk, struct gr_error *err)
{
	struct gr_multifd_scan *scan = &ch->scan;

	for (;;) {
		struct iovec iov = { chunk, gr_multifd_scan_room(scan, RELAY_CHUNK_BYTES) };
		ssize_t got = gr_channel_readv(ch->from, &iov, 1, err);
		int rc;

		if (got == 0) {
			return take_end(ch, err);
		}
		if (got < 0) {
			gr_error_prefix(err, "byte %" PRIu64 ": ", scan->bytes);
			return (int)got;
		}
		rc = gr_multifd_scan(scan, chunk, (size_t)got, err);
		rc = rc < 0 ? rc : put(ch, chunk, (size_t)got, err);
		if (rc < 0) {
			return rc;
		}
		count(ch);
	}
}

static int pass_further(struct gr_relay_channel *ch, struct gr_error *err)
{
	uint8_t *chunk;
	int rc = enter(ch, err);

	rc = rc <= 0 ? rc : await_main(ch, err);
	if (rc <= 0) {
		return rc;
	}
	rc = connect_further(ch, err);
	rc = rc < 0 ? rc : put(ch, ch->hello, sizeof(ch->hello), err);
	if (rc < 0) {
		return rc;
	}
	count(ch);
	rc = await_page_bytes(ch, err);
	if (rc < 0) {
		return rc;
	}
	chunk = malloc(RELAY_CHUNK_BYTES);
	if (!chunk) {
		return gr_error_set(err, -ENOMEM, "no memory to pass it on");
	}
	rc = pass(ch, chunk, err);
	free(chunk);
	return rc;
}

static bool has_main(struct gr_relay_channels *c)
{
	bool has;

	gr_mutex_lock(&c->lock);
	has = c->main != NULL;
	gr_mutex_unlock(&c->lock);
	return has;
}

int gr_relay_channel_run(struct gr_relay_channel *ch, struct gr_error *err)
{
	int kind = gr_multifd_tell(ch->from, ch->from->wake_fd,
				   (int)(ch->all->limit_ns / GR_NS_PER_MS), err);

	if (kind == GR_MULTIFD_FURTHER) {
		int rc = read_greeting(ch, err);

		kind = rc < 0 ? rc : kind;
	}
	switch (kind) {
	case GR_MULTIFD_NOBODY:
	case -ECANCELED:
		return 0;
	case GR_MULTIFD_MAIN:
		return give_main(ch);
	case GR_MULTIFD_FURTHER:
		return pass_further(ch, err);
	case -EOPNOTSUPP: /* TLS: whom it would concern need not wait for more */
		return has_main(ch->all) ? turn_away(err->msg) : kind;
	default:
		return turn_away(err->msg);
	}
}
