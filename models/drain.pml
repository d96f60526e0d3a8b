/* SPDX-License-Identifier: MIT */
/*
 * Draining with the caller's lock held: everything runs, each callback once, and nobody waits for
 * whom it keeps waiting.
 *
 * Mirrors gr_rcu_drain(), drain_until(), needs_only_lock() and wait_or_run() of src/rcu/queue_barrier.c,
 * gr_rcu_queue_run_unlocked(), run_locked() and run_slices() of queue_run.c, gr_rcu_queue_finish() and
 * announce() of queue_batch.c. How a worker sleeps and how a take joins a batch is queue.pml's business.
 *
 * Each drainer takes the caller's lock (big), queues one callback or two, of the class that needs the lock (LOCKED) or
 * of the one that does not (FREE: it takes the lock itself), and drains. A reader takes the lock
 * inside a section, and grace periods wait for it. With -DNO_WORKER there is no thread: drainers run batches
 * themselves, one at a time.
 *
 * Claims (asserts): callbacks of a drainer have run on return; each runs once and after a grace period; LOCKED ones
 * run under the lock, one at a time. Liveness: every drain returns (invalid end states, and with
 * a counter of fruitless rounds where nobody sleeps).
 *
 * Bounds: -DDRAINERS=n (1 or 2), -DNO_WORKER.
 *
 * Mutants: KEEPS_LOCK NO_D1 SEEN_LATE NOT_ANNOUNCED LEAVES_BATCH (NO_WORKER).
 */
#ifndef DRAINERS
#define DRAINERS 1
#endif
#define CALLBACKS (2 * DRAINERS)
#define BIT(c) (1 << (c))

byte untaken, locked_class; /* sets: queued; those that need the lock */
byte open, running;
byte opened, closed, finished, unlocked_done;
byte begun, ended, cookie;
byte ran, called_at[CALLBACKS];
bool lock;		 /* the queue's */
bool big, runner;
bool in_section;
bool runs_locked;	 /* somebody runs one of those */
byte done_word, done_waiters, asleep;

#define LOCK atomic { !lock -> lock = true }
#define UNLOCK lock = false
#define BIG_LOCK atomic { !big -> big = true }
#define BIG_UNLOCK big = false

proctype reader()
{
	in_section = true;
	BIG_LOCK;
	BIG_UNLOCK;
	in_section = false
}

inline grace_period(until)
{
	do
	:: atomic { ended < until -> begun = ended + 1 }; !in_section; ended = begun
	:: ended >= until -> break
	od
}

inline announce()
{
#ifdef MUTANT_NOT_ANNOUNCED
	skip
#else
	done_word++;
	if
	:: done_waiters -> asleep = 0 /* D2 */
	:: else
	fi
#endif
}

inline finish(batch)
{
	LOCK;
	if
	:: closed == batch && finished != batch -> finished = batch; UNLOCK; announce()
	:: else -> UNLOCK
	fi
}

inline run_callback(c)
{
	d_step {
		assert(!(ran & BIT(c)));
		assert(ended > called_at[c]);
		ran = ran | BIT(c);
		running = running & ~BIT(c)
	}
}

/* The next that is left of a set. */
inline next_of(set)
{
	d_step {
		n = 0;
		do
		:: !((set) & BIT(n)) -> n++
		:: else -> break
		od
	}
}

/* drains: nobody looks at the lock afterwards. */
inline run_unlocked(drains)
{
	if
	:: unlocked_done != closed ->
		has_locked = (running & locked_class) != 0;
		do
		:: running & ~locked_class ->
			next_of(running & ~locked_class);
			BIG_LOCK; /* such a callback may take it */
			BIG_UNLOCK;
			run_callback(n)
		:: else -> break
		od;
		if
		:: has_locked -> unlocked_done = closed; announce()
#ifdef MUTANT_LEAVES_BATCH
		:: !has_locked && drains
		:: !has_locked && !drains -> finish(closed)
#else
		:: !has_locked -> finish(closed)
#endif
		fi
	:: else
	fi
}

/* With the lock held. */
inline run_locked()
{
	do
	:: running & locked_class ->
		next_of(running & locked_class);
		atomic { assert(!runs_locked); runs_locked = true };
		run_callback(n);
		runs_locked = false
	:: else -> break
	od
}

inline next_batch()
{
	LOCK;
	if
	:: closed == finished && opened == closed && untaken ->
		atomic { open = untaken; untaken = 0; opened++; cookie = begun + 1 }
	:: else
	fi;
	if
	:: closed == finished && opened != closed ->
		UNLOCK;
		grace_period(cookie);
		LOCK;
		atomic { running = open; open = 0; closed = opened }
	:: else
	fi;
	UNLOCK
}

proctype worker()
{
	byte n = 0, batch = 0;
	bool has_locked = false;

end_idle:
	do
	:: untaken || opened != finished ->
		next_batch();
		batch = closed;
		run_unlocked(false);
		/* run_slices() */
		do
		:: finished == batch -> break
		:: finished != batch ->
			BIG_LOCK;
			if
			:: finished != batch ->
				if
				:: running & locked_class ->
					next_of(running & locked_class);
					atomic { assert(!runs_locked); runs_locked = true };
					run_callback(n);
					runs_locked = false
				:: else -> finish(batch)
				fi
			:: else
			fi;
			BIG_UNLOCK
		od
	od
}

inline sleep_until_done()
{
#ifdef MUTANT_NO_D1
	/* The kernel looks at the word before the count can be seen. */
	if
	:: atomic { done_word == seen -> asleep = asleep | BIT(me) }
	:: done_word != seen
	fi;
	done_waiters++;
	!(asleep & BIT(me));
#else
	done_waiters++;
	if
	:: atomic { done_word == seen -> asleep = asleep | BIT(me) }; !(asleep & BIT(me))
	:: done_word != seen
	fi;
#endif
	done_waiters--
}

proctype drainer(byte me)
{
	byte n = 0, seen = 0, number = 0, rounds = 0, mine = 0;
	bool has_locked = false;

	BIG_LOCK;
	atomic {
		mine = BIT(2 * me);
		if
		:: mine = mine | BIT(2 * me + 1)
		:: true
		fi;
		if
		:: locked_class = locked_class | mine
		:: locked_class = locked_class | BIT(2 * me)
		:: true
		fi;
		called_at[2 * me] = begun;
		called_at[2 * me + 1] = begun;
		untaken = untaken | mine
	};
	/* want_batch() */
	LOCK;
	if
	:: opened == closed && untaken ->
		atomic { open = untaken; untaken = 0; opened++; cookie = begun + 1 }
	:: opened != closed && cookie == begun + 1 -> /* joins */
		atomic { open = open | untaken; untaken = 0 }
	:: else
	fi;
	number = (untaken -> opened + 1 : opened);
	UNLOCK;
	do
	::
#ifdef MUTANT_SEEN_LATE
		if :: finished >= number -> break :: else fi;
		seen = done_word;
#else
		seen = done_word;
		if :: finished >= number -> break :: else fi;
#endif
		if
		:: closed == unlocked_done && finished < closed ->
			run_locked();
			finish(closed)
		:: else ->
#ifndef MUTANT_KEEPS_LOCK
			BIG_UNLOCK;
#endif
#ifdef NO_WORKER
			if
			:: atomic { !runner -> runner = true };
				next_batch();
				if
				:: closed != finished -> run_unlocked(true)
				:: else
				fi;
				runner = false;
				rounds++;
				assert(rounds < 8) /* without end */
			:: runner ->
				/* with a time-out */
				done_word != seen || !runner
			fi;
#else
			sleep_until_done();
#endif
#ifndef MUTANT_KEEPS_LOCK
			BIG_LOCK
#endif
		fi
	od;
	assert((ran & mine) == mine);
	BIG_UNLOCK
}

init {
	atomic {
		run reader();
		run drainer(0);
#if DRAINERS > 1
		run drainer(1);
#endif
#ifndef NO_WORKER
		run worker()
#endif
	}
}
