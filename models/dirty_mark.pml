/* SPDX-License-Identifier: MIT */
/*
 * Dirty memory: marks against harvests, on one chunk of two leaf words, a sum and a top.
 *
 * Mirrors src/bitmap/mark.c (I1 to I3, L1, L2: light_fence(), mark_leaf(), mark_sums()) and
 * src/bitmap/harvest.c (H1, H2: take_top(), take_all(), take_line(), heavy_fence_locked()).
 *
 * Each marker stores to its page, then marks it. Markers are out-of-order machines as in
 * reader.inc: the store to the page may be performed after the loads that follow it, until an
 * OR (release) or a process-wide fence. The harvester harvests HARVESTS times at any
 * moment, then, when the awaited markers have returned, a last time; it reads a page only when a
 * harvest reports it.
 *
 * Claim: the copy holds the store of every awaited marker. With -DPROMPT marker 0 is not awaited: it
 * may stand still half way for ever, and takes nothing from the others.
 *
 * Bounds: -DP0=page -DP1=page (-DP2=page): A and B share a leaf word, C has the other, W is all pages of
 * the chunk's group, marked by its whole bit, which lies directly below the top (mark_whole(), take_wholes());
 * -DHARVESTS=n; -DFALLBACK: no process-wide fence, each side has its own; -DLOOK: leaf words that a
 * look finds 0 are not exchanged, which is for machines where all see stores in one order, as here.
 *
 * Mutants: MARK_THEN_STORE (O1) TOP_DOWN (I2) TRUSTS_LEAF (I3, PROMPT) LEAF_STORE (I1) OR_RELAXED (L1)
 * BOTTOM_UP (H1) WHOLE_BEFORE_TOP (H1, W) NO_FENCE FENCE_FIRST (H2) NO_LIGHT_FENCE (FALLBACK).
 */
#define A 1 /* leaf word 0, bit 0 */
#define B 2 /* leaf word 0, bit 1 */
#define C 4 /* leaf word 1, bit 0 */
#define W 8 /* the whole group: the word of whole bits */
#ifndef P0
#define P0 A
#endif
#ifndef P1
#define P1 A
#endif
#ifndef HARVESTS
#define HARVESTS 1
#endif
#ifdef P2
#define MARKERS 3
#else
#define MARKERS 2
#endif
#if P0 == W || P1 == W || P2 == W
#define WHOLE
#endif

#define WORD(page) ((page) >> 2)
#define SUM_BIT(page) (1 << WORD(page))
#define ALL_PAGES 15

/* The marker's operations, in program order. */
#define STORE	  1
#define LOOK_LEAF 2
#define OR_LEAF	  4
#define LOOK_SUM  8
#define OR_SUM	  16
#define LOOK_TOP  32
#define OR_TOP	  64
#define ALL_DONE  127

byte leaf[3], sum, top; /* leaf[2]: the whole bits */
bool stored[MARKERS]; /* the marker's own word of its page */
byte done[MARKERS];
bool copied[MARKERS];
byte page_of[MARKERS];

#define TODO(op) !(done[me] & (op))
#define HAS(ops) ((done[me] & (ops)) == (ops))
#define PERFORM(ops) done[me] = done[me] | (ops)
#define IS_PREFIX(set) (((set) & ((set) + 1)) == 0)

#ifdef MUTANT_MARK_THEN_STORE
#define RELEASE true /* the store comes last in the program */
#define STORE_READY HAS(OR_TOP)
#define IS_MOMENT(m) ((done[m] & ALL_DONE) == ALL_DONE || !(done[m] & STORE))
#else
#define RELEASE HAS(STORE)
#define STORE_READY true
#define IS_MOMENT(m) IS_PREFIX(done[m])
#endif
#if defined(FALLBACK) && !defined(MUTANT_NO_LIGHT_FENCE)
#define LIGHT HAS(STORE)
#else
#define LIGHT true
#endif
#ifdef MUTANT_OR_RELAXED
#define AFTER_OR(op) true /* no acquire: what follows the OR may come before it */
#else
#define AFTER_OR(op) HAS(op)
#endif

#ifdef WHOLE
/* A whole bit has no sum above it. */
#define NO_SUM(page) ((page) == W -> LOOK_SUM | OR_SUM : 0)
#define BELOW_TOP(page) ((page) == W -> HAS(LOOK_LEAF) && AFTER_OR(OR_LEAF) : HAS(LOOK_SUM) && AFTER_OR(OR_SUM))
#else
#define NO_SUM(page) 0
#define BELOW_TOP(page) (HAS(LOOK_SUM) && AFTER_OR(OR_SUM))
#endif

proctype marker(byte me)
{
	byte page = page_of[me];
#ifdef MUTANT_LEAF_STORE
	byte old = 0;
#endif

#ifdef MUTANT_TOP_DOWN
	top = 1;
#ifdef WHOLE
	sum = sum | (page == W -> 0 : SUM_BIT(page));
#else
	sum = sum | SUM_BIT(page);
#endif
	done[me] = LOOK_SUM | OR_SUM | LOOK_TOP | OR_TOP;
#endif
	do
	:: TODO(STORE) && STORE_READY -> d_step { stored[me] = true; PERFORM(STORE) }
	:: TODO(LOOK_LEAF) && LIGHT -> d_step {
			if
#ifdef MUTANT_TRUSTS_LEAF
			:: leaf[WORD(page)] & page -> PERFORM(ALL_DONE & ~STORE)
#else
			:: leaf[WORD(page)] & page -> PERFORM(LOOK_LEAF | OR_LEAF | NO_SUM(page))
#endif
			:: else -> PERFORM(LOOK_LEAF)
			fi
		}
	:: TODO(OR_LEAF) && HAS(LOOK_LEAF) && RELEASE ->
#ifdef MUTANT_LEAF_STORE
		old = leaf[WORD(page)];
		atomic { leaf[WORD(page)] = old | page; old = 0; PERFORM(OR_LEAF | NO_SUM(page)) }
#else
		d_step { leaf[WORD(page)] = leaf[WORD(page)] | page; PERFORM(OR_LEAF | NO_SUM(page)) }
#endif
	:: TODO(LOOK_SUM) && NO_SUM(page) == 0 && HAS(LOOK_LEAF) && AFTER_OR(OR_LEAF) -> d_step {
			if
			:: sum & SUM_BIT(page) -> PERFORM(LOOK_SUM | OR_SUM)
			:: else -> PERFORM(LOOK_SUM)
			fi
		}
	:: TODO(OR_SUM) && NO_SUM(page) == 0 && HAS(LOOK_SUM | OR_LEAF) && RELEASE ->
		d_step { sum = sum | SUM_BIT(page); PERFORM(OR_SUM) }
	:: TODO(LOOK_TOP) && BELOW_TOP(page) -> d_step {
			if
			:: top -> PERFORM(LOOK_TOP | OR_TOP)
			:: else -> PERFORM(LOOK_TOP)
			fi
		}
	:: TODO(OR_TOP) && HAS(LOOK_TOP | OR_SUM) && RELEASE -> d_step { top = 1; PERFORM(OR_TOP) }
	:: done[me] == ALL_DONE -> break
	od
}

inline heavy_fence()
{
	do
	:: !(moments & 1) && IS_MOMENT(0) -> moments = moments | 1
	:: !(moments & 2) && IS_MOMENT(1) -> moments = moments | 2
#if MARKERS > 2
	:: !(moments & 4) && IS_MOMENT(2) -> moments = moments | 4
#endif
	:: moments == (1 << MARKERS) - 1 -> moments = 0; break
	od
}

inline take_leaf(w)
{
#ifdef LOOK
	if
	:: leaf[w] == 0
	:: leaf[w] != 0 -> atomic { taken = taken | leaf[w]; leaf[w] = 0 }
	fi
#else
	atomic { taken = taken | leaf[w]; leaf[w] = 0 }
#endif
}

/* Whole bits stand for all pages: who marked one stored to each of them. */
inline take_wholes()
{
#ifdef LOOK
	if
	:: leaf[2] == 0
	:: leaf[2] != 0 -> atomic { taken = taken | (leaf[2] -> ALL_PAGES : 0); leaf[2] = 0 }
	fi
#else
	atomic { taken = taken | (leaf[2] -> ALL_PAGES : 0); leaf[2] = 0 }
#endif
}

inline harvest()
{
#ifdef MUTANT_FENCE_FIRST
	heavy_fence();
#endif
	if
	:: top == 0
	:: top != 0 ->
#ifdef MUTANT_WHOLE_BEFORE_TOP
		take_wholes();
#endif
		top = 0;
#if defined(WHOLE) && !defined(MUTANT_WHOLE_BEFORE_TOP)
		take_wholes();
#endif
#ifdef MUTANT_BOTTOM_UP
		sums = sum;
#else
		atomic { sums = sum; sum = 0 };
#endif
		if
		:: sums & 1 -> take_leaf(0)
		:: else
		fi;
		if
		:: sums & 2 -> take_leaf(1)
		:: else
		fi;
#ifdef MUTANT_BOTTOM_UP
		sum = 0;
#endif
		sums = 0
	fi;
#if !defined(MUTANT_NO_FENCE) && !defined(MUTANT_FENCE_FIRST) && !defined(FALLBACK)
	if
	:: taken -> heavy_fence()
	:: else
	fi;
#endif
	/* the pages of the epoch are read */
	do
	:: i < MARKERS ->
		if
		:: taken & page_of[i] -> copied[i] = copied[i] || stored[i]
		:: else
		fi;
		i++
	:: i == MARKERS -> atomic { i = 0; taken = 0 }; break
	od
}

#ifdef PROMPT
#define AWAITED(m) ((m) > 0)
#else
#define AWAITED(m) true
#endif
#define RETURNED(m) (!AWAITED(m) || done[m] == ALL_DONE)

proctype harvester()
{
	byte n = 0, i = 0, moments = 0, taken = 0, sums = 0;

	do
	:: n < HARVESTS -> harvest(); n++
	:: n == HARVESTS -> break
	od;
	RETURNED(0) && RETURNED(1);
#if MARKERS > 2
	RETURNED(2);
#endif
	harvest();
	assert(copied[0] || !AWAITED(0));
	assert(copied[1]);
#if MARKERS > 2
	assert(copied[2])
#endif
}

init {
	atomic {
		page_of[0] = P0;
		page_of[1] = P1;
		run marker(0);
		run marker(1);
#ifdef P2
		page_of[2] = P2;
		run marker(2);
#endif
		run harvester()
	}
}
