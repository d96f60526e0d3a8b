/* SPDX-License-Identifier: MIT */
#include "harness.h"
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

/* How a test's child ends: what the parent reads from its exit status. */
enum { EXIT_OK = 0, EXIT_FAILED = 1, EXIT_SKIPPED = 3 };

static struct test_case *first_test, **last_test = &first_test;
static uint64_t seed;
static int skip_pipe[2];

void test_register(struct test_case *t)
{
	*last_test = t;
	last_test = &t->next;
}

__attribute__((format(printf, 3, 0))) static void vsay(FILE *f, const char *prefix,
							  const char *fmt, va_list ap)
{
	char text[1024];
	int n = snprintf(text, sizeof(text), "%s", prefix);

	n += vsnprintf(text + n, sizeof(text) - (size_t)n - 2, fmt, ap);
	if (n > (int)sizeof(text) - 2) {
		n = (int)sizeof(text) - 2;
	}
	text[n++] = '\n';
	(void)!write(fileno(f), text, (size_t)n);
}

void test_diag(const char *fmt, ...)
{
	va_list ap;

	va_start(ap, fmt);
	vsay(stdout, "# ", fmt, ap);
	va_end(ap);
}

void test_fail(const char *file, int line, const char *fmt, ...)
{
	char where[256];
	va_list ap;

	(void)snprintf(where, sizeof(where), "# %s:%d: ", file, line);
	va_start(ap, fmt);
	vsay(stdout, where, fmt, ap);
	va_end(ap);
	_exit(EXIT_FAILED);
}

void test_skip(const char *fmt, ...)
{
	char text[256];
	va_list ap;
	int n;

	va_start(ap, fmt);
	n = vsnprintf(text, sizeof(text), fmt, ap);
	va_end(ap);
	if (n >= (int)sizeof(text)) {
		n = (int)sizeof(text) - 1;
	}
	(void)!write(skip_pipe[1], text, (size_t)n);
	_exit(EXIT_SKIPPED);
}

uint64_t test_seed(void)
{
	return seed;
}

uint64_t test_rand(uint64_t *state) /* splitmix64 */
{
	uint64_t z = (*state += 0x9e3779b97f4a7c15u);

	z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
	z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
	return z ^ (z >> 31);
}

double test_seconds(double by_default)
{
	const char *s = getenv("GR_TEST_SECONDS");

	return s ? atof(s) : by_default;
}

bool test_under_tsan(void)
{
#if defined(__SANITIZE_THREAD__)
	return true;
#elif defined(__has_feature)
#if __has_feature(thread_sanitizer)
	return true;
#endif
#endif
	return false;
}

bool test_under_asan(void)
{
#if defined(__SANITIZE_ADDRESS__)
	return true;
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
	return true;
#endif
#endif
	return false;
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
		ssize_t got = keep ? read(p[0], err_text + n, err_bytes - n - 1) :
				     read(p[0], drop, sizeof(drop));

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

static struct {
	const uint64_t *counter;
	double seconds;
} watched;

static void *watch(void *arg)
{
	const struct timespec step = { 0, 100000000 };
	uint64_t last = __atomic_load_n(watched.counter, __ATOMIC_RELAXED);
	double still = 0;

	(void)arg;
	while (still < watched.seconds) {
		uint64_t now;

		nanosleep(&step, NULL);
		now = __atomic_load_n(watched.counter, __ATOMIC_RELAXED);
		still = now == last ? still + 0.1 : 0;
		last = now;
	}
	FAIL("no progress for %.1f s, at %" PRIu64, watched.seconds, last);
}

void test_watch_progress(const uint64_t *counter, double seconds)
{
	pthread_attr_t attr;
	pthread_t t;

	watched.counter = counter;
	watched.seconds = seconds;
	pthread_attr_init(&attr);
	pthread_attr_setdetachstate(&attr, PTHREAD_CREATE_DETACHED);
	if (pthread_create(&t, &attr, watch, NULL) != 0) {
		FAIL("cannot start the watch");
	}
	pthread_attr_destroy(&attr);
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

static bool run_one(const struct test_case *t, int number, int seconds)
{
	char why[256];
	int status;
	pid_t pid;
	ssize_t n;

	fflush(NULL);
	if (pipe(skip_pipe) != 0 || (pid = fork()) < 0) {
		printf("not ok %d - %s # cannot fork: %s\n", number, t->name, strerror(errno));
		return false;
	}
	if (pid == 0) {
		setpgid(0, 0);
		close(skip_pipe[0]);
		t->fn();
		fflush(NULL);
		exit(EXIT_OK); /* runs the leak checker */
	}
	setpgid(pid, pid);
	close(skip_pipe[1]);
	status = wait_for(pid, seconds);
	kill(-pid, SIGKILL); /* whatever the test left running */
	n = read(skip_pipe[0], why, sizeof(why) - 1);
	why[n > 0 ? n : 0] = '\0';
	close(skip_pipe[0]);
	if (WIFEXITED(status) && WEXITSTATUS(status) == EXIT_SKIPPED) {
		printf("ok %d - %s # SKIP %s\n", number, t->name, why);
		return true;
	}
	if (WIFSIGNALED(status)) {
		test_diag("%s: killed by signal %d (%s)", t->name, WTERMSIG(status),
			  strsignal(WTERMSIG(status)));
	}
	if (WIFEXITED(status) && WEXITSTATUS(status) == EXIT_OK) {
		printf("ok %d - %s\n", number, t->name);
		return true;
	}
	printf("not ok %d - %s\n", number, t->name);
	return false;
}

int test_main(int argc, char **argv)
{
	const char *s = getenv("GR_SEED");
	const char *limit = getenv("GR_TEST_TIMEOUT");
	int seconds = limit ? atoi(limit) : 60;
	int count = 0, number = 0;
	bool good = true;

	seed = s ? strtoull(s, NULL, 0) : (uint64_t)time(NULL) * 1000003u + (uint64_t)getpid();
	setvbuf(stdout, NULL, _IOLBF, 0);
	for (int pass = 0; pass < 2; pass++) {
		if (pass == 1) {
			printf("1..%d\n# replay with GR_SEED=%" PRIu64 "\n", count, seed);
		}
		for (struct test_case *t = first_test; t; t = t->next) {
			bool wanted = argc < 2;

			for (int i = 1; i < argc; i++) {
				wanted |= strcmp(argv[i], t->name) == 0;
			}
			if (wanted && pass == 0) {
				count++;
			} else if (wanted) {
				good &= run_one(t, ++number, seconds);
			}
		}
	}
	return good && count > 0 ? 0 : 1;
}
