/* SPDX-License-Identifier: MIT */
/*
 * A descriptor that some make readable and one waits for: an eventfd, a pipe, or on Windows a
 * socket. gr_notifier adds the word that says whether it has been rung.
 */
#ifndef GR_BASE_WAKE_FD_H
#define GR_BASE_WAKE_FD_H

#include <stdbool.h>

/* fd: to wait for; write_fd: to ring with, perhaps the same. 0 or a negative errno. */
int gr_wake_fd_open(int *ret_fd, int *ret_write_fd);
void gr_wake_fd_close(int fd, int write_fd);
/* Makes it readable. Any thread, also a signal handler; never sleeps, keeps errno. */
void gr_wake_fd_ring(int write_fd);
/* Empties it. Was it readable? */
bool gr_wake_fd_silence(int fd);

#endif
