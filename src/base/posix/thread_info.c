/* SPDX-License-Identifier: MIT */
/* POSIX has no numbers for threads. */
#include "base/thread_info.h"
#include <stdio.h>

uint32_t gr_thread_id(void)
{
	return 0;
}

void gr_thread_name(uint32_t id, char *name, size_t bytes)
{
	(void)id;
	(void)snprintf(name, bytes, "?");
}
