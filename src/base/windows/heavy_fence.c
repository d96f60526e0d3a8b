/* SPDX-License-Identifier: MIT */
/*
 * FlushProcessWriteBuffers(): an interrupt to each processor that runs a thread of this process.
 *
 * Not under Wine, which offers the function and, up to version 8, does nothing in it: an
 * absent fence can be lived with, one that lies cannot. Wine says its name in ntdll.
 */
#include "base/heavy_fence.h"
#include <windows.h>

static bool under_wine(void)
{
	HMODULE ntdll = GetModuleHandleA("ntdll.dll");

	return ntdll && GetProcAddress(ntdll, "wine_get_version");
}

bool gr_heavy_fence_prepare(void)
{
	return !under_wine();
}

void gr_heavy_fence_issue(void)
{
	FlushProcessWriteBuffers();
}
