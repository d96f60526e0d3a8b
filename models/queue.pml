/* SPDX-License-Identifier: MIT */
/*
 * Callbacks: from the call, through a grace period, to barriers; no callback is left behind.
 *
 * Mirrors src/rcu/queue.h and queue_shard.c (SHARDS: S1, S2; ORDER: S4, O1; SLEEP: S3), queue_batch.c (take,
 * close, finish: B1), queue_worker.c (SLEEP: W1, W2) and queue_barrier.c (BARRIER: D1, D2).
 *
 * A producer has a shard and calls CALLS times: each call goes into its ring, or, as it likes (a
 * handler, no memory), on the stack of the queue. The worker sleeps, takes, waits for a grace period,
 * closes, runs, finishes. With -DBARRIERS, a thread runs that many barriers. A ring's tail may stay in
 * the producer's store buffer; where there is a process-wide fence (no -DFALLBACK) the call has no
 * fence, and the worker sleeps with a time-out some times before it issues one and sleeps
 * for good. A grace period is its beginning and its end.
 *
 * Claims (asserts): a callback runs after a grace period that began after its call; each runs
 * once, those of one producer in order; a barrier returns when all has run that was called before.
 * Liveness: everything runs (invalid end states).
 *
 * Bounds: -DPRODUCERS=n (up to 2), -DCALLS=n, -DBARRIERS=n.
 *
 * Mutants: S3_MISSING (FALLBACK) W1_MISSING (FALLBACK) W2_MISSING TAKE_JOINS_LATE COOKIE_KEPT (B1)
 * STACK_NOT_SHARED (ORDER) TAKE_RINGS_FIRST (ORDER) BARRIER_FORGETS_RUNNING NO_D1.
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
#define TOTAL (PRODUCERS * CALLS)

/* A callback is producer * CALLS + number; sets of them are bits. */
#define BIT(c) (1 << (c))
#define MINE(p) ((BIT(CALLS) - 1) << ((p) * CALLS))

byte ring[PRODUCERS];	 /* in the ring and its tail visible, not taken */
byte buffered[PRODUCERS]; /* put, the tail still in the store buffer */
byte stack;
byte open_ring, open_stack; /* callbacks of the open batch... */
byte run_ring, run_stack;   /* ...and of the closed one: the rings' run first */
byte opened, closed, finished, want;
byte cookie;		 /* the open batch's: grace periods that must have ended */
byte done_word, done_waiters;
bool barrier_asleep;
bool locked;
mtype = { awake, asleep };
mtype sleeping = awake;
bool worker_blocked;	 /* in the kernel */
byte begun, ended;	 /* grace periods */
byte ran;		 /* set of callbacks */
byte called;		 /* set, for barriers' claim */
byte called_at[TOTAL];	 /* grace periods begun at the call */

#define LOCK atomic { !locked -> locked = true }
#define UNLOCK locked = false

proctype store_buffers()
{
end_empty:
	do
	:: d_step { buffered[0] -> ring[0] = ring[0] | buffered[0]; buffered[0] = 0 }
#if PRODUCERS > 1
	:: d_step { buffered[1] -> ring[1] = ring[1] | buffered[1]; buffered[1] = 0 }
#endif
	od
}

inline wake_worker()
{
	if
	:: atomic { sleeping == asleep -> sleeping = awake; worker_blocked = false }
	:: sleeping == awake
	fi
}

proctype producer(byte me)
{
	byte n = 0, shared_until = 0, c = 0;
	bool in_ring = false;

	do
	:: n == CALLS -> break
	:: n < CALLS ->
		atomic { c = me * CALLS + n; called_at[c] = begun };
		/* closed is looked at before the ring is used (acquire): ORDER */
		in_ring = closed >= shared_until;
		if
		:: in_ring ->
			if
			:: atomic { ring[me] = ring[me] | BIT(c) | buffered[me]; buffered[me] = 0 } /* S1 */
			:: buffered[me] = buffered[me] | BIT(c)
			fi
		:: true -> /* no room, a handler, or told to */
			in_ring = false;
			/* S2: a read-modify-write with release: the tail is out before it */
			buffered[me] == 0;
			stack = stack | BIT(c);
			/* S4 */
#ifdef MUTANT_STACK_NOT_SHARED
			shared_until = 0
#else
			shared_until = closed + 2
#endif
		fi;
#ifdef FALLBACK
#ifndef MUTANT_S3_MISSING
		buffered[me] == 0; /* S3 */
#endif
#endif
		wake_worker();
		atomic { called = called | BIT(c); n++; in_ring = false; c = 0 }
	od
}

#if PRODUCERS > 1
#define RINGS (ring[0] | ring[1])
#define IN_BUFFERS (buffered[0] | buffered[1])
#else
#define RINGS ring[0]
#define IN_BUFFERS buffered[0]
#endif

inline take_rings()
{
	atomic { from_rings = from_rings | ring[0]; ring[0] = 0 };
#if PRODUCERS > 1
	atomic { from_rings = from_rings | ring[1]; ring[1] = 0 }
#endif
}

inline take_stack()
{
	atomic { from_stack = from_stack | stack; stack = 0 }
}

/* Under the lock. looked: false if the open batch could not be joined. */
inline take()
{
#ifdef MUTANT_TAKE_JOINS_LATE
	looked = true;
#else
	looked = opened == closed || begun + 1 == cookie;
#endif
	if
	:: looked ->
		/* O1 */
#ifdef MUTANT_TAKE_RINGS_FIRST
		take_rings();
		take_stack();
#else
		take_stack();
		take_rings();
#endif
		if
		:: from_rings || from_stack -> atomic {
				open_ring = open_ring | from_rings;
				open_stack = open_stack | from_stack;
#ifdef MUTANT_TAKE_JOINS_LATE
				cookie = (opened == closed -> begun + 1 : cookie);
#else
				cookie = begun + 1; /* B1 */
#endif
				opened = (opened == closed -> opened + 1 : opened);
				from_rings = 0;
				from_stack = 0
			}
		:: else
		fi
	:: !looked
	fi
}

/* Within a batch: the rings, then the stack, each oldest first. */
#define LOWER_OF_SAME(c) (MINE((c) / CALLS) & (BIT(c) - 1))
#define RUNS_NOW(c) (((run_ring & BIT(c)) && !(run_ring & LOWER_OF_SAME(c))) || \
		     (!run_ring && (run_stack & BIT(c)) && !(run_stack & LOWER_OF_SAME(c))))

inline run_callback(c)
{
	d_step {
		assert(ended > called_at[c]);		       /* a whole grace period */
		assert(!(ran & BIT(c)));		       /* once */
		assert((ran & LOWER_OF_SAME(c)) == LOWER_OF_SAME(c)); /* in order */
		ran = ran | BIT(c);
		run_ring = run_ring & ~BIT(c);
		run_stack = run_stack & ~BIT(c)
	}
}

#define HAS_CALLBACKS (opened != finished || stack || RINGS)

inline all_tails_visible()
{
	buffered[0] == 0;
#if PRODUCERS > 1
	buffered[1] == 0
#endif
}

inline look_for_work()
{
	LOCK;
	idle = !(HAS_CALLBACKS || finished < want);
	UNLOCK
}

proctype worker()
{
	byte from_rings = 0, from_stack = 0, looks = 0, number = 0;
	bool looked = false, idle = false;

	do
	::
		/* sleep_until_work() */
		do
		::
#ifdef MUTANT_W1_MISSING
			look_for_work();
			sleeping = asleep;
#else
			sleeping = asleep;
#if !defined(FALLBACK) && !defined(MUTANT_W2_MISSING)
			if
			:: looks > 0 -> all_tails_visible() /* W2 */
			:: else
			fi;
#endif
			look_for_work(); /* W1 */
#endif
			if
			:: !idle -> sleeping = awake; break
			:: idle -> idle = false
			fi;
			/* futex_wait(&sleeping, asleep): with a time-out at first, if not FALLBACK */
			if
			:: atomic { sleeping == asleep -> worker_blocked = true };
end_idle:
				if
				:: !worker_blocked
#ifndef FALLBACK
				:: looks == 0 -> worker_blocked = false; looks = 1
#endif
				fi
			:: sleeping != asleep
			fi
		od;
		looks = 0;
		/* next_batch() */
		LOCK;
		take();
		if
		:: opened != closed ->
			do
			:: ended < cookie -> /* a take may have joined, and set it anew */
				number = cookie;
				UNLOCK;
				if
				:: ended < number -> begun++; ended = begun
				:: else
				fi;
				LOCK
#ifdef MUTANT_COOKIE_KEPT
				; break
#endif
			:: ended >= cookie -> break
			od;
			number = 0;
			atomic {
				run_ring = open_ring;
				run_stack = open_stack;
				open_ring = 0;
				open_stack = 0;
				closed = opened
			};
			take();
			UNLOCK;
			do
			:: RUNS_NOW(0) -> run_callback(0)
#if TOTAL > 1
			:: RUNS_NOW(1) -> run_callback(1)
#endif
#if TOTAL > 2
			:: RUNS_NOW(2) -> run_callback(2)
#endif
#if TOTAL > 3
			:: RUNS_NOW(3) -> run_callback(3)
#endif
			:: run_ring == 0 && run_stack == 0 -> break
			od;
			LOCK;
			finished = closed;
			UNLOCK;
			done_word++;
			/* D2 */
			if
			:: done_waiters -> barrier_asleep = false
			:: else
			fi
		:: else -> UNLOCK
		fi
	od
}

#if BARRIERS > 0
proctype barrier()
{
	byte from_rings = 0, from_stack = 0, n = 0, before = 0, number = 0, seen = 0;
	bool looked = false;

	do
	:: n == BARRIERS -> break
	:: n < BARRIERS ->
		before = called & ~IN_BUFFERS; /* who knows of a call sees its tail */
		LOCK;
		take();
		if
		:: looked || !(stack || RINGS) ->
#ifdef MUTANT_BARRIER_FORGETS_RUNNING
			number = (opened != closed -> opened : finished)
#else
			number = opened
#endif
		:: else -> number = opened + 1
		fi;
		want = (number > want -> number : want);
		UNLOCK;
		if
		:: finished < number -> wake_worker()
		:: else
		fi;
		do
		::
			seen = done_word;
			if
			:: finished >= number -> break
			:: else
			fi;
#ifdef MUTANT_NO_D1
			/* The kernel looks at the word before the count can be seen. */
			if
			:: atomic { done_word == seen -> barrier_asleep = true }
			:: done_word != seen
			fi;
			done_waiters++;
			!barrier_asleep;
			done_waiters--
#else
			done_waiters++;
			if
			:: atomic { done_word == seen -> barrier_asleep = true }; !barrier_asleep
			:: done_word != seen
			fi;
			done_waiters--
#endif
		od;
		assert((ran & before) == before);
		atomic { n++; before = 0; number = 0; seen = 0; looked = false }
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
		run worker()
	};
	ran == BIT(TOTAL) - 1
}
