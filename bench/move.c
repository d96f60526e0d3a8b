/* SPDX-License-Identifier: MIT */
#include "bench/move.h"
#include "bench/harness.h"
#include <errno.h>
#include <fcntl.h>
#include <guestram/guestram.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

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

/* The page table is there already, as in a machine whose guest has run. */
static void populate(uint8_t *host, uint64_t bytes)
{
	if (madvise(host, bytes, MADV_POPULATE_WRITE) != 0) {
		bench_die("cannot map the source's memory: %s", strerror(errno));
	}
}

static struct gr_ram *source_ram(const struct bench_machine *m)
{
	struct gr_ram_block_desc desc = { .size = sizeof(desc), .id = "ram" };
	struct gr_error err;
	struct gr_ram *ram;

	desc.backing = GR_RAM_CALLER;
	desc.host = map_file(m->src_file, m->bytes, &desc.fd);
	desc.used_bytes = m->bytes;
	desc.mapped = true;
	if (!m->untouched) {
		populate(desc.host, m->bytes);
	}
	if (gr_ram_create(NULL, &ram, &err) < 0 || gr_ram_block_add(ram, &desc, NULL, &err) < 0) {
		bench_die("source: %s", err.msg);
	}
	return ram;
}

/* Ends with the destination's word that it has everything. */
static void our_source(const struct bench_machine *m, struct gr_ram *ram)
{
	struct gr_channel *further[GR_MULTIFD_CHANNELS_MAX];
	struct gr_multifd multifd = { .channels = further, .count = m->channels };
	struct gr_source_params params = { .size = sizeof(params) };
	struct gr_channel *channel;
	struct gr_source *source;
	struct gr_error err;

	params.multifd = m->channels ? &multifd : NULL;
	if ((m->channels ? gr_multifd_connect(m->uri, m->channels, &channel, further, &err)
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

struct bench_move bench_our_move(const struct bench_machine *m)
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
		struct gr_ram *ram = source_ram(m);

		report.cpu_s = -bench_cpu_s(0);
		report.wall_s = -bench_now_s();
		our_source(m, ram);
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

double bench_bare_copy_s(const struct bench_machine *m)
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
		populate(from, m->bytes);
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

