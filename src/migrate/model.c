/* SPDX-License-Identifier: MIT */
#include "migrate/model.h"
#include "base/compiler.h"

void gr_model_sample(struct gr_model *m, uint64_t pages, uint64_t bytes, uint64_t ns)
{
	m->pages += pages;
	m->bytes += bytes;
	m->ns += ns;
	/* Half of the past fades whenever a second has come together. */
	while (m->ns > GR_NS_PER_S) {
		m->pages /= 2;
		m->bytes /= 2;
		m->ns /= 2;
	}
}

uint64_t gr_model_bandwidth(const struct gr_model *m)
{
	uint64_t bandwidth;

	if (m->ns == 0) {
		return 0;
	}
	bandwidth = (uint64_t)((unsigned __int128)m->bytes * GR_NS_PER_S / m->ns);
	return m->bytes_per_s_max == 0 ? bandwidth : GR_MIN(bandwidth, m->bytes_per_s_max);
}

void gr_model_harvest(struct gr_model *m, uint64_t pages, uint64_t cost_ns, uint64_t now_ns)
{
	if (m->harvested_ns != 0 && now_ns > m->harvested_ns) {
		m->dirty_pages_per_s = (uint64_t)((unsigned __int128)pages * GR_NS_PER_S /
						  (now_ns - m->harvested_ns));
	}
	m->harvest_ns = cost_ns;
	m->harvested_ns = now_ns;
}

/* What a page takes on the wire: fewer bytes than it has where differences are sent. */
static uint64_t wire_bytes(const struct gr_model *m, uint64_t page_bytes)
{
	return m->pages == 0 ? page_bytes : GR_MIN(page_bytes, m->bytes / m->pages);
}

uint64_t gr_model_downtime_ns(const struct gr_model *m, uint64_t pages, uint64_t page_bytes)
{
#ifdef GR_MUTANT_MODEL_ALWAYS_GUESSES
	struct gr_model unmeasured = *m;

	unmeasured.pause_ns = unmeasured.state_ns = unmeasured.state_bytes = 0;
	m = &unmeasured;
#endif
	uint64_t bandwidth = gr_model_bandwidth(m);
	uint64_t pause = m->pause_ns != 0 ? m->pause_ns : GR_MODEL_PAUSE_NS;
	uint64_t guess = (m->pause_ns == 0 ? GR_MODEL_PAUSE_NS : 0) +
			 (m->state_ns == 0 ? GR_MODEL_STATE_NS : 0);
	unsigned __int128 dirtied, send;

	if (bandwidth == 0) {
		return UINT64_MAX;
	}
	page_bytes = wire_bytes(m, page_bytes);
	dirtied = (unsigned __int128)m->dirty_pages_per_s * (pause + m->harvest_ns) /
		  GR_NS_PER_S;
	send = (((unsigned __int128)pages + dirtied) * page_bytes + m->state_bytes) * GR_NS_PER_S /
	       bandwidth;
	if (m->limit_ns != 0) {
		guess = GR_MIN(guess, m->limit_ns / 4);
	}
	send += (unsigned __int128)guess + m->pause_ns + m->state_ns + m->harvest_ns + m->answer_ns;
	return send > UINT64_MAX ? UINT64_MAX : (uint64_t)send;
}

bool gr_model_fits(const struct gr_model *m, uint64_t pages, uint64_t page_bytes)
{
	uint64_t total = gr_model_downtime_ns(m, pages, page_bytes);
	uint64_t bandwidth = gr_model_bandwidth(m);
	unsigned __int128 fixed;

	if (total <= m->limit_ns || bandwidth == 0) {
		return total <= m->limit_ns;
	}
	fixed = (unsigned __int128)m->state_bytes * GR_NS_PER_S / bandwidth;
	fixed += (unsigned __int128)m->pause_ns + m->state_ns + m->answer_ns;
	return fixed > m->limit_ns - m->limit_ns / 4 && total <= fixed + m->limit_ns / 4;
}

bool gr_model_gains(const struct gr_model *m, uint64_t pages, uint64_t page_bytes)
{
	uint64_t bandwidth = gr_model_bandwidth(m);
	unsigned __int128 send;

	if (bandwidth == 0) {
		return false;
	}
	send = (unsigned __int128)pages * wire_bytes(m, page_bytes) * GR_NS_PER_S / bandwidth;
	if (send <= m->limit_ns / 8) {
		return false;
	}
	/* The next harvest finds what is dirtied until its end. */
	return m->dirty_pages_per_s * (send + m->harvest_ns) / GR_NS_PER_S <= pages / 2;
}
