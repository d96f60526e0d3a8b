/* SPDX-License-Identifier: MIT */
#include "migrate/progress.h"

#define BIT(state) (1u << (GR_MIGRATE_##state))

/*
 * The one table of legal transitions: from each state to which others. COMPLETED after
 * CANCELLING: the cancel came when the other side could have everything already.
 */
static const unsigned int transitions[] = {
	[GR_MIGRATE_NONE] = BIT(SETUP) | BIT(FAILED) | BIT(CANCELLING),
	[GR_MIGRATE_SETUP] = BIT(ACTIVE) | BIT(FAILED) | BIT(CANCELLING),
	[GR_MIGRATE_ACTIVE] = BIT(PRE_SWITCHOVER) | BIT(DEVICE) | BIT(FAILED) | BIT(CANCELLING),
	[GR_MIGRATE_PRE_SWITCHOVER] = BIT(DEVICE) | BIT(FAILED) | BIT(CANCELLING),
	[GR_MIGRATE_DEVICE] = BIT(COMPLETED) | BIT(FAILED) | BIT(CANCELLING),
	[GR_MIGRATE_CANCELLING] = BIT(CANCELLED) | BIT(COMPLETED),
	[GR_MIGRATE_COMPLETED] = 0,
	[GR_MIGRATE_FAILED] = 0,
	[GR_MIGRATE_CANCELLED] = 0,
};

const char *gr_migrate_state_name(enum gr_migrate_state state)
{
	static const char *const names[] = {
		[GR_MIGRATE_NONE] = "none",
		[GR_MIGRATE_SETUP] = "setup",
		[GR_MIGRATE_ACTIVE] = "active",
		[GR_MIGRATE_PRE_SWITCHOVER] = "pre-switchover",
		[GR_MIGRATE_DEVICE] = "device",
		[GR_MIGRATE_COMPLETED] = "completed",
		[GR_MIGRATE_FAILED] = "failed",
		[GR_MIGRATE_CANCELLING] = "cancelling",
		[GR_MIGRATE_CANCELLED] = "cancelled",
	};

	if ((size_t)state >= GR_ARRAY_SIZE(names)) {
		return "unknown";
	}
	return names[state];
}

void gr_progress_init(struct gr_progress *p)
{
	*p = (struct gr_progress){ 0 };
	gr_mutex_init(&p->lock, GR_RANK_MIGRATE);
}

void gr_progress_destroy(struct gr_progress *p)
{
	gr_mutex_destroy(&p->lock);
}

static bool move_locked(struct gr_progress *p, enum gr_migrate_state to)
{
	uint64_t now = gr_clock_ns();

	if ((transitions[p->stats.state] & 1u << to) == 0) {
		return false;
	}
	if (p->stats.state == GR_MIGRATE_NONE) {
		p->begin_ns = now;
	}
	if (to == GR_MIGRATE_ACTIVE) {
		p->stats.setup_time_ns = now - p->begin_ns;
	}
	if (transitions[to] == 0) {
		p->stats.total_time_ns = now - p->begin_ns;
	}
	p->stats.state = to;
	return true;
}

bool gr_progress_move(struct gr_progress *p, enum gr_migrate_state to)
{
	GR_MUTEX_GUARD(&p->lock);

	return move_locked(p, to);
}

enum gr_migrate_state gr_progress_state(struct gr_progress *p)
{
	GR_MUTEX_GUARD(&p->lock);

	return p->stats.state;
}

bool gr_progress_cancelling(struct gr_progress *p)
{
	return gr_progress_state(p) == GR_MIGRATE_CANCELLING;
}

void gr_progress_cancel(struct gr_progress *p, struct gr_channel *channel)
{
	GR_MUTEX_GUARD(&p->lock);

	if (move_locked(p, GR_MIGRATE_CANCELLING) && !p->keep_channel) {
		gr_channel_shutdown(channel);
	}
}

bool gr_progress_keep_channel(struct gr_progress *p)
{
	GR_MUTEX_GUARD(&p->lock);

	if (p->stats.state == GR_MIGRATE_CANCELLING) {
		return false;
	}
	p->keep_channel = true;
	return true;
}

bool gr_progress_go_on(struct gr_progress *p)
{
	GR_MUTEX_GUARD(&p->lock);

	if (p->stats.state != GR_MIGRATE_PRE_SWITCHOVER) {
		return false;
	}
	p->go_on = true;
	return true;
}

bool gr_progress_goes_on(struct gr_progress *p)
{
	GR_MUTEX_GUARD(&p->lock);

	return p->go_on;
}

static void snapshot_locked(struct gr_progress *p, struct gr_migrate_stats *ret_stats)
{
	*ret_stats = p->stats;
	if (p->begin_ns != 0 && ret_stats->total_time_ns == 0) {
		ret_stats->total_time_ns = gr_clock_ns() - p->begin_ns;
	}
}

void gr_progress_snapshot(struct gr_progress *p, struct gr_migrate_stats *ret_stats)
{
	GR_MUTEX_GUARD(&p->lock);

	snapshot_locked(p, ret_stats);
}

struct gr_migrate_stats *gr_progress_lock(struct gr_progress *p)
{
	gr_mutex_lock(&p->lock);
	return &p->stats;
}

void gr_progress_unlock(struct gr_progress *p)
{
	gr_mutex_unlock(&p->lock);
}

bool gr_progress_tell(struct gr_progress *p,
		      void (*fn)(void *opaque, const struct gr_migrate_stats *stats), void *opaque,
		      bool now)
{
	uint64_t ns = gr_clock_ns();
	struct gr_migrate_stats stats;

	if (!now && ns - p->told_ns < GR_PROGRESS_INTERVAL_NS) {
		return false;
	}
	p->told_ns = ns;
	if (fn) {
		gr_progress_snapshot(p, &stats);
		fn(opaque, &stats);
	}
	return true;
}
