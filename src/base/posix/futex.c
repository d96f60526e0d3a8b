/* SPDX-License-Identifier: MIT */
/*
 * Sleeping on a word with nothing but POSIX: a table of lists of sleepers, by address. Each
 * sleeper is on its own stack and has a semaphore of its own.
 *
 * Why semaphores: a handler may wake (events are set in handlers), and sem_post() is what POSIX
 * lets a handler call; and a sleeper can be interrupted, which one in a condition variable
 * cannot. A list's lock is held with signals blocked, for a few instructions, so the handler of
 * a thread never finds its own thread holding it.
 *
 * A wake is not lost: the sleeper looks at the word and joins the list under the lock; who wakes
 * has changed the word before taking the lock. A waker posts under the lock, and the sleeper
 * takes the lock once more before it leaves its stack frame: the semaphore outlives the post.
 */
#include "base/futex.h"
#include "base/atomic.h"
#include "base/clock.h"
#include "base/fork.h"
#include "base/signals.h"
#include <errno.h>
#include <sched.h>
#include <semaphore.h>
#include <string.h>

struct sleeper {
	const uint32_t *word;
	struct sleeper *next;
	struct sleeper **pprev; /* NULL: woken, off the list */
	sem_t sem;
};

struct list {
	uint32_t locked; /* (a) */
	struct sleeper *first;
} GR_ALIGNED(GR_CACHE_LINE);

enum { LISTS = 64 };
static struct list lists[LISTS];

static struct list *list_of(const uint32_t *word)
{
	return &lists[((uintptr_t)word >> 2) * 0x9e3779b1u >> 7 & (LISTS - 1)];
}

static void lock(struct list *l, struct gr_signals *saved)
{
	gr_signals_block(saved);
	while (gr_xchg_acq_rel(&l->locked, 1u) != 0) {
		sched_yield();
	}
}

static void unlock(struct list *l, const struct gr_signals *saved)
{
	gr_store_release(&l->locked, 0u); /* pairs with the exchange in lock() */
	gr_signals_restore(saved);
}

/* The child's one thread sleeps nowhere, and nobody else is left to unlock. */
static void forget_in_child(void)
{
	memset(lists, 0, sizeof(lists));
}

__attribute__((constructor)) static void install(void)
{
	int ret = gr_atfork(NULL, NULL, forget_in_child);

	if (ret != 0) {
		gr_die("no fork handlers for waiting: errno %d", -ret);
	}
}

static struct timespec deadline(clockid_t clock, uint64_t timeout_ns)
{
	struct timespec ts;

	clock_gettime(clock, &ts);
	timeout_ns = GR_MIN(timeout_ns, (uint64_t)INT32_MAX * GR_NS_PER_S);
	timeout_ns += (uint64_t)ts.tv_nsec;
	ts.tv_sec += (time_t)(timeout_ns / GR_NS_PER_S);
	ts.tv_nsec = (long)(timeout_ns % GR_NS_PER_S);
	return ts;
}

static int sleep_on(sem_t *sem, uint64_t timeout_ns)
{
	struct timespec ts;

	if (timeout_ns == GR_FUTEX_FOR_EVER) {
		return sem_wait(sem);
	}
#ifdef GR_HAVE_SEM_CLOCKWAIT
	ts = deadline(CLOCK_MONOTONIC, timeout_ns);
	return sem_clockwait(sem, CLOCK_MONOTONIC, &ts);
#else
	/* Somebody may set this clock: callers look again, at worst later than they asked. */
	ts = deadline(CLOCK_REALTIME, timeout_ns);
	return sem_timedwait(sem, &ts);
#endif
}

int gr_futex_wait(uint32_t *word, uint32_t expected, uint64_t timeout_ns)
{
	struct sleeper self = { .word = word };
	struct list *l = list_of(word);
	int saved_errno = errno, ret = 0;
	struct gr_signals saved;

	lock(l, &saved);
	/* Acquire: what was written before the change. */
	if (gr_load_acquire(word) != expected) {
		unlock(l, &saved);
		return -EAGAIN;
	}
	if (sem_init(&self.sem, 0, 0) != 0) {
		gr_die("no semaphore to wait with: errno %d", errno);
	}
	self.next = l->first;
	self.pprev = &l->first;
	if (self.next) {
		self.next->pprev = &self.next;
	}
	l->first = &self;
	unlock(l, &saved);

	if (sleep_on(&self.sem, timeout_ns) != 0) {
		ret = -errno; /* EINTR, ETIMEDOUT */
	}

	lock(l, &saved);
	if (self.pprev) {
		*self.pprev = self.next;
		if (self.next) {
			self.next->pprev = self.pprev;
		}
	} else {
		ret = 0; /* a wake that came with the time-out or the signal was not for nothing */
	}
	unlock(l, &saved);
	sem_destroy(&self.sem);
	errno = saved_errno; /* read-side code runs in signal handlers */
	return ret;
}

void gr_futex_wake(uint32_t *word, int n)
{
	struct list *l = list_of(word);
	int saved_errno = errno;
	struct gr_signals saved;
	struct sleeper *s, *next;

	lock(l, &saved);
	for (s = l->first; s && n > 0; s = next) {
		next = s->next;
		if (s->word == word) {
			*s->pprev = next;
			if (next) {
				next->pprev = s->pprev;
			}
			s->pprev = NULL;
			sem_post(&s->sem);
			n--;
		}
	}
	unlock(l, &saved);
	errno = saved_errno;
}
