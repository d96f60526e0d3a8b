/* SPDX-License-Identifier: MIT */
/*
 * The test harness: TAP out, assertions that print both values and work from any
 * thread, skips that say why, seeds that replay.
 *
 *     TEST(mark_sets_both_ends_of_a_range)
 *     {
 *             ASSERT_EQ(a, b);
 *             if (!have_kvm)
 *                     SKIP("no /dev/kvm: %s", strerror(errno));
 *     }
 *     TEST_MAIN()
 *
 * Every test runs in a process of its own, so that a crash, a hang (after
 * GR_TEST_TIMEOUT seconds, default 60) or an abort fails that test alone. Arguments of
 * the program select tests by name; GR_TEST_LIMITS names a file of tests that this machine cannot
 * run, with the reasons (scripts/limits); GR_SEED replays a random test; GR_TEST_SECONDS
 * sets how long torture tests run.
 */
#ifndef HARNESS_H
#define HARNESS_H

#include <errno.h>
#include <inttypes.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#ifdef _WIN32 /* printf is C's, not that of the system's library */
#define TEST_PRINTF(f, a) __attribute__((format(gnu_printf, f, a)))
#else
#define TEST_PRINTF(f, a) __attribute__((format(printf, f, a)))
#endif

struct test_case {
	const char *name;
	void (*fn)(void);
	struct test_case *next;
};

void test_register(struct test_case *t);
int test_main(int argc, char **argv);
void test_fail(const char *file, int line, const char *fmt, ...)
	__attribute__((noreturn)) TEST_PRINTF(3, 4);
void test_skip(const char *fmt, ...) __attribute__((noreturn)) TEST_PRINTF(1, 2);

/* The run's seed (printed as a diagnostic) and a small generator on top of it. */
uint64_t test_seed(void);
uint64_t test_rand(uint64_t *state);
/* Seconds a torture test should take: GR_TEST_SECONDS or the given default. */
double test_seconds(double by_default);
/* True under ThreadSanitizer / AddressSanitizer: scale counts down, never skip silently. */
bool test_under_tsan(void);
bool test_under_asan(void);
/* False if GR_TEST_LIMITS names it: for the part of a test that a machine cannot do. */
bool test_may(const char *what);
/* Runs fn(arg) in a child; returns its wait status and what it wrote to stderr. */
int test_in_child(void (*fn)(void *), void *arg, char *err_text, size_t err_bytes);
/* Fresh memory by the page, gone when it is freed: late use faults. */
void *test_pages(size_t bytes);
void test_pages_free(void *pages, size_t bytes);
/* From now on the test fails when *counter stays the same for so long: for lost wake-ups. */
void test_watch_progress(const uint64_t *counter, double seconds);
void test_diag(const char *fmt, ...) TEST_PRINTF(1, 2);

/* Sleeps that long, signals or not. */
static inline void sleep_ms(long ms)
{
	struct timespec left = { ms / 1000, ms % 1000 * 1000000 };

	while (nanosleep(&left, &left) != 0 && errno == EINTR) {
	}
}

/* Where a function's code begins. By POWER's first ABI a pointer to it leads to a descriptor. */
static inline uintptr_t test_code_of(void (*fn)(void))
{
#if defined(__powerpc64__) && (!defined(_CALL_ELF) || _CALL_ELF != 2)
	return *(const uintptr_t *)(uintptr_t)fn;
#else
	return (uintptr_t)fn;
#endif
}

/*
 * For tests that fork while other threads run: the child of such a fork may find the allocator
 * of gcc 12's sanitizers locked by a thread that it does not have, and hang in its first malloc().
 */
#define SKIP_FORK_AMONG_THREADS_UNDER_SANITIZERS()                                                 \
	do {                                                                                       \
		if (test_under_asan() || test_under_tsan()) {                                      \
			test_skip("the sanitizer's allocator may be locked in a child that is forked " \
				  "among threads");                                                \
		}                                                                                  \
	} while (0)

/* clang's analysis of locks knows no nesting of sections, and no misuse on purpose. */
#ifdef __clang__
#define TEST_NO_TSA __attribute__((no_thread_safety_analysis))
#else
#define TEST_NO_TSA
#endif

#define TEST(ident)                                                                                \
	static void test_##ident(void) TEST_NO_TSA;                                                \
	__attribute__((constructor)) static void register_##ident(void)                            \
	{                                                                                          \
		static struct test_case t = { #ident, test_##ident, NULL };                        \
		test_register(&t);                                                                 \
	}                                                                                          \
	static void test_##ident(void)

#define TEST_MAIN()                                                                                \
	int main(int argc, char **argv)                                                            \
	{                                                                                          \
		return test_main(argc, argv);                                                      \
	}

/* The best backing of a block that this platform has. Where it is not memfd, there is no memfd. */
#ifdef GR_PLATFORM_LINUX
#define TEST_BACKING GR_RAM_MEMFD
#else
#define TEST_BACKING GR_RAM_ANONYMOUS
#endif

#define SKIP(...) test_skip(__VA_ARGS__)
#define FAIL(...) test_fail(__FILE__, __LINE__, __VA_ARGS__)

#define ASSERT(e)                                                                                  \
	do {                                                                                       \
		if (!(e))                                                                          \
			test_fail(__FILE__, __LINE__, "%s", #e);                                   \
	} while (0)

#define ASSERT_CMP_(a, op, b)                                                                      \
	do {                                                                                       \
		__typeof__(a) a_ = (a);                                                            \
		__typeof__(b) b_ = (b);                                                            \
		if (!(a_ op b_))                                                                   \
			test_fail(__FILE__, __LINE__, "%s %s %s: %lld (%#llx) against %lld (%#llx)",  \
				  #a, #op, #b, (long long)a_, (unsigned long long)a_,              \
				  (long long)b_, (unsigned long long)b_);                          \
	} while (0)
#define ASSERT_EQ(a, b) ASSERT_CMP_(a, ==, b)
#define ASSERT_NE(a, b) ASSERT_CMP_(a, !=, b)
#define ASSERT_LT(a, b) ASSERT_CMP_(a, <, b)
#define ASSERT_LE(a, b) ASSERT_CMP_(a, <=, b)
#define ASSERT_GT(a, b) ASSERT_CMP_(a, >, b)
#define ASSERT_GE(a, b) ASSERT_CMP_(a, >=, b)

#define ASSERT_PTR_EQ(a, b)                                                                        \
	do {                                                                                       \
		const void *a_ = (a), *b_ = (b);                                                   \
		if (a_ != b_)                                                                      \
			test_fail(__FILE__, __LINE__, "%s == %s: %p against %p", #a, #b, a_, b_);  \
	} while (0)

#define ASSERT_STR_EQ(a, b)                                                                        \
	do {                                                                                       \
		const char *a_ = (a), *b_ = (b);                                                   \
		if (strcmp(a_, b_) != 0)                                                           \
			test_fail(__FILE__, __LINE__, "%s == %s: \"%s\" against \"%s\"", #a, #b,   \
				  a_, b_);                                                         \
	} while (0)

/* The text must contain the words: for error messages. */
#define ASSERT_HAS(text, words)                                                                    \
	do {                                                                                       \
		const char *t_ = (text), *w_ = (words);                                            \
		if (!strstr(t_, w_))                                                               \
			test_fail(__FILE__, __LINE__, "\"%s\" does not say \"%s\"", t_, w_);       \
	} while (0)

#define ASSERT_MEM_EQ(a, b, n)                                                                     \
	do {                                                                                       \
		const unsigned char *a_ = (const void *)(a), *b_ = (const void *)(b);              \
		for (size_t i_ = 0, n_ = (n); i_ < n_; i_++)                                       \
			if (a_[i_] != b_[i_])                                                      \
				test_fail(__FILE__, __LINE__,                                      \
					  "%s and %s differ at byte %zu: %#x against %#x", #a, #b, \
					  i_, a_[i_], b_[i_]);                                     \
	} while (0)

#endif
