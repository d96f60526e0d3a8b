/* SPDX-License-Identifier: MIT */
/* What the kernel says about a mapping of this process. */
#ifndef SMAPS_H
#define SMAPS_H

#include "harness.h"
#include <stdio.h>

/* The value of a line of /proc/self/smaps for the mapping at host, "VmFlags:" for example; "" if
 * there is none. */
static inline const char *smaps(const void *host, const char *key)
{
	static char line[512];
	FILE *f = fopen("/proc/self/smaps", "re");
	unsigned long long start, end;
	bool there = false;

	ASSERT(f);
	while (fgets(line, sizeof(line), f)) {
		if (sscanf(line, "%llx-%llx ", &start, &end) == 2) {
			there = (uintptr_t)host >= start && (uintptr_t)host < end;
		} else if (there && strncmp(line, key, strlen(key)) == 0) {
			fclose(f);
			return line + strlen(key);
		}
	}
	fclose(f);
	return "";
}

#endif
