/* SPDX-License-Identifier: MIT */
/*
 * Whether the bandwidth limit of a move is kept: random RAM over a unix socket to a destination of
 * ours, while the guest runs. What was asked for stands beside what came, and how far that is off.
 *
 *   migrate.rate_limit    50 and 400 MB/s; all bytes on the wire over the time from the first to the last
 */
#include "bench/harness.h"
#include <errno.h>
#include <guestram/migrate.h>
#include <math.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>

enum { MB = 1000000, SECONDS = 3 };

struct receiver {
	struct gr_ram *ram;
	struct gr_channel *channel;
};

static void check(int rc, const struct gr_error *err)
{
	if (rc < 0) {
		bench_die("%s", err->msg);
	}
}

static void *receive(void *opaque)
{
	struct receiver *r = opaque;
	struct gr_destination *destination;
	struct gr_error err;

	check(gr_destination_create(r->ram, r->channel, NULL, NULL, &destination, &err), &err);
	check(gr_destination_run(destination, &err), &err);
	gr_destination_free(destination);
	return NULL;
}

/* The guest writes nothing, so that all its memory goes in the one round that is limited. */
static int on_pause(void *opaque, struct gr_error *err)
{
	(void)opaque;
	(void)err;
	return 0;
}

static void on_resume(void *opaque)
{
	(void)opaque;
}

static int on_save(void *opaque, struct gr_state_writer *writer, struct gr_error *err)
{
	(void)opaque;
	(void)writer;
	(void)err;
	return 0;
}

static struct gr_ram *make_ram(uint64_t bytes)
{
	struct gr_ram_block_desc desc = {
		.size = sizeof(desc), .id = "ram", .used_bytes = bytes, .fd = -1
	};
	struct gr_ram_block *block;
	struct gr_ram *ram;
	struct gr_error err;

	check(gr_ram_create(NULL, &ram, &err), &err);
	check(gr_ram_block_add(ram, &desc, &block, &err), &err);
	bench_fill_random(block->host, bytes, 1);
	return ram;
}

/* One move; bytes per second. */
static double move(struct gr_ram *from, uint64_t bytes, uint64_t limit)
{
	const struct gr_source_ops ops = { .pause = on_pause, .resume = on_resume, .save = on_save };
	const struct gr_source_params params = { .size = sizeof(params),
						 .bandwidth_bytes_per_s_max = limit };
	struct receiver r = { .ram = make_ram(bytes) };
	struct gr_migrate_stats stats;
	struct gr_channel *channel;
	struct gr_source *source;
	struct gr_error err;
	pthread_t thread;
	int fd[2];

	if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fd) < 0) {
		bench_die("no socket");
	}
	check(gr_channel_from_fd(fd[0], &channel, &err), &err);
	check(gr_channel_from_fd(fd[1], &r.channel, &err), &err);
	if (pthread_create(&thread, NULL, receive, &r) != 0) {
		bench_die("no thread");
	}
	check(gr_source_create(from, NULL, channel, &params, &ops, &source, &err), &err);
	check(gr_source_run(source, &err), &err);
	gr_source_stats(source, &stats);
	gr_source_free(source);
	(void)pthread_join(thread, NULL);
	(void)gr_channel_close(channel, NULL);
	(void)gr_channel_close(r.channel, NULL);
	gr_ram_free(r.ram);
	return (double)stats.transferred_bytes * 1e9 /
	       (double)(stats.total_time_ns - stats.setup_time_ns);
}

static void measure(const struct bench_options *o, unsigned int mb)
{
	uint64_t limit = (uint64_t)mb * MB;
	uint64_t bytes = limit * SECONDS / (o->quick ? 10 : 1) / 4096 * 4096;
	char name[64];
	struct bench_result result = { .name = name,
				       .unit = "MB/s",
				       .peer_name = "what was asked for",
				       .more_is_better = true };
	struct gr_ram *from = make_ram(bytes);
	double worst = 0;

	(void)snprintf(name, sizeof(name), "migrate.rate_limit/%u", mb);
	for (int i = 0; i < o->runs; i++) {
		double got = move(from, bytes, limit);
		double off = (got / (double)limit - 1) * 100;

		worst = fabs(off) > fabs(worst) ? off : worst;
		bench_add(&result, got / MB, mb);
		if (!o->json) {
			printf("# asked %u MB/s, got %.2f: %+.2f %%\n", mb, got / MB, off);
		}
	}
	bench_print(o, &result);
	if (!o->json) {
		printf("# the worst of %d: %+.2f %%\n", o->runs, worst);
	}
	gr_ram_free(from);
}

int main(int argc, char **argv)
{
	struct bench_options o;

	bench_options_parse(&o, argc, argv);
	if (bench_wanted(&o, "migrate.rate_limit/50")) {
		measure(&o, 50);
	}
	if (bench_wanted(&o, "migrate.rate_limit/400")) {
		measure(&o, 400);
	}
	return 0;
}
