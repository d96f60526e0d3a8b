/* SPDX-License-Identifier: MIT */
#include "base/thread_info.h"
#include <stdio.h>
#include <windows.h>

uint32_t gr_thread_id(void)
{
	return (uint32_t)GetCurrentThreadId();
}

void gr_thread_name(uint32_t id, char *name, size_t bytes)
{
	(void)id;
	(void)snprintf(name, bytes, "?");
}

void gr_code_name(const void *address, char *text, size_t bytes)
{
	(void)snprintf(text, bytes, "%p", address);
}
