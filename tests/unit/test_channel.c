/* SPDX-License-Identifier: MIT */
#include "base/compiler.h"
#include "harness.h"
#include "stream/channel.h"
#include <errno.h>
#include <fcntl.h>
#include <netdb.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

static char dir[64];

static const char *in_dir(const char *before, const char *after)
{
	static char text[4][256];
	static unsigned int next;
	char *t = text[next++ % 4];

	if (!*dir) {
		(void)snprintf(dir, sizeof(dir), "/tmp/guestram-channel-XXXXXX");
		ASSERT(mkdtemp(dir) != NULL);
	}
	(void)snprintf(t, sizeof(text[0]), "%s%s%s", before, dir, after);
	return t;
}

static void remove_dir(void)
{
	char cmd[128];

	(void)snprintf(cmd, sizeof(cmd), "rm -rf %s", dir);
	ASSERT_EQ(system(cmd), 0);
}

static struct gr_channel *connected(const char *uri)
{
	struct gr_error err = { 0 };
	struct gr_channel *ch;

	if (gr_channel_connect(uri, &ch, &err) != 0) {
		FAIL("connect: %s", err.msg);
	}
	return ch;
}

static struct gr_channel_listener *listening(const char *uri)
{
	struct gr_error err = { 0 };
	struct gr_channel_listener *l;

	if (gr_channel_listen(uri, &l, &err) != 0) {
		FAIL("listen: %s", err.msg);
	}
	return l;
}

static struct gr_channel *accepted(struct gr_channel_listener *l)
{
	struct gr_error err = { 0 };
	struct gr_channel *ch;

	if (gr_channel_accept(l, &ch, &err) != 0) {
		FAIL("accept: %s", err.msg);
	}
	return ch;
}

static void say(struct gr_channel *ch, const char *text)
{
	struct gr_error err = { 0 };

	if (gr_channel_write_all(ch, text, strlen(text), &err) != 0) {
		FAIL("write: %s", err.msg);
	}
}

/* Reads to the end and compares. */
static void hear(struct gr_channel *ch, const char *text)
{
	struct gr_error err = { 0 };
	char got[256] = "";
	size_t n = 0;

	while (n < strlen(text)) {
		struct iovec iov = { got + n, strlen(text) - n };
		ssize_t rc = gr_channel_readv(ch, &iov, 1, &err);

		if (rc < 0) {
			FAIL("read: %s", err.msg);
		}
		if (rc == 0) {
			break;
		}
		n += (size_t)rc;
	}
	got[n] = '\0';
	ASSERT_STR_EQ(got, text);
}

static void hear_end(struct gr_channel *ch)
{
	struct gr_error err = { 0 };
	char c;
	struct iovec iov = { &c, 1 };

	ASSERT_EQ(gr_channel_readv(ch, &iov, 1, &err), 0);
}

static void close_well(struct gr_channel *ch)
{
	struct gr_error err = { 0 };

	if (gr_channel_close(ch, &err) != 0) {
		FAIL("close: %s", err.msg);
	}
}

static void check_socket_pair(const char *uri)
{
	struct gr_channel_listener *l = listening(uri);
	struct gr_channel *out = connected(gr_channel_listener_uri(l));
	struct gr_channel *in = accepted(l);

	ASSERT(gr_channel_listener_fd(l) >= 0);
	ASSERT(gr_channel_is_duplex(out) && gr_channel_is_duplex(in));
	say(out, "there");
	hear(in, "there");
	say(in, "back");
	hear(out, "back");
	gr_channel_end_writing(out);
	hear_end(in);
	say(in, "late answer");
	hear(out, "late answer");
	ASSERT_EQ(gr_channel_bytes_written(out), 5u);
	ASSERT_EQ(gr_channel_bytes_read(out), 15u);
	ASSERT_EQ(gr_channel_bytes_read(in), 5u);
	close_well(out);
	close_well(in);
	gr_channel_listener_close(l);
}

TEST(tcp_over_ipv4_carries_both_ways_and_tells_the_port)
{
	check_socket_pair("tcp:127.0.0.1:0");
}

TEST(tcp_finds_a_host_by_its_name)
{
	struct addrinfo *found;
	int rc = getaddrinfo("localhost", NULL, NULL, &found);

	if (rc != 0) {
		SKIP("localhost has no address here: %s", gai_strerror(rc));
	}
	freeaddrinfo(found);
	check_socket_pair("tcp:localhost:0");
}

TEST(tcp_over_ipv6_carries_both_ways)
{
	int fd = socket(AF_INET6, SOCK_STREAM, 0);
	struct gr_channel_listener *l;
	struct gr_error err;

	if (fd < 0) {
		SKIP("no IPv6: %s", strerror(errno));
	}
	close(fd);
	if (gr_channel_listen("tcp:[::1]:0", &l, &err) == -EADDRNOTAVAIL) {
		SKIP("no IPv6: %s", err.msg);
	}
	ASSERT_HAS(gr_channel_listener_uri(l), "tcp:[::1]:");
	gr_channel_listener_close(l);
	check_socket_pair("tcp:[::1]:0");
}

TEST(an_empty_host_listens_on_every_address)
{
	struct gr_channel_listener *l = listening("tcp::0");
	const char *port = strrchr(gr_channel_listener_uri(l), ':');
	struct gr_channel *out, *in;
	char uri[64];

	(void)snprintf(uri, sizeof(uri), "tcp:127.0.0.1%s", port);
	out = connected(uri);
	in = accepted(l);
	say(out, "x");
	hear(in, "x");
	close_well(out);
	close_well(in);
	gr_channel_listener_close(l);
}

TEST(unix_carries_both_ways_and_its_socket_file_goes)
{
	const char *uri = in_dir("unix:", "/s");
	struct stat st;

	check_socket_pair(uri);
	ASSERT(lstat(uri + 5, &st) != 0);
	remove_dir();
}

TEST(a_stale_unix_socket_is_replaced_a_living_one_and_a_file_are_not)
{
	const char *uri = in_dir("unix:", "/s");
	struct gr_channel_listener *l = listening(uri), *other;
	struct gr_error err = { 0 };
	struct sockaddr_un sa = { .sun_family = AF_UNIX };
	struct stat st;
	int fd;

	ASSERT_EQ(gr_channel_listen(uri, &other, &err), -EADDRINUSE);
	ASSERT_HAS(err.msg, uri);
	gr_channel_listener_close(l);

	fd = socket(AF_UNIX, SOCK_STREAM, 0); /* leaves its file behind */
	(void)snprintf(sa.sun_path, sizeof(sa.sun_path), "%s", uri + 5);
	ASSERT_EQ(bind(fd, (struct sockaddr *)&sa, sizeof(sa)), 0);
	close(fd);
	check_socket_pair(uri);

	fd = open(uri + 5, O_CREAT | O_WRONLY, 0600);
	ASSERT(fd >= 0);
	close(fd);
	ASSERT_EQ(gr_channel_listen(uri, &other, &err), -EADDRINUSE);
	ASSERT_HAS(err.msg, "not a socket");
	ASSERT_EQ(lstat(uri + 5, &st), 0);
	remove_dir();
}

TEST(a_living_unix_listener_does_not_notice_who_else_wants_its_path)
{
	const char *uri = in_dir("unix:", "/s");
	struct gr_channel_listener *l = listening(uri), *other;
	struct pollfd waiting = { gr_channel_listener_fd(l), POLLIN, 0 };
	struct sockaddr_un sa = { .sun_family = AF_UNIX };
	struct gr_error err = { 0 };
	int fd;

	ASSERT_EQ(gr_channel_listen(uri, &other, &err), -EADDRINUSE);
	ASSERT_HAS(err.msg, "somebody");
	ASSERT_EQ(poll(&waiting, 1, 0), 0); /* a peer that is none */
	gr_channel_listener_close(l);

	/* bound, and about to listen; or of another type */
	for (int type = SOCK_STREAM; type <= SOCK_DGRAM; type++) {
		fd = socket(AF_UNIX, type, 0);
		(void)snprintf(sa.sun_path, sizeof(sa.sun_path), "%s", uri + 5);
		ASSERT_EQ(bind(fd, (struct sockaddr *)&sa, sizeof(sa)), 0);
		ASSERT_EQ(gr_channel_listen(uri, &other, &err), -EADDRINUSE);
		close(fd);
		ASSERT_EQ(unlink(uri + 5), 0);
	}
	remove_dir();
}

TEST(closing_a_listener_leaves_the_socket_of_another_alone)
{
	const char *uri = in_dir("unix:", "/s");
	struct gr_channel_listener *l = listening(uri), *other;
	struct stat st;

	ASSERT_EQ(unlink(uri + 5), 0);
	other = listening(uri);
	gr_channel_listener_close(l);
	ASSERT_EQ(lstat(uri + 5, &st), 0);
	gr_channel_listener_close(other);
	ASSERT(lstat(uri + 5, &st) != 0);
	remove_dir();
}

TEST(failures_name_the_uri)
{
	static const struct {
		const char *uri;
		int code;
	} cases[] = {
		{ "unix:/nowhere/at/all", -ENOENT },
		{ "tcp:127.0.0.1:0", -EINVAL },
		{ "file:/nowhere/at/all", -ENOENT },
		{ "file:/tmp", -EISDIR },
		{ "fd:9876", -EBADF },
	};
	char long_uri[300] = "unix:/";
	struct gr_channel_listener *l;
	struct gr_channel *ch;

	for (size_t i = 0; i < GR_ARRAY_SIZE(cases); i++) {
		struct gr_error err = { 0 };

		ASSERT_EQ(gr_channel_connect(cases[i].uri, &ch, &err), cases[i].code);
		ASSERT_EQ(err.code, cases[i].code);
		ASSERT_HAS(err.msg, cases[i].uri);
	}
	memset(long_uri + 6, 'a', 200);
	{
		struct gr_error err = { 0 };

		ASSERT_EQ(gr_channel_connect(long_uri, &ch, &err), -ENAMETOOLONG);
		ASSERT_HAS(err.msg, long_uri);
		ASSERT_EQ(gr_channel_listen(long_uri, &l, &err), -ENAMETOOLONG);
	}
}

TEST(a_refused_connection_says_so)
{
	struct gr_channel_listener *l = listening("tcp:127.0.0.1:0");
	struct gr_error err = { 0 };
	struct gr_channel *ch;
	char uri[64];

	(void)snprintf(uri, sizeof(uri), "%s", gr_channel_listener_uri(l));
	gr_channel_listener_close(l);
	ASSERT_EQ(gr_channel_connect(uri, &ch, &err), -ECONNREFUSED);
	ASSERT_HAS(err.msg, uri);
	ASSERT_HAS(err.msg, "refused");
}

TEST(a_file_is_written_and_read_from_its_offset)
{
	const char *uri = in_dir("file:", "/f,offset=4");
	const char *bare = in_dir("", "/f");
	struct gr_channel_listener *l;
	struct gr_channel *ch = connected(bare);

	ASSERT(!gr_channel_is_duplex(ch));
	say(ch, "headgone and longer");
	close_well(ch);
	ch = connected(uri);
	say(ch, "tail");
	close_well(ch);

	l = listening(bare);
	ch = accepted(l);
	hear(ch, "headtail");
	hear_end(ch);
	close_well(ch);
	{
		struct gr_error err = { 0 };

		ASSERT_EQ(gr_channel_accept(l, &ch, &err), -EALREADY);
	}
	gr_channel_listener_close(l);
	l = listening(uri);
	ch = accepted(l);
	hear(ch, "tail");
	hear_end(ch);
	close_well(ch);
	gr_channel_listener_close(l);
	remove_dir();
}

TEST(exec_feeds_a_command_and_reads_one)
{
	const char *out = in_dir("exec:cat > ", "/f");
	const char *in = in_dir("exec:cat ", "/f; echo more");
	struct gr_channel *ch = connected(out);
	struct gr_channel_listener *l;

	say(ch, "through a command\n");
	close_well(ch); /* waits for it: the file is complete */
	l = listening(in);
	ch = accepted(l);
	hear(ch, "through a command\nmore\n");
	hear_end(ch);
	close_well(ch);
	gr_channel_listener_close(l);
	remove_dir();
}

TEST(how_a_command_failed_is_told_at_close)
{
	struct gr_channel *ch = connected("exec:cat > /dev/null; exit 3");
	struct gr_error err = { 0 };
	struct gr_channel_listener *l;

	say(ch, "x");
	ASSERT_EQ(gr_channel_close(ch, &err), -EIO);
	ASSERT_HAS(err.msg, "status 3");
	ASSERT_HAS(err.msg, "exec:cat");

	ch = connected("exec:kill -9 $$");
	ASSERT_EQ(gr_channel_close(ch, &err), -EIO);
	ASSERT_HAS(err.msg, "signal 9");

	l = listening("exec:exit 7");
	ch = accepted(l);
	hear_end(ch);
	ASSERT_EQ(gr_channel_close(ch, &err), -EIO);
	ASSERT_HAS(err.msg, "status 7");
	gr_channel_listener_close(l);
}

TEST(reading_less_than_a_command_says_is_no_failure)
{
	struct gr_channel_listener *l = listening("exec:yes; exit $?");
	struct gr_channel *ch = accepted(l);

	hear(ch, "y\n");
	close_well(ch);
	gr_channel_listener_close(l);
}

TEST(a_command_of_a_cancelled_channel_is_ended)
{
	struct gr_channel *ch = connected("exec:exec sleep 1000");

	gr_channel_shutdown(ch);
	close_well(ch);
}

static volatile sig_atomic_t pipe_signals;

static void on_sigpipe(int sig)
{
	(void)sig;
	pipe_signals = pipe_signals + 1;
}

static void expect_epipe(struct gr_channel *ch)
{
	static char big[1 << 16];
	struct gr_error err = { 0 };
	int rc = 0;

	for (int i = 0; i < 1000 && rc == 0; i++) {
		rc = gr_channel_write_all(ch, big, sizeof(big), &err);
	}
	ASSERT(rc == -EPIPE || rc == -ECONNRESET);
	ASSERT_HAS(err.msg, gr_channel_name(ch));
}

TEST(a_peer_that_went_gives_an_error_and_never_sigpipe)
{
	struct gr_channel *ch;
	sigset_t pending;
	int p[2], s[2];

	signal(SIGPIPE, on_sigpipe);
	ASSERT_EQ(pipe(p), 0);
	ASSERT_EQ(gr_channel_from_fd(p[1], &ch, NULL), 0);
	close(p[0]);
	expect_epipe(ch);
	close_well(ch);
	ASSERT_EQ(socketpair(AF_UNIX, SOCK_STREAM, 0, s), 0);
	ASSERT_EQ(gr_channel_from_fd(s[1], &ch, NULL), 0);
	close(s[0]);
	expect_epipe(ch);
	close_well(ch);
	ch = connected("exec:true");
	expect_epipe(ch);
	close_well(ch);
	ASSERT_EQ((int)pipe_signals, 0);
	ASSERT_EQ(sigpending(&pending), 0);
	ASSERT_EQ(sigismember(&pending, SIGPIPE), 0);
}

TEST(a_sigpipe_of_somebody_else_stays_pending)
{
	struct gr_channel *ch;
	sigset_t set;
	int p[2];

	sigemptyset(&set);
	sigaddset(&set, SIGPIPE);
	ASSERT_EQ(sigprocmask(SIG_BLOCK, &set, NULL), 0);
	raise(SIGPIPE);
	ASSERT_EQ(pipe(p), 0);
	ASSERT_EQ(gr_channel_from_fd(p[1], &ch, NULL), 0);
	close(p[0]);
	expect_epipe(ch);
	close_well(ch);
	ASSERT_EQ(sigpending(&set), 0);
	ASSERT_EQ(sigismember(&set, SIGPIPE), 1);
}

TEST(a_pipe_given_by_number_is_blocking_again_after_the_close)
{
	struct gr_channel *ch;
	int p[2], keep;
	char uri[32];

	ASSERT_EQ(pipe(p), 0);
	keep = dup(p[0]);
	(void)snprintf(uri, sizeof(uri), "fd:%d", p[0]);
	{
		struct gr_channel_listener *l = listening(uri);

		ch = accepted(l);
		gr_channel_listener_close(l);
	}
	ASSERT(!gr_channel_is_duplex(ch));
	ASSERT(fcntl(keep, F_GETFL) & O_NONBLOCK);
	ASSERT(fcntl(gr_channel_fd(ch), F_GETFD) & FD_CLOEXEC);
	ASSERT_EQ(write(p[1], "abc", 3), 3);
	hear(ch, "abc");
	ASSERT_EQ(gr_channel_write_all(ch, "x", 1, NULL), -EBADF);
	close_well(ch);
	ASSERT(!(fcntl(keep, F_GETFL) & O_NONBLOCK));
	ASSERT_EQ(close(p[0]), -1); /* it was taken */
}

TEST(the_wrong_direction_is_refused)
{
	struct gr_channel *ch = connected("file:/dev/null");
	struct gr_error err = { 0 };
	char c;
	struct iovec iov = { &c, 1 };

	ASSERT_EQ(gr_channel_readv(ch, &iov, 1, &err), -EBADF);
	ASSERT_HAS(err.msg, "file:/dev/null");
	close_well(ch);
}

struct blocked {
	struct gr_channel *ch;
	struct gr_channel_listener *l;
	bool writing;
	ssize_t rc;
	struct gr_error err;
};

static void *block(void *arg)
{
	static char buf[1 << 16];
	struct blocked *b = arg;
	struct iovec iov = { buf, sizeof(buf) };
	struct gr_channel *ch;

	if (b->l) {
		b->rc = gr_channel_accept(b->l, &ch, &b->err);
	} else if (b->writing) {
		do {
			b->rc = gr_channel_writev_all(b->ch, &iov, 1, &b->err);
		} while (b->rc == 0);
	} else {
		b->rc = gr_channel_readv(b->ch, &iov, 1, &b->err);
	}
	return NULL;
}

static void cancel_blocked(struct blocked *b)
{
	pthread_t t;

	ASSERT_EQ(pthread_create(&t, NULL, block, b), 0);
	usleep(20000);
	if (b->l) {
		gr_channel_listener_shutdown(b->l);
	} else {
		gr_channel_shutdown(b->ch);
	}
	ASSERT_EQ(pthread_join(t, NULL), 0);
	ASSERT_EQ(b->rc, -ECANCELED);
	ASSERT_EQ(b->err.code, -ECANCELED);
}

TEST(a_shutdown_breaks_reads_and_writes_of_sockets_and_pipes)
{
	for (int kind = 0; kind < 4; kind++) {
		struct blocked b = { .writing = kind & 1 };
		int ends[2], mine = kind & 1;

		if (kind & 2) {
			ASSERT_EQ(pipe(ends), 0);
		} else {
			ASSERT_EQ(socketpair(AF_UNIX, SOCK_STREAM, 0, ends), 0);
		}
		ASSERT_EQ(gr_channel_from_fd(ends[mine], &b.ch, NULL), 0);
		cancel_blocked(&b);
		/* and every later one */
		ASSERT_EQ(gr_channel_write_all(b.ch, "x", 1, NULL),
			  kind == 2 ? -EBADF : -ECANCELED);
		close_well(b.ch);
		close(ends[!mine]);
	}
}

TEST(a_shutdown_breaks_a_waiting_accept)
{
	struct blocked b = { .l = listening("tcp:127.0.0.1:0") };

	cancel_blocked(&b);
	gr_channel_listener_close(b.l);
	b.l = listening("file:/dev/null");
	gr_channel_listener_shutdown(b.l);
	{
		struct gr_channel *ch;

		ASSERT_EQ(gr_channel_accept(b.l, &ch, &b.err), -ECANCELED);
	}
	gr_channel_listener_close(b.l);
}

/* ---- files by reference ---------------------------------------------------------------- */

enum { SENT_BYTES = 5 << 12 };

static int memory_file(char **ret_map)
{
	int fd = memfd_create("test", MFD_CLOEXEC);

	ASSERT_GE(fd, 0);
	ASSERT_EQ(ftruncate(fd, SENT_BYTES), 0);
	*ret_map = mmap(NULL, SENT_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	ASSERT(*ret_map != MAP_FAILED);
	for (int i = 0; i < SENT_BYTES; i++) {
		(*ret_map)[i] = (char)(i >> 8);
	}
	return fd;
}

static void unix_pair(struct gr_channel *ch[2])
{
	int s[2];

	ASSERT_EQ(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, s), 0);
	ASSERT_EQ(gr_channel_from_fd(s[0], &ch[0], NULL), 0);
	ASSERT_EQ(gr_channel_from_fd(s[1], &ch[1], NULL), 0);
}

static void block_sigpipe(void)
{
	sigset_t set;

	(void)sigemptyset(&set);
	(void)sigaddset(&set, SIGPIPE);
	ASSERT_EQ(pthread_sigmask(SIG_BLOCK, &set, NULL), 0);
}

TEST(a_file_goes_through_a_unix_socket_by_reference)
{
	struct gr_channel *ch[2];
	char got[SENT_BYTES], *map;
	int fd = memory_file(&map);
	size_t n = 0;

	block_sigpipe();
	unix_pair(ch);
	ASSERT(gr_channel_sends_files(ch[0]));
	/* Up to its end and no further. */
	ASSERT_EQ(gr_channel_send_file(ch[0], fd, 100, 1 << 20, NULL), SENT_BYTES - 100);
	ASSERT_EQ(gr_channel_bytes_written(ch[0]), (uint64_t)SENT_BYTES - 100);
	map[4097] = 'x'; /* seen: it has not been read yet */
	while (n < SENT_BYTES - 100) {
		struct iovec iov = { got + n, sizeof(got) - n };
		ssize_t part = gr_channel_readv(ch[1], &iov, 1, NULL);

		ASSERT_GT(part, 0);
		n += (size_t)part;
	}
	ASSERT(memcmp(got, map + 100, n) == 0);
	close_well(ch[0]);
	close_well(ch[1]);
	munmap(map, SENT_BYTES);
	close(fd);
}

TEST(files_go_by_reference_nowhere_else)
{
	struct gr_channel *ch;
	char *map;
	int fd = memory_file(&map), ends[2];

	block_sigpipe();
	ASSERT_EQ(pipe(ends), 0);
	ASSERT_EQ(gr_channel_from_fd(ends[1], &ch, NULL), 0);
	ASSERT(!gr_channel_sends_files(ch));
	ASSERT_EQ(gr_channel_send_file(ch, fd, 0, SENT_BYTES, NULL), 0);
	close_well(ch);
	close(ends[0]);
	/* Of a blocking socket the kernel would wait on its own. */
	ASSERT_EQ(socketpair(AF_UNIX, SOCK_STREAM, 0, ends), 0);
	ASSERT_EQ(gr_channel_from_fd(ends[1], &ch, NULL), 0);
	ASSERT_EQ(gr_channel_send_file(ch, fd, 0, SENT_BYTES, NULL), 0);
	close_well(ch);
	close(ends[0]);
	munmap(map, SENT_BYTES);
	close(fd);
}

/* As a writer does: by reference what can go so, the rest with a write. */
static void send_referred(struct gr_channel *ch[2], int fd, const char *map)
{
	struct gr_channel_file file = { fd, 0, (const uint8_t *)map, SENT_BYTES };
	struct iovec run = { (void *)(uintptr_t)map, SENT_BYTES };
	char got[SENT_BYTES];
	struct gr_error err = { 0 };

	ASSERT_EQ(gr_channel_refer(ch[0], &file, &run, &err), 0);
	ASSERT_EQ(err.code, 0);
	ASSERT_EQ(gr_channel_writev_all(ch[0], &run, 1, &err), 0);
	for (size_t n = 0; n < SENT_BYTES;) {
		struct iovec iov = { got + n, sizeof(got) - n };
		ssize_t part = gr_channel_readv(ch[1], &iov, 1, NULL);

		ASSERT_GT(part, 0);
		n += (size_t)part;
	}
	ASSERT_MEM_EQ(got, map, SENT_BYTES);
}

/* The kernel's word differs (EINVAL, EACCES, EIO, EPERM of a filter); a write is right after each. */
TEST(what_cannot_go_by_reference_is_written)
{
	struct gr_channel *ch[2];
	char *map;
	int fd = memory_file(&map), other[3];

	other[0] = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK); /* EINVAL or ESPIPE */
	other[1] = open("/proc/self/mem", O_RDONLY | O_CLOEXEC); /* EIO: nothing is mapped there */
	other[2] = open("/dev/null", O_WRONLY | O_CLOEXEC); /* EBADF */
	for (int i = 0; i < 3; i++) {
		ASSERT_GE(other[i], 0);
		unix_pair(ch);
		send_referred(ch, other[i], map);
		/* It is asked once. */
		ASSERT(!gr_channel_sends_files(ch[0]));
		send_referred(ch, fd, map);
		close_well(ch[0]);
		close_well(ch[1]);
		close(other[i]);
	}
	/* A file that ends before its run does is no refusal. */
	other[0] = memfd_create("short", MFD_CLOEXEC);
	ASSERT_EQ(write(other[0], map, 100), 100);
	unix_pair(ch);
	send_referred(ch, other[0], map);
	ASSERT(gr_channel_sends_files(ch[0]));
	send_referred(ch, fd, map);
	close_well(ch[0]);
	close_well(ch[1]);
	close(other[0]);
	munmap(map, SENT_BYTES);
	close(fd);
}

enum { LONG_BYTES = 1 << 20 };

struct sender {
	struct gr_channel *ch;
	int fd;
	ssize_t rc;
	struct gr_error err;
};

static void *send_for_ever(void *opaque)
{
	struct sender *s = opaque;

	do {
		s->rc = gr_channel_send_file(s->ch, s->fd, 0, LONG_BYTES, &s->err);
	} while (s->rc == LONG_BYTES);
	return NULL;
}

/* Also one that goes in the middle of a call that has sent something. */
TEST(a_shutdown_and_a_lost_peer_end_the_sending_of_a_file)
{
	for (int i = 0; i < 400; i++) {
		bool lost = i % 100 != 0;
		struct gr_channel *ch[2];
		struct sender s = { 0 };
		pthread_t t;
		static char some[40000];
		char *map;

		signal(SIGPIPE, on_sigpipe);
		s.fd = memory_file(&map);
		ASSERT_EQ(ftruncate(s.fd, LONG_BYTES), 0);
		unix_pair(ch);
		s.ch = ch[0];
		ASSERT_EQ(pthread_create(&t, NULL, send_for_ever, &s), 0);
		for (int read = 0; read < LONG_BYTES + i * 1000;) {
			struct iovec iov = { some, sizeof(some) };
			ssize_t part = gr_channel_readv(ch[1], &iov, 1, NULL);

			ASSERT_GT(part, 0);
			read += (int)part;
		}
		if (lost) {
			close_well(ch[1]);
		} else {
			gr_channel_shutdown(ch[0]);
		}
		ASSERT_EQ(pthread_join(t, NULL), 0);
		/* A peer that has not read everything resets. */
		ASSERT(lost ? s.rc == -EPIPE || s.rc == -ECONNRESET : s.rc == -ECANCELED);
		ASSERT_EQ((int)pipe_signals, 0);
		close_well(ch[0]);
		if (!lost) {
			close_well(ch[1]);
		}
		munmap(map, SENT_BYTES);
		close(s.fd);
	}
}

TEST(a_vector_of_any_length_is_written_through_short_and_interrupted_writes)
{
	enum { N = 1000 };
	struct gr_memory_script script = { .write_max = 7, .eintr_every = 3 };
	struct gr_channel *ch;
	struct iovec iov[N];
	uint8_t data[N * 5];
	const uint8_t *got;
	size_t bytes = 0, n;

	ASSERT_EQ(gr_channel_memory(&script, &ch, NULL), 0);
	for (size_t i = 0; i < N; i++) {
		size_t len = i % 6; /* empty ones too */

		for (size_t j = 0; j < len; j++) {
			data[bytes + j] = (uint8_t)(i * 31 + j);
		}
		iov[i] = (struct iovec){ data + bytes, len };
		bytes += len;
	}
	ASSERT_EQ(gr_channel_writev_all(ch, iov, N, NULL), 0);
	got = gr_channel_memory_written(ch, &n);
	ASSERT_EQ(n, bytes);
	ASSERT_MEM_EQ(got, data, n);
	ASSERT_EQ(gr_channel_bytes_written(ch), n);
	close_well(ch);
}

TEST(reads_return_what_came)
{
	static const uint8_t data[] = "0123456789";
	struct gr_memory_script script = {
		.data = data,
		.bytes = 10,
		.read_max = 4,
		.eintr_every = 2,
		.read_error = -EIO,
	};
	uint8_t a[3], b[20];
	struct iovec iov[2] = { { a, sizeof(a) }, { b, sizeof(b) } };
	struct gr_error err = { 0 };
	struct gr_channel *ch;

	ASSERT_EQ(gr_channel_memory(&script, &ch, NULL), 0);
	ASSERT_EQ(gr_channel_readv(ch, iov, 2, &err), 4);
	ASSERT_MEM_EQ(a, "012", 3);
	ASSERT_EQ(b[0], '3');
	ASSERT_EQ(gr_channel_readv(ch, iov, 2, &err), 4);
	ASSERT_EQ(gr_channel_readv(ch, iov, 2, &err), 2);
	ASSERT_EQ(gr_channel_readv(ch, iov, 2, &err), -EIO);
	ASSERT_HAS(err.msg, "memory: read");
	close_well(ch);
}

TEST(a_gigantic_transfer_is_not_cut)
{
	enum { BYTES = 8 << 20 };
	static char out[BYTES], in[BYTES];
	struct gr_channel_listener *l = listening("tcp:127.0.0.1:0");
	struct gr_channel *a = connected(gr_channel_listener_uri(l)), *b = accepted(l);
	pid_t pid;

	for (int i = 0; i < BYTES; i++) {
		out[i] = (char)(i * 7 + (i >> 11));
	}
	pid = fork();
	if (pid == 0) {
		_exit(gr_channel_write_all(a, out, BYTES, NULL) == 0 ? 0 : 1);
	}
	for (size_t n = 0; n < BYTES;) {
		struct iovec iov = { in + n, BYTES - n };
		ssize_t rc = gr_channel_readv(b, &iov, 1, NULL);

		ASSERT_GT(rc, 0);
		n += (size_t)rc;
	}
	ASSERT_MEM_EQ(in, out, BYTES);
	close_well(a);
	hear_end(b);
	close_well(b);
	gr_channel_listener_close(l);
}

TEST(closing_nothing_is_allowed)
{
	ASSERT_EQ(gr_channel_close(NULL, NULL), 0);
	gr_channel_listener_close(NULL);
}

TEST_MAIN()
