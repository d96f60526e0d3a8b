/* SPDX-License-Identifier: MIT */
/**
 * guestram/urcu_pointer.h - liburcu's pointer macros, over the compiler's atomics.
 *
 * Included by <guestram/urcu.h>. Where liburcu's headers are not installed it also
 * brings the few of their general macros that programs with RCU cannot do without.
 */
#ifndef GUESTRAM_URCU_POINTER_H
#define GUESTRAM_URCU_POINTER_H

#include <guestram/types.h>

#if !defined(GR_URCU_ALONE) && defined(__has_include)
#	if __has_include(<urcu/compiler.h>) && __has_include(<urcu/uatomic.h>)
/* What including <urcu.h> brings along, and programs have come to expect. */
#		define GR_URCU_BESIDE_LIBURCU
#		include <urcu/arch.h>
#		include <urcu/compiler.h>
#		include <urcu/config.h>
#		include <urcu/system.h>
#		include <urcu/uatomic.h>
#	endif
#endif

#ifndef GR_URCU_BESIDE_LIBURCU
#	define __rcu
#	define caa_likely(x)	GR_LIKELY(x)
#	define caa_unlikely(x) GR_UNLIKELY(x)
#	define caa_container_of(ptr, type, member)                                   \
		__extension__({                                                       \
			const __typeof__(((type *)NULL)->member) *gr_member_ = (ptr); \
			(type *)((uintptr_t)gr_member_ - offsetof(type, member));     \
		})
#	define CAA_ARRAY_SIZE(a)      (sizeof(a) / sizeof(*(a)))
#	define cmm_barrier()	       __atomic_signal_fence(__ATOMIC_SEQ_CST)
#	define cmm_mb()	       __sync_synchronize()
#	define cmm_rmb()	       __sync_synchronize()
#	define cmm_wmb()	       __sync_synchronize()
#	define cmm_smp_mb()	       cmm_mb()
#	define cmm_smp_rmb()	       cmm_rmb()
#	define cmm_smp_wmb()	       cmm_wmb()
#	define CMM_ACCESS_ONCE(x)     (*(volatile __typeof__(x) *)&(x))
#	define CMM_LOAD_SHARED(x)     CMM_ACCESS_ONCE(x)
#	define CMM_STORE_SHARED(x, v) (CMM_ACCESS_ONCE(x) = (v))
#endif

/** Fetch a published pointer inside a section. Takes the variable; evaluates it once. */
#define rcu_dereference(p) __atomic_load_n(&(p), __ATOMIC_ACQUIRE)

/** Publish v in the pointer at address p: what was written to *v before is visible with it. */
#define rcu_set_pointer(p, v)                                     \
	do {                                                      \
		__typeof__(*(p)) gr_set_ = (v);                   \
		__atomic_store_n((p), gr_set_, __ATOMIC_RELEASE); \
	} while (0)

/** As rcu_set_pointer(), but takes the pointer variable itself. */
#define rcu_assign_pointer(p, v) rcu_set_pointer(&(p), v)

/** Publish v in the pointer at address p; the value is what was there. */
#define rcu_xchg_pointer(p, v)                                        \
	__extension__({                                               \
		__typeof__(*(p)) gr_xchg_ = (v);                      \
		__atomic_exchange_n((p), gr_xchg_, __ATOMIC_SEQ_CST); \
	})

/** Publish v in the pointer at address p if old is there; the value is what was there. */
#define rcu_cmpxchg_pointer(p, old, v)                                                         \
	__extension__({                                                                        \
		__typeof__(*(p)) gr_was_ = (old);                                              \
		__typeof__(*(p)) gr_new_ = (v);                                                \
		(void)__atomic_compare_exchange_n((p), &gr_was_, gr_new_, 0, __ATOMIC_SEQ_CST, \
						  __ATOMIC_SEQ_CST);                           \
		gr_was_;                                                                       \
	})

/* The spellings for LGPL programs. */
#define _rcu_dereference(p)		rcu_dereference(p)
#define _rcu_set_pointer(p, v)		rcu_set_pointer(p, v)
#define _rcu_assign_pointer(p, v)	rcu_assign_pointer(p, v)
#define _rcu_xchg_pointer(p, v)		rcu_xchg_pointer(p, v)
#define _rcu_cmpxchg_pointer(p, old, v) rcu_cmpxchg_pointer(p, old, v)

/* The bulletproof flavour has names of its own. */
#define urcu_bp_dereference(p)		       rcu_dereference(p)
#define urcu_bp_set_pointer(p, v)	       rcu_set_pointer(p, v)
#define urcu_bp_xchg_pointer(p, v)	       rcu_xchg_pointer(p, v)
#define urcu_bp_cmpxchg_pointer(p, old, v)     rcu_cmpxchg_pointer(p, old, v)
#define urcu_bp_dereference_sym(p)	       rcu_dereference_sym(p)
#define urcu_bp_set_pointer_sym(p, v)	       rcu_set_pointer_sym(p, v)
#define urcu_bp_xchg_pointer_sym(p, v)	       rcu_xchg_pointer_sym(p, v)
#define urcu_bp_cmpxchg_pointer_sym(p, old, v) rcu_cmpxchg_pointer_sym(p, old, v)
#ifndef URCU_NO_COMPAT_IDENTIFIERS
#	define rcu_dereference_bp(p)		  rcu_dereference(p)
#	define rcu_set_pointer_bp(p, v)	  rcu_set_pointer(p, v)
#	define rcu_xchg_pointer_bp(p, v)	  rcu_xchg_pointer(p, v)
#	define rcu_cmpxchg_pointer_bp(p, old, v) rcu_cmpxchg_pointer(p, old, v)
#endif

GR_BEGIN_DECLS

/**
 * rcu_dereference() for a pointer that was loaded already.
 * @param p What was loaded.
 * @return p, ordered before what is read through it.
 * @context Any.
 */
static inline void *rcu_dereference_sym(void *p)
{
	/* The caller's load, before what follows. A full fence: TSan builds refuse lesser ones. */
#if defined(__x86_64__) || defined(__i386__)
	__atomic_signal_fence(__ATOMIC_SEQ_CST); /* loads are in order by themselves */
#else
	__sync_synchronize();
#endif
	return p;
}

/** rcu_set_pointer() as a function. @return v. @context Any. @param p Where. @param v What. */
static inline void *rcu_set_pointer_sym(void **p, void *v)
{
	rcu_set_pointer(p, v);
	return v;
}

/** rcu_xchg_pointer() as a function. @return What was there. @param p Where. @param v What. */
static inline void *rcu_xchg_pointer_sym(void **p, void *v)
{
	return rcu_xchg_pointer(p, v);
}

/**
 * rcu_cmpxchg_pointer() as a function.
 * @param p   Where.
 * @param old What must be there.
 * @param v   What to put there.
 * @return What was there.
 * @context Any.
 */
static inline void *rcu_cmpxchg_pointer_sym(void **p, void *old, void *v)
{
	return rcu_cmpxchg_pointer(p, old, v);
}

GR_END_DECLS
#endif
