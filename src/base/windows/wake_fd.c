/* SPDX-License-Identifier: MIT */
/*
 * A datagram socket that is connected to itself: it hears nobody else, and what it sends is there
 * to be read. WSAPoll() takes sockets only. Datagrams may be dropped when many are unread,
 * which means readable: as good.
 */
#include <winsock2.h> /* before all others, which may include windows.h */

#include "base/wake_fd.h"
#include <errno.h>

static int last_error(void)
{
	switch (WSAGetLastError()) {
	case WSAEMFILE:
		return -EMFILE;
	case WSAENOBUFS:
	case WSA_NOT_ENOUGH_MEMORY:
		return -ENOMEM;
	default:
		return -EIO; /* no network at all, or one that refuses its own machine */
	}
}

static int connect_to_itself(SOCKET s)
{
	struct sockaddr_in here = { .sin_family = AF_INET };
	int bytes = sizeof(here), exclusive = 1;
	u_long nonblocking = 1;

	here.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
	if (setsockopt(s, SOL_SOCKET, SO_EXCLUSIVEADDRUSE, (const char *)&exclusive,
		       sizeof(exclusive)) != 0 ||
	    bind(s, (const struct sockaddr *)&here, bytes) != 0 ||
	    getsockname(s, (struct sockaddr *)&here, &bytes) != 0 ||
	    connect(s, (const struct sockaddr *)&here, bytes) != 0 ||
	    ioctlsocket(s, (long)FIONBIO, &nonblocking) != 0) {
		return last_error();
	}
	return 0;
}

int gr_wake_fd_open(int *ret_fd, int *ret_write_fd)
{
	WSADATA data;
	SOCKET s;
	int rc;

	if (WSAStartup(MAKEWORD(2, 2), &data) != 0) { /* counted; ends in gr_wake_fd_close() */
		return -EIO;
	}
	s = WSASocketW(AF_INET, SOCK_DGRAM, IPPROTO_UDP, NULL, 0,
		       WSA_FLAG_OVERLAPPED | WSA_FLAG_NO_HANDLE_INHERIT);
	rc = s == INVALID_SOCKET ? last_error() : connect_to_itself(s);
	if (rc < 0) {
		(void)closesocket(s); /* of no socket: fails */
		(void)WSACleanup();
		return rc;
	}
	*ret_fd = *ret_write_fd = (int)s;
	return 0;
}

void gr_wake_fd_close(int fd, int write_fd)
{
	(void)write_fd;
	(void)closesocket((SOCKET)fd);
	(void)WSACleanup();
}

void gr_wake_fd_ring(int write_fd)
{
	(void)send((SOCKET)write_fd, "", 1, 0);
}

bool gr_wake_fd_silence(int fd)
{
	bool rung = false;
	char byte;

	while (recv((SOCKET)fd, &byte, 1, 0) == 1) {
		rung = true;
	}
	return rung;
}
