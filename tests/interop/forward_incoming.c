/* SPDX-License-Identifier: MIT */
#include "base/clock.h"
#include "forward.h"
#include "migrate/state_writer.h"
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

static struct incoming *the_incoming; /* the sink's calls get the sink */

static int on_config(void *sink, const struct gr_stream_record *rec, struct gr_error *err)
{
	struct incoming *in = the_incoming;

	(void)snprintf(in->machine, sizeof(in->machine), "%s", rec->config.machine);
	return gr_ram_sink_ops.config(sink, rec, err);
}

static int on_blocks(void *sink, struct gr_stream_reader *reader, struct gr_error *err)
{
	struct incoming *in = the_incoming;
	int rc = gr_ram_sink_ops.blocks(sink, reader, err);

	(void)pthread_mutex_lock(&in->lock);
	in->has_blocks = true;
	(void)pthread_cond_signal(&in->changed);
	(void)pthread_mutex_unlock(&in->lock);
	return rc;
}

static int on_finish(void *sink, struct gr_tail *tail, struct gr_error *err)
{
	struct incoming *in = the_incoming;

	in->tail = malloc(tail->bytes);
	if (!in->tail) {
		return gr_error_set(err, -ENOMEM, "no memory for the devices");
	}
	memcpy(in->tail, tail->data, tail->bytes);
	in->tail_bytes = tail->bytes;
	in->sections_bytes = gr_tail_sections_bytes(tail);
	return gr_ram_sink_ops.finish(sink, tail, err);
}

/* As a virtual CPU that is slowed down: sleeps its share of the time. */
static void be_slow(struct incoming *in, uint64_t ran_ns)
{
	uint64_t percent = gr_load_relaxed(&in->throttle_percent);

	if (percent) {
		(void)usleep((useconds_t)(ran_ns * percent / (100 - percent) / 1000));
	}
}

static void *receive_main(void *opaque)
{
	struct incoming *in = opaque;
	struct gr_error err;
	int rc;

	do {
		uint64_t begin_ns = gr_clock_ns();

		rc = gr_receive_step(in->receive, &err);
		be_slow(in, gr_clock_ns() - begin_ns);
	} while (rc > 0);
	(void)pthread_mutex_lock(&in->lock);
	in->ended = true;
	in->rc = rc;
	in->err = err;
	(void)pthread_cond_signal(&in->changed);
	(void)pthread_mutex_unlock(&in->lock);
	return NULL;
}

static int accept_all(struct incoming *in, const char *uri, struct gr_error *err)
{
	struct gr_channel_listener *listener;
	int rc = gr_channel_listen(uri, &listener, err);

	if (rc < 0) {
		return rc;
	}
	(void)fprintf(stderr, "listening on %s\n", gr_channel_listener_uri(listener));
	rc = in->multifd.count ? gr_multifd_accept(listener, in->multifd.count, &in->channel,
						   in->further, err)
			       : gr_channel_accept(listener, &in->channel, err);
	gr_channel_listener_close(listener);
	return rc;
}

/* The QEMUs' main memory, which they have mapped from the same file. */
static int add_shared(struct gr_ram *ram, const char *path, struct gr_error *err)
{
	struct gr_ram_block_desc desc = {
		.size = sizeof(desc),
		.id = "pc.ram",
		.backing = GR_RAM_FILE,
		.path = path,
		.fd = -1,
	};
	struct stat st;

	if (stat(path, &st) < 0) {
		return gr_error_set(err, -errno, "%s: %s", path, strerror(errno));
	}
	desc.used_bytes = (uint64_t)st.st_size;
	return gr_ram_block_add(ram, &desc, NULL, err);
}

int incoming_start(struct incoming *in, const char *uri, const struct gr_receive_params *params,
		   struct gr_error *err)
{
	static struct gr_sink_ops ops;
	struct gr_receive_params p = *params;
	int rc = accept_all(in, uri, err);

	if (in->multifd.count) {
		in->multifd.channels = in->further;
		p.multifd = &in->multifd;
	}
	(void)pthread_mutex_init(&in->lock, NULL);
	(void)pthread_cond_init(&in->changed, NULL);
	the_incoming = in;
	ops = gr_ram_sink_ops;
	ops.config = on_config;
	ops.blocks = on_blocks;
	ops.finish = on_finish;
	rc = rc < 0 ? rc : gr_ram_create(NULL, &in->ram, err);
	if (rc == 0 && in->shared) {
		rc = add_shared(in->ram, in->shared, err);
	}
	rc = rc < 0 ? rc : gr_ram_sink_create(in->ram, NULL, &in->sink, err);
	if (rc == 0) {
		struct gr_sink sink = { .ops = &ops, .opaque = in->sink };

		gr_ram_sink_set_ignore_shared(in->sink, in->shared != NULL);
		rc = gr_receive_create(in->channel, &sink, &p, &in->receive, err);
	}
	if (rc == 0 && pthread_create(&in->thread, NULL, receive_main, in) != 0) {
		rc = gr_error_set(err, -EAGAIN, "no thread");
	}
	return rc;
}

static int await(struct incoming *in, const bool *what, struct gr_error *err)
{
	int rc;

	(void)pthread_mutex_lock(&in->lock);
	while (!*what && !in->ended) {
		(void)pthread_cond_wait(&in->changed, &in->lock);
	}
	rc = in->ended ? in->rc : 0;
	if (rc < 0) {
		*err = in->err;
	}
	(void)pthread_mutex_unlock(&in->lock);
	return rc;
}

int incoming_await_blocks(struct incoming *in, struct gr_error *err)
{
	return await(in, &in->has_blocks, err);
}

int incoming_await_end(struct incoming *in, struct gr_error *err)
{
	return await(in, &in->ended, err);
}

bool incoming_has_ended(struct incoming *in)
{
	bool ended;

	(void)pthread_mutex_lock(&in->lock);
	ended = in->ended;
	(void)pthread_mutex_unlock(&in->lock);
	return ended;
}

uint64_t incoming_pages(struct incoming *in)
{
	struct gr_migrate_stats stats;

	gr_receive_stats(in->receive, &stats);
	return stats.normal_pages + stats.zero_pages + stats.xbzrle_pages;
}

int incoming_save(void *opaque, struct gr_state_writer *writer, struct gr_error *err)
{
	struct incoming *in = opaque;

	(void)err;
	gr_tail_builder_pass(writer->tail, in->tail, in->tail_bytes, in->sections_bytes);
	return 0;
}

void incoming_end(struct incoming *in)
{
	if (!incoming_has_ended(in)) {
		gr_receive_cancel(in->receive);
	}
	(void)pthread_join(in->thread, NULL);
	gr_receive_free(in->receive);
	gr_ram_sink_free(in->sink);
	gr_ram_free(in->ram);
	for (unsigned int i = 0; i < in->multifd.count; i++) {
		(void)gr_channel_close(in->further[i], NULL);
	}
	(void)gr_channel_close(in->channel, NULL);
	free(in->tail);
}
