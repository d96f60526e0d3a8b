/* SPDX-License-Identifier: MIT */
/* A machine's RAM from a process of ours to another one, and the bound of it: a bare copy. */
#ifndef BENCH_MOVE_H
#define BENCH_MOVE_H

#include "bench/qemu.h"

/* As bench_qemu_move(): moves once, compares both memories, exits if anything fails or differs. */
struct bench_move bench_our_move(const struct bench_machine *m);

/* From a QEMU to a process of ours. */
struct bench_move bench_move_from_qemu(const struct bench_machine *m);

/* The same bytes through the same kind of socket into present memory, 1 MiB at a time, no format.
 */
double bench_bare_copy_s(const struct bench_machine *m);

#endif
