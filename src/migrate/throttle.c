/* SPDX-License-Identifier: MIT */
#include "migrate/throttle.h"
#include "base/compiler.h"

static void step(struct gr_throttle *t)
{
	unsigned int percent = t->percent == 0 ? t->initial : t->percent + t->increment;

	t->percent = GR_MIN(percent, t->max);
	t->exceeded = 0;
}

unsigned int gr_throttle_harvest(struct gr_throttle *t, uint64_t dirtied, uint64_t sent,
				 uint64_t now_ns)
{
	unsigned __int128 limit;

	if (t->begin_ns == 0) {
		t->begin_ns = now_ns;
		t->sent_before = sent;
		return t->percent;
	}
	t->dirtied += dirtied;
	if (now_ns - t->begin_ns < GR_THROTTLE_PERIOD_NS) {
		return t->percent;
	}
	limit = (unsigned __int128)(sent - t->sent_before) * t->trigger / 100;
	if (t->dirtied > limit && ++t->exceeded >= 2) {
		step(t);
	}
	t->begin_ns = now_ns;
	t->dirtied = 0;
	t->sent_before = sent;
	return t->percent;
}
