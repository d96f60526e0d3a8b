/* SPDX-License-Identifier: MIT */
/*
 * The grace period: nobody uses what was freed after one, and it ends.
 *
 * Mirrors src/rcu/grace_period.c (run_grace_period and what it calls), gr_rcu_read_lock(),
 * gr_rcu_read_unlock(), gr_rcu_park(), gr_rcu_report(), src/rcu/qs.c and src/rcu/quiet.c; the driver's steps are in driver.inc, the
 * readers' machine in reader.inc. The updater publishes object after object, each time waits for a grace period and frees
 * the one before. Each section finds the object (FIRST) and uses it (SECOND).
 *
 * Safety: no section uses a freed object (assert); at most one wake per grace period (assert).
 * Liveness: no lost report or wake-up (invalid end states: the updater never sticks).
 *
 * Bounds: -DREADERS=n, -DR0=HOT,HOT,HOT (the program of reader 0; R1, R2), -DGPS=n,
 * -DNO_HEAVY (no process-wide fence), -DQUIET_TIMES=n (quiet times begin and end n times, at any moment).
 *
 * Mutants: NO_F1 NO_M1 ASK_AFTER_M1 OUTSIDE_IS_REPORTED REPORT_RELAXED IDLE_HOT_IS_SAFE NO_C1
 * UNLOCK_RELAXED (R1) NO_M2 NO_RESCAN RESCAN_LOOKS_ONLY NO_WAKE WAKE_BEFORE_LAST REQUEST_BEFORE_PENDING PLAIN_CLEAR PLAIN_CLAIM (I2) NO_OWN_PART
 * NEW_SECTION_IS_QUIET; ONLINE_IS_QUIET OFFLINE_RELAXED OFFLINE_NOFENCE (O1)
 * FAMILY_SEEN_EARLY (O2);
 * QUIET_WITHOUT_FENCE (Q1) WARM_IGNORES_QUIET (H3) QUIET_ENDS_FIRST (Q2).
 */
#ifndef R0
#define R0 HOT, HOT, HOT
#endif
#ifndef R1
#define R1 HOT, NOTHING, NOTHING
#endif
#ifndef R2
#define R2 COLD, NOTHING, NOTHING
#endif
#ifndef GPS
#define GPS 2
#endif

#define ACCESS1_READY(k) LOAD_READY(k, FIRST)
#define ACCESS1(k) object[k] = published + 1
#define ACCESS2_READY(k) (LOAD_READY(k, SECOND) && (done[me] & BIT(k, FIRST)))
#define ACCESS2(k) used_freed = used_freed | ((freed >> (object[k] - 1)) & 1 -> 1 << k : 0); object[k] = 0
/* What steps after k read was speculation. */
#define FORGET(k) used_freed = used_freed & ((2 << (k)) - 1);                                      \
		  if :: k < 1 -> object[1] = 0 :: else fi;                                         \
		  if :: k < 2 -> object[2] = 0 :: else fi

#include "reader.inc"
#include "driver.inc"

byte freed; /* bit n: object n */

proctype reader(byte me; byte s0; byte s1; byte s2)
{
	READER_LOCALS;
	byte object[STEPS];
	byte used_freed = 0; /* bit k: in step k */

#ifdef MUTANT_NO_C1
	fences = 0;
#endif
	READER_LOOP;
	assert(used_freed == 0)
}

#ifdef QUIET_TIMES
#include "quiet.inc"
#endif

proctype updater()
{
	DRIVER_LOCALS;
	byte g = 0;

	do
	:: g < GPS ->
		publish(g + 1);
		run_grace_period();
		atomic { freed = freed | (1 << g); g++ }
	:: g == GPS -> break
	od
}

inline start(me, s0, s1, s2)
{
	ctr[me] = BEGINS_AS(s0);
	run reader(me, s0, s1, s2)
}

init {
	atomic {
		run store_buffer();
		start(0, R0);
#if READERS > 1
		start(1, R1);
#endif
#if READERS > 2
		start(2, R2);
#endif
#ifdef QUIET_TIMES
		run quiet_times();
#endif
		run updater()
	}
}
