/* SPDX-License-Identifier: MIT */
#include "base/futex.h"
#include "base/clock.h"
#include <errno.h>
#include <linux/futex.h>
#include <sys/syscall.h>
#include <unistd.h>

/*
 * The kernel's idea of a timespec, not libc's: on 32-bit hosts the two differ, and there are
 * two calls. The newer one (Linux 5.1) takes 64-bit seconds; a time-out is relative, so the
 * older one does too, cut to what fits.
 */
static long wait_call(uint32_t *word, uint32_t expected, const uint64_t *timeout_ns)
{
#if __SIZEOF_LONG__ == 4 && defined(SYS_futex_time64)
	static bool no_time64; /* (a) orders nothing: at worst the call is tried once more */
	int64_t wide[2] = { 0, 0 };

	if (!__atomic_load_n(&no_time64, __ATOMIC_RELAXED)) {
		long ret;

		if (timeout_ns) {
			wide[0] = (int64_t)(*timeout_ns / GR_NS_PER_S);
			wide[1] = (int64_t)(*timeout_ns % GR_NS_PER_S);
		}
		ret = syscall(SYS_futex_time64, word, FUTEX_WAIT_PRIVATE, expected,
			      timeout_ns ? wide : NULL, NULL, 0);
		if (ret == 0 || errno != ENOSYS) {
			return ret;
		}
		__atomic_store_n(&no_time64, true, __ATOMIC_RELAXED);
	}
#endif
	long narrow[2] = { 0, 0 };

	if (timeout_ns) {
		narrow[0] = (long)GR_MIN(*timeout_ns / GR_NS_PER_S, (uint64_t)INT32_MAX);
		narrow[1] = (long)(*timeout_ns % GR_NS_PER_S);
	}
	return syscall(SYS_futex, word, FUTEX_WAIT_PRIVATE, expected, timeout_ns ? narrow : NULL,
		       NULL, 0);
}

int gr_futex_wait(uint32_t *word, uint32_t expected, uint64_t timeout_ns)
{
	int saved_errno = errno;
	int ret = 0;

	if (wait_call(word, expected, timeout_ns == GR_FUTEX_FOR_EVER ? NULL : &timeout_ns) != 0) {
		ret = -errno;
		if (ret != -EAGAIN && ret != -EINTR && ret != -ETIMEDOUT) {
			gr_die("futex wait: errno %d", errno);
		}
	}
	errno = saved_errno; /* read-side code runs in signal handlers */
	return ret;
}

void gr_futex_wake(uint32_t *word, int n)
{
	int saved_errno = errno;

	/* May fail with EFAULT when the word's owner has gone: nobody is left to wake. */
	(void)syscall(SYS_futex, word, FUTEX_WAKE_PRIVATE, n, NULL, NULL, 0);
	errno = saved_errno;
}
