/* SPDX-License-Identifier: MIT */
/* Callback queues: how they come and go, and their numbers. The protocol heads queue.h. */
#include "rcu/queue.h"
#include "base/memory.h"
#include "base/wake_fd.h"
#include "rcu/checks.h"
#include <errno.h>
#include <stdio.h>
#include <string.h>

enum {
	SOFT_COUNT = 10000,
	SOFT_BYTES = 64 << 20,
	GRAIN_MAX = 64, /* calls of one shard that the count may not know of */
	GRAINS = 64,	/* but at most this part of a limit */
};

static struct gr_rcu_queue default_queue = {
	.sleeping = GR_RCU_ABSENT,
	.grain = GRAIN_MAX,
	.grain_bytes = SOFT_BYTES / GRAINS,
	.params = { .size = sizeof(struct gr_rcu_queue_params),
		    .soft_count = SOFT_COUNT,
		    .soft_bytes = SOFT_BYTES },
	.lock = GR_MUTEX_INIT(GR_RANK_RCU_QUEUE),
	.name = "gr-rcu",
	.is_default = true,
	.fd = -1,
};

struct gr_rcu_queues gr_rcu_queues = {
	.lock = GR_MUTEX_INIT(GR_RANK_RCU_QUEUES),
	.first = &default_queue,
};

struct gr_rcu_queue *gr_rcu_queue_or_default(struct gr_rcu_queue *q)
{
	return q ? q : &default_queue;
}

static int check_params(const struct gr_rcu_queue_params *p, struct gr_error *err)
{
	if (p->size != sizeof(*p)) {
		return gr_error_set(err, -EINVAL, "RCU queue: parameters of %zu bytes, not %zu",
				    p->size, sizeof(*p));
	}
	if (!p->lock != !p->unlock || (p->is_locked && !p->lock)) {
		return gr_error_set(err, -EINVAL, "RCU queue: lock and unlock go together");
	}
	if (p->flags & ~(GR_RCU_QUEUE_NO_THREAD | GR_RCU_QUEUE_PIN)) {
		return gr_error_set(err, -EINVAL, "RCU queue: unknown flags 0x%x", p->flags);
	}
	if ((p->flags & GR_RCU_QUEUE_PIN) && (p->cpu < 0 || p->cpu >= 1024)) {
		return gr_error_set(err, -EINVAL, "RCU queue: CPU %d", p->cpu);
	}
	return 0;
}

/* How often a shard reports: rarely, but a small limit is kept all the same. */
static size_t grain_of(size_t soft, size_t hard, size_t most)
{
	size_t limit = hard != 0 ? GR_MIN(soft, hard) : soft;
	size_t grain = GR_MIN(limit / GRAINS, most);

	return GR_MAX(grain, (size_t)1);
}

static void init_queue(struct gr_rcu_queue *q, const struct gr_rcu_queue_params *params)
{
	struct gr_rcu_queue_params *p = &q->params;

	*p = *params;
	p->soft_count = p->soft_count ? p->soft_count : SOFT_COUNT;
	p->soft_bytes = p->soft_bytes ? p->soft_bytes : SOFT_BYTES;
	q->grain = (uint32_t)grain_of(p->soft_count, p->hard_count, GRAIN_MAX);
	q->grain_bytes = grain_of(p->soft_bytes, p->hard_bytes, SIZE_MAX);
	(void)snprintf(q->name, sizeof(q->name), "%s", p->name ? p->name : "gr-rcu-queue");
	p->name = q->name;
	gr_mutex_init(&q->lock, GR_RANK_RCU_QUEUE);
	q->full_fence = !gr_rcu_has_thread(q);
	q->sleeping = gr_rcu_has_thread(q) ? GR_RCU_ABSENT : GR_RCU_ASLEEP;
}

int gr_rcu_queue_create(const struct gr_rcu_queue_params *params, struct gr_rcu_queue **ret_queue,
			struct gr_error *err)
{
	static const struct gr_rcu_queue_params plain = { .size = sizeof(plain) };
	struct gr_rcu_queue *q;
	struct gr_signals saved;
	int ret, fd = -1;

	params = params ? params : &plain;
	ret = check_params(params, err);
	if (ret < 0) {
		return ret;
	}
	if (params->flags & GR_RCU_QUEUE_NO_THREAD) {
		fd = gr_rcu_queue_make_fd();
		if (fd < 0) {
			return gr_error_set(err, fd, "RCU queue: no fd: errno %d", -fd);
		}
	}
	q = gr_aligned_alloc(GR_CACHE_LINE, GR_ROUND_UP(sizeof(*q), (size_t)GR_CACHE_LINE));
	if (!q) {
		if (fd >= 0) {
			gr_wake_fd_close(fd, fd);
		}
		return gr_error_set(err, -ENOMEM, "RCU queue: no memory");
	}
	memset(q, 0, sizeof(*q));
	init_queue(q, params);
	(void)gr_add_acq_rel(&gr_rcu_domain_or_default(params->domain)->queues, 1u);
	q->fd = fd;
	gr_signals_block(&saved); /* a handler that forks needs the lock */
	gr_mutex_lock(&gr_rcu_queues.lock);
	q->next = gr_rcu_queues.first;
	gr_rcu_queues.first = q;
	gr_mutex_unlock(&gr_rcu_queues.lock);
	gr_signals_restore(&saved);
	*ret_queue = q;
	return 0;
}

static void stop_worker(struct gr_rcu_queue *q)
{
	do {
		gr_rcu_barrier(q); /* callbacks may have queued callbacks */
	} while (gr_rcu_queue_has_callbacks(q));
	if (!gr_rcu_has_thread(q)) {
		gr_rcu_barrier(NULL); /* it may be about to tell us of a grace period */
	} else if (gr_load_acquire(&q->sleeping) != GR_RCU_ABSENT) {
		gr_store_release(&q->stop, 1u);
		gr_fence(); /* stop, before the look at sleeping. Pairs with W1. */
		gr_rcu_queue_wake(q, true);
		pthread_join(q->thread, NULL);
	}
}

/* Threads keep their shards for other queues. */
static void let_shards_go(struct gr_rcu_queue *q) GR_REQUIRES(gr_rcu_queues.lock)
{
	struct gr_rcu_shard *next;

	for (struct gr_rcu_shard *s = q->shards; s; s = next) {
		next = s->next;
		if (s->orphan) {
			gr_rcu_shard_free(s);
		} else {
			/* Release: we are done with it. Pairs with the thread's acquire. */
			gr_store_release(&s->queue, NULL);
		}
	}
}

void gr_rcu_queue_free(struct gr_rcu_queue *queue)
{
	struct gr_rcu_queue **where = &gr_rcu_queues.first;
	struct gr_signals saved;

	if (!queue) {
		return;
	}
	if (queue->is_default) {
		gr_die("gr_rcu_queue_free() of the default queue");
	}
	stop_worker(queue);
	gr_signals_block(&saved);
	gr_mutex_lock(&gr_rcu_queues.lock);
	while (*where != queue) {
		where = &(*where)->next;
	}
	*where = queue->next;
	let_shards_go(queue);
	gr_mutex_unlock(&gr_rcu_queues.lock);
	gr_signals_restore(&saved);
	gr_rcu_check_forget(queue);
	(void)gr_sub_acq_rel(&gr_rcu_domain_or_default(queue->params.domain)->queues, 1u);
	if (queue->fd >= 0) {
		gr_wake_fd_close(queue->fd, queue->fd);
	}
	gr_mutex_destroy(&queue->lock);
	gr_aligned_free(queue);
}

void gr_rcu_set_thread_queue(struct gr_rcu_queue *queue)
{
	gr_rcu_caller.noted = queue;
}

struct gr_rcu_queue *gr_rcu_get_thread_queue(void)
{
	return gr_rcu_caller.noted;
}

/* Callbacks that have not begun. Exact where producers and the runner stand still. */
uint64_t gr_rcu_queue_length(struct gr_rcu_queue *q, uint64_t *ret_bytes)
{
	uint64_t n = gr_load_relaxed(&q->pushed) - q->taken;
	uint64_t bytes = gr_load_relaxed(&q->pushed_bytes) - q->taken_bytes;

	for (struct gr_rcu_shard *s = q->shards; s; s = s->next) {
		n += gr_load_relaxed(&s->tail) - s->open;
		bytes += gr_load_relaxed(&s->bytes) - s->open_bytes;
	}
	*ret_bytes = bytes + q->open_batch.bytes + gr_load_relaxed(&q->batch.bytes);
	return n + q->open_batch.count + gr_load_relaxed(&q->batch.count);
}

uint64_t gr_rcu_callbacks_waiting(struct gr_rcu_domain *d)
{
	struct gr_signals saved;
	uint64_t n = 0, bytes;

	gr_signals_block(&saved);
	gr_mutex_lock(&gr_rcu_queues.lock);
	for (struct gr_rcu_queue *q = gr_rcu_queues.first; q; q = q->next) {
		if (gr_rcu_domain_or_default(q->params.domain) == d) {
			gr_mutex_lock(&q->lock);
			n += gr_rcu_queue_length(q, &bytes);
			gr_mutex_unlock(&q->lock);
		}
	}
	gr_mutex_unlock(&gr_rcu_queues.lock);
	gr_signals_restore(&saved);
	return n;
}

void gr_rcu_queue_stats_get(struct gr_rcu_queue *queue, struct gr_rcu_queue_stats *ret_stats)
{
	struct gr_rcu_queue *q = gr_rcu_queue_or_default(queue);
	struct gr_signals saved;

	gr_signals_block(&saved);
	gr_mutex_lock(&q->lock);
	ret_stats->length = gr_rcu_queue_length(q, &ret_stats->bytes);
	gr_mutex_unlock(&q->lock);
	gr_signals_restore(&saved);
	gr_rcu_raise(&q->stats.high_water, ret_stats->length);
	gr_rcu_raise(&q->stats.high_water_bytes, ret_stats->bytes);
	ret_stats->high_water = gr_load_relaxed(&q->stats.high_water);
	ret_stats->high_water_bytes = gr_load_relaxed(&q->stats.high_water_bytes);
	ret_stats->run = gr_load_relaxed(&q->stats.run);
	ret_stats->batches = gr_load_relaxed(&q->stats.batches);
	ret_stats->slice_ns_max = gr_load_relaxed(&q->stats.slice_ns_max);
	ret_stats->limit_waits = gr_load_relaxed(&q->stats.limit_waits);
	ret_stats->limit_passes = gr_load_relaxed(&q->stats.limit_passes);
}
