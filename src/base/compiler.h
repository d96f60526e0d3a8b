/* SPDX-License-Identifier: MIT */
/* Small language helpers; nothing here knows about guests. */
#ifndef GR_BASE_COMPILER_H
#define GR_BASE_COMPILER_H

#include <guestram/types.h>
#include <stdlib.h>

#define GR_CLEANUP(fn) __attribute__((cleanup(fn)))
#define GR_ALIGNED(n)  __attribute__((aligned(n)))
#define GR_COLD	       __attribute__((cold, noinline))
#define GR_CACHE_LINE  64
#define GR_ARRAY_SIZE(a) (sizeof(a) / sizeof((a)[0]))

#define gr_container_of(ptr, type, member) ((type *)(void *)((char *)(ptr)-offsetof(type, member)))

#define GR_MIN(a, b)                                                                               \
	({                                                                                         \
		__typeof__(a) a_ = (a);                                                            \
		__typeof__(b) b_ = (b);                                                            \
		a_ < b_ ? a_ : b_;                                                                 \
	})
#define GR_MAX(a, b)                                                                               \
	({                                                                                         \
		__typeof__(a) a_ = (a);                                                            \
		__typeof__(b) b_ = (b);                                                            \
		a_ > b_ ? a_ : b_;                                                                 \
	})
#define GR_DIV_ROUND_UP(a, b)	(((a) + (b)-1) / (b))
#define GR_ROUND_UP(a, b)	(GR_DIV_ROUND_UP(a, b) * (b))
#define GR_IS_ALIGNED(a, b)	(((a) & ((b)-1)) == 0)
#define GR_IS_POWER_OF_TWO(a)	((a) != 0 && ((a) & ((a)-1)) == 0)

#if defined(__SANITIZE_THREAD__)
#define GR_TSAN 1
#elif defined(__has_feature)
#if __has_feature(thread_sanitizer)
#define GR_TSAN 1
#endif
#endif
#ifndef GR_TSAN
#define GR_TSAN 0
#endif
#if defined(__SANITIZE_ADDRESS__)
#define GR_ASAN 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define GR_ASAN 1
#endif
#endif
#ifndef GR_ASAN
#define GR_ASAN 0
#endif

/* For our own bugs only, never for input. Stays in release builds. */
void gr_assert_fail(const char *expr, const char *file, int line, const char *func)
	__attribute__((noreturn));
#define GR_ASSERT(e) (GR_LIKELY(e) ? (void)0 : gr_assert_fail(#e, __FILE__, __LINE__, __func__))

/* In checking builds (-Ddebug_checks=true) also on hot paths. */
#ifdef GR_DEBUG_CHECKS
#define GR_DEBUG_ASSERT(e) GR_ASSERT(e)
#else
#define GR_DEBUG_ASSERT(e) ((void)0)
#endif

/* Misuse by the caller that cannot be reported by a return value: says what and dies. */
void gr_die(const char *fmt, ...) GR_PRINTF(1, 2) __attribute__((noreturn));

#endif
