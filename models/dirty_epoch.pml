/* SPDX-License-Identifier: MIT */
/*
 * Dirty memory: one live bitmap, several consumers and their epochs.
 *
 * Mirrors src/bitmap/epoch.c (L3: begin, commit, abort, add, delete) and the fan-out and the fence of
 * src/bitmap/harvest.c (H2, H3). The levels of the bitmap are dirty_mark.pml's business: here
 * the live bitmap is one word. A marker's store to its page may stay in its store buffer until its OR
 * or a process-wide fence.
 *
 * Consumers A and B each have an epoch at any moment, which they commit or abort, and a last one
 * when the markers have returned. With -DADD, C is added at any moment, makes its first full
 * copy, then waits and has a last epoch. With -DDELETE, B goes, and its sets are freed. With -DKEEP, A
 * sets its first epoch aside (gr_dirty_epoch_keep()) and has another one; both are read and end, by
 * commit or abort, in either order. With -DDEFER, A leaves pages of its first epoch to the next
 * (gr_dirty_epoch_defer()), reads the others, and has another epoch before the last.
 *
 * Claim: at the end each consumer's copy holds every store; nobody touches freed sets (asserts).
 *
 * Bounds: two markers, on pages -DP0=bit and -DP1=bit.
 *
 * Mutants: NO_FENCE FENCE_AFTER_UNLOCK (H2) NO_FAN_OUT FAN_OUT_LATE (H3) NO_LOCK ABORT_DROPS
 * ABORT_OVERWRITES (L3) KEPT_ABORT_DROPS KEPT_ABORT_OVERWRITES KEPT_ABORT_UNLOCKED KEPT_COMMIT_CLEANS (KEEP)
 * DEFER_NO_FENCE DEFER_DROPS DEFER_FORGETS DEFER_UNLOCKED (DEFER) ADD_NO_FENCE ADD_DROPS (ADD) DELETE_UNLOCKED (DELETE).
 */
#ifndef P0
#define P0 1
#endif
#ifndef P1
#define P1 1
#endif

#define BIT(n) (1 << (n))
#define EVERYBODY 3 /* markers */

byte live;	   /* set of pages */
byte in_buffer;	   /* set of markers whose store is not visible yet */
byte stored;	   /* set of markers whose store is visible */
byte returned;	   /* set of markers */
bool locked;
byte pend[3], set[3], copy[3]; /* copy: whose stores the consumer has */
byte listed, freed;	       /* sets of consumers */

#define PAGE(m) (m == 0 -> P0 : P1)
#define PAGES_TO_STORES(pages) (((pages) & P0 -> 1 : 0) | ((pages) & P1 -> 2 : 0))

#ifdef MUTANT_NO_LOCK
#define LOCK skip
#define UNLOCK skip
#else
#define LOCK atomic { !locked -> locked = true }
#define UNLOCK locked = false
#endif

proctype marker(byte me)
{
	if
	:: stored = stored | BIT(me)
	:: in_buffer = in_buffer | BIT(me)
	fi;
	if
	:: live & PAGE(me)
	:: !(live & PAGE(me)) ->
		atomic { !(in_buffer & BIT(me)) -> live = live | PAGE(me) }
	fi;
	!(in_buffer & BIT(me));
	returned = returned | BIT(me)
}

proctype store_buffers()
{
end_empty:
	do
	:: d_step { in_buffer & 1 -> in_buffer = in_buffer & ~1; stored = stored | 1 }
	:: d_step { in_buffer & 2 -> in_buffer = in_buffer & ~2; stored = stored | 2 }
	od
}

#define HEAVY_FENCE !(in_buffer & 1); !(in_buffer & 2)

inline fan_out(to)
{
	i = 0;
	do
	:: i < 3 ->
		if
		:: i != to && (listed & BIT(i)) ->
#ifdef DELETE
			assert(!(freed & BIT(i)));
#endif
			pend[i] = pend[i] | taken
		:: else
		fi;
		i++
	:: i == 3 -> i = 0; break
	od
}

inline harvest(to, drop, fence)
{
	atomic { taken = live; live = 0 };
#if !defined(MUTANT_NO_FAN_OUT) && !defined(MUTANT_FAN_OUT_LATE)
	if
	:: drop
	:: !drop -> fan_out(to)
	fi;
#endif
#if !defined(MUTANT_NO_FENCE) && !defined(MUTANT_FENCE_AFTER_UNLOCK)
	if
	:: fence && taken -> HEAVY_FENCE
	:: else
	fi;
#endif
}

inline epoch_begin()
{
	LOCK;
	set[me] = pend[me];
	pend[me] = 0;
	harvest(me, false, true);
	set[me] = set[me] | taken;
	UNLOCK;
#ifdef MUTANT_FAN_OUT_LATE
	LOCK;
	fan_out(me);
	UNLOCK;
#endif
#ifdef MUTANT_FENCE_AFTER_UNLOCK
	if
	:: taken -> HEAVY_FENCE
	:: else
	fi;
#endif
	taken = 0
}

inline read_pages()
{
	got = stored & PAGES_TO_STORES(set[me])
}

inline epoch_abort()
{
#ifndef MUTANT_ABORT_DROPS
	LOCK;
#ifdef MUTANT_ABORT_OVERWRITES
	pend[me] = set[me];
#else
	pend[me] = pend[me] | set[me];
#endif
	UNLOCK;
#endif
	atomic { set[me] = 0; got = 0 }
}

inline epoch_commit()
{
	atomic { copy[me] = copy[me] | got; set[me] = 0; got = 0 }
}

inline last_epoch()
{
	returned == EVERYBODY;
	epoch_begin();
	read_pages();
	epoch_commit();
	assert(copy[me] == EVERYBODY)
}

proctype consumer(byte me)
{
	byte taken = 0, got = 0, i = 0;

	epoch_begin();
	read_pages();
	if
	:: epoch_commit()
	:: epoch_abort()
	fi;
	last_epoch()
}

inline end_open()
{
	read_pages();
	if
	:: epoch_commit()
	:: epoch_abort()
	fi
}

#ifdef DEFER
proctype deferrer(byte me)
{
	byte taken = 0, got = 0, i = 0;
#ifdef MUTANT_DEFER_UNLOCKED
	byte was = 0;
#endif

	epoch_begin();
	LOCK;
#ifdef MUTANT_DEFER_DROPS
	harvest(3, true, true);
#else
#ifdef MUTANT_DEFER_NO_FENCE
	harvest(3, false, false);
#else
	harvest(3, false, true);
#endif
#endif
	taken = 0;
	set[me] = set[me] & ~pend[me];
#ifdef MUTANT_DEFER_FORGETS
	pend[me] = 0;
#endif
	UNLOCK;
#ifdef MUTANT_DEFER_UNLOCKED
	/* As if what waits were sorted by its owner alone. */
	was = pend[me];
	pend[me] = was;
	was = 0;
#endif
	end_open();
	epoch_begin();
	end_open();
	last_epoch()
}
#endif

#ifdef KEEP
inline end_kept()
{
	got = stored & PAGES_TO_STORES(kept);
	if
	:: atomic { copy[me] = copy[me] | got; got = 0 };
#ifdef MUTANT_KEPT_COMMIT_CLEANS
		/* As if a page that is safe had not been written since. */
		LOCK;
		pend[me] = pend[me] & ~kept;
		UNLOCK;
#endif
	:: got = 0;
#ifdef MUTANT_KEPT_ABORT_DROPS
		skip
#else
#ifdef MUTANT_KEPT_ABORT_UNLOCKED
		was = pend[me];
		pend[me] = was | kept;
		was = 0
#else
		LOCK;
#ifdef MUTANT_KEPT_ABORT_OVERWRITES
		pend[me] = kept;
#else
		pend[me] = pend[me] | kept;
#endif
		UNLOCK
#endif
#endif
	fi;
	kept = 0
}

proctype keeper(byte me)
{
	byte taken = 0, got = 0, i = 0, kept = 0;
#ifdef MUTANT_KEPT_ABORT_UNLOCKED
	byte was = 0;
#endif

	epoch_begin();
	LOCK;
	atomic { kept = set[me]; set[me] = 0 };
	UNLOCK;
	epoch_begin();
	if
	:: end_kept(); end_open()
	:: end_open(); end_kept()
	fi;
	last_epoch()
}
#endif

#ifdef ADD
proctype newcomer(byte me)
{
	byte taken = 0, got = 0, i = 0;

	LOCK;
#ifdef MUTANT_ADD_DROPS
	harvest(3, true, true);
#else
#ifdef MUTANT_ADD_NO_FENCE
	harvest(3, false, false);
#else
	harvest(3, false, true);
#endif
#endif
	taken = 0;
	listed = listed | BIT(me);
	UNLOCK;
	copy[me] = stored; /* the first, full copy */
	last_epoch()
}
#endif

#ifdef DELETE
proctype leaver(byte me)
{
	byte taken = 0, got = 0, i = 0;

	epoch_begin();
#ifdef MUTANT_DELETE_UNLOCKED
	listed = listed & ~BIT(me);
#else
	LOCK;
	listed = listed & ~BIT(me);
	UNLOCK;
#endif
	freed = freed | BIT(me)
}
#endif

init {
	atomic {
		listed = 1;
		run store_buffers();
		run marker(0);
		run marker(1);
#ifdef KEEP
		run keeper(0);
#else
#ifdef DEFER
		run deferrer(0);
#else
		run consumer(0);
#endif
#endif
#ifdef ADD
		run newcomer(2)
#else
		listed = 3;
#ifdef DELETE
		run leaver(1)
#else
		run consumer(1)
#endif
#endif
	}
}
