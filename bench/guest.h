/* SPDX-License-Identifier: MIT */
/*
 * A guest that stores to random pages at a steady rate, waiting in a loop in between: a boot sector
 * for a QEMU that emulates its processor. What it did is in its RAM, for whoever has that mapped
 * too.
 */
#ifndef BENCH_GUEST_H
#define BENCH_GUEST_H

#include <stdint.h>

enum {
	GUEST_PAGE = 4096,
	GUEST_COUNTER_AT = 0x604, /* 32 bits: how many stores it has done */
	GUEST_LOG_AT = 0x100000,  /* of the last stores, by their number */
	GUEST_LOG_ENTRIES = 65536,
	GUEST_REGION_AT = 0x200000, /* where it stores */
};

struct guest_log_entry {
	uint32_t address; /* of the page */
	uint32_t ticks;	  /* that the store took, by the time stamp counter */
};

/* Ticks of the time stamp counter in a second; 0: this is not an x86. */
double bench_guest_ticks_per_s(void);

/**
 * Write a floppy that boots it.
 * @param path  The file.
 * @param pages Of the region: a power of two.
 * @param gap_s From a store to the next one.
 */
void bench_guest_floppy(const char *path, uint32_t pages, double gap_s);

#endif
