/* SPDX-License-Identifier: MIT */
/*
 * exec: channels: a pipe to or from a command. How the command ended belongs to the
 * answer: `exec:gzip > /full/disk` fails when the channel is closed, not silently.
 */
#include "base/atomic.h"
#include "stream/channel.h"
#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <spawn.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

/* gr_channel_close() frees the channel, so it comes first. */
struct exec_channel {
	struct gr_channel ch;
	pid_t pid;	  /* (c) */
	bool read_to_end; /* (o) the reading thread saw the end */
};

static_assert(offsetof(struct exec_channel, ch) == 0, "freed as a channel");

static ssize_t exec_readv(struct gr_channel *ch, const struct iovec *iov, int n)
{
	struct exec_channel *e = gr_container_of(ch, struct exec_channel, ch);
	ssize_t got = readv(ch->fd, iov, n);

	if (got == 0) {
		e->read_to_end = true;
	}
	return got < 0 ? -errno : got;
}

static ssize_t exec_writev(struct gr_channel *ch, const struct iovec *iov, int n)
{
	return gr_channel_pipe_writev(ch->fd, iov, n);
}

static void exec_before_close(struct gr_channel *ch)
{
	struct exec_channel *e = gr_container_of(ch, struct exec_channel, ch);

	if (gr_load_relaxed(&ch->shut)) {
		(void)kill(e->pid, SIGTERM);
	}
}

/* Itself, or the shell says so of what it ran. */
static bool died_of_sigpipe(int status)
{
	return (WIFSIGNALED(status) && WTERMSIG(status) == SIGPIPE) ||
	       (WIFEXITED(status) && WEXITSTATUS(status) == 128 + SIGPIPE);
}

static int exec_after_close(struct gr_channel *ch, struct gr_error *err)
{
	struct exec_channel *e = gr_container_of(ch, struct exec_channel, ch);
	int status = 0;
	pid_t got;

	do {
		got = waitpid(e->pid, &status, 0);
	} while (got < 0 && errno == EINTR);
	if (gr_load_relaxed(&ch->shut)) {
		return 0;
	}
	if (got < 0) {
		return gr_error_set(err, -EIO, "%s: how the command ended is unknown: %s", ch->name,
				    strerror(errno));
	}
	if (WIFEXITED(status) && WEXITSTATUS(status) == 0) {
		return 0;
	}
	if (ch->ops->readv && !e->read_to_end && died_of_sigpipe(status)) {
		return 0; /* we stopped reading early: our decision */
	}
	if (WIFEXITED(status)) {
		return gr_error_set(err, -EIO, "%s: the command ended with status %d", ch->name,
				    WEXITSTATUS(status));
	}
	return gr_error_set(err, -EIO, "%s: the command was killed by signal %d (%s)", ch->name,
			    WTERMSIG(status), strsignal(WTERMSIG(status)));
}

static const struct gr_channel_ops exec_reads = {
	.readv = exec_readv,
	.before_close = exec_before_close,
	.after_close = exec_after_close,
};
static const struct gr_channel_ops exec_writes = {
	.writev = exec_writev,
	.before_close = exec_before_close,
	.after_close = exec_after_close,
};

/* The command with child_fd as its standard input (writing) or output. Returns an errno. */
static int spawn(const char *command, bool writing, int child_fd, pid_t *ret_pid)
{
	static char sh[] = "sh", dash_c[] = "-c";
	char *argv[] = { sh, dash_c, (char *)(uintptr_t)command, NULL };
	posix_spawn_file_actions_t actions;
	posix_spawnattr_t attr;
	sigset_t none, pipe_set;
	int rc;

	(void)sigemptyset(&none);
	(void)sigemptyset(&pipe_set);
	(void)sigaddset(&pipe_set, SIGPIPE);
	rc = posix_spawn_file_actions_init(&actions);
	if (rc != 0) {
		return rc;
	}
	rc = posix_spawnattr_init(&attr);
	if (rc != 0) {
		(void)posix_spawn_file_actions_destroy(&actions);
		return rc;
	}
	/* The command starts with ordinary signals, whatever this process has set. */
	(void)posix_spawnattr_setsigmask(&attr, &none);
	(void)posix_spawnattr_setsigdefault(&attr, &pipe_set);
	(void)posix_spawnattr_setflags(&attr, POSIX_SPAWN_SETSIGMASK | POSIX_SPAWN_SETSIGDEF);
	if (writing) {
		rc = posix_spawn_file_actions_adddup2(&actions, child_fd, STDIN_FILENO);
		/* Our standard output is for data; what the command says is not. */
		rc = rc ? rc
			: posix_spawn_file_actions_adddup2(&actions, STDERR_FILENO, STDOUT_FILENO);
	} else {
		rc = posix_spawn_file_actions_addopen(&actions, STDIN_FILENO, "/dev/null", O_RDONLY,
						      0);
		rc = rc ? rc : posix_spawn_file_actions_adddup2(&actions, child_fd, STDOUT_FILENO);
	}
	rc = rc ? rc : posix_spawn(ret_pid, "/bin/sh", &actions, &attr, argv, environ);
	(void)posix_spawnattr_destroy(&attr);
	(void)posix_spawn_file_actions_destroy(&actions);
	return rc;
}

/* Keeps the child's end off 0, 1 and 2, which the child's set-up writes over. */
static int above_stdio(int fd)
{
	int moved;

	if (fd > STDERR_FILENO) {
		return fd;
	}
	moved = fcntl(fd, F_DUPFD_CLOEXEC, STDERR_FILENO + 1);
	close(fd);
	return moved;
}

int gr_exec_open(const char *command, const char *uri, bool writing, struct gr_channel **ret_ch,
		 struct gr_error *err)
{
	struct exec_channel *e = calloc(1, sizeof(*e));
	int ends[2];
	int rc;

	if (!e) {
		return gr_error_set(err, -ENOMEM, "%s: out of memory", uri);
	}
	if (pipe2(ends, O_CLOEXEC) != 0) {
		rc = -errno;
		free(e);
		return gr_error_set(err, rc, "%s: pipe: %s", uri, strerror(-rc));
	}
	(void)fcntl(ends[0], F_SETPIPE_SZ, 1 << 20);
	ends[writing ? 0 : 1] = above_stdio(ends[writing ? 0 : 1]);
	/* Our end only: the command finds an ordinary, blocking pipe. */
	(void)fcntl(ends[writing ? 1 : 0], F_SETFL, O_NONBLOCK);
	rc = gr_channel_init(&e->ch, writing ? &exec_writes : &exec_reads, uri,
			     ends[writing ? 1 : 0], err);
	if (rc < 0) {
		close(ends[0]);
		close(ends[1]);
		free(e);
		return rc;
	}
	rc = spawn(command, writing, ends[writing ? 0 : 1], &e->pid);
	close(ends[writing ? 0 : 1]);
	if (rc != 0) {
		(void)gr_channel_fini(&e->ch);
		free(e);
		return gr_error_set(err, -rc, "%s: cannot start /bin/sh: %s", uri, strerror(rc));
	}
	*ret_ch = &e->ch;
	return 0;
}
