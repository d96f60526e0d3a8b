/* SPDX-License-Identifier: MIT */
#include "base/mutex.h"
#include "base/atomic.h"
#include <errno.h>

#ifdef GR_DEBUG_CHECKS
enum { HELD_MAX = 1024 };

/* (o) What this thread holds, in the order it was taken. */
static __thread struct {
	unsigned n;
	const struct gr_mutex *m[HELD_MAX];
} held;

static void check_order(const struct gr_mutex *m, bool peer)
{
	for (unsigned i = 0; i < held.n; i++) {
		const struct gr_mutex *h = held.m[i];

		if (h == m) {
			gr_die("mutex of rank %d is taken twice by one thread", (int)m->rank);
		}
		if (h->rank > m->rank || (h->rank == m->rank && !peer)) {
			gr_die("mutex of rank %d is taken while one of rank %d is held",
			       (int)m->rank, (int)h->rank);
		}
	}
}

static void note_held(struct gr_mutex *m)
{
	GR_ASSERT(held.n < HELD_MAX);
	held.m[held.n++] = m;
	gr_store_relaxed(&m->owner, (const void *)&held);
}

static void note_released(struct gr_mutex *m)
{
	unsigned i = held.n;

	while (i > 0 && held.m[i - 1] != m) {
		i--;
	}
	if (i == 0) {
		gr_die("mutex of rank %d is released by a thread that does not hold it",
		       (int)m->rank);
	}
	for (; i < held.n; i++) {
		held.m[i - 1] = held.m[i];
	}
	held.n--;
	gr_store_relaxed(&m->owner, NULL);
}
#else
static void check_order(const struct gr_mutex *m, bool peer)
{
	(void)m;
	(void)peer;
}

static void note_held(struct gr_mutex *m)
{
	(void)m;
}

static void note_released(struct gr_mutex *m)
{
	(void)m;
}
#endif

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
	check_order(m, false);
	must(pthread_mutex_lock(&m->m), "lock");
	note_held(m);
}

void gr_mutex_lock_peer(struct gr_mutex *m) GR_NO_TSA
{
	check_order(m, true);
	must(pthread_mutex_lock(&m->m), "lock");
	note_held(m);
}

void gr_mutex_unlock(struct gr_mutex *m) GR_NO_TSA
{
	note_released(m);
	must(pthread_mutex_unlock(&m->m), "unlock");
}

bool gr_mutex_trylock(struct gr_mutex *m) GR_NO_TSA
{
	int ret = pthread_mutex_trylock(&m->m);

	if (ret == EBUSY) {
		return false;
	}
	must(ret, "trylock");
	note_held(m);
	return true;
}

void gr_mutex_assert_held(const struct gr_mutex *m) GR_NO_TSA
{
#ifdef GR_DEBUG_CHECKS
	if (gr_load_relaxed(&m->owner) != (const void *)&held) {
		gr_die("mutex of rank %d should be held here and is not", (int)m->rank);
	}
#else
	(void)m;
#endif
}
