/* SPDX-License-Identifier: MIT */
/*
 * Dirty memory: growth under RCU, while markers mark and a harvester harvests.
 *
 * Mirrors gr_dirty_grow() and map_extend() of src/bitmap/dirty.c, marker_map() of src/bitmap/mark.c
 * (O3, L5), and the publication of a block in src/ram after that. Map 0 has chunk 0, map 1 has
 * chunks 0 and 1; chunks never move. Marker 0 marks a page of chunk 0 by whatever map it
 * loads. Marker 1 looks the new block up and, if it finds it, marks a page of chunk 1. The grower
 * zeroes chunk 1, publishes the map, publishes the block, waits for a grace period, frees
 * map 0. A release keeps the order of the stores before it; the mutants take them in the other order.
 *
 * Claim: who found the block finds its chunk, zeroed; nobody uses a freed map; no mark is lost.
 *
 * Mutants: COPIES_WORDS NO_GRACE_PERIOD BLOCK_FIRST MAP_BEFORE_LOOKUP PUBLISH_RELAXED
 * HARVESTER_KEEPS_MAP.
 */
byte map;	/* which is published */
bool block;	/* can the new block be found? */
bool zeroed;	/* is chunk 1? */
bool freed;	/* map 0 */
bool leaf[3];	/* of chunks 0 and 1; 2 is chunk 0's copy (COPIES_WORDS) */
bool inside[2]; /* markers in their sections */
bool marked[2], returned[2], reported[2];

#ifdef MUTANT_COPIES_WORDS
#define CHUNK0(m) ((m) == 0 -> 0 : 2)
#else
#define CHUNK0(m) 0
#endif

inline load_map()
{
	mine = map
}

/* The entry is read some time after the pointer to the map. */
inline use_map()
{
	assert(mine == 1 || !freed)
}

proctype marker_old()
{
	byte mine = 0;

	inside[0] = true;
	load_map();
	use_map();
	atomic { leaf[CHUNK0(mine)] = true; marked[0] = true };
	atomic { inside[0] = false; returned[0] = true }
}

proctype marker_new()
{
	byte mine = 0;
	bool found = false;

	inside[1] = true;
#ifdef MUTANT_MAP_BEFORE_LOOKUP
	load_map();
	found = block;
#else
	found = block;
	load_map();
#endif
	if
	:: found ->
		assert(mine == 1);
		assert(zeroed);
		atomic { leaf[1] = true; marked[1] = true }
	:: else -> use_map()
	fi;
	atomic { inside[1] = false; returned[1] = true }
}

proctype grower()
{
#ifdef MUTANT_COPIES_WORDS
	leaf[2] = leaf[0];
#endif
#ifdef MUTANT_PUBLISH_RELAXED
	map = 1;
	zeroed = true;
#else
	zeroed = true;
#ifdef MUTANT_BLOCK_FIRST
	block = true;
#endif
	map = 1;
#endif
	block = true;
#ifndef MUTANT_NO_GRACE_PERIOD
	!inside[0];
	!inside[1];
#endif
	freed = true
}

/* Under the harvest lock, which growth takes too: it may use the map that is published. */
inline harvest()
{
#ifdef MUTANT_HARVESTER_KEEPS_MAP
	if
	:: first -> load_map()
	:: else
	fi;
	use_map();
#else
	load_map();
#endif
	first = false;
	atomic { reported[0] = reported[0] || leaf[CHUNK0(mine)]; leaf[CHUNK0(mine)] = false };
	if
	:: mine == 1 ->
		assert(zeroed);
		atomic { reported[1] = reported[1] || leaf[1]; leaf[1] = false }
	:: else
	fi
}

proctype harvester()
{
	byte mine = 0;
	bool first = true;

	harvest();
	returned[0] && returned[1];
	harvest();
	assert(reported[0]);
	assert(reported[1] || !marked[1])
}

init {
	atomic {
		run marker_old();
		run marker_new();
		run grower();
		run harvester()
	}
}
