/* SPDX-License-Identifier: MIT */
/*
 * The loops of one implementation. Include once in a file that defines
 *
 *   RCU_LOCK() RCU_UNLOCK()         the inlined read side
 *   RCU_QUIESCENT()                 a quiescent state, or nothing
 *   RCU_HEAD                        the type of its head
 *   RCU_CALL(head, func)            its call_rcu
 *
 * and then builds a struct bench_rcu out of the functions below.
 */
#include "bench/rcu_impl/impl.h"
#include "bench/rcu_impl/kit.h"

_Static_assert(sizeof(RCU_HEAD) <= sizeof(((struct bench_object *)0)->head), "head too large");

static void rcu_lock(void)
{
	RCU_LOCK();
}

static void rcu_unlock(void)
{
	RCU_UNLOCK();
}

static void rcu_quiescent(void)
{
	RCU_QUIESCENT();
}

/* The section's content: nothing, but the compiler must not merge or move sections. */
#define BODY() __asm__ volatile("" ::: "memory")

__attribute__((aligned(64), noinline)) static double rcu_read_ns(uint64_t sections)
{
	uint64_t start = bench_now_ns();

	for (uint64_t i = 0; i < sections; i++) {
		RCU_LOCK();
		BODY();
		RCU_UNLOCK();
		BODY();
	}
	return (double)(bench_now_ns() - start) / (double)sections;
}

__attribute__((aligned(64), noinline)) static double rcu_read_quiescent_ns(uint64_t sections)
{
	uint64_t start = bench_now_ns();

	for (uint64_t i = 0; i < sections; i++) {
		RCU_LOCK();
		BODY();
		RCU_UNLOCK();
		RCU_QUIESCENT();
		BODY();
	}
	return (double)(bench_now_ns() - start) / (double)sections;
}

static void rcu_read_until(struct bench_reader *r)
{
	uint64_t sections = 0;
	unsigned slot = 0;

	while (!__atomic_load_n(&r->stop, __ATOMIC_RELAXED)) {
		struct bench_object *o;

		RCU_LOCK();
		o = __atomic_load_n(&r->slots[slot], __ATOMIC_ACQUIRE);
		r->bad += __atomic_load_n(&o->state, __ATOMIC_RELAXED) != BENCH_LIVE;
		BODY();
		r->bad += __atomic_load_n(&o->state, __ATOMIC_RELAXED) != BENCH_LIVE;
		RCU_UNLOCK();
		RCU_QUIESCENT();
		slot = slot + 1 < r->n_slots ? slot + 1 : 0;
		__atomic_store_n(&r->sections, ++sections, __ATOMIC_RELAXED);
	}
}

static void rcu_run(RCU_HEAD *head)
{
	struct bench_object *o = (struct bench_object *)(void *)head;

	o->done(o);
}

static void rcu_call(struct bench_object *o)
{
	RCU_CALL((RCU_HEAD *)(void *)o->head, rcu_run);
}

#define RCU_FUNCTIONS                                                                         \
	.lock = rcu_lock, .unlock = rcu_unlock, .quiescent = rcu_quiescent, .call = rcu_call, \
	.read_ns = rcu_read_ns, .read_quiescent_ns = rcu_read_quiescent_ns,                   \
	.read_until = rcu_read_until
