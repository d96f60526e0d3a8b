/* SPDX-License-Identifier: MIT */
/*
 * KVM's dirty log: a bit per page that a vCPU wrote, fetched slot by slot.
 *
 * With manual protect, GET copies the bits and leaves them and the pages as they are; CLEAR
 * drops chosen bits and write-protects those pages again, its TLB flush included. Between the
 * two a page is in debt: reported, but not watched. The rules (O4):
 *
 *   sync    lock; GET; debt |= bits; mark; unlock. The debt comes before the mark: who harvests
 *           the mark must find the debt, or would read a page that nobody watches.
 *   rearm   lock; CLEAR with debt bits only; debt &= ~those; unlock. Never CLEAR a page that is not
 *           in debt: its kernel bit may be a store made since somebody else re-armed it, which
 *           no GET has reported, and CLEAR would drop it.
 *
 * A log that begins with all bits set protects no page when it starts: the first GET reports all,
 * which puts all of them into debt, and each is protected when its first reader re-arms it.
 *
 * Without manual protect GET itself drops the bits and protects: there is no debt, and
 * re-arming is nothing.
 */
#include "track/kvm_memory.h"
#include "track/report.h"
#include "track/tracker.h"
#include <errno.h>
#include <inttypes.h>
#include <linux/kvm.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>

int gr_kvm_log_set_mode(struct gr_kvm_memory *kvm, enum gr_kvm_log_mode mode, struct gr_error *err)
{
	static const uint64_t flags[] = {
		[GR_KVM_LOG_PLAIN] = 0,
		[GR_KVM_LOG_MANUAL] = KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE,
		[GR_KVM_LOG_INITIALLY_SET] =
			KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE | KVM_DIRTY_LOG_INITIALLY_SET,
	};
	struct kvm_enable_cap cap = { .cap = KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2,
				      .args = { flags[mode] } };
	bool can = mode == GR_KVM_LOG_INITIALLY_SET ? kvm->can_begin_set : kvm->can_manual;

	GR_MUTEX_GUARD(&kvm->lock);
	if (kvm->logging) {
		return gr_error_set(err, -EBUSY, "the KVM log is running");
	}
	if (!can && mode != GR_KVM_LOG_PLAIN) {
		return gr_error_set(
			err, -ENOTSUP, "this KVM has no manual protect of its log%s",
			mode == GR_KVM_LOG_INITIALLY_SET ? " that begins with all pages set" : "");
	}
	if (kvm->can_manual && ioctl(kvm->vm_fd, KVM_ENABLE_CAP, &cap) < 0) {
		return gr_error_set(err, -errno, "KVM refuses manual protect of its log: %s",
				    strerror(errno));
	}
	kvm->manual = mode != GR_KVM_LOG_PLAIN;
	return 0;
}

int gr_kvm_slot_debt_locked(struct gr_kvm_memory *kvm, struct gr_kvm_slot *slot,
			    struct gr_error *err)
{
	int rc = 0;

	if (kvm->manual && !slot->region.readonly && !slot->has_debt) {
		rc = gr_debt_init(&slot->debt, slot->pages, err);
		slot->has_debt = rc == 0;
	}
	return rc;
}

static void log_end(struct gr_kvm_memory *kvm, unsigned int slots) GR_REQUIRES(kvm->lock)
{
	for (unsigned int i = 0; i < slots; i++) {
		struct gr_kvm_slot *slot = kvm->slots[i];
		struct gr_error ignored;

		/* A log that goes on in spite of us costs time, nothing else. */
		(void)!gr_kvm_slot_set(kvm, slot, false, &ignored);
		if (slot->has_debt) {
			gr_debt_destroy(&slot->debt);
			slot->has_debt = false;
		}
	}
}

int gr_kvm_log_start(struct gr_kvm_memory *kvm, struct gr_error *err)
{
	GR_MUTEX_GUARD(&kvm->lock);
	GR_ASSERT(!kvm->logging);
	if (kvm->ring_entries > 0) {
		int rc = gr_kvm_ring_start_locked(kvm, err);

		if (rc < 0) {
			return rc;
		}
	}
	for (unsigned int i = 0; i < kvm->nslots; i++) {
		int rc = gr_kvm_slot_debt_locked(kvm, kvm->slots[i], err);

		if (rc == 0) {
			rc = gr_kvm_slot_set(kvm, kvm->slots[i], true, err);
		}
		if (rc < 0) {
			log_end(kvm, i + 1);
			return rc;
		}
	}
	kvm->logging = true;
	return 0;
}

void gr_kvm_log_stop(struct gr_kvm_memory *kvm)
{
	GR_MUTEX_GUARD(&kvm->lock);
	log_end(kvm, kvm->nslots);
	kvm->logging = false;
}

int gr_kvm_slot_sync_locked(struct gr_kvm_memory *kvm, struct gr_kvm_slot *slot,
			    struct gr_error *err)
{
	struct kvm_dirty_log log = { .slot = slot->id, .dirty_bitmap = kvm->words };

	if (slot->region.readonly) {
		return 0;
	}
	if (kvm->ring_entries > 0) {
		gr_kvm_ring_reap_locked(kvm); /* the rings of the vCPUs know no slots */
		return 0;
	}
	if (ioctl(kvm->vm_fd, KVM_GET_DIRTY_LOG, &log) < 0) {
		return gr_error_set(err, -errno,
				    "cannot fetch KVM's dirty log of slot %u (at %#" PRIx64 "): %s",
				    slot->id, slot->region.gpa.v, strerror(errno));
	}
	if (slot->has_debt) {
		gr_debt_fetched(&slot->debt, 0, slot->region.block, slot->region.block_offset,
				kvm->words, slot->pages, kvm->page_bytes);
	} else {
		gr_report_le(slot->region.block, slot->region.block_offset, kvm->words, slot->pages,
			     kvm->page_bytes);
	}
	return 0;
}

int gr_kvm_log_sync(struct gr_kvm_memory *kvm, struct gr_error *err)
{
	GR_MUTEX_GUARD(&kvm->lock);
	if (!kvm->logging) {
		return 0;
	}
	for (unsigned int i = 0; i < kvm->nslots; i++) {
		int rc = gr_kvm_slot_sync_locked(kvm, kvm->slots[i], err);

		if (rc < 0) {
			return rc;
		}
	}
	return 0;
}

struct clear {
	struct gr_kvm_memory *kvm;
	const struct gr_kvm_slot *slot;
};

/* KVM counts these pages in 32 bits; its slots are smaller. */
static int clear(void *opaque, uint64_t page, uint64_t pages, const uint64_t *mask_le,
		 struct gr_error *err)
{
	const struct clear *c = opaque;
	struct kvm_clear_dirty_log log = {
		.slot = c->slot->id,
		.first_page = page,
		.num_pages = (uint32_t)pages,
		.dirty_bitmap = (void *)(uintptr_t)mask_le,
	};

	if (ioctl(c->kvm->vm_fd, KVM_CLEAR_DIRTY_LOG, &log) < 0) {
		return gr_error_set(err, -errno,
				    "cannot re-arm KVM's dirty log of slot %u (at %#" PRIx64
				    "): %s",
				    c->slot->id, c->slot->region.gpa.v, strerror(errno));
	}
	return 0;
}

/* Re-arm what has debt in and around bytes [from, to) of the slot. */
static int slot_rearm(struct gr_kvm_memory *kvm, struct gr_kvm_slot *slot, uint64_t from,
		      uint64_t to, struct gr_error *err) GR_REQUIRES(kvm->lock)
{
	struct clear c = { kvm, slot };
	uint64_t first = from / kvm->page_bytes;
	uint64_t end = GR_DIV_ROUND_UP(to, kvm->page_bytes);

	if (!gr_debt_due(&slot->debt, first, end - first)) {
		return 0;
	}
	first = first / GR_KVM_CLEAR_PAGES * GR_KVM_CLEAR_PAGES;
	end = GR_MIN(GR_ROUND_UP(end, (uint64_t)GR_KVM_CLEAR_PAGES), slot->pages);
	return gr_debt_rearm(&slot->debt, first, end - first, clear, &c, err);
}

/* How many slots begin before this RAM address. */
static unsigned int slots_before(const struct gr_kvm_memory *kvm, uint64_t addr)
	GR_REQUIRES(kvm->lock)
{
	unsigned int lo = 0, hi = kvm->nslots;

	while (lo < hi) {
		unsigned int mid = (lo + hi) / 2;

		if (kvm->slots[mid]->start < addr) {
			lo = mid + 1;
		} else {
			hi = mid;
		}
	}
	return lo;
}

int gr_kvm_log_rearm(struct gr_kvm_memory *kvm, gr_ram_addr_t start, uint64_t bytes,
		     struct gr_error *err)
{
	uint64_t end = start.v + bytes;

	GR_MUTEX_GUARD(&kvm->lock);
	/* A block may be mapped twice: every slot that shows a page has a bit of its own. */
	for (unsigned int i = slots_before(kvm, end); i > 0; i--) {
		struct gr_kvm_slot *slot = kvm->slots[i - 1];
		uint64_t from = GR_MAX(start.v, slot->start);
		uint64_t to = GR_MIN(end, slot->start + slot->region.bytes);
		int rc = 0;

		if (slot->reach <= start.v) {
			break;
		}
		if (slot->has_debt && from < to) {
			rc = slot_rearm(kvm, slot, from - slot->start, to - slot->start, err);
		}
		if (rc < 0) {
			return rc;
		}
	}
	return 0;
}

/* As a tracker of the driver (tracker.h). Slots come and go through kvm_memory.c. */
struct kvm_log {
	struct gr_tracker tracker;
	struct gr_kvm_memory *kvm; /* (c) a reference */
};

static struct gr_kvm_memory *kvm_of(struct gr_tracker *t)
{
	return gr_container_of(t, struct kvm_log, tracker)->kvm;
}

static void destroy(struct gr_tracker *t)
{
	struct kvm_log *log = gr_container_of(t, struct kvm_log, tracker);

	gr_kvm_memory_set_tracked(log->kvm, false);
	gr_kvm_memory_put(log->kvm);
	free(log);
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
	return gr_kvm_log_sync(kvm_of(t), err);
}

/* GET leaves the bits where they are, and CLEAR comes with the re-arming. */
static bool repeats(struct gr_tracker *t)
{
	struct gr_kvm_memory *kvm = kvm_of(t);

	GR_MUTEX_GUARD(&kvm->lock);
	return kvm->manual;
}

static int rearm(struct gr_tracker *t, struct gr_ram_block *block, uint64_t offset, uint64_t bytes,
		 struct gr_error *err)
{
	return gr_kvm_log_rearm(kvm_of(t), gr_ram_addr(block->offset.v + offset), bytes, err);
}

static const struct gr_tracker_ops kvm_log_ops = {
	.name = "kvm-log",
	.covers = GR_WRITERS_KVM_VCPUS,
	.destroy = destroy,
	.start = start,
	.stop = stop,
	.sync = sync_all,
	.repeats = repeats,
	.rearm = rearm,
};

/* Only one tracker at a time: each would start and stop the same logs. */
static int take(struct gr_kvm_memory *kvm, struct gr_error *err)
{
	GR_MUTEX_GUARD(&kvm->lock);
	if (kvm->ring_entries > 0) {
		return gr_error_set(err, -EBUSY,
				    "the KVM log cannot be had: this VM has dirty rings instead");
	}
	if (kvm->tracked) {
		return gr_error_set(err, -EBUSY, "another tracker of KVM is in use for this VM");
	}
	kvm->tracked = true;
	return 0;
}

int gr_tracker_kvm_log_create(struct gr_ram *ram, const struct gr_tracker_params *params,
			      struct gr_tracker **ret_tracker, struct gr_error *err)
{
	struct gr_kvm_memory *kvm = params ? params->kvm : NULL;
	struct kvm_log *log;
	int rc;

	if (!kvm || kvm->ram != ram) {
		return gr_error_set(err, -EINVAL,
				    "the KVM log needs this machine's KVM memory slots");
	}
	rc = take(kvm, err);
	if (rc < 0) {
		return rc;
	}
	rc = gr_kvm_log_set_mode(kvm,
				 params->log_initially_set ? GR_KVM_LOG_INITIALLY_SET
				 : kvm->can_manual	   ? GR_KVM_LOG_MANUAL
							   : GR_KVM_LOG_PLAIN,
				 err);
	log = rc == 0 ? calloc(1, sizeof(*log)) : NULL;
	if (rc == 0 && !log) {
		rc = gr_error_set(err, -ENOMEM, "no memory for the KVM log");
	}
	if (rc < 0) {
		gr_kvm_memory_set_tracked(kvm, false);
		return rc;
	}
	log->tracker.ops = &kvm_log_ops;
	log->tracker.ram = ram;
	log->kvm = kvm;
	gr_kvm_memory_get(kvm);
	*ret_tracker = &log->tracker;
	return 0;
}
