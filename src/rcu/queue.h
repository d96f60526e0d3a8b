/* SPDX-License-Identifier: MIT */
/*
 * Callback queues, the inside: what the files queue*.c share, and why it is right.
 *
 *   queue.c         create, free, statistics
 *   queue_shard.c   producers: gr_rcu_call(), a thread's shard of a queue
 *   queue_batch.c   take, close, finish: callbacks on their way through grace periods
 *   queue_run.c     running them: classes, slices of the caller's lock, fork's door
 *   queue_worker.c  the worker thread: sleeping, pacing
 *   queue_barrier.c gr_rcu_barrier(), its asynchronous sister, gr_rcu_drain()
 *   queue_poll.c    queues without a thread
 *   queue_limits.c  soft and hard limits
 *   queue_fork.c    fork()
 *
 * SHARDS. A thread that calls often has a shard for each queue it calls: a ring of entries (the
 * head, tagged with its class) that this thread alone fills: it writes the entry, then (S1,
 * release) tail. The runner reads tail (acquire), then entries. Two producers share no line
 * that either writes. The runner gets an array of heads, so it can fetch many objects
 * at once instead of one link after the other. A full ring is followed by a new, larger one;
 * where there is no memory for it, calls go on the shard's own stack, `over`, for as long as that
 * is not empty.
 * Threads without a shard (they call seldom, have ended, or there was no memory) and handlers that
 * interrupt a call of their own thread (the shard is busy) use a stack for all, `incoming`. Stacks are pushed by compare-and-swap (S2, release) and taken whole (acquire).
 * So a call never fails, and a handler may call.
 *
 * BATCHES. They are numbered. At most one is *open* (waiting for its grace period) and one
 * *closed* (its grace period is over, its callbacks run): finished <= closed <= opened, each by
 * at most one; what is in none of them is *untaken*. All under q->lock:
 *   take    moves what is untaken into the open batch, or into a new one, and then (B1) takes
 *           a cookie. It does not touch an open batch whose grace period may have begun.
 *   close   when the cookie is over.
 *   finish  when its callbacks have run: rings get their slots back (B2, release of head; the
 *           producer acquires it before it fills the slot again).
 * B1 comes after the acquires of take, which pair with S1 and S2: what a producer did before its
 * call (the unlinking) comes before the grace period. So a callback never runs before the
 * sections that were open when it was queued have ended. Who waited for an open batch's cookie
 * looks at it again, under the lock, before it closes the batch: a take that began to join before
 * the grace period did, and ended after, has set a later one.
 *
 * ORDER. One thread's callbacks of one class on one queue run in the order of the calls. In a
 * batch `incoming` comes first, then shard by shard the ring's part, then what was `over`.
 *   - A thread goes from `incoming` to a shard once, never back. Take reads the tails first, then
 *     takes incoming: if it has an entry, it has what that thread pushed before, or had it.
 *     (It does go back when its exit hook has run: what destructors call after that is in order
 *     among itself only. A handler that interrupts a call goes there for once: what its thread
 *     calls later comes later all the same, but what it called before may run after.)
 *   - While `over` is not empty nothing is put into the ring. Take reads tail, then, if over is not
 *     empty, over_at: the tail when the first was pushed, which stays as long as over is not
 *     empty. All entries below are visible (S2), and there are none above: they come with
 *     this batch, before what was over. A batch that has something of over takes no more of that
 *     shard if it is joined: what is in the ring by now came later.
 *
 * SLEEP. q->sleeping says what the runner does: AWAKE, PACING (gathers for a moment), ASLEEP, or
 * ABSENT (no thread yet). It announces, has a full fence (W1), looks for work, sleeps. A producer
 * makes its entry visible, has a fence (S3), looks at the announcement. Were S3 full, not both
 * could miss. It would make each call wait until the object's line has come to its cache, which
 * costs ten times what the call costs. So where there is a process-wide fence, S3 is a compiler
 * barrier. Then both can miss, for as long as the entry stays in the producer's store buffer:
 * nanoseconds. The worker does not sleep for ever at once, but looks again after 200 us, 2 ms,
 * 20 ms, 100 ms; then it issues the process-wide fence (W2), looks once more, and sleeps. W2 and
 * the compiler barrier are as good as a full fence on both sides: no call is left behind,
 * and a queue that is in use interrupts no vCPU. In quiet times (gr_rcu_quiet_begin()) an idle one
 * does not either: it goes on looking every 100 ms. (The owner of a queue without a thread cannot
 * look again: there S3 is full.)
 *
 * BARRIER. Under q->lock it does the take itself. Then all that was queued before is in batches
 * up to `opened`, or, if something could not join the open batch, opened + 1. It says so in `want`
 * and waits until finished is there. Idle: nothing taken, opened == finished, no grace period.
 *
 * RUNNER. Who closes batches and runs callbacks: the worker, or whoever polls a queue that has
 * none, or a barrier where no thread can be made. One at a time (q->runner). Only callbacks
 * that need the caller's lock may also be run by somebody else who holds that lock
 * (gr_rcu_drain()): they are picked one by one under it.
 *
 * FORK. Pages are copied one after the other while other threads go on, so the child's memory is
 * not one moment's. What it may rely on is what does not change during fork:
 *   - fork takes q->lock: batches, rings' heads and the stack below what it saw stay.
 *   - it notes each tail (acquire), the stack's top, and continues from these in the child: what
 *     producers add meanwhile is the parent's alone; entries below the noted tail are written.
 *   - it closes the door: sets gr_rcu_fork_door, has a heavy fence (F1), waits while `deciding` is
 *     set. The runner, before each callback: sets deciding; fence (F2: compiler barrier where
 *     the heavy fence exists, else full); looks at the door. Closed: clears deciding, waits.
 *     Open: notes the callback as begun, then (release) clears deciding, runs it. Either fork
 *     sees deciding and waits these few instructions, or the runner sees the door closed. So
 *     while pages are copied no callback begins, and each is noted as begun or not.
 *   - nobody waits at the door or for q->lock with the caller's lock held (F3), nor in a poll:
 *     other handlers of the same fork may want that lock, or one that who polls holds.
 * In the child batches stay as they are; what has begun is not run again; what has not is.
 * Fork never waits for a callback.
 *
 * Models: models/queue.pml; FORK: fork.pml; queue_barrier.c's DRAIN: drain.pml; limits: limits.pml;
 * queues without a thread: poll.pml.
 */
#ifndef GR_RCU_QUEUE_INSIDE_H
#define GR_RCU_QUEUE_INSIDE_H

#include "base/atomic.h"
#include "base/mutex.h"
#include "base/signals.h"
#include "rcu/rcu_internal.h"
#include <guestram/rcu_queue.h>

/* An entry: the head, and in its lowest bit the class. 0: has been run out of turn. */
typedef uintptr_t gr_rcu_entry;
enum gr_rcu_class {
	GR_RCU_LOCKED = 0, /* runs with the queue's lock held, if it has one */
	GR_RCU_FREE = 1,   /* runs without it, always */
	GR_RCU_CLASSES,
};

static inline struct gr_rcu_head *gr_rcu_entry_head(gr_rcu_entry e)
{
	return (struct gr_rcu_head *)(e & ~(gr_rcu_entry)1);
}

struct gr_rcu_ring {
	struct gr_rcu_ring *next; /* (a) set by the producer before its first entry there */
	size_t first;		  /* (c) number of the first entry put here */
	size_t mask;		  /* (c) */
	size_t bytes;		  /* (c) of memory; 0: inside the shard */
	gr_rcu_entry entry[];	  /* published by tail */
};

/* Callbacks in order, linked by next. */
struct gr_rcu_list {
	struct gr_rcu_head *first;
	struct gr_rcu_head *last;
};

struct gr_rcu_shard {
	/* The producer's. (o) is the owning thread, its signal handlers included. */
	struct gr_rcu_queue *queue; /* (a) NULL: freed; the shard may be used for another */
	size_t tail;		    /* (a) entries ever put */
	struct gr_rcu_ring *put;    /* (a) the ring of entry tail */
	size_t full_at;		    /* (o) tail at which head must be looked at again */
	struct gr_rcu_head *over;   /* (a) stack, newest first: calls that found no room */
	size_t over_at;		    /* (a) tail when over was last pushed on while empty */
	uint32_t busy;		    /* (o) a call is under way in the owner */
	size_t bytes;		    /* (a) of sized calls, ever */
	size_t reported;	    /* (o) tail when the queue's count was last told... */
	size_t reported_bytes;	    /* (o) ...and bytes */
	struct gr_rcu_shard *next_of_thread; /* (o) */
	/* The runner's. run <= closed <= open <= tail, all numbers of entries. */
	size_t head GR_ALIGNED(GR_CACHE_LINE); /* (a) slots below are free again */
	size_t run;			       /* (a) entries below have begun */
	size_t pass;			       /* the pass over FREE has looked at those below */
	size_t closed;			       /* q->lock: the closed batch ends here */
	size_t open;			       /* q->lock: the open batch ends here... */
	size_t open_bytes;		       /* ...and so many of bytes are in it or before */
	struct gr_rcu_list open_over[GR_RCU_CLASSES];	/* q->lock: what was over, in the open... */
	struct gr_rcu_list closed_over[GR_RCU_CLASSES]; /* ...and the closed batch */
	struct gr_rcu_ring *get;    /* the ring of entry run, or one before it */
	struct gr_rcu_ring *oldest; /* q->lock: not freed yet, get or before it */
	bool orphan;		    /* q->lock: the owner has ended */
	struct gr_rcu_shard *next;  /* (a) written under q->lock */
	/* What fork() saw. */
	struct gr_rcu_head *fork_over;
	size_t fork_tail;
	size_t fork_bytes;
	struct gr_rcu_ring *fork_put;
	struct gr_rcu_ring ring0 GR_ALIGNED(GR_CACHE_LINE); /* the first, to the end of the page */
};

struct gr_rcu_batch {
	struct gr_rcu_list list[GR_RCU_CLASSES]; /* what was incoming */
	struct gr_rcu_list after;		 /* asynchronous barriers: run last, as LOCKED */
	uint64_t cookie;			 /* of its grace period */
	size_t count;				 /* with the rings' */
	size_t bytes;
};

enum gr_rcu_sleep {
	GR_RCU_AWAKE = 0,
	GR_RCU_PACING = 1, /* gathers for a moment: only barriers and limits wake */
	GR_RCU_ASLEEP = 2, /* nothing to do: any call wakes */
	GR_RCU_ABSENT = 3, /* there is no thread: the next call makes one */
};

struct gr_rcu_queue {
	/* Producers read these at each call; they change a few times per batch. */
	uint32_t sleeping GR_ALIGNED(GR_CACHE_LINE); /* (a) enum gr_rcu_sleep; futex */
	bool full_fence;			     /* (c) S3 is full: its sleep has no W2 */
	uint32_t grain;				     /* (c) calls between reports to count... */
	size_t grain_bytes;			     /* (c) ...or so many bytes */
	struct gr_rcu_queue_params params;	     /* (c) */
	/* For calls without a shard. */
	struct gr_rcu_head *incoming GR_ALIGNED(GR_CACHE_LINE); /* (a) newest first */
	size_t pushed;						/* (a) onto stacks, ever... */
	size_t pushed_bytes;					/* (a) ...and their bytes */
	/* For limits: what was reported less what has run. May be below the truth by the grains. */
	int64_t count GR_ALIGNED(GR_CACHE_LINE); /* (a) */
	int64_t bytes;				 /* (a) */
	uint32_t urgent;			 /* (a) over the soft limit: no pacing */
	uint32_t room;				 /* (a) bumped below the hard limit; futex */
	uint32_t room_waiters;			 /* (a) */
	uint32_t refused_said;			 /* (a) warnings so far, for their rate */
	/* Batches. Not held while anything is called or anybody waited for. */
	struct gr_mutex lock GR_ALIGNED(GR_CACHE_LINE);
	struct gr_rcu_shard *shards;	/* (a) written under lock */
	uint32_t opened;		/* (l) */
	uint32_t closed;		/* (a) written under lock */
	uint32_t finished;		/* (a) written under lock */
	uint32_t want;			/* (a) a barrier needs finished to get here */
	uint32_t unlocked_done;		/* (a) callbacks of this batch that need no lock have run */
	uint32_t done;			/* (a) bumped when finished or unlocked_done is; futex */
	uint32_t done_waiters;		/* (a) */
	struct gr_rcu_batch open_batch; /* (l) */
	size_t taken;			/* (l) off stacks, ever... */
	size_t taken_bytes;		/* (l) */
	struct gr_rcu_list after_next;	/* (l) asynchronous barriers of the batch after opened */
	/* The runner's. */
	struct gr_rcu_batch batch GR_ALIGNED(GR_CACHE_LINE); /* the closed one: what is left */
	struct gr_rcu_shard *cursor; /* shards before this one have nothing left of the pass */
	bool has_locked;	     /* the pass over FREE found LOCKED ones */
	uintptr_t deciding;	     /* (a) see FORK: 0, or who decides: gr_rcu_me() */
	uint32_t unreported;	     /* callbacks run that count still has */
	uint64_t last_start_ns;	     /* start of its last grace period */
	uint64_t held_ns;	     /* caller's lock held since it stepped back */
	uintptr_t runner;	     /* (a) 0, or who runs: gr_rcu_me() */
	uint32_t stop;		     /* (a) leave when all has run */
	uint32_t no_thread_said;     /* (a) */
	pthread_t thread;	     /* (c) once there is one */
	int fd;		   /* (c) without a thread: readable when there is something to do */
	uint32_t gp_asked; /* (a) the default queue will tell us of a grace period */
	struct gr_rcu_queue_stats stats GR_ALIGNED(8); /* (a) each */
	char name[16];				       /* (c) */
	bool is_default;			       /* (c) */
	struct gr_rcu_queue *next;		       /* gr_rcu_queues.lock */
	/* What fork() saw. */
	struct gr_rcu_head *fork_incoming;
	size_t fork_pushed, fork_pushed_bytes;
};

/* All queues of the process, for fork and for threads that end. */
extern struct gr_rcu_queues {
	/* Protects the list and that a shard's queue is not freed; before each queue's lock. */
	struct gr_mutex lock;
	struct gr_rcu_queue *first; /* (l) */
} gr_rcu_queues;

/* (a) S3 and F2 are compiler barriers: there is a process-wide fence. The same once set. */
extern bool gr_rcu_callers_fence_is_light;

/* (o) What a thread knows about queues. */
struct gr_rcu_calls {
	struct gr_rcu_shard *last;	  /* the shard used last */
	struct gr_rcu_shard *shards;	  /* all of them; changed with signals blocked */
	struct gr_rcu_queue *callback_of; /* running one of this queue's callbacks */
	struct gr_rcu_queue *worker_of;	  /* is its worker */
	struct gr_rcu_queue *noted;	  /* gr_rcu_set_thread_queue() */
	uint32_t calls;			  /* without a shard, up to a few */
	bool late;			  /* its exit hook has run: no more shards */
};
#ifdef _WIN32 /* see self_windows.c */
struct gr_rcu_calls *gr_rcu_caller_of_thread(void) __attribute__((const));
#	define gr_rcu_caller (*gr_rcu_caller_of_thread())
#else
extern __thread struct gr_rcu_calls gr_rcu_caller __attribute__((tls_model("initial-exec")));
#endif

/* A number for the calling thread that is never 0; the same in a fork child. */
static inline uintptr_t gr_rcu_me(void)
{
	return (uintptr_t)&gr_rcu_caller;
}

static inline bool gr_rcu_is_running(struct gr_rcu_queue *q, uint32_t batch)
{
	return (int32_t)(gr_load_acquire(&q->finished) - batch) < 0;
}

static inline bool gr_rcu_has_thread(const struct gr_rcu_queue *q)
{
	return (q->params.flags & GR_RCU_QUEUE_NO_THREAD) == 0;
}

/* Inside a section of d. A quiescent-state thread is in none of its own unless it says so. */
static inline bool gr_rcu_in_section(struct gr_rcu_domain *d)
{
	struct gr_rcu_reader *r = gr_rcu_domain_reader(gr_rcu_domain_or_default(d));

	return r && gr_rcu_read_ongoing_on(r) && gr_load_relaxed(&r->ctr) != (GR_RCU_QS | 1);
}

/* queue.c */
struct gr_rcu_queue *gr_rcu_queue_or_default(struct gr_rcu_queue *q);
uint64_t gr_rcu_queue_length(struct gr_rcu_queue *q, uint64_t *ret_bytes) GR_REQUIRES(q->lock);

/* queue_shard.c */
void gr_rcu_shard_free(struct gr_rcu_shard *s);

/* queue_batch.c. A thread that is not the worker blocks signals first: a handler may fork. */
bool gr_rcu_queue_has_callbacks(struct gr_rcu_queue *q);
bool gr_rcu_queue_untaken(struct gr_rcu_queue *q) GR_REQUIRES(q->lock);
/* False if something may be left that could not join the open batch: see BATCHES and ORDER. */
bool gr_rcu_queue_take(struct gr_rcu_queue *q) GR_REQUIRES(q->lock);
void gr_rcu_queue_open(struct gr_rcu_queue *q, uint64_t cookie) GR_REQUIRES(q->lock);
void gr_rcu_queue_close(struct gr_rcu_queue *q) GR_REQUIRES(q->lock);
/*
 * Once per batch, whoever calls. With LOCKED callbacks in it: with the caller's lock held. False,
 * with no_wait only: q->lock is not free. Try again, after leaving the caller's lock for a moment.
 */
GR_MUST_CHECK bool gr_rcu_queue_finish(struct gr_rcu_queue *q, uint32_t batch, bool no_wait);
/* Tells those who wait for finished or unlocked_done. */
void gr_rcu_queue_announce(struct gr_rcu_queue *q);
void gr_rcu_list_append(struct gr_rcu_list *list, struct gr_rcu_head *head);

/* queue_run.c */
struct gr_rcu_budget {
	size_t left;	 /* callbacks */
	size_t ran;	 /* out */
	uint64_t end_ns; /* start none later; 0: no limit */
	bool no_wait;	 /* leave rather than wait at fork's door, or for q->lock at the end */
};
/* One at a time closes and runs. */
GR_MUST_CHECK bool gr_rcu_queue_begin_running(struct gr_rcu_queue *q);
void gr_rcu_queue_end_running(struct gr_rcu_queue *q);
/*
 * (a) Callbacks of queues without a lock run on a quiescent-state thread that is online: their
 * program's sections are those of liburcu's qsbr.
 */
extern uint32_t gr_rcu_callbacks_are_qs;
/* Runs the closed batch and finishes it; false: the budget was not enough. */
bool gr_rcu_queue_run(struct gr_rcu_queue *q, struct gr_rcu_budget *budget);
/* The first part of it: what needs no lock. If that is all, finishes the batch. */
bool gr_rcu_queue_run_unlocked(struct gr_rcu_queue *q, struct gr_rcu_budget *budget);
/* The second, with the caller's lock held, by whomever. */
bool gr_rcu_queue_run_locked(struct gr_rcu_queue *q, struct gr_rcu_budget *budget);
extern uint32_t gr_rcu_fork_door; /* (a) 1: closed; futex */
/* Without a lock that whoever forks might want. */
void gr_rcu_wait_at_door(void);

/* queue_worker.c */
/* Makes sure of a worker. False if there is none and none can be made now. */
bool gr_rcu_queue_start_worker(struct gr_rcu_queue *q);
void gr_rcu_queue_wake(struct gr_rcu_queue *q, bool urgent);
/* Waits for the open batch's grace period and closes it. False: there is nothing to run. */
bool gr_rcu_queue_next_batch(struct gr_rcu_queue *q);

/* queue_limits.c */
/* n more calls, and bytes; waits if that is too much and the caller may wait. */
void gr_rcu_queue_report(struct gr_rcu_queue *q, size_t n, size_t bytes);
/* n have run, and bytes are free. */
void gr_rcu_queue_report_run(struct gr_rcu_queue *q, size_t n, size_t bytes);
/* No longer urgent, if so. */
void gr_rcu_queue_calm_down(struct gr_rcu_queue *q);
void gr_rcu_raise(uint64_t *max, uint64_t v);

/* queue_poll.c */
int gr_rcu_queue_make_fd(void);
void gr_rcu_queue_ring_fd(struct gr_rcu_queue *q);
#endif
