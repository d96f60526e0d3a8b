/* SPDX-License-Identifier: MIT */
/* A link between two machines that carries so much and no more, also at the end of a move. */
#ifndef BENCH_LINK_H
#define BENCH_LINK_H

#include <stdint.h>

struct bench_link;

/**
 * Listen at a unix socket, and pass what one caller sends on to another one at that rate; what
 * comes back is passed on at once.
 * @param from        Path where it listens; made.
 * @param to          Path where somebody will listen by the time that somebody calls.
 * @param bytes_per_s Rate.
 */
struct bench_link *bench_link_start(const char *from, const char *to, uint64_t bytes_per_s);

/* When both ends have closed. Returns how many bytes it passed on to the second one. */
uint64_t bench_link_end(struct bench_link *link);

#endif
