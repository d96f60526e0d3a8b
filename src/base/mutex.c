/* SPDX-License-Identifier: MIT */
#include "base/mutex.h"
#include "base/atomic.h"
#include "base/futex.h"
#include <errno.h>

#ifdef GR_DEBUG_CHECKS
enum { HELD_MAX = 1024 };

/* (o) What this thread holds, in the order it was taken: each by its rank's address. */
static __thread struct {
	unsigned n, interrupted;
	const enum gr_lock_rank *rank[HELD_MAX];
} held;

static void check_order(const enum gr_lock_rank *rank, bool peer)
{
	for (unsigned i = 0; i < held.n; i++) {
		const enum gr_lock_rank *h = held.rank[i];

		if (h == rank) {
			gr_die("mutex of rank %d is taken twice by one thread", (int)*rank);
		}
		if (i < held.interrupted) {
			continue;
		}
		if (*h > *rank || (*h == *rank && !peer)) {
			gr_die("mutex of rank %d is taken while one of rank %d is held", (int)*rank,
			       (int)*h);
		}
	}
}

static void note_held(const enum gr_lock_rank *rank)
{
	GR_ASSERT(held.n < HELD_MAX);
	held.rank[held.n++] = rank;
}

static void note_released(const enum gr_lock_rank *rank)
{
	unsigned i = held.n;

	while (i > 0 && held.rank[i - 1] != rank) {
		i--;
	}
	if (i == 0) {
		gr_die("mutex of rank %d is released by a thread that does not hold it",
		       (int)*rank);
	}
	for (; i < held.n; i++) {
		held.rank[i - 1] = held.rank[i];
	}
	held.n--;
}
#else
static void check_order(const enum gr_lock_rank *rank, bool peer)
{
	(void)rank;
	(void)peer;
}

static void note_held(const enum gr_lock_rank *rank)
{
	(void)rank;
}

static void note_released(const enum gr_lock_rank *rank)
{
	(void)rank;
}
#endif

unsigned gr_mutex_order_begin(void)
{
#ifdef GR_DEBUG_CHECKS
	unsigned outer = held.interrupted;

	held.interrupted = held.n;
	return outer;
#else
	return 0;
#endif
}

void gr_mutex_order_end(unsigned outer)
{
#ifdef GR_DEBUG_CHECKS
	held.interrupted = outer;
#else
	(void)outer;
#endif
}

static void set_owner(struct gr_mutex *m, const void *owner)
{
#ifdef GR_DEBUG_CHECKS
	gr_store_relaxed(&m->owner, owner);
#else
	(void)m;
	(void)owner;
#endif
}

/* An address of each thread's own. */
static const void *this_thread(void)
{
#ifdef GR_DEBUG_CHECKS
	return &held;
#else
	return NULL;
#endif
}

/* These fail only on a broken mutex: freed, overwritten, or not ours to unlock. */
static void must(int ret, const char *what)
{
	if (GR_UNLIKELY(ret != 0)) {
		gr_die("%s of a mutex failed: errno %d", what, ret);
	}
}

void gr_mutex_init(struct gr_mutex *m, enum gr_lock_rank rank)
{
	must(pthread_mutex_init(&m->m, NULL), "init");
	m->rank = rank;
	m->owner = NULL;
}

void gr_mutex_destroy(struct gr_mutex *m)
{
	must(pthread_mutex_destroy(&m->m), "destroy");
}

void gr_mutex_lock(struct gr_mutex *m) GR_NO_TSA
{
	check_order(&m->rank, false);
	must(pthread_mutex_lock(&m->m), "lock");
	note_held(&m->rank);
	set_owner(m, this_thread());
}

void gr_mutex_wait(struct gr_mutex *m, pthread_cond_t *cond) GR_NO_TSA
{
	gr_mutex_assert_held(m);
	note_released(&m->rank);
	set_owner(m, NULL);
	must(pthread_cond_wait(cond, &m->m), "wait");
	note_held(&m->rank);
	set_owner(m, this_thread());
}

bool gr_mutex_wait_until(struct gr_mutex *m, pthread_cond_t *cond, const struct timespec *until)
	GR_NO_TSA
{
	int rc;

	gr_mutex_assert_held(m);
	note_released(&m->rank);
	set_owner(m, NULL);
	rc = pthread_cond_timedwait(cond, &m->m, until);
	must(rc == ETIMEDOUT ? 0 : rc, "wait");
	note_held(&m->rank);
	set_owner(m, this_thread());
	return rc == 0;
}

void gr_mutex_lock_peer(struct gr_mutex *m) GR_NO_TSA
{
	check_order(&m->rank, true);
	must(pthread_mutex_lock(&m->m), "lock");
	note_held(&m->rank);
	set_owner(m, this_thread());
}

void gr_mutex_unlock(struct gr_mutex *m) GR_NO_TSA
{
	set_owner(m, NULL);
	note_released(&m->rank);
	must(pthread_mutex_unlock(&m->m), "unlock");
}

bool gr_mutex_trylock(struct gr_mutex *m) GR_NO_TSA
{
	int ret = pthread_mutex_trylock(&m->m);

	if (ret == EBUSY) {
		return false;
	}
	must(ret, "trylock");
	note_held(&m->rank);
	set_owner(m, this_thread());
	return true;
}

void gr_mutex_assert_held(const struct gr_mutex *m) GR_NO_TSA
{
#ifdef GR_DEBUG_CHECKS
	if (gr_load_relaxed(&m->owner) != this_thread()) {
		gr_die("mutex of rank %d should be held here and is not", (int)m->rank);
	}
#else
	(void)m;
#endif
}

/* ---- that know their owner ---------------------------------------------------------------- */

enum { SPINS = 100 };
#define WAITED_FOR 0x80000000u

/* Never 0, and the same in a fork child. Comes again after 2^31 threads. */
static uint32_t my_number(void)
{
	static uint32_t last;
	static __thread uint32_t number;

	while (number == 0) {
		number = (gr_add_relaxed(&last, 1u) + 1) & ~WAITED_FOR;
	}
	return number;
}

void gr_owned_mutex_init(struct gr_owned_mutex *m, enum gr_lock_rank rank)
{
	m->word = 0;
	m->rank = rank;
}

bool gr_owned_mutex_trylock(struct gr_owned_mutex *m) GR_NO_TSA
{
	uint32_t nobody = 0;

	if (!gr_cas_acq_rel(&m->word, &nobody, my_number())) {
		return false;
	}
	note_held(&m->rank);
	return true;
}

/* Takes it as one that is waited for: it may be, by others than us. */
static void sleep_for(struct gr_owned_mutex *m)
{
	for (;;) {
		uint32_t seen = gr_load_relaxed(&m->word);

		if (seen == 0) {
			if (gr_cas_acq_rel(&m->word, &seen, my_number() | WAITED_FOR)) {
				return;
			}
		} else if ((seen & WAITED_FOR) != 0 ||
			   gr_cas_acq_rel(&m->word, &seen, seen | WAITED_FOR)) {
			(void)gr_futex_wait(&m->word, seen | WAITED_FOR, GR_FUTEX_FOR_EVER);
		}
	}
}

void gr_owned_mutex_lock(struct gr_owned_mutex *m) GR_NO_TSA
{
	check_order(&m->rank, false);
	for (unsigned i = 0; i < SPINS; i++) {
		if (gr_load_relaxed(&m->word) == 0 && gr_owned_mutex_trylock(m)) {
			return;
		}
		gr_cpu_relax();
	}
	sleep_for(m);
	note_held(&m->rank);
}

void gr_owned_mutex_unlock(struct gr_owned_mutex *m) GR_NO_TSA
{
	note_released(&m->rank);
	/* The last touch: who takes it next may free it. A wake needs no more than the address. */
	if ((gr_xchg_acq_rel(&m->word, 0u) & WAITED_FOR) != 0) {
		gr_futex_wake(&m->word, 1);
	}
}

bool gr_owned_mutex_is_mine(const struct gr_owned_mutex *m)
{
	return (gr_load_relaxed(&m->word) & ~WAITED_FOR) == my_number();
}

void gr_owned_mutex_after_fork_in_child(struct gr_owned_mutex *m)
{
	if (!gr_owned_mutex_is_mine(m)) {
		gr_store_relaxed(&m->word, 0u);
	}
}
