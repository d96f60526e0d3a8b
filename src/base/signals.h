/* SPDX-License-Identifier: MIT */
/*
 * Keep signal handlers off the calling thread for a moment: where a handler that runs a
 * read-side section would want the lock that the thread holds or meet a half-made record.
 * Windows has no signals that interrupt a thread, so nothing is needed there.
 */
#ifndef GR_BASE_SIGNALS_H
#define GR_BASE_SIGNALS_H

#ifdef _WIN32

struct gr_signals {
	char unused;
};

static inline void gr_signals_block(struct gr_signals *saved)
{
	saved->unused = 0;
}

static inline void gr_signals_restore(const struct gr_signals *saved)
{
	(void)saved;
}

#else

#	include <pthread.h>
#	include <signal.h>
#	include <stddef.h>

struct gr_signals {
	sigset_t mask;
};

static inline void gr_signals_block(struct gr_signals *saved)
{
	sigset_t all;

	sigfillset(&all);
	pthread_sigmask(SIG_BLOCK, &all, &saved->mask);
}

static inline void gr_signals_restore(const struct gr_signals *saved)
{
	pthread_sigmask(SIG_SETMASK, &saved->mask, NULL);
}

#endif
#endif
