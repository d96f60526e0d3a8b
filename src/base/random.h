/* SPDX-License-Identifier: MIT */
#ifndef GR_BASE_RANDOM_H
#define GR_BASE_RANDOM_H

#include "base/compiler.h"

/* Fills memory (256 bytes at most) with what nobody can guess; false: cannot without waiting. */
GR_MUST_CHECK bool gr_random(void *memory, size_t bytes);

#endif
