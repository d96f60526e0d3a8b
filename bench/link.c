/* SPDX-License-Identifier: MIT */
#include "bench/link.h"
#include "bench/harness.h"
#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

enum { AT_ONCE = 64 << 10 };

struct way {
	int from, to;
	uint64_t bytes_per_s; /* 0: at once */
	uint64_t bytes;	      /* passed on */
	pthread_t thread;
};

struct bench_link {
	struct way there, back;
	int listener;
	struct sockaddr_un to;
	pthread_t thread;
};

static struct sockaddr_un address(const char *path)
{
	struct sockaddr_un a = { .sun_family = AF_UNIX };

	if (strlen(path) >= sizeof(a.sun_path)) {
		bench_die("socket path too long: %s", path);
	}
	memcpy(a.sun_path, path, strlen(path));
	return a;
}

static void start(pthread_t *thread, void *(*run)(void *), void *opaque)
{
	int ret = pthread_create(thread, NULL, run, opaque);

	if (ret != 0) {
		bench_die("no thread: %s", strerror(ret));
	}
}

/* A sender is never ahead of the rate; what it has not used is gone. */
static void wait_turn(double *next_s, double takes_s)
{
	double now = bench_now_s();
	struct timespec ts;

	*next_s = (*next_s < now - 0.001 ? now : *next_s) + takes_s;
	if (*next_s > now) {
		ts.tv_sec = (time_t)(*next_s - now);
		ts.tv_nsec = (long)((*next_s - now - (double)ts.tv_sec) * 1e9);
		(void)nanosleep(&ts, NULL);
	}
}

static void *pass_on(void *opaque)
{
	struct way *w = opaque;
	char *buffer = malloc(AT_ONCE);
	double next_s = 0;
	ssize_t n;

	while (buffer && (n = read(w->from, buffer, AT_ONCE)) > 0) {
		if (w->bytes_per_s) {
			wait_turn(&next_s, (double)n / (double)w->bytes_per_s);
		}
		for (ssize_t done = 0, put; done < n; done += put) {
			put = send(w->to, buffer + done, (size_t)(n - done), MSG_NOSIGNAL);
			if (put <= 0) {
				n = 0;
				break;
			}
		}
		if (n == 0) {
			break;
		}
		w->bytes += (uint64_t)n;
	}
	(void)shutdown(w->to, SHUT_WR);
	free(buffer);
	return NULL;
}

static void *run_link(void *opaque)
{
	struct bench_link *l = opaque;

	l->there.from = l->back.to = accept(l->listener, NULL, NULL);
	l->there.to = l->back.from = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	if (l->there.from < 0 ||
	    connect(l->there.to, (const struct sockaddr *)&l->to, sizeof(l->to)) != 0) {
		bench_die("link: %s", strerror(errno));
	}
	start(&l->back.thread, pass_on, &l->back);
	(void)pass_on(&l->there);
	(void)pthread_join(l->back.thread, NULL);
	close(l->there.from);
	close(l->there.to);
	return NULL;
}

struct bench_link *bench_link_start(const char *from, const char *to, uint64_t bytes_per_s)
{
	const struct sockaddr_un a = address(from);
	struct bench_link *l = calloc(1, sizeof(*l));

	if (!l) {
		bench_die("no memory");
	}
	l->there.bytes_per_s = bytes_per_s;
	l->to = address(to);
	l->listener = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	if (l->listener < 0 || bind(l->listener, (const struct sockaddr *)&a, sizeof(a)) != 0 ||
	    listen(l->listener, 1) != 0) {
		bench_die("link: %s: %s", from, strerror(errno));
	}
	start(&l->thread, run_link, l);
	return l;
}

uint64_t bench_link_end(struct bench_link *l)
{
	uint64_t bytes;

	(void)pthread_join(l->thread, NULL);
	bytes = l->there.bytes;
	close(l->listener);
	free(l);
	return bytes;
}
