/* SPDX-License-Identifier: MIT */
/*
 * fork() among callbacks: the door, and what the child finds on its queue.
 *
 * Mirrors FORK of src/rcu/queue.h: decide() and run_slice() of queue_run.c, gr_rcu_queues_before_fork(),
 * note_what_is_queued() and mend_shard() of queue_fork.c, put() and push_over() of queue_shard.c.
 *
 * A runner runs CALLBACKS callbacks in slices of the caller's lock. A producer puts three more into its
 * ring or, without memory, on the stack `over`. Meanwhile a thread forks FORKS times: it closes the
 * door, fences, waits for who decides, notes what is queued; then another fork handler takes the caller's lock (-DHANDLER); then pages are
 * copied one after the other, in any order: what the runner has begun (next) is in one, the callbacks' objects in others.
 * Stores to `deciding` and to the door may stay in store buffers; the fork's fence is process-wide, or, with
 * -DFALLBACK, both sides have a full one (F1, F2).
 *
 * Claims (asserts): no callback that the child would run (again) had begun when its object was
 * copied; what is over in the child follows its tail at once. Liveness: everybody ends; nobody waits
 * for a lock of whoever waits at the door (invalid end states).
 *
 * Mutants: NO_DOOR DECIDES_LATE (F2) NO_F1 NO_F2 (FALLBACK) NOBODY_WAITS_FOR_WHO_DECIDES NOTES_LATE
 * WAITS_WITH_LOCK (HANDLER; F3) TAIL_FIRST DOOR_STAYS_CLOSED.
 */
#ifndef CALLBACKS
#define CALLBACKS 2
#endif
#ifndef FORKS
#define FORKS 2
#endif
#define BIT(c) (1 << (c))

bool door, door_buffered;    /* the second: closed, still in the store buffer */
bool deciding, set_buffered; /* the second: set, still in the store buffer */
bool big;		     /* the caller's lock */
byte next;		     /* callbacks below have begun, as the queue says */
byte touched;		     /* set: callbacks whose objects have been changed */

byte tail, over_at;
bool over;

/* What the child has. */
byte child_next, child_touched;
byte fork_tail;
bool fork_over;

inline set_deciding()
{
	if
	:: deciding = true
	:: set_buffered = true
	fi
}

inline clear_deciding()
{
	atomic { !set_buffered; deciding = false } /* stores of one thread are seen in order */
}

proctype store_buffers()
{
end_empty:
	do
	:: d_step { set_buffered -> set_buffered = false; deciding = true }
	:: d_step { door_buffered -> door_buffered = false; door = true }
	od
}

proctype runner()
{
	bool open = false;

	do
	:: next == CALLBACKS -> break
	:: next < CALLBACKS ->
		atomic { !big -> big = true };
		/* a slice */
		do
		:: next == CALLBACKS -> break
		:: next < CALLBACKS ->
#ifdef MUTANT_DECIDES_LATE
			open = !door;
			set_deciding();
#else
			set_deciding();
#if defined(FALLBACK) && !defined(MUTANT_NO_F2)
			!set_buffered; /* F2 */
#endif
#ifdef MUTANT_NO_DOOR
			open = true;
#else
			open = !door;
#endif
#endif
			if
			:: open ->
#ifdef MUTANT_NOTES_LATE
				clear_deciding();
				touched = touched | BIT(next);
				next++
#else
				next++;
				clear_deciding();
				touched = touched | BIT(next - 1) /* runs */
#endif
			:: !open ->
				clear_deciding();
#ifdef MUTANT_WAITS_WITH_LOCK
				!door
#else
				break /* F3 */
#endif
			fi
		:: next < CALLBACKS -> break /* the slice is over */
		od;
		atomic { big = false; open = false };
		!door
	od
}

/* One entry in the ring, as a rule; no memory: what follows is over. Three calls. */
proctype producer()
{
	byte n = 0;

	do
	:: n == 3 -> break
	:: n < 3 ->
		if
		:: !over -> tail++ /* S1 */
		:: atomic { !over -> over_at = tail }; over = true /* S2 */
		:: over /* one more of them */
		fi;
		n++
	od
}

proctype forker()
{
	byte n = 0, copied = 0;

	do
	:: n == FORKS -> break
	:: n < FORKS ->
		if
		:: door = true
		:: door_buffered = true
		fi;
#ifdef FALLBACK
#ifndef MUTANT_NO_F1
		!door_buffered; /* F1 */
#endif
#else
#ifndef MUTANT_NO_F1
		!door_buffered && !set_buffered; /* F1, process-wide */
#endif
#endif
#ifndef MUTANT_NOBODY_WAITS_FOR_WHO_DECIDES
		!deciding;
#endif
#ifdef MUTANT_TAIL_FIRST
		fork_tail = tail;
		fork_over = over;
#else
		fork_over = over;
		fork_tail = tail;
#endif
#ifdef HANDLER
		atomic { !big -> big = true };
#endif
		/* fork(): page after page */
		do
		:: !(copied & 1) -> atomic { child_next = next; copied = copied | 1 }
		:: !(copied & 2) -> atomic { child_touched = touched; copied = copied | 2 }
		:: copied == 3 -> break
		od;
		atomic {
			assert((child_touched >> child_next) == 0);
			assert(!fork_over || over_at == fork_tail);
			copied = 0;
			child_next = 0;
			child_touched = 0;
			fork_over = false;
			fork_tail = 0
		};
#ifdef HANDLER
		big = false;
#endif
#ifndef MUTANT_DOOR_STAYS_CLOSED
		atomic { !door_buffered; door = false };
#endif
		n++
	od
}

init {
	atomic {
		run store_buffers();
		run runner();
		run producer();
		run forker()
	}
}
