/* SPDX-License-Identifier: MIT */
/*
 * Back-pressure: calls over the hard limit wait for room; none sleeps for ever, and nobody waits who
 * keeps the runner from going on.
 *
 * Mirrors gr_rcu_queue_report(), may_wait(), wait_for_room() and gr_rcu_queue_report_run() of
 * src/rcu/queue_limits.c (ROOM: L1, L2). Waits have no time-out here, but for FOREIGN: a lost wake-up is a hang.
 *
 * Two producers call CALLS times each. What a producer is like: PLAIN; SECTION: it calls inside a
 * section, for which the grace period waits; HOLDER: it holds the lock that is held while callbacks run;
 * FOREIGN: it holds a lock that callbacks take and of which the library knows nothing. With
 * -DCALLBACK each of the first callbacks calls, too. The runner takes what is queued, waits for a grace period, runs
 * under the lock, reports.
 *
 * Claim: everything runs, every call returns (invalid end states).
 *
 * Bounds: -DP0=PLAIN -DP1=PLAIN, -DCALLS=n, -DCALLBACK.
 *
 * Mutants: NO_L1 NO_L2 SEEN_LATE WAKES_ONE ALWAYS_WAITS (SECTION, HOLDER, CALLBACK) FOR_EVER (FOREIGN).
 */
#ifndef P0
#define P0 PLAIN
#endif
#ifndef P1
#define P1 PLAIN
#endif
#ifndef CALLS
#define CALLS 2
#endif
#define PLAIN 0
#define SECTION 1
#define HOLDER 2
#define FOREIGN 3
#define HARD 1
#define BIT(t) (1 << (t))

byte queued, total;
short count; /* may be below 0: a callback may have run before its call is counted */
byte room, room_waiters, asleep;
byte sections;	   /* set of producers inside one */
bool big, theirs;
bool in_callback = false;

inline wait_for_room(may_give_up)
{
#ifdef MUTANT_NO_L1
	/* The look at the count comes before the announcement can be seen. */
	over = count > HARD;
	seen = room;
	room_waiters++;
#else
	room_waiters++;
#endif
	do
	::
#ifndef MUTANT_NO_L1
#ifdef MUTANT_SEEN_LATE
		over = count > HARD;
		seen = room;
#else
		seen = room;
		over = count > HARD; /* L1 before it */
#endif
#endif
		if
		:: !over -> break
		:: else
		fi;
		if
		:: atomic { room == seen -> asleep = asleep | BIT(me) };
			if
			:: !(asleep & BIT(me))
			:: may_give_up -> asleep = asleep & ~BIT(me); break
			fi
		:: room != seen
		fi;
#ifdef MUTANT_NO_L1
		seen = room;
		over = count > HARD
#endif
	od;
	room_waiters--;
	atomic { over = false; seen = 0 }
}

#ifdef MUTANT_ALWAYS_WAITS
#define MAY_WAIT(kind) true
#else
#define MAY_WAIT(kind) ((kind) == PLAIN || (kind) == FOREIGN)
#endif
#ifdef MUTANT_FOR_EVER
#define GIVES_UP(kind) false
#else
#define GIVES_UP(kind) ((kind) == FOREIGN)
#endif

proctype producer(byte me; byte kind)
{
	byte n = 0, seen = 0;
	bool over = false;

	do
	:: n == CALLS -> break
	:: n < CALLS ->
		if
		:: kind == SECTION -> sections = sections | BIT(me)
		:: kind == HOLDER -> atomic { !big -> big = true }
		:: kind == FOREIGN -> atomic { !theirs -> theirs = true }
		:: else
		fi;
		queued++;
		count++;
		if
		:: count > HARD && MAY_WAIT(kind) -> wait_for_room(GIVES_UP(kind))
		:: else
		fi;
		if
		:: kind == SECTION -> sections = sections & ~BIT(me)
		:: kind == HOLDER -> big = false
		:: kind == FOREIGN -> theirs = false
		:: else
		fi;
		n++
	od
}

#ifdef CALLBACK
#define EXPECTED (2 * CALLS + 2)
#else
#define EXPECTED (2 * CALLS)
#endif

proctype runner()
{
	byte me = 2, n = 0, seen = 0, calls = 0;
	bool over = false, some = false;

	do
	:: total == EXPECTED && count == 0 && queued == 0 -> break
	:: queued ->
		atomic { n = queued; queued = 0 };
		sections == 0; /* a grace period */
		atomic { !big -> big = true };
		atomic { !theirs -> theirs = true };
		theirs = false;
		total = total + n;
#ifdef CALLBACK
		if
		:: calls < 2 -> calls++; queued++; count++;
			if
#ifdef MUTANT_ALWAYS_WAITS
			:: count > HARD -> wait_for_room(false)
#endif
			:: else
			fi
		:: else
		fi;
#endif
#ifdef MUTANT_NO_L2
		/* The look at the waiters comes before the count is down for all. */
		some = room_waiters != 0;
		count = count - n;
#else
		count = count - n;
		some = room_waiters != 0; /* L2 before it */
#endif
		if
		:: some && count <= HARD ->
			room++;
#ifdef MUTANT_WAKES_ONE
			asleep = (asleep & 1 -> asleep & ~1 : asleep & ~2)
#else
			asleep = 0
#endif
		:: else
		fi;
		big = false;
		atomic { n = 0; some = false }
	od
}

init {
	atomic {
		run producer(0, P0);
		run producer(1, P1);
		run runner()
	}
}
