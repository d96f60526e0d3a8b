/* SPDX-License-Identifier: MIT */
/* membarrier(2), the private expedited command. */
#include "base/heavy_fence.h"
#include "base/fork.h"
#include "base/uapi.h"
#include <errno.h>
#include <unistd.h>

static long membarrier(int cmd)
{
	return syscall(SYS_membarrier, cmd, 0, 0);
}

/* Registration belongs to the address space: the child has a new one. */
static void register_in_child(void)
{
	if (membarrier(GR_MEMBARRIER_CMD_REGISTER_PRIVATE_EXPEDITED) != 0) {
		gr_die("membarrier cannot be registered in a fork child: errno %d", errno);
	}
}

bool gr_heavy_fence_prepare(void)
{
	int saved_errno = errno;
	long have = membarrier(GR_MEMBARRIER_CMD_QUERY);
	bool works;

	/* A filter may let the query pass and refuse the command: try it. */
	works = have > 0 && (have & GR_MEMBARRIER_CMD_PRIVATE_EXPEDITED) &&
		membarrier(GR_MEMBARRIER_CMD_REGISTER_PRIVATE_EXPEDITED) == 0 &&
#ifdef GR_MUTANT_HEAVY_FENCE_TRUSTS_QUERY
		true;
#else
		membarrier(GR_MEMBARRIER_CMD_PRIVATE_EXPEDITED) == 0;
#endif
	if (works && gr_atfork(NULL, NULL, register_in_child) != 0) {
		works = false; /* a child could not be registered: do without */
	}
	errno = saved_errno;
	return works;
}

void gr_heavy_fence_issue(void)
{
#ifdef GR_MUTANT_HEAVY_FENCE_IS_GLOBAL
	if (membarrier(1) != 0) { /* MEMBARRIER_CMD_GLOBAL */
#else
	if (membarrier(GR_MEMBARRIER_CMD_PRIVATE_EXPEDITED) != 0) {
#endif
		gr_die("membarrier worked at the start and fails now: errno %d", errno);
	}
}
