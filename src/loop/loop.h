/* SPDX-License-Identifier: MIT */
/*
 * What the files of src/loop share.
 *
 * Handlers of descriptors stand in lists that the loop's thread reads under RCU; everything else
 * happens under the loop's lock. A handler's life hangs on one word, its state, which changes
 * by read-modify-writes only, so that "is it wanted?" and "the call begins" are one step:
 *
 *   begin   (loop's thread, in a section)  wanted and not REMOVED -> CALLING, else no call
 *   end     (loop's thread)                not CALLING; if it is REMOVED by now: free it
 *   del     (any thread)                   out of the list, then REMOVED; if not CALLING: free it
 *
 * Either begin comes first in the order of that word, and del finds CALLING: the call had begun
 * when del returned, and end frees. Or del comes first, and there is no call. Exactly one side
 * frees; "frees" means gr_rcu_call(): a reader that found the handler in the list may
 * still be about to look at the word. gr_loop_del_sync() adds WAITED: then end leaves the
 * freeing to the one who waits, and wakes it.
 */
#ifndef GR_LOOP_LOOP_H
#define GR_LOOP_LOOP_H

#include "base/clock.h"
#include "base/mutex.h"
#include <guestram/loop.h>
#include <guestram/rculist.h>

/* A handler's state, beside GR_LOOP_READ and GR_LOOP_WRITE: what is wanted. */
#define GR_LOOP_FIRE	4u  /* a timer: always wanted, its deadline decides */
#define GR_LOOP_REMOVED 8u  /* no call begins any more */
#define GR_LOOP_CALLING 16u /* one has begun and not ended */
#define GR_LOOP_WAITED	32u /* somebody waits for the end, and frees */
#define GR_LOOP_CLOSED	64u /* poll(2) says that the descriptor is not open: leave it alone */
#define GR_LOOP_EVENTS	(GR_LOOP_READ | GR_LOOP_WRITE)

struct gr_loop_handler {
	struct gr_loop *loop;	       /* (c) */
	int fd;			       /* (c) -1: a timer */
	uint64_t id;		       /* (c) never used twice in a loop; see gr_loop_bucket() */
	void (*fn[2])(void *opaque);   /* (c) read or fire, write */
	void (*release)(void *opaque); /* (c) */
	void *opaque;		       /* (c) */
	uint32_t state;		       /* (a) above */
	uint32_t waited_for;	       /* (l) the events that epoll has been told */
	struct gr_rcu_list_node node;  /* (r) loop->lock */
	uint64_t deadline_ns;	       /* (l) if it is in the heap */
	size_t heap_at;		       /* (l) its place there, from 1; 0: not there */
	struct gr_rcu_head rcu;
};

/* What came out of a wait. */
struct gr_loop_ready {
	uint64_t id;	     /* of the handler; GR_LOOP_WAKE_ID: somebody woke the loop */
	unsigned int events; /* GR_LOOP_READ, GR_LOOP_WRITE */
};
#define GR_LOOP_WAKE_ID UINT64_MAX

/* How descriptors are waited for. */
struct gr_loop_backend {
	const char *name;
	bool walks; /* wait() looks at the handlers first: wake it for more */
	int (*init)(struct gr_loop *loop, struct gr_error *err);
	void (*destroy)(struct gr_loop *loop);
	/* Wait for these events of the handler from now on, instead of handler->waited_for. */
	int (*set)(struct gr_loop *loop, struct gr_loop_handler *handler, uint32_t events,
		   struct gr_error *err);
	/* Loop's thread: sleep that long at most. */
	int (*wait)(struct gr_loop *loop, uint64_t timeout_ns, struct gr_error *err);
	/* Loop's thread: what the wait found, one after the other. */
	bool (*next)(struct gr_loop *loop, struct gr_loop_ready *ret);
	/* Loop's thread: next() gave an id that no handler has. May be NULL. */
	void (*stale)(struct gr_loop *loop);
};

extern const struct gr_loop_backend gr_loop_epoll, gr_loop_poll;

enum { GR_LOOP_BUCKETS = 256 };

struct gr_loop {
	const struct gr_loop_backend *backend;	 /* (c) */
	void *waiter;				 /* (c) the backend's own */
	struct gr_rcu_queue *queue;		 /* (c) releases handlers */
	struct gr_notifier wake;		 /* (c) */
	const void *runner;			 /* (a) the thread that is in step(), or NULL */
	uint32_t armed;				 /* (a) 1: it sleeps or is about to: wake it */
	uint32_t stop;				 /* (a) */
	struct gr_loop_deferred *deferred;	 /* (a) the newest first */
	struct gr_mutex lock;			 /* all (l) here and in the handlers */
	struct gr_rcu_list fds[GR_LOOP_BUCKETS]; /* (r) lock; by gr_loop_bucket() */
	uint64_t last_id;			 /* (l) */
	size_t handlers;			 /* (l) of both kinds */
	struct gr_loop_handler **heap;		 /* (l) timers that will fire, from [1] */
	size_t heap_used, heap_room, timers;	 /* (l) room for every timer there is */
};

/* Descriptors are small numbers: neighbours get lists of their own. */
static inline struct gr_rcu_list *gr_loop_bucket(struct gr_loop *loop, uint64_t fd_or_id)
{
	return &loop->fds[fd_or_id % GR_LOOP_BUCKETS];
}

/* For waits that count milliseconds: never too early. */
static inline int gr_loop_timeout_ms(uint64_t timeout_ns)
{
	uint64_t ms = timeout_ns / GR_NS_PER_MS + (timeout_ns % GR_NS_PER_MS != 0);

	return timeout_ns == GR_LOOP_NEVER ? -1 : (int)GR_MIN(ms, (uint64_t)INT32_MAX);
}

/* loop.c: wakes the loop if it sleeps, after something it looks at before it sleeps changed. */
void gr_loop_wake(struct gr_loop *loop);
/* loop.c: whether the calling thread may not wait. */
bool gr_loop_in_section(void);
/* loop.c: around a wait: no grace period waits for, or disturbs, the calling thread. */
GR_MUST_CHECK bool gr_loop_before_sleep(void);
void gr_loop_after_sleep(bool was_online);
/* loop.c: whether the calling thread runs the loop. */
bool gr_loop_is_runner(const struct gr_loop *loop);

/* handler.c */
struct gr_loop_handler *gr_loop_find_rcu(struct gr_loop *loop, uint64_t id)
	GR_REQUIRES_SHARED(gr_rcu_section);
/* The call `which` (one bit) begins, if it is wanted; then call it with gr_loop_call(). */
bool gr_loop_begin(struct gr_loop_handler *handler, uint32_t which);
void gr_loop_call(struct gr_loop_handler *handler, uint32_t which);

/* timer.c */
int gr_loop_heap_reserve_locked(struct gr_loop *loop) GR_REQUIRES(loop->lock);
void gr_loop_heap_remove_locked(struct gr_loop_handler *timer);
uint64_t gr_loop_first_deadline(struct gr_loop *loop);
/* Calls what was due at `now_ns`; how many. */
int gr_loop_fire_due(struct gr_loop *loop, uint64_t now_ns);

#endif
