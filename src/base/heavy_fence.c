/* SPDX-License-Identifier: MIT */
#include "base/heavy_fence.h"
#include "base/atomic.h"
#include <guestram/event.h>
#include <string.h>

static struct {
	struct gr_once once;
	bool available;	     /* (c) after the once */
	gr_atomic_u64 calls; /* (a) */
} heavy = { .once = GR_ONCE_INIT };

static bool forced_off(void)
{
	const char *s = getenv("GR_FORCE_FENCES");

	return GR_TSAN || (s && strcmp(s, "0") != 0 && *s != '\0');
}

static void decide(void)
{
	heavy.available = !forced_off() && gr_heavy_fence_prepare();
}

/* Before main, while the process has one thread: registration is cheap then. */
__attribute__((constructor)) static void decide_early(void)
{
	gr_once(&heavy.once, decide);
}

bool gr_heavy_fence_available(void)
{
	gr_once(&heavy.once, decide); /* others' constructors may come before ours */
	return heavy.available;
}

void gr_heavy_fence(void)
{
	if (!gr_heavy_fence_available()) {
		gr_fence();
		return;
	}
	gr_heavy_fence_issue();
	(void)gr_add_relaxed(&heavy.calls, 1); /* a counter orders nothing */
}

uint64_t gr_heavy_fence_count(void)
{
	return gr_load_relaxed(&heavy.calls);
}
