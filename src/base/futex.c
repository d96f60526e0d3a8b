/* SPDX-License-Identifier: MIT */
#include "base/futex.h"
#include "base/clock.h"
#include <errno.h>
#include <linux/futex.h>
#include <sys/syscall.h>
#include <unistd.h>

int gr_futex_wait(uint32_t *word, uint32_t expected, uint64_t timeout_ns)
{
	struct timespec ts = gr_timespec_from_ns(timeout_ns);
	int saved_errno = errno;
	int ret = 0;

	if (syscall(SYS_futex, word, FUTEX_WAIT_PRIVATE, expected,
		    timeout_ns == GR_FUTEX_FOR_EVER ? NULL : &ts, NULL, 0) != 0) {
		ret = -errno;
		if (ret != -EAGAIN && ret != -EINTR && ret != -ETIMEDOUT) {
			gr_die("futex wait: errno %d", errno);
		}
	}
	errno = saved_errno; /* read-side code runs in signal handlers */
	return ret;
}

int gr_futex_wake(uint32_t *word, int n)
{
	int saved_errno = errno;
	/* May fail with EFAULT when the word's owner has gone: nobody is left to wake. */
	long woken = syscall(SYS_futex, word, FUTEX_WAKE_PRIVATE, n, NULL, NULL, 0);

	errno = saved_errno;
	return woken < 0 ? 0 : (int)woken;
}
