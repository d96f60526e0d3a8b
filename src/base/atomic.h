/* SPDX-License-Identifier: MIT */
/*
 * The one place in src/ that names memory orders. A name says its order; there is no
 * default one. Every use comments which access it pairs with.
 *
 * A seq_cst read-modify-write is not a full fence on ARM64, POWER or RISC-V; only
 * gr_fence() is.
 */
#ifndef GR_BASE_ATOMIC_H
#define GR_BASE_ATOMIC_H

#include "base/compiler.h"

/* An access that is not naturally aligned may be two: see gr_atomic_u64 in types.h. */
#ifdef GR_DEBUG_CHECKS
#define GR_ATOMIC(p)                                                                               \
	({                                                                                         \
		__typeof__(p) atomic_ = (p);                                                       \
		GR_ASSERT((uintptr_t)atomic_ % sizeof(*atomic_) == 0);                             \
		atomic_;                                                                           \
	})
#else
#define GR_ATOMIC(p) (p)
#endif

#define gr_load_relaxed(p)	__atomic_load_n(GR_ATOMIC(p), __ATOMIC_RELAXED)
#define gr_load_acquire(p)	__atomic_load_n(GR_ATOMIC(p), __ATOMIC_ACQUIRE)
#define gr_store_relaxed(p, v)	__atomic_store_n(GR_ATOMIC(p), (v), __ATOMIC_RELAXED)
#define gr_store_release(p, v)	__atomic_store_n(GR_ATOMIC(p), (v), __ATOMIC_RELEASE)
#define gr_xchg_acq_rel(p, v)	__atomic_exchange_n(GR_ATOMIC(p), (v), __ATOMIC_ACQ_REL)
#define gr_or_acq_rel(p, v)	__atomic_fetch_or(GR_ATOMIC(p), (v), __ATOMIC_ACQ_REL)
#define gr_and_acq_rel(p, v)	__atomic_fetch_and(GR_ATOMIC(p), (v), __ATOMIC_ACQ_REL)
#define gr_add_relaxed(p, v)	__atomic_fetch_add(GR_ATOMIC(p), (v), __ATOMIC_RELAXED)
#define gr_add_acq_rel(p, v)	__atomic_fetch_add(GR_ATOMIC(p), (v), __ATOMIC_ACQ_REL)
#define gr_sub_acq_rel(p, v)	__atomic_fetch_sub(GR_ATOMIC(p), (v), __ATOMIC_ACQ_REL)
#define gr_cas_acq_rel(p, expected, v)                                                             \
	__atomic_compare_exchange_n(GR_ATOMIC(p), (expected), (v), false, __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE)

/* For memory that a guest uses as well: its atomic instructions are fences. */
#define gr_cas_seq_cst(p, expected, v)                                                             \
	__atomic_compare_exchange_n(GR_ATOMIC(p), (expected), (v), false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST)

/* Full fence. On x86 a locked add on the stack is several times cheaper than mfence. */
static inline void gr_fence(void)
{
#if (defined(__x86_64__) || defined(__i386__)) && !GR_TSAN
#if defined(__x86_64__)
	__asm__ __volatile__("lock addl $0, -4(%%rsp)" ::: "memory", "cc");
#else
	__asm__ __volatile__("lock addl $0, -4(%%esp)" ::: "memory", "cc");
#endif
#else
	__sync_synchronize(); /* as a seq_cst fence, which gcc's TSan build warns about */
#endif
}

/*
 * May a word that others OR into be passed over, instead of exchanged with 0, if a look finds it 0? Where
 * read-modify-writes are full fences and all processors see stores in one order, as on x86: there it is
 * as if it had been exchanged, at the look.
 */
#if defined(__x86_64__)
#	define GR_LOOK_BEFORE_EXCHANGE true
#else
#	define GR_LOOK_BEFORE_EXCHANGE false
#endif

/* Compiler barrier: the light half of an asymmetric pair whose heavy half is membarrier. */
static inline void gr_barrier(void)
{
	__asm__ __volatile__("" ::: "memory");
}

static inline void gr_cpu_relax(void)
{
#if defined(__x86_64__) || defined(__i386__)
	__builtin_ia32_pause();
#elif defined(__aarch64__)
	__asm__ __volatile__("isb" ::: "memory");
#else
	gr_barrier();
#endif
}

/*
 * ThreadSanitizer sees neither fences nor membarrier: where ordering comes from one of
 * those, say so to it.
 */
#if GR_TSAN
extern void __tsan_acquire(void *addr);
extern void __tsan_release(void *addr);
#define gr_annotate_acquire(p) __tsan_acquire((void *)(uintptr_t)(p))
#define gr_annotate_release(p) __tsan_release((void *)(uintptr_t)(p))
#else
#define gr_annotate_acquire(p) ((void)(p))
#define gr_annotate_release(p) ((void)(p))
#endif

#endif
