/* SPDX-License-Identifier: MIT */
/*
 * Included before everything in test programs for Windows: what they use of POSIX. What cannot be
 * had there skips the test that asks for it, naming itself.
 */
#ifndef HARNESS_POSIX_H
#define HARNESS_POSIX_H

#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/types.h>
#include <time.h>
#include <unistd.h>

void test_not_here(const char *what) __attribute__((noreturn)); /* skips */
#define NOT_HERE(what) test_not_here(what)

static inline unsigned int getuid(void)
{
	return 1;
}

static inline int setuid(unsigned int uid)
{
	return uid == 1 ? 0 : -1;
}

static inline int pipe(int fds[2])
{
	(void)fds;
	NOT_HERE("pipe with an fd to poll");
}

#define F_DUPFD 0
static inline int fcntl(int fd, int command, int number)
{
	(void)fd;
	(void)command;
	(void)number;
	NOT_HERE("fcntl()");
}

static inline int setenv(const char *name, const char *value, int replace)
{
	(void)replace;
	return _putenv_s(name, value);
}

static inline pid_t no_fork(void)
{
	NOT_HERE("fork()");
}
#define fork() no_fork()

/* Signals that interrupt a thread. */
typedef uint64_t sigset_t;
struct sigaction {
	void (*sa_handler)(int);
	sigset_t sa_mask;
	int sa_flags;
};
#define SA_RESTART 0
#define SA_ONSTACK 0
#ifndef SIGALRM
#	define SIGALRM 14
#endif
#ifndef SIGUSR1
#	define SIGUSR1 10
#endif
static inline int sigaction(int sig, const struct sigaction *act, struct sigaction *old)
{
	(void)sig;
	(void)act;
	(void)old;
	NOT_HERE("signal that interrupts a thread");
}

struct itimerval {
	struct {
		long tv_sec, tv_usec;
	} it_interval, it_value;
};
#define ITIMER_REAL 0
static inline int setitimer(int which, const struct itimerval *value, struct itimerval *old)
{
	(void)which;
	(void)value;
	(void)old;
	NOT_HERE("interval timer");
}

/* Threads stay where the system puts them. */
typedef uint64_t cpu_set_t;
#define CPU_SETSIZE	    64
#define CPU_ZERO(set)	    (*(set) = 0)
#define CPU_SET(cpu, set)   (*(set) |= (uint64_t)1 << (cpu))
#define CPU_ISSET(cpu, set) ((*(set) >> (cpu)&1) != 0)
#define CPU_COUNT(set)	    __builtin_popcountll(*(set))
static inline int sched_getaffinity(pid_t pid, size_t bytes, cpu_set_t *set)
{
	(void)pid;
	(void)bytes;
	*set = 3;
	return 0;
}
static inline int sched_setaffinity(pid_t pid, size_t bytes, const cpu_set_t *set)
{
	(void)pid;
	(void)bytes;
	(void)set;
	return 0;
}
#define pthread_setaffinity_np(thread, bytes, set) sched_setaffinity(0, bytes, set)

#define _SC_PAGESIZE	     1
#define _SC_NPROCESSORS_ONLN 2
long sysconf(int name);

#define M_PERTURB 0
static inline int mallopt(int what, int value)
{
	(void)what;
	(void)value;
	return 0;
}

#endif
