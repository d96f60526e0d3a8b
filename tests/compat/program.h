/* SPDX-License-Identifier: MIT */
/*
 * What the programs of this folder have in common: how they were told to include RCU, and
 * threads that can be stopped at a place. They are C and C++, and see public headers only.
 */
#ifndef COMPAT_PROGRAM_H
#define COMPAT_PROGRAM_H

#ifndef COMPAT_FIRST
#	define COMPAT_FIRST <guestram/urcu.h>
#endif
#include COMPAT_FIRST
#ifdef COMPAT_THEN
#	include COMPAT_THEN
#endif

#ifdef COMPAT_FLAVOR
/* The maps of liburcu before 0.14 lack these two. */
#	define COMPAT_PASTE_(f, name) urcu_##f##_##name
#	define COMPAT_PASTE(f, name)  COMPAT_PASTE_(f, name)
#	ifndef start_poll_synchronize_rcu
#		define start_poll_synchronize_rcu() \
			COMPAT_PASTE(COMPAT_FLAVOR, start_poll_synchronize_rcu)()
#		define poll_state_synchronize_rcu(s) \
			COMPAT_PASTE(COMPAT_FLAVOR, poll_state_synchronize_rcu)(s)
#	endif
#endif

#ifdef __cplusplus
extern "C" {
#endif
#include "harness.h"
#ifdef __cplusplus
}
#endif
#include <errno.h>
#include <pthread.h>
#include <semaphore.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

#define NEW(type) ((type *)calloc(1, sizeof(type)))

static inline pthread_t start(void *(*fn)(void *), void *arg)
{
	pthread_t t;
	int ret = pthread_create(&t, NULL, fn, arg);

	ASSERT_EQ(ret, 0);
	return t;
}

static inline void join(pthread_t t)
{
	int ret = pthread_join(t, NULL);

	ASSERT_EQ(ret, 0);
}

/* A door that one side opens and the other goes through. */
static inline void await(sem_t *sem)
{
	while (sem_wait(sem) != 0) {
	}
}

/* Long enough for what must not happen to happen, if it can. */
static inline void a_while(void)
{
	struct timespec ts = { 0, 20000000 };

	(void)nanosleep(&ts, NULL);
}

static inline unsigned long peek(const unsigned long *p)
{
	return __atomic_load_n(p, __ATOMIC_ACQUIRE);
}

static inline void count(unsigned long *p)
{
	(void)__atomic_fetch_add(p, 1UL, __ATOMIC_ACQ_REL);
}

static inline void await_count(const unsigned long *p, unsigned long n)
{
	while (peek(p) < n) {
		(void)usleep(100);
	}
}

#endif
