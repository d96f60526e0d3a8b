/* SPDX-License-Identifier: MIT */
/* The meetings of all channels, and their life. What comes on one is in multifd_packet.c. */
#include "migrate/multifd_receive.h"
#include "base/signals.h"
#include "migrate/multifd_packet.h"
#include "stream/channel.h"
#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

struct further {
	struct gr_multifd_receive *m;	 /* (c) */
	pthread_t thread;		 /* (main) */
	bool started;			 /* (main) */
	bool ended;			 /* (l) its peer has closed it between two packets */
	struct gr_packet_reader packets; /* (its thread) */
};

struct gr_multifd_receive {
	struct gr_channel *main;	  /* (c) borrowed */
	struct gr_progress *progress;	  /* its own locking */
	struct gr_packet_context packets; /* (c), its blocks: while all are parked */
	struct gr_mutex lock;
	pthread_cond_t changed;		       /* anything below */
	unsigned int parked;		       /* (l) have said SYNC and wait */
	uint64_t released;		       /* (l) meetings */
	bool stopped;			       /* (l) */
	struct gr_error error;		       /* (l) the first one */
	uint8_t uuid[GR_MULTIFD_UUID_BYTES];   /* (l) of the first greeting */
	bool has_uuid;			       /* (l) */
	bool greeted[GR_MULTIFD_CHANNELS_MAX]; /* (l) by id */
	bool over;			       /* (main) ended well: no threads any more */
	unsigned int count;		       /* (c) */
	struct further further[];
};

static bool is_stopped(struct gr_multifd_receive *m)
{
	bool stopped;

	gr_mutex_lock(&m->lock);
	stopped = m->stopped;
	gr_mutex_unlock(&m->lock);
	return stopped;
}

/* ---- a channel's thread ---------------------------------------------------------------- */

static int check_greeting(struct gr_multifd_receive *m, const struct gr_multifd_greeting *g,
			  struct gr_error *err)
{
	int rc = 0;

	gr_mutex_lock(&m->lock);
	if (g->id >= m->count) {
		rc = gr_error_set(err, -EBADMSG, "it says that it is number %u of %u", g->id,
				  m->count);
	} else if (m->greeted[g->id]) {
		rc = gr_error_set(err, -EBADMSG, "number %u is there twice", g->id);
	} else if (m->has_uuid && memcmp(m->uuid, g->uuid, sizeof(g->uuid)) != 0) {
		rc = gr_error_set(err, -EBADMSG, "it is of another machine: its UUID differs");
	} else {
		m->greeted[g->id] = true;
		m->has_uuid = true;
		memcpy(m->uuid, g->uuid, sizeof(g->uuid));
	}
	gr_mutex_unlock(&m->lock);
	return rc;
}

static int park(struct gr_multifd_receive *m)
{
	uint64_t now;

	gr_mutex_lock(&m->lock);
	now = m->released;
	m->parked++;
	(void)pthread_cond_broadcast(&m->changed);
#ifndef GR_MUTANT_MULTIFD_CHANNEL_RUNS_ON
	while (m->released == now && !m->stopped) {
		gr_mutex_wait(&m->lock, &m->changed);
	}
#endif
	gr_mutex_unlock(&m->lock);
	return is_stopped(m) ? -ECANCELED : 0;
}

static bool may_take_pages(struct gr_multifd_receive *m)
{
	bool may;

	gr_mutex_lock(&m->lock);
	may = m->released > 0;
	gr_mutex_unlock(&m->lock);
	return may;
}

static void count(struct gr_multifd_receive *m, const struct gr_multifd_header *h)
{
	struct gr_migrate_stats *stats = gr_progress_lock(m->progress);

	stats->normal_pages += h->pages;
	stats->zero_pages += h->zero_pages;
	gr_progress_unlock(m->progress);
}

/* Until the peer has closed the channel (0), or it fails. */
static int serve(struct further *f, struct gr_error *err)
{
	struct gr_multifd_receive *m = f->m;
	const struct gr_multifd_header *h = &f->packets.header;
	struct gr_multifd_greeting greeting;
	int rc = gr_packet_greeting(&f->packets, &greeting, err);

	if (rc == 0) {
		rc = check_greeting(m, &greeting, err);
	}
	if (rc < 0) {
		return rc;
	}
	while ((rc = gr_packet_next(&f->packets, err)) > 0) {
		if (h->pages + h->zero_pages > 0) {
			if (!may_take_pages(m)) {
				return gr_error_set(err, -EBADMSG, "pages before the first SYNC");
			}
			rc = gr_packet_take(&f->packets, err);
			if (rc < 0) {
				return rc;
			}
			count(m, h);
		}
		if (h->sync) {
			rc = park(m);
			if (rc < 0) {
				return gr_error_set(err, rc, "cancelled");
			}
		}
	}
	return rc;
}

static void *further_main(void *opaque)
{
	struct further *f = opaque;
	struct gr_multifd_receive *m = f->m;
	struct gr_error err = { 0 };
	int rc = serve(f, &err);

	gr_mutex_lock(&m->lock);
	f->ended = true;
	if (rc < 0 && !m->stopped && m->error.code == 0) {
		gr_error_prefix(&err, "multifd channel %u (%s): ", (unsigned int)(f - m->further),
				gr_channel_name(f->packets.channel));
		m->error = err;
		m->error.code = rc;
		gr_channel_end_reading(m->main);
	}
	(void)pthread_cond_broadcast(&m->changed);
	gr_mutex_unlock(&m->lock);
	return NULL;
}

/* ---- the main thread ------------------------------------------------------------------- */

int gr_multifd_receive_create(const struct gr_multifd *params, const struct gr_sink *sink,
			      struct gr_channel *main, struct gr_progress *progress,
			      struct gr_multifd_receive **ret_m, struct gr_error *err)
{
	struct gr_multifd_receive *m;
	int rc = gr_multifd_check(params, err);

	if (rc < 0) {
		return rc;
	}
	m = calloc(1, sizeof(*m) + params->count * sizeof(m->further[0]));
	if (!m) {
		return gr_error_set(err, -ENOMEM, "no memory for %u further channels",
				    params->count);
	}
	m->main = main;
	m->progress = progress;
	m->count = params->count;
	gr_packet_context_init(&m->packets, sink, params->compression);
	gr_mutex_init(&m->lock, GR_RANK_MIGRATE);
	(void)pthread_cond_init(&m->changed, NULL);
	if (params->uuid) {
		m->has_uuid = true;
		memcpy(m->uuid, params->uuid, sizeof(m->uuid));
	}
	for (unsigned int i = 0; i < m->count; i++) {
		m->further[i].m = m;
		m->further[i].packets.context = &m->packets;
		m->further[i].packets.channel = params->channels[i];
	}
	*ret_m = m;
	return 0;
}

int gr_multifd_receive_start(struct gr_multifd_receive *m, uint32_t page_bytes,
			     struct gr_error *err)
{
	struct gr_signals saved;
	int rc = 0;

	m->packets.page_bytes = page_bytes;
	for (unsigned int i = 0; rc == 0 && i < m->count; i++) {
		struct further *f = &m->further[i];

		rc = gr_packet_reader_init(&f->packets, err);
		if (rc < 0) {
			return rc;
		}
		gr_signals_block(&saved); /* the program's handlers are not for these threads */
		rc = pthread_create(&f->thread, NULL, further_main, f);
		gr_signals_restore(&saved);
		if (rc != 0) {
			return gr_error_set(err, -rc, "cannot make a thread: %s", strerror(rc));
		}
		f->started = true;
	}
	return 0;
}

/* Whether a channel that has not come will not come any more. */
static int lost_locked(struct gr_multifd_receive *m, struct gr_error *err) GR_REQUIRES(m->lock)
{
	if (m->error.code < 0) {
		if (err) {
			*err = m->error;
		}
		return m->error.code;
	}
	if (m->stopped) {
		return gr_error_set(err, -ECANCELED, "cancelled");
	}
	for (unsigned int i = 0; i < m->count; i++) {
		if (m->further[i].ended) {
			return gr_error_set(
				err, -EPIPE,
				"multifd channel %u (%s): the source has closed it before "
				"the end of the stream",
				i, gr_channel_name(m->further[i].packets.channel));
		}
	}
	return 0;
}

int gr_multifd_receive_sync(struct gr_multifd_receive *m, struct gr_error *err)
{
	int rc;

	gr_mutex_lock(&m->lock);
#ifdef GR_MUTANT_MULTIFD_SYNC_NOWAIT
	m->parked = m->count;
#endif
	while ((rc = m->parked == m->count ? 0 : lost_locked(m, err)) == 0 &&
	       m->parked < m->count) {
		gr_mutex_wait(&m->lock, &m->changed);
	}
	gr_mutex_unlock(&m->lock);
	return rc;
}

int gr_multifd_receive_blocks(struct gr_multifd_receive *m, struct gr_stream_reader *reader,
			      struct gr_error *err)
{
	return gr_packet_context_blocks(&m->packets, reader, err);
}

void gr_multifd_receive_enter_sink(struct gr_multifd_receive *m)
{
	gr_packet_context_enter(&m->packets);
}

void gr_multifd_receive_leave_sink(struct gr_multifd_receive *m)
{
	gr_packet_context_leave(&m->packets);
}

void gr_multifd_receive_release(struct gr_multifd_receive *m)
{
	gr_mutex_lock(&m->lock);
	m->parked = 0;
	m->released++;
	(void)pthread_cond_broadcast(&m->changed);
	gr_mutex_unlock(&m->lock);
}

int gr_multifd_receive_failed(struct gr_multifd_receive *m, struct gr_error *err)
{
	int rc;

	gr_mutex_lock(&m->lock);
	rc = m->error.code;
	if (rc < 0 && err) {
		*err = m->error;
	}
	gr_mutex_unlock(&m->lock);
	return rc;
}

uint64_t gr_multifd_receive_bytes(const struct gr_multifd_receive *m)
{
	uint64_t bytes = 0;

	for (unsigned int i = 0; i < m->count; i++) {
		bytes += gr_channel_bytes_read(m->further[i].packets.channel);
	}
	return bytes;
}

static void set_stopped(struct gr_multifd_receive *m)
{
	gr_mutex_lock(&m->lock);
	m->stopped = true;
	(void)pthread_cond_broadcast(&m->changed);
	gr_mutex_unlock(&m->lock);
}

static void join_all(struct gr_multifd_receive *m)
{
	for (unsigned int i = 0; i < m->count; i++) {
		if (m->further[i].started) {
			(void)pthread_join(m->further[i].thread, NULL);
			m->further[i].started = false;
		}
	}
}

void gr_multifd_receive_abort(struct gr_multifd_receive *m)
{
	set_stopped(m);
	for (unsigned int i = 0; i < m->count; i++) {
		gr_channel_shutdown(m->further[i].packets.channel);
	}
}

void gr_multifd_receive_break(struct gr_multifd_receive *m)
{
	gr_multifd_receive_abort(m);
	join_all(m);
}

void gr_multifd_receive_end(struct gr_multifd_receive *m)
{
#ifdef GR_MUTANT_MULTIFD_END_BREAKS
	gr_multifd_receive_abort(m);
#endif
	set_stopped(m);
	for (unsigned int i = 0; i < m->count; i++) {
		gr_channel_stop_waiting(m->further[i].packets.channel);
	}
	join_all(m);
	m->over = true;
}

void gr_multifd_receive_free(struct gr_multifd_receive *m)
{
	if (!m) {
		return;
	}
	if (!m->over) {
		gr_multifd_receive_break(m);
	}
	for (unsigned int i = 0; i < m->count; i++) {
		gr_packet_reader_destroy(&m->further[i].packets);
	}
	gr_packet_context_destroy(&m->packets);
	(void)pthread_cond_destroy(&m->changed);
	gr_mutex_destroy(&m->lock);
	free(m);
}

unsigned int gr_multifd_receive_parked(struct gr_multifd_receive *m)
{
	unsigned int parked;

	gr_mutex_lock(&m->lock);
	parked = m->parked;
	gr_mutex_unlock(&m->lock);
	return parked;
}
