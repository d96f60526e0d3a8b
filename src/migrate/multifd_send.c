/* SPDX-License-Identifier: MIT */
#include "migrate/multifd_send.h"
#include "base/mutex.h"
#include "base/signals.h"
#include "stream/channel.h"
#include "stream/multifd_codec.h"
#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

enum { JOBS_PER_CHANNEL = 2 }; /* one on its way, one being filled */

struct further {
	struct gr_multifd_send *m;		  /* (c) */
	struct gr_channel *channel;		  /* (c) borrowed */
	pthread_t thread;			  /* (main) */
	bool started;				  /* (main) */
	bool busy;				  /* (l) has a job */
	bool say_sync;				  /* (l) asked to, not done yet */
	uint8_t raw[GR_MULTIFD_HEADER_BYTES_MAX]; /* (its thread) all below */
	struct iovec iov[GR_MULTIFD_PAGES_MAX + 1];
	struct gr_multifd_codec codec;
	uint8_t *copy, *packed; /* if the move is compressed */
};

struct gr_multifd_send {
	struct gr_multifd params;	     /* (c) but for its pointers */
	uint8_t uuid[GR_MULTIFD_UUID_BYTES]; /* (c) */
	uint32_t page_bytes;		     /* (c) */
	struct gr_mutex lock;
	pthread_cond_t changed;				  /* anything below */
	struct gr_multifd_job *free_jobs, *first, **last; /* (l) */
	uint64_t number;				  /* (l) of the next packet */
	bool stopped;					  /* (l) */
	struct gr_error error;				  /* (l) the first one */
	struct gr_multifd_job *jobs;			  /* (c) all of them */
	unsigned int job_count;				  /* (c) */
	unsigned int count;				  /* (c) */
	struct further further[];
};

/* ---- a channel's thread ---------------------------------------------------------------- */

static int send_greeting(struct further *f, struct gr_error *err)
{
	struct gr_multifd_greeting g = { .id = (uint8_t)(f - f->m->further) };
	uint8_t raw[GR_MULTIFD_GREETING_BYTES];

	memcpy(g.uuid, f->m->uuid, sizeof(g.uuid));
	gr_multifd_greeting_put(&g, raw);
	return gr_channel_write_all(f->channel, raw, sizeof(raw), err);
}

/* Behind the header: an entry for each run of pages that lie side by side. Returns how many in all.
 */
static int plain_payload(struct further *f, const struct gr_multifd_job *job)
{
	uint32_t page_bytes = f->m->page_bytes;
	int n = 1;

	for (uint32_t i = 0; i < job->header.pages; i++) {
		uint8_t *at = (uint8_t *)(uintptr_t)job->pages[i];

		if (n > 1 && (uint8_t *)f->iov[n - 1].iov_base + f->iov[n - 1].iov_len == at) {
			f->iov[n - 1].iov_len += page_bytes;
		} else {
			f->iov[n++] = (struct iovec){ at, page_bytes };
		}
	}
	return n;
}

/* What is packed must hold still, so it is a copy. */
static int packed_payload(struct further *f, struct gr_multifd_job *job, struct gr_error *err)
{
	uint32_t page_bytes = f->m->page_bytes;
	size_t bytes;
	int rc;

	for (uint32_t i = 0; i < job->header.pages; i++) {
		memcpy(f->copy + (size_t)i * page_bytes, job->pages[i], page_bytes);
	}
	rc = gr_multifd_pack(&f->codec, f->copy, (size_t)job->header.pages * page_bytes, f->packed,
			     GR_MULTIFD_PAYLOAD_BYTES_MAX, &bytes, err);
	if (rc < 0) {
		return rc;
	}
	f->iov[1] = (struct iovec){ f->packed, bytes };
	job->header.payload_bytes = (uint32_t)bytes;
	return 2;
}

/* Long runs from their file, the rest (header, short runs, what a file would not do) from memory. */
static int send_by_reference(struct further *f, const struct gr_channel_file *file, int n,
			     struct gr_error *err)
{
	int first = 0;

	for (int i = 1; i < n; i++) {
		int rc;

		if (!gr_channel_may_refer(f->channel, file, &f->iov[i])) {
			continue;
		}
		rc = gr_channel_writev_all(f->channel, &f->iov[first], i - first, err);
		if (rc == 0) {
			rc = gr_channel_refer(f->channel, file, &f->iov[i], err);
		}
		if (rc < 0) {
			return rc;
		}
		first = i;
	}
	return gr_channel_writev_all(f->channel, &f->iov[first], n - first, err);
}

static int send_job(struct further *f, struct gr_multifd_job *job, struct gr_error *err)
{
	int n;

	job->header.compression = f->m->params.compression;
	job->header.payload_bytes = job->header.pages * f->m->page_bytes;
	if (job->header.compression == GR_MULTIFD_NONE || job->header.pages == 0) {
		n = plain_payload(f, job);
	} else {
		n = packed_payload(f, job, err);
		if (n < 0) {
			return n;
		}
	}
	gr_multifd_header_put(&job->header, f->m->page_bytes, f->raw);
	f->iov[0] = (struct iovec){ f->raw, gr_multifd_header_bytes(f->m->page_bytes) };
	if (job->file.bytes > 0) {
		return send_by_reference(f, &job->file, n, err);
	}
	return gr_channel_writev_all(f->channel, f->iov, n, err);
}

static int send_sync(struct further *f, uint64_t number, struct gr_error *err)
{
	struct gr_multifd_header h = { .sync = true, .number = number };

	gr_multifd_header_put(&h, f->m->page_bytes, f->raw);
	return gr_channel_write_all(f->channel, f->raw, gr_multifd_header_bytes(f->m->page_bytes),
				    err);
}

/* What there is to do, NULL for a SYNC; false: nothing any more. */
static bool next_job(struct further *f, struct gr_multifd_job **ret_job, uint64_t *ret_number)
{
	struct gr_multifd_send *m = f->m;
	bool go_on;

	gr_mutex_lock(&m->lock);
	while (!m->stopped && m->error.code == 0 && !m->first && !f->say_sync) {
		gr_mutex_wait(&m->lock, &m->changed);
	}
	go_on = !m->stopped && m->error.code == 0;
	if (go_on) {
		*ret_job = m->first;
		if (m->first) {
			f->busy = true;
			m->first = m->first->next;
			m->last = m->first ? m->last : &m->first;
		}
		*ret_number = m->number++;
	}
	gr_mutex_unlock(&m->lock);
	return go_on;
}

static void release_job(struct gr_multifd_job *job)
{
	if (job->done) {
		job->done(job);
	}
	job->done = NULL;
}

static void finish_job(struct further *f, struct gr_multifd_job *job)
{
	struct gr_multifd_send *m = f->m;

	if (job) {
		release_job(job);
	}
	gr_mutex_lock(&m->lock);
	if (job) {
		job->next = m->free_jobs;
		m->free_jobs = job;
		f->busy = false;
	} else {
		f->say_sync = false;
	}
	(void)pthread_cond_broadcast(&m->changed);
	gr_mutex_unlock(&m->lock);
}

static int serve(struct further *f, struct gr_error *err)
{
	struct gr_multifd_job *job;
	uint64_t number;
	int rc = send_greeting(f, err);

	while (rc == 0 && next_job(f, &job, &number)) {
		if (job) {
			job->header.number = number;
		}
		rc = job ? send_job(f, job, err) : send_sync(f, number, err);
		/* What failed stays busy until the error is told: nobody takes it for done. */
		if (rc == 0) {
			finish_job(f, job);
		}
	}
	return rc;
}

static void *further_main(void *opaque)
{
	struct further *f = opaque;
	struct gr_multifd_send *m = f->m;
	struct gr_error err = { 0 };
	int rc = serve(f, &err);

	if (rc < 0) {
		gr_mutex_lock(&m->lock);
		if (!m->stopped && m->error.code == 0) {
			gr_error_prefix(&err,
					"multifd channel %u (%s): ", (unsigned int)(f - m->further),
					gr_channel_name(f->channel));
			m->error = err;
			m->error.code = rc;
		}
		(void)pthread_cond_broadcast(&m->changed);
		gr_mutex_unlock(&m->lock);
	}
	return NULL;
}

/* ---- the main thread ------------------------------------------------------------------- */

static int open_further(struct gr_multifd_send *m, struct further *f, struct gr_error *err)
{
	if (m->params.compression == GR_MULTIFD_NONE) {
		return 0;
	}
	f->copy = malloc(GR_MULTIFD_DATA_BYTES);
	f->packed = malloc(GR_MULTIFD_PAYLOAD_BYTES_MAX);
	if (!f->copy || !f->packed) {
		return gr_error_set(err, -ENOMEM, "no memory for packets");
	}
	return gr_multifd_codec_open(&f->codec, m->params.compression, true, m->params.level, err);
}

static int open_all(struct gr_multifd_send *m, struct gr_error *err)
{
	int rc = 0;

	m->jobs = calloc(m->job_count, sizeof(m->jobs[0]));
	if (!m->jobs) {
		return gr_error_set(err, -ENOMEM, "no memory for packets");
	}
	for (unsigned int i = 0; i < m->job_count; i++) {
		m->jobs[i].own = malloc(GR_MULTIFD_DATA_BYTES); /* there when it is used */
		if (!m->jobs[i].own) {
			return gr_error_set(err, -ENOMEM, "no memory for packets");
		}
		m->jobs[i].next = m->free_jobs;
		m->free_jobs = &m->jobs[i];
	}
	for (unsigned int i = 0; rc == 0 && i < m->count; i++) {
		rc = open_further(m, &m->further[i], err);
	}
	return rc;
}

int gr_multifd_send_create(const struct gr_multifd *params, uint32_t page_bytes,
			   struct gr_multifd_send **ret_m, struct gr_error *err)
{
	struct gr_multifd_send *m;
	int rc = gr_multifd_check(params, err);

	if (rc < 0) {
		return rc;
	}
	m = calloc(1, sizeof(*m) + params->count * sizeof(m->further[0]));
	if (!m) {
		return gr_error_set(err, -ENOMEM, "no memory for %u further channels",
				    params->count);
	}
	m->params = *params;
	m->count = params->count;
	m->job_count = JOBS_PER_CHANNEL * m->count;
	m->page_bytes = page_bytes;
	m->last = &m->first;
	gr_mutex_init(&m->lock, GR_RANK_MIGRATE);
	(void)pthread_cond_init(&m->changed, NULL);
	if (params->uuid) {
		memcpy(m->uuid, params->uuid, sizeof(m->uuid));
	}
	for (unsigned int i = 0; i < m->count; i++) {
		m->further[i].m = m;
		m->further[i].channel = params->channels[i];
	}
	rc = open_all(m, err);
	if (rc < 0) {
		gr_multifd_send_free(m);
		return rc;
	}
	*ret_m = m;
	return 0;
}

int gr_multifd_send_start(struct gr_multifd_send *m, struct gr_error *err)
{
	struct gr_signals saved;
	int rc;

	for (unsigned int i = 0; i < m->count; i++) {
		struct further *f = &m->further[i];

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

static int failed_locked(struct gr_multifd_send *m, struct gr_error *err) GR_REQUIRES(m->lock)
{
	if (m->stopped) {
		return gr_error_set(err, -ECANCELED, "cancelled");
	}
	if (m->error.code < 0 && err) {
		*err = m->error;
	}
	return m->error.code;
}

int gr_multifd_send_job(struct gr_multifd_send *m, struct gr_multifd_job **ret_job,
			struct gr_error *err)
{
	struct gr_multifd_job *job = NULL;
	uint8_t *own;
	int rc;

	gr_mutex_lock(&m->lock);
	while ((rc = failed_locked(m, err)) == 0 && !m->free_jobs) {
		gr_mutex_wait(&m->lock, &m->changed);
	}
	if (rc == 0) {
		job = m->free_jobs;
		m->free_jobs = job->next;
	}
	gr_mutex_unlock(&m->lock);
	if (rc < 0) {
		return rc;
	}
	own = job->own;
	memset(&job->header, 0, offsetof(struct gr_multifd_header, offsets));
	*job = (struct gr_multifd_job){ .header = job->header, .own = own };
	*ret_job = job;
	return 0;
}

void gr_multifd_send_give(struct gr_multifd_send *m, struct gr_multifd_job *job)
{
	gr_mutex_lock(&m->lock);
	job->next = NULL;
	*m->last = job;
	m->last = &job->next;
	(void)pthread_cond_broadcast(&m->changed);
	gr_mutex_unlock(&m->lock);
}

/* Whether a channel has something to do yet. */
static bool is_busy_locked(struct gr_multifd_send *m) GR_REQUIRES(m->lock)
{
	bool busy = m->first != NULL;

	for (unsigned int i = 0; i < m->count; i++) {
		busy |= m->further[i].busy || m->further[i].say_sync;
	}
	return busy;
}

static int wait_idle_locked(struct gr_multifd_send *m, struct gr_error *err) GR_REQUIRES(m->lock)
{
	int rc;

	while ((rc = failed_locked(m, err)) == 0 && is_busy_locked(m)) {
		gr_mutex_wait(&m->lock, &m->changed);
	}
	return rc;
}

int gr_multifd_send_sync(struct gr_multifd_send *m, struct gr_error *err)
{
	int rc;

	gr_mutex_lock(&m->lock);
	rc = wait_idle_locked(m, err);
	if (rc == 0) {
		for (unsigned int i = 0; i < m->count; i++) {
			m->further[i].say_sync = true;
		}
		(void)pthread_cond_broadcast(&m->changed);
		rc = wait_idle_locked(m, err);
	}
	gr_mutex_unlock(&m->lock);
	return rc;
}

uint64_t gr_multifd_send_bytes(const struct gr_multifd_send *m)
{
	uint64_t bytes = 0;

	for (unsigned int i = 0; i < m->count; i++) {
		bytes += gr_channel_bytes_written(m->further[i].channel);
	}
	return bytes;
}

static void set_stopped(struct gr_multifd_send *m)
{
	gr_mutex_lock(&m->lock);
	m->stopped = true;
	(void)pthread_cond_broadcast(&m->changed);
	gr_mutex_unlock(&m->lock);
}

void gr_multifd_send_abort(struct gr_multifd_send *m)
{
	set_stopped(m);
	for (unsigned int i = 0; i < m->count; i++) {
		gr_channel_shutdown(m->further[i].channel);
	}
}

void gr_multifd_send_stop(struct gr_multifd_send *m)
{
	bool idle;

	gr_mutex_lock(&m->lock);
	idle = !is_busy_locked(m);
	gr_mutex_unlock(&m->lock);
	if (idle) {
		set_stopped(m);
	} else {
		gr_multifd_send_abort(m); /* a thread may sleep in a write */
	}
	for (unsigned int i = 0; i < m->count; i++) {
		if (m->further[i].started) {
			(void)pthread_join(m->further[i].thread, NULL);
			m->further[i].started = false;
		}
	}
	for (unsigned int i = 0; i < m->job_count && m->jobs; i++) {
		release_job(&m->jobs[i]);
	}
}

void gr_multifd_send_free(struct gr_multifd_send *m)
{
	if (!m) {
		return;
	}
	gr_multifd_send_stop(m);
	for (unsigned int i = 0; i < m->count; i++) {
		gr_multifd_codec_close(&m->further[i].codec);
		free(m->further[i].copy);
		free(m->further[i].packed);
	}
	for (unsigned int i = 0; i < m->job_count && m->jobs; i++) {
		free(m->jobs[i].own);
	}
	free(m->jobs);
	(void)pthread_cond_destroy(&m->changed);
	gr_mutex_destroy(&m->lock);
	free(m);
}
