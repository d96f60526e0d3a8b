/* SPDX-License-Identifier: MIT */
#include "base/random.h"
#include <unistd.h>

bool gr_random(void *memory, size_t bytes)
{
	return getentropy(memory, bytes) == 0;
}
