/* SPDX-License-Identifier: MIT */
/*
 * The peer of bench/dirty: dirty memory as QEMU has it, written anew from its description.
 * One flat bitmap in pieces of 2 Mi pages behind an array; a mark is an atomic OR; a harvest
 * looks at every word, exchanges those that are not zero, and ORs them into a second bitmap,
 * which counts what is new and is then searched word by word.
 */
#ifndef BENCH_FLAT_H
#define BENCH_FLAT_H

#include <stdbool.h>
#include <stdint.h>

#define FLAT_PIECE_PAGES ((uint64_t)2 << 20)
#define FLAT_PIECE_WORDS (FLAT_PIECE_PAGES / 64)

struct flat {
	uint64_t pages;
	uint64_t **live; /* pieces */
	uint64_t *sent;	 /* the harvester's own, one piece */
};

struct flat *flat_create(uint64_t pages);
void flat_free(struct flat *f);
/* Inline, as in QEMU. */
static inline void flat_mark(struct flat *f, uint64_t page)
{
	uint64_t *piece = __atomic_load_n(&f->live[page / FLAT_PIECE_PAGES], __ATOMIC_ACQUIRE);

	__atomic_fetch_or(&piece[page / 64 % FLAT_PIECE_WORDS], (uint64_t)1 << (page % 64),
			  __ATOMIC_SEQ_CST);
}
/* By words, as QEMU does it too. */
void flat_mark_range(struct flat *f, uint64_t page, uint64_t pages);
/* Returns how many pages are new in the second bitmap. */
uint64_t flat_harvest(struct flat *f);
/* The next run in the second bitmap. */
bool flat_next(const struct flat *f, uint64_t from, uint64_t *ret_first, uint64_t *ret_pages);
void flat_clear(struct flat *f, uint64_t page, uint64_t pages);

#endif
