/* SPDX-License-Identifier: MIT */
/*
 * Have something done when a thread ends, however it was made and however it ends: a key of
 * thread-specific data on POSIX, a key and what the system calls on Windows (all know foreign threads).
 * Nothing is called for threads that are alive when the process exits.
 */
#ifndef GR_BASE_THREAD_EXIT_H
#define GR_BASE_THREAD_EXIT_H

#ifdef _WIN32
struct gr_thread_exit {
	unsigned int index;
};
#else
#	include <pthread.h>
struct gr_thread_exit {
	pthread_key_t key;
};
#endif

/* Once per process and hook. fn runs on the ending thread. 0 or a negative errno. */
int gr_thread_exit_init(struct gr_thread_exit *hook, void (*fn)(void *arg));

/* fn(arg) when the calling thread ends; NULL takes that back. 0 or a negative errno. */
int gr_thread_exit_set(struct gr_thread_exit *hook, void *arg);

#endif
