/* SPDX-License-Identifier: MIT */
/*
 * live_destination URI CHANNELS COMPRESSION BYTES OUT: a machine of ours is the destination of a
 * QEMU that sends over further channels. It has a pc.ram of so many bytes already, none of them
 * zero. What is in it afterwards goes to OUT.
 */
#include <guestram/guestram.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { CHANNELS_MAX = 16 };

static _Noreturn void die(const char *what, const struct gr_error *err)
{
	(void)fprintf(stderr, "%s: %s\n", what, err->msg);
	exit(1);
}

static enum gr_multifd_compression compression_of(const char *name)
{
	enum gr_multifd_compression c = GR_MULTIFD_NONE;

	while (c < GR_MULTIFD_ZSTD && strcmp(name, gr_multifd_compression_name(c)) != 0) {
		c++;
	}
	return c;
}

static struct gr_ram_block *add_used_memory(struct gr_ram *ram, uint64_t bytes)
{
	struct gr_ram_block_desc desc = {
		.size = sizeof(desc),
		.id = "pc.ram",
		.used_bytes = bytes,
	};
	struct gr_ram_block *block;
	struct gr_error err;

	if (gr_ram_block_add(ram, &desc, &block, &err) < 0) {
		die("pc.ram", &err);
	}
	memset(block->host, 0xff, bytes);
	return block;
}

static void receive(struct gr_ram *ram, struct gr_channel *main_channel, struct gr_multifd *multifd)
{
	struct gr_destination_params params = { .size = sizeof(params), .multifd = multifd };
	struct gr_destination *destination;
	struct gr_migrate_stats stats;
	struct gr_error err;

	if (gr_destination_create(ram, main_channel, &params, NULL, &destination, &err) < 0 ||
	    gr_destination_run(destination, &err) < 0) {
		die("receive", &err);
	}
	gr_destination_stats(destination, &stats);
	printf("{\"normal\": %" PRIu64 ", \"zero\": %" PRIu64 ", \"state\": \"%s\"}\n",
	       stats.normal_pages, stats.zero_pages, gr_migrate_state_name(stats.state));
	gr_destination_free(destination);
}

static void write_out(const struct gr_ram_block *block, uint64_t bytes, const char *path)
{
	FILE *f = fopen(path, "wb");

	if (!f || fwrite(block->host, 1, bytes, f) != bytes || fclose(f) != 0) {
		perror(path);
		exit(1);
	}
}

int main(int argc, char **argv)
{
	struct gr_channel *main_channel, *further[CHANNELS_MAX];
	struct gr_multifd multifd = { .channels = further };
	struct gr_channel_listener *listener;
	struct gr_ram_block *block;
	struct gr_ram *ram;
	struct gr_error err;
	uint64_t bytes;

	if (argc != 6 || strtoul(argv[2], NULL, 10) > CHANNELS_MAX) {
		(void)fprintf(stderr,
			      "usage: live_destination URI CHANNELS COMPRESSION BYTES OUT\n");
		return 2;
	}
	multifd.count = (unsigned int)strtoul(argv[2], NULL, 10);
	multifd.compression = compression_of(argv[3]);
	bytes = strtoull(argv[4], NULL, 10);
	if (gr_channel_listen(argv[1], &listener, &err) < 0) {
		die("listen", &err);
	}
	(void)fprintf(stderr, "listening on %s\n", gr_channel_listener_uri(listener));
	if (gr_multifd_accept(listener, multifd.count, &main_channel, further, &err) < 0 ||
	    gr_ram_create(NULL, &ram, &err) < 0) {
		die("start", &err);
	}
	gr_channel_listener_close(listener);
	block = add_used_memory(ram, bytes);
	receive(ram, main_channel, &multifd);
	write_out(block, bytes, argv[5]);
	gr_ram_free(ram);
	for (unsigned int i = 0; i < multifd.count; i++) {
		(void)gr_channel_close(further[i], NULL);
	}
	(void)gr_channel_close(main_channel, NULL);
	return 0;
}
