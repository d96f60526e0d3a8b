/* SPDX-License-Identifier: MIT */
/* tcp: and unix: - descriptors that are connected or listen. */
#include "stream/channel.h"
#include <errno.h>
#include <fcntl.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <sys/un.h>
#include <unistd.h>

enum { CONNECT_MS_MAX = 20000, BACKLOG = 16 };

static int fill_unix(const struct gr_uri *u, const char *uri, struct sockaddr_un *sa,
		     struct gr_error *err)
{
	size_t n = strlen(u->path);

	memset(sa, 0, sizeof(*sa));
	sa->sun_family = AF_UNIX;
	if (n >= sizeof(sa->sun_path)) {
		return gr_error_set(err, -ENAMETOOLONG,
				    "%s: the path has %zu bytes, a socket's may have %zu", uri, n,
				    sizeof(sa->sun_path) - 1);
	}
	memcpy(sa->sun_path, u->path, n);
	return 0;
}

/* Connects within the time limit; closes nothing. Returns a negative errno. */
static int connect_fd(int fd, const struct sockaddr *sa, socklen_t n)
{
	struct pollfd p = { fd, POLLOUT, 0 };
	int error = 0;
	socklen_t error_bytes = sizeof(error);
	int rc;

	if (connect(fd, sa, n) == 0) {
		return 0;
	}
	if (errno != EINPROGRESS && errno != EINTR) {
		return -errno;
	}
	do {
		rc = poll(&p, 1, CONNECT_MS_MAX);
	} while (rc < 0 && errno == EINTR);
	if (rc < 0) {
		return -errno;
	}
	if (rc == 0) {
		return -ETIMEDOUT;
	}
	if (getsockopt(fd, SOL_SOCKET, SO_ERROR, &error, &error_bytes) != 0) {
		return -errno;
	}
	return -error;
}

static int open_socket(int family)
{
	int fd = socket(family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);

	return fd < 0 ? -errno : fd;
}

static int unix_connect(const struct gr_uri *u, const char *uri, int *ret_fd, struct gr_error *err)
{
	const struct timeval limit = { .tv_sec = CONNECT_MS_MAX / 1000 }, none = { 0 };
	struct sockaddr_un sa;
	int fd, code = fill_unix(u, uri, &sa, err);

	if (code < 0) {
		return code;
	}
	fd = open_socket(AF_UNIX);
	if (fd < 0) {
		return gr_error_set(err, fd, "%s: socket: %s", uri, strerror(-fd));
	}
	/* A unix socket connects at once or waits for room in the backlog: let it wait, but not
	 * for ever. */
	(void)fcntl(fd, F_SETFL, 0);
	(void)setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof(limit));
	do {
		code = connect(fd, (const struct sockaddr *)&sa, sizeof(sa)) == 0 ? 0 : -errno;
	} while (code == -EINTR);
	code = code == -EAGAIN ? -ETIMEDOUT : code;
	(void)setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &none, sizeof(none));
	(void)fcntl(fd, F_SETFL, O_NONBLOCK);
	if (code < 0) {
		close(fd);
		return gr_error_set(err, code, "%s: %s", uri, strerror(-code));
	}
	*ret_fd = fd;
	return 0;
}

/*
 * A socket file that nobody has open (its process died) may go; anything else stays. We ask
 * with a socket of another type: a listener would take a connection for its peer, and the
 * kernel says "wrong type" of a socket that lives and "refused" of a file that is left over.
 */
static int remove_stale(const struct sockaddr_un *sa, const char *uri, struct gr_error *err)
{
	struct stat st;
	int fd, code;

	if (lstat(sa->sun_path, &st) != 0) {
		return errno == ENOENT ? 0
				       : gr_error_set(err, -errno, "%s: %s", uri, strerror(errno));
	}
	if (!S_ISSOCK(st.st_mode)) {
		return gr_error_set(err, -EADDRINUSE, "%s: exists and is not a socket", uri);
	}
	fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
	if (fd < 0) {
		return gr_error_set(err, -errno, "%s: socket: %s", uri, strerror(errno));
	}
	code = connect(fd, (const struct sockaddr *)sa, sizeof(*sa)) == 0 ? 0 : -errno;
	close(fd);
	if (code == -EACCES) {
		return gr_error_set(err, code, "%s: the socket of somebody else: %s", uri,
				    strerror(-code));
	}
	if (code != -ECONNREFUSED) {
		return gr_error_set(err, -EADDRINUSE, "%s: somebody listens there already", uri);
	}
	return unlink(sa->sun_path) == 0 || errno == ENOENT
		       ? 0
		       : gr_error_set(err, -errno, "%s: cannot remove the stale socket: %s", uri,
				      strerror(errno));
}

static int unix_listen(const struct gr_uri *u, const char *uri, int *ret_fd, char **ret_uri,
		       struct gr_error *err)
{
	struct sockaddr_un sa;
	int fd, code = fill_unix(u, uri, &sa, err);

	if (code < 0) {
		return code;
	}
	code = remove_stale(&sa, uri, err);
	if (code < 0) {
		return code;
	}
	fd = open_socket(AF_UNIX);
	if (fd < 0) {
		return gr_error_set(err, fd, "%s: socket: %s", uri, strerror(-fd));
	}
	if (bind(fd, (const struct sockaddr *)&sa, sizeof(sa)) != 0 || listen(fd, BACKLOG) != 0) {
		code = -errno;
		close(fd);
		return gr_error_set(err, code, "%s: %s", uri, strerror(-code));
	}
	*ret_uri = strdup(uri);
	if (!*ret_uri) {
		close(fd);
		(void)unlink(sa.sun_path);
		return gr_error_set(err, -ENOMEM, "%s: out of memory", uri);
	}
	*ret_fd = fd;
	return 0;
}

static int resolve(const struct gr_uri *u, const char *uri, bool passive,
		   struct addrinfo **ret_list, struct gr_error *err)
{
	struct addrinfo hints = {
		.ai_socktype = SOCK_STREAM,
		.ai_flags = AI_NUMERICSERV | (passive ? AI_PASSIVE : 0),
	};
	int rc = getaddrinfo(*u->host ? u->host : NULL, u->port, &hints, ret_list);

	if (rc == EAI_SYSTEM) {
		return gr_error_set(err, -errno, "%s: %s", uri, strerror(errno));
	}
	if (rc != 0) {
		return gr_error_set(err, rc == EAI_MEMORY ? -ENOMEM : -EHOSTUNREACH, "%s: %s", uri,
				    gai_strerror(rc));
	}
	return 0;
}

static void set_nodelay(int fd)
{
	int one = 1;

	/* Whole batches are written at once; what is short is an answer that is waited for. */
	(void)setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
}

static int tcp_connect(const struct gr_uri *u, const char *uri, int *ret_fd, struct gr_error *err)
{
	struct addrinfo *list;
	int first = 0;
	int code;

	if (strtoul(u->port, NULL, 10) == 0) {
		return gr_error_set(err, -EINVAL, "%s: port 0 cannot be connected to", uri);
	}
	code = resolve(u, uri, false, &list, err);
	if (code < 0) {
		return code;
	}
	for (struct addrinfo *a = list; a; a = a->ai_next) {
		int fd = open_socket(a->ai_family);

		code = fd < 0 ? fd : connect_fd(fd, a->ai_addr, a->ai_addrlen);
		if (code == 0) {
			set_nodelay(fd);
			*ret_fd = fd;
			freeaddrinfo(list);
			return 0;
		}
		if (fd >= 0) {
			close(fd);
		}
		first = first ? first : code; /* the first cause wins */
	}
	freeaddrinfo(list);
	return gr_error_set(err, first, "%s: %s", uri, strerror(-first));
}

static int listen_on(const struct addrinfo *a)
{
	int one = 1, zero = 0;
	int fd = open_socket(a->ai_family);
	int code;

	if (fd < 0) {
		return fd;
	}
	(void)setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one));
	if (a->ai_family == AF_INET6) {
		(void)setsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, &zero, sizeof(zero));
	}
	set_nodelay(fd); /* accepted sockets inherit it */
	if (bind(fd, a->ai_addr, a->ai_addrlen) == 0 && listen(fd, BACKLOG) == 0) {
		return fd;
	}
	code = -errno;
	close(fd);
	return code;
}

/* tcp:HOST:PORT as it really is; the host as the user wrote it, if he did. */
static char *tcp_uri(const struct gr_uri *u, int fd)
{
	struct sockaddr_storage sa;
	socklen_t n = sizeof(sa);
	char host[NI_MAXHOST], port[NI_MAXSERV];
	const char *name = u->host;
	char *text = NULL;

	if (getsockname(fd, (struct sockaddr *)&sa, &n) != 0 ||
	    getnameinfo((struct sockaddr *)&sa, n, host, sizeof(host), port, sizeof(port),
			NI_NUMERICHOST | NI_NUMERICSERV) != 0) {
		return NULL;
	}
	if (!*name) {
		name = host;
	}
	if (asprintf(&text, strchr(name, ':') ? "tcp:[%s]:%s" : "tcp:%s:%s", name, port) < 0) {
		return NULL;
	}
	return text;
}

static int tcp_listen(const struct gr_uri *u, const char *uri, int *ret_fd, char **ret_uri,
		      struct gr_error *err)
{
	struct addrinfo *list;
	int first = 0, fd = -1;
	int code = resolve(u, uri, true, &list, err);

	if (code < 0) {
		return code;
	}
	/* "Every address" is the IPv6 one, which takes IPv4 as well, where there is IPv6. */
	for (int pass = *u->host ? 1 : 0; pass < 2 && fd < 0; pass++) {
		for (struct addrinfo *a = list; a && fd < 0; a = a->ai_next) {
			if (pass == 0 && a->ai_family != AF_INET6) {
				continue;
			}
			fd = listen_on(a);
			first = first || fd >= 0 ? first : fd;
		}
	}
	freeaddrinfo(list);
	if (fd < 0) {
		return gr_error_set(err, first, "%s: %s", uri, strerror(-first));
	}
	*ret_uri = tcp_uri(u, fd);
	if (!*ret_uri) {
		close(fd);
		return gr_error_set(err, -ENOMEM, "%s: out of memory", uri);
	}
	*ret_fd = fd;
	return 0;
}

int gr_socket_connect(const struct gr_uri *u, const char *uri, int *ret_fd, struct gr_error *err)
{
	return u->kind == GR_URI_UNIX ? unix_connect(u, uri, ret_fd, err)
				      : tcp_connect(u, uri, ret_fd, err);
}

int gr_socket_listen(const struct gr_uri *u, const char *uri, int *ret_fd, char **ret_uri,
		     struct gr_error *err)
{
	return u->kind == GR_URI_UNIX ? unix_listen(u, uri, ret_fd, ret_uri, err)
				      : tcp_listen(u, uri, ret_fd, ret_uri, err);
}
