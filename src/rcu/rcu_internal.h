/* SPDX-License-Identifier: MIT */
/* What the files of src/rcu share: domains with their registries, statistics, notifiers. */
#ifndef GR_RCU_INTERNAL_H
#define GR_RCU_INTERNAL_H

#include "base/mutex.h"
#include "base/signals.h"
#include <guestram/event.h>
#include <guestram/rcu_control.h>
#include <guestram/rcu_domain.h>
#include <guestram/rcu_qs.h>

/* A reader becomes HOT after so many COLD sections in a row, if they took at most... */
#define GR_RCU_COLD_SECTIONS 256u
/* ...this long, in 1024 ns: an occasional reader had better pay a fence than cost others one. */
#define GR_RCU_COLD_SPAN 1024u

/* Who made a record. The first must be 0: a thread's own is not initialised by anybody. */
enum gr_rcu_reader_kind {
	GR_RCU_READER_THREAD = 0, /* gr_rcu_self */
	GR_RCU_READER_AUTO,	  /* a thread's in a domain, found or made by us (domain.c) */
	GR_RCU_READER_HANDLE,	  /* gr_rcu_reader_init() */
};

/* gp.pending: a count, and a flag that makes the driver look up from its sleep. */
#define GR_RCU_PENDING_COUNT 0x7fffffffu
#define GR_RCU_PENDING_HURRY 0x80000000u

/* The thread that runs grace periods for gr_rcu_start_poll(); see poll.c. */
struct gr_rcu_poll {
	gr_atomic_u64 wanted; /* (a) the latest cookie given away */
	uint32_t state;	      /* (a) enum in poll.c */
	uint32_t stop;	      /* (a) */
	struct gr_event work;
	pthread_t thread; /* (c) once running */
};

/* What the driver noted on a reader that holds it up, and the reader when it ended. */
struct gr_rcu_stall_note {
	bool waits;
	uint32_t tid;
	char reader[32];
	char thread[16]; /* its name, once looked up */
	const char *kind;
	const void *begin_site, *end_site; /* end: (a) the reader's */
	gr_atomic_u64 begin_ns, end_ns;	   /* 0: not known */
};

/* The driver's, from the first sleep to the end of the grace period; see stall.c. */
#define GR_RCU_STALL_NOTES 8
struct gr_rcu_stall {
	uint64_t start_ns;
	uint64_t due_ns; /* clock: of the next warning; 0: none */
	uint64_t wait_ns;
	uint32_t notes;
	uint32_t more; /* that found no room */
	struct gr_rcu_stall_note note[GR_RCU_STALL_NOTES];
};

struct gr_rcu_domain {
	/* Who drives. Only ever tried; protects the running of a grace period, nothing else. */
	struct gr_owned_mutex gp_lock;
	gr_atomic_u64 seq GR_ALIGNED(GR_CACHE_LINE); /* (a) written under gp_lock; odd: one runs */
	uint32_t driver_sleeps; /* (a) waiting for it takes longer than a spin */
	uint32_t pending GR_ALIGNED(GR_CACHE_LINE); /* (a) requests not yet taken back; a futex */
	uint32_t expedited;			    /* (a) how many wait and have no patience */
	uint32_t word[2] GR_ALIGNED(GR_CACHE_LINE); /* (a) futexes of those who wait for a driver */
	uint32_t waiters[2];			    /* (a) how many sleep, or are about to */
	/*
	 * Protects readers and the second line of each record, and keeps the records alive: a
	 * reader cannot leave while it is held. Not ctr and need_qs. Never held across a wait,
	 * a system call that may take long, or a callback. The list changes with
	 * gr_rcu_lists_lock held as well.
	 */
	struct gr_owned_mutex registry_lock GR_ALIGNED(GR_CACHE_LINE);
	struct gr_rcu_reader *readers; /* (l) */
	/* Notifiers: the one that is being called, under registry_lock; see notifier.c. */
	const struct gr_rcu_notifier *calling;
	uint32_t calls;	     /* (a) bumped after each; futex of those who remove one */
	uint32_t notifiers;  /* (l) how many there are */
	uint64_t round;	     /* (o) driver: rounds of calls made */
	uint32_t fencing;    /* (a) the driver's: it may fence process-wide; see quiet.c */
	uint32_t no_reports; /* (o) driver: grace periods that do not wait for reports */
	bool alone;	     /* (o) driver: it has forked, and this is the child */
	struct {
		uint32_t asked, claimed; /* requests, and those taken back by the driver */
		bool last;		 /* the latter brought pending to 0 */
	} now;				 /* (o) driver: this grace period's */
	struct gr_rcu_stall stall;	 /* (o) driver; a note's end is its reader's */
	struct gr_rcu_poll poll;
	struct gr_rcu_stats stats;  /* (a) each; nothing in it is written by readers */
	uint32_t queues;	    /* (a) callback queues that use this domain */
	char name[16];		    /* (c) */
	struct gr_rcu_domain *next; /* domains' lock */
};
extern struct gr_rcu_domain gr_rcu_default;

static inline struct gr_rcu_domain *gr_rcu_domain_or_default(struct gr_rcu_domain *d)
{
	return d ? d : &gr_rcu_default;
}

/*
 * Held, with signals blocked, for the few stores by which the list of domains or one of readers
 * changes: all that fork() takes. A driver looks at the lists under registry_lock, signals open: a
 * handler that interrupts it may fork, while others wait for that lock.
 */
extern struct gr_mutex gr_rcu_lists_lock;

/*
 * Takes a registry's lock. A handler on a thread that is not registered would want the default
 * domain's too, to register: so signals are blocked there, and only there (a registered
 * thread costs no system call). Returns through saved what gr_rcu_registry_unlock() needs.
 */
struct gr_rcu_signals {
	struct gr_signals mask;
	bool blocked;
};
void gr_rcu_registry_lock(struct gr_rcu_domain *d, struct gr_rcu_signals *saved)
	GR_ACQUIRE(d->registry_lock);
void gr_rcu_registry_unlock(struct gr_rcu_domain *d, const struct gr_rcu_signals *saved)
	GR_RELEASE(d->registry_lock);

/* Links a record into d with this ctr, or takes it out, outside any section. Signals blocked. */
void gr_rcu_reader_link(struct gr_rcu_domain *d, struct gr_rcu_reader *r, uint32_t ctr);
void gr_rcu_reader_unlink(struct gr_rcu_reader *r);
/* The same of a record whose domain's registry is locked. */
void gr_rcu_reader_unlink_locked(struct gr_rcu_domain *d, struct gr_rcu_reader *r)
	GR_REQUIRES(d->registry_lock);
/* Makes the thread-exit hook call us on this thread. Dies where there is no memory for it. */
void gr_rcu_watch_thread_exit(void);
/* COLD: a new row of sections begins. */
void gr_rcu_start_counting(struct gr_rcu_reader *r);
/* Tests: the reader becomes HOT (or WARM) with its next section, if any may. */
void gr_rcu_make_eager_for_test(struct gr_rcu_reader *r);

/* Counters: of the driver, which is one at a time, and of anybody. */
#define GR_RCU_COUNT(d, what, n) \
	gr_store_relaxed(&(d)->stats.what, gr_load_relaxed(&(d)->stats.what) + (uint64_t)(n))
#define GR_RCU_COUNT_SHARED(d, what, n) ((void)gr_add_relaxed(&(d)->stats.what, (uint64_t)(n)))

/* One grace period, whatever it takes. */
void gr_rcu_run_grace_period(struct gr_rcu_domain *d) GR_REQUIRES(d->gp_lock);
/* A reader has taken its request back. Who brings pending to 0 wakes the driver. */
void gr_rcu_pending_down(struct gr_rcu_domain *d);
/* As gr_rcu_report(); the section ended at site (code; NULL: not in anybody's). */
void gr_rcu_report_from(struct gr_rcu_reader *r, const void *site);
/* Asked to report, and has not. Under the registry's lock. */
bool gr_rcu_holds_up(const struct gr_rcu_reader *r);

/* What a driver's patience is like while it sleeps; see notifier.c. */
struct gr_rcu_patience {
	uint64_t due_ns;  /* clock: when to ask to hurry */
	uint64_t wait_ns; /* until the time after */
	bool hurried;	  /* for those who have none */
};
void gr_rcu_patience_init(struct gr_rcu_patience *p, uint64_t start_ns);
/* Asks those who hold up to hurry, if it is time; returns how long to sleep at most. */
uint64_t gr_rcu_patience_check(struct gr_rcu_domain *d, struct gr_rcu_patience *p);
/* Makes a driver that sleeps look at its patience again. */
void gr_rcu_nudge_driver(struct gr_rcu_domain *d);
/* The reader goes: its notifiers go before it, after a call that runs. */
void gr_rcu_notifiers_drop(struct gr_rcu_domain *d, struct gr_rcu_reader *r);
/* Is this thread calling a notifier, on behalf of a grace period? */
bool gr_rcu_in_notifier(void);

/* Quiet times: no process-wide fence but for readers that are HOT from before the first. */
bool gr_rcu_quiet_in_effect(void);
/* Around a look at it and the fence that it allows, of others than drivers. */
bool gr_rcu_quiet_hold_off(void);
void gr_rcu_quiet_let_go(void);
/* Nobody wakes who waits for fences: they take microseconds. */
#define GR_RCU_FENCE_LOOK_NS 50000u
/* Until no driver fences any more that has not seen a quiet time. */
void gr_rcu_domains_wait_for_fences(void);
/* What a reader becomes that enters often: HOT, or WARM once there ever was a quiet time. */
uint32_t gr_rcu_quiet_grade(void);

/*
 * Around a wait of the calling thread for readers of d, or for callbacks: dies inside a
 * section of d naming `who`; a quiescent-state thread is offline meanwhile. Pass what begin
 * returns to end.
 */
struct gr_rcu_reader *gr_rcu_wait_begin(struct gr_rcu_domain *d, const char *who);
void gr_rcu_wait_end(struct gr_rcu_reader *r);

/* How many callbacks wait in the queues of d, about. */
uint64_t gr_rcu_callbacks_waiting(struct gr_rcu_domain *d);

/* (o) A thread's readers in domains other than the default one; see domain.c. */
enum { GR_RCU_FOUND_BEFORE = 8 };
struct gr_rcu_own_readers {
	struct gr_rcu_auto_reader *first;
	struct gr_rcu_auto_reader *found[GR_RCU_FOUND_BEFORE]; /* by hash; may be out of date */
};
#ifdef _WIN32 /* see self_windows.c */
struct gr_rcu_own_readers *gr_rcu_own_of_thread(void) __attribute__((const));
#	define gr_rcu_own (*gr_rcu_own_of_thread())
#else
extern __thread struct gr_rcu_own_readers gr_rcu_own;
#endif

/* The calling thread's reader in d, or NULL if it has none yet. */
struct gr_rcu_reader *gr_rcu_domain_reader(struct gr_rcu_domain *d);
/* The domain goes, and with it the thread that runs polled grace periods, if there is one. */
void gr_rcu_poll_stop(struct gr_rcu_domain *d);

/* The domains that the thread is inside a section of, but for explicit readers: how many of n. */
unsigned gr_rcu_sections_of_thread(struct gr_rcu_domain **domains, unsigned n);
/* The thread ends: its readers in other domains go. */
void gr_rcu_domain_leave_all(void);

/* Tests: start the sequence near an edge. No grace period may be running. */
void gr_rcu_seq_set_for_test(struct gr_rcu_domain *d, uint64_t seq);

/* fork(): each module freezes, thaws, or mends itself in the child. */
void gr_rcu_quiet_before_fork(void);
void gr_rcu_quiet_after_fork(bool in_child);
void gr_rcu_queues_before_fork(void);
void gr_rcu_queues_after_fork(bool in_child);
void gr_rcu_domains_before_fork(void);
void gr_rcu_domains_after_fork(bool in_child);
void gr_rcu_synchronize_after_fork_in_child(struct gr_rcu_domain *d);
void gr_rcu_poll_after_fork_in_child(struct gr_rcu_domain *d);
void gr_rcu_fork_install(void);
/* Handlers run last in, first out, and the lock of QEMU's names comes after liburcu's. */
void gr_qemu_fork_install(void);

#endif
