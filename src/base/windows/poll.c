/* SPDX-License-Identifier: MIT */
#include "base/poll.h"
#include <errno.h>
#include <stdbool.h>

/* Files, pipes and consoles are no sockets, and not told from what is not open. */
int gr_poll_check(int fd)
{
	int type, bytes = sizeof(type);

	return getsockopt((SOCKET)fd, SOL_SOCKET, SO_TYPE, (char *)&type, &bytes) == 0 ? 0 : -EBADF;
}

/* One that is closed while WSAPoll() begins fails the call; poll(2) reports that one alone. */
static int find_closed(struct pollfd *fds, size_t n)
{
	int found = 0;

	for (size_t i = 0; i < n; i++) {
		bool is_open = gr_poll_check((int)fds[i].fd) == 0;

		fds[i].revents = is_open ? 0 : POLLNVAL;
		found += !is_open;
	}
	return found;
}

int gr_poll(struct pollfd *fds, size_t n, int timeout_ms)
{
	int found = WSAPoll(fds, (ULONG)n, timeout_ms);

	if (found >= 0) {
		return found;
	}
	switch (WSAGetLastError()) {
	case WSAENOTSOCK:
		return find_closed(fds, n);
	case WSAENOBUFS:
		return -ENOMEM;
	default:
		return -EIO;
	}
}
