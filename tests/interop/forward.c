/* SPDX-License-Identifier: MIT */
/*
 * forward FROM TO ROUNDS CACHE_MIB [ack] [shared=FILE] [UUID]: a migration that comes in is sent on by a
 * source of our own while it comes in: what arrives marks pages, and the marks are the source's dirty pages. So a guest in a QEMU writes,
 * and another QEMU is served by our source: rounds, differences, the switch-over. Prints what it
 * did, one "key value" a line; "round N" at once.
 */
#include "migrate/ram_sink.h"
#include "migrate/receive.h"
#include "migrate/source.h"
#include "migrate/state_writer.h"
#include <errno.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

enum { PAGES_PER_ROUND = 2048 };

struct forward {
	struct gr_ram *ram;
	struct gr_receive *receive;
	struct gr_ram_sink *sink;
	pthread_mutex_t lock;
	pthread_cond_t changed;
	bool has_blocks, ended; /* (lock) */
	int rc;			/* (lock) */
	struct gr_error err;	/* (lock) */
	char machine[GR_STREAM_MACHINE_BYTES_MAX + 1];
	uint8_t *tail;
	size_t tail_bytes, sections_bytes;
};

static _Noreturn void die(const char *what, const struct gr_error *err)
{
	(void)fprintf(stderr, "%s: %s\n", what, err->msg);
	exit(1);
}

static int on_config(void *opaque, const struct gr_stream_record *rec, struct gr_error *err)
{
	struct forward *f = opaque;

	(void)snprintf(f->machine, sizeof(f->machine), "%s", rec->config.machine);
	return gr_ram_sink_ops.config(f->sink, rec, err);
}

static int on_blocks(void *opaque, struct gr_stream_reader *reader, struct gr_error *err)
{
	struct forward *f = opaque;
	int rc = gr_ram_sink_ops.blocks(f->sink, reader, err);

	(void)pthread_mutex_lock(&f->lock);
	f->has_blocks = true;
	(void)pthread_cond_signal(&f->changed);
	(void)pthread_mutex_unlock(&f->lock);
	return rc;
}

static int on_pages(void *opaque, struct gr_stream_block *block, uint32_t count,
		    const uint64_t *offsets, const uint8_t *data, uint32_t *ret_bad,
		    struct gr_error *err)
{
	struct forward *f = opaque;

	return gr_ram_sink_ops.pages(f->sink, block, count, offsets, data, ret_bad, err);
}

static int on_zero(void *opaque, struct gr_stream_block *block, uint64_t offset, uint64_t bytes,
		   struct gr_error *err)
{
	struct forward *f = opaque;

	return gr_ram_sink_ops.zero(f->sink, block, offset, bytes, err);
}

static int on_page_read(void *opaque, struct gr_stream_block *block, uint64_t offset, uint8_t *page,
			struct gr_error *err)
{
	struct forward *f = opaque;

	return gr_ram_sink_ops.page_read(f->sink, block, offset, page, err);
}

static int on_finish(void *opaque, struct gr_tail *tail, struct gr_error *err)
{
	struct forward *f = opaque;

	f->tail = malloc(tail->bytes);
	if (!f->tail) {
		return gr_error_set(err, -ENOMEM, "no memory for the devices");
	}
	memcpy(f->tail, tail->data, tail->bytes);
	f->tail_bytes = tail->bytes;
	f->sections_bytes = gr_tail_sections_bytes(tail);
	return 0;
}

static void *receive_main(void *opaque)
{
	struct forward *f = opaque;
	struct gr_error err;
	int rc;

	do {
		rc = gr_receive_step(f->receive, &err);
	} while (rc > 0);
	(void)pthread_mutex_lock(&f->lock);
	f->ended = true;
	f->rc = rc;
	f->err = err;
	(void)pthread_cond_signal(&f->changed);
	(void)pthread_mutex_unlock(&f->lock);
	return NULL;
}

static int await_blocks(struct forward *f, struct gr_error *err)
{
	int rc;

	(void)pthread_mutex_lock(&f->lock);
	while (!f->has_blocks && !f->ended) {
		(void)pthread_cond_wait(&f->changed, &f->lock);
	}
	rc = f->ended ? f->rc : 0;
	if (rc < 0) {
		*err = f->err;
	}
	(void)pthread_mutex_unlock(&f->lock);
	return rc;
}

/* The guest stands still when all of it has come. */
static int on_pause(void *opaque, struct gr_error *err)
{
	struct forward *f = opaque;
	int rc;

	(void)pthread_mutex_lock(&f->lock);
	while (!f->ended) {
		(void)pthread_cond_wait(&f->changed, &f->lock);
	}
	rc = f->rc;
	if (rc < 0) {
		*err = f->err;
	}
	(void)pthread_mutex_unlock(&f->lock);
	return rc;
}

static void on_resume(void *opaque)
{
	(void)opaque;
}

static int on_save(void *opaque, struct gr_state_writer *writer, struct gr_error *err)
{
	struct forward *f = opaque;

	(void)err;
	gr_tail_builder_pass(writer->tail, f->tail, f->tail_bytes, f->sections_bytes);
	return 0;
}

static uint64_t pages_that_came(struct forward *f)
{
	struct gr_migrate_stats stats;

	gr_receive_stats(f->receive, &stats);
	return stats.normal_pages;
}

static bool has_ended(struct forward *f)
{
	bool ended;

	(void)pthread_mutex_lock(&f->lock);
	ended = f->ended;
	(void)pthread_mutex_unlock(&f->lock);
	return ended;
}

static void on_progress(void *opaque, const struct gr_migrate_stats *stats)
{
	static uint64_t round;
	struct forward *f = opaque;
	uint64_t before = pages_that_came(f);

	if (stats->rounds == round) {
		return;
	}
	round = stats->rounds;
	printf("round %" PRIu64 "\n", round);
	(void)fflush(stdout);
	/* A round that found nothing would be the last one: more has to come before the next. */
	while (!has_ended(f) && pages_that_came(f) < before + PAGES_PER_ROUND) {
		(void)usleep(1000);
	}
}

static struct gr_channel *accept_one(const char *uri)
{
	struct gr_channel_listener *listener;
	struct gr_channel *channel;
	struct gr_error err;

	if (gr_channel_listen(uri, &listener, &err) < 0) {
		die("listen", &err);
	}
	(void)fprintf(stderr, "listening on %s\n", gr_channel_listener_uri(listener));
	if (gr_channel_accept(listener, &channel, &err) < 0) {
		die("accept", &err);
	}
	gr_channel_listener_close(listener);
	return channel;
}

static void report(const struct gr_migrate_stats *stats)
{
	printf("normal %" PRIu64 "\nzero %" PRIu64 "\nxbzrle %" PRIu64 "\nxbzrle_bytes %" PRIu64
	       "\nunchanged %" PRIu64 "\nmisses %" PRIu64 "\noverflows %" PRIu64 "\nbytes %" PRIu64
	       "\nrounds %" PRIu64 "\n",
	       stats->normal_pages, stats->zero_pages, stats->xbzrle_pages, stats->xbzrle_bytes,
	       stats->xbzrle_unchanged_pages, stats->xbzrle_misses, stats->xbzrle_overflows,
	       stats->transferred_bytes, stats->rounds);
}

/* 32 digits. */
static void read_uuid(const char *text, uint8_t *uuid)
{
	for (int i = 0; i < GR_STREAM_UUID_BYTES; i++) {
		char byte[3] = { text[2 * i], text[2 * i + 1], '\0' };

		uuid[i] = (uint8_t)strtoul(byte, NULL, 16);
	}
}

static int forward(struct forward *f, const char *to, struct gr_source_params *params,
		   struct gr_error *err)
{
	struct gr_source_ops ops = { .pause = on_pause,
				     .resume = on_resume,
				     .save = on_save,
				     .progress = on_progress,
				     .opaque = f };
	struct gr_channel *out = NULL;
	struct gr_source *source = NULL;
	struct gr_migrate_stats stats;
	int close_rc, rc = await_blocks(f, err);

	if (rc == 0) {
		params->machine = f->machine;
		rc = gr_channel_connect(to, &out, err);
	}
	if (rc == 0) {
		rc = gr_source_create(f->ram, NULL, out, params, &ops, &source, err);
	}
	if (rc == 0) {
		rc = gr_source_run(source, err);
	}
	if (rc == 0) {
		gr_source_stats(source, &stats);
		report(&stats);
	}
	gr_source_free(source);
	close_rc = out ? gr_channel_close(out, rc == 0 ? err : NULL) : 0;
	return rc < 0 ? rc : close_rc;
}

/* The QEMUs' main memory, which they have mapped from the same file. */
static int add_shared(struct gr_ram *ram, const char *path, struct gr_error *err)
{
	struct gr_ram_block_desc desc = {
		.size = sizeof(desc), .id = "pc.ram", .backing = GR_RAM_FILE, .path = path, .fd = -1
	};
	struct stat st;

	if (stat(path, &st) < 0) {
		return gr_error_set(err, -errno, "%s: %s", path, strerror(errno));
	}
	desc.used_bytes = (uint64_t)st.st_size;
	return gr_ram_block_add(ram, &desc, NULL, err);
}

int main(int argc, char **argv)
{
	static const struct gr_sink_ops sink_ops = {
		.config = on_config,
		.blocks = on_blocks,
		.pages = on_pages,
		.zero = on_zero,
		.page_read = on_page_read,
		.finish = on_finish,
	};
	struct forward f = { .lock = PTHREAD_MUTEX_INITIALIZER,
			     .changed = PTHREAD_COND_INITIALIZER };
	struct gr_sink sink = { .ops = &sink_ops, .opaque = &f };
	struct gr_source_params params = { .size = sizeof(params), .downtime_ns_max = 1 };
	struct gr_receive_params receive_params = { 0 };
	const char *shared = NULL;
	uint8_t uuid[GR_STREAM_UUID_BYTES];
	struct gr_channel *in;
	struct gr_error err;
	pthread_t thread;
	int rc;

	if (argc < 5) {
		(void)fprintf(stderr, "usage: forward FROM TO ROUNDS CACHE_MIB [ack] [shared=FILE] [UUID]\n");
		return 2;
	}
	for (int i = 5; i < argc; i++) {
		if (strcmp(argv[i], "ack") == 0) {
			params.switchover_ack = true;
		} else if (strncmp(argv[i], "shared=", 7) == 0) {
			shared = argv[i] + 7;
		} else {
			read_uuid(argv[i], uuid);
			params.uuid = uuid;
		}
	}
	params.rounds_max = strtoull(argv[3], NULL, 10);
	params.xbzrle_cache_bytes = strtoull(argv[4], NULL, 10) << 20;
	params.ignore_shared = receive_params.ignore_shared = shared != NULL;
	in = accept_one(argv[1]);
	if (gr_ram_create(NULL, &f.ram, &err) < 0 ||
	    (shared && add_shared(f.ram, shared, &err) < 0) ||
	    gr_ram_sink_create(f.ram, NULL, &f.sink, &err) < 0 ||
	    gr_receive_create(in, &sink, &receive_params, &f.receive, &err) < 0) {
		die("receive", &err);
	}
	gr_ram_sink_set_ignore_shared(f.sink, shared != NULL);
	if (pthread_create(&thread, NULL, receive_main, &f) != 0) {
		return 1;
	}
	rc = forward(&f, argv[2], &params, &err);
	if (rc < 0) {
		gr_receive_cancel(f.receive);
	}
	(void)pthread_join(thread, NULL);
	gr_receive_free(f.receive);
	gr_ram_sink_free(f.sink);
	gr_ram_free(f.ram);
	(void)gr_channel_close(in, NULL);
	free(f.tail);
	if (rc < 0) {
		die("forward", &err);
	}
	return 0;
}
