/* SPDX-License-Identifier: MIT */
#include "track/stalls.h"

/* Up to 15 ns a bucket each; from then on eight to a power of two. */
static unsigned int bucket_of(uint64_t ns)
{
	unsigned int log2, at;

	if (ns < 8) {
		return (unsigned int)ns;
	}
	log2 = 63 - (unsigned int)__builtin_clzll(ns);
	at = (log2 - 2) * 8 + (unsigned int)(ns >> (log2 - 3) & 7);
	return GR_MIN(at, (unsigned int)GR_STALL_BUCKETS - 1);
}

/* The longest time that belongs there. */
static uint64_t bucket_end(unsigned int at)
{
	return at < 8 ? at : ((UINT64_C(9) + at % 8) << (at / 8 - 1)) - 1;
}

void gr_stall_add(struct gr_stall_histogram *h, uint64_t ns)
{
	h->count++;
	h->ns_total += ns;
	h->ns_max = GR_MAX(h->ns_max, ns);
	h->bucket[bucket_of(ns)]++;
}

struct gr_cbw_stalls gr_stall_summary(const struct gr_stall_histogram *h)
{
	struct gr_cbw_stalls s = { .count = h->count,
				   .ns_total = h->ns_total,
				   .ns_max = h->ns_max };
	uint64_t most = h->count - h->count / 100, seen = 0;

	for (unsigned int i = 0; i < GR_STALL_BUCKETS && seen < most; i++) {
		seen += h->bucket[i];
		if (seen >= most) {
			s.ns_p99 = GR_MIN(bucket_end(i), h->ns_max);
		}
	}
	return s;
}

void gr_stalls_wait(struct gr_stalls *s, uint64_t address, uint64_t since_ns)
{
	if (s->count < GR_STALLS_WAITING_MAX) {
		s->waiting[s->count++] =
			(struct gr_stall_waiting){ .address = address, .since_ns = since_ns };
	}
}

void gr_stalls_keep(struct gr_stalls *s, uint64_t address)
{
	for (unsigned int i = 0; i < s->count; i++) {
		s->waiting[i].kept |= s->waiting[i].address == address;
	}
}

/* Whether somebody there was told to wait: whoever came after him waited for the same. */
static bool was_kept(const struct gr_stalls *s, uint64_t address)
{
	for (unsigned int i = 0; i < s->count; i++) {
		if (s->waiting[i].address == address && s->waiting[i].kept) {
			return true;
		}
	}
	return false;
}

void gr_stalls_go(struct gr_stalls *s, uint64_t address, uint64_t bytes, uint64_t now_ns)
{
	unsigned int left = 0;

	if (s->count == 0) {
		return;
	}
	for (unsigned int i = 0; i < s->count; i++) {
		struct gr_stall_waiting *w = &s->waiting[i];

		w->kept = was_kept(s, w->address);
	}
	for (unsigned int i = 0; i < s->count; i++) {
		struct gr_stall_waiting *w = &s->waiting[i];

		if (w->address - address >= bytes) {
			s->waiting[left++] = *w;
			continue;
		}
		gr_stall_add(w->kept ? &s->kept : &s->quick,
			     now_ns > w->since_ns ? now_ns - w->since_ns : 0);
	}
	s->count = left;
}
