/* SPDX-License-Identifier: MIT */
/*
 * Callback queues and fork(). What the child may rely on is in queue.h under FORK. Before: the
 * locks, the door, what is queued. In the child: the batches stay, dead threads' shards become
 * orphans, and the next call or barrier makes a worker, unless the forking thread is the worker.
 */
#include "base/futex.h"
#include "base/heavy_fence.h"
#include "base/hook.h"
#include "base/log.h"
#include "rcu/queue.h"
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <unistd.h>

static void note_what_is_queued(struct gr_rcu_queue *q)
{
	/* Bytes first: those without their call would be left behind in the child. */
	for (struct gr_rcu_shard *s = q->shards; s; s = s->next) {
		s->fork_bytes = gr_load_acquire(&s->bytes);
		/*
		 * First what is over, then tail. While something is over, tail stays: it is
		 * over_at. If nothing was, what comes over after this look is behind all that tail
		 * has.
		 */
#ifdef GR_MUTANT_RCU_FORK_NOTES_TAIL_FIRST
		s->fork_tail = gr_load_acquire(&s->tail);
		GR_HOOK("fork: half noted");
		s->fork_over = gr_load_acquire(&s->over);
#else
		s->fork_over = gr_load_acquire(&s->over); /* pairs with S2 */
		GR_HOOK("fork: half noted");
		s->fork_tail = gr_load_acquire(&s->tail); /* S1 */
#endif
		s->fork_put = gr_load_acquire(&s->put); /* the ring of fork_tail, or one after it */
	}
	q->fork_pushed_bytes = gr_load_acquire(&q->pushed_bytes);
	q->fork_incoming = gr_load_acquire(&q->incoming); /* pairs with S2 */
	q->fork_pushed = gr_load_relaxed(&q->pushed);
}

/* Its own, if a handler forks in the middle of deciding: then nobody else is. */
static bool somebody_decides(struct gr_rcu_queue *q)
{
	uintptr_t who = gr_load_acquire(&q->deciding);

	return who != 0 && who != gr_rcu_me();
}

void gr_rcu_queues_before_fork(void) GR_NO_TSA
{
	gr_mutex_lock(&gr_rcu_queues.lock);
	for (struct gr_rcu_queue *q = gr_rcu_queues.first; q; q = q->next) {
		gr_mutex_lock_peer(&q->lock); /* in the list's order */
	}
	gr_store_relaxed(&gr_rcu_fork_door, 1u);
	gr_heavy_fence(); /* F1: the door, before the looks at deciding. Pairs with F2. */
	for (struct gr_rcu_queue *q = gr_rcu_queues.first; q; q = q->next) {
		while (somebody_decides(q)) {
			sched_yield();
		}
		note_what_is_queued(q);
	}
}

static bool is_mine(const struct gr_rcu_shard *shard)
{
	for (struct gr_rcu_shard *s = gr_rcu_caller.shards; s; s = s->next_of_thread) {
		if (s == shard) {
			return true;
		}
	}
	return false;
}

static void mend_shard(struct gr_rcu_shard *s)
{
	if (is_mine(s)) {
		return; /* nobody but us has written to it */
	}
#ifdef GR_MUTANT_RCU_FORK_TRUSTS_TAIL
	s->fork_tail = s->tail;
#endif
	s->tail = s->reported = s->fork_tail;
	s->bytes = s->reported_bytes = s->fork_bytes;
	s->put = s->fork_put;
	s->over = s->fork_over;
	s->put->next = NULL; /* a ring that came later may or may not be there */
	s->orphan = true;
}

/* The fd is shared with the parent: another event under the same number. */
static void renew_fd(struct gr_rcu_queue *q)
{
#ifdef __linux__
	int fd;

	if (gr_rcu_has_thread(q) || q->fd < 0) {
		return;
	}
	(void)close(q->fd);
	fd = gr_rcu_queue_make_fd();
	if (fd >= 0 && fd != q->fd) {
		int ret = dup3(fd, q->fd, O_CLOEXEC);

		(void)close(fd);
		fd = ret < 0 ? -errno : ret;
	}
	if (fd < 0) {
		gr_log(GR_LOG_WARN, "%s: no fd in the fork child: errno %d", q->name, -fd);
	}
	q->fd = fd < 0 ? -1 : fd;
	q->gp_asked = 0; /* the one asked before may be lost */
	q->sleeping = GR_RCU_AWAKE;
	gr_rcu_queue_ring_fd(q);
#else
	(void)q;
#endif
}

static void mend_in_child(struct gr_rcu_queue *q) GR_NO_TSA
{
	uint64_t bytes;

	for (struct gr_rcu_shard *s = q->shards; s; s = s->next) {
		mend_shard(s);
	}
	q->incoming = q->fork_incoming;
	q->pushed = q->fork_pushed;
	q->pushed_bytes = q->fork_pushed_bytes;
	q->count = (int64_t)gr_rcu_queue_length(q, &bytes);
	q->bytes = (int64_t)bytes;
	q->done_waiters = q->room_waiters = 0;
	if (q->deciding != gr_rcu_me()) {
		q->deciding = 0;
	}
	if (q->runner != gr_rcu_me()) {
		q->runner = 0;
		/* The pass over FREE, if there was one, looks again at all that has not begun. */
		for (struct gr_rcu_shard *s = q->shards; s; s = s->next) {
			s->pass = s->run;
		}
		if (gr_rcu_caller.callback_of != q) {
			q->cursor = q->shards;
		}
		q->has_locked = true; /* perhaps older than unlocked_done, from another page */
	}
	if (gr_rcu_caller.worker_of != q && gr_rcu_has_thread(q)) {
		q->sleeping = GR_RCU_ABSENT;
	}
	renew_fd(q);
}

void gr_rcu_queues_after_fork(bool in_child) GR_NO_TSA
{
	gr_store_release(&gr_rcu_fork_door, 0u);
	for (struct gr_rcu_queue *q = gr_rcu_queues.first; q; q = q->next) {
		if (in_child) {
			mend_in_child(q);
		}
		gr_mutex_unlock(&q->lock);
	}
	gr_mutex_unlock(&gr_rcu_queues.lock);
	if (!in_child) {
		gr_futex_wake(&gr_rcu_fork_door, GR_FUTEX_ALL);
	}
}
