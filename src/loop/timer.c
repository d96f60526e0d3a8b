/* SPDX-License-Identifier: MIT */
/*
 * Timers: a binary heap of those that will fire, the first deadline at [1], under the loop's
 * lock. There is room for every timer of the loop, so setting one cannot fail.
 */
#include "base/atomic.h"
#include "base/clock.h"
#include "loop/loop.h"
#include <errno.h>

uint64_t gr_loop_now_ns(void)
{
	return gr_clock_ns();
}

int gr_loop_heap_reserve_locked(struct gr_loop *loop)
{
	size_t room = 2 * loop->heap_room + 8;
	struct gr_loop_handler **grown;

	if (loop->timers + 1 < loop->heap_room) { /* [0] is not used */
		return 0;
	}
	grown = realloc(loop->heap, room * sizeof(struct gr_loop_handler *));
	if (!grown) {
		return -ENOMEM;
	}
	loop->heap = grown;
	loop->heap_room = room;
	return 0;
}

static void put(struct gr_loop *loop, size_t at, struct gr_loop_handler *timer)
{
	loop->heap[at] = timer;
	timer->heap_at = at;
}

/* Put timer where it belongs, beginning at the free place `at`. */
static void sift(struct gr_loop *loop, size_t at, struct gr_loop_handler *timer)
{
	struct gr_loop_handler **heap = loop->heap;

	while (at > 1 && heap[at / 2]->deadline_ns > timer->deadline_ns) {
		put(loop, at, heap[at / 2]);
		at /= 2;
	}
	for (;;) {
		size_t child = 2 * at;

		if (child < loop->heap_used &&
		    heap[child + 1]->deadline_ns < heap[child]->deadline_ns) {
			child++;
		}
		if (child > loop->heap_used || heap[child]->deadline_ns >= timer->deadline_ns) {
			break;
		}
		put(loop, at, heap[child]);
		at = child;
	}
	put(loop, at, timer);
}

void gr_loop_heap_remove_locked(struct gr_loop_handler *timer)
{
	struct gr_loop *loop = timer->loop;
	size_t at = timer->heap_at;
	struct gr_loop_handler *last;

	if (at == 0) {
		return;
	}
	timer->heap_at = 0;
	last = loop->heap[loop->heap_used--];
	if (last != timer) {
		sift(loop, at, last);
	}
}

void gr_loop_set_timer(struct gr_loop_handler *timer, uint64_t deadline_ns)
{
	struct gr_loop *loop = timer->loop;
	uint64_t now = gr_clock_ns();
	bool is_first;

	if (timer->fd >= 0) {
		gr_die("gr_loop_set_timer() of fd %d's handler", timer->fd);
	}
	gr_mutex_lock(&loop->lock);
	if (gr_load_relaxed(&timer->state) & GR_LOOP_REMOVED) {
		gr_die("gr_loop_set_timer() of a timer that was removed");
	}
	gr_loop_heap_remove_locked(timer);
	if (deadline_ns != GR_LOOP_NEVER) {
		/* Not before now: one that sets itself again and again lets others have turns. */
		timer->deadline_ns = GR_MAX(deadline_ns, now + 1);
		sift(loop, ++loop->heap_used, timer);
	}
	is_first = timer->heap_at == 1;
	gr_mutex_unlock(&loop->lock);
	if (is_first) {
		gr_loop_wake(loop);
	}
}

uint64_t gr_loop_first_deadline(struct gr_loop *loop)
{
	uint64_t deadline;

	gr_mutex_lock(&loop->lock);
	deadline = loop->heap_used > 0 ? loop->heap[1]->deadline_ns : GR_LOOP_NEVER;
	gr_mutex_unlock(&loop->lock);
	return deadline;
}

/* The call begins under the lock: who sets the timer anew has it cancelled, or finds it begun. */
static struct gr_loop_handler *begin_next(struct gr_loop *loop, uint64_t now_ns)
{
	struct gr_loop_handler *timer = NULL;

	gr_mutex_lock(&loop->lock);
	if (loop->heap_used > 0 && loop->heap[1]->deadline_ns <= now_ns) {
		timer = loop->heap[1];
		gr_loop_heap_remove_locked(timer);
		GR_ASSERT(gr_loop_begin(timer, GR_LOOP_FIRE)); /* removed ones are not here */
	}
	gr_mutex_unlock(&loop->lock);
	return timer;
}

int gr_loop_fire_due(struct gr_loop *loop, uint64_t now_ns)
{
	struct gr_loop_handler *timer;
	int calls = 0;

	while ((timer = begin_next(loop, now_ns))) {
		gr_loop_call(timer, GR_LOOP_FIRE);
		calls++;
	}
	return calls;
}
