/* SPDX-License-Identifier: MIT */
/*
 * Static tracepoints (USDT): places that gdb, perf, bpftrace and SystemTap find by name, provider
 * "guestram". Each is one nop where it stands and a note in the file; without <sys/sdt.h> at
 * build time it is nothing. docs/rcu.md lists them with their arguments.
 *
 * None on the fast paths of readers and callers. Arguments must be at hand anyway.
 */
#ifndef GR_RCU_TRACE_H
#define GR_RCU_TRACE_H

#ifdef GR_HAVE_SDT
#	include <sys/sdt.h>
#	define GR_TRACE2(name, a, b)	 DTRACE_PROBE2(guestram, name, a, b)
#	define GR_TRACE3(name, a, b, c) DTRACE_PROBE3(guestram, name, a, b, c)
#else
#	define GR_TRACE2(name, a, b)	 ((void)0)
#	define GR_TRACE3(name, a, b, c) ((void)0)
#endif

#endif
