/* SPDX-License-Identifier: MIT */
/* URIs taken apart, and what connecting, listening and accepting do for each kind. */
#include "base/atomic.h"
#include "stream/channel.h"
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

struct gr_channel_listener {
	struct gr_uri uri;	 /* (c) */
	char *name;		 /* (c) the URI, with the real port */
	int fd;			 /* (c) listening socket, or -1 */
	int wake_fd;		 /* (c) eventfd: readable for ever once shut down */
	bool opened;		 /* (o) fd:, exec:, file: were given out */
	struct stat socket_file; /* (c) UNIX: what we made, so that we remove no other's */
};

void gr_uri_destroy(struct gr_uri *uri)
{
	free(uri->host);
	free(uri->port);
	free(uri->path);
	memset(uri, 0, sizeof(*uri));
}

static int no_memory(const char *text, struct gr_error *err)
{
	return gr_error_set(err, -ENOMEM, "%s: out of memory", text);
}

/* A decimal number that fills the whole text. 64 bits hold ten times any max, and a digit. */
static bool parse_number(const char *s, uint32_t max, uint32_t *ret)
{
	uint64_t v = 0;

	if (!*s) {
		return false;
	}
	for (; *s; s++) {
		if (*s < '0' || *s > '9') {
			return false;
		}
		v = v * 10 + (uint64_t)(*s - '0');
		if (v > max) {
			return false;
		}
	}
	*ret = (uint32_t)v;
	return true;
}

static int parse_tcp(const char *rest, const char *text, struct gr_uri *u, struct gr_error *err)
{
	const char *colon = strrchr(rest, ':');
	const char *host = rest, *host_end = colon;
	uint32_t port;

	if (!colon || !parse_number(colon + 1, 65535, &port)) {
		return gr_error_set(err, -EINVAL, "%s: expected tcp:HOST:PORT, port 0..65535",
				    text);
	}
	if (*rest == '[') {
		host++;
		host_end--;
		if (host_end < host || *host_end != ']') {
			return gr_error_set(err, -EINVAL, "%s: no ']' before the port", text);
		}
	} else if (memchr(rest, ':', (size_t)(colon - rest))) {
		return gr_error_set(err, -EINVAL, "%s: an IPv6 address stands in brackets", text);
	}
	u->kind = GR_URI_TCP;
	u->host = strndup(host, (size_t)(host_end - host));
	u->port = strdup(colon + 1);
	if (!u->host || !u->port) {
		gr_uri_destroy(u);
		return no_memory(text, err);
	}
	return 0;
}

/* N of ",offset=N": decimal, 0x hexadecimal, with k, M, G or T for powers of 1024. */
static bool parse_offset(const char *s, uint64_t *ret)
{
	static const char units[] = "kMGT";
	unsigned long long v;
	const char *unit;
	char *end;

	if (*s < '0' || *s > '9') {
		return false;
	}
	errno = 0;
	v = strtoull(s, &end, 0);
	if (errno || v > INT64_MAX) {
		return false;
	}
	if (*end) {
		unit = strchr(units, *end == 'K' ? 'k' : *end);
		if (!unit || end[1] != '\0') {
			return false;
		}
		for (const char *p = units; p <= unit; p++) {
			if (__builtin_mul_overflow(v, 1024ULL, &v) || v > INT64_MAX) {
				return false;
			}
		}
	}
	*ret = v;
	return true;
}

static int parse_file(const char *rest, const char *text, struct gr_uri *u, struct gr_error *err)
{
	const char *option = strstr(rest, ",offset=");
	size_t n = option ? (size_t)(option - rest) : strlen(rest);

	if (option && !parse_offset(option + strlen(",offset="), &u->offset)) {
		return gr_error_set(err, -EINVAL, "%s: the offset is not a number of bytes", text);
	}
	if (n == 0) {
		return gr_error_set(err, -EINVAL, "%s: no path", text);
	}
	u->kind = GR_URI_FILE;
	u->path = strndup(rest, n);
	return u->path ? 0 : no_memory(text, err);
}

static int parse_path(const char *rest, const char *text, enum gr_uri_kind kind, struct gr_uri *u,
		      struct gr_error *err)
{
	if (!*rest) {
		return gr_error_set(err, -EINVAL, "%s: nothing after the colon", text);
	}
	u->kind = kind;
	u->path = strdup(rest);
	return u->path ? 0 : no_memory(text, err);
}

static int parse_fd(const char *rest, const char *text, struct gr_uri *u, struct gr_error *err)
{
	uint32_t v;

	if (!parse_number(rest, INT32_MAX, &v)) {
		return gr_error_set(err, -EINVAL, "%s: expected fd:N, a descriptor's number", text);
	}
	u->kind = GR_URI_FD;
	u->fd = (int)v;
	return 0;
}

/* What follows the scheme, or NULL if the text has another one. */
static const char *after(const char *text, const char *scheme)
{
	size_t n = strlen(scheme);

	return strncmp(text, scheme, n) == 0 ? text + n : NULL;
}

int gr_uri_parse(const char *text, struct gr_uri *u, struct gr_error *err)
{
	const char *rest;

	memset(u, 0, sizeof(*u));
	if ((rest = after(text, "tcp:"))) {
		return parse_tcp(rest, text, u, err);
	}
	if ((rest = after(text, "unix:"))) {
		return parse_path(rest, text, GR_URI_UNIX, u, err);
	}
	if ((rest = after(text, "fd:"))) {
		return parse_fd(rest, text, u, err);
	}
	if ((rest = after(text, "exec:"))) {
		return parse_path(rest, text, GR_URI_EXEC, u, err);
	}
	if ((rest = after(text, "file:"))) {
		return parse_file(rest, text, u, err);
	}
	if (*text && (strchr(text, '/') || !strchr(text, ':'))) {
		return parse_file(text, text, u, err);
	}
	return gr_error_set(
		err, -EINVAL,
		"'%s': not a channel; expected tcp:, unix:, fd:, exec:, file: or a path", text);
}

static int file_open(const struct gr_uri *u, const char *name, bool writing,
		     struct gr_channel **ret_ch, struct gr_error *err)
{
	/* Guest memory holds secrets: nobody else reads the file. */
	int fd = open(u->path, (writing ? O_WRONLY | O_CREAT : O_RDONLY) | O_CLOEXEC, 0600);
	struct stat st;
	int code;

	if (fd < 0) {
		return gr_error_set(err, -errno, "%s: %s", name, strerror(errno));
	}
	code = fstat(fd, &st) == 0 ? 0 : -errno;
	if (code == 0 && S_ISDIR(st.st_mode)) {
		code = -EISDIR;
	}
	if (code == 0 && writing && S_ISREG(st.st_mode) && ftruncate(fd, (off_t)u->offset) != 0) {
		code = -errno;
	}
	if (code == 0 && u->offset && lseek(fd, (off_t)u->offset, SEEK_SET) < 0) {
		code = -errno;
	}
	if (code < 0) {
		(void)gr_error_set(err, code, "%s: %s", name, strerror(-code));
	} else {
		code = gr_channel_from_fd_named(fd, name, ret_ch, err);
	}
	if (code < 0) {
		close(fd);
	}
	return code;
}

/* The kinds that need no peer. */
static int open_plain(const struct gr_uri *u, const char *name, bool writing,
		      struct gr_channel **ret_ch, struct gr_error *err)
{
	switch (u->kind) {
	case GR_URI_FD:
		return gr_channel_from_fd_named(u->fd, name, ret_ch, err);
	case GR_URI_EXEC:
		return gr_exec_open(u->path, name, writing, ret_ch, err);
	case GR_URI_FILE:
		return file_open(u, name, writing, ret_ch, err);
	case GR_URI_TCP:
	case GR_URI_UNIX:
	default:
		GR_ASSERT(false);
	}
}

bool gr_uri_is_socket(const struct gr_uri *u)
{
	return u->kind == GR_URI_TCP || u->kind == GR_URI_UNIX;
}

int gr_channel_connect(const char *uri, struct gr_channel **ret_ch, struct gr_error *err)
{
	struct gr_uri u;
	int fd = -1;
	int code = gr_uri_parse(uri, &u, err);

	if (code < 0) {
		return code;
	}
	if (!gr_uri_is_socket(&u)) {
		code = open_plain(&u, uri, true, ret_ch, err);
	} else {
		code = gr_socket_connect(&u, uri, &fd, err);
		if (code == 0) {
			code = gr_channel_from_fd_named(fd, uri, ret_ch, err);
			if (code < 0) {
				close(fd);
			}
		}
	}
	gr_uri_destroy(&u);
	return code;
}

static int listener_open(struct gr_channel_listener *l, const char *uri, struct gr_error *err)
{
	int code;

	l->wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (l->wake_fd < 0) {
		return gr_error_set(err, -errno, "%s: eventfd: %s", uri, strerror(errno));
	}
	if (!gr_uri_is_socket(&l->uri)) {
		l->name = strdup(uri);
		return l->name ? 0 : no_memory(uri, err);
	}
	code = gr_socket_listen(&l->uri, uri, &l->fd, &l->name, err);
	if (code == 0 && l->uri.kind == GR_URI_UNIX && lstat(l->uri.path, &l->socket_file) != 0) {
		memset(&l->socket_file, 0, sizeof(l->socket_file));
	}
	return code;
}

int gr_channel_listen(const char *uri, struct gr_channel_listener **ret_listener,
		      struct gr_error *err)
{
	struct gr_channel_listener *l = calloc(1, sizeof(*l));
	int code;

	if (!l) {
		return no_memory(uri, err);
	}
	l->fd = -1;
	l->wake_fd = -1;
	code = gr_uri_parse(uri, &l->uri, err);
	if (code == 0) {
		code = listener_open(l, uri, err);
	}
	if (code < 0) {
		gr_channel_listener_close(l);
		return code;
	}
	*ret_listener = l;
	return 0;
}

/* A peer may come and go before it is accepted: that is not the listener's failure. */
static bool is_passing(int e)
{
	return e == EINTR || e == ECONNABORTED || e == EPROTO || e == ENETDOWN ||
	       e == ENETUNREACH || e == EHOSTDOWN || e == EHOSTUNREACH || e == ENONET;
}

int gr_channel_listener_wait(struct gr_channel_listener *l, int timeout_ms, struct gr_error *err)
{
	int code = gr_channel_poll(l->fd, POLLIN, l->wake_fd, timeout_ms);

	if (code < 0) {
		return gr_error_set(err, code, "%s: %s", l->name,
				    code == -ECANCELED	  ? "listening was ended"
				    : code == -ETIMEDOUT ? "nobody came in time"
							  : strerror(-code));
	}
	return 0;
}

static int accept_socket(struct gr_channel_listener *l, struct gr_channel **ret_ch,
			 struct gr_error *err)
{
	int fd, code;

	for (;;) {
		code = gr_channel_listener_wait(l, -1, err);
		if (code < 0) {
			return code;
		}
		fd = accept4(l->fd, NULL, NULL, SOCK_CLOEXEC);
		if (fd >= 0) {
			break;
		}
		if (!is_passing(errno) && errno != EAGAIN) {
			return gr_error_set(err, -errno, "%s: accept: %s", l->name,
					    strerror(errno));
		}
	}
	code = gr_channel_from_fd_named(fd, l->name, ret_ch, err);
	if (code < 0) {
		close(fd);
	}
	return code;
}

int gr_channel_accept(struct gr_channel_listener *l, struct gr_channel **ret_ch,
		      struct gr_error *err)
{
	int code;

	if (gr_uri_is_socket(&l->uri)) {
		return accept_socket(l, ret_ch, err);
	}
	if (gr_channel_poll(-1, 0, l->wake_fd, 0) == -ECANCELED) {
		return gr_error_set(err, -ECANCELED, "%s: listening was ended", l->name);
	}
	if (l->opened) {
		return gr_error_set(err, -EALREADY, "%s: was opened before", l->name);
	}
	code = open_plain(&l->uri, l->name, false, ret_ch, err);
	l->opened = code == 0;
	return code;
}

const char *gr_channel_listener_uri(const struct gr_channel_listener *l)
{
	return l->name;
}

int gr_channel_listener_fd(const struct gr_channel_listener *l)
{
	return l->fd;
}

int gr_channel_listener_wake_fd(const struct gr_channel_listener *l)
{
	return l->wake_fd;
}

void gr_channel_listener_shutdown(struct gr_channel_listener *l)
{
	uint64_t one = 1;
	int saved = errno;

	(void)!write(l->wake_fd, &one, sizeof(one));
	errno = saved;
}

void gr_channel_listener_close(struct gr_channel_listener *l)
{
	struct stat now;

	if (!l) {
		return;
	}
	if (l->fd >= 0) {
		if (l->uri.kind == GR_URI_UNIX && lstat(l->uri.path, &now) == 0 &&
		    S_ISSOCK(now.st_mode) && now.st_ino == l->socket_file.st_ino &&
		    now.st_dev == l->socket_file.st_dev) {
			(void)unlink(l->uri.path);
		}
		close(l->fd);
	}
	if (l->wake_fd >= 0) {
		close(l->wake_fd);
	}
	gr_uri_destroy(&l->uri);
	free(l->name);
	free(l);
}
