/* SPDX-License-Identifier: MIT */
/*
 * What a page costs the one who sends or receives it: guestram/codec.h against the memory's
 * bandwidth, and against scalar code that does the same in the same dialect.
 *
 *   codec.zero               GiB/s of zero pages looked at, against GiB/s of the same pages read
 *   codec.xbzrle_encode/N    GiB/s of pages encoded of which N percent of the 8-byte words have
 *                            changed (0: nothing but the look for it)
 *   codec.xbzrle_decode/N    GiB/s of pages decoded, the same deltas for both
 *   .../N/at_once            the same beside a peer that writes before it has seen all of a delta
 *   .../N_bytes              the same with single bytes, anywhere, instead of words
 *   .../N/near               the same with so few pages that a processor's own cache has them
 *
 * The scalar peer skips unchanged bytes, and collects changed ones, eight at a time. Decoding it
 * keeps the same promise: nothing is written unless all of a delta is valid, so it looks at each
 * first; beside it stands a peer without the promise. Each delta of either is decoded and compared
 * before anything is measured.
 */
#include "bench/harness.h"
#include <errno.h>
#include <guestram/codec.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

enum { PAGE = 4096, PAGES = 256, NEAR = 32 };

static const double GIB = 1 << 30;

static void *get_memory(size_t bytes)
{
	void *p = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	if (p == MAP_FAILED) {
		bench_die("no memory: %s", strerror(errno));
	}
	memset(p, 1, bytes); /* really there */
	return p;
}

typedef uint64_t wide __attribute__((vector_size(32)));

/* As fast as memory can be read: whole registers, four at a time. */
#if defined(__x86_64__)
__attribute__((target_clones("avx2", "default")))
#endif
static uint64_t
read_all(const void *p, size_t bytes)
{
	const wide *v = p;
	wide any[4] = { 0 };

	for (size_t i = 0; i < bytes / sizeof(*v); i += 4) {
		for (size_t k = 0; k < 4; k++) {
			any[k] |= v[i + k];
		}
	}
	any[0] |= any[1] | any[2] | any[3];
	return any[0][0] | any[0][1] | any[0][2] | any[0][3];
}

static uint64_t count_zero_pages(const uint8_t *p, size_t bytes)
{
	uint64_t n = 0;

	for (size_t at = 0; at < bytes; at += PAGE) {
		n += gr_is_zero(p + at, PAGE);
	}
	return n;
}

static void zero(const struct bench_options *o)
{
	struct bench_result r = { .name = "codec.zero",
				  .unit = "GiB/s",
				  .peer_name = "reading the same memory",
				  .more_is_better = true };
	size_t bytes = o->size_mib << 20;
	uint8_t *p;

	if (!bench_wanted(o, r.name)) {
		return;
	}
	p = get_memory(bytes);
	memset(p, 0, bytes);
	for (int run = -1; run < o->runs; run++) {
		double begin = bench_now_s(), middle, end;
		uint64_t pages = count_zero_pages(p, bytes), any;

		middle = bench_now_s();
		any = read_all(p, bytes);
		end = bench_now_s();
		if (pages != bytes / PAGE || any != 0) {
			bench_die("memory that is zero was found not to be");
		}
		if (run >= 0) {
			bench_add(&r, (double)bytes / GIB / (middle - begin),
				  (double)bytes / GIB / (end - middle));
		}
	}
	bench_print(o, &r);
	munmap(p, bytes);
}

static uint64_t word_at(const uint8_t *p)
{
	uint64_t v;

	memcpy(&v, p, sizeof(v));
	return v;
}

static bool has_zero_byte(uint64_t v)
{
	return ((v - 0x0101010101010101u) & ~v & 0x8080808080808080u) != 0;
}

static size_t put_length(uint8_t *p, size_t n)
{
	p[0] = (uint8_t)n;
	if (n < 0x80) {
		return 1;
	}
	p[0] |= 0x80;
	p[1] = (uint8_t)(n >> 7);
	return 2;
}

static size_t same_until(const uint8_t *old, const uint8_t *page, size_t at)
{
	while (at < PAGE && at % 8 != 0 && old[at] == page[at]) {
		at++;
	}
	while (at % 8 == 0 && at < PAGE && word_at(old + at) == word_at(page + at)) {
		at += 8;
	}
	while (at < PAGE && old[at] == page[at]) {
		at++;
	}
	return at;
}

static size_t new_until(const uint8_t *old, const uint8_t *page, size_t at)
{
	while (at < PAGE && at % 8 != 0 && old[at] != page[at]) {
		at++;
	}
	while (at % 8 == 0 && at < PAGE && !has_zero_byte(word_at(old + at) ^ word_at(page + at))) {
		at += 8;
	}
	while (at < PAGE && old[at] != page[at]) {
		at++;
	}
	return at;
}

static ssize_t scalar_encode(const uint8_t *old, const uint8_t *page, size_t page_bytes,
			     uint8_t *out, size_t room)
{
	(void)page_bytes;
	size_t n = 0, at = 0;

	for (;;) {
		size_t begin = same_until(old, page, at), end;

		if (begin == PAGE) {
			return (ssize_t)n;
		}
		end = new_until(old, page, begin);
		if (room - n < 4 || room - n - 4 < end - begin) {
			return -E2BIG;
		}
		n += put_length(out + n, begin - at);
		n += put_length(out + n, end - begin);
		memcpy(out + n, page + begin, end - begin);
		n += end - begin;
		at = end;
	}
}

static size_t get_length(const uint8_t *p, size_t *ret)
{
	if (p[0] < 0x80) {
		*ret = p[0];
		return 1;
	}
	*ret = (size_t)(p[0] & 0x7f) | (size_t)p[1] << 7;
	return p[1] & 0x80 ? 0 : 2;
}

/* Into page, or only looked at. */
static inline __attribute__((always_inline)) int scalar_walk(uint8_t *page, const uint8_t *p,
							     size_t n, bool write)
{
	size_t in = 0, out = 0, used, skip, copy;

	while (in < n) {
		used = n - in < 2 ? 0 : get_length(p + in, &skip);
		if (used == 0 || (in != 0 && skip == 0)) {
			return -EBADMSG;
		}
		in += used;
		out += skip;
		used = n - in < 2 || out > PAGE ? 0 : get_length(p + in, &copy);
		if (used == 0 || copy == 0) {
			return -EBADMSG;
		}
		in += used;
		if (copy > n - in || copy > PAGE - out) {
			return -EBADMSG;
		}
		if (write) {
			memcpy(page + out, p + in, copy);
		}
		in += copy;
		out += copy;
	}
	return 0;
}

static int scalar_decode_at_once(uint8_t *page, const uint8_t *p, size_t n, size_t page_bytes)
{
	(void)page_bytes;
	return scalar_walk(page, p, n, true);
}

static int scalar_decode(uint8_t *page, const uint8_t *p, size_t n, size_t page_bytes)
{
	(void)page_bytes;
	return scalar_walk(page, p, n, false) < 0 ? -EBADMSG : scalar_walk(page, p, n, true);
}

typedef int decode_fn(uint8_t *page, const uint8_t *p, size_t n, size_t page_bytes);

/* Pages before and after, and deltas of them, one behind the other as in a stream. */
struct pages {
	size_t count;
	uint8_t *old, *page, *got, *deltas;
	ssize_t *bytes;
};

static void change(struct pages *p, unsigned percent, bool words)
{
	size_t step = words ? 8 : 1;
	uint64_t rnd[2] = { 0 };

	bench_fill_random(p->old, p->count * PAGE, 1);
	memcpy(p->page, p->old, p->count * PAGE);
	for (size_t at = 0; at < p->count * PAGE; at += step) {
		bench_fill_random(rnd, sizeof(rnd), at + 7);
		if (rnd[0] % 100 < percent) {
			for (size_t i = 0; i < step; i++) {
				p->page[at + i] ^= (uint8_t)(1 + rnd[1] % 255);
			}
		}
	}
}

typedef ssize_t encode_fn(const uint8_t *old, const uint8_t *page, size_t page_bytes, uint8_t *out,
			  size_t room);

/* Seconds for PAGES pages: the few that there may be are taken again and again. */
static double encode_s(struct pages *p, encode_fn *encode)
{
	double begin = bench_now_s();

	for (size_t n = 0; n < PAGES; n += p->count) {
		uint8_t *delta = p->deltas;

		for (size_t i = 0; i < p->count; i++) {
			p->bytes[i] =
				encode(p->old + i * PAGE, p->page + i * PAGE, PAGE, delta, PAGE);
			delta += p->bytes[i] > 0 ? p->bytes[i] : 0;
		}
	}
	return bench_now_s() - begin;
}

/* Into copies of the old pages; a delta that would be too long is none. */
static double decode_s(struct pages *p, decode_fn *decode)
{
	double begin;
	int bad = 0;

	memcpy(p->got, p->old, p->count * PAGE);
	begin = bench_now_s();
	for (size_t n = 0; n < PAGES; n += p->count) {
		const uint8_t *delta = p->deltas;

		for (size_t i = 0; i < p->count; i++) {
			if (p->bytes[i] >= 0) {
				bad |= decode(p->got + i * PAGE, delta, (size_t)p->bytes[i], PAGE);
				delta += p->bytes[i];
			}
		}
	}
	begin = bench_now_s() - begin;
	for (size_t i = 0; i < p->count; i++) {
		const uint8_t *want = p->bytes[i] < 0 ? p->old : p->page;

		if (bad || memcmp(p->got + i * PAGE, want + i * PAGE, PAGE) != 0) {
			bench_die("page %zu was not decoded to what was encoded", i);
		}
	}
	return begin;
}

static void xbzrle(const struct bench_options *o, struct pages *p, unsigned percent, bool words)
{
	enum { ENCODE, DECODE, AT_ONCE, RESULTS };
	static const char *const verbs[RESULTS] = { "encode", "decode", "decode" };
	static const char *const peers[RESULTS] = { "scalar code", "scalar code, same promise",
						    "scalar code, writes at once" };
	const double gib = (double)PAGES * PAGE / GIB;
	struct bench_result r[RESULTS] = { 0 };
	char name[RESULTS][64];

	for (int i = 0; i < RESULTS; i++) {
		(void)snprintf(name[i], sizeof(name[i]), "codec.xbzrle_%s/%u%s%s%s", verbs[i],
			       percent, words ? "" : "_bytes", p->count < PAGES ? "/near" : "",
			       i == AT_ONCE ? "/at_once" : "");
		r[i].name = name[i];
		r[i].unit = "GiB/s";
		r[i].peer_name = peers[i];
		r[i].more_is_better = true;
	}
	if (!bench_wanted(o, name[ENCODE]) && !bench_wanted(o, name[DECODE]) &&
	    !bench_wanted(o, name[AT_ONCE])) {
		return;
	}
	change(p, percent, words);
	for (int run = -1; run < o->runs; run++) {
		double ours[RESULTS], peer[RESULTS];

		peer[ENCODE] = encode_s(p, scalar_encode);
		(void)decode_s(p, gr_xbzrle_decode); /* what it wrote is right */
		ours[ENCODE] = encode_s(p, gr_xbzrle_encode);
		peer[DECODE] = decode_s(p, scalar_decode);
		peer[AT_ONCE] = decode_s(p, scalar_decode_at_once);
		ours[AT_ONCE] = ours[DECODE] = decode_s(p, gr_xbzrle_decode);
		for (int i = 0; run >= 0 && i < RESULTS; i++) {
			bench_add(&r[i], gib / ours[i], gib / peer[i]);
		}
	}
	/* Nothing has changed: there is nothing to decode. */
	for (int i = 0; i < (percent ? RESULTS : 1); i++) {
		if (bench_wanted(o, name[i])) {
			bench_print(o, &r[i]);
		}
	}
}

int main(int argc, char **argv)
{
	static const unsigned percents[] = { 0, 1, 16, 50 };
	struct bench_options o;
	struct pages p;

	bench_options_parse(&o, argc, argv);
	p.old = get_memory((size_t)PAGES * PAGE);
	p.page = get_memory((size_t)PAGES * PAGE);
	p.got = get_memory((size_t)PAGES * PAGE);
	p.deltas = get_memory((size_t)PAGES * PAGE);
	p.bytes = get_memory(PAGES * sizeof(*p.bytes));
	zero(&o);
	for (size_t i = 0; i < 2 * sizeof(percents) / sizeof(percents[0]); i++) {
		p.count = i % 2 ? NEAR : PAGES;
		xbzrle(&o, &p, percents[i / 2], true);
		if (percents[i / 2] != 0) {
			xbzrle(&o, &p, percents[i / 2], false);
		}
	}
	return 0;
}
