/* SPDX-License-Identifier: MIT */
#include "run.h"
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

static struct test_case *first_test, **last_test = &first_test;
static uint64_t seed;
int test_skip_fd = -1;

void test_register(struct test_case *t)
{
	*last_test = t;
	last_test = &t->next;
}

TEST_PRINTF(3, 0) static void vsay(FILE *f, const char *prefix,
							  const char *fmt, va_list ap)
{
	char text[1024];
	int n = snprintf(text, sizeof(text), "%s", prefix);

	n += vsnprintf(text + n, sizeof(text) - (size_t)n - 2, fmt, ap);
	if (n > (int)sizeof(text) - 2) {
		n = (int)sizeof(text) - 2;
	}
	text[n++] = '\n';
	(void)!write(fileno(f), text, (unsigned int)n);
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
	(void)!write(test_skip_fd, text, (unsigned int)n);
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

/*
 * Is the test named in the file GR_TEST_LIMITS, which says what this machine cannot do? Lines:
 * `test: reason`, `# remark`.
 */
static bool beyond_limits(const char *name, char *why, size_t why_bytes)
{
	const char *file = getenv("GR_TEST_LIMITS");
	FILE *f = file && *file ? fopen(file, "r") : NULL;
	size_t n = strlen(name);
	bool found = false;
	char line[512];

	while (f && !found && fgets(line, sizeof(line), f)) {
		found = strncmp(line, name, n) == 0 && line[n] == ':';
	}
	if (found) {
		line[strcspn(line, "\r\n")] = '\0';
		(void)snprintf(why, why_bytes, "%s", line + n + 1 + strspn(line + n + 1, " "));
	}
	if (f) {
		fclose(f);
	}
	return found;
}

bool test_may(const char *what)
{
	char why[256];

	return !beyond_limits(what, why, sizeof(why));
}

static bool run_one(const struct test_case *t, int number, int seconds)
{
	char why[256] = "";

	fflush(NULL);
	if (beyond_limits(t->name, why, sizeof(why))) {
		printf("ok %d - %s # SKIP %s\n", number, t->name, why);
		return true;
	}
	switch (test_run(t, seconds, why, sizeof(why))) {
	case EXIT_OK:
		printf("ok %d - %s\n", number, t->name);
		return true;
	case EXIT_SKIPPED:
		printf("ok %d - %s # SKIP %s\n", number, t->name, why);
		return true;
	default:
		if (*why) {
			test_diag("%s: %s", t->name, why);
		}
		printf("not ok %d - %s\n", number, t->name);
		return false;
	}
}

int test_main(int argc, char **argv)
{
	const char *s = getenv("GR_SEED");
	const char *limit = getenv("GR_TEST_TIMEOUT");
	int seconds = limit ? atoi(limit) : 60;
	int count = 0, number = 0;
	bool good = true;

	test_run_init(&argc, argv, first_test);
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
