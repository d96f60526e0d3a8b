/* SPDX-License-Identifier: MIT */
/*
 * A fuzz target is fuzz_<input>.c with this one function. It is built twice: with libFuzzer
 * (-Dfuzz=true, clang) and, always, with replay.c, which runs the inputs of corpus/<input>
 * as a test.
 */
#ifndef FUZZ_H
#define FUZZ_H

#include <stddef.h>
#include <stdint.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n);

#endif
