/* SPDX-License-Identifier: MIT */
#include "base/random.h"
#include <sys/random.h>
#include <sys/types.h>

bool gr_random(void *memory, size_t bytes)
{
	return getrandom(memory, bytes, GRND_NONBLOCK) == (ssize_t)bytes;
}
