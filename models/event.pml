/* SPDX-License-Identifier: MIT */
/*
 * Events: no wake-up is lost, and who was let go sees what was written before.
 *
 * Mirrors gr_event_set(), gr_event_reset(), gr_event_wait() and gr_event_wait_timeout() of
 * src/base/event.c, with E1 and E2 as there. Each setter stores its work, which may stay in its
 * store buffer until E1, and sets the event. The consumer resets, looks for work, and waits when
 * there is some missing. With -DLATCH several threads wait once, and nobody resets. With
 * -DCOUNT_CASE one thread sleeps, the event is set and reset, and another thread makes it busy
 * again before the first has looked: the sleeper must go on (and lets the other one go).
 *
 * Each access is a step and steps interleave in any way. Without E2 the look for work may come
 * before the reset.
 *
 * Liveness: all who wait end (invalid end states). Safety: a wait that returns sees what was
 * written before the set (assert, LATCH).
 *
 * Bounds: -DSETTERS=n (up to 3), -DWAITERS=n (LATCH), -DTIMED: the consumer, or waiter 0, may give
 * up a wait (and leaves BUSY behind).
 *
 * Mutants: NO_E1 NO_E2 SET_SKIPS_BUSY SET_STORES WAIT_NOT_BUSY RESET_STORES WAKE_ONE
 * NO_COUNT (COUNT_CASE).
 */
#ifndef SETTERS
#define SETTERS 2
#endif
#ifndef WAITERS
#define WAITERS 2
#endif

/* The word: state in the low two bits, sets counted above. */
#define IS_SET	0
#define IS_FREE 1
#define IS_BUSY 3
#define STATE(w) ((w) & 3)

byte word = IS_FREE;
byte asleep;	 /* set of threads that the kernel has put to sleep */
byte work;	 /* set of setters whose work is visible */
byte in_buffer;	 /* set of setters whose work is in their store buffer */

#define BIT(t) (1 << (t))
#define ALL_WORK (BIT(SETTERS) - 1)

inline wake_all()
{
#ifdef MUTANT_WAKE_ONE
	if
	:: asleep & 1 -> asleep = asleep & ~1
	:: asleep & 2 -> asleep = asleep & ~2
	:: asleep == 0
	fi
#else
	asleep = 0
#endif
}

#ifdef MUTANT_NO_COUNT
#define SET_AFTER(w) (((w) & ~3) | IS_SET)
#else
#define SET_AFTER(w) (((w) | 3) + 1)
#endif

inline event_set()
{
#ifndef MUTANT_NO_E1
	!(in_buffer & BIT(me)); /* E1 */
#endif
	seen = word;
	do
#ifdef MUTANT_SET_SKIPS_BUSY
	:: STATE(seen) != IS_FREE -> break
#else
	:: STATE(seen) == IS_SET -> break
#endif
#ifdef MUTANT_SET_STORES
	:: else ->
		word = SET_AFTER(seen);
#else
	:: STATE(seen) != IS_SET && word != seen -> seen = word
	:: atomic { STATE(seen) != IS_SET && word == seen -> word = SET_AFTER(seen) };
#endif
		if
		:: STATE(seen) == IS_BUSY -> wake_all()
		:: else
		fi;
		break
	od;
	seen = 0
}

inline event_reset()
{
#ifdef MUTANT_RESET_STORES
	word = (word & ~3) | IS_FREE
#else
	word = word | IS_FREE
#endif
}

/* ret: set or let go, not given up. */
inline event_wait(may_give_up)
{
	busy = word; /* become_busy() */
#ifndef MUTANT_WAIT_NOT_BUSY
	do
	:: STATE(busy) != IS_FREE -> break
	:: atomic { STATE(busy) == IS_FREE && word == busy -> word = busy | IS_BUSY; busy = word }
	:: atomic { STATE(busy) == IS_FREE && word != busy -> busy = word }
	od;
#endif
	do
	:: STATE(busy) == IS_SET -> break
	:: STATE(busy) != IS_SET ->
		if
		:: atomic { word == busy -> asleep = asleep | BIT(me) };
			if
			:: !(asleep & BIT(me))
			:: may_give_up -> asleep = asleep & ~BIT(me); break
			fi
		:: word != busy
		fi;
		if
		:: word != busy -> break /* still_busy() */
		:: word == busy
		fi
	od;
	busy = 0
}

proctype store_buffers()
{
end_empty:
	do
	:: d_step { in_buffer & 1 -> in_buffer = in_buffer & ~1; work = work | 1 }
	:: d_step { in_buffer & 2 -> in_buffer = in_buffer & ~2; work = work | 2 }
	:: d_step { in_buffer & 4 -> in_buffer = in_buffer & ~4; work = work | 4 }
	od
}

proctype setter(byte me)
{
	byte seen = 0;

	in_buffer = in_buffer | BIT(me);
	event_set()
}

#ifdef TIMED
#define MAY_GIVE_UP (me == 0)
#else
#define MAY_GIVE_UP false
#endif

proctype consumer(byte me)
{
	byte busy = 0, found = 0;

	do
	::
#ifdef MUTANT_NO_E2
		if
		:: event_reset(); found = work
		:: found = work; event_reset()
		fi;
#else
		event_reset();
		found = work; /* E2 between them */
#endif
		if
		:: found == ALL_WORK -> break
		:: else -> event_wait(MAY_GIVE_UP)
		fi
	od
}

proctype waiter(byte me)
{
	byte busy = 0;

	event_wait(MAY_GIVE_UP);
	assert(work != 0 || MAY_GIVE_UP)
}

proctype sleeper(byte me)
{
	byte busy = 0, seen = 0;

	event_wait(false);
	asleep & 2;
	event_set()
}

proctype setter_and_waiter(byte me)
{
	byte busy = 0, seen = 0;

	asleep & 1;
	event_set();
	event_reset();
	event_wait(false)
}

init {
	atomic {
#ifdef COUNT_CASE
		run sleeper(0);
		run setter_and_waiter(1)
#else
		byte t = 0;
		run store_buffers();
		do
		:: t < SETTERS -> run setter(t); t++
		:: else -> break
		od;
#ifdef LATCH
		t = 0;
		do
		:: t < WAITERS -> run waiter(t); t++
		:: else -> break
		od
#else
		run consumer(0)
#endif
#endif
	}
}
