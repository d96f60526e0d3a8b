/* SPDX-License-Identifier: MIT */
#include "demo.h"
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { LINK_BYTES = 96 << 20, PIECE_BYTES = 256 << 10 };

/* The sending end: its own memory is warm, as a guest's is. */
static void *send_bytes(void *opaque)
{
	struct gr_channel *channel = opaque;
	uint8_t *piece = malloc(PIECE_BYTES);

	if (!piece) {
		gr_channel_shutdown(channel);
		return NULL;
	}
	memset(piece, 1, PIECE_BYTES);
	for (size_t sent = 0; sent < LINK_BYTES; sent += PIECE_BYTES) {
		if (gr_channel_write_all(channel, piece, PIECE_BYTES, NULL) < 0) {
			break;
		}
	}
	free(piece);
	return NULL;
}

static int receive_bytes(struct gr_channel *channel, uint8_t *memory, struct gr_error *err)
{
	size_t got = 0;

	while (got < LINK_BYTES) {
		const struct iovec iov = { .iov_base = memory + got, .iov_len = LINK_BYTES - got };
		ssize_t n = gr_channel_readv(channel, &iov, 1, err);

		if (n < 0) {
			return (int)n;
		}
		if (n == 0) {
			return gr_error_set(err, -EPIPE, "the link ended");
		}
		got += (size_t)n;
	}
	return 0;
}

static int copy_through(struct gr_channel *from, struct gr_channel *to, uint8_t *memory,
			uint64_t *ret_bytes_per_s, struct gr_error *err)
{
	struct timespec begin, end;
	pthread_t sender;
	int64_t ns;
	int rc = pthread_create(&sender, NULL, send_bytes, from);

	if (rc != 0) {
		return gr_error_set(err, -rc, "cannot make a thread: %s", strerror(rc));
	}
	(void)clock_gettime(CLOCK_MONOTONIC, &begin);
	rc = receive_bytes(to, memory, err);
	(void)clock_gettime(CLOCK_MONOTONIC, &end);
	gr_channel_shutdown(to);
	(void)pthread_join(sender, NULL);
	ns = (int64_t)(end.tv_sec - begin.tv_sec) * 1000000000 + end.tv_nsec - begin.tv_nsec;
	*ret_bytes_per_s = (uint64_t)(LINK_BYTES * 1e9 / (double)(ns > 0 ? ns : 1));
	return rc;
}

static int open_pair(struct gr_channel *ends[2], struct gr_error *err)
{
	int fds[2], rc;

	if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds) < 0) {
		return gr_error_set(err, -errno, "cannot make a link: %s", strerror(errno));
	}
	rc = gr_channel_from_fd(fds[0], &ends[0], err);
	if (rc < 0) {
		(void)close(fds[0]);
		(void)close(fds[1]);
		return rc;
	}
	rc = gr_channel_from_fd(fds[1], &ends[1], err);
	if (rc < 0) {
		(void)gr_channel_close(ends[0], NULL);
		(void)close(fds[1]);
	}
	return rc;
}

int demo_measure_link(uint64_t *ret_bytes_per_s, struct gr_error *err)
{
	struct gr_channel *ends[2];
	uint8_t *memory =
		mmap(NULL, LINK_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	int rc;

	if (memory == MAP_FAILED) {
		return gr_error_set(err, -ENOMEM, "no memory to measure the link");
	}
	rc = open_pair(ends, err);
	if (rc == 0) {
		rc = copy_through(ends[0], ends[1], memory, ret_bytes_per_s, err);
		(void)gr_channel_close(ends[0], NULL);
		(void)gr_channel_close(ends[1], NULL);
	}
	(void)munmap(memory, LINK_BYTES);
	return rc;
}
