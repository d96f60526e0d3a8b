/* SPDX-License-Identifier: MIT */
#include "progress.h"
#include "tool.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

enum { INTERVAL_NS = 200000000 };

static uint64_t now_ns(void)
{
	struct timespec ts;

	(void)clock_gettime(CLOCK_MONOTONIC, &ts);
	return (uint64_t)ts.tv_sec * 1000000000u + (uint64_t)ts.tv_nsec;
}

void progress_begin(struct progress *p, const char *what)
{
	const char *term = getenv("TERM");

	*p = (struct progress){ .what = what };
	p->visible = isatty(STDERR_FILENO) && !(term && strcmp(term, "dumb") == 0);
}

void progress_show(void *opaque, const struct gr_migrate_stats *stats)
{
	struct progress *p = opaque;
	uint64_t now;
	char moved[24], total[24], rate[24];

	if (!p->visible) {
		return;
	}
	now = now_ns();
	if (p->shown_ns != 0 && now - p->shown_ns < INTERVAL_NS) {
		return;
	}
	p->shown_ns = now;
	(void)fprintf(stderr, "\r\033[K%s: %s on the wire, %s of RAM, %s/s", p->what,
		      tool_format_size(stats->transferred_bytes, moved, sizeof(moved)),
		      tool_format_size(stats->total_bytes, total, sizeof(total)),
		      tool_format_size(stats->bandwidth_bytes_per_s, rate, sizeof(rate)));
	(void)fflush(stderr);
}

void progress_end(struct progress *p)
{
	if (p->visible && p->shown_ns != 0) {
		(void)fputs("\r\033[K", stderr);
		(void)fflush(stderr);
	}
	p->visible = false;
}
