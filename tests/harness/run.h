/* SPDX-License-Identifier: MIT */
/*
 * How a test gets a process of its own: run_fork.c forks, run_spawn.c (Windows) starts the
 * program again with the test's name.
 */
#ifndef RUN_H
#define RUN_H

#include "harness.h"

/* How a test's process ends: its exit status. */
enum { EXIT_OK = 0, EXIT_FAILED = 1, EXIT_SKIPPED = 3 };

/* In a test's process: where the reason of a skip goes. */
extern int test_skip_fd;

/* First of all. May turn out to be a test's process: runs it then and does not return. */
void test_run_init(int *argc, char **argv, const struct test_case *tests);

/*
 * Runs it, for so many seconds at most, and ends whatever it started. Returns how it ended; why:
 * the reason of a skip, or what it died of.
 */
int test_run(const struct test_case *t, int seconds, char *why, size_t why_bytes);

#endif
