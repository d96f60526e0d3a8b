/* SPDX-License-Identifier: MIT */
/*
 * How fast a machine's RAM moves to another process: guestram to guestram against QEMU to
 * QEMU in the same run, same content, same kind of channel, in alternation. Both memories
 * are compared after every run.
 *
 *   migrate.precopy_random_unix, _tcp    incompressible RAM into fresh memory: page allocation is
 *                                        in the figures of both
 *   migrate.precopy_present_unix, _tcp   into memory that is present, against a bare socket copy of
 *                                        the same bytes into present memory
 *   migrate.untouched                    RAM that nobody ever touched
 *   migrate.mostly_untouched             eight times the size, of which 5 % were touched; less
 * where the machine has no memory for what QEMU allocates migrate.receive_from_qemu            QEMU
 * is the source of both, fresh memory migrate.multifd_random_unix, _tcp    over two further
 * channels, fresh memory migrate.multifd_present_unix         the same into memory that is present
 *
 * Each case prints throughput and CPU seconds per GiB (both sides, "/cpu"; one of them, "/dst_cpu"
 * and "/src_cpu"); the untouched ones how much memory each side's process had at most ("/dst_peak",
 * "/src_peak"); the present ones also ours against QEMU with preallocated memory ("/qemu") and
 * that against the bare copy ("/qemu_to_bare"). GR_QEMU10 and GR_QEMU10_DATA name another QEMU than
 * the installed one, which then is measured beside it ("/installed"). The source's memory is in its
 * page table in all of them, as that of a guest which has run, but for the untouched one.
 */
#include "bench/harness.h"
#include "bench/loaded.h"
#include "bench/move.h"
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

static char tmp_dir[] = "/dev/shm/guestram-bench-XXXXXX";

enum { TOUCHED_BYTES = 2 << 20, TOUCHED_STEP = 20 * TOUCHED_BYTES };

/* A memory file as the source's RAM; random content in all of it, in 5 %, or never touched. */
static void make_source_file(const char *path, uint64_t bytes, bool random, bool touched)
{
	int fd = open(path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
	void *p;

	if (fd < 0 || ftruncate(fd, (off_t)bytes) != 0) {
		bench_die("cannot make %s: %s", path, strerror(errno));
	}
	if (random || touched) {
		p = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
		if (p == MAP_FAILED) {
			bench_die("cannot map %s: %s", path, strerror(errno));
		}
		for (uint64_t at = 0; at < bytes; at += random ? bytes : (uint64_t)TOUCHED_STEP) {
			bench_fill_random((uint8_t *)p + at, random ? bytes : TOUCHED_BYTES,
					  1 + at);
		}
		munmap(p, bytes);
	}
	close(fd);
}

enum { URI_BYTES = 128 };

/* A fresh address for each move: a socket in our folder, or a free port. */
static void next_uri(char uri[URI_BYTES], bool tcp)
{
	static int number;
	struct sockaddr_in a = { .sin_family = AF_INET };
	socklen_t len = sizeof(a);
	int fd;

	if (!tcp) {
		(void)snprintf(uri, URI_BYTES, "unix:%s/m%d", tmp_dir, number++);
		return;
	}
	fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
	a.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
	if (fd < 0 || bind(fd, (struct sockaddr *)&a, sizeof(a)) != 0 ||
	    getsockname(fd, (struct sockaddr *)&a, &len) != 0) {
		bench_die("no free port: %s", strerror(errno));
	}
	close(fd);
	(void)snprintf(uri, URI_BYTES, "tcp:127.0.0.1:%d", ntohs(a.sin_port));
}

struct kind {
	const char *name;
	bool tcp, untouched, mostly, present, from_qemu;
	unsigned int channels;
};

/* What is printed of a case: our value and the peer's, run by run. */
enum quantity {
	WALL,	   /* "": throughput, against QEMU or a bare copy */
	CPU,	   /* "/cpu": of both sides together */
	DST_CPU,   /* "/dst_cpu" */
	SRC_CPU,   /* "/src_cpu" */
	QEMU,	   /* "/qemu": throughput against QEMU's where WALL has a bare copy */
	QEMU_BARE, /* "/qemu_to_bare": QEMU's throughput against the bare copy's */
	SRC_PEAK,  /* "/src_peak": memory of the source's process */
	DST_PEAK,
	INSTALLED, /* "/installed": throughput against that of the QEMU of the system */
	QUANTITIES,
};

struct results {
	struct bench_result of[QUANTITIES];
	char names[QUANTITIES][96];
};

static char qemu_name[64], installed_name[64];

static void results_init(struct results *r, const struct kind *k)
{
	static const char *const suffix[QUANTITIES] = {
		"",	     "/cpu",	  "/dst_cpu",	"/src_cpu", "/qemu", "/qemu_to_bare",
		"/src_peak", "/dst_peak", "/installed",
	};

	memset(r, 0, sizeof(*r));
	for (int i = 0; i < QUANTITIES; i++) {
		bool cpu = i == CPU || i == DST_CPU || i == SRC_CPU;
		bool peak = i == SRC_PEAK || i == DST_PEAK;

		(void)snprintf(r->names[i], sizeof(r->names[i]), "%s%s", k->name, suffix[i]);
		r->of[i].name = r->names[i];
		r->of[i].peer_name = qemu_name;
		r->of[i].unit = cpu ? "s/GiB" : peak ? "MiB" : "GiB/s";
		r->of[i].more_is_better = !cpu && !peak;
	}
	r->of[INSTALLED].peer_name = installed_name;
	r->of[QEMU_BARE].peer_name = "bare socket copy, present memory";
	if (k->present && k->channels == 0) {
		r->of[WALL].peer_name = r->of[QEMU_BARE].peer_name;
	}
}

/* One of each, at once one after the other. */
static void run_once(const struct kind *k, struct bench_machine *m, char uri[URI_BYTES],
		     struct results *r)
{
	double gib = (double)m->bytes / (1 << 30), bare;
	struct bench_move ours, qemu;

	next_uri(uri, k->tcp);
	ours = k->from_qemu ? bench_move_from_qemu(m) : bench_our_move(m);
	next_uri(uri, k->tcp);
	qemu = bench_qemu_move(m);
	if (k->untouched) {
		bench_add(&r->of[SRC_PEAK], ours.src_peak_mib, qemu.src_peak_mib);
		bench_add(&r->of[DST_PEAK], ours.dst_peak_mib, qemu.dst_peak_mib);
	}
	bench_add(&r->of[CPU], (ours.src_cpu_s + ours.dst_cpu_s) / gib,
		  (qemu.src_cpu_s + qemu.dst_cpu_s) / gib);
	bench_add(&r->of[DST_CPU], ours.dst_cpu_s / gib, qemu.dst_cpu_s / gib);
	bench_add(&r->of[SRC_CPU], ours.src_cpu_s / gib, qemu.src_cpu_s / gib);
	if (k->present && k->channels == 0) {
		next_uri(uri, k->tcp);
		bare = bench_bare_copy_s(m);
		bench_add(&r->of[WALL], gib / ours.wall_s, gib / bare);
		bench_add(&r->of[QEMU], gib / ours.wall_s, gib / qemu.wall_s);
		bench_add(&r->of[QEMU_BARE], gib / qemu.wall_s, gib / bare);
	} else {
		bench_add(&r->of[WALL], gib / ours.wall_s, gib / qemu.wall_s);
	}
	if (installed_name[0] && !k->untouched && !k->from_qemu && !k->present &&
	    k->channels == 0) {
		m->installed = true;
		next_uri(uri, k->tcp);
		qemu = bench_qemu_move(m);
		m->installed = false;
		bench_add(&r->of[INSTALLED], gib / ours.wall_s, gib / qemu.wall_s);
	}
}

/* Both memories of QEMU's machines are allocated whole. */
static uint64_t mostly_untouched_bytes(const struct bench_options *o)
{
	uint64_t bytes = o->size_mib << 23, room = 0;
	FILE *f = fopen("/proc/meminfo", "re");
	char line[128];

	while (f && room == 0 && fgets(line, sizeof(line), f)) {
		unsigned long long kib;

		if (sscanf(line, "MemAvailable: %llu", &kib) == 1) {
			room = kib << 10;
		}
	}
	if (f) {
		(void)fclose(f);
	}
	while (bytes > (uint64_t)TOUCHED_STEP && bytes * 2 + (UINT64_C(2) << 30) > room) {
		bytes /= 2;
	}
	if (bytes < o->size_mib << 23) {
		(void)fprintf(stderr,
			      "migrate.mostly_untouched: %llu MiB, there is no memory for more\n",
			      (unsigned long long)(bytes >> 20));
	}
	return bytes;
}

static void run_case(const struct bench_options *o, const struct kind *k)
{
	char file[64], uri[URI_BYTES];
	struct bench_machine m = { .tmp = tmp_dir,
				   .src_file = file,
				   .uri = uri,
				   .bytes = o->size_mib << 20,
				   .channels = k->channels,
				   .present = k->present,
				   .untouched = k->untouched,
				   .from_qemu = k->from_qemu };
	struct results r;

	if (!bench_wanted(o, k->name)) {
		return;
	}
	if (k->mostly) {
		m.bytes = mostly_untouched_bytes(o);
	}
	results_init(&r, k);
	(void)snprintf(file, sizeof(file), "%s/ram", tmp_dir);
	make_source_file(file, m.bytes, !k->untouched, k->mostly);
	for (int i = 0; i < o->runs; i++) {
		run_once(k, &m, uri, &r);
		if (k->untouched) {
			/* QEMU has just read its source's RAM, and so allocated it. */
			make_source_file(file, m.bytes, false, k->mostly);
		}
	}
	for (int i = 0; i < QUANTITIES; i++) {
		if (r.of[i].runs > 0) {
			bench_print(o, &r.of[i]);
		}
	}
	(void)unlink(file);
}

static void remove_tmp(void)
{
	char command[96];

	(void)snprintf(command, sizeof(command), "rm -rf '%s'", tmp_dir);
	(void)!system(command);
}

static const struct kind kinds[] = {
	{ .name = "migrate.precopy_random_unix" },
	{ .name = "migrate.precopy_random_tcp", .tcp = true },
	{ .name = "migrate.precopy_present_unix", .present = true },
	{ .name = "migrate.precopy_present_tcp", .tcp = true, .present = true },
	{ .name = "migrate.untouched", .untouched = true },
	{ .name = "migrate.mostly_untouched", .untouched = true, .mostly = true },
	{ .name = "migrate.receive_from_qemu", .from_qemu = true },
	{ .name = "migrate.multifd_random_unix", .channels = 2 },
	{ .name = "migrate.multifd_random_tcp", .tcp = true, .channels = 2 },
	{ .name = "migrate.multifd_present_unix", .present = true, .channels = 2 },
};

int main(int argc, char **argv)
{
	struct bench_options o;
	const char *version;

	bench_options_parse(&o, argc, argv);
	version = bench_qemu_version();
	if (!version) {
		bench_die("no qemu-system-x86_64 to compare with: apt-get install qemu-system-x86");
	}
	(void)snprintf(qemu_name, sizeof(qemu_name), "QEMU %s", version);
	version = bench_qemu_installed();
	if (version) {
		(void)snprintf(installed_name, sizeof(installed_name), "QEMU %s", version);
	}
	if (!mkdtemp(tmp_dir)) {
		bench_die("cannot make a folder in /dev/shm: %s", strerror(errno));
	}
	(void)signal(SIGPIPE, SIG_IGN);
	for (size_t i = 0; i < sizeof(kinds) / sizeof(kinds[0]); i++) {
		run_case(&o, &kinds[i]);
	}
	bench_loaded(&o, tmp_dir, qemu_name);
	remove_tmp();
	return 0;
}
