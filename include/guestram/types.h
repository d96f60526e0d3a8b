/* SPDX-License-Identifier: MIT */
/**
 * guestram/types.h - address types, annotations and the version.
 *
 * Guest memory has three kinds of address and mixing them up is the classic bug of a
 * monitor, so each is a type of its own here: a one-field struct costs nothing and
 * does not convert.
 *
 *   gr_gpa_t       guest physical: what the guest's hardware would see
 *   gr_ram_addr_t  RAM address: a block's place in the flat space of all RAM blocks,
 *                  holes and remapping do not matter there
 *   void *         host pointer: where this process has the byte mapped
 */
#ifndef GUESTRAM_TYPES_H
#define GUESTRAM_TYPES_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
#define GR_BEGIN_DECLS extern "C" {
#define GR_END_DECLS   }
#else
#define GR_BEGIN_DECLS
#define GR_END_DECLS
#endif

#define GR_VERSION_MAJOR 0
#define GR_VERSION_MINOR 1
#define GR_VERSION_PATCH 0

#ifdef _WIN32
/* A static library there. And printf is C's here, not that of the system's library. */
#define GR_EXPORT
#define GR_PRINTF(f, a)	 __attribute__((format(gnu_printf, f, a)))
#else
#define GR_EXPORT	 __attribute__((visibility("default")))
#define GR_PRINTF(f, a)	 __attribute__((format(printf, f, a)))
#endif
#define GR_MUST_CHECK	 __attribute__((warn_unused_result))
#define GR_LIKELY(x)	 __builtin_expect(!!(x), 1)
#define GR_UNLIKELY(x)	 __builtin_expect(!!(x), 0)

/*
 * Locking rules in a form that clang's thread-safety analysis checks; gcc sees nothing.
 * The read-side section of RCU is a shared capability called gr_rcu_section.
 */
#if defined(__clang__) && !defined(__cplusplus)
#define GR_TSA(x) __attribute__((x))
#else
#define GR_TSA(x)
#endif
#define GR_CAPABILITY(name)	 GR_TSA(capability(name))
#define GR_GUARDED_BY(x)	 GR_TSA(guarded_by(x))
#define GR_REQUIRES(...)	 GR_TSA(requires_capability(__VA_ARGS__))
#define GR_REQUIRES_SHARED(...)	 GR_TSA(requires_shared_capability(__VA_ARGS__))
#define GR_ACQUIRE(...)		 GR_TSA(acquire_capability(__VA_ARGS__))
#define GR_RELEASE(...)		 GR_TSA(release_capability(__VA_ARGS__))
#define GR_TRY_ACQUIRE(...)	 GR_TSA(try_acquire_capability(__VA_ARGS__))
#define GR_ACQUIRE_SHARED(...)	 GR_TSA(acquire_shared_capability(__VA_ARGS__))
#define GR_RELEASE_SHARED(...)	 GR_TSA(release_shared_capability(__VA_ARGS__))
#define GR_ASSERT_SHARED(...)	 GR_TSA(assert_shared_capability(__VA_ARGS__))
#define GR_EXCLUDES(...)	 GR_TSA(locks_excluded(__VA_ARGS__))
#define GR_NO_TSA		 GR_TSA(no_thread_safety_analysis)

/**
 * A pointer that RCU publishes: only gr_rcu_dereference() may follow it. For people, and for sparse;
 * clang's noderef does not serve, because __typeof__ keeps it and right uses would be warned of.
 */
#ifdef __CHECKER__
#define __gr_rcu __attribute__((noderef))
#else
#define __gr_rcu
#endif

GR_BEGIN_DECLS

/* Private: 64 bits that are read and written whole. i386 would put them across two lines. */
typedef uint64_t gr_atomic_u64 __attribute__((aligned(8)));

/** A guest physical address. */
typedef struct {
	uint64_t v;
} gr_gpa_t;

/** An address in the flat space of RAM blocks. */
typedef struct {
	uint64_t v;
} gr_ram_addr_t;

/** @param v Guest physical address in bytes. @return It as its type. */
static inline gr_gpa_t gr_gpa(uint64_t v)
{
	gr_gpa_t a = { v };
	return a;
}

/** @param v RAM address in bytes. @return It as its type. */
static inline gr_ram_addr_t gr_ram_addr(uint64_t v)
{
	gr_ram_addr_t a = { v };
	return a;
}

/**
 * The library's version as "major.minor.patch".
 * @return A string that lives for ever.
 * @context Any.
 */
GR_EXPORT const char *gr_version(void);

GR_END_DECLS
#endif
