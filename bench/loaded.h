/* SPDX-License-Identifier: MIT */
/* A guest that writes all the time, moved while it does. */
#ifndef BENCH_LOADED_H
#define BENCH_LOADED_H

#include "bench/harness.h"

/* The case migrate.loaded. tmp: a private folder in memory; qemu_name: the peer's. */
void bench_loaded(const struct bench_options *o, const char *tmp, const char *qemu_name);

#endif
