/* SPDX-License-Identifier: MIT */
/**
 * guestram/rcu.h - read-copy update: readers that never wait, writers that wait for them.
 *
 * A reader brackets its use of shared, pointer-linked data with gr_rcu_read_lock() and
 * gr_rcu_read_unlock(): two stores to memory of its own, no shared cache line, no failure.
 * A writer makes an object unreachable, waits for a *grace period* (every read-side
 * section that was open has ended) and frees it; it waits itself (gr_rcu_synchronize()), has
 * a callback run (gr_rcu_call()), or takes a cookie and asks later (gr_rcu_get_state()).
 *
 *     struct conf __gr_rcu *conf;                      // published pointer
 *
 *     int read_limit(void)                             // any thread, at any time
 *     {
 *             GR_RCU_READ_GUARD();                     // until the function returns
 *             return gr_rcu_dereference(conf)->limit;
 *     }
 *
 *     void replace(struct conf *new_conf)              // writers take their own lock
 *     {
 *             struct conf *old = gr_rcu_dereference_protected(conf);
 *             gr_rcu_assign_pointer(conf, new_conf);
 *             gr_rcu_synchronize();                    // nobody uses old any more
 *             free(old);
 *     }
 *
 * More: callbacks in rcu_queue.h; readers of one's own and independent domains in rcu_domain.h;
 * threads whose sections cost nothing in rcu_qs.h; quiet times, hurry and statistics in
 * rcu_control.h.
 *
 * Threads: a thread registers itself when it enters its first section and leaves when it
 * ends; sections work in TLS destructors too. Sections nest (65535 deep) and may be
 * entered in signal handlers. Each section ends on the thread that began it.
 *
 * Caveats:
 * - Waiting for a grace period inside a section would wait for oneself: it dies with a message.
 *   Nor may a writer wait while it holds a lock that a reader takes inside a section.
 * - A thread that runs sections often is interrupted once per grace period (see
 *   gr_rcu_park()); one that runs them rarely pays a memory fence in each instead.
 * - A thread whose very first section is in a signal handler allocates nothing, but
 *   pthread_setspecific() may if the process has more than 32 keys: register early
 *   (gr_rcu_register_thread()) where handlers use RCU.
 * - A thread whose very first section is in the last round of its thread-specific-data
 *   destructors (the fourth, on glibc) must call gr_rcu_unregister_thread() itself.
 * - fork() may be called at any time, in a section too, in a notifier and in a signal handler
 *   (one that has interrupted no function of other parts of the library). The child has the
 *   forking thread's sections, and the queued callbacks run in both processes; one that another thread was in
 *   the middle of does not run again in the child.
 *
 * Source: user-level RCU (Desnoyers, McKenney, Stern, Dagenais, Walpole: IEEE TPDS 23(2),
 * 2012); asymmetric fences (C++ P1202). The algorithm and its argument are in
 * src/rcu/grace_period.c, the story for newcomers in docs/rcu.md.
 */
#ifndef GUESTRAM_RCU_H
#define GUESTRAM_RCU_H

#include <guestram/error.h>
#include <guestram/rcu_check.h>
#include <guestram/types.h>

GR_BEGIN_DECLS

struct gr_rcu_domain;
struct gr_rcu_notifier;

/*
 * A reader's record. What is in it is private; it is here because the read side is inline. The
 * owner alone writes ctr, ever: a driver that changed it from outside could hit an owner that
 * sits between its load and its store.
 *
 *   ctr = 0              not registered: the first lock registers
 *         HOT  | depth   entering needs no fence; each grace period needs a process-wide one
 *         WARM | depth   as HOT, but fences in quiet times (gr_rcu_quiet_begin())
 *         COLD | depth   entering has a full fence; costs a grace period nothing
 *         QS   | depth   depth 1 between quiescent states, more in sections within
 *         LATE | depth   thread is ending: registered only while inside a section
 *   and ENTERING           stored, and not fenced yet: a signal handler that comes now has to
 */
#define GR_RCU_DEPTH 0x00ffffu
#define GR_RCU_HOT   0x010000u
#define GR_RCU_COLD  0x020000u
#define GR_RCU_QS    0x040000u
#define GR_RCU_LATE  0x080000u
#define GR_RCU_WARM  0x100000u
#define GR_RCU_ENTERING 0x200000u

/*
 * Private: does a handler find a store of the code that it interrupts in memory? x86 empties the
 * store buffer at an interrupt. Elsewhere nobody promises it.
 */
#if (defined(__x86_64__) || defined(__i386__)) && !defined(GR_RCU_PORTABLE_ENTRY)
#define GR_RCU_ENTERING_ 0u
#else
#define GR_RCU_ENTERING_ GR_RCU_ENTERING
#endif

/** A reader: each thread has one, and gr_rcu_reader_init() makes more. Contents private. */
struct gr_rcu_reader {
	uint32_t ctr;	     /* (a) written by the owner only */
	uint32_t need_qs;    /* (a) 1: the driver awaits this reader; exchanged to 0 by one side */
	uint32_t cold_left;  /* (o) COLD sections until the reader tries to become HOT */
	uint32_t cold_since; /* (o) when they began to count, in 1024 ns; 0: not known */
	uint32_t is_qs;	     /* (o) registered for quiescent states, online or not */
	uint32_t late;	     /* (o) the thread-exit destructor has run */
	/* Checking build (rcu_check.h): the open section's begin. (o), (a) for stall warnings */
	const void *site;
	gr_atomic_u64 since_ns;
	uint32_t pad[6];
	/* Second cache line: the registry's, under its mutex. */
	struct gr_rcu_domain *domain; /* (c) NULL: the default domain */
	struct gr_rcu_reader *next;
	struct gr_rcu_reader **pprev;
	struct gr_rcu_notifier *notifiers;
	const char *name; /* (c) may be NULL */
	uint32_t awaited; /* the driver's list of readers it waits for */
	uint32_t kind;	  /* (c) enum gr_rcu_reader_kind; 0: a thread's own */
	uint32_t tid;	  /* (a) who registered it; in the checking build who entered last */
	uint32_t stalled; /* (a) 1 + the number of the driver's note on it (stall.c) */
} __attribute__((aligned(128)));

/* Private: the calling thread's record in the default domain. */
#ifdef _WIN32
/*
 * gcc's thread-local variables are emulated there, and freed by a destructor that may come
 * before the one that takes the record out: a slot of the system's instead.
 */
struct gr_rcu_reader *gr_rcu_self_of_thread(void) __attribute__((const));
#define gr_rcu_self (*gr_rcu_self_of_thread())
#else
extern GR_EXPORT __thread struct gr_rcu_reader gr_rcu_self;
#endif

/** Private to the inline code: registers the thread, or decides how it counts sections. */
GR_EXPORT void gr_rcu_read_lock_slow(struct gr_rcu_reader *r);
/** Private to the inline code: ends a section of a thread that is going away, or dies. */
GR_EXPORT void gr_rcu_read_unlock_slow(struct gr_rcu_reader *r);
/** Private to the inline code: enters a section of a WARM reader with a full fence. */
GR_EXPORT void gr_rcu_enter_quietly(struct gr_rcu_reader *r);
/** Private to the inline code: answers a grace period that waits for this reader. */
GR_EXPORT void gr_rcu_report(struct gr_rcu_reader *r);

/* Private: not 0 between gr_rcu_quiet_begin() and the last gr_rcu_quiet_end(). */
extern GR_EXPORT uint32_t gr_rcu_is_quiet;

/* The read-side section as clang's thread-safety analysis sees it: a shared capability. */
struct GR_CAPABILITY("rcu_section") gr_rcu_section_capability {
	char unused;
};
extern GR_EXPORT struct gr_rcu_section_capability gr_rcu_section;

/* Tests define this to widen the window between the load and the store of ctr. */
#ifndef GR_RCU_YIELD_POINT
#define GR_RCU_YIELD_POINT() ((void)0)
#endif

/* Private: store to one's own ctr, then a full fence. */
static inline void gr_rcu_store_ctr_fence(struct gr_rcu_reader *r, uint32_t v)
{
	/* On x86 xchg is both, and ThreadSanitizer understands it. */
	(void)__atomic_exchange_n(&r->ctr, v | GR_RCU_ENTERING_, __ATOMIC_SEQ_CST);
#if GR_RCU_ENTERING_ != 0
	/* Elsewhere an RMW is not a full fence, whatever its order says. */
#	ifdef __clang__
	__atomic_thread_fence(__ATOMIC_SEQ_CST);
#	else
	__sync_synchronize(); /* the same, which TSan's build warns about */
#	endif
	/* Release: a handler's section may have come between, when we go outside (R1). */
	__atomic_store_n(&r->ctr, v, __ATOMIC_RELEASE);
#endif
}

/* Private: outside now; does the driver wait for this reader? */
static inline void gr_rcu_look_for_request(struct gr_rcu_reader *r)
{
	/*
	 * H2: the store to ctr, before this look; M2 of the driver is the other half. Where there
	 * is no M2, the look may come too early and miss: the driver then looks again itself.
	 */
	__atomic_signal_fence(__ATOMIC_SEQ_CST);
	if (GR_UNLIKELY(__atomic_load_n(&r->need_qs, __ATOMIC_RELAXED) != 0)) {
		gr_rcu_report(r);
	}
}

/**
 * Enter a read-side section on a reader of one's own (rcu_domain.h): as gr_rcu_read_lock().
 * @param r A reader from gr_rcu_reader_init(), used by one thread at a time.
 * @context As gr_rcu_read_lock(); in signal handlers only if the handler has that reader
 *          for itself, or runs on the thread that uses it.
 */
static inline void gr_rcu_read_lock_on(struct gr_rcu_reader *r)
{
	uint32_t v = __atomic_load_n(&r->ctr, __ATOMIC_RELAXED), left;

	GR_RCU_YIELD_POINT();
	if (GR_LIKELY(v == GR_RCU_HOT)) {
		__atomic_store_n(&r->ctr, GR_RCU_HOT + 1, __ATOMIC_RELAXED);
	} else if ((v & (GR_RCU_DEPTH | GR_RCU_ENTERING)) - 1 < GR_RCU_DEPTH - 1) {
		/* Inside, not as deep as can be, and not in a handler before the fence. */
		__atomic_store_n(&r->ctr, v + 1, __ATOMIC_RELAXED);
	} else if (v == GR_RCU_WARM) {
		__atomic_store_n(&r->ctr, (GR_RCU_WARM + 1) | GR_RCU_ENTERING_, __ATOMIC_RELAXED);
		/*
		 * H3: "inside", before the look at the word; the fence of gr_rcu_quiet_begin() is
		 * the other half. Acquire: a section that finds it quiet no more comes after the
		 * drivers that relied on it (Q2 in quiet.c).
		 */
		__atomic_signal_fence(__ATOMIC_SEQ_CST);
		if (GR_UNLIKELY(__atomic_load_n(&gr_rcu_is_quiet, __ATOMIC_ACQUIRE) != 0)) {
			gr_rcu_enter_quietly(r);
		}
#if GR_RCU_ENTERING_ != 0
		__atomic_store_n(&r->ctr, GR_RCU_WARM + 1, __ATOMIC_RELAXED);
#endif
	} else if (v == GR_RCU_COLD &&
		   (left = __atomic_load_n(&r->cold_left, __ATOMIC_RELAXED)) != 0) {
		/* Not a decrement: a handler may use up what is left between test and store. */
		__atomic_store_n(&r->cold_left, left - 1, __ATOMIC_RELAXED);
		/* C1: inside, before what the section reads. Pairs with F1 of the driver. */
		gr_rcu_store_ctr_fence(r, GR_RCU_COLD + 1);
	} else {
		gr_rcu_read_lock_slow(r);
	}
	/* H1: as C1 for a HOT reader; the driver's membarrier (M1) is the other half. */
	__atomic_signal_fence(__ATOMIC_SEQ_CST);
	GR_RCU_CHECK_ENTER_(r);
}

/**
 * Leave a section on a reader of one's own: as gr_rcu_read_unlock().
 * @param r As in gr_rcu_read_lock_on().
 * @context The thread that entered it.
 */
static inline void gr_rcu_read_unlock_on(struct gr_rcu_reader *r)
{
	uint32_t v;

	GR_RCU_CHECK_LEAVE_(r);
	__atomic_signal_fence(__ATOMIC_SEQ_CST);
	v = __atomic_load_n(&r->ctr, __ATOMIC_RELAXED);
	if (GR_LIKELY(v == GR_RCU_HOT + 1)) {
		/* R1: the section's reads, before "outside". Pairs with the driver's acquires. */
		__atomic_store_n(&r->ctr, GR_RCU_HOT, __ATOMIC_RELEASE);
		gr_rcu_look_for_request(r);
	} else if ((v & ~(GR_RCU_COLD | GR_RCU_WARM)) == 1) {
		__atomic_store_n(&r->ctr, v - 1, __ATOMIC_RELEASE); /* R1 */
		gr_rcu_look_for_request(r);
	} else if ((v & GR_RCU_DEPTH) > 1) {
		__atomic_store_n(&r->ctr, v - 1, __ATOMIC_RELAXED);
	} else {
		gr_rcu_read_unlock_slow(r);
	}
}

/**
 * Is this reader inside a section?
 * @param r As in gr_rcu_read_lock_on().
 * @return true between a lock and its unlock.
 * @context The thread that uses the reader.
 */
static inline bool gr_rcu_read_ongoing_on(const struct gr_rcu_reader *r)
{
	return (__atomic_load_n(&r->ctr, __ATOMIC_RELAXED) & GR_RCU_DEPTH) != 0;
}

/**
 * Enter a read-side section. What gr_rcu_dereference() finds inside stays valid until the
 * matching gr_rcu_read_unlock(). Nests.
 * @context Any thread, any time, also in signal handlers and thread-exit destructors. Never
 *          fails or sleeps (a thread's first call takes a mutex for a moment). Dies at
 *          65536 nested sections.
 * @source  Desnoyers et al., TPDS 2012; the constant that is stored instead of a counter is ours.
 */
static inline void gr_rcu_read_lock(void) GR_ACQUIRE_SHARED(gr_rcu_section) GR_NO_TSA;
static inline void gr_rcu_read_lock(void)
{
	gr_rcu_read_lock_on(&gr_rcu_self);
}

/**
 * Leave a read-side section.
 * @context The thread that entered it. Never sleeps; wakes a waiting writer if this
 *          section was the last one it waited for. Dies if no section is open.
 */
static inline void gr_rcu_read_unlock(void) GR_RELEASE_SHARED(gr_rcu_section) GR_NO_TSA;
static inline void gr_rcu_read_unlock(void)
{
	gr_rcu_read_unlock_on(&gr_rcu_self);
}

/**
 * Is the calling thread inside a section?
 * @return true between a lock and its unlock, and on a quiescent-state thread that is online.
 * @context Any.
 */
static inline bool gr_rcu_read_ongoing(void)
{
	return gr_rcu_read_ongoing_on(&gr_rcu_self);
}

/* Private: the guard's two ends. */
static inline int gr_rcu_guard_enter(void) GR_ASSERT_SHARED(gr_rcu_section) GR_NO_TSA;
static inline int gr_rcu_guard_enter(void)
{
	gr_rcu_read_lock();
	return 0;
}

static inline void gr_rcu_guard_exit(int *guard) GR_NO_TSA;
static inline void gr_rcu_guard_exit(int *guard)
{
	(void)guard;
	gr_rcu_read_unlock();
}

#define GR_RCU_READ_GUARD_NAMED_(n)                                                                \
	int gr_rcu_guard_##n __attribute__((cleanup(gr_rcu_guard_exit), unused)) =                 \
		gr_rcu_guard_enter()
#define GR_RCU_READ_GUARD_(n) GR_RCU_READ_GUARD_NAMED_(n)

/**
 * A declaration that enters a section here and leaves it when the enclosing scope ends, by
 * whatever way. Use it at function scope: clang's analysis believes it until the function
 * ends.
 */
#define GR_RCU_READ_GUARD() GR_RCU_READ_GUARD_(__COUNTER__)

static inline void gr_rcu_guard_exit_on(struct gr_rcu_reader **r)
{
	gr_rcu_read_unlock_on(*r);
}

static inline struct gr_rcu_reader *gr_rcu_guard_enter_on(struct gr_rcu_reader *r)
{
	gr_rcu_read_lock_on(r);
	return r;
}

#define GR_RCU_READ_GUARD_ON_NAMED_(reader, n)                                                     \
	struct gr_rcu_reader *gr_rcu_guard_##n                                                     \
		__attribute__((cleanup(gr_rcu_guard_exit_on), unused)) =                           \
			gr_rcu_guard_enter_on(reader)
#define GR_RCU_READ_GUARD_ON_(reader, n) GR_RCU_READ_GUARD_ON_NAMED_(reader, n)

/** The same on a reader of one's own (rcu_domain.h). */
#define GR_RCU_READ_GUARD_ON(reader) GR_RCU_READ_GUARD_ON_(reader, __COUNTER__)

/**
 * Fetch a published pointer inside a section (load acquire: what its publisher wrote is
 * visible). Takes the pointer variable itself, not its address; evaluates it once.
 */
#define gr_rcu_dereference(p) gr_rcu_dereference_check(p, false)

/**
 * The same where the caller is inside a section or cond holds, which says why no writer can
 * run: "the writers' lock is mine". The checking build looks.
 */
#define gr_rcu_dereference_check(p, cond)                                                          \
	(GR_RCU_CHECK_SECTION_(#p, cond),                                                          \
	 __atomic_load_n((__typeof__(*(p)) **)(uintptr_t)&(p), __ATOMIC_ACQUIRE))

/** Fetch a published pointer where no writer can run: the caller holds the writers' lock. */
#define gr_rcu_dereference_protected(p)                                                            \
	(__atomic_load_n((__typeof__(*(p)) **)(uintptr_t)&(p), __ATOMIC_RELAXED))

/** Publish a pointer: what was written to the object before is visible to its readers. */
#define gr_rcu_assign_pointer(p, v)                                                                \
	(__atomic_store_n((__typeof__(*(p)) **)(uintptr_t)&(p), (v), __ATOMIC_RELEASE))

/**
 * Wait until every read-side section that is open now has ended. What the caller did
 * before is seen by every section that begins later; what the earlier sections did is
 * visible afterwards. Concurrent callers share grace periods.
 * @context Any thread, registered or not, outside a section (dies inside one), holding no
 *          lock that a reader takes inside a section. Sleeps.
 * @source  Desnoyers et al., TPDS 2012.
 */
GR_EXPORT void gr_rcu_synchronize(void) GR_EXCLUDES(gr_rcu_section);

/**
 * Take a cookie for "a grace period from now on".
 * @return The cookie: pass it to gr_rcu_poll_state() or gr_rcu_cond_synchronize(). It never
 *         wraps and needs no freeing.
 * @context Any. Full fence. Starts nothing: somebody's grace period must come.
 */
GR_EXPORT GR_MUST_CHECK uint64_t gr_rcu_get_state(void);

/**
 * Take a cookie and have the grace period run by a thread of the library's.
 * @return As gr_rcu_get_state().
 * @context Any thread, also inside a section, not in a signal handler. The first call starts that
 *          thread; where none can be made, gr_rcu_cond_synchronize() still completes the
 *          cookie. In a fork child call it again: the thread is the parent's.
 */
GR_EXPORT GR_MUST_CHECK uint64_t gr_rcu_start_poll(void);

/**
 * Has the cookie's grace period ended?
 * @param cookie From gr_rcu_get_state() or gr_rcu_start_poll().
 * @return true if so: everything gr_rcu_synchronize() promises, counted from the cookie.
 * @context Any. Never sleeps.
 */
GR_EXPORT GR_MUST_CHECK bool gr_rcu_poll_state(uint64_t cookie);

/**
 * Wait for what is left of a cookie's grace period; returns at once if it has ended.
 * @param cookie From gr_rcu_get_state() or gr_rcu_start_poll().
 * @context As gr_rcu_synchronize().
 */
GR_EXPORT void gr_rcu_cond_synchronize(uint64_t cookie) GR_EXCLUDES(gr_rcu_section);

/**
 * Say that this thread will not enter a section for a while: before it blocks in KVM_RUN,
 * poll() or the like. Until it runs sections often again, no grace period interrupts it.
 * Only a hint: sections stay legal. Does nothing inside a section.
 * @context The thread itself; not in a signal handler. Never sleeps. Cheap enough for a loop.
 */
GR_EXPORT void gr_rcu_park(void);

/**
 * Register the calling thread now instead of at its first section.
 * @context Not needed. Idempotent. Takes a mutex for a moment.
 */
GR_EXPORT void gr_rcu_register_thread(void);

/**
 * Leave now instead of at the thread's end. A later section registers again.
 * @context Outside a section (dies inside one); not in a signal handler. Takes a mutex.
 */
GR_EXPORT void gr_rcu_unregister_thread(void) GR_EXCLUDES(gr_rcu_section);

GR_END_DECLS

/* Callbacks: a part of this interface, in a file of its own. */
#include <guestram/rcu_queue.h>
#endif
