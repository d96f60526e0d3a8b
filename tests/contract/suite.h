/* SPDX-License-Identifier: MIT */
/*
 * What every tracker promises, checked by a memory difference (oracle.h): threads write guest
 * memory in all the ways that the tracker is said to see, while something else goes on; two
 * consumers copy what they are told was written, one of them failing now and then. At the end both
 * copies equal the memory.
 *
 * A new tracker or backing is a row; a row runs under all conditions:
 *
 *     static const struct suite_row new_tracker = { ... };
 *     SUITE_ROWS(new_tracker)
 */
#ifndef SUITE_H
#define SUITE_H

#include "oracle.h"

/* What goes on while the writers write. */
enum suite_condition {
	SUITE_PLUG,    /* blocks come and go */
	SUITE_GROW,    /* the dirty memory grows, chunk by chunk, under the marks */
	SUITE_DISCARD, /* memory is given back */
	SUITE_RESIZE,  /* blocks become longer and shorter */
	SUITE_RACE, /* nothing, but little memory and no pause: stores meet each step of a sync */
};

enum {
	SUITE_FIXED = 3,	  /* blocks that stay */
	SUITE_SLOTS = 6,	  /* with those that come and go */
	SUITE_FIXED_PAGES = 1500, /* not a multiple of 64 */
	SUITE_RACE_PAGES = 70,	  /* of each that stays, in SUITE_RACE */
	SUITE_PLUG_PAGES_MAX = 130,
};
#define SUITE_SLOT_BYTES (1ull << 24) /* the slots' distance in guest addresses */

struct suite;

struct suite_row {
	enum gr_tracker_kind kind;
	enum gr_ram_backing backing;
	unsigned int writers; /* enum gr_writers: who writes, and what tracking is told */
	bool without_privilege;

	/* Of trackers that need a guest: all three functions, or none. */
	uint32_t ring_entries;
	bool no_manual_protect, log_initially_set;
	/* Makes it and takes the tracker into use; skips the test where there can be none. */
	void *(*guest_create)(struct suite *s);
	/* A thread's: has it write until suite_elapsed() is 1 or more; returns the stores made. */
	uint64_t (*guest_write)(struct suite *s, void *guest);
	void (*guest_destroy)(void *guest); /* before the trackers and the RAM */
};

struct suite {
	const struct suite_row *row;
	enum suite_condition condition;
	struct gr_ram *ram;
	struct gr_track *track;
	void *guest;
	double begin, seconds;
	uint32_t rounds;  /* (a) of the first consumer */
	uint32_t stop;	  /* (a) for the second consumer */
	uint32_t changes; /* (a) what the condition did */
	struct oracle a, b;
};

/* How much of the test is over, from 0 to 1 and more. */
double suite_elapsed(const struct suite *s);
/* How many of so many pages, from the first on, are not written any more. */
uint64_t suite_retired(const struct suite *s, uint64_t pages);
/* The machine and its tracker in use, not started. */
struct suite *suite_create(const struct suite_row *row, enum suite_condition condition);
void suite_free(struct suite *s);
void suite_run(const struct suite_row *row, enum suite_condition condition);
/* suite_coverage.c: writers that it cannot see are refused. */
void suite_coverage(const struct suite_row *row);

#define SUITE_ROWS(row)                                \
	TEST(row##_beside_plugs)                       \
	{                                              \
		suite_run(&(row), SUITE_PLUG);         \
	}                                              \
	TEST(row##_beside_growth)                      \
	{                                              \
		suite_run(&(row), SUITE_GROW);         \
	}                                              \
	TEST(row##_beside_discards)                    \
	{                                              \
		suite_run(&(row), SUITE_DISCARD);      \
	}                                              \
	TEST(row##_beside_resizes)                     \
	{                                              \
		suite_run(&(row), SUITE_RESIZE);       \
	}                                              \
	TEST(row##_in_a_race)                          \
	{                                              \
		suite_run(&(row), SUITE_RACE);         \
	}                                              \
	TEST(row##_refuses_writers_that_it_cannot_see) \
	{                                              \
		suite_coverage(&(row));                \
	}

#endif
