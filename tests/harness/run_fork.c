/* SPDX-License-Identifier: MIT */
#include "run.h"
#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

void test_run_init(int *argc, char **argv, const struct test_case *tests)
{
	(void)argc;
	(void)argv;
	(void)tests;
}

int test_in_child(void (*fn)(void *), void *arg, char *err_text, size_t err_bytes)
{
	int p[2], status = -1;
	size_t n = 0;
	pid_t pid;

	fflush(NULL);
	if (pipe(p) != 0 || (pid = fork()) < 0) {
		FAIL("cannot fork: %s", strerror(errno));
	}
	if (pid == 0) {
		dup2(p[1], STDERR_FILENO);
		close(p[0]);
		close(p[1]);
		fn(arg);
		exit(0);
	}
	close(p[1]);
	for (;;) {
		char drop[256];
		bool keep = err_text && n + 1 < err_bytes;
		ssize_t got = keep ? read(p[0], err_text + n, err_bytes - n - 1)
				   : read(p[0], drop, sizeof(drop));

		if (got < 0 && errno == EINTR) {
			continue;
		}
		if (got <= 0) {
			break;
		}
		n += keep ? (size_t)got : 0;
	}
	if (err_text && err_bytes) {
		err_text[n] = '\0';
	}
	close(p[0]);
	while (waitpid(pid, &status, 0) < 0 && errno == EINTR) {
	}
	return status;
}

void *test_pages(size_t bytes)
{
	void *p = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	ASSERT(p != MAP_FAILED);
	return p;
}

void test_pages_free(void *pages, size_t bytes)
{
	ASSERT_EQ(munmap(pages, bytes), 0);
}

/* Waits for the child, killing its process group when the time is up. */
static int wait_for(pid_t pid, int seconds)
{
	struct timespec step = { 0, 2000000 };
	struct timespec start, now;
	int status;

	clock_gettime(CLOCK_MONOTONIC, &start);
	for (;;) {
		pid_t got = waitpid(pid, &status, WNOHANG);

		if (got == pid) {
			return status;
		}
		clock_gettime(CLOCK_MONOTONIC, &now);
		if (now.tv_sec - start.tv_sec > seconds) {
			test_diag("no end after %d s", seconds);
			kill(-pid, SIGKILL);
			waitpid(pid, &status, 0);
			return status;
		}
		nanosleep(&step, NULL);
	}
}

int test_run(const struct test_case *t, int seconds, char *why, size_t why_bytes)
{
	int skip_pipe[2], status;
	pid_t pid;
	ssize_t n;

	if (pipe(skip_pipe) != 0 || (pid = fork()) < 0) {
		(void)snprintf(why, why_bytes, "cannot fork: %s", strerror(errno));
		return EXIT_FAILED;
	}
	if (pid == 0) {
		setpgid(0, 0);
		close(skip_pipe[0]);
		test_skip_fd = skip_pipe[1];
		t->fn();
		fflush(NULL);
		exit(EXIT_OK); /* runs the leak checker */
	}
	setpgid(pid, pid);
	close(skip_pipe[1]);
	status = wait_for(pid, seconds);
	kill(-pid, SIGKILL); /* whatever the test left running */
	n = read(skip_pipe[0], why, why_bytes - 1);
	why[n > 0 ? n : 0] = '\0';
	close(skip_pipe[0]);
	if (WIFSIGNALED(status)) {
		(void)snprintf(why, why_bytes, "killed by signal %d (%s)", WTERMSIG(status),
			       strsignal(WTERMSIG(status)));
		return EXIT_FAILED;
	}
	return WEXITSTATUS(status);
}
