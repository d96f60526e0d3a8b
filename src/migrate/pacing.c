/* SPDX-License-Identifier: MIT */
#include "migrate/pacing.h"
#include "base/compiler.h"

void gr_pacing_init(struct gr_pacing *p, uint64_t bytes_per_s, uint64_t now_ns)
{
	p->bytes_per_s = bytes_per_s;
	p->next_ns = now_ns;
	p->rest = 0;
}

uint64_t gr_pacing_wait_ns(const struct gr_pacing *p, uint64_t now_ns)
{
	return p->bytes_per_s == 0 || p->next_ns <= now_ns ? 0 : p->next_ns - now_ns;
}

void gr_pacing_sent(struct gr_pacing *p, uint64_t bytes, uint64_t now_ns)
{
	unsigned __int128 cost;

	if (p->bytes_per_s == 0) {
		return;
	}
	if (p->next_ns + GR_PACING_CREDIT_NS < now_ns) {
		p->next_ns = now_ns - GR_PACING_CREDIT_NS;
		p->rest = 0;
	}
	cost = (unsigned __int128)bytes * GR_NS_PER_S + p->rest;
	p->next_ns += (uint64_t)(cost / p->bytes_per_s);
	p->rest = (uint64_t)(cost % p->bytes_per_s);
}

uint64_t gr_pacing_piece(const struct gr_pacing *p, uint64_t bytes_max)
{
	uint64_t piece = p->bytes_per_s / 100;

	if (p->bytes_per_s == 0 || piece > bytes_max) {
		return bytes_max;
	}
	return piece == 0 ? 1 : piece;
}
