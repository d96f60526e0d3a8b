/* SPDX-License-Identifier: MIT */
/*
 * Litmus tests: what a grace period promises from outside, whatever a section reads and writes.
 *
 * The protocol is gp.pml's (driver.inc, reader.inc). A writer accesses x, waits for a grace
 * period, accesses y. A section accesses y and x, which do not depend on each other: in any order
 * that its machine likes. Each of the four accesses is a load or a store, but no variable is only
 * loaded. That makes
 *
 *     the section     the writer      name    forbidden
 *     loads y, x      stores x, y     MP      y is new, x is old
 *     stores y        stores x, y     R       y is the section's at last, x is old
 *     stores y        stores x        SB      the writer's y is old, and the section's x
 *     stores x        stores y        LB      the writer's x is the section's, the section's y the writer's
 *     stores x        stores x, y     (Z6.2)  y is new, x is the writer's at last
 *     stores both     stores x, y     2+2W    y is the section's at last, x the writer's
 *     stores both     stores y        S       the writer's x is the section's, y the section's at last
 *
 * Memory is one copy, so the values follow from the order in which accesses to one variable are
 * performed, and all rows forbid the same: the writer's access to y comes before the section's, and
 * the section's to x before the writer's. That is what is asserted. A writer's load is one of its stores
 * that leaves the buffer at once.
 *
 * Bounds: -DREADERS=1, -DR0=HOT,HOT,NOTHING (the reader's program, as in gp.pml), -DGPS=n, -DQUIET_TIMES=n, -DNO_HEAVY.
 * -DSTORES=n: only sections that store y (1), x (2), both (3) or none (0).
 *
 * Mutants: NO_F1 NO_M1 IDLE_HOT_IS_SAFE OUTSIDE_IS_REPORTED REPORT_RELAXED NO_C1 UNLOCK_RELAXED (R1) NEW_SECTION_IS_QUIET
 * ONLINE_IS_QUIET OFFLINE_RELAXED; QUIET_WITHOUT_FENCE (Q1) WARM_IGNORES_QUIET (H3) QUIET_ENDS_FIRST (Q2).
 */
#ifndef R0
#define R0 HOT, HOT, NOTHING
#endif
#ifndef GPS
#define GPS 1
#endif

byte stores; /* bit 0: sections store y; bit 1: x */
byte y;	     /* the writer's accesses to y so far; those to x are `published` */

#define READY(k, op, var) ((stores & (var)) -> STORE_READY(k, op) : LOAD_READY(k, op))
#define ACCESS1_READY(k) READY(k, FIRST, 1)
#define ACCESS1(k) y_seen[k] = y + 1; judge(k)
#define ACCESS2_READY(k) READY(k, SECOND, 2)
#define ACCESS2(k) x_seen[k] = published + 1; judge(k)
/* What steps after k loaded was speculation. */
#define FORGET(k) bad = bad & ((2 << (k)) - 1);                                                    \
		  if :: k < 1 -> y_seen[1] = 0; x_seen[1] = 0 :: else fi;                          \
		  if :: k < 2 -> y_seen[2] = 0; x_seen[2] = 0 :: else fi

#include "reader.inc"
#include "driver.inc"

/* Both accesses of a section are performed. */
inline judge(k)
{
	if
	:: y_seen[k] && x_seen[k] ->
		bad = bad | (y_seen[k] > x_seen[k] -> 1 << k : 0);
		y_seen[k] = 0;
		x_seen[k] = 0
	:: else
	fi
}

proctype reader(byte me; byte s0; byte s1; byte s2)
{
	READER_LOCALS;
	byte y_seen[STEPS], x_seen[STEPS]; /* plus 1; 0: not yet, or judged */
	byte bad = 0;			   /* bit k: section k has had the forbidden outcome */

#ifdef MUTANT_NO_C1
	fences = 0;
#endif
	READER_LOOP;
	assert(bad == 0)
}

#ifdef QUIET_TIMES
#include "quiet.inc"
#endif

proctype writer()
{
	DRIVER_LOCALS;
	byte g = 0;

	do
	:: g < GPS ->
		publish(g + 1); /* x */
		run_grace_period();
		atomic { g++; y = g }
	:: g == GPS -> break
	od
}

inline start(me, s0, s1, s2)
{
	ctr[me] = BEGINS_AS(s0);
	run reader(me, s0, s1, s2)
}

init {
#ifdef STORES
	stores = STORES;
#else
	select (stores : 0 .. 3);
#endif
	atomic {
		run store_buffer();
		start(0, R0);
#ifdef QUIET_TIMES
		run quiet_times();
#endif
		run writer()
	}
}
