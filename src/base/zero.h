/* SPDX-License-Identifier: MIT */
/* Is a page zero? */
#ifndef GR_BASE_ZERO_H
#define GR_BASE_ZERO_H

#include "base/compiler.h"

/*
 * `n`, a multiple of 8, words. Guest memory may be written while we look: each word on its own, no
 * order wanted. Reading is the bound, so there is nothing to gain from wider registers.
 */
__attribute__((no_sanitize("thread"))) static inline bool gr_words_are_zero(const uint64_t *w,
									    size_t n)
{
	const volatile uint64_t *v = w;

	/* Most pages that are not zero show it in the first of three words. */
	if (v[0] != 0 || v[n / 2] != 0 || v[n - 1] != 0) {
		return false;
	}
	for (size_t i = 0; i < n; i += 8) {
		uint64_t any = w[i] | w[i + 1] | w[i + 2] | w[i + 3] | w[i + 4] | w[i + 5] |
			       w[i + 6] | w[i + 7];

		if (any != 0) {
			return false;
		}
	}
	return true;
}

static inline bool gr_page_is_zero(const uint8_t *page, size_t bytes)
{
	return gr_words_are_zero((const uint64_t *)(const void *)page, bytes / 8);
}

#endif
