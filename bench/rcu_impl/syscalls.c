/* SPDX-License-Identifier: MIT */
/*
 * Counts system calls: a syscall() of the program stands before the C library's, for all the
 * libraries that are linked to it. What the C library calls itself does not pass here.
 */
#include "bench/rcu_impl/kit.h"
#include <dlfcn.h>
#include <linux/futex.h>
#include <linux/membarrier.h>
#include <stdarg.h>
#include <sys/syscall.h>
#include <unistd.h>

static struct bench_syscalls counts;

static void count(long number, const long *args)
{
	uint64_t *counter = NULL;

	if (number == SYS_membarrier) {
		switch (args[0]) {
		case MEMBARRIER_CMD_GLOBAL:
		case MEMBARRIER_CMD_GLOBAL_EXPEDITED:
		case MEMBARRIER_CMD_PRIVATE_EXPEDITED:
			counter = &counts.barriers;
			break;
		default:
			break;
		}
	} else if (number == SYS_futex) {
		switch (args[1] & FUTEX_CMD_MASK) {
		case FUTEX_WAIT:
		case FUTEX_WAIT_BITSET:
			counter = &counts.waits;
			break;
		case FUTEX_WAKE:
		case FUTEX_WAKE_BITSET:
			counter = &counts.wakes;
			break;
		default:
			break;
		}
	}
	if (counter) {
		__atomic_fetch_add(counter, 1, __ATOMIC_RELAXED);
	}
}

__attribute__((visibility("default"))) long syscall(long number, ...)
{
	static long (*next)(long, ...);
	long (*f)(long, ...) = __atomic_load_n(&next, __ATOMIC_ACQUIRE);
	va_list ap;
	long a[6];

	va_start(ap, number);
	for (int i = 0; i < 6; i++) {
		a[i] = va_arg(ap, long);
	}
	va_end(ap);
	if (!f) {
		f = (long (*)(long, ...))dlsym(RTLD_NEXT, "syscall");
		__atomic_store_n(&next, f, __ATOMIC_RELEASE);
	}
	count(number, a);
	return f(number, a[0], a[1], a[2], a[3], a[4], a[5]);
}

void bench_syscalls_reset(void)
{
	__atomic_store_n(&counts.barriers, 0, __ATOMIC_RELAXED);
	__atomic_store_n(&counts.waits, 0, __ATOMIC_RELAXED);
	__atomic_store_n(&counts.wakes, 0, __ATOMIC_RELAXED);
}

struct bench_syscalls bench_syscalls_get(void)
{
	return (struct bench_syscalls){
		.barriers = __atomic_load_n(&counts.barriers, __ATOMIC_RELAXED),
		.waits = __atomic_load_n(&counts.waits, __ATOMIC_RELAXED),
		.wakes = __atomic_load_n(&counts.wakes, __ATOMIC_RELAXED),
	};
}
