/* SPDX-License-Identifier: MIT */
#define _CRT_RAND_S /* declares rand_s() */
#include "base/random.h"
#include <string.h>

bool gr_random(void *memory, size_t bytes)
{
	uint8_t *to = memory;
	unsigned int word;

	while (bytes != 0) {
		size_t n = GR_MIN(bytes, sizeof(word));

		if (rand_s(&word) != 0) {
			return false;
		}
		memcpy(to, &word, n);
		to += n;
		bytes -= n;
	}
	return true;
}
