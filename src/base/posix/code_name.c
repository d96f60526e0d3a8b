/* SPDX-License-Identifier: MIT */
#include "base/thread_info.h"
#include <dlfcn.h>
#include <stdio.h>
#include <string.h>

void gr_code_name(const void *address, char *text, size_t bytes)
{
	const char *file;
	Dl_info info;

	if (dladdr(address, &info) == 0 || !info.dli_fname) {
		(void)snprintf(text, bytes, "%p", address);
		return;
	}
	file = strrchr(info.dli_fname, '/');
	file = file ? file + 1 : info.dli_fname;
	if (info.dli_sname) {
		(void)snprintf(text, bytes, "%s(%s+%#tx)", file, info.dli_sname,
			       (const char *)address - (const char *)info.dli_saddr);
	} else { /* for addr2line -e */
		(void)snprintf(text, bytes, "%s(+%#tx)", file,
			       (const char *)address - (const char *)info.dli_fbase);
	}
}
