/* SPDX-License-Identifier: MIT */
/*
 * A queue without a thread: its owner sleeps on the fd and polls; no callback is left behind.
 *
 * Mirrors gr_rcu_queue_poll(), advance(), fall_asleep(), ask_for_grace_period() and
 * tell_grace_period() of src/rcu/queue_poll.c, gr_rcu_queue_wake() of queue_worker.c for such a
 * queue, the end of call() in queue_shard.c (S3, full), and what a barrier does where there is no worker:
 * want_batch() and wait_or_run() of queue_barrier.c. How callbacks get from rings and stacks
 * into a batch is queue.pml's business: here a producer makes them visible, perhaps late (a store buffer).
 *
 * The teller is a callback of the default queue: it runs when a grace period is over that began after
 * it was queued. A poll may stop at its budget after any callback. The owner may poll out of turn
 * (-DOUT_OF_TURN=n). With -DBARRIERS, another thread runs the callbacks in the owner's place.
 *
 * Claims (asserts): a callback runs after a grace period that began after its call, and once; the
 * barrier returns when all has run that was called before. Liveness: everything runs, though
 * the owner polls only when the fd is readable (invalid end states).
 *
 * Bounds: -DPRODUCERS=n (up to 2), -DCALLS=n each, -DBARRIERS=n, -DOUT_OF_TURN=n.
 *
 * Mutants: S3_LIGHT LOOKS_FIRST (W1) TELLER_RINGS_FIRST BUDGET_IS_SILENT
 * ASKS_ONCE UNTAKEN_UNSEEN JOINS_LATE.
 */
#ifndef PRODUCERS
#define PRODUCERS 1
#endif
#ifndef CALLS
#define CALLS 2
#endif
#ifndef BARRIERS
#define BARRIERS 0
#endif
#ifndef OUT_OF_TURN
#define OUT_OF_TURN 1
#endif
#define TOTAL (PRODUCERS * CALLS)
#define BIT(c) (1 << (c))
#define EVERY (BIT(TOTAL) - 1)

byte untaken, buffered[PRODUCERS];
byte open, running;	    /* callbacks of the open and of the closed batch */
byte opened, closed, finished;
byte cookie;		    /* the open batch's: grace periods that must have ended */
byte begun, ended;
bool locked, runner, asleep = true, fd, gp_asked;
bool teller_queued;
byte teller_cookie;
byte ran, called, called_at[TOTAL];

#define LOCK atomic { !locked -> locked = true }
#define UNLOCK locked = false

inline wake()
{
	if
	:: atomic { asleep -> asleep = false }; fd = true
	:: !asleep
	fi
}

proctype store_buffers()
{
end_empty:
	do
	:: d_step { buffered[0] -> untaken = untaken | buffered[0]; buffered[0] = 0 }
#if PRODUCERS > 1
	:: d_step { buffered[1] -> untaken = untaken | buffered[1]; buffered[1] = 0 }
#endif
	od
}

proctype producer(byte me)
{
	byte n = 0;

	do
	:: n == CALLS -> break
	:: n < CALLS ->
		atomic {
			called_at[me * CALLS + n] = begun;
			if
			:: buffered[me] == 0 -> untaken = untaken | BIT(me * CALLS + n)
			:: buffered[me] = buffered[me] | BIT(me * CALLS + n)
			fi
		};
#ifndef MUTANT_S3_LIGHT
		buffered[me] == 0; /* S3 */
#endif
		wake();
		atomic { called = called | (buffered[me] == 0 -> BIT(me * CALLS + n) : 0); n++ }
	od
}

inline grace_period(until)
{
	do
	:: atomic { ended < until -> begun = ended + 1 }; ended = begun
	:: ended >= until -> break
	od
}

/* Under the lock. */
inline take()
{
	if
#ifdef MUTANT_JOINS_LATE
	:: true ->
#else
	:: opened == closed || begun + 1 == cookie ->
#endif
		atomic {
			if
			:: untaken ->
				open = open | untaken;
				untaken = 0;
#ifdef MUTANT_JOINS_LATE
				cookie = (opened == closed -> begun + 1 : cookie);
#else
				cookie = begun + 1; /* B1 */
#endif
				opened = (opened == closed -> opened + 1 : opened)
			:: else
			fi
		}
	:: else
	fi
}

inline close()
{
	atomic { running = open; open = 0; closed = opened }
}

inline run_callback(c)
{
	d_step {
		running & BIT(c);
		assert(ended > called_at[c]);
		assert(!(ran & BIT(c)));
		ran = ran | BIT(c);
		running = running & ~BIT(c)
	}
}

/* Sets enough if it stops with something left. */
inline run_batch()
{
	do
	:: run_callback(0)
	:: run_callback(1)
#if TOTAL > 2
	:: run_callback(2)
#endif
#if TOTAL > 3
	:: run_callback(3)
#endif
	:: running == 0 -> LOCK; finished = closed; UNLOCK; break
	:: running && budget -> budget--; enough = true; break
	od
}

inline ask_for_grace_period()
{
	if
	:: atomic { !gp_asked -> gp_asked = true }; atomic { teller_cookie = begun + 1; teller_queued = true }
	:: gp_asked
	fi
}

inline fall_asleep()
{
#ifdef MUTANT_LOOKS_FIRST
	LOCK; is_open = opened != closed; is_untaken = untaken != 0; UNLOCK;
	asleep = true;
#else
	asleep = true; /* W1 after it */
	LOCK; is_open = opened != closed; is_untaken = untaken != 0; UNLOCK;
#endif
	if
	:: is_open -> ask_for_grace_period()
#ifndef MUTANT_UNTAKEN_UNSEEN
	:: !is_open && is_untaken -> wake()
#endif
	:: else
	fi;
	atomic { is_open = false; is_untaken = false }
}

inline poll()
{
	if
	:: atomic { !runner -> runner = true };
		fd = false;
		asleep = false;
		enough = false;
		do
		:: LOCK;
			if
			:: closed == finished && opened != closed && ended >= cookie -> close()
			:: else
			fi;
			take();
			any = closed != finished;
			UNLOCK;
			if
			:: any -> run_batch(); if :: enough -> break :: else fi
			:: !any -> break
			fi
		od;
		if
#ifdef MUTANT_BUDGET_IS_SILENT
		:: enough
#else
		:: enough -> fd = true
#endif
		:: !enough -> fall_asleep()
		fi;
		atomic { enough = false; any = false };
		runner = false
	:: runner /* a barrier is: it leaves the fd as it is */
	fi
}

#define RUNNER_LOCALS bool enough = false, any = false, is_open = false, is_untaken = false; byte budget = 0

proctype owner()
{
	RUNNER_LOCALS;
	byte out_of_turn = OUT_OF_TURN;

	budget = 1;
end_idle:
	do
	:: fd -> poll()
	:: out_of_turn -> out_of_turn--; poll()
	od
}

proctype teller()
{
	byte until;

end_idle:
	do
	:: teller_queued ->
		atomic { teller_queued = false; until = teller_cookie };
		grace_period(until);
#ifdef MUTANT_TELLER_RINGS_FIRST
		fd = true;
		gp_asked = false
#else
#ifndef MUTANT_ASKS_ONCE
		gp_asked = false;
#endif
		fd = true
#endif
	od
}

#if BARRIERS > 0
proctype barrier()
{
	RUNNER_LOCALS;
	byte n = 0, before = 0, number = 0, until = 0;

	do
	:: n == BARRIERS -> break
	:: n < BARRIERS ->
		before = called;
		LOCK;
		take();
		number = (untaken -> opened + 1 : opened);
		UNLOCK;
		if :: finished < number -> wake() :: else fi;
		do
		:: finished >= number -> break
		:: atomic { finished < number && !runner -> runner = true };
			/* gr_rcu_queue_next_batch() */
			LOCK;
			if
			:: closed == finished ->
				take();
				do
				:: opened == closed || ended >= cookie -> break
				:: opened != closed && ended < cookie ->
					until = cookie;
					UNLOCK;
					grace_period(until);
					LOCK
				od;
				if
				:: opened != closed -> close(); take()
				:: else
				fi
			:: else
			fi;
			any = closed != finished;
			UNLOCK;
			if
			:: any -> run_batch()
			:: else
			fi;
			atomic { any = false; until = 0 };
			runner = false
		od;
		assert((ran & before) == before);
		atomic { n++; before = 0; number = 0 }
	od
}
#endif

init {
	atomic {
		run store_buffers();
		run producer(0);
#if PRODUCERS > 1
		run producer(1);
#endif
#if BARRIERS > 0
		run barrier();
#endif
		run owner();
		run teller()
	};
	ran == EVERY
}
