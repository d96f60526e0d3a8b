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
	double wall_s; /* the source's; the destination's: when it was done */
	double peak_mib;
};

static struct gr_ram_block *block_of(struct gr_ram *ram)
{
	struct gr_ram_block *block;

	gr_rcu_read_lock();
	block = gr_ram_block_by_id_rcu(ram, "ram"); /* nobody removes it */
	gr_rcu_read_unlock();
	if (!block) {
		bench_die("no block 'ram' has come");
	}
	return block;
}

/* The page table is there already, as in a machine whose guest has run. */
static void populate(void *host, uint64_t bytes)
{
	if (madvise(host, bytes, MADV_POPULATE_WRITE) != 0) {
		bench_die("cannot map the source's memory: %s", strerror(errno));
	}
}

static struct gr_ram *source_ram(const struct bench_machine *m)
{
	struct gr_ram_block_desc desc = {
		.size = sizeof(desc), .id = "ram", .backing = GR_RAM_FILE, .path = m->src_file
	};
	struct gr_ram_block *block;
	struct gr_error err;
	struct gr_ram *ram;

	desc.used_bytes = m->bytes;
	desc.mapped = true;
	if (gr_ram_create(NULL, &ram, &err) < 0 || gr_ram_block_add(ram, &desc, &block, &err) < 0) {
		bench_die("source: %s", err.msg);
	}
	if (!m->untouched) {
		populate(block->host, m->bytes);
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
	int fd, rc;

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
	    gr_destination_create(ram, channel, &params, NULL, &destination, &err) < 0) {
		bench_die("destination: %s", err.msg);
	}
	rc = gr_destination_run(destination, &err);
	/* All RAM has come, and then a QEMU's devices, for which there is no machine here. */
	if (rc < 0 && !(m->from_qemu && rc == -EOPNOTSUPP)) {
		bench_die("destination: %s", err.msg);
	}
	report.wall_s = bench_now_s();
	report.cpu_s = bench_cpu_s(0) - before;
	report.peak_mib = bench_peak_mib(0);
	(void)!write(done, &report, sizeof(report));
	fd = open(m->src_file, O_RDONLY | O_CLOEXEC);
	if (!bench_same_bytes(block_of(ram)->fd, fd, m->bytes)) {
		bench_die("our destination has other RAM than its source");
	}
}

/* Returns when it listens; it will report to `done`. */
static pid_t start_destination(const struct bench_machine *m, int done)
{
	int ready[2];
	pid_t pid;
	char c;

	if (pipe(ready) != 0) {
		bench_die("pipe: %s", strerror(errno));
	}
	pid = fork();
	if (pid == 0) {
		our_destination(m, ready[1], done);
		_exit(0);
	}
	close(ready[1]);
	(void)!read(ready[0], &c, 1);
	close(ready[0]);
	return pid;
}

static void join(pid_t pid, const char *who)
{
	int status;

	if (waitpid(pid, &status, 0) != pid || status != 0) {
		bench_die("our %s failed", who);
	}
}

static void add_report(struct bench_move *move, const struct report *report)
{
	if (report->source) {
		move->wall_s = report->wall_s;
		move->src_cpu_s = report->cpu_s;
		move->src_peak_mib = report->peak_mib;
	} else {
		move->dst_cpu_s = report->cpu_s;
		move->dst_peak_mib = report->peak_mib;
	}
}

static struct report read_report(int done)
{
	struct report report;

	if (read(done, &report, sizeof(report)) != sizeof(report)) {
		bench_die("a process of ours did not report");
	}
	return report;
}

struct bench_move bench_move_from_qemu(const struct bench_machine *m)
{
	struct bench_move move;
	struct report report;
	int done[2];
	pid_t dst;

	if (pipe(done) != 0) {
		bench_die("pipe: %s", strerror(errno));
	}
	dst = start_destination(m, done[1]);
	move = bench_qemu_send(m);
	join(dst, "destination");
	report = read_report(done[0]);
	move.wall_s = report.wall_s - move.wall_s;
	add_report(&move, &report);
	close(done[0]);
	close(done[1]);
	return move;
}

struct bench_move bench_our_move(const struct bench_machine *m)
{
	struct report report = { .source = true };
	struct bench_move move = { 0 };
	pid_t dst, src;
	int done[2];

	if (pipe(done) != 0) {
		bench_die("pipe: %s", strerror(errno));
	}
	dst = start_destination(m, done[1]);
	src = fork();
	if (src == 0) {
		struct gr_ram *ram = source_ram(m);

		report.cpu_s = -bench_cpu_s(0);
		report.wall_s = -bench_now_s();
		our_source(m, ram);
		report.wall_s += bench_now_s();
		report.cpu_s += bench_cpu_s(0);
		report.peak_mib = bench_peak_mib(0);
		(void)!write(done[1], &report, sizeof(report));
		_exit(0);
	}
	join(src, "source");
	join(dst, "destination");
	for (int i = 0; i < 2; i++) {
		report = read_report(done[0]);
		add_report(&move, &report);
	}
	close(done[0]);
	close(done[1]);
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
