/* SPDX-License-Identifier: MIT */
/*
 * Write faults handed to user space (synchronous userfaultfd write protection): the descriptor,
 * the thread that reads faults, and the calls that protect, open and wake. What a fault means is
 * its users' business: the tracker uffd-sync marks the page, a copy before write saves it.
 *
 * The one rule for users, from which it follows that no writer sleeps for ever: after fault() has
 * been told of an address, the page there is opened (gr_uffd_open_range(), which does no harm to
 * one that is open), or it is kept on purpose and opened later. A writer that comes to its sleep
 * after the page was opened does not sleep: the kernel looks at the page again behind its place in
 * the queue.
 *
 * A fault may be told of more than once: another thread stored to the same page, a signal handler
 * ran in between, or the page was opened meanwhile.
 *
 * fault() runs while writers sleep, perhaps within a read-side section and with locks of their own.
 * So it waits for no grace period, takes no lock that is held over a store to guest memory, and
 * stores to no memory that is served. A lock of its own is taken by gr_uffd_lock(), wherever that
 * is.
 *
 * A fork's child has neither the thread nor a say: what it does with the descriptor would be done
 * to its parent's memory. Everything here asks gr_uffd_server_ours() or is called by who has.
 */
#ifndef GR_TRACK_UFFD_SERVER_H
#define GR_TRACK_UFFD_SERVER_H

#include "base/mutex.h"
#include "base/signals.h"
#include <guestram/event.h>
#include <guestram/ram.h>
#include <pthread.h>
#include <unistd.h>

/* Why some writers cannot be served without kernel_faults. */
#define GR_UFFD_USER_FAULTS_WHY                                                                  \
	"without privilege (CAP_SYS_PTRACE, /dev/userfaultfd) only its own stores wait; system " \
	"calls "                                                                                 \
	"and KVM_RUN get EFAULT"

struct gr_uffd_server {
	int uffd;		 /* (c) */
	bool kernel_faults;	 /* (c) system calls and KVM wait too; if not, they get EFAULT */
	bool unpopulated;	 /* (c) pages that are not there can be protected */
	pid_t owner;		 /* (c) the process whose memory it is */
	int stop_fd;		 /* (c) readable: the thread shall end */
	int stop_write_fd;	 /* (c) */
	bool running;		 /* there is a thread; by who starts and stops it */
	pthread_t thread;	 /* as running */
	uint64_t read_ns;	 /* (o) who serves: when the faults being served were read */
	struct gr_event serving; /* it has begun */
	void (*fault)(void *opaque, uint64_t address);
	void *opaque;
};

/* The part of a block that is served: whole units, a unit being what can be protected alone. */
struct gr_uffd_range {
	struct gr_ram_block *block;
	uint64_t start; /* host address */
	uint64_t bytes;
	uint64_t unit;
};

/* Opens and tries it. A negative errno and why it cannot be had here; then nothing is open. */
int gr_uffd_server_open(struct gr_uffd_server *s, void (*fault)(void *opaque, uint64_t address),
			void *opaque, struct gr_error *err);
/*
 * For touches of pages that are not there instead (a machine that starts before its memory has come). Who
 * opens it registers ranges, places pages and wakes by calls of its own.
 */
int gr_uffd_server_open_missing(struct gr_uffd_server *s,
				void (*fault)(void *opaque, uint64_t address), void *opaque,
				struct gr_error *err);
/* After gr_uffd_server_stop() and when no range is registered. */
void gr_uffd_server_close(struct gr_uffd_server *s);
/* Whether this is the process that opened it. */
static inline bool gr_uffd_server_ours(const struct gr_uffd_server *s)
{
	return s->owner == getpid();
}

/*
 * A thread of its own that serves, from the return on; and its end, after which fault() is called
 * no more. Before the first range is armed: whoever arms may be the one who stores there, in a
 * handler.
 */
int gr_uffd_server_run(struct gr_uffd_server *s, struct gr_error *err);
void gr_uffd_server_stop(struct gr_uffd_server *s);
/* Instead of a thread: what has come, at most some dozen faults. How many. Never sleeps. */
unsigned int gr_uffd_server_serve(struct gr_uffd_server *s);

/*
 * The lock that fault() takes, and signals off as long as it is held: a handler that stores to what
 * is served would wait for the thread that it interrupted.
 */
void gr_uffd_lock(struct gr_mutex *lock, struct gr_signals *saved) GR_ACQUIRE(*lock);
void gr_uffd_unlock(struct gr_mutex *lock, const struct gr_signals *saved) GR_RELEASE(*lock);

/* The first `bytes` of a block, rounded up to whole units. */
struct gr_uffd_range gr_uffd_range_of(struct gr_ram_block *block, uint64_t bytes);

/*
 * Registers and protects all of a range. A failure leaves it as it was. And takes all of that back,
 * whereupon everybody who waits there goes on.
 */
int gr_uffd_arm(struct gr_uffd_server *s, const struct gr_uffd_range *r, struct gr_error *err);
void gr_uffd_disarm(struct gr_uffd_server *s, const struct gr_uffd_range *r);

/* Whole units of an armed range. */
int gr_uffd_protect(struct gr_uffd_server *s, const struct gr_uffd_range *r, uint64_t start,
		    uint64_t bytes, struct gr_error *err);
/* Takes protection away and wakes who waits. It can fail only where nothing is registered. */
void gr_uffd_open_range(struct gr_uffd_server *s, uint64_t start, uint64_t bytes);
/* A piece of an armed range may have been mapped anew: registers it again, and keeps it unmerged.
 */
void gr_uffd_register_again(struct gr_uffd_server *s, uint64_t start, uint64_t bytes);

/* Sets of units. */
static inline bool gr_unit_test(const uint64_t *set, uint64_t unit)
{
	return set[unit / 64] >> unit % 64 & 1;
}

static inline void gr_unit_set(uint64_t *set, uint64_t unit)
{
	set[unit / 64] |= UINT64_C(1) << unit % 64;
}

static inline void gr_unit_clear(uint64_t *set, uint64_t unit)
{
	set[unit / 64] &= ~(UINT64_C(1) << unit % 64);
}

/* The first unit from `at` on, below `end`, that is in the set, or not in it; or `end`. */
static inline uint64_t gr_unit_find(const uint64_t *set, uint64_t at, uint64_t end, bool in)
{
	while (at < end) {
		uint64_t word = (in ? set[at / 64] : ~set[at / 64]) >> at % 64;

		if (word != 0) {
			return GR_MIN(at + (uint64_t)__builtin_ctzll(word), end);
		}
		at = at / 64 * 64 + 64;
	}
	return end;
}

#endif
