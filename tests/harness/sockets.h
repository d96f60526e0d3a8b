/* SPDX-License-Identifier: MIT */
/* Connections for tests of the loop: sockets_posix.c, sockets_windows.c. */
#ifndef SOCKETS_H
#define SOCKETS_H

#include <stdbool.h>

/* Both ends of a connection; they never block. */
void test_socket_pair(int fd[2]);
/* The same, when `number` has been closed and is fd[0]'s. */
void test_socket_pair_at(int number, int fd[2]);
/* -1: does nothing. */
void test_socket_close(int fd);
/* One byte. Were there room for it, or one to read? */
bool test_socket_write(int fd);
bool test_socket_read(int fd);
/* Now, of any descriptor that can be waited for. */
bool test_is_readable(int fd);

#endif
