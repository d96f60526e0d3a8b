/* SPDX-License-Identifier: MIT */
/* QEMU's own background snapshot of a guest that measures its stores. */
#ifndef BENCH_SNAPSHOT_QEMU_H
#define BENCH_SNAPSHOT_QEMU_H

#include <stdint.h>

struct bench_stalls {
	double p99_s, max_s;
};

/**
 * @param tmp         A private folder in memory.
 * @param bytes       Of RAM, random.
 * @param gap_s       From a store to the next one.
 * @param bytes_per_s What the disk takes.
 * @return How long stores took to pages not written since the snapshot began, by the guest's clock.
 */
struct bench_stalls bench_qemu_snapshot(const char *tmp, uint64_t bytes, double gap_s,
					uint64_t bytes_per_s);

#endif
