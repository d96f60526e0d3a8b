/* SPDX-License-Identifier: MIT */
/*
 * poll(2), or WSAPoll() on Windows, whose descriptors are sockets: the handles of that system have
 * 32 significant bits, also in 64-bit programs, so that an int holds one.
 */
#ifndef GR_BASE_POLL_H
#define GR_BASE_POLL_H

#ifdef GR_PLATFORM_WINDOWS
#	include <winsock2.h> /* before all others, which may include windows.h */
#else
#	include <poll.h>
#endif
#include <stddef.h>

#ifdef GR_PLATFORM_WINDOWS
static inline struct pollfd gr_pollfd(int fd, short events)
{
	return (struct pollfd){ .fd = (SOCKET)fd, .events = events };
}
#else
static inline struct pollfd gr_pollfd(int fd, short events)
{
	return (struct pollfd){ .fd = fd, .events = events };
}
#endif

/* -1 ms: for ever. How many have events, 0 also after a signal; or a negative errno. */
int gr_poll(struct pollfd *fds, size_t n, int timeout_ms);
/* Whether it can be waited for: 0, -EBADF not open, -EPERM a file that is always ready. */
int gr_poll_check(int fd);

#endif
