/* SPDX-License-Identifier: MIT */
/* Channels over a descriptor that exists: sockets, pipes, files, terminals. */
#include "stream/channel.h"
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/sendfile.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

enum {
	PIPE_BYTES = 1 << 20,	   /* the default of 64 KiB halves the throughput */
	SEND_FILE_BYTES = 1 << 20, /* of a socket that files are sent through */
};

static ssize_t socket_readv(struct gr_channel *ch, const struct iovec *iov, int n)
{
	struct msghdr msg = { .msg_iov = (struct iovec *)(uintptr_t)iov, .msg_iovlen = (size_t)n };
	ssize_t got = recvmsg(ch->fd, &msg, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);

	return got < 0 ? -errno : got;
}

static ssize_t socket_writev(struct gr_channel *ch, const struct iovec *iov, int n)
{
	struct msghdr msg = { .msg_iov = (struct iovec *)(uintptr_t)iov, .msg_iovlen = (size_t)n };
	ssize_t done = sendmsg(ch->fd, &msg, MSG_DONTWAIT | MSG_NOSIGNAL);

	return done < 0 ? -errno : done;
}

static ssize_t plain_readv(struct gr_channel *ch, const struct iovec *iov, int n)
{
	ssize_t got = readv(ch->fd, iov, n);

	return got < 0 ? -errno : got;
}

/*
 * A write to a pipe without reader raises SIGPIPE in the writing thread, and there is no
 * flag against it; nor for sendfile(). So it is blocked in this thread for the time of the call and,
 * if the call raised it (it was not pending before), taken away again before it is unblocked. A call
 * that has moved something before the reader went raises it and returns that much: so whenever
 * less was moved than there was.
 */
struct no_sigpipe {
	sigset_t pipe_set, old;
	bool was_pending;
};

static void no_sigpipe_begin(struct no_sigpipe *n)
{
	sigset_t pending;

	(void)sigemptyset(&n->pipe_set);
	(void)sigaddset(&n->pipe_set, SIGPIPE);
	(void)sigpending(&pending);
	n->was_pending = sigismember(&pending, SIGPIPE) == 1;
	(void)pthread_sigmask(SIG_BLOCK, &n->pipe_set, &n->old);
}

/* Returns what the call has returned, an error as a negative errno. */
static ssize_t no_sigpipe_end(const struct no_sigpipe *n, ssize_t done, size_t bytes)
{
	struct timespec now = { 0, 0 };

	if (done < 0) {
		done = -errno;
	}
#ifdef GR_MUTANT_CHANNEL_SIGPIPE_OF_A_PART
	if (done == -EPIPE && !n->was_pending) {
#else
	if (done < (ssize_t)bytes && !n->was_pending) {
#endif
		while (sigtimedwait(&n->pipe_set, NULL, &now) < 0 && errno == EINTR) {
		}
	}
	(void)pthread_sigmask(SIG_SETMASK, &n->old, NULL);
	return done;
}

ssize_t gr_channel_pipe_writev(int fd, const struct iovec *iov, int n)
{
	struct no_sigpipe no;
	size_t bytes = 0;

	for (int i = 0; i < n; i++) {
		bytes += iov[i].iov_len;
	}
	no_sigpipe_begin(&no);
	return no_sigpipe_end(&no, writev(fd, iov, n), bytes);
}

/*
 * What goes by reference counts as if it took room in the socket's buffer, and with the default of
 * 208 KiB both sides would sleep after every third piece. A refusal only costs time.
 */
static void widen(struct gr_channel *ch)
{
	int now = 0, want = SEND_FILE_BYTES;
	socklen_t n = sizeof(now);

	ch->widened = true;
	if (getsockopt(ch->fd, SOL_SOCKET, SO_SNDBUF, &now, &n) == 0 && now < want) {
		(void)setsockopt(ch->fd, SOL_SOCKET, SO_SNDBUF, &want, sizeof(want));
	}
}

static ssize_t socket_send_file(struct gr_channel *ch, int file, uint64_t offset, size_t bytes)
{
	off_t at = (off_t)offset;
	struct no_sigpipe no;

	if (!ch->widened) {
		widen(ch);
	}
	no_sigpipe_begin(&no);
	return no_sigpipe_end(&no, sendfile(ch->fd, file, &at, bytes), bytes);
}

static ssize_t pipe_writev(struct gr_channel *ch, const struct iovec *iov, int n)
{
	return gr_channel_pipe_writev(ch->fd, iov, n);
}

static const struct gr_channel_ops socket_ops = { .readv = socket_readv, .writev = socket_writev };
static const struct gr_channel_ops local_ops = { .readv = socket_readv,
						  .writev = socket_writev,
						  .send_file = socket_send_file };
/* by direction: read-only, write-only, both; a read-only fd needs no care for SIGPIPE */
static const struct gr_channel_ops fd_ops[3] = {
	{ .readv = plain_readv },
	{ .writev = pipe_writev },
	{ .readv = plain_readv, .writev = pipe_writev },
};

/* Pipes and terminals: no waiting inside of read and write, where nothing could cancel it. */
static int prepare_plain(struct gr_channel *ch, int flags, mode_t mode, struct gr_error *err)
{
	if (S_ISREG(mode) || S_ISBLK(mode)) {
		return 0; /* never waits */
	}
	if (S_ISFIFO(mode)) {
		/* As large as we may; a refusal only costs time. */
		(void)fcntl(ch->fd, F_SETPIPE_SZ, PIPE_BYTES);
	}
	if (flags & O_NONBLOCK) {
		return 0;
	}
	if (fcntl(ch->fd, F_SETFL, flags | O_NONBLOCK) != 0) {
		return gr_error_set(err, -errno, "%s: cannot be made non-blocking: %s", ch->name,
				    strerror(errno));
	}
	ch->restore_blocking = true;
	return 0;
}

/*
 * Files by reference: on unix sockets, where that halves what sending costs (TCP on loopback gets
 * slower by it). sendfile() waits as the socket's own flag says, and a wait in there would be deaf
 * to gr_channel_stop_waiting().
 */
static const struct gr_channel_ops *ops_of_socket(int fd, int flags)
{
	struct sockaddr_storage sa = { 0 };
	socklen_t n = sizeof(sa);
	bool local = getsockname(fd, (struct sockaddr *)&sa, &n) == 0 && sa.ss_family == AF_UNIX;

	return local && (flags & O_NONBLOCK) ? &local_ops : &socket_ops;
}

int gr_channel_from_fd_named(int fd, const char *name, struct gr_channel **ret_ch,
			     struct gr_error *err)
{
	int flags = fcntl(fd, F_GETFL);
	struct gr_channel *ch;
	struct stat st;
	int code;

	if (flags < 0 || fstat(fd, &st) != 0) {
		return gr_error_set(err, -errno, "%s: %s", name, strerror(errno));
	}
	if (flags & O_PATH) {
		return gr_error_set(err, -EBADF, "%s: opened for neither reading nor writing",
				    name);
	}
	ch = malloc(sizeof(*ch));
	if (!ch) {
		return gr_error_set(err, -ENOMEM, "%s: out of memory", name);
	}
	code = gr_channel_init(ch, &socket_ops, name, fd, err);
	if (code < 0) {
		free(ch);
		return code;
	}
	(void)fcntl(fd, F_SETFD, FD_CLOEXEC);
	if (S_ISSOCK(st.st_mode)) {
		ch->is_socket = true;
		ch->ops = ops_of_socket(fd, flags);
		ch->duplex = true;
	} else {
		ch->ops = &fd_ops[flags & O_ACCMODE];
		ch->duplex = (flags & O_ACCMODE) == O_RDWR && S_ISCHR(st.st_mode);
		code = prepare_plain(ch, flags, st.st_mode, err);
		if (code < 0) {
			ch->fd = -1; /* not taken */
			(void)gr_channel_fini(ch);
			free(ch);
			return code;
		}
	}
	*ret_ch = ch;
	return 0;
}

int gr_channel_from_fd(int fd, struct gr_channel **ret_ch, struct gr_error *err)
{
	char name[32];

	(void)snprintf(name, sizeof(name), "fd:%d", fd);
	return gr_channel_from_fd_named(fd, name, ret_ch, err);
}
