/* SPDX-License-Identifier: MIT */
/*
 * rcutorture: everything that RCU offers, at once, for as long as one likes.
 *
 * The age histogram is McKenney's: an object has age 0 while it is published, 1 once it
 * is replaced, and one more after each grace period since. A section may see ages 0 and
 * 1, never 2.
 *
 *   rcutorture.c           who runs, when they pause, forks, figures
 *   rcutorture_readers.c   readers of every kind, and in signal handlers
 *   rcutorture_updaters.c  updaters in every way, and those who only disturb
 */
#ifndef RCUTORTURE_H
#define RCUTORTURE_H

#include "rcu_kit.h"

/* Slots with an object each. The last ones are read and updated in a domain of their own. */
enum { SLOTS = 6, FIRST_OF_OTHER = 4, AGES = 11 };

struct thing {
	uint32_t age; /* (a) */
	uint64_t a;   /* plain on purpose: ThreadSanitizer checks the grace period too */
	uint64_t not_a;
	struct gr_rcu_head head;
};

enum reader_kind { ORDINARY, EXPLICIT, QUIESCENT, IN_DOMAIN, EXPLICIT_IN_DOMAIN, READER_KINDS };
enum update_way { SYNCHRONIZE, EXPEDITED, CONDITIONAL, POLLED, CALL, UPDATE_WAYS };
enum disturber { FAKE_WRITER, POLLER, FLOOD, QUIET_TIMES, DISTURBERS };

extern struct torture {
	struct thing *slot[SLOTS];
	struct gr_rcu_domain *other;	   /* of the last slots */
	struct gr_rcu_queue *locked;	   /* with a lock, in the default domain */
	struct gr_rcu_queue *others_queue; /* in the other */
	bool stop_readers, stop_updaters, pause;
	uint64_t ages[AGES], torn;
	uint64_t sections[READER_KINDS], in_handlers, reader_lives;
	uint64_t updates[UPDATE_WAYS], disturbed[DISTURBERS];
	uint64_t cookie_errors; /* a cookie that was passed and is no more, or in the wrong order */
	uint32_t calls_open;
} torture;

static inline bool is_of_other(int slot)
{
	return slot >= FIRST_OF_OTHER;
}

/* One thread: readers of random kinds, each on a new thread, one after the other. */
void *reader_keeper(void *arg);
/* Sections in handlers of SIGALRM, on readers' threads. */
void start_handlers(void);
void stop_handlers(void);

/* One thread for each slot. */
void *updater(void *slot);
/* One thread of each kind. */
void *disturb(void *kind);
void lock_callbacks(void *mutex);
void unlock_callbacks(void *mutex);

#endif
