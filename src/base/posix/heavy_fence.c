/* SPDX-License-Identifier: MIT */
/* POSIX has no process-wide fence. (Changing page protections is none: not on ARM64.) */
#include "base/heavy_fence.h"

bool gr_heavy_fence_prepare(void)
{
	return false;
}

void gr_heavy_fence_issue(void)
{
	gr_die("a process-wide fence was asked for where there is none");
}
