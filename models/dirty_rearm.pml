/* SPDX-License-Identifier: MIT */
/*
 * O4: re-arm after the clear and before the read, for trackers that write-protect, with two consumers.
 *
 * Mirrors src/track (debt.c and the trackers) as docs/dirty-memory.md describes the order: sync, begin,
 * re-arm, read. One page, one vCPU that stores to it STORES times, consumers 0 and 1 with an
 * epoch each at any moment and a last one after the guest has stopped. Every crossing is a system
 * call, a fault, or a flush with its interrupt, so memory is sequentially consistent here. A
 * store through a writable TLB entry leaves no trace; else a protected page faults, the tracker
 * learns of it, the page becomes writable, and the store happens. Protecting changes the page
 * table, then flushes the TLB.
 *
 *   -DKLOG  KVM's log with manual protect: sync gets the bits, re-arm clears those in debt
 *   -DSCAN  reported and protected in one call (KVM without manual protect, PAGEMAP_SCAN)
 *   -DRING  KVM's dirty ring: sync collects, re-arm resets what is in debt
 *   -DUFFD  userfaultfd: the handler marks and un-protects, re-arm protects
 *
 * Claim: both copies hold the last store.
 *
 * Mutants: READ_FIRST OWN_SET_MASK NO_DEBT DEBT_LATE DEBT_FIRST_UNLOCKED NO_FLUSH NO_REARM
 * HANDLER_UNLOCKED (UFFD).
 */
#ifndef STORES
#define STORES 3
#endif
#if !defined(KLOG) && !defined(SCAN) && !defined(RING) && !defined(UFFD)
#define KLOG
#endif
#if defined(KLOG) || defined(RING)
#define HAS_DEBT
#endif

byte version;	       /* of the page's bytes: how many stores */
bool protected = true; /* in the page table */
bool tlb;	       /* a writable entry is cached */
bool log;	       /* the kernel's bit, or the ring's entry */
bool live;	       /* in our live bitmap */
bool debt;	       /* reported to us and not re-armed yet */
bool tracker_lock;
bool stopped;
bool pend[2];
byte copy[2];

#define LOCK atomic { !tracker_lock -> tracker_lock = true }
#define UNLOCK tracker_lock = false
#ifdef MUTANT_HANDLER_UNLOCKED
#define HANDLER_LOCK skip
#define HANDLER_UNLOCK skip
#else
#define HANDLER_LOCK LOCK
#define HANDLER_UNLOCK UNLOCK
#endif

proctype guest()
{
	do
	:: atomic { version < STORES && (tlb || !protected) -> version++; tlb = true }
	:: version < STORES && !tlb && protected ->
#ifdef UFFD
		HANDLER_LOCK;
		live = true;
		protected = false;
		HANDLER_UNLOCK
#else
		d_step { log = true; protected = false }
#endif
	:: true -> break /* at any moment */
	od;
	stopped = true
}

inline flush()
{
#ifdef MUTANT_NO_FLUSH
	skip
#else
	tlb = false
#endif
}

inline sync()
{
#ifndef UFFD
	LOCK;
#ifdef KLOG
	got = log;
#endif
#ifdef RING
	atomic { got = log; log = false };
#endif
#ifdef SCAN
	if
	:: atomic { log -> got = true; log = false; protected = true }; flush()
	:: atomic { !log -> got = false }
	fi;
#endif
#ifdef MUTANT_DEBT_LATE
	live = live || got;
	UNLOCK;
	LOCK;
	debt = debt || got;
	UNLOCK;
#else
#if defined(HAS_DEBT) && !defined(MUTANT_NO_DEBT)
	debt = debt || got;
#endif
	live = live || got;
	UNLOCK;
#endif
	got = false
#else
	skip
#endif
}

inline rearm()
{
#if !defined(SCAN) && !defined(MUTANT_NO_REARM)
	LOCK;
	if
#if defined(HAS_DEBT) && !defined(MUTANT_OWN_SET_MASK) && !defined(MUTANT_NO_DEBT)
	:: debt ->
#else
	:: true ->
#endif
#ifdef MUTANT_DEBT_FIRST_UNLOCKED
		debt = false;
		UNLOCK;
#endif
		atomic { log = false; protected = true };
		flush();
		debt = false
#if defined(HAS_DEBT) && !defined(MUTANT_OWN_SET_MASK) && !defined(MUTANT_NO_DEBT)
	:: !debt
#endif
	fi;
	UNLOCK
#else
	skip
#endif
}

/* begin is one step: dirty_epoch.pml shows why that is enough. */
inline epoch()
{
	sync();
	atomic { dirty = live || pend[me]; pend[1 - me] = pend[1 - me] || live; live = false; pend[me] = false };
	if
	:: dirty ->
#ifdef MUTANT_READ_FIRST
		copy[me] = version;
		rearm();
#else
		rearm();
		copy[me] = version;
#endif
	:: !dirty
	fi;
	dirty = false
}

proctype consumer(byte me)
{
	bool got = false, dirty = false;

	epoch();
	stopped;
	epoch();
	assert(copy[me] == version)
}

init {
	atomic {
		pend[0] = true; /* the first copy is a full one */
		pend[1] = true;
		run guest();
		run consumer(0);
		run consumer(1)
	}
}
