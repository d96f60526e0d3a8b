/* SPDX-License-Identifier: MIT */
/*
 * KVM's dirty rings: each vCPU has one, in which KVM notes the pages that it wrote, in the
 * order in which they were first written. Nothing has to be searched, so a report costs what was
 * written and goes straight into the dirty memory.
 *
 * An entry goes round in three steps: KVM fills it in and says DIRTY; we take it and say
 * RESET; KVM_RESET_DIRTY_RINGS gives it back and protects its page again, TLB flush included.
 * Between the second step and the third the page is in debt: reported, but not watched. The
 * ioctl does this for all entries of all rings, so the debt is one flag for the whole machine
 * (O4; the row "ring" of the model):
 *
 *   sync    lock; debt; take entries; mark; unlock. The debt comes before the marks: who
 *           harvests one must find it, or would read a page that nobody watches.
 *   rearm   lock; if there is debt: KVM_RESET_DIRTY_RINGS; no debt; unlock. Pages that nobody has
 *           read yet are protected with the others: if they are written again first, they go
 *           twice.
 *
 * KVM stops a reset in the middle for a pending signal and then forgets to protect some of the
 * pages whose entries it gave back. reset_locked() sees that by the count; as nobody can tell which
 * pages those are, the logs of all slots begin anew and all their pages count as written.
 *
 * A ring that is full makes its vCPU leave the guest: gr_kvm_ring_full() does both at once, as
 * else the vCPU could not enter again.
 *
 * What a running vCPU wrote last may still be in a buffer of the processor (Intel's PML) and come
 * with a later report: its page is not reported yet, and nobody reads it on the strength of that.
 * A vCPU that left the guest has handed in everything, so the last sync misses nothing (O6).
 */
#include "base/atomic.h"
#include "base/log.h"
#include "base/signals.h"
#include "track/kvm_memory.h"
#include "track/report.h"
#include "track/tracker.h"
#include <errno.h>
#include <inttypes.h>
#include <linux/kvm.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>

enum {
	ENTRIES_DEFAULT = 4096,
	RESETS_IDLE_MAX = 1000, /* so many resets one after the other may give nothing back */
};

#ifndef KVM_DIRTY_LOG_PAGE_OFFSET
#define KVM_DIRTY_LOG_PAGE_OFFSET 64
#endif
#ifndef KVM_CAP_DIRTY_LOG_RING_ACQ_REL
#define KVM_CAP_DIRTY_LOG_RING_ACQ_REL 223
#endif
#ifndef KVM_CAP_DIRTY_LOG_RING_WITH_BITMAP
#define KVM_CAP_DIRTY_LOG_RING_WITH_BITMAP 225
#endif

struct gr_kvm_ring {
	struct gr_kvm_ring *next;      /* (l) */
	int vcpu_fd;		       /* (l) borrowed; -1: its vCPU was taken away */
	struct kvm_dirty_gfn *entries; /* shared with KVM; flags say whose an entry is */
	uint32_t at;		       /* (l) the next one to take */
	uint64_t taken;		       /* (l) how many were, in all */
};

/* Pages that were written one after the other, as vCPUs do, are marked together. */
struct run {
	const struct gr_kvm_slot *slot;
	uint64_t first, pages;
};

static void run_mark(const struct gr_kvm_memory *kvm, struct run *run)
{
	if (run->pages > 0) {
		gr_report_range(run->slot->region.block,
				run->slot->region.block_offset + run->first * kvm->page_bytes,
				run->pages * kvm->page_bytes);
	}
	run->pages = 0;
}

static void run_add(struct gr_kvm_memory *kvm, struct run *run, uint32_t slot_id, uint64_t page)
	GR_REQUIRES(kvm->lock)
{
	/* The upper half names an address space; ours is number 0. */
	const struct gr_kvm_slot *slot = slot_id < kvm->slots_max ? kvm->by_id[slot_id] : NULL;

	if (!slot || page >= slot->pages) {
		return; /* of a slot that is gone: it was reported before it went */
	}
	if (slot != run->slot || page != run->first + run->pages) {
		run_mark(kvm, run);
		run->slot = slot;
		run->first = page;
	}
	run->pages++;
}

static void ring_reap(struct gr_kvm_memory *kvm, struct gr_kvm_ring *ring, struct run *run)
	GR_REQUIRES(kvm->lock)
{
	/* Once round at most: what was taken comes back only by a reset. */
	for (uint32_t i = 0; i < kvm->ring_entries; i++) {
		struct kvm_dirty_gfn *e = &ring->entries[ring->at & (kvm->ring_entries - 1)];

		/* Pairs with KVM's release: the entry is complete. */
		if (gr_load_acquire(&e->flags) != KVM_DIRTY_GFN_F_DIRTY) {
			return;
		}
		run_add(kvm, run, e->slot, e->offset);
		/* Pairs with KVM's acquire in the reset: we have read it. */
		gr_store_release(&e->flags, (uint32_t)KVM_DIRTY_GFN_F_RESET);
		ring->at++;
		ring->taken++;
		kvm->ring_unreset++;
	}
}

void gr_kvm_ring_reap_locked(struct gr_kvm_memory *kvm)
{
	struct run run = { .slot = NULL };

	/* O4: before the first mark. Pairs with the acquire in rearm_due(), by way of the marks. */
	gr_store_release(&kvm->ring_debt, 1u);
	for (struct gr_kvm_ring *ring = kvm->rings; ring; ring = ring->next) {
		ring_reap(kvm, ring, &run);
	}
	run_mark(kvm, &run);
}

/* Have KVM give back all that was taken. */
static int give_back(struct gr_kvm_memory *kvm, struct gr_error *err) GR_REQUIRES(kvm->lock)
{
	unsigned int idle = 0;

	for (;;) {
		int n = ioctl(kvm->vm_fd, KVM_RESET_DIRTY_RINGS, 0);

		if (n < 0 && (errno == EINTR || errno == EAGAIN)) {
			continue;
		}
		if (n < 0) {
			return gr_error_set(err, -errno, "cannot re-arm KVM's dirty rings: %s",
					    strerror(errno));
		}
#ifdef GR_MUTANT_KVM_RING_PARTIAL_RESET
		kvm->ring_unreset = 0;
#endif
		kvm->ring_unreset -= GR_MIN((uint64_t)n, kvm->ring_unreset);
		if (kvm->ring_unreset == 0) {
			return 0;
		}
		kvm->ring_lost = true;
		idle = n > 0 ? 0 : idle + 1;
		if (idle == RESETS_IDLE_MAX) {
			return gr_error_set(err, -EIO,
					    "cannot re-arm KVM's dirty rings: %" PRIu64
					    " entries are not given back",
					    kvm->ring_unreset);
		}
	}
}

/* Switching a log on protects all its pages. What was written while it was off, nobody saw. */
static int relog(struct gr_kvm_memory *kvm, struct gr_error *err) GR_REQUIRES(kvm->lock)
{
	for (unsigned int i = 0; i < kvm->nslots; i++) {
		const struct gr_kvm_slot *slot = kvm->slots[i];
		int rc = gr_kvm_slot_set(kvm, slot, false, err);

		if (rc == 0 && kvm->logging) {
			rc = gr_kvm_slot_set(kvm, slot, true, err);
		}
		if (rc < 0) {
			return rc;
		}
		if (kvm->logging && !slot->region.readonly) {
			gr_report_range(slot->region.block, slot->region.block_offset,
					slot->region.bytes);
		}
	}
	kvm->ring_lost = false;
	return 0;
}

static int reset_locked(struct gr_kvm_memory *kvm, struct gr_error *err) GR_REQUIRES(kvm->lock)
{
	struct gr_signals saved;
	int rc;

	/* Not all that interrupts can be blocked (SIGSTOP), but what is common can. */
	gr_signals_block(&saved);
	rc = give_back(kvm, err);
	gr_signals_restore(&saved);
	if (rc == 0 && kvm->ring_lost) {
		rc = relog(kvm, err);
	}
	if (rc < 0) {
		return rc;
	}
	gr_store_release(&kvm->ring_debt, 0u); /* O4: after KVM; pairs with rearm_due() */
	return 0;
}

int gr_kvm_ring_full(struct gr_kvm_memory *kvm, struct gr_error *err)
{
	GR_MUTEX_GUARD(&kvm->lock);
	gr_kvm_ring_reap_locked(kvm);
	return reset_locked(kvm, err);
}

int gr_kvm_ring_start_locked(struct gr_kvm_memory *kvm, struct gr_error *err)
{
	if (!kvm->rings) {
		return gr_error_set(err, -EINVAL,
				    "kvm-ring: no vCPU has a ring; give each to gr_kvm_vcpu_add()");
	}
	/* What an earlier tracking left behind: marked, which harms nobody. */
	gr_kvm_ring_reap_locked(kvm);
	return reset_locked(kvm, err);
}

static size_t ring_bytes(const struct gr_kvm_memory *kvm)
{
	return kvm->ring_entries * sizeof(struct kvm_dirty_gfn);
}

/*
 * Whether both are mappings of one ring. A file descriptor's number does not tell: it may be used
 * again for another vCPU. The vCPU of `fresh` does not run, so nobody else looks at its entries.
 */
static bool same_ring(const struct gr_kvm_ring *ring, struct kvm_dirty_gfn *fresh)
{
	const struct kvm_dirty_gfn *known = ring->entries;
	uint64_t was = gr_load_relaxed(&fresh->offset);
	bool same = gr_load_relaxed(&known->offset) == was;

	gr_store_relaxed(&fresh->offset, ~was);
	same = same && gr_load_relaxed(&known->offset) == ~was;
	gr_store_relaxed(&fresh->offset, was);
	return same;
}

int gr_kvm_vcpu_add(struct gr_kvm_memory *kvm, int vcpu_fd, struct gr_error *err)
{
	struct gr_kvm_ring **where = &kvm->rings, *ring;
	void *p;

	GR_MUTEX_GUARD(&kvm->lock);
	if (kvm->ring_entries == 0) {
		return 0;
	}
	ring = calloc(1, sizeof(*ring));
	if (!ring) {
		return gr_error_set(err, -ENOMEM, "no memory for a vCPU's dirty ring");
	}
	p = mmap(NULL, ring_bytes(kvm), PROT_READ | PROT_WRITE, MAP_SHARED, vcpu_fd,
		 (off_t)(KVM_DIRTY_LOG_PAGE_OFFSET * kvm->page_bytes));
	if (p == MAP_FAILED) {
		int rc = gr_error_set(err, -errno, "cannot map a vCPU's dirty ring: %s",
				      strerror(errno));

		free(ring);
		return rc;
	}
	while (*where && !same_ring(*where, p)) {
		where = &(*where)->next;
	}
	if (*where) {
		/* It comes back: KVM goes on in its ring where it was, and so do we. */
		(*where)->vcpu_fd = vcpu_fd;
		(void)munmap(p, ring_bytes(kvm));
		free(ring);
		return 0;
	}
	ring->vcpu_fd = vcpu_fd;
	ring->entries = p;
	*where = ring;
	return 0;
}

void gr_kvm_vcpu_del(struct gr_kvm_memory *kvm, int vcpu_fd)
{
	GR_MUTEX_GUARD(&kvm->lock);
	for (struct gr_kvm_ring *ring = kvm->rings; ring; ring = ring->next) {
		if (ring->vcpu_fd == vcpu_fd) {
			gr_kvm_ring_reap_locked(kvm);
			/* The ring stays: it holds its place in KVM, which has no end of a vCPU. */
			ring->vcpu_fd = -1;
		}
	}
}

uint64_t gr_kvm_ring_counts(struct gr_kvm_memory *kvm, uint64_t *ret_pages, unsigned int max,
			    unsigned int *ret_count)
{
	unsigned int n = 0;
	uint64_t all = 0;

	GR_MUTEX_GUARD(&kvm->lock);
	for (struct gr_kvm_ring *ring = kvm->rings; ring; ring = ring->next) {
		all += ring->taken;
		if (n < max) {
			ret_pages[n++] = ring->taken;
		}
	}
	*ret_count = n;
	return all;
}

bool gr_kvm_ring_any(struct gr_kvm_memory *kvm)
{
	GR_MUTEX_GUARD(&kvm->lock);
	return kvm->rings != NULL;
}

void gr_kvm_ring_destroy(struct gr_kvm_memory *kvm)
{
	while (kvm->rings) {
		struct gr_kvm_ring *ring = kvm->rings;

		kvm->rings = ring->next;
		(void)munmap(ring->entries, ring_bytes(kvm));
		free(ring);
	}
	free(kvm->by_id);
}

/* ---- as a tracker of the driver (tracker.h); slots come and go through kvm_memory.c ------- */

struct kvm_ring {
	struct gr_tracker tracker;
	struct gr_kvm_memory *kvm; /* (c) a reference */
};

static struct gr_kvm_memory *kvm_of(struct gr_tracker *t)
{
	return gr_container_of(t, struct kvm_ring, tracker)->kvm;
}

static void destroy(struct gr_tracker *t)
{
	struct kvm_ring *r = gr_container_of(t, struct kvm_ring, tracker);

	gr_kvm_memory_set_tracked(r->kvm, false);
	gr_kvm_memory_put(r->kvm);
	free(r);
}

static int start(struct gr_tracker *t, struct gr_error *err)
{
	return gr_kvm_log_start(kvm_of(t), err);
}

static void stop(struct gr_tracker *t)
{
	gr_kvm_log_stop(kvm_of(t));
}

static int sync_all(struct gr_tracker *t, struct gr_error *err)
{
	struct gr_kvm_memory *kvm = kvm_of(t);

	(void)err;
	GR_MUTEX_GUARD(&kvm->lock);
	if (kvm->logging) {
		gr_kvm_ring_reap_locked(kvm);
	}
	return 0;
}

static bool rearm_due(struct gr_tracker *t, struct gr_ram_block *block, uint64_t offset,
		      uint64_t bytes)
{
	(void)block;
	(void)offset;
	(void)bytes;
	/* Pairs with the release in reset_locked(): no debt means that KVM has protected. */
	return gr_load_acquire(&kvm_of(t)->ring_debt) != 0;
}

static int rearm(struct gr_tracker *t, struct gr_ram_block *block, uint64_t offset, uint64_t bytes,
		 struct gr_error *err)
{
	struct gr_kvm_memory *kvm = kvm_of(t);

	(void)block;
	(void)offset;
	(void)bytes;
	GR_MUTEX_GUARD(&kvm->lock);
#ifdef GR_MUTANT_KVM_RING_REARM_FORGETS
	gr_store_release(&kvm->ring_debt, 0u);
#endif
	/* Another consumer may have done it meanwhile. */
	return gr_load_relaxed(&kvm->ring_debt) ? reset_locked(kvm, err) : 0;
}

static const struct gr_tracker_ops kvm_ring_ops = {
	.name = "kvm-ring",
	.covers = GR_WRITERS_KVM_VCPUS,
	.destroy = destroy,
	.start = start,
	.stop = stop,
	.sync = sync_all,
	.rearm_due = rearm_due,
	.rearm = rearm,
};

/* The capability that this KVM has, or 0; the second one promises its orders on x86 alone. */
static unsigned int capability(int vm_fd, int *ret_bytes_max)
{
	static const unsigned int caps[] = {
		KVM_CAP_DIRTY_LOG_RING_ACQ_REL,
#ifdef __x86_64__
		KVM_CAP_DIRTY_LOG_RING,
#endif
	};

	for (size_t i = 0; i < GR_ARRAY_SIZE(caps); i++) {
		*ret_bytes_max = ioctl(vm_fd, KVM_CHECK_EXTENSION, caps[i]);
		if (*ret_bytes_max > 0) {
			return caps[i];
		}
	}
	return 0;
}

static int enable(struct gr_kvm_memory *kvm, uint32_t entries, struct gr_error *err)
{
	struct kvm_enable_cap cap = {
		.args = { entries * sizeof(struct kvm_dirty_gfn) },
	};
	int bytes_max;

	if (kvm->ring_entries == entries) {
		return 0; /* by a tracker before us: it lasts as long as the VM */
	}
	if (kvm->ring_entries > 0) {
		return gr_error_set(err, -EBUSY,
				    "this VM has dirty rings of %u entries, which cannot become %u",
				    kvm->ring_entries, entries);
	}
	if (ioctl(kvm->vm_fd, KVM_CHECK_EXTENSION, KVM_CAP_DIRTY_LOG_RING_WITH_BITMAP) > 0) {
		return gr_error_set(err, -ENOTSUP,
				    "this KVM writes guest memory outside of any vCPU (interrupt "
				    "controller tables), which the dirty rings miss: use kvm-log");
	}
	cap.cap = capability(kvm->vm_fd, &bytes_max);
	if (cap.cap == 0) {
		return gr_error_set(err, -ENOTSUP, "this KVM has no dirty rings");
	}
	if (cap.args[0] > (uint64_t)bytes_max) {
		return gr_error_set(err, -EINVAL, "a dirty ring of %u entries is too big: at most %zu",
				    entries, (size_t)bytes_max / sizeof(struct kvm_dirty_gfn));
	}
	if (ioctl(kvm->vm_fd, KVM_ENABLE_CAP, &cap) < 0) {
		return gr_error_set(err, -errno,
				    "KVM refuses dirty rings of %u entries: %s (they come before the "
				    "first vCPU, a power of two, and at least a page)",
				    entries, strerror(errno));
	}
	return 0;
}

int gr_tracker_kvm_ring_create(struct gr_ram *ram, const struct gr_tracker_params *params,
			       struct gr_tracker **ret_tracker, struct gr_error *err)
{
	struct gr_kvm_memory *kvm = params ? params->kvm : NULL;
	uint32_t entries = params && params->ring_entries ? params->ring_entries : ENTRIES_DEFAULT;
	struct kvm_ring *r;
	int rc;

	if (!kvm || kvm->ram != ram) {
		return gr_error_set(err, -EINVAL,
				    "the KVM ring needs this machine's KVM memory slots");
	}
	if (!GR_IS_POWER_OF_TWO(entries) || entries > 1u << 24) {
		return gr_error_set(err, -EINVAL, "a dirty ring of %u entries: not a power of two",
				    entries);
	}
	r = calloc(1, sizeof(*r));
	GR_MUTEX_GUARD(&kvm->lock);
	if (kvm->tracked) {
		free(r);
		return gr_error_set(err, -EBUSY, "another tracker of KVM is in use for this VM");
	}
	if (!kvm->by_id) {
		kvm->by_id = calloc(kvm->slots_max, sizeof(struct gr_kvm_slot *));
	}
	rc = r && kvm->by_id ? enable(kvm, entries, err)
			     : gr_error_set(err, -ENOMEM, "no memory for the KVM ring");
	if (rc < 0) {
		free(r);
		return rc;
	}
	for (unsigned int i = 0; i < kvm->nslots; i++) {
		kvm->by_id[kvm->slots[i]->id] = kvm->slots[i];
	}
	kvm->ring_entries = entries;
	kvm->tracked = true;
	r->tracker.ops = &kvm_ring_ops;
	r->tracker.ram = ram;
	r->kvm = kvm;
	gr_kvm_memory_get(kvm);
	*ret_tracker = &r->tracker;
	return 0;
}
