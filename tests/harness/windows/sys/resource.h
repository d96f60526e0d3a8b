/* SPDX-License-Identifier: MIT */
/* No limits, no priorities: asking fails. */
#ifndef HARNESS_SYS_RESOURCE_H
#define HARNESS_SYS_RESOURCE_H

#include "posix.h"

typedef uint64_t rlim_t;
struct rlimit {
	rlim_t rlim_cur, rlim_max;
};
#define RLIMIT_NPROC  6
#define RLIMIT_AS     9
#define RLIM_INFINITY UINT64_MAX
#define PRIO_PROCESS  0

static inline int getrlimit(int what, struct rlimit *limit)
{
	(void)what;
	(void)limit;
	NOT_HERE("resource limit");
}
static inline int setrlimit(int what, const struct rlimit *limit)
{
	(void)what;
	(void)limit;
	NOT_HERE("resource limit");
}
static inline int setpriority(int which, int who, int value)
{
	(void)which;
	(void)who;
	(void)value;
	return -1;
}

#endif
