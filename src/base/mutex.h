/* SPDX-License-Identifier: MIT */
/*
 * Mutexes with a rank (base/lock_order.h). Clang's thread-safety analysis checks who holds
 * what at compile time; with -Ddebug_checks=true rank order and holder are checked at run
 * time, and a violation dies naming both ranks.
 */
#ifndef GR_BASE_MUTEX_H
#define GR_BASE_MUTEX_H

#include "base/compiler.h"
#include "base/lock_order.h"
#include <pthread.h>
#include <time.h>

struct GR_CAPABILITY("mutex") gr_mutex {
	pthread_mutex_t m;
	enum gr_lock_rank rank; /* (c) */
	const void *owner;	/* (l) debug_checks only: which thread holds it */
};

#define GR_MUTEX_INIT(r) { .m = PTHREAD_MUTEX_INITIALIZER, .rank = (r) }

void gr_mutex_init(struct gr_mutex *m, enum gr_lock_rank rank);
void gr_mutex_destroy(struct gr_mutex *m);
void gr_mutex_lock(struct gr_mutex *m) GR_ACQUIRE(*m);
/* One more of the same rank; the caller keeps an order among them (say which). */
void gr_mutex_lock_peer(struct gr_mutex *m) GR_ACQUIRE(*m);
void gr_mutex_unlock(struct gr_mutex *m) GR_RELEASE(*m);
/* Sleeps until cond is signalled, without m meanwhile; or for no reason, as POSIX has it. */
void gr_mutex_wait(struct gr_mutex *m, pthread_cond_t *cond) GR_REQUIRES(*m);
/* The same, at most until then by cond's clock; false: the time is over. */
bool gr_mutex_wait_until(struct gr_mutex *m, pthread_cond_t *cond, const struct timespec *until)
	GR_REQUIRES(*m);
/* Out of rank order on purpose: trying cannot deadlock. */
GR_MUST_CHECK bool gr_mutex_trylock(struct gr_mutex *m) GR_TSA(try_acquire_capability(true, *m));
/* Dies with debug_checks if the caller does not hold m; tells the analysis that it does. */
void gr_mutex_assert_held(const struct gr_mutex *m) GR_TSA(assert_capability(*m));

/*
 * fork() in a signal handler: what the interrupted code holds is not in order with what fork takes.
 * From begin to end debug_checks look at what was taken since only.
 */
unsigned gr_mutex_order_begin(void);
void gr_mutex_order_end(unsigned outer);

/*
 * A mutex of which it is known at every moment, in a signal handler too, whether the calling thread
 * has it. A handler may fork while it does: the child then lets go those that others have, and
 * keeps those that the interrupted code will release. It sleeps as a gr_mutex does; unlock
 * does not touch it after somebody else may have it.
 */
struct GR_CAPABILITY("mutex") gr_owned_mutex {
	uint32_t word; /* (a) 0, or the owner's number and whether it is waited for; futex */
	enum gr_lock_rank rank; /* (c) */
};

#define GR_OWNED_MUTEX_INIT(r) { .rank = (r) }

void gr_owned_mutex_init(struct gr_owned_mutex *m, enum gr_lock_rank rank);
void gr_owned_mutex_lock(struct gr_owned_mutex *m) GR_ACQUIRE(*m);
void gr_owned_mutex_unlock(struct gr_owned_mutex *m) GR_RELEASE(*m);
GR_MUST_CHECK bool gr_owned_mutex_trylock(struct gr_owned_mutex *m)
	GR_TSA(try_acquire_capability(true, *m));
bool gr_owned_mutex_is_mine(const struct gr_owned_mutex *m);
void gr_owned_mutex_after_fork_in_child(struct gr_owned_mutex *m);

/* For cleanup: unlocks at the end of the scope. Function scope only (see GR_MUTEX_GUARD). */
static inline struct gr_mutex *gr_mutex_guard_enter(struct gr_mutex *m)
	GR_TSA(assert_capability(*m)) GR_NO_TSA;
static inline struct gr_mutex *gr_mutex_guard_enter(struct gr_mutex *m)
{
	gr_mutex_lock(m);
	return m;
}

static inline void gr_mutex_guard_exit(struct gr_mutex **m) GR_NO_TSA;
static inline void gr_mutex_guard_exit(struct gr_mutex **m)
{
	gr_mutex_unlock(*m);
}

/*
 * Holds m until the enclosing scope ends. Use it at function scope: the analysis does not see
 * the cleanup and believes m held until the function returns.
 */
#define GR_MUTEX_GUARD(mutex)		 GR_MUTEX_GUARD_(mutex, __COUNTER__)
#define GR_MUTEX_GUARD_(mutex, n)	 GR_MUTEX_GUARD_NAMED_(mutex, n)
#define GR_MUTEX_GUARD_NAMED_(mutex, n)                                                            \
	struct gr_mutex *gr_mutex_guard_##n                                                        \
		__attribute__((cleanup(gr_mutex_guard_exit), unused)) = gr_mutex_guard_enter(mutex)

#endif
