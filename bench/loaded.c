/* SPDX-License-Identifier: MIT */
/*
 * The guest stores a word to a random page, counts, and waits in a loop for the next time
 * (bench/guest.h): in ours a thread that marks what it stores, in QEMU the same guest in TCG, whose
 * own clocks stand still when it does. Its counter is in shared memory, so one observer sees for
 * both how long it stood still: what has passed, less what the stores since then have taken. The
 * link is a process in between that passes on so much a second and no more: the limits that both
 * have of their own do not count for the last pages. Nothing runs with real-time priority here,
 * whose quota a guest that waits in a loop would use up.
 */
#include "bench/loaded.h"
#include "bench/guest.h"
#include "bench/link.h"
#include "bench/qemu.h"
#include <errno.h>
#include <fcntl.h>
#include <guestram/guestram.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum {
	LINK_BYTES_PER_S = 128 << 20,
	DIRTY_PERCENT = 30,
	BEGIN = 5000,	   /* stores before it is moved */
	LIMIT_S = 60,	   /* a move takes seconds */
	DOWNTIME_MS = 300, /* the default of both */
};

static const double GAP_S = (double)GUEST_PAGE * 100 / DIRTY_PERCENT / LINK_BYTES_PER_S;

struct seen {
	double total_s; /* from the order to the guest's first store over there */
	double gap_s;	/* its longest standstill meanwhile, and for a while after */
	double sent_mib; /* through the link */
};

/* Both memories, for whoever looks at them. */
struct views {
	const uint8_t *src, *dst;
	uint64_t bytes;
};

static uint32_t counter(const uint8_t *view)
{
	return *(const volatile uint32_t *)(const void *)(view + GUEST_COUNTER_AT);
}

static void sleep_us(long us)
{
	const struct timespec ts = { .tv_nsec = us * 1000 };

	(void)nanosleep(&ts, NULL);
}

/* The destination's counter is a copy of the source's, until the guest runs there. */
static struct seen observe(const struct views *v)
{
	double began = bench_now_s(), last_s = began, there_s = 0;
	struct seen seen = { 0 };
	uint32_t last = counter(v->src);

	while (there_s == 0 || bench_now_s() - there_s < 0.2) {
		uint32_t there = counter(v->dst), here = counter(v->src);
		uint32_t at = there > here ? there : here;
		double now = bench_now_s();

		if (at != last) {
			double gap = now - last_s - GAP_S * (at - last);

			seen.gap_s = gap > seen.gap_s ? gap : seen.gap_s;
			last = at;
			last_s = now;
		}
		if (there > here && there_s == 0) {
			there_s = now;
		}
		if (now - began > LIMIT_S) {
			bench_die("migrate.loaded: the guest does not arrive");
		}
		sleep_us(50);
	}
	seen.total_s = there_s - began;
	return seen;
}

/* Both guests have ended. All is the same but what the second one has stored since. */
static void compare(const struct views *v, const char *whose)
{
	const struct guest_log_entry *log = (const void *)(v->dst + GUEST_LOG_AT);
	uint8_t *stored = calloc(v->bytes / GUEST_PAGE, 1);
	unsigned int differ = 0;

	if (!stored || counter(v->dst) - counter(v->src) >= GUEST_LOG_ENTRIES) {
		bench_die("migrate.loaded: the guest has run for too long");
	}
	for (uint32_t n = counter(v->src); n <= counter(v->dst); n++) {
		stored[log[n % GUEST_LOG_ENTRIES].address / GUEST_PAGE % (v->bytes / GUEST_PAGE)] =
			1;
	}
	for (uint64_t at = GUEST_REGION_AT; at < v->bytes; at += GUEST_PAGE) {
		differ += !stored[at / GUEST_PAGE] &&
			  memcmp(v->src + at, v->dst + at, GUEST_PAGE) != 0;
	}
	/* It may have been killed between a store and its entry. */
	if (differ > 1) {
		bench_die("migrate.loaded: %u pages differ, moved by %s", differ, whose);
	}
	free(stored);
}

static const uint8_t *map_view(const char *path, uint64_t bytes)
{
	int fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
	void *p = MAP_FAILED;

	if (fd >= 0 && ftruncate(fd, (off_t)bytes) == 0) {
		p = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	}
	if (p == MAP_FAILED) {
		bench_die("cannot map %s: %s", path, strerror(errno));
	}
	close(fd);
	return p;
}

/* Random content, and a guest that has not begun. */
static struct views make_memories(const struct bench_machine *m, const char *dst_file)
{
	struct views v = { .bytes = m->bytes };

	(void)unlink(m->src_file);
	(void)unlink(dst_file);
	v.src = map_view(m->src_file, m->bytes);
	v.dst = map_view(dst_file, m->bytes);
	bench_fill_random((uint8_t *)(uintptr_t)v.src + GUEST_REGION_AT, m->bytes - GUEST_REGION_AT,
			  1);
	return v;
}

static void free_memories(const struct views *v)
{
	munmap((void *)(uintptr_t)v->src, v->bytes);
	munmap((void *)(uintptr_t)v->dst, v->bytes);
}

static void wait_begun(const struct views *v)
{
	for (double began = bench_now_s(); counter(v->src) < BEGIN; sleep_us(1000)) {
		if (bench_now_s() - began > LIMIT_S) {
			bench_die("migrate.loaded: the guest does not begin");
		}
	}
}

/* The largest power of two that fits. */
static uint32_t region_pages(uint64_t bytes)
{
	uint32_t pages = 1;

	while ((uint64_t)pages * 2 * GUEST_PAGE + GUEST_REGION_AT <= bytes) {
		pages *= 2;
	}
	return pages;
}

/* ---- ours ------------------------------------------------------------------------------ */

struct guest {
	struct gr_ram_block *block;
	struct {
		uint32_t stores, random;
	} cpu; /* what moves with it */
	uint32_t pages;
	uint32_t stop; /* (a) */
	pthread_t thread;
};

static void store(struct guest *g, uint64_t at, const void *what, size_t n)
{
	memcpy(g->block->host + at, what, n);
	gr_ram_mark(g->block, at, n); /* the bytes first */
}

static void *run_guest(void *opaque)
{
	struct guest *g = opaque;

	while (!__atomic_load_n(&g->stop, __ATOMIC_RELAXED)) {
		struct guest_log_entry entry;
		double stored;

		g->cpu.random ^= g->cpu.random << 13;
		g->cpu.random ^= g->cpu.random >> 17;
		g->cpu.random ^= g->cpu.random << 5;
		entry.address = (g->cpu.random & (g->pages - 1)) * GUEST_PAGE + GUEST_REGION_AT;
		entry.ticks = 0;
		store(g, entry.address, &g->cpu.random, sizeof(g->cpu.random));
		stored = bench_now_s();
		store(g, GUEST_LOG_AT + g->cpu.stores % GUEST_LOG_ENTRIES * sizeof(entry), &entry,
		      sizeof(entry));
		g->cpu.stores++;
		store(g, GUEST_COUNTER_AT, &g->cpu.stores, sizeof(g->cpu.stores));
		while (bench_now_s() - stored < GAP_S) {
		}
	}
	return NULL;
}

static void start_guest(void *opaque)
{
	struct guest *g = opaque;
	int ret;

	g->stop = 0;
	ret = pthread_create(&g->thread, NULL, run_guest, g);
	if (ret != 0) {
		bench_die("no thread: %s", strerror(ret));
	}
}

static int stop_guest(void *opaque, struct gr_error *err)
{
	struct guest *g = opaque;

	(void)err;
	__atomic_store_n(&g->stop, 1, __ATOMIC_RELAXED);
	(void)pthread_join(g->thread, NULL);
	return 0;
}

static int save_guest(void *opaque, struct gr_state_writer *writer, struct gr_error *err)
{
	struct guest *g = opaque;

	return gr_state_put(writer, "cpu", 0, 1, &g->cpu, sizeof(g->cpu), err);
}

static int load_guest(void *opaque, const char *id, uint32_t instance, uint32_t version,
		      const void *data, size_t bytes, struct gr_error *err)
{
	struct guest *g = opaque;

	(void)id, (void)instance, (void)version, (void)err;
	if (bytes != sizeof(g->cpu)) {
		return -EBADMSG;
	}
	memcpy(&g->cpu, data, bytes);
	return 0;
}

static struct gr_ram *ram_of(const char *path, uint64_t bytes, struct guest *g)
{
	struct gr_ram_block_desc desc = { .size = sizeof(desc),
					  .id = "ram",
					  .used_bytes = bytes,
					  .mapped = true,
					  .backing = GR_RAM_FILE,
					  .path = path };
	struct gr_error err;
	struct gr_ram *ram;

	g->pages = region_pages(bytes);
	if (gr_ram_create(NULL, &ram, &err) < 0 ||
	    gr_ram_block_add(ram, &desc, &g->block, &err) < 0) {
		bench_die("%s", err.msg);
	}
	return ram;
}

static void our_source(const struct bench_machine *m, const char *uri, int order)
{
	struct gr_source_params params = { .size = sizeof(params),
					   .downtime_ns_max = DOWNTIME_MS * UINT64_C(1000000) };
	struct guest g = { .cpu.random = 2463534242u };
	const struct gr_source_ops ops = {
		.pause = stop_guest, .resume = start_guest, .save = save_guest, .opaque = &g
	};
	struct gr_ram *ram = ram_of(m->src_file, m->bytes, &g);
	struct gr_channel *channel;
	struct gr_source *source;
	struct gr_error err;
	char c;

	start_guest(&g);
	if (read(order, &c, 1) != 1) {
		bench_die("source: no order");
	}
	if (gr_channel_connect(uri, &channel, &err) < 0 ||
	    gr_source_create(ram, NULL, channel, &params, &ops, &source, &err) < 0 ||
	    gr_source_run(source, &err) < 0) {
		bench_die("source: %s", err.msg);
	}
}

static void our_destination(const struct bench_machine *m, const char *dst_file, int ready)
{
	struct guest g = { .stop = 0 };
	const struct gr_destination_ops ops = { .load = load_guest, .opaque = &g };
	struct gr_ram *ram = ram_of(dst_file, m->bytes, &g);
	struct gr_channel_listener *listener;
	struct gr_destination *destination;
	struct gr_channel *channel;
	struct gr_error err;

	if (gr_channel_listen(m->uri, &listener, &err) < 0) {
		bench_die("destination: %s", err.msg);
	}
	(void)!write(ready, "", 1);
	if (gr_channel_accept(listener, &channel, &err) < 0 ||
	    gr_destination_create(ram, channel, NULL, &ops, &destination, &err) < 0 ||
	    gr_destination_run(destination, &err) < 0) {
		bench_die("destination: %s", err.msg);
	}
	start_guest(&g);
	(void)pause(); /* it is killed */
}

/* m->uri is the destination's end of the link, uri the source's. */
static struct seen ours(const struct bench_machine *m, const char *dst_file, const char *uri)
{
	struct views v = make_memories(m, dst_file);
	int order[2], ready[2], status;
	struct seen seen;
	pid_t src, dst;
	char c;

	if (pipe(order) != 0 || pipe(ready) != 0) {
		bench_die("pipe: %s", strerror(errno));
	}
	dst = fork();
	if (dst == 0) {
		(void)prctl(PR_SET_PDEATHSIG, SIGKILL);
		our_destination(m, dst_file, ready[1]);
	}
	src = fork();
	if (src == 0) {
		(void)prctl(PR_SET_PDEATHSIG, SIGKILL);
		our_source(m, uri, order[0]);
		_exit(0);
	}
	(void)!read(ready[0], &c, 1);
	wait_begun(&v);
	(void)!write(order[1], "", 1);
	seen = observe(&v);
	if (waitpid(src, &status, 0) != src || status != 0) {
		bench_die("our source failed");
	}
	(void)kill(dst, SIGKILL);
	(void)waitpid(dst, NULL, 0);
	compare(&v, "us");
	free_memories(&v);
	for (int i = 0; i < 2; i++) {
		close(order[i]);
		close(ready[i]);
	}
	return seen;
}

/* ---- QEMU ------------------------------------------------------------------------------ */

static struct seen qemus(const struct bench_machine *m, const char *dst_file, const char *uri)
{
	struct views v = make_memories(m, dst_file);
	struct bench_qemu src, dst;
	char command[256];
	struct seen seen;

	bench_qemu_start(&dst, m, "dst", dst_file, false, true);
	bench_qemu_start(&src, m, "src", m->src_file, false, false);
	(void)snprintf(command, sizeof(command),
		       "{\"execute\":\"migrate-incoming\",\"arguments\":{\"uri\":\"%s\"}}", m->uri);
	bench_qmp(&dst, command);
	(void)snprintf(command, sizeof(command),
		       "{\"execute\":\"migrate-set-parameters\",\"arguments\":"
		       "{\"downtime-limit\":%d}}",
		       DOWNTIME_MS);
	bench_qmp(&src, command);
	wait_begun(&v);
	bench_qemu_migrate(&src, uri);
	seen = observe(&v);
	bench_qemu_wait_completed(&src);
	bench_qemu_wait_completed(&dst);
	bench_qemu_end(&dst);
	bench_qemu_end(&src);
	compare(&v, "QEMU");
	free_memories(&v);
	return seen;
}

static struct seen over_link(struct bench_machine *m, const char *dst_file,
			     struct seen (*move)(const struct bench_machine *m,
						 const char *dst_file, const char *uri))
{
	static int number;
	char here[96], there[96];
	struct bench_link *link;
	struct seen seen;

	(void)snprintf(here, sizeof(here), "unix:%s/here%d", m->tmp, number);
	(void)snprintf(there, sizeof(there), "unix:%s/there%d", m->tmp, number++);
	link = bench_link_start(here + strlen("unix:"), there + strlen("unix:"), LINK_BYTES_PER_S);
	m->uri = there;
	seen = move(m, dst_file, here);
	seen.sent_mib = (double)bench_link_end(link) / (1 << 20);
	return seen;
}

void bench_loaded(const struct bench_options *o, const char *tmp, const char *qemu_name)
{
	struct bench_result total = { .name = "migrate.loaded",
				      .unit = "s",
				      .peer_name = qemu_name };
	struct bench_result gap = { .name = "migrate.loaded/downtime",
				    .unit = "s",
				    .peer_name = qemu_name };
	struct bench_result sent = { .name = "migrate.loaded/sent",
				     .unit = "MiB",
				     .peer_name = qemu_name };
	char file[64], dst_file[80], floppy[64];
	struct bench_machine m = {
		.tmp = tmp, .src_file = file, .floppy = floppy, .bytes = o->size_mib << 18
	};

	if (!bench_wanted(o, total.name)) {
		return;
	}
	if (bench_guest_ticks_per_s() == 0) {
		(void)fprintf(stderr, "migrate.loaded: skipped, its guest is for x86\n");
		return;
	}
	(void)snprintf(file, sizeof(file), "%s/ram", tmp);
	(void)snprintf(dst_file, sizeof(dst_file), "%s/ram.dst", tmp);
	(void)snprintf(floppy, sizeof(floppy), "%s/floppy", tmp);
	bench_give_up_real_time();
	bench_guest_floppy(floppy, region_pages(m.bytes), GAP_S);
	for (int i = 0; i < o->runs; i++) {
		struct seen us, peer;

		us = over_link(&m, dst_file, ours);
		peer = over_link(&m, dst_file, qemus);
		bench_add(&total, us.total_s, peer.total_s);
		bench_add(&gap, us.gap_s, peer.gap_s);
		bench_add(&sent, us.sent_mib, peer.sent_mib);
	}
	bench_print(o, &total);
	bench_print(o, &gap);
	bench_print(o, &sent);
	(void)unlink(file);
	(void)unlink(dst_file);
}
