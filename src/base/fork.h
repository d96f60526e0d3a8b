/* SPDX-License-Identifier: MIT */
#ifndef GR_BASE_FORK_H
#define GR_BASE_FORK_H

#ifdef _WIN32
/* There is no fork(): nothing is ever called. */
static inline int gr_atfork(void (*before)(void), void (*in_parent)(void), void (*in_child)(void))
{
	(void)before;
	(void)in_parent;
	(void)in_child;
	return 0;
}
#else
#	include <pthread.h>
/* Handlers around fork(), for the life of the process. 0 or a negative errno. */
static inline int gr_atfork(void (*before)(void), void (*in_parent)(void), void (*in_child)(void))
{
	return -pthread_atfork(before, in_parent, in_child);
}
#endif
#endif
