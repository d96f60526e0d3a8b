/* SPDX-License-Identifier: MIT */
/*
 * One implementation of RCU as the benchmarks see it. Each lives in a file of its own, which
 * fills in rcu_impl/template.h, so that all of them are measured by the same loops, compiled
 * with the same flags, with their own inlined readers.
 */
#ifndef BENCH_RCU_IMPL_H
#define BENCH_RCU_IMPL_H

#include <stdbool.h>
#include <stdint.h>

/* What is published, waited for and called back. One cache line. */
struct bench_object {
	_Alignas(16) uint8_t head[32]; /* the implementation's rcu head */
	uint64_t state;		       /* (a) BENCH_LIVE, or dead: no reader may see it */
	uint64_t queued_ns;
	void (*done)(struct bench_object *o);
	void *opaque;
};

#define BENCH_LIVE 0x600d600d600d600dull
#define BENCH_DEAD 0xdeaddeaddeaddeadull

/* A thread that runs one section after another and checks what it finds there. */
struct bench_reader {
	struct bench_object **slots; /* (a) published pointers */
	unsigned n_slots;
	uint32_t stop;	   /* (a) */
	uint64_t sections; /* (a) so far */
	uint64_t bad;	   /* sections that saw a dead object */
};

struct bench_rcu {
	const char *name;
	void (*init)(void);
	void (*register_thread)(void);
	void (*unregister_thread)(void);
	/* Out of line, for set-up and for what is not timed. */
	void (*lock)(void);
	void (*unlock)(void);
	void (*quiescent)(void);
	/* No section for a while, and back: park, offline and online, or nothing. */
	void (*offline)(void);
	void (*online)(void);
	void (*synchronize)(void);
	/* o->done(o) after a grace period. */
	void (*call)(struct bench_object *o);
	void (*barrier)(void);
	/* Timed loops with inlined readers: nanoseconds a section; with a quiescent state after
	 * each. */
	double (*read_ns)(uint64_t sections);
	double (*read_quiescent_ns)(uint64_t sections);
	/* Checking loop with inlined readers, on a registered thread. */
	void (*read_until)(struct bench_reader *r);
};

extern const struct bench_rcu bench_rcu_guestram;
extern const struct bench_rcu bench_rcu_guestram_qs;
extern const struct bench_rcu bench_rcu_qemu;
/* NULL where liburcu was not found when this was built. */
extern const struct bench_rcu *const bench_rcu_memb;
extern const struct bench_rcu *const bench_rcu_mb;
extern const struct bench_rcu *const bench_rcu_qsbr;

#endif
