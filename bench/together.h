/* SPDX-License-Identifier: MIT */
/*
 * Short loops in one or more threads, each on a processor of its own. They are measured in many
 * short stretches, each started together, and the fastest one counts in which all of them ran from
 * beginning to end. Other work, also that of a stranger on the other half of a host's processor,
 * can only make a stretch slower; but threads that contend for a line are faster while one of them
 * is held up, and such stretches do not count.
 */
#ifndef BENCH_TOGETHER_H
#define BENCH_TOGETHER_H

enum { BENCH_TOGETHER_MAX = 8 };

/* Seconds of the fastest of so many stretches. `work` is a stretch of thread number `thread`. */
double bench_together_s(unsigned threads, unsigned stretches,
			void (*work)(void *opaque, unsigned thread), void *opaque);

#endif
