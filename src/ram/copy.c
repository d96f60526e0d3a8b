/* SPDX-License-Identifier: MIT */
#include "ram/copy.h"
#include "base/atomic.h"
#include <string.h>

#define GR_RACY __attribute__((no_sanitize("thread")))

/* 8 bytes at once: by plain accesses of 32-bit hosts they would be two pieces. */
GR_RACY static uint64_t load_8(const void *guest)
{
#if __SIZEOF_POINTER__ == 8
	return *(const volatile uint64_t *)guest;
#else
	return __atomic_load_n((const uint64_t *)guest, __ATOMIC_RELAXED);
#endif
}

GR_RACY static void store_8(void *guest, uint64_t v)
{
#if __SIZEOF_POINTER__ == 8
	*(volatile uint64_t *)guest = v;
#else
	__atomic_store_n((uint64_t *)guest, v, __ATOMIC_RELAXED);
#endif
}

/* The largest of 1, 2, 4, 8 that the guest address is aligned to and that still fits. */
GR_RACY static size_t piece(const void *guest, size_t bytes)
{
#ifdef GR_MUTANT_COPY_HALF_WORDS
	size_t n = 4;
#else
	size_t n = 8;
#endif

	while (n > bytes || (uintptr_t)guest % n != 0) {
		n /= 2;
	}
	return n;
}

/* Of less than 8 bytes. */
GR_RACY static void load_piece(unsigned char *to, const volatile void *guest, size_t n)
{
	switch (n) {
	case 4: {
		uint32_t v = *(const volatile uint32_t *)guest;

		__builtin_memcpy(to, &v, 4);
		break;
	}
	case 2: {
		uint16_t v = *(const volatile uint16_t *)guest;

		__builtin_memcpy(to, &v, 2);
		break;
	}
	default:
		*to = *(const volatile unsigned char *)guest;
	}
}

GR_RACY static void store_piece(volatile void *guest, const unsigned char *from, size_t n)
{
	switch (n) {
	case 4: {
		uint32_t v;

		__builtin_memcpy(&v, from, 4);
		*(volatile uint32_t *)guest = v;
		break;
	}
	case 2: {
		uint16_t v;

		__builtin_memcpy(&v, from, 2);
		*(volatile uint16_t *)guest = v;
		break;
	}
	default:
		*(volatile unsigned char *)guest = *from;
	}
}

GR_RACY void gr_copy_from_guest(void *to, const void *guest, size_t bytes)
{
	const unsigned char *from = guest;
	unsigned char *out = to;

	while (bytes != 0) {
		size_t n = piece(from, bytes);

		/* The body, without asking again for each word. */
		for (; n == 8 && bytes >= 8; from += 8, out += 8, bytes -= 8) {
			uint64_t v = load_8(from);

			__builtin_memcpy(out, &v, 8);
		}
		if (n != 8) {
			load_piece(out, from, n);
			from += n;
			out += n;
			bytes -= n;
		}
	}
}

GR_RACY void gr_copy_to_guest(void *guest, const void *from, size_t bytes)
{
	const unsigned char *in = from;
	unsigned char *to = guest;

	while (bytes != 0) {
		size_t n = piece(to, bytes);

		for (; n == 8 && bytes >= 8; to += 8, in += 8, bytes -= 8) {
			uint64_t v;

			__builtin_memcpy(&v, in, 8);
			store_8(to, v);
		}
		if (n != 8) {
			store_piece(to, in, n);
			to += n;
			in += n;
			bytes -= n;
		}
	}
}

GR_RACY void gr_fill_guest(void *guest, unsigned char byte, size_t bytes)
{
	volatile unsigned char *to = guest;
	uint64_t word = byte * UINT64_C(0x0101010101010101);

	for (; bytes != 0 && (uintptr_t)to % 8 != 0; bytes--) {
		*to++ = byte;
	}
	for (; bytes >= 8; to += 8, bytes -= 8) {
		*(volatile uint64_t *)(volatile void *)to = word;
	}
	for (; bytes != 0; bytes--) {
		*to++ = byte;
	}
}

#define CMPXCHG(type)                                                                              \
	({                                                                                         \
		type old_, new_;                                                                   \
		_Bool swapped_;                                                                    \
		__builtin_memcpy(&old_, expected, sizeof(old_));                                   \
		__builtin_memcpy(&new_, desired, sizeof(new_));                                    \
		swapped_ = gr_cas_seq_cst((type *)guest, &old_, new_);                             \
		__builtin_memcpy(expected, &old_, sizeof(old_));                                   \
		swapped_;                                                                          \
	})

_Bool gr_cmpxchg_guest(void *guest, void *expected, const void *desired, size_t bytes)
{
	switch (bytes) {
	case 1:
		return CMPXCHG(uint8_t);
	case 2:
		return CMPXCHG(uint16_t);
	case 4:
		return CMPXCHG(uint32_t);
	default:
		return CMPXCHG(uint64_t);
	}
}
