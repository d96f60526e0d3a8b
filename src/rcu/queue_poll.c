/* SPDX-License-Identifier: MIT */
/*
 * Queues without a thread. The owner waits for the fd in its event loop and polls. The fd is
 * rung when the first callback comes after a poll that left nothing to do (the handshake of a
 * worker that goes to sleep), when the open batch's grace period is over, and when a poll stopped
 * at its limits. For the grace period the poll leaves a callback with the default queue:
 * that one runs after a grace period which begins later than the open batch's cookie.
 *
 * That callback is allocated, not part of the queue: a fork child may have lost one that was in
 * the middle of running, and asks again.
 */
#include "base/clock.h"
#include "base/wake_fd.h"
#include "rcu/queue.h"
#include <errno.h>

int gr_rcu_queue_make_fd(void)
{
	int fd, write_fd, rc = gr_wake_fd_open(&fd, &write_fd);

	if (rc < 0) {
		return rc;
	}
	if (fd != write_fd) { /* a pipe: a fork child would have to keep two numbers */
		gr_wake_fd_close(fd, write_fd);
		return -ENOTSUP;
	}
	return fd;
}

void gr_rcu_queue_ring_fd(struct gr_rcu_queue *q)
{
	if (q->fd >= 0) {
		gr_wake_fd_ring(q->fd);
	}
}

static void silence_fd(struct gr_rcu_queue *q)
{
	if (q->fd >= 0) {
		(void)gr_wake_fd_silence(q->fd);
	}
}

struct gp_teller {
	struct gr_rcu_head head;
	struct gr_rcu_queue *queue;
};

static void tell_grace_period(struct gr_rcu_head *head)
{
	struct gp_teller *t = gr_container_of(head, struct gp_teller, head);
	struct gr_rcu_queue *q = t->queue;

	free(t);
	gr_store_release(&q->gp_asked, 0u);
	gr_rcu_queue_ring_fd(q); /* gr_rcu_queue_free() waits for us: q is still there */
}

static void ask_for_grace_period(struct gr_rcu_queue *q)
{
	struct gp_teller *t;

	if (gr_xchg_acq_rel(&q->gp_asked, 1u) != 0) {
		return;
	}
	t = malloc(sizeof(*t));
	if (!t) {
		gr_store_release(&q->gp_asked, 0u);
		gr_rcu_queue_ring_fd(q); /* the owner asks again, until there is memory */
		return;
	}
	t->queue = q;
	gr_rcu_call_nolock(NULL, &t->head, tell_grace_period);
}

static void check_threadless(struct gr_rcu_queue *q, const char *what)
{
	if (!q || gr_rcu_has_thread(q)) {
		gr_die("%s is for queues without a thread", what);
	}
}

int gr_rcu_queue_fd(struct gr_rcu_queue *queue)
{
	check_threadless(queue, "gr_rcu_queue_fd()");
	return queue->fd;
}

/* Closes the open batch if its grace period is over, takes what is new. Anything to run? */
static bool advance(struct gr_rcu_queue *q)
{
	struct gr_signals saved;
	bool any;

	gr_signals_block(&saved);
	gr_mutex_lock(&q->lock);
	if (q->closed == q->finished && q->opened != q->closed &&
	    gr_rcu_domain_poll_state(q->params.domain, q->open_batch.cookie)) {
		gr_rcu_queue_close(q);
	}
	(void)gr_rcu_queue_take(q);
	any = q->closed != q->finished;
	gr_mutex_unlock(&q->lock);
	gr_signals_restore(&saved);
	return any;
}

/* Nothing can run now. The next call, or the grace period, rings. */
static void fall_asleep(struct gr_rcu_queue *q)
{
	struct gr_signals saved;
	bool untaken, open;

	gr_store_relaxed(&q->sleeping, (uint32_t)GR_RCU_ASLEEP);
	gr_fence(); /* W1 */
	gr_signals_block(&saved);
	gr_mutex_lock(&q->lock);
	open = q->opened != q->closed;
	untaken = gr_rcu_queue_untaken(q);
	gr_mutex_unlock(&q->lock);
	gr_signals_restore(&saved);
	if (open) {
		ask_for_grace_period(q); /* with the next poll what is untaken is taken */
	} else if (untaken) {
		gr_rcu_queue_wake(q, false);
	}
}

size_t gr_rcu_queue_poll(struct gr_rcu_queue *queue, size_t max, uint64_t ns)
{
	struct gr_rcu_queue *q = queue;
	struct gr_rcu_budget budget = {
		.left = max ? max : SIZE_MAX,
		.end_ns = ns ? gr_clock_ns() + ns : 0,
		.no_wait = true, /* F3 */
	};
	bool enough = false;

	check_threadless(q, "gr_rcu_queue_poll()");
	if (gr_rcu_in_section(q->params.domain)) {
		gr_die("gr_rcu_queue_poll() inside a read-side section");
	}
	if (gr_rcu_caller.callback_of == q || !gr_rcu_queue_begin_running(q)) {
		return 0;
	}
	silence_fd(q);
	gr_store_relaxed(&q->sleeping, (uint32_t)GR_RCU_AWAKE);
	while (!enough && advance(q)) {
		enough = !gr_rcu_queue_run(q, &budget);
	}
	gr_rcu_queue_calm_down(q);
	if (enough) {
		gr_rcu_queue_ring_fd(q);
	} else {
		fall_asleep(q);
	}
	gr_rcu_queue_end_running(q);
	return budget.ran;
}
