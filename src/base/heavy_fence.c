/* SPDX-License-Identifier: MIT */
#include "base/heavy_fence.h"
#include "base/atomic.h"
#include "base/fork.h"
#include "base/uapi.h"
#include <errno.h>
#include <guestram/event.h>
#include <string.h>
#include <unistd.h>

static struct {
	struct gr_once once;
	bool available; /* (c) after the once */
	uint64_t calls; /* (a) */
} heavy = { .once = GR_ONCE_INIT };

static long membarrier(int cmd)
{
	return syscall(SYS_membarrier, cmd, 0, 0);
}

static bool forced_off(void)
{
	const char *s = getenv("GR_FORCE_FENCES");

	return GR_TSAN || (s && strcmp(s, "0") != 0 && *s != '\0');
}

/* Registration belongs to the address space: the child has a new one. */
static void register_in_child(void)
{
	if (heavy.available && membarrier(GR_MEMBARRIER_CMD_REGISTER_PRIVATE_EXPEDITED) != 0) {
		gr_die("membarrier cannot be registered in a fork child: errno %d", errno);
	}
}

static void decide(void)
{
	int saved_errno = errno;
	long have = forced_off() ? 0 : membarrier(GR_MEMBARRIER_CMD_QUERY);

	/* A filter may let the query pass and refuse the command: try it. */
	heavy.available = have > 0 && (have & GR_MEMBARRIER_CMD_PRIVATE_EXPEDITED) &&
			  membarrier(GR_MEMBARRIER_CMD_REGISTER_PRIVATE_EXPEDITED) == 0 &&
			  membarrier(GR_MEMBARRIER_CMD_PRIVATE_EXPEDITED) == 0;
	if (heavy.available && gr_atfork(NULL, NULL, register_in_child) != 0) {
		heavy.available = false;
	}
	errno = saved_errno;
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
	if (membarrier(GR_MEMBARRIER_CMD_PRIVATE_EXPEDITED) != 0) {
		gr_die("membarrier worked at the start and fails now: errno %d", errno);
	}
	(void)gr_add_relaxed(&heavy.calls, 1); /* a counter orders nothing */
}

uint64_t gr_heavy_fence_count(void)
{
	return gr_load_relaxed(&heavy.calls);
}
