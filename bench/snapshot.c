/* SPDX-License-Identifier: MIT */
/*
 * What a guest feels of a snapshot. A thread stores to random pages at a steady rate, and measures
 * each store to a page that it has not written since the snapshot began: those are the ones that
 * can wait. The disk is slow: the snapshot writes so many bytes a second and no more. Below the
 * bound the buffer takes all that comes; above it, it is too small and stores wait for the disk.
 *
 * The peer is what QEMU's background snapshot does with a store to a page that is not saved yet:
 * its thread saves that page to the disk and lets the store go on afterwards, with no buffer. It is
 * rebuilt on the same copy before write, in the same run, with the same rate. Beside it stands
 * QEMU's own (".../qemu"), whose guest measures its stores itself; without real-time priority on
 * both sides.
 */
#include "bench/guest.h"
#include "bench/harness.h"
#include "bench/qemu.h"
#include "bench/snapshot_qemu.h"
#include <errno.h>
#include <guestram/snapshot.h>
#include <guestram/track.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

enum { PAGE = 4096, SIZE_MIB_MAX = 64, GAP_NS = 200000 };

struct guest {
	uint8_t *host;
	uint64_t pages;
	uint64_t gap_ns; /* between two stores */
	uint8_t *written;
	double *stall_s; /* of the stores to pages not written before */
	uint64_t stalls;
	uint32_t stop; /* (a) */
	double p99_s, max_s;
};

static void sleep_ns(uint64_t ns)
{
	const struct timespec ts = { (time_t)(ns / 1000000000u), (long)(ns % 1000000000u) };

	(void)clock_nanosleep(CLOCK_MONOTONIC, 0, &ts, NULL);
}

static void *write_on(void *opaque)
{
	struct guest *g = opaque;
	uint64_t rnd = 88172645463325252u;

	while (!__atomic_load_n(&g->stop, __ATOMIC_RELAXED)) {
		uint64_t page;
		double began;

		rnd ^= rnd << 13;
		rnd ^= rnd >> 7;
		rnd ^= rnd << 17;
		page = rnd % g->pages;
		began = bench_now_s();
		*(volatile uint64_t *)(void *)(g->host + page * PAGE) = rnd;
		if (!g->written[page]) {
			g->written[page] = 1;
			g->stall_s[g->stalls++] = bench_now_s() - began;
		}
		sleep_ns(g->gap_ns);
	}
	return NULL;
}

static void summarize(struct guest *g)
{
	if (g->stalls == 0) {
		bench_die("the guest wrote nothing");
	}
	bench_sort(g->stall_s, g->stalls);
	g->p99_s = g->stall_s[g->stalls - 1 - g->stalls / 100];
	g->max_s = g->stall_s[g->stalls - 1];
}

static struct gr_ram *make_machine(const struct bench_options *o, struct guest *g)
{
	struct gr_ram_block_desc desc = {
		.size = sizeof(desc), .id = "ram", .used_bytes = o->size_mib << 20, .fd = -1
	};
	struct gr_ram_block *block;
	struct gr_ram *ram;
	struct gr_error err;

	if (gr_ram_create(NULL, &ram, &err) < 0 || gr_ram_block_add(ram, &desc, &block, &err) < 0) {
		bench_die("%s", err.msg);
	}
	bench_fill_random(block->host, desc.used_bytes, 1);
	g->host = block->host;
	g->pages = desc.used_bytes / PAGE;
	g->written = calloc(g->pages, 1);
	g->stall_s = calloc(g->pages, sizeof(*g->stall_s));
	g->gap_ns = GAP_NS;
	if (!g->written || !g->stall_s) {
		bench_die("no memory");
	}
	return ram;
}

static void free_machine(struct gr_ram *ram, struct guest *g)
{
	gr_ram_free(ram);
	free(g->written);
	free(g->stall_s);
}

/* ---- ours ------------------------------------------------------------------------------ */

static void ours(const struct bench_options *o, uint64_t rate, uint64_t buffer, struct guest *g)
{
	struct gr_snapshot_params params = { .size = sizeof(params),
					     .writers = GR_WRITERS_STORES,
					     .buffer_bytes = buffer,
					     .bandwidth_bytes_per_s_max = rate };
	struct gr_ram *ram = make_machine(o, g);
	struct gr_snapshot *snapshot;
	struct gr_error err;
	char path[64];
	pthread_t t;
	int ret;

	(void)snprintf(path, sizeof(path), "/tmp/gr-bench-snapshot-%d", (int)getpid());
	/* No ops: nobody writes before the first step is done. */
	if (gr_snapshot_create(ram, path, &params, NULL, &snapshot, &err) < 0 ||
	    gr_snapshot_step(snapshot, &err) < 0) {
		bench_die("%s", err.msg);
	}
	ret = pthread_create(&t, NULL, write_on, g);
	if (ret != 0) {
		bench_die("no thread: %s", strerror(ret));
	}
	if (gr_snapshot_run(snapshot, &err) < 0) {
		bench_die("%s", err.msg);
	}
	__atomic_store_n(&g->stop, 1, __ATOMIC_RELAXED);
	(void)pthread_join(t, NULL);
	gr_snapshot_free(snapshot);
	(void)unlink(path);
	summarize(g);
	free_machine(ram, g);
}

/* ---- the peer: save the page that is waited for, then let go --------------------------- */

struct unbuffered {
	FILE *file;
	uint64_t rate;
	double next_s; /* (lock) when the disk takes the next page */
	pthread_mutex_t lock;
};

static void to_disk(struct unbuffered *u, const struct gr_cbw_piece *piece)
{
	double now;

	(void)pthread_mutex_lock(&u->lock);
	now = bench_now_s();
	u->next_s = u->next_s < now ? now : u->next_s;
	u->next_s += (double)piece->bytes / (double)u->rate;
	sleep_ns((uint64_t)((u->next_s - now) * 1e9));
	if (fwrite(piece->host, 1, piece->bytes, u->file) != piece->bytes) {
		bench_die("cannot write: %s", strerror(errno));
	}
	(void)pthread_mutex_unlock(&u->lock);
}

static enum gr_cbw_verdict save_at_once(void *opaque, const struct gr_cbw_piece *piece)
{
	to_disk(opaque, piece);
	return GR_CBW_SAVED;
}

static void unbuffered(const struct bench_options *o, uint64_t rate, struct guest *g)
{
	struct unbuffered u = { .file = tmpfile(), .rate = rate };
	const struct gr_cbw_params params = { .size = sizeof(params),
					      .writers = GR_WRITERS_STORES,
					      .before_write = save_at_once,
					      .opaque = &u };
	struct gr_ram *ram = make_machine(o, g);
	struct gr_cbw_piece piece;
	struct gr_cbw *cbw;
	struct gr_error err;
	pthread_t t;
	int ret;

	(void)pthread_mutex_init(&u.lock, NULL);
	if (!u.file || gr_cbw_start(ram, &params, &cbw, &err) < 0) {
		bench_die("%s", u.file ? err.msg : strerror(errno));
	}
	ret = pthread_create(&t, NULL, write_on, g);
	if (ret != 0) {
		bench_die("no thread: %s", strerror(ret));
	}
	while ((ret = gr_cbw_next(cbw, PAGE, &piece, &err)) > 0) {
		to_disk(&u, &piece);
		gr_cbw_release(cbw, &piece);
	}
	__atomic_store_n(&g->stop, 1, __ATOMIC_RELAXED);
	(void)pthread_join(t, NULL);
	if (ret < 0 || gr_cbw_end(cbw, &err) < 0) {
		bench_die("%s", err.msg);
	}
	(void)fclose(u.file);
	(void)pthread_mutex_destroy(&u.lock);
	summarize(g);
	free_machine(ram, g);
}

static void run(const struct bench_options *o, const char *name, uint64_t rate, uint64_t buffer)
{
	struct bench_result p99 = { .unit = "s", .peer_name = "saved before it goes on" };
	struct bench_result max = p99;
	char max_name[64];

	if (!bench_wanted(o, name)) {
		return;
	}
	p99.name = name;
	(void)snprintf(max_name, sizeof(max_name), "%s/max", name);
	max.name = max_name;
	for (int i = 0; i < o->runs; i++) {
		struct guest a = { .stop = 0 }, b = { .stop = 0 };

		ours(o, rate, buffer, &a);
		unbuffered(o, rate, &b);
		bench_add(&p99, a.p99_s, b.p99_s);
		bench_add(&max, a.max_s, b.max_s);
	}
	bench_print(o, &p99);
	bench_print(o, &max);
}

static void run_qemu(const struct bench_options *o, const char *name, uint64_t rate,
		     uint64_t buffer)
{
	struct bench_result p99 = { .unit = "s" }, max = p99;
	char tmp[] = "/dev/shm/guestram-bench-XXXXXX";
	const char *version = bench_qemu_version();
	char names[2][64], peer_name[64], command[64];

	if (!bench_wanted(o, name)) {
		return;
	}
	if (!version || bench_guest_ticks_per_s() == 0) {
		(void)fprintf(stderr, "%s/qemu: skipped, %s\n", name,
			      version ? "its guest is for x86" : "no QEMU");
		return;
	}
	(void)snprintf(names[0], sizeof(names[0]), "%s/qemu", name);
	(void)snprintf(names[1], sizeof(names[1]), "%s/qemu_max", name);
	(void)snprintf(peer_name, sizeof(peer_name), "QEMU %s", version);
	p99.name = names[0];
	max.name = names[1];
	p99.peer_name = max.peer_name = peer_name;
	if (!mkdtemp(tmp)) {
		bench_die("cannot make a folder: %s", strerror(errno));
	}
	bench_give_up_real_time();
	for (int i = 0; i < o->runs; i++) {
		struct bench_stalls qemu;
		struct guest a = { .stop = 0 };

		ours(o, rate, buffer, &a);
		qemu = bench_qemu_snapshot(tmp, o->size_mib << 20, GAP_NS * 1e-9, rate);
		bench_add(&p99, a.p99_s, qemu.p99_s);
		bench_add(&max, a.max_s, qemu.max_s);
	}
	bench_print(o, &p99);
	bench_print(o, &max);
	(void)snprintf(command, sizeof(command), "rm -rf '%s'", tmp);
	(void)!system(command);
}

int main(int argc, char **argv)
{
	struct bench_options o;

	bench_options_parse(&o, argc, argv);
	/* How long a store waits does not depend on it, how long all takes does. */
	o.size_mib = o.size_mib > SIZE_MIB_MAX ? SIZE_MIB_MAX : o.size_mib;
	run(&o, "snapshot.stall_p99", UINT64_C(32) << 20, UINT64_C(64) << 20);
	run(&o, "snapshot.stall_p99_full", UINT64_C(8) << 20, UINT64_C(1) << 18);
	run_qemu(&o, "snapshot.stall_p99", UINT64_C(32) << 20, UINT64_C(64) << 20);
	return 0;
}
