/* SPDX-License-Identifier: MIT */
/*
 * XBZRLE: a page as the difference to the content that both ends already have. Pairs of
 * "skip so many bytes, overwrite so many"; lengths are ULEB128 of at most two bytes.
 * Svard et al., VEE 2011.
 *
 * Nothing is written unless all of a delta is valid, but its lengths are read once only: where one
 * pair begins is known when the one before is understood, so that reading them is a chain that the
 * processor waits for, while their bytes can then be put in any order. So the runs are written down
 * first, and their places asked for; when all are known to be good, they are copied.
 */
#include "base/endian.h"
#include "stream/reader.h"
#include "stream/xbzrle_decode.h"
#include <errno.h>
#include <string.h>

#if defined(__x86_64__)
#	include <immintrin.h>
#endif

#define INLINE static inline __attribute__((always_inline))

/* So many are known before the first is copied; of a longer delta the rest is only checked. */
enum { RUNS_MAX = 512 };

struct run {
	uint32_t from, to, bytes; /* in the delta, in the page */
};

struct delta {
	const uint8_t *payload;
	size_t payload_bytes, page_bytes;
	size_t in, out; /* everything before is known */
};

/* Whether a run can say where it is. */
INLINE bool is_in_reach(const struct delta *d)
{
	uint64_t longest = GR_MAX(d->payload_bytes, d->page_bytes);

#ifdef GR_MUTANT_XBZRLE_ANY_LENGTH
	return true;
#endif
	return longest <= UINT32_MAX;
}

/* The next four bytes, as far as there are as many. */
INLINE uint64_t get_some(const uint8_t *p, size_t n)
{
	uint64_t w = 0;
	uint32_t some;

	if (n >= sizeof(some)) {
		memcpy(&some, p, sizeof(some));
		return gr_le32(some);
	}
	while (n-- > 0) {
		w = w << 8 | p[n];
	}
	return w;
}

/*
 * The next pair. Whether a skip has one byte or two cannot be guessed, so no branch asks; that more
 * than 127 bytes are new is rare. What is read beyond the delta is 0, which cannot be a number of
 * new bytes.
 */
INLINE int get_run(struct delta *d, struct run *run)
{
	uint64_t w = get_some(d->payload + d->in, d->payload_bytes - d->in);
	uint64_t two = w >> 7 & 1;
	size_t skip = (w & 0x7f) | (w >> 1 & 0x3f80 & -two), n;

	if ((w & 0x8080) == 0x8080 || (skip == 0 && d->in != 0)) {
		return -EBADMSG;
	}
	w = w >> 8 >> (two << 3);
	n = w & 0x7f;
	d->in += 2 + two;
	if (__builtin_expect((w & 0x80) != 0, 0)) {
		n |= w >> 1 & 0x3f80;
		d->in++;
		if ((w & 0x8000) || d->in > d->payload_bytes) {
			return -EBADMSG;
		}
	}
	d->out += skip;
	run->from = (uint32_t)d->in;
	run->to = (uint32_t)d->out;
	run->bytes = (uint32_t)n;
	d->out += n;
#ifndef GR_MUTANT_XBZRLE_LENGTH
	if (d->out > d->page_bytes) {
		return -EBADMSG;
	}
#endif
	if (n == 0 || n > d->payload_bytes - d->in) {
		return -EBADMSG;
	}
	d->in += n;
	return 0;
}

/* As many as there are, and at most RUNS_MAX. */
INLINE ssize_t get_runs(struct delta *d, struct run *runs, const uint8_t *page)
{
	ssize_t n = 0;

	while (d->in < d->payload_bytes && n < RUNS_MAX) {
		if (get_run(d, &runs[n]) < 0) {
			return -EBADMSG;
		}
		__builtin_prefetch(page + runs[n].to, 1);
		n++;
	}
	return n;
}

static int check_rest(struct delta d)
{
	struct run run;

	while (d.in < d.payload_bytes) {
		if (get_run(&d, &run) < 0) {
			return -EBADMSG;
		}
	}
	return 0;
}

int gr_xbzrle_check(const uint8_t *payload, size_t payload_bytes, size_t page_bytes)
{
	struct delta d = { payload, payload_bytes, page_bytes, 0, 0 };

	return is_in_reach(&d) ? check_rest(d) : -EBADMSG;
}

INLINE int decode(uint8_t *page, const uint8_t *payload, size_t payload_bytes, size_t page_bytes,
		  void (*copy)(uint8_t *page, const struct delta *d, const struct run *run))
{
	struct delta d = { payload, payload_bytes, page_bytes, 0, 0 };
	struct run runs[RUNS_MAX];
	ssize_t n = is_in_reach(&d) ? get_runs(&d, runs, page) : -EBADMSG;

#ifndef GR_MUTANT_XBZRLE_REST
	if (n == RUNS_MAX && check_rest(d) < 0) {
		n = -EBADMSG;
	}
#endif
	for (; n > 0; n = n < RUNS_MAX ? 0 : get_runs(&d, runs, page)) {
		for (const struct run *run = runs; run < runs + n; run++) {
			copy(page, &d, run);
		}
	}
	return (int)n;
}

typedef uint8_t chunk __attribute__((vector_size(16)));
enum { CHUNK = sizeof(chunk), SHORT = 2 * CHUNK };

/* Nearly all runs are short, and none can be guessed: their bytes are put among what is there
 * already. */
INLINE void copy_plain(uint8_t *page, const struct delta *d, const struct run *run)
{
	static const uint8_t masks[2 * SHORT] = {
		0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff,
		0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff,
		0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff,
	};
	const uint8_t *from = d->payload + run->from;
	uint8_t *to = page + run->to;
	size_t payload_left = d->payload_bytes - run->from, page_left = d->page_bytes - run->to;

#ifdef GR_MUTANT_XBZRLE_BEHIND_THE_DELTA
	payload_left = SHORT;
#endif
#ifdef GR_MUTANT_XBZRLE_BEHIND_THE_PAGE
	page_left = SHORT;
#endif
	if (run->bytes > SHORT || payload_left < SHORT || page_left < SHORT) {
		memcpy(to, from, run->bytes);
		return;
	}
	for (size_t i = 0; i < SHORT; i += CHUNK) {
		chunk old, new, mask;

		memcpy(&old, to + i, CHUNK);
		memcpy(&new, from + i, CHUNK);
		memcpy(&mask, masks + SHORT - run->bytes + i, CHUNK);
		old = (old & ~mask) | (new &mask);
		memcpy(to + i, &old, CHUNK);
	}
}

static int decode_plain(uint8_t *page, const uint8_t *payload, size_t payload_bytes,
			size_t page_bytes)
{
	return decode(page, payload, payload_bytes, page_bytes, copy_plain);
}

#if defined(__x86_64__)
#	define AVX512 __attribute__((target("avx512vl,avx512bw,bmi,bmi2")))

/* Bytes that the mask leaves out are neither read nor written, and need not exist. */
AVX512 INLINE void copy_avx512(uint8_t *page, const struct delta *d, const struct run *run)
{
	const uint8_t *from = d->payload + run->from;
	uint8_t *to = page + run->to;
	uint64_t mask = _bzhi_u64(UINT64_MAX, run->bytes);

	if (__builtin_expect(run->bytes > 64, 0)) {
		memcpy(to, from, run->bytes);
		return;
	}
	_mm256_mask_storeu_epi8(to, (__mmask32)mask,
				_mm256_maskz_loadu_epi8((__mmask32)mask, from));
	mask >>= 32;
	_mm256_mask_storeu_epi8(to + 32, (__mmask32)mask,
				_mm256_maskz_loadu_epi8((__mmask32)mask, from + 32));
}

AVX512 static int decode_avx512(uint8_t *page, const uint8_t *payload, size_t payload_bytes,
				size_t page_bytes)
{
	return decode(page, payload, payload_bytes, page_bytes, copy_avx512);
}
#endif

const struct gr_xbzrle_decoder *gr_xbzrle_decoder(unsigned int i)
{
	static const struct gr_xbzrle_decoder decoders[] = {
#if defined(__x86_64__)
		{ "avx512", decode_avx512 },
#endif
		{ "plain", decode_plain },
	};

#if defined(__x86_64__)
	if (!__builtin_cpu_supports("avx512vl") || !__builtin_cpu_supports("avx512bw") ||
	    !__builtin_cpu_supports("bmi") || !__builtin_cpu_supports("bmi2")) {
		i++;
	}
#endif
	return i < GR_ARRAY_SIZE(decoders) ? &decoders[i] : NULL;
}

int gr_xbzrle_decode(uint8_t *page, const uint8_t *payload, size_t payload_bytes, size_t page_bytes)
{
	return gr_xbzrle_decoder(0)->decode(page, payload, payload_bytes, page_bytes);
}
