/* SPDX-License-Identifier: MIT */
/*
 * The guest is a boot sector under TCG that notes how long each of its stores took (bench/guest.h);
 * it waits for the page as a guest of KVM does, in a page fault of its thread. The disk is a socket
 * that takes so many bytes a second.
 */
#include "bench/snapshot_qemu.h"
#include "bench/guest.h"
#include "bench/harness.h"
#include "bench/link.h"
#include "bench/qemu.h"
#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

enum { BEGIN = 2000, LIMIT_S = 60 };

/* Where all ends. */
static void *swallow(void *opaque)
{
	int *listener = opaque, fd = accept(*listener, NULL, NULL);
	static char buffer[1 << 16];

	while (fd >= 0 && read(fd, buffer, sizeof(buffer)) > 0) {
	}
	close(fd);
	return NULL;
}

static int listen_at(const char *path)
{
	struct sockaddr_un a = { .sun_family = AF_UNIX };
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

	if (strlen(path) >= sizeof(a.sun_path)) {
		bench_die("socket path too long: %s", path);
	}
	memcpy(a.sun_path, path, strlen(path));
	if (fd < 0 || bind(fd, (struct sockaddr *)&a, sizeof(a)) != 0 || listen(fd, 1) != 0) {
		bench_die("%s: %s", path, strerror(errno));
	}
	return fd;
}

static uint8_t *make_ram(const char *path, uint64_t bytes)
{
	uint8_t *p;

	(void)unlink(path);
	p = bench_map_file(path, bytes, NULL);
	bench_fill_random(p + GUEST_REGION_AT, bytes - GUEST_REGION_AT, 1);
	return p;
}

static uint32_t counter(const uint8_t *ram)
{
	return *(const volatile uint32_t *)(const void *)(ram + GUEST_COUNTER_AT);
}

static int by_value(const void *a, const void *b)
{
	const uint32_t *x = a, *y = b;

	return (*x > *y) - (*x < *y);
}

/* Of the stores from one number to another, those to pages that were not among them before. */
static struct bench_stalls stalls_of(const uint8_t *ram, uint64_t bytes, uint32_t from, uint32_t to)
{
	const struct guest_log_entry *log = (const void *)(ram + GUEST_LOG_AT);
	uint8_t *written = calloc(bytes / GUEST_PAGE, 1);
	uint32_t *ticks = calloc(GUEST_LOG_ENTRIES, sizeof(*ticks));
	struct bench_stalls stalls;
	size_t count = 0;

	if (!written || !ticks || to - from >= GUEST_LOG_ENTRIES) {
		bench_die("the snapshot took too long");
	}
	for (uint32_t n = from; n < to; n++) {
		const struct guest_log_entry *e = &log[n % GUEST_LOG_ENTRIES];
		uint64_t page = e->address / GUEST_PAGE % (bytes / GUEST_PAGE);

		if (!written[page]) {
			written[page] = 1;
			ticks[count++] = e->ticks;
		}
	}
	if (count < 100) {
		bench_die("QEMU's guest has stored to %zu pages only", count);
	}
	qsort(ticks, count, sizeof(*ticks), by_value);
	stalls.p99_s = ticks[count - 1 - count / 100] / bench_guest_ticks_per_s();
	stalls.max_s = ticks[count - 1] / bench_guest_ticks_per_s();
	free(written);
	free(ticks);
	return stalls;
}

struct bench_stalls bench_qemu_snapshot(const char *tmp, uint64_t bytes, double gap_s,
					uint64_t bytes_per_s)
{
	static int number;
	char file[96], floppy[96], disk[96], uri[96], end[96];
	struct bench_machine m = { .tmp = tmp, .src_file = file, .floppy = floppy, .bytes = bytes };
	uint32_t pages = 1, from, to;
	struct bench_stalls stalls;
	struct bench_link *link;
	struct bench_qemu q;
	pthread_t sink;
	uint8_t *ram;
	int listener;

	(void)snprintf(file, sizeof(file), "%s/ram", tmp);
	(void)snprintf(floppy, sizeof(floppy), "%s/floppy", tmp);
	(void)snprintf(uri, sizeof(uri), "unix:%s/slow%d", tmp, number);
	(void)snprintf(end, sizeof(end), "%s/end%d", tmp, number++);
	(void)snprintf(disk, sizeof(disk), "%s", uri + strlen("unix:"));
	while ((uint64_t)pages * 2 * GUEST_PAGE + GUEST_REGION_AT <= bytes) {
		pages *= 2;
	}
	bench_guest_floppy(floppy, pages, gap_s);
	ram = make_ram(file, bytes);
	listener = listen_at(end);
	if (pthread_create(&sink, NULL, swallow, &listener) != 0) {
		bench_die("no thread");
	}
	link = bench_link_start(disk, end, bytes_per_s);
	bench_qemu_start(&q, &m, "src", file, false, false);
	bench_qmp(&q, "{\"execute\":\"migrate-set-capabilities\",\"arguments\":{\"capabilities\":"
		      "[{\"capability\":\"background-snapshot\",\"state\":true}]}}");
	for (double began = bench_now_s(); counter(ram) < BEGIN; usleep(1000)) {
		if (bench_now_s() - began > LIMIT_S) {
			bench_die("QEMU's guest does not begin");
		}
	}
	from = counter(ram);
	bench_qemu_migrate(&q, uri);
	bench_qemu_wait_completed(&q);
	to = counter(ram);
	bench_qemu_end(&q);
	bench_link_end(link);
	(void)pthread_join(sink, NULL);
	close(listener);
	stalls = stalls_of(ram, bytes, from, to);
	munmap(ram, bytes);
	(void)unlink(file);
	return stalls;
}
