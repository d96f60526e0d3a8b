/* SPDX-License-Identifier: MIT */
#include "harness.h"
#include "sockets.h"
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

void test_socket_pair(int fd[2])
{
	ASSERT_EQ(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, fd), 0);
}

void test_socket_pair_at(int number, int fd[2])
{
	test_socket_pair(fd);
	ASSERT_EQ(dup2(fd[0], number), number); /* closes, and opens */
	close(fd[0]);
	fd[0] = number;
}

void test_socket_close(int fd)
{
	if (fd >= 0) {
		ASSERT_EQ(close(fd), 0);
	}
}

bool test_socket_write(int fd)
{
	return write(fd, "x", 1) == 1;
}

bool test_socket_read(int fd)
{
	char c;

	return read(fd, &c, 1) == 1;
}

bool test_is_readable(int fd)
{
	struct pollfd p = { .fd = fd, .events = POLLIN };

	return poll(&p, 1, 0) == 1;
}
