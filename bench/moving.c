/* SPDX-License-Identifier: MIT */
/*
 * What a migration costs those who wait for readers: one runs from a guest that writes to a
 * destination in this process, through a socket, while blocks are plugged and unplugged as fast as
 * one in a millisecond; the destination follows. Both memories are compared at the end of each run,
 * and every block's memory must have come back.
 *
 *   moving.section/save      the longest read-side section of the source, against 1 ms
 *   moving.section/load      that of the destination
 *   moving.delete_to_freed/p50, /p99
 *                            from gr_ram_block_del() to the return of the block's memory, against 5
 * ms
 */
#include "bench/harness.h"
#include <guestram/guestram.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

enum { DIMMS_MAX = 20000, DIMM_BYTES = 1 << 16 };

struct world {
	struct gr_ram *from, *to;
	uint64_t bytes;
	uint8_t *dimms;		   /* memory of the blocks that come and go */
	double deleted[DIMMS_MAX]; /* when */
	double freed[DIMMS_MAX];   /* 0: not yet */
	unsigned plugged;
	pthread_mutex_t lock;
	bool paused, stop; /* (lock) the guest's writer and the plugger */
};

static void give_back(void *host, uint64_t bytes, void *opaque)
{
	struct world *w = opaque;

	w->freed[(size_t)((uint8_t *)host - w->dimms) / bytes] = bench_now_s();
}

/*
 * Whoever changes the machine holds the lock for it, so that pausing it is taking the lock. Waits
 * while it is paused; false, without the lock: it is over.
 */
static bool enter(struct world *w)
{
	pthread_mutex_lock(&w->lock);
	while (w->paused && !w->stop) {
		pthread_mutex_unlock(&w->lock);
		usleep(100);
		pthread_mutex_lock(&w->lock);
	}
	if (w->stop) {
		pthread_mutex_unlock(&w->lock);
		return false;
	}
	return true;
}

static void *guest(void *opaque)
{
	struct world *w = opaque;
	uint64_t at = 0;

	while (enter(w)) {
		for (int i = 0; i < 16; i++) {
			at = at * 6364136223846793005u + 1442695040888963407u;
			if (gr_ram_write(w->from, gr_gpa(at % (w->bytes / 8) * 8), &at, 8, NULL) <
			    0) {
				bench_die("a write went wrong");
			}
		}
		pthread_mutex_unlock(&w->lock);
		usleep(200);
	}
	return NULL;
}

static void plug_and_unplug(struct world *w)
{
	struct gr_ram_block_desc desc = { .size = sizeof(desc),
					  .id = "dimm",
					  .used_bytes = DIMM_BYTES,
					  .backing = GR_RAM_CALLER,
					  .host = w->dimms + (size_t)w->plugged * DIMM_BYTES,
					  .fd = -1,
					  .release = give_back,
					  .opaque = w };
	struct gr_ram_block *block;

	/* Refused from the switch-over on. */
	if (w->plugged == DIMMS_MAX || gr_ram_block_add(w->from, &desc, &block, NULL) < 0) {
		return;
	}
	w->deleted[w->plugged++] = bench_now_s();
	if (gr_ram_block_del(block, NULL) < 0) {
		bench_die("the block is not there");
	}
}

static void *plugger(void *opaque)
{
	struct world *w = opaque;

	while (enter(w)) {
		plug_and_unplug(w);
		pthread_mutex_unlock(&w->lock);
		usleep(800);
	}
	return NULL;
}

static int pause_machine(void *opaque, struct gr_error *err)
{
	struct world *w = opaque;

	(void)err;
	pthread_mutex_lock(&w->lock);
	w->paused = true;
	pthread_mutex_unlock(&w->lock);
	return 0;
}

static void resume_machine(void *opaque)
{
	struct world *w = opaque;

	pthread_mutex_lock(&w->lock);
	w->paused = false;
	pthread_mutex_unlock(&w->lock);
}

static int save_nothing(void *opaque, struct gr_state_writer *writer, struct gr_error *err)
{
	(void)opaque;
	(void)writer;
	(void)err;
	return 0;
}

static void *receive(void *opaque)
{
	struct gr_error err;

	if (gr_destination_run(opaque, &err) < 0) {
		bench_die("destination: %s", err.msg);
	}
	return NULL;
}

/* Runs a move of about so many seconds; the longest sections of both sides, in nanoseconds. */
static void move(struct world *w, double seconds, uint64_t *save_ns, uint64_t *load_ns)
{
	struct gr_source_ops ops = {
		.pause = pause_machine, .resume = resume_machine, .save = save_nothing, .opaque = w
	};
	struct gr_source_params params = { .size = sizeof(params) };
	struct gr_destination *destination;
	struct gr_migrate_stats stats;
	struct gr_channel *channel[2];
	struct gr_source *source;
	struct gr_error err;
	pthread_t thread;
	int fd[2];

	params.bandwidth_bytes_per_s_max = (uint64_t)((double)w->bytes / seconds);
	params.rounds_max = 3;
	if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fd) != 0 ||
	    gr_channel_from_fd(fd[0], &channel[0], &err) < 0 ||
	    gr_channel_from_fd(fd[1], &channel[1], &err) < 0 ||
	    gr_source_create(w->from, NULL, channel[0], &params, &ops, &source, &err) < 0 ||
	    gr_destination_create(w->to, channel[1], NULL, NULL, &destination, &err) < 0 ||
	    pthread_create(&thread, NULL, receive, destination) != 0) {
		bench_die("no migration");
	}
	if (gr_source_run(source, &err) < 0) {
		bench_die("source: %s", err.msg);
	}
	pthread_join(thread, NULL);
	gr_source_stats(source, &stats);
	*save_ns = stats.section_ns_max;
	gr_destination_stats(destination, &stats);
	*load_ns = stats.section_ns_max;
	gr_source_free(source);
	gr_destination_free(destination);
	(void)gr_channel_close(channel[0], NULL);
	(void)gr_channel_close(channel[1], NULL);
}

static void compare(struct world *w)
{
	struct gr_ram_block *from, *to;

	gr_rcu_read_lock();
	from = gr_ram_block_by_id_rcu(w->from, "ram");
	to = gr_ram_block_by_id_rcu(w->to, "ram");
	if (!from || !to || memcmp(from->host, to->host, w->bytes) != 0 ||
	    gr_ram_block_by_id_rcu(w->to, "dimm")) {
		bench_die("the destination has other RAM than its source");
	}
	gr_rcu_read_unlock();
}

static int by_size(const void *a, const void *b)
{
	double x = *(const double *)a, y = *(const double *)b;

	return (x > y) - (x < y);
}

static struct world *world_create(uint64_t bytes)
{
	struct gr_ram_block_desc desc = {
		.size = sizeof(desc), .id = "ram", .used_bytes = bytes, .mapped = true, .fd = -1
	};
	struct world *w = calloc(1, sizeof(*w));
	struct gr_ram_block *block;
	struct gr_error err;

	if (!w || gr_ram_create(NULL, &w->from, &err) < 0 ||
	    gr_ram_create(NULL, &w->to, &err) < 0 ||
	    gr_ram_block_add(w->from, &desc, &block, &err) < 0) {
		bench_die("no machine");
	}
	w->bytes = bytes;
	bench_fill_random(block->host, bytes, 1);
	gr_ram_mark(block, 0, bytes);
	w->dimms = mmap(NULL, (size_t)DIMMS_MAX * DIMM_BYTES, PROT_READ | PROT_WRITE,
			MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (w->dimms == MAP_FAILED) {
		bench_die("no address space");
	}
	pthread_mutex_init(&w->lock, NULL);
	return w;
}

static void one_run(double seconds, uint64_t bytes, struct bench_result r[4])
{
	struct world *w = world_create(bytes);
	pthread_t writer, plugs;
	uint64_t save_ns, load_ns;

	if (pthread_create(&writer, NULL, guest, w) != 0 ||
	    pthread_create(&plugs, NULL, plugger, w) != 0) {
		bench_die("no thread");
	}
	move(w, seconds, &save_ns, &load_ns);
	pthread_mutex_lock(&w->lock);
	w->stop = true;
	pthread_mutex_unlock(&w->lock);
	pthread_join(writer, NULL);
	pthread_join(plugs, NULL);
	compare(w);
	gr_rcu_barrier(NULL);
	for (unsigned i = 0; i < w->plugged; i++) {
		if (w->freed[i] < w->deleted[i]) {
			bench_die("block %u has not come back", i);
		}
		w->freed[i] -= w->deleted[i];
	}
	if (w->plugged < 10) {
		bench_die("only %u blocks came and went", w->plugged);
	}
	qsort(w->freed, w->plugged, sizeof(w->freed[0]), by_size);
	bench_add(&r[0], (double)save_ns / 1e6, 1);
	bench_add(&r[1], (double)load_ns / 1e6, 1);
	bench_add(&r[2], w->freed[w->plugged / 2] * 1e3, 5);
	bench_add(&r[3], w->freed[(size_t)w->plugged * 99 / 100] * 1e3, 5);
	gr_ram_free(w->from);
	gr_ram_free(w->to);
	munmap(w->dimms, (size_t)DIMMS_MAX * DIMM_BYTES);
	free(w);
}

int main(int argc, char **argv)
{
	struct bench_result r[] = {
		{ .name = "moving.section/save", .unit = "ms", .peer_name = "1 ms" },
		{ .name = "moving.section/load", .unit = "ms", .peer_name = "1 ms" },
		{ .name = "moving.delete_to_freed/p50", .unit = "ms", .peer_name = "5 ms" },
		{ .name = "moving.delete_to_freed/p99", .unit = "ms", .peer_name = "5 ms" },
	};
	struct bench_options o;
	bool wanted = false;

	bench_options_parse(&o, argc, argv);
	for (size_t i = 0; i < 4; i++) {
		wanted |= bench_wanted(&o, r[i].name);
	}
	for (int run = 0; wanted && run < o.runs; run++) {
		one_run(o.quick ? 0.3 : 3, (o.quick ? 32u : 256u) << 20, r);
	}
	for (size_t i = 0; wanted && i < 4; i++) {
		if (bench_wanted(&o, r[i].name)) {
			bench_print(&o, &r[i]);
		}
	}
	return 0;
}
