/* SPDX-License-Identifier: MIT */
/*
 * Dirty memory: where the lines of a private set lie.
 *
 * Mirrors src/bitmap/store.c: gr_bits_make_room(), gr_bits_store(), gr_bits_release(),
 * gr_bits_release_all(), take_block(), give_back(). One thread, since a set has one owner: what is
 * exhaustive here are the orders of operations, with every set of lines, and so every way in which
 * blocks are cut, moved and given back. GROUPS groups of LINES lines; a line holds its own number,
 * which stands for its 512 bits. What a freed block holds is undefined but for the link in its first line.
 *
 * Claim: after each operation every line of every group is where its group says, and as it was written; there
 * is always room in STORE lines; nothing is read that is undefined.
 *
 * Bounds: -DGROUPS=n -DLINES=2 or 4.
 *
 * Mutants: ROOM_WITHOUT_MOVE MOVES_FROM_BELOW FREED_BEFORE_MOVED RELEASE_LEAKS MOVE_LEAKS WRONG_ORDER
 * ORDERS_SHARE_SLAB FORGETS_FREE.
 */
#ifndef GROUPS
#define GROUPS 2
#endif
#ifndef LINES
#define LINES 4
#endif
#if LINES == 4
#define ORDERS 3
#define ORDER_OF(n) ((n) <= 1 -> 0 : ((n) == 2 -> 1 : 2))
#else
#define ORDERS 2
#define ORDER_OF(n) ((n) <= 1 -> 0 : 1)
#endif
#define SLAB	  LINES
#define STORE	  (GROUPS * 2 * SLAB)
#define ALL	  ((1 << LINES) - 1)
#define UNDEFINED 255
#define IS_IN(l, set) (((set) >> (l)) & 1)
#define COUNT(set) (((set) & 1) + (((set) >> 1) & 1) + (((set) >> 2) & 1) + (((set) >> 3) & 1))
#define NAME(g, l) (128 + (g) * LINES + (l)) /* what line l of group g holds; links are smaller */

byte store[STORE];
byte stored[GROUPS]; /* set of lines */
byte block[GROUPS];  /* meaningless without any */
byte lines;	     /* of the store, in use so far */
byte free[ORDERS];   /* the first block that was given back, + 1 */
byte next[ORDERS];   /* in the slab that is being cut */

/* Scratch of one operation: 0 between them. */
hidden byte to, from, b, old, all, l, k, n, g2;

inline give_back(blk, order)
{
	k = 0;
	do
	:: k < (1 << (order)) -> store[(blk) + k] = UNDEFINED; k++
	:: else -> break
	od;
	store[blk] = free[order];
	free[order] = (blk) + 1
}

inline take_block(order)
{
	if
	:: free[order] != 0 ->
		b = free[order] - 1;
		assert(store[b] < 128); /* a link: nobody has written to what was free */
#ifndef MUTANT_FORGETS_FREE
		free[order] = store[b];
#endif
		store[b] = UNDEFINED
	:: else ->
#ifdef MUTANT_ORDERS_SHARE_SLAB
		if
		:: lines % SLAB == 0 -> next[order] = lines; lines = lines + SLAB
		:: else
		fi;
#else
		if
		:: next[order] % SLAB == 0 ->
			assert(lines < STORE); /* there is always room */
			next[order] = lines;
			lines = lines + SLAB
		:: else
		fi;
#endif
		b = next[order];
		next[order] = next[order] + (1 << (order))
	fi
}

/* The lines `more` of group g get places. */
inline make_room(g, more)
{
	all = stored[g] | more;
	from = COUNT(stored[g]);
	to = COUNT(all);
	old = block[g];
	if
	:: from == to
	:: else ->
#ifdef MUTANT_FREED_BEFORE_MOVED
		n = from;
		if
		:: from != 0 && ORDER_OF(from) != ORDER_OF(to) -> give_back(old, ORDER_OF(from))
		:: else
		fi;
#endif
		if
		:: from == 0 || ORDER_OF(from) != ORDER_OF(to) -> take_block(ORDER_OF(to)); block[g] = b
		:: else
		fi;
#ifdef MUTANT_MOVES_FROM_BELOW
		l = 0; to = 0; from = 0;
		do
		:: l < LINES && IS_IN(l, all) ->
			if
			:: IS_IN(l, stored[g]) -> store[block[g] + to] = store[old + from]; from++
			:: else
			fi;
			to++;
			l++
		:: l < LINES && !IS_IN(l, all) -> l++
		:: l == LINES -> break
		od;
#else
		l = LINES;
		do
		:: from != 0 && IS_IN(l - 1, all) ->
			l--;
			to--;
#ifdef MUTANT_ROOM_WITHOUT_MOVE
			from--;
#else
			if
			:: IS_IN(l, stored[g]) -> from--; store[block[g] + to] = store[old + from]
			:: else
			fi;
#endif
		:: from != 0 && !IS_IN(l - 1, all) -> l--
		:: from == 0 -> break
		od;
#endif
#if !defined(MUTANT_MOVE_LEAKS) && !defined(MUTANT_FREED_BEFORE_MOVED)
		if
		:: stored[g] != 0 && block[g] != old ->
#ifdef MUTANT_WRONG_ORDER
			give_back(old, ORDER_OF(COUNT(all)))
#else
			give_back(old, ORDER_OF(COUNT(stored[g])))
#endif
		:: else
		fi;
#endif
		stored[g] = all
	fi
}

/* What is new is written, as its owner does at once. */
inline write_lines(g, set)
{
	l = 0; to = 0;
	do
	:: l < LINES && IS_IN(l, stored[g]) ->
		if
		:: IS_IN(l, set) -> store[block[g] + to] = NAME(g, l)
		:: else
		fi;
		to++;
		l++
	:: l < LINES && !IS_IN(l, stored[g]) -> l++
	:: l == LINES -> break
	od
}

inline check()
{
	g2 = 0;
	do
	:: g2 < GROUPS ->
		l = 0; to = 0;
		do
		:: l < LINES && IS_IN(l, stored[g2]) ->
			assert(store[block[g2] + to] == NAME(g2, l));
			to++;
			l++
		:: l < LINES && !IS_IN(l, stored[g2]) -> l++
		:: l == LINES -> break
		od;
		g2++
	:: g2 == GROUPS -> break
	od
}

/* More lines of a group: gr_bits_make_room(), or gr_bits_store() where there were none. */
inline add(g, set)
{
	d_step {
		n = set & ~stored[g];
		make_room(g, set);
		write_lines(g, set);
		check();
		to = 0; from = 0; b = 0; old = 0; all = 0; l = 0; k = 0; n = 0; g2 = 0
	}
}

inline release(g)
{
	d_step {
#ifndef MUTANT_RELEASE_LEAKS
		give_back(block[g], ORDER_OF(COUNT(stored[g])));
#endif
		stored[g] = 0;
		block[g] = 0;
		check();
		l = 0; k = 0; to = 0; g2 = 0
	}
}

inline release_all()
{
	d_step {
		g2 = 0;
		do
		:: g2 < GROUPS -> stored[g2] = 0; block[g2] = 0; g2++
		:: g2 == GROUPS -> break
		od;
		k = 0;
		do
		:: k < ORDERS -> free[k] = 0; next[k] = 0; k++
		:: k == ORDERS -> break
		od;
		k = 0;
		do
		:: k < STORE -> store[k] = UNDEFINED; k++
		:: k == STORE -> break
		od;
		lines = 0; k = 0; g2 = 0
	}
}

active proctype owner()
{
	byte g = 0, set = 0;

	release_all();
	do
	:: atomic {
			select(g : 0 .. GROUPS - 1);
			select(set : 0 .. ALL);
			if
			:: set == 0 && stored[g] != 0 -> release(g)
			:: set == 0 && stored[g] == 0 -> release_all()
			:: set != 0 -> add(g, set)
			fi;
			g = 0;
			set = 0
		}
	od
}
