/* SPDX-License-Identifier: MIT */
/* Is a page zero? */
#ifndef GR_BASE_ZERO_H
#define GR_BASE_ZERO_H

#include "base/compiler.h"

struct gr_two_words {
	uint64_t v __attribute__((vector_size(16), may_alias));
};

/*
 * `n`, a multiple of 8, words. Guest memory may be written while we look: each word on its own, no
 * order wanted. Reading is the bound: what counts is that the processor has many lines on their way, so
 * few instructions each.
 */
__attribute__((no_sanitize("thread"))) static inline bool gr_words_are_zero(const uint64_t *w,
									    size_t n)
{
	const volatile uint64_t *v = w;
	const struct gr_two_words *two = (const void *)w;

	/* Most pages that are not zero show it in the first of three words. */
	if (v[0] != 0 || v[n / 2] != 0 || v[n - 1] != 0) {
		return false;
	}
	for (size_t i = 0; i < n / 2; i += 4) {
		__typeof__(two->v) any = two[i].v | two[i + 1].v | two[i + 2].v | two[i + 3].v;

		if ((any[0] | any[1]) != 0) {
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
