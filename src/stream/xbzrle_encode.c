/* SPDX-License-Identifier: MIT */
/*
 * XBZRLE, the sender's side. 64 bytes at a time become a mask of those that differ; runs are read
 * off the mask. Unchanged bytes between two runs are sent along where that costs no more than a
 * new pair would, which also keeps the runs few.
 *
 * What the format cannot say (see xbzrle.c): after the first pair something must be skipped, so two
 * runs always have an unchanged byte between them; and no number is longer than 14 bits.
 */
#include "stream/xbzrle_encode.h"
#include "base/endian.h"
#include <errno.h>
#include <guestram/codec.h>
#include <string.h>

#if defined(__x86_64__)
#	include <immintrin.h>
#endif

#define INLINE static inline __attribute__((always_inline))

enum {
	UNIT = 64,	     /* bytes in a mask */
	LENGTH_MAX = 0x3fff, /* what two bytes of a number hold */
	GAP_MAX = 3,	     /* unchanged bytes that are sent along rather than skipped */
	BLOCK = 4096,
	AHEAD = 1024, /* bytes that are asked for before they are compared */
	EDGES_MAX = BLOCK / 2 + 2,
	SHORT = 16, /* a run up to here is copied in one go, with what follows it */
};

struct out {
	const uint8_t *page, *page_end;
	uint8_t *at, *end;
	size_t done; /* of the page: everything before is said */
};

/* Always writes two bytes, and says how many of them count: no branch to be guessed. */
INLINE uint8_t *put_length(uint8_t *at, size_t n)
{
	size_t two = n >= 0x80;

	at[0] = (uint8_t)(n | two << 7);
	at[1] = (uint8_t)(n >> 7);
	return at + 1 + two;
}

/* One pair: [begin, end) of the page is new. False: no room, or too long for the format. */
INLINE bool put_pair(struct out *o, size_t begin, size_t end)
{
	size_t skip = begin - o->done, bytes = end - begin;
	size_t numbers = 2u + (skip >= 0x80) + (bytes >= 0x80);
	ptrdiff_t room, left = o->page_end - (o->page + begin);

	if (bytes > LENGTH_MAX || (size_t)(o->end - o->at) < numbers + bytes) {
		return false;
	}
	o->at = put_length(o->at, skip);
	o->at = put_length(o->at,
			   bytes); /* at most the first byte of what follows is overwritten */
	room = o->end - o->at;
#ifdef GR_MUTANT_XBZRLE_BEHIND_THE_ROOM
	room = SHORT;
#endif
#ifdef GR_MUTANT_XBZRLE_READS_ON
	left = SHORT;
#endif
	if (bytes <= SHORT && room >= SHORT && left >= SHORT) {
		memcpy(o->at, o->page + begin, SHORT);
	} else {
		memcpy(o->at, o->page + begin, bytes);
	}
	o->at += bytes;
	o->done = end;
	return true;
}

INLINE bool put_run(struct out *o, size_t begin, size_t end)
{
	/* A long way to it: on the way a byte is said again. Something is left to be skipped after
	 * it. */
	while (begin - o->done > LENGTH_MAX) {
		size_t stop = o->done + LENGTH_MAX - 1;

		if (!put_pair(o, stop, stop + 1)) {
			return false;
		}
	}
	return put_pair(o, begin, end);
}

/* Fills gaps of up to GAP_MAX zeros between ones. */
INLINE uint64_t close_gaps(uint64_t m)
{
	uint64_t wide = m | m << 1;

	wide |= wide << 2; /* each one reaches three further */
	wide &= wide >> 1;
	wide &= wide >> 2; /* and is taken back, but where it met another */
	return m | wide;
}

/* Where runs begin and end, in turn: each bit of `edges` is one. Written by fours: what is too much
 * is overwritten. */
INLINE uint32_t *put_edges(uint32_t *to, uint64_t edges, size_t unit)
{
	uint32_t *end = to + __builtin_popcountll(edges);

	for (; to < end; to += 4) {
		for (int i = 0; i < 4; i++) {
			to[i] = (uint32_t)unit +
				(uint32_t)__builtin_ctzll(edges | UINT64_C(1) << 63);
			edges &= edges - 1;
		}
	}
	return end;
}

/*
 * A block of the page at a time: first all edges, then all runs between them. The processor can
 * guess neither how many runs there are in a unit nor where, so no branch asks for each.
 */
INLINE ssize_t encode(const uint8_t *old, const uint8_t *page, size_t page_bytes, uint8_t *out,
		      size_t room, uint64_t (*differing)(const uint8_t *a, const uint8_t *b))
{
	struct out o = { page, page + page_bytes, out, out + room, 0 };
	uint32_t edges[EDGES_MAX + 4], *end = edges;
	uint64_t before = 0; /* whether the byte before this unit is in a run */
	size_t unit = 0;

	while (unit < page_bytes) {
		size_t block_end = GR_MIN(page_bytes, unit + BLOCK);
		const uint32_t *e = edges;

		for (; unit < block_end; unit += UNIT) {
			uint64_t m = differing(old + unit, page + unit);

			__builtin_prefetch(old + unit + AHEAD);
			__builtin_prefetch(page + unit + AHEAD);
			if ((m | before) == 0) {
				continue;
			}
			m = close_gaps(m);
			end = put_edges(end, m ^ (m << 1 | before), unit);
			before = m >> 63;
		}
		if (unit == page_bytes && before) {
			*end++ = (uint32_t)page_bytes;
		}
		for (; end - e >= 2; e += 2) {
			if (!put_run(&o, e[0], e[1])) {
				return -E2BIG;
			}
		}
		/* A run that goes on in the next block. */
		if (e < end) {
			edges[0] = *e;
		}
		end = edges + (end - e);
	}
	return o.at - out;
}

/* Bit i: byte i of these 64 differs. */
INLINE uint64_t differing_plain(const uint8_t *a, const uint8_t *b)
{
	const uint64_t low = UINT64_C(0x7f7f7f7f7f7f7f7f);
	uint64_t mask = 0;

	for (unsigned int i = 0; i < UNIT; i += 8) {
		uint64_t x, y;

		memcpy(&x, a + i, 8);
		memcpy(&y, b + i, 8);
		x ^= y;
		if (x == 0) {
			continue;
		}
		x = gr_le64(x);
		x = (((x & low) + low) | x) & ~low; /* the top bit of each byte that is not 0 */
		mask |= ((x >> 7) * UINT64_C(0x0102040810204080) >> 56) << i;
	}
	return mask;
}

static ssize_t encode_plain(const uint8_t *old, const uint8_t *page, size_t page_bytes,
			    uint8_t *out, size_t room)
{
	return encode(old, page, page_bytes, out, room, differing_plain);
}

#if defined(__x86_64__)
INLINE uint64_t differing_sse2(const uint8_t *a, const uint8_t *b)
{
	uint64_t same = 0;

	for (unsigned int i = 0; i < UNIT; i += 16) {
		__m128i x = _mm_loadu_si128((const __m128i *)(const void *)(a + i));
		__m128i y = _mm_loadu_si128((const __m128i *)(const void *)(b + i));

		same |= (uint64_t)(uint32_t)_mm_movemask_epi8(_mm_cmpeq_epi8(x, y)) << i;
	}
	return ~same;
}

static ssize_t encode_sse2(const uint8_t *old, const uint8_t *page, size_t page_bytes, uint8_t *out,
			   size_t room)
{
	return encode(old, page, page_bytes, out, room, differing_sse2);
}

#	define AVX512 __attribute__((target("avx512f,avx512bw,bmi,popcnt")))

AVX512 INLINE uint64_t differing_avx512(const uint8_t *a, const uint8_t *b)
{
	return _mm512_cmpneq_epi8_mask(_mm512_loadu_si512(a), _mm512_loadu_si512(b));
}

AVX512 static ssize_t encode_avx512(const uint8_t *old, const uint8_t *page, size_t page_bytes,
				    uint8_t *out, size_t room)
{
	return encode(old, page, page_bytes, out, room, differing_avx512);
}

#	define AVX2 __attribute__((target("avx2,bmi,popcnt")))

AVX2 INLINE uint64_t differing_avx2(const uint8_t *a, const uint8_t *b)
{
	__m256i x0 = _mm256_loadu_si256((const __m256i *)(const void *)a);
	__m256i x1 = _mm256_loadu_si256((const __m256i *)(const void *)(a + 32));
	__m256i y0 = _mm256_loadu_si256((const __m256i *)(const void *)b);
	__m256i y1 = _mm256_loadu_si256((const __m256i *)(const void *)(b + 32));
	uint32_t low = (uint32_t)_mm256_movemask_epi8(_mm256_cmpeq_epi8(x0, y0));
	uint32_t high = (uint32_t)_mm256_movemask_epi8(_mm256_cmpeq_epi8(x1, y1));

	return ~((uint64_t)high << 32 | low);
}

AVX2 static ssize_t encode_avx2(const uint8_t *old, const uint8_t *page, size_t page_bytes,
				uint8_t *out, size_t room)
{
	return encode(old, page, page_bytes, out, room, differing_avx2);
}
#endif

const struct gr_xbzrle_encoder *gr_xbzrle_encoder(unsigned int i)
{
	static const struct gr_xbzrle_encoder encoders[] = {
#if defined(__x86_64__)
		{ "avx512", encode_avx512 },
		{ "avx2", encode_avx2 },
		{ "sse2", encode_sse2 },
#endif
		{ "plain", encode_plain },
	};

#if defined(__x86_64__)
	if (!__builtin_cpu_supports("bmi") || !__builtin_cpu_supports("popcnt") ||
	    !__builtin_cpu_supports("avx2")) {
		i += 2;
	} else if (!__builtin_cpu_supports("avx512f") || !__builtin_cpu_supports("avx512bw")) {
		i++;
	}
#endif
	return i < GR_ARRAY_SIZE(encoders) ? &encoders[i] : NULL;
}

ssize_t gr_xbzrle_encode(const uint8_t *old, const uint8_t *page, size_t page_bytes, uint8_t *out,
			 size_t room)
{
	return gr_xbzrle_encoder(0)->encode(old, page, page_bytes, out, room);
}
