/* SPDX-License-Identifier: MIT */
/*
 * How fast a machine's RAM moves to another process: guestram to guestram against QEMU to
 * QEMU in the same run, same content, same kind of channel, in alternation. Both memories
 * are compared after every run.
 *
 *   migrate.precopy_random_unix   incompressible RAM over a unix socket
 *   migrate.precopy_random_tcp    the same over TCP on loopback
 *   migrate.untouched             RAM that nobody ever touched
 *   migrate.multifd_random_unix, _tcp   the random RAM over two further channels, fresh memory
 *   migrate.multifd_present_unix  the same into memory that is present
 *
 * Each case prints throughput (fresh destination memory: page allocation is in the figure
 * on both sides), CPU seconds per GiB of the destination and of the source; the random
 * cases also print ours into memory that is present already, against a bare socket copy of
 * the same bytes into present memory (".../present") and against QEMU with preallocated
 * memory (".../present_qemu"). The cases over further channels print the CPU seconds of both sides
 * together (".../cpu"). GR_QEMU10 and GR_QEMU10_DATA name another QEMU than the installed one.
 */
#include "bench/harness.h"
#include "bench/qemu.h"
#include <errno.h>
#include <fcntl.h>
#include <guestram/guestram.h>
#include <netinet/in.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

static char tmp_dir[] = "/dev/shm/guestram-bench-XXXXXX";

/* A memory file as the source's RAM; random content, or never touched. */
static void make_source_file(const char *path, uint64_t bytes, bool random)
{
	int fd = open(path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
	void *p;

	if (fd < 0 || ftruncate(fd, (off_t)bytes) != 0) {
		bench_die("cannot make %s: %s", path, strerror(errno));
	}
	if (random) {
		p = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
		if (p == MAP_FAILED) {
			bench_die("cannot map %s: %s", path, strerror(errno));
		}
		bench_fill_random(p, bytes, 1);
		munmap(p, bytes);
	}
	close(fd);
}

static uint8_t *map_file(const char *path, uint64_t bytes, int *ret_fd)
{
	int fd = open(path, O_RDWR | O_CLOEXEC);
	void *p = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);

	if (fd < 0 || p == MAP_FAILED) {
		bench_die("cannot map %s: %s", path, strerror(errno));
	}
	*ret_fd = fd;
	return p;
}

/* What a child reports through its pipe. */
struct report {
	bool source;
	double cpu_s;
	double wall_s; /* the source's */
};

static void our_source(const struct bench_machine *m)
{
	struct gr_channel *further[GR_MULTIFD_CHANNELS_MAX];
	struct gr_multifd multifd = { .channels = further, .count = m->channels };
	struct gr_source_params params = { .size = sizeof(params) };
	struct gr_ram_block_desc desc = { .size = sizeof(desc), .id = "ram" };
	struct gr_channel *channel;
	struct gr_source *source;
	struct gr_error err;
	struct gr_ram *ram;

	desc.backing = GR_RAM_CALLER;
	desc.host = map_file(m->src_file, m->bytes, &desc.fd);
	desc.used_bytes = m->bytes;
	desc.mapped = true;
	params.multifd = m->channels ? &multifd : NULL;
	if (gr_ram_create(NULL, &ram, &err) < 0 || gr_ram_block_add(ram, &desc, NULL, &err) < 0 ||
	    (m->channels ? gr_multifd_connect(m->uri, m->channels, &channel, further, &err)
			 : gr_channel_connect(m->uri, &channel, &err)) < 0 ||
	    gr_source_create(ram, NULL, channel, &params, NULL, &source, &err) < 0 ||
	    gr_source_run(source, &err) < 0) {
		bench_die("source: %s", err.msg);
	}
}

/* Compares with the source's memory file after the clock has stopped. */
static void our_destination(const struct bench_machine *m, int ready, int done)
{
	struct gr_channel *further[GR_MULTIFD_CHANNELS_MAX];
	struct gr_multifd multifd = { .channels = further, .count = m->channels };
	struct gr_destination_params params = { .size = sizeof(params) };
	struct gr_ram_block_desc desc = { .size = sizeof(desc), .id = "ram" };
	struct gr_channel_listener *listener;
	struct gr_destination *destination;
	struct gr_ram_block *block;
	struct gr_channel *channel;
	struct report report = { 0 };
	struct gr_error err;
	struct gr_ram *ram;
	double before;
	int fd;

	desc.used_bytes = m->bytes;
	desc.mapped = true;
	if (gr_ram_create(NULL, &ram, &err) < 0 || gr_channel_listen(m->uri, &listener, &err) < 0) {
		bench_die("destination: %s", err.msg);
	}
	if (m->present) {
		if (gr_ram_block_add(ram, &desc, &block, &err) < 0) {
			bench_die("destination: %s", err.msg);
		}
		memset(block->host, 0xff, m->bytes);
	}
	(void)!write(ready, "", 1);
	before = bench_cpu_s(0);
	params.multifd = m->channels ? &multifd : NULL;
	if ((m->channels ? gr_multifd_accept(listener, m->channels, &channel, further, &err)
			 : gr_channel_accept(listener, &channel, &err)) < 0 ||
	    gr_destination_create(ram, channel, &params, NULL, &destination, &err) < 0 ||
	    gr_destination_run(destination, &err) < 0) {
		bench_die("destination: %s", err.msg);
	}
	report.cpu_s = bench_cpu_s(0) - before;
	(void)!write(done, &report, sizeof(report));
	gr_rcu_read_lock();
	block = gr_ram_block_by_id_rcu(ram, "ram");
	if (!block || memcmp(block->host, map_file(m->src_file, m->bytes, &fd), m->bytes) != 0) {
		bench_die("our destination has other RAM than its source");
	}
	gr_rcu_read_unlock();
}

static struct bench_move our_move(const struct bench_machine *m)
{
	struct report report = { .source = true };
	struct bench_move move = { 0 };
	int ready[2], done[2], status;
	pid_t dst, src;
	char c;

	if (pipe(ready) != 0 || pipe(done) != 0) {
		bench_die("pipe: %s", strerror(errno));
	}
	dst = fork();
	if (dst == 0) {
		our_destination(m, ready[1], done[1]);
		_exit(0);
	}
	(void)!read(ready[0], &c, 1);
	src = fork();
	if (src == 0) {
		report.cpu_s = -bench_cpu_s(0);
		report.wall_s = -bench_now_s();
		our_source(m); /* ends with the destination's word that it has everything */
		report.wall_s += bench_now_s();
		report.cpu_s += bench_cpu_s(0);
		(void)!write(done[1], &report, sizeof(report));
		_exit(0);
	}
	for (int i = 0; i < 2; i++) {
		waitpid(i ? dst : src, &status, 0);
		if (status != 0) {
			bench_die("our %s failed", i ? "destination" : "source");
		}
	}
	for (int i = 0; i < 2; i++) {
		if (read(done[0], &report, sizeof(report)) != sizeof(report)) {
			bench_die("a process of ours did not report");
		}
		if (report.source) {
			move.wall_s = report.wall_s;
			move.src_cpu_s = report.cpu_s;
		} else {
			move.dst_cpu_s = report.cpu_s;
		}
	}
	for (int i = 0; i < 2; i++) {
		close(ready[i]);
		close(done[i]);
	}
	return move;
}

/* The bare copy blocks in read() and write(), as the simplest program would. */
static int blocking_fd(struct gr_channel *channel)
{
	int fd = gr_channel_fd(channel);

	(void)fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) & ~O_NONBLOCK);
	return fd;
}

/* The bound: the same bytes through the same kind of socket, 1 MiB at a time, no format. */
static double bare_copy_s(const struct bench_machine *m)
{
	struct gr_channel_listener *listener;
	struct gr_channel *channel;
	struct gr_error err;
	double start;
	pid_t pid;
	int fd, status;
	uint8_t *from = map_file(m->src_file, m->bytes, &fd);
	uint8_t *to =
		mmap(NULL, m->bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	uint64_t n = 0;

	memset(to, 0xff, m->bytes);
	if (gr_channel_listen(m->uri, &listener, &err) < 0) {
		bench_die("bare copy: %s", err.msg);
	}
	pid = fork();
	if (pid == 0) {
		if (gr_channel_connect(m->uri, &channel, &err) < 0) {
			bench_die("bare copy: %s", err.msg);
		}
		while (n < m->bytes) {
			size_t left = m->bytes - n;
			ssize_t put = write(blocking_fd(channel), from + n,
					    left < 1 << 20 ? left : 1 << 20);

			if (put <= 0) {
				bench_die("bare copy: %s", strerror(errno));
			}
			n += (uint64_t)put;
		}
		_exit(0);
	}
	if (gr_channel_accept(listener, &channel, &err) < 0) {
		bench_die("bare copy: %s", err.msg);
	}
	start = bench_now_s();
	while (n < m->bytes) {
		ssize_t got = read(blocking_fd(channel), to + n, 1 << 20);

		if (got <= 0) {
			bench_die("bare copy: %s", strerror(errno));
		}
		n += (uint64_t)got;
	}
	start = bench_now_s() - start;
	waitpid(pid, &status, 0);
	if (memcmp(from, to, m->bytes) != 0) {
		bench_die("bare copy: the bytes differ");
	}
	munmap(from, m->bytes);
	munmap(to, m->bytes);
	close(fd);
	(void)gr_channel_close(channel, NULL);
	gr_channel_listener_close(listener);
	return start;
}

/* A fresh address for each move: a socket in our folder, or a free port. */
static void next_uri(char *uri, size_t bytes, bool tcp)
{
	static int number;
	struct sockaddr_in a = { .sin_family = AF_INET };
	socklen_t len = sizeof(a);
	int fd;

	if (!tcp) {
		(void)snprintf(uri, bytes, "unix:%s/m%d", tmp_dir, number++);
		return;
	}
	fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
	a.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
	if (fd < 0 || bind(fd, (struct sockaddr *)&a, sizeof(a)) != 0 ||
	    getsockname(fd, (struct sockaddr *)&a, &len) != 0) {
		bench_die("no free port: %s", strerror(errno));
	}
	close(fd);
	(void)snprintf(uri, bytes, "tcp:127.0.0.1:%d", ntohs(a.sin_port));
}

static char qemu_name[64];

static void run_case(const struct bench_options *o, const char *name, bool tcp, bool random)
{
	char file[64], uri[128], names[5][96];
	struct bench_machine m = { .tmp = tmp_dir, .src_file = file, .uri = uri };
	static const char *const suffix[5] = { "", "/dst_cpu", "/src_cpu", "/present",
					       "/present_qemu" };
	struct bench_result r[5] = { 0 };
	double gib;

	if (!bench_wanted(o, name)) {
		return;
	}
	m.bytes = o->size_mib << 20;
	gib = (double)m.bytes / (1 << 30);
	for (int i = 0; i < 5; i++) {
		(void)snprintf(names[i], sizeof(names[i]), "%s%s", name, suffix[i]);
		r[i].name = names[i];
		r[i].peer_name = i == 3 ? "bare socket copy, present memory" : qemu_name;
		r[i].unit = i == 0 || i > 2 ? "GiB/s" : "s/GiB";
		r[i].more_is_better = i == 0 || i > 2;
	}
	(void)snprintf(file, sizeof(file), "%s/ram", tmp_dir);
	make_source_file(file, m.bytes, random);
	for (int i = 0; i < o->runs; i++) {
		struct bench_move ours, peer;

		m.present = false;
		next_uri(uri, sizeof(uri), tcp);
		ours = our_move(&m);
		next_uri(uri, sizeof(uri), tcp);
		peer = bench_qemu_move(&m);
		bench_add(&r[0], gib / ours.wall_s, gib / peer.wall_s);
		bench_add(&r[1], ours.dst_cpu_s / gib, peer.dst_cpu_s / gib);
		bench_add(&r[2], ours.src_cpu_s / gib, peer.src_cpu_s / gib);
		if (!random) {
			/* QEMU has just read its source's RAM, and so allocated it. */
			make_source_file(file, m.bytes, false);
			continue;
		}
		m.present = true;
		next_uri(uri, sizeof(uri), tcp);
		ours = our_move(&m);
		next_uri(uri, sizeof(uri), tcp);
		bench_add(&r[3], gib / ours.wall_s, gib / bare_copy_s(&m));
		next_uri(uri, sizeof(uri), tcp);
		peer = bench_qemu_move(&m);
		bench_add(&r[4], gib / ours.wall_s, gib / peer.wall_s);
	}
	for (int i = 0; i < (random ? 5 : 3); i++) {
		bench_print(o, &r[i]);
	}
	(void)unlink(file);
}

enum { FURTHER = 2 };

/* Throughput and the CPU of both sides, over further channels. */
static void run_multifd(const struct bench_options *o, const char *name, bool tcp, bool present)
{
	char file[64], uri[128], cpu_name[96];
	struct bench_machine m = { .tmp = tmp_dir, .src_file = file, .uri = uri };
	struct bench_result wall = {
		.name = name, .unit = "GiB/s", .peer_name = qemu_name, .more_is_better = true
	};
	struct bench_result cpu = { .name = cpu_name, .unit = "s/GiB", .peer_name = qemu_name };
	double gib;

	if (!bench_wanted(o, name)) {
		return;
	}
	(void)snprintf(cpu_name, sizeof(cpu_name), "%s/cpu", name);
	m.bytes = o->size_mib << 20;
	m.channels = FURTHER;
	m.present = present;
	gib = (double)m.bytes / (1 << 30);
	(void)snprintf(file, sizeof(file), "%s/ram", tmp_dir);
	make_source_file(file, m.bytes, true);
	for (int i = 0; i < o->runs; i++) {
		struct bench_move ours, peer;

		next_uri(uri, sizeof(uri), tcp);
		ours = our_move(&m);
		next_uri(uri, sizeof(uri), tcp);
		peer = bench_qemu_move(&m);
		bench_add(&wall, gib / ours.wall_s, gib / peer.wall_s);
		bench_add(&cpu, (ours.src_cpu_s + ours.dst_cpu_s) / gib,
			  (peer.src_cpu_s + peer.dst_cpu_s) / gib);
	}
	bench_print(o, &wall);
	bench_print(o, &cpu);
	(void)unlink(file);
}

static void remove_tmp(void)
{
	char command[96];

	(void)snprintf(command, sizeof(command), "rm -rf '%s'", tmp_dir);
	(void)!system(command);
}

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
	if (!mkdtemp(tmp_dir)) {
		bench_die("cannot make a folder in /dev/shm: %s", strerror(errno));
	}
	(void)signal(SIGPIPE, SIG_IGN);
	run_case(&o, "migrate.precopy_random_unix", false, true);
	run_case(&o, "migrate.precopy_random_tcp", true, true);
	run_case(&o, "migrate.untouched", false, false);
	run_multifd(&o, "migrate.multifd_random_unix", false, false);
	run_multifd(&o, "migrate.multifd_random_tcp", true, false);
	run_multifd(&o, "migrate.multifd_present_unix", false, true);
	remove_tmp();
	return 0;
}
