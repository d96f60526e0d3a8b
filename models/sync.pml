/* SPDX-License-Identifier: MIT */
/*
 * Merge, sleep, hand over: gr_rcu_synchronize() by several threads at once.
 *
 * Mirrors gr_rcu_domain_get_state(), gr_rcu_domain_poll_state(), wait_for_cookie(),
 * sleep_for_driver(), unlock_and_hand_on() and hand_on() of src/rcu/synchronize.c (comments
 * COOKIES and WAITING FOR A DRIVER). What a grace period does in between is gp.pml's business;
 * here it is two steps that make seq odd and even.
 *
 * Each access is a step and steps interleave in any way. Where the source has a fence, the steps
 * around it have this order; the mutants take them in the other order, too.
 *
 * Safety: who returns was served by a grace period that began after the call did (assert).
 * Liveness: everybody returns (invalid end states).
 *
 * Bounds: -DTHREADS=n, each calls -DCALLS=n times; -DSPURIOUS: futex waits may end for no reason.
 *
 * Mutants: BUMP_BEFORE_UNLOCK WORD_READ_LATE NO_HANDOFF HANDOFF_TO_SERVED QUIET_WITHOUT_GP
 * NO_FENCE_IN_HAND_ON NO_FENCE_IN_SLEEP COOKIE_EARLY ONE_WORD_BUMPED.
 */
#ifndef THREADS
#define THREADS 3
#endif
#ifndef CALLS
#define CALLS 1
#endif

bool locked; /* gp.lock */
byte seq;
byte word[2];
byte waiters[2];
byte asleep[2]; /* sets of threads that the kernel has put to sleep */

/* For the assertions: how many grace periods have begun; the last one that ended. */
byte begun, ended;

#define PARITY ((cookie / 2) & 1)
#define BIT(t) (1 << (t))

#ifdef MUTANT_COOKIE_EARLY
#define COOKIE(s) (((s) + 2) & ~1) /* the grace period that runs would do */
#else
#define COOKIE(s) (((s) + 3) & ~1)
#endif

inline futex_wait(p)
{
	if
	:: atomic { word[p] == seen -> asleep[p] = asleep[p] | BIT(me) };
		if
		:: !(asleep[p] & BIT(me))
#ifdef SPURIOUS
		:: asleep[p] = asleep[p] & ~BIT(me)
#endif
		fi
	:: word[p] != seen
	fi
}

inline futex_wake_one(p)
{
	if
	:: asleep[p] & 1 -> asleep[p] = asleep[p] & ~1
	:: asleep[p] & 2 -> asleep[p] = asleep[p] & ~2
	:: asleep[p] & 4 -> asleep[p] = asleep[p] & ~4
	:: asleep[p] & 8 -> asleep[p] = asleep[p] & ~8
	:: asleep[p] == 0
	fi
}

inline sleep_for_driver(p)
{
#ifdef MUTANT_NO_FENCE_IN_SLEEP
	/* The kernel looks at the word before the count can be seen. */
	if
	:: atomic { word[p] == seen -> asleep[p] = asleep[p] | BIT(me) }
	:: word[p] != seen
	fi;
	waiters[p]++;
	!(asleep[p] & BIT(me));
#else
	waiters[p]++;
	futex_wait(p);
#endif
	waiters[p]--
}

inline run_grace_period()
{
	seq++;
	atomic { begun++; number = begun };
	atomic { ended = number; seq++ }
}

inline hand_on(p)
{
#ifdef MUTANT_NO_FENCE_IN_HAND_ON
	/* The looks at the counts come before the bumps. */
	some = waiters[p] != 0;
	other = waiters[1 - p] != 0;
	word[0]++;
	word[1]++;
#else
	word[0]++;
#ifndef MUTANT_ONE_WORD_BUMPED
	word[1]++;
#endif
	some = waiters[p] != 0;
#endif
	if
	:: some -> asleep[p] = 0
	:: else
	fi;
#ifndef MUTANT_NO_FENCE_IN_HAND_ON
	other = waiters[1 - p] != 0;
#endif
	if
#ifdef MUTANT_NO_HANDOFF
	:: true
#else
#ifdef MUTANT_HANDOFF_TO_SERVED
	:: other -> futex_wake_one(p)
#else
	:: other -> futex_wake_one(1 - p)
#endif
	:: else
#endif
	fi;
	some = false;
	other = false
}

proctype synchronizer(byte me)
{
	byte cookie, seen, calls = 0, number = 0, at_call;
	bool some = false, other = false;

	do
	:: calls == CALLS -> break
	:: calls < CALLS ->
		/* get_state: the call counts from here; its fence pairs with F1 */
		atomic { cookie = COOKIE(seq); at_call = begun };
		do
		::
#ifdef MUTANT_WORD_READ_LATE
			seen = 0;
#else
			seen = word[PARITY];
#endif
			if
			:: seq >= cookie -> break /* merged */
			:: seq < cookie
			fi;
			if
			:: atomic { !locked -> locked = true; seen = 0 };
#ifdef MUTANT_QUIET_WITHOUT_GP
				if
				:: seq >= cookie -> locked = false; break
				:: else
				fi;
#endif
				if
				:: seq < cookie -> run_grace_period()
				:: else
				fi;
#ifdef MUTANT_BUMP_BEFORE_UNLOCK
				hand_on(PARITY);
				locked = false;
#else
				locked = false;
				hand_on(PARITY);
#endif
				if
				:: seq >= cookie -> break
				:: else
				fi
			:: locked ->
#ifdef MUTANT_WORD_READ_LATE
				seen = word[PARITY];
#endif
				sleep_for_driver(PARITY);
				seen = 0
			fi
		od;
		assert(ended > at_call);
		atomic { seen = 0; number = 0; cookie = 0; at_call = 0; calls++ }
	od
}

init {
	atomic {
		byte t = 0;
		do
		:: t < THREADS -> run synchronizer(t); t++
		:: else -> break
		od
	}
}
