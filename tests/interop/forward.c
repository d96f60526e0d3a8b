/* SPDX-License-Identifier: MIT */
/*
 * forward FROM TO [OPTION...]: a migration that comes in is sent on by a source of our own while it
 * comes in: what arrives marks pages, and the marks are the source's dirty pages. So a guest in a
 * QEMU writes, and another QEMU is served by our source: rounds, differences, further channels, the
 * switch-over. Prints what it did, one "key value" a line; "round N", "throttle N" and
 * "pre-switchover" at once.
 *
 *   TO is a URI, save:PATH or snapshot:PATH: an image of the machine as it came
 *   rounds=N         switch over after so many (8)
 *   pages=N          that each is to bring, at least, as long as any come (512)
 *   cache=MIB        differences, with a cache of this size
 *   multifd=N        further channels at both ends, with
 *   compression=NAME none, zlib, zstd
 *   uuid=32 digits   of the machine; with
 *   validate=1       the stream says it, and both ends compare
 *   shared=FILE      is the machine's main memory, which all have mapped (x-ignore-shared)
 *   ack=1            the destinations' word is waited for
 *   pause=1          stops before the switch-over until a line comes on standard input
 *   converge=1       slows the source's machine down, that is: what comes in
 *   plain=1          nobody answers at TO
 */
#include "forward.h"
#include "base/clock.h"
#include "migrate/source.h"
#include "migrate/state_writer.h"
#include <errno.h>
#include <guestram/image.h>
#include <guestram/snapshot.h>
#include <inttypes.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { SCRIBBLE_STEP = 4096, SCRIBBLE_FIRST = 2 << 20 /* the writer's region */ };

#define PERIOD_NS_MIN (GR_NS_PER_S + GR_NS_PER_S / 10)

struct forward {
	struct incoming in;
	struct gr_receive_params receive;
	struct gr_source_params source;
	struct gr_multifd multifd; /* to the destination */
	uint8_t uuid[GR_STREAM_UUID_BYTES];
	uint64_t pages_per_round;
	uint64_t round, round_ns;
	pthread_t scribbler;
	bool scribbles;
};

static _Noreturn void die(const char *what, const struct gr_error *err)
{
	(void)fprintf(stderr, "%s: %s\n", what, err->msg);
	exit(1);
}

static void say(const char *what, uint64_t value)
{
	printf("%s %" PRIu64 "\n", what, value);
	(void)fflush(stdout);
}

/* The guest stands still when all of it has come. */
static int on_pause(void *opaque, struct gr_error *err)
{
	struct forward *f = opaque;

	return incoming_await_end(&f->in, err);
}

static void on_resume(void *opaque)
{
	(void)opaque;
}

static int on_save(void *opaque, struct gr_state_writer *writer, struct gr_error *err)
{
	struct forward *f = opaque;

	return incoming_save(&f->in, writer, err);
}

static void on_throttle(void *opaque, unsigned int percent)
{
	struct forward *f = opaque;

	/* A number by itself; no order with anything. */
	gr_store_relaxed(&f->in.throttle_percent, percent);
	say("throttle", percent);
}

/* A round that found nothing would be the last one: more has to come before the next. */
static void on_progress(void *opaque, const struct gr_migrate_stats *stats)
{
	struct forward *f = opaque;
	uint64_t before = incoming_pages(&f->in);

	if (stats->rounds == f->round) {
		return;
	}
	f->round = stats->rounds;
	say("round", f->round);
	while (!incoming_has_ended(&f->in) &&
	       (incoming_pages(&f->in) < before + f->pages_per_round ||
		/* how fast a guest dirties is judged once a second */
		(f->source.auto_converge && gr_clock_ns() - f->round_ns < PERIOD_NS_MIN))) {
		(void)usleep(1000);
	}
	f->round_ns = gr_clock_ns();
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

static void report_incoming(struct incoming *in)
{
	struct gr_migrate_stats stats;

	gr_receive_stats(in->receive, &stats);
	printf("in_normal %" PRIu64 "\nin_zero %" PRIu64 "\nin_xbzrle %" PRIu64 "\n",
	       stats.normal_pages, stats.zero_pages, stats.xbzrle_pages);
}

/* Where it waits before the switch-over, until it is told to go on. */
static int go_on_when_told(struct gr_source *source, bool *told, struct gr_error *err)
{
	struct pollfd input = { .fd = STDIN_FILENO, .events = POLLIN };
	struct gr_migrate_stats stats;

	gr_source_stats(source, &stats);
	if (stats.state != GR_MIGRATE_PRE_SWITCHOVER) {
		return 1;
	}
	if (!*told) {
		*told = true;
		say("pre-switchover", stats.rounds);
	}
	return poll(&input, 1, 0) > 0 && gr_source_continue(source, err) < 0 ? err->code : 1;
}

static int run(struct forward *f, struct gr_source *source, struct gr_error *err)
{
	bool told = false;
	int rc;

	do {
		rc = gr_source_step(source, err);
		if (rc > 0 && f->source.pause_before_switchover) {
			rc = go_on_when_told(source, &told, err);
		}
	} while (rc > 0);
	return rc;
}

static int send_on(struct forward *f, const char *to, struct gr_error *err)
{
	struct gr_source_ops ops = { .pause = on_pause,
				     .resume = on_resume,
				     .save = on_save,
				     .progress = on_progress,
				     .throttle = on_throttle,
				     .opaque = f };
	struct gr_channel *out = NULL, *further[FURTHER_MAX];
	struct gr_source *source = NULL;
	struct gr_migrate_stats stats;
	int close_rc, rc;

	if (f->multifd.count) {
		rc = gr_multifd_connect(to, f->multifd.count, &out, further, err);
		f->multifd.channels = further;
		f->source.multifd = &f->multifd;
	} else {
		rc = gr_channel_connect(to, &out, err);
	}
	if (rc < 0) {
		return rc;
	}
	f->source.machine = f->in.machine;
	rc = gr_source_create(f->in.ram, NULL, out, &f->source, &ops, &source, err);
	if (rc == 0) {
		rc = run(f, source, err);
	}
	if (rc == 0) {
		gr_source_stats(source, &stats);
		report(&stats);
	}
	gr_source_free(source);
	for (unsigned int i = 0; i < f->multifd.count; i++) {
		(void)gr_channel_close(further[i], NULL);
	}
	close_rc = gr_channel_close(out, rc == 0 ? err : NULL);
	return rc < 0 ? rc : close_rc;
}

static int save(struct forward *f, const char *path, struct gr_error *err)
{
	struct gr_image_save_params params = {
		.size = sizeof(params),
		.machine = f->in.machine,
		.save = on_save,
		.threads = 2,
		.opaque = f,
	};
	int rc = incoming_await_end(&f->in, err);

	return rc < 0 ? rc : gr_image_save(f->in.ram, path, &params, NULL, err);
}

static void scribble(struct forward *f, uint64_t from, uint64_t to)
{
	struct gr_ram_block *block;

	gr_rcu_read_lock();
	block = gr_ram_block_by_id_rcu(f->in.ram, "pc.ram");
	gr_ram_block_get(block);
	gr_rcu_read_unlock();
	for (; from < to && from < gr_ram_block_used_bytes(block); from += SCRIBBLE_STEP) {
		memset(block->host + from, 0xa5, SCRIBBLE_STEP);
	}
	gr_ram_block_put(block);
}

static void *scribble_main(void *opaque)
{
	scribble(opaque, 0, UINT64_MAX);
	return NULL;
}

/*
 * A guest that writes to all of its memory once the moment is over, and to some before anything can
 * have been saved: nothing of it may be in the image.
 */
static void on_moment_over(void *opaque)
{
	struct forward *f = opaque;

	scribble(f, SCRIBBLE_FIRST, SCRIBBLE_FIRST + 16 * SCRIBBLE_STEP);
	f->scribbles = pthread_create(&f->scribbler, NULL, scribble_main, f) == 0;
}

static int snapshot(struct forward *f, const char *path, struct gr_error *err)
{
	struct gr_source_ops ops = {
		.pause = on_pause, .resume = on_moment_over, .save = on_save, .opaque = f
	};
	struct gr_snapshot_params params = {
		.size = sizeof(params),
		.machine = f->in.machine,
		.writers = GR_WRITERS_STORES,
		.buffer_bytes = 1 << 20,
	};
	struct gr_snapshot_stats stats;
	struct gr_snapshot *s = NULL;
	int rc = incoming_await_end(&f->in, err);

	if (rc == 0) {
		rc = gr_snapshot_create(f->in.ram, path, &params, &ops, &s, err);
	}
	if (rc < 0) {
		return rc;
	}
	rc = gr_snapshot_run(s, err);
	gr_snapshot_stats(s, &stats);
	printf("copied %" PRIu64 "\n", stats.copied_pages);
	gr_snapshot_free(s); /* if it failed, stores go on only now */
	if (f->scribbles) {
		(void)pthread_join(f->scribbler, NULL);
	}
	return rc;
}

static const char *after(const char *text, const char *prefix)
{
	size_t n = strlen(prefix);

	return strncmp(text, prefix, n) == 0 ? text + n : NULL;
}

static int forward(struct forward *f, const char *to, struct gr_error *err)
{
	int rc = incoming_await_blocks(&f->in, err);

	if (rc < 0) {
		return rc;
	}
	if (after(to, "save:")) {
		return save(f, after(to, "save:"), err);
	}
	if (after(to, "snapshot:")) {
		return snapshot(f, after(to, "snapshot:"), err);
	}
	return send_on(f, to, err);
}

static void read_uuid(const char *text, uint8_t *uuid)
{
	for (int i = 0; i < GR_STREAM_UUID_BYTES; i++) {
		char byte[3] = { text[2 * i], text[2 * i + 1], '\0' };

		uuid[i] = (uint8_t)strtoul(byte, NULL, 16);
	}
}

static bool read_compression(struct forward *f, const char *text)
{
	static const enum gr_multifd_compression all[] = { GR_MULTIFD_NONE, GR_MULTIFD_ZLIB,
							   GR_MULTIFD_ZSTD };

	for (size_t i = 0; i < GR_ARRAY_SIZE(all); i++) {
		if (strcmp(text, gr_multifd_compression_name(all[i])) == 0) {
			f->in.multifd.compression = f->multifd.compression = all[i];
			return true;
		}
	}
	return false;
}

static bool read_option(struct forward *f, const char *text)
{
	const char *value = strchr(text, '=');
	size_t n = value ? (size_t)(value++ - text) : 0;
	char key[16];

	if (n == 0 || n >= sizeof(key)) {
		return false;
	}
	memcpy(key, text, n);
	key[n] = '\0';
	if (strcmp(key, "rounds") == 0) {
		f->source.rounds_max = strtoull(value, NULL, 10);
	} else if (strcmp(key, "pages") == 0) {
		f->pages_per_round = strtoull(value, NULL, 10);
	} else if (strcmp(key, "cache") == 0) {
		f->source.xbzrle_cache_bytes = strtoull(value, NULL, 10) << 20;
	} else if (strcmp(key, "multifd") == 0) {
		f->multifd.count = (unsigned int)strtoul(value, NULL, 10) % (FURTHER_MAX + 1);
		f->in.multifd.count = f->multifd.count;
	} else if (strcmp(key, "compression") == 0) {
		return read_compression(f, value);
	} else if (strcmp(key, "uuid") == 0 && strlen(value) == 2 * sizeof(f->uuid)) {
		read_uuid(value, f->uuid);
		f->in.multifd.uuid = f->multifd.uuid = f->uuid;
	} else if (strcmp(key, "validate") == 0) {
		f->source.uuid = f->receive.uuid = f->uuid;
	} else if (strcmp(key, "shared") == 0) {
		f->in.shared = value;
		f->source.ignore_shared = f->receive.ignore_shared = true;
	} else if (strcmp(key, "ack") == 0) {
		f->source.switchover_ack = f->receive.switchover_ack = true;
	} else if (strcmp(key, "pause") == 0) {
		f->source.pause_before_switchover = true;
	} else if (strcmp(key, "converge") == 0) {
		f->source.auto_converge = true;
		f->source.throttle_trigger_percent = 20;
	} else if (strcmp(key, "plain") == 0) {
		f->source.plain = true;
	} else {
		return false;
	}
	return true;
}

int main(int argc, char **argv)
{
	struct forward f = {
		.pages_per_round = 512,
		.source = { .size = sizeof(f.source), .downtime_ns_max = 1, .rounds_max = 8 }
	};
	struct gr_error err;
	int rc;

	for (int i = 3; i < argc; i++) {
		if (!read_option(&f, argv[i])) {
			argc = 0;
		}
	}
	if (argc < 3) {
		(void)fprintf(stderr, "usage: forward FROM TO [OPTION=VALUE]...\n");
		return 2;
	}
	if (incoming_start(&f.in, argv[1], &f.receive, &err) < 0) {
		die("receive", &err);
	}
	rc = forward(&f, argv[2], &err);
	if (rc == 0) {
		report_incoming(&f.in);
	}
	incoming_end(&f.in);
	if (rc < 0) {
		die("forward", &err);
	}
	return 0;
}
