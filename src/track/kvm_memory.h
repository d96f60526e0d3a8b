/* SPDX-License-Identifier: MIT */
/*
 * KVM's memory slots and their dirty logs or rings, as the trackers of KVM see them.
 *
 * Lock: gr_kvm_memory.lock covers the slots, their debts and every ioctl on them, so a
 * report is fetched and marked before the next caller fetches one (O4). The vCPUs never
 * take it. Callers' kick() and resume() run without it.
 */
#ifndef GR_TRACK_KVM_MEMORY_H
#define GR_TRACK_KVM_MEMORY_H

#include "base/compiler.h"
#include "base/mutex.h"
#include "track/debt.h"
#include <guestram/ram.h>
#include <guestram/track.h>

enum {
	/* Bits of one KVM slot number; the upper ones name an address space (SMM). */
	GR_KVM_SLOTS_MAX = 32768,
	/*
	 * A re-arm protects the debt of whole windows of so many pages around the run that is
	 * about to be read: each CLEAR costs a system call and a TLB flush on every vCPU, and
	 * dirty pages come in clusters. A page that is protected early and written again
	 * before it is read goes twice; none is lost. A multiple of 64, as CLEAR wants.
	 */
	GR_KVM_CLEAR_PAGES = 1024,
};

/* One region of the guest, as KVM knows it. */
struct gr_kvm_slot {
	uint32_t id;		     /* (c) KVM's number */
	bool has_debt;		     /* (l) debt is in use: logged, with manual protect */
	struct gr_ram_region region; /* (c) its block lives as long as the region */
	uint64_t pages;		     /* (c) KVM's pages: bits of its log */
	uint64_t start;		     /* (c) RAM address of its first byte */
	uint64_t reach;		     /* (l) RAM address where this and all slots before it end */
	struct gr_debt debt;	     /* (l) in pages from its start */
};

struct gr_kvm_memory {
	unsigned int refs;		 /* (a) the creator's, and its tracker's */
	struct gr_ram *ram;		 /* (c) */
	int vm_fd;			 /* (c) borrowed */
	unsigned int slots_max;		 /* (c) what KVM offers */
	bool can_manual;		 /* (c) KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2 */
	bool can_begin_set;		 /* (c) its KVM_DIRTY_LOG_INITIALLY_SET */
	void (*kick)(void *opaque);	 /* (c) */
	void (*resume)(void *opaque);	 /* (c) */
	void *opaque;			 /* (c) */
	struct gr_ram_listener listener; /* (c) */

	uint64_t page_bytes; /* (c) of KVM: the host's */

	struct gr_mutex lock;
	struct gr_kvm_slot **slots; /* (l) by start */
	unsigned int nslots;	    /* (l) */
	unsigned int room;	    /* (l) how many fit into slots */
	uint64_t *ids;		    /* (l) a bit for each slot number in use */
	uint64_t *words;	    /* (l) room for the log of the biggest slot */
	uint64_t words_pages;	    /* (l) how big a slot that is */
	bool tracked;		    /* (l) a tracker has it: one at a time */
	bool logging;		    /* (l) */
	bool manual;		    /* (l) a fetched page is protected by CLEAR only */

	/* Of the ring (kvm_ring.c). */
	uint32_t ring_entries;	    /* (l) 0: it is not in use */
	struct gr_kvm_ring *rings;  /* (l) one per vCPU that ever was, in their order */
	struct gr_kvm_slot **by_id; /* (l) the slot of each number, or NULL; only with rings */
	uint32_t ring_debt;	    /* (a) entries were collected and not reset */
	uint64_t ring_unreset;	    /* (l) how many */
	bool ring_lost;		    /* (l) KVM may have left some unprotected in a reset */
};

/* The tracker may outlive the slots: it then has nothing to report. */
void gr_kvm_memory_get(struct gr_kvm_memory *kvm);
void gr_kvm_memory_put(struct gr_kvm_memory *kvm);
void gr_kvm_memory_set_tracked(struct gr_kvm_memory *kvm, bool tracked);

enum gr_kvm_log_mode {
	GR_KVM_LOG_PLAIN,	  /* fetching clears and protects */
	GR_KVM_LOG_MANUAL,	  /* fetch, then clear */
	GR_KVM_LOG_INITIALLY_SET, /* the same; a log begins with all bits set and protects nothing
				   */
};
/* Before logging starts. -ENOTSUP where KVM does not have it. */
GR_MUST_CHECK int gr_kvm_log_set_mode(struct gr_kvm_memory *kvm, enum gr_kvm_log_mode mode,
				      struct gr_error *err);
/* Log every slot, present and future. On failure none is logged. */
GR_MUST_CHECK int gr_kvm_log_start(struct gr_kvm_memory *kvm, struct gr_error *err);
void gr_kvm_log_stop(struct gr_kvm_memory *kvm);
/* Fetch every log and mark what it says. */
GR_MUST_CHECK int gr_kvm_log_sync(struct gr_kvm_memory *kvm, struct gr_error *err);
/* Protect again what was fetched and not protected since, in this part of the RAM space. */
GR_MUST_CHECK int gr_kvm_log_rearm(struct gr_kvm_memory *kvm, gr_ram_addr_t start, uint64_t bytes,
				   struct gr_error *err);

/* kvm_ring.c: mark what the rings have. What is collected is protected again by a re-arm. */
void gr_kvm_ring_reap_locked(struct gr_kvm_memory *kvm) GR_REQUIRES(kvm->lock);
/* 0, or why the ring cannot start. */
GR_MUST_CHECK int gr_kvm_ring_start_locked(struct gr_kvm_memory *kvm, struct gr_error *err)
	GR_REQUIRES(kvm->lock);
/*
 * How many pages were taken from each vCPU's ring so far, in the order in which the vCPUs were
 * first added, for *ret_count vCPUs, at most max. Returns the pages of all of them. A vCPU that was
 * taken away keeps its place, so neither an element nor the sum ever shrinks.
 */
uint64_t gr_kvm_ring_counts(struct gr_kvm_memory *kvm, uint64_t *ret_pages, unsigned int max,
			    unsigned int *ret_count);
/* Whether any vCPU has a ring. */
bool gr_kvm_ring_any(struct gr_kvm_memory *kvm);
/* When the slots are freed. */
void gr_kvm_ring_destroy(struct gr_kvm_memory *kvm);

/* For kvm_memory.c, under kvm->lock. */
/* Make the slot, or change whether it is logged. */
GR_MUST_CHECK int gr_kvm_slot_set(struct gr_kvm_memory *kvm, const struct gr_kvm_slot *slot,
				  bool log, struct gr_error *err) GR_REQUIRES(kvm->lock);
/* Have room for its debt, if there will be any, before it is logged. */
GR_MUST_CHECK int gr_kvm_slot_debt_locked(struct gr_kvm_memory *kvm, struct gr_kvm_slot *slot,
					  struct gr_error *err) GR_REQUIRES(kvm->lock);
/* Fetch its log and mark what it says. */
GR_MUST_CHECK int gr_kvm_slot_sync_locked(struct gr_kvm_memory *kvm, struct gr_kvm_slot *slot,
					  struct gr_error *err) GR_REQUIRES(kvm->lock);

#endif
