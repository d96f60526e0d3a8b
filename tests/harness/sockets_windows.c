/* SPDX-License-Identifier: MIT */
/* No socketpair(): a connection over the machine's own network. A SOCKET fits an int. */
#include <winsock2.h>

#include "harness.h"
#include "sockets.h"

static SOCKET tcp_socket(void)
{
	SOCKET s = socket(AF_INET, SOCK_STREAM, IPPROTO_TCP);

	ASSERT(s != INVALID_SOCKET);
	return s;
}

static void prepare(SOCKET s)
{
	u_long nonblocking = 1;
	int nodelay = 1;

	ASSERT_EQ(ioctlsocket(s, (long)FIONBIO, &nonblocking), 0);
	ASSERT_EQ(setsockopt(s, IPPROTO_TCP, TCP_NODELAY, (const char *)&nodelay, sizeof(nodelay)),
		  0);
}

/* fd[0] is this one from now on. */
static void join_pair(SOCKET a, int fd[2])
{
	struct sockaddr_in here = { .sin_family = AF_INET };
	SOCKET listener = tcp_socket(), b;
	int bytes = sizeof(here);

	here.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
	ASSERT_EQ(bind(listener, (struct sockaddr *)&here, bytes), 0);
	ASSERT_EQ(listen(listener, 1), 0);
	ASSERT_EQ(getsockname(listener, (struct sockaddr *)&here, &bytes), 0);
	ASSERT_EQ(connect(a, (struct sockaddr *)&here, bytes), 0);
	b = accept(listener, NULL, NULL);
	ASSERT(b != INVALID_SOCKET);
	closesocket(listener);
	prepare(a);
	prepare(b);
	fd[0] = (int)a;
	fd[1] = (int)b;
}

void test_socket_pair(int fd[2])
{
	WSADATA data;

	ASSERT_EQ(WSAStartup(MAKEWORD(2, 2), &data), 0); /* ends with the process */
	join_pair(tcp_socket(), fd);
}

/* Numbers of closed sockets come back soon. */
void test_socket_pair_at(int number, int fd[2])
{
	enum { TRIES = 50 };
	SOCKET s, others[TRIES];
	int tries = 0;

	test_socket_close(number);
	while ((s = tcp_socket()) != (SOCKET)number) {
		if (tries == TRIES) {
			test_skip("the system does not use the number of a closed socket again");
		}
		others[tries++] = s;
	}
	while (tries > 0) {
		closesocket(others[--tries]);
	}
	join_pair(s, fd);
}

void test_socket_close(int fd)
{
	if (fd >= 0) {
		ASSERT_EQ(closesocket((SOCKET)fd), 0);
	}
}

bool test_socket_write(int fd)
{
	return send((SOCKET)fd, "x", 1, 0) == 1;
}

bool test_socket_read(int fd)
{
	char c;

	return recv((SOCKET)fd, &c, 1, 0) == 1;
}

bool test_is_readable(int fd)
{
	struct pollfd p = { .fd = (SOCKET)fd, .events = POLLIN };

	return WSAPoll(&p, 1, 0) == 1;
}
