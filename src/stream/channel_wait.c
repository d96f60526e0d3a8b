/* SPDX-License-Identifier: MIT */
/*
 * Waiting. Descriptors are used without blocking and waited for with poll(2) on two of them,
 * the second an eventfd that gr_channel_shutdown() makes readable: so a sleeping read or
 * write of any kind can be cancelled, not only one of a socket.
 */
#include "stream/channel.h"
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

int gr_channel_wait_init(struct gr_channel *ch)
{
	ch->wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	return ch->wake_fd < 0 ? -errno : 0;
}

int gr_channel_wait_fini(struct gr_channel *ch)
{
	int code = 0;

	if (ch->fd >= 0) {
		if (ch->restore_blocking) {
			int flags = fcntl(ch->fd, F_GETFL);

			(void)fcntl(ch->fd, F_SETFL, flags & ~O_NONBLOCK);
		}
		code = close(ch->fd) == 0 ? 0 : -errno;
	}
	close(ch->wake_fd);
	return code;
}

int gr_channel_poll(int fd, short events, int wake_fd, int timeout_ms)
{
	struct pollfd p[2] = { { fd, events, 0 }, { wake_fd, POLLIN, 0 } };

	for (;;) {
		int n = poll(p, 2, timeout_ms);

		if (n < 0 && errno == EINTR) {
			continue;
		}
		if (n < 0) {
			return -errno;
		}
		if (n == 0) {
			return -ETIMEDOUT;
		}
		return p[1].revents ? -ECANCELED : 0;
	}
}

int gr_channel_wait(struct gr_channel *ch, bool writing)
{
	return gr_channel_poll(ch->fd, writing ? POLLOUT : POLLIN, ch->wake_fd, -1);
}

bool gr_channel_is_readable(struct gr_channel *ch, int timeout_ms)
{
	return ch->fd >= 0 && gr_channel_poll(ch->fd, POLLIN, ch->wake_fd, timeout_ms) != -ETIMEDOUT;
}

void gr_channel_wait_end(struct gr_channel *ch)
{
	uint64_t one = 1;
	int saved = errno;

	(void)!write(ch->wake_fd, &one, sizeof(one));
	errno = saved;
}

void gr_channel_wait_cancel(struct gr_channel *ch)
{
	int saved = errno;

	gr_channel_wait_end(ch);
	if (ch->is_socket) {
		(void)shutdown(ch->fd, SHUT_RDWR);
	}
	errno = saved;
}

void gr_channel_end_writing(struct gr_channel *ch)
{
	if (ch->is_socket) {
		(void)shutdown(ch->fd, SHUT_WR);
	}
}

void gr_channel_end_reading(struct gr_channel *ch)
{
	if (ch->is_socket) {
		(void)shutdown(ch->fd, SHUT_RD);
	} else {
		gr_channel_shutdown(ch);
	}
}
