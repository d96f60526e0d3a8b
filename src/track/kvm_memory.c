/* SPDX-License-Identifier: MIT */
/*
 * A machine's regions as KVM memory slots, one each, through the blocks' own mapping.
 *
 * A slot's dirty log goes with the slot, so what the vCPUs wrote since the last report must be
 * fetched before the slot is deleted, and no vCPU may write in between: they are
 * kicked out first (their hardware write logs are flushed by the exit), then the log is
 * fetched and marked, then the slot is deleted, then they may run on.
 */
#include "track/kvm_memory.h"
#include "base/atomic.h"
#include "base/log.h"
#include "track/report.h"
#include <errno.h>
#include <inttypes.h>
#include <linux/kvm.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

int gr_kvm_slot_set(struct gr_kvm_memory *kvm, const struct gr_kvm_slot *slot, bool log,
		    struct gr_error *err)
{
	struct kvm_userspace_memory_region r = {
		.slot = slot->id,
		.flags = (slot->region.readonly ? KVM_MEM_READONLY : 0u) |
			 (log && !slot->region.readonly ? KVM_MEM_LOG_DIRTY_PAGES : 0u),
		.guest_phys_addr = slot->region.gpa.v,
		.memory_size = slot->region.bytes,
		.userspace_addr =
			(uint64_t)(uintptr_t)slot->region.block->host + slot->region.block_offset,
	};

	if (ioctl(kvm->vm_fd, KVM_SET_USER_MEMORY_REGION, &r) < 0) {
		return gr_error_set(
			err, -errno,
			"KVM refuses memory slot %u (%" PRIu64 " bytes at %#" PRIx64 "): %s",
			slot->id, slot->region.bytes, slot->region.gpa.v, strerror(errno));
	}
	return 0;
}

/* Whether the slot is gone: KVM needs a little memory of its own to delete one. */
static bool slot_delete(struct gr_kvm_memory *kvm, const struct gr_kvm_slot *slot)
	GR_REQUIRES(kvm->lock)
{
	struct kvm_userspace_memory_region r = {
		.slot = slot->id,
		.guest_phys_addr = slot->region.gpa.v,
	};

	if (ioctl(kvm->vm_fd, KVM_SET_USER_MEMORY_REGION, &r) < 0) {
		gr_log(GR_LOG_WARN, "KVM keeps memory slot %u (at %#" PRIx64 "): %s", slot->id,
		       slot->region.gpa.v, strerror(errno));
		return false;
	}
	return true;
}

static int id_take(struct gr_kvm_memory *kvm, uint32_t *ret_id) GR_REQUIRES(kvm->lock)
{
	for (unsigned int w = 0; w * 64 < kvm->slots_max; w++) {
		unsigned int id;

		if (kvm->ids[w] == UINT64_MAX) {
			continue;
		}
		id = w * 64 + (unsigned int)__builtin_ctzll(~kvm->ids[w]);
		if (id >= kvm->slots_max) {
			break;
		}
		kvm->ids[w] |= UINT64_C(1) << (id % 64);
		*ret_id = id;
		return 0;
	}
	return -ENOSPC;
}

static void id_give(struct gr_kvm_memory *kvm, uint32_t id) GR_REQUIRES(kvm->lock)
{
	kvm->ids[id / 64] &= ~(UINT64_C(1) << (id % 64));
}

/* Room for one slot more of so many pages, so that nothing later allocates. */
static int make_room(struct gr_kvm_memory *kvm, uint64_t pages) GR_REQUIRES(kvm->lock)
{
	if (kvm->nslots == kvm->room) {
		unsigned int room = kvm->room ? 2 * kvm->room : 16;
		struct gr_kvm_slot **slots = realloc(kvm->slots, room * sizeof(*slots));

		if (!slots) {
			return -ENOMEM;
		}
		kvm->slots = slots;
		kvm->room = room;
	}
	if (pages > kvm->words_pages) {
		uint64_t *words = malloc(GR_DIV_ROUND_UP(pages, 64) * sizeof(*words));

		if (!words) {
			return -ENOMEM;
		}
		free(kvm->words);
		kvm->words = words;
		kvm->words_pages = pages;
	}
	return 0;
}

static void refresh_reach(struct gr_kvm_memory *kvm) GR_REQUIRES(kvm->lock)
{
	uint64_t reach = 0;

	for (unsigned int i = 0; i < kvm->nslots; i++) {
		struct gr_kvm_slot *s = kvm->slots[i];

		reach = GR_MAX(reach, s->start + s->region.bytes);
		s->reach = reach;
	}
}

static void slot_enter(struct gr_kvm_memory *kvm, struct gr_kvm_slot *slot) GR_REQUIRES(kvm->lock)
{
	unsigned int at = kvm->nslots;

	while (at > 0 && kvm->slots[at - 1]->start > slot->start) {
		at--;
	}
	memmove(&kvm->slots[at + 1], &kvm->slots[at], (kvm->nslots - at) * sizeof(*kvm->slots));
	kvm->slots[at] = slot;
	kvm->nslots++;
	if (kvm->by_id) {
		kvm->by_id[slot->id] = slot;
	}
	refresh_reach(kvm);
}

static struct gr_kvm_slot *slot_leave(struct gr_kvm_memory *kvm, gr_gpa_t gpa)
	GR_REQUIRES(kvm->lock)
{
	for (unsigned int i = 0; i < kvm->nslots; i++) {
		struct gr_kvm_slot *slot = kvm->slots[i];

		if (slot->region.gpa.v == gpa.v) {
			kvm->nslots--;
			memmove(&kvm->slots[i], &kvm->slots[i + 1],
				(kvm->nslots - i) * sizeof(*kvm->slots));
			refresh_reach(kvm);
			return slot;
		}
	}
	return NULL;
}

static int slot_add_locked(struct gr_kvm_memory *kvm, struct gr_kvm_slot *slot,
			   struct gr_error *err) GR_REQUIRES(kvm->lock)
{
	int rc = make_room(kvm, slot->pages);

	if (rc < 0) {
		return gr_error_set(err, rc, "no memory for the dirty log of a KVM slot");
	}
	rc = id_take(kvm, &slot->id);
	if (rc < 0) {
		return gr_error_set(err, rc, "KVM has no memory slot left (it offers %u)",
				    kvm->slots_max);
	}
	if (kvm->logging) {
		rc = gr_kvm_slot_debt_locked(kvm, slot, err);
	}
	if (rc == 0) {
		rc = gr_kvm_slot_set(kvm, slot, kvm->logging, err);
	}
	if (rc < 0) {
		id_give(kvm, slot->id);
		return rc;
	}
	slot_enter(kvm, slot);
	return 0;
}

static void slot_free(struct gr_kvm_slot *slot)
{
	if (slot->has_debt) {
		gr_debt_destroy(&slot->debt);
	}
	free(slot);
}

static int region_add(void *opaque, const struct gr_ram_region *region, struct gr_error *err)
{
	struct gr_kvm_memory *kvm = opaque;
	uint64_t page = kvm->page_bytes;
	struct gr_kvm_slot *slot;
	int rc;

	if (!region->block->host) {
		return gr_error_set(err, -ENOTSUP,
				    "KVM cannot have block '%s': it is mapped on demand",
				    region->block->id);
	}
	if (region->gpa.v % page || region->bytes % page || region->block_offset % page) {
		return gr_error_set(err, -EINVAL,
				    "KVM maps whole pages of %" PRIu64 " bytes: not %" PRIu64
				    " bytes at %#" PRIx64,
				    page, region->bytes, region->gpa.v);
	}
	slot = calloc(1, sizeof(*slot));
	if (!slot) {
		return gr_error_set(err, -ENOMEM, "no memory for a KVM slot");
	}
	slot->region = *region;
	slot->pages = region->bytes / page;
	slot->start = region->block->offset.v + region->block_offset;

	gr_mutex_lock(&kvm->lock);
	rc = slot_add_locked(kvm, slot, err);
	gr_mutex_unlock(&kvm->lock);
	if (rc < 0) {
		slot_free(slot);
	}
	return rc;
}

/* The slot's last report. What cannot be fetched is taken to be written. */
static void last_report(struct gr_kvm_memory *kvm, struct gr_kvm_slot *slot) GR_REQUIRES(kvm->lock)
{
	struct gr_error err;

#ifdef GR_MUTANT_KVM_DELETE_UNSYNCED
	return;
#endif
	if (!kvm->logging || gr_kvm_slot_sync_locked(kvm, slot, &err) == 0) {
		return;
	}
	gr_log(GR_LOG_WARN, "%s; all its pages count as written", err.msg);
	gr_report_range(slot->region.block, slot->region.block_offset, slot->region.bytes);
}

static void region_del(void *opaque, const struct gr_ram_region *region)
{
	struct gr_kvm_memory *kvm = opaque;
	struct gr_kvm_slot *slot;

	if (kvm->kick) {
		kvm->kick(kvm->opaque);
	}
	gr_mutex_lock(&kvm->lock);
	slot = slot_leave(kvm, region->gpa);
	GR_ASSERT(slot);
	last_report(kvm, slot);
	if (kvm->by_id) {
		kvm->by_id[slot->id] = NULL;
	}
	if (slot_delete(kvm, slot)) {
		id_give(kvm, slot->id); /* else the number stays taken */
	}
	gr_mutex_unlock(&kvm->lock);
	if (kvm->resume) {
		kvm->resume(kvm->opaque);
	}
	slot_free(slot);
}

static int probe(struct gr_kvm_memory *kvm, struct gr_error *err)
{
	int n = ioctl(kvm->vm_fd, KVM_CHECK_EXTENSION, KVM_CAP_NR_MEMSLOTS);

	if (n < 0) {
		return gr_error_set(err, -errno, "not a KVM virtual machine: %s", strerror(errno));
	}
	/* KVM's answer before the capability existed was 0 and its slots were 32. */
	kvm->slots_max = n == 0 ? 32 : (unsigned int)GR_MIN(n, (int)GR_KVM_SLOTS_MAX);
	n = ioctl(kvm->vm_fd, KVM_CHECK_EXTENSION, KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2);
	kvm->can_manual = n > 0 && ((unsigned int)n & KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE);
	kvm->can_begin_set = kvm->can_manual && ((unsigned int)n & KVM_DIRTY_LOG_INITIALLY_SET);
	return 0;
}

int gr_kvm_memory_create(struct gr_ram *ram, int vm_fd, void (*kick)(void *opaque),
			 void (*resume)(void *opaque), void *opaque, struct gr_kvm_memory **ret_kvm,
			 struct gr_error *err)
{
	struct gr_kvm_memory *kvm = calloc(1, sizeof(*kvm));
	int rc;

	if (!kvm) {
		return gr_error_set(err, -ENOMEM, "no memory for KVM's slots");
	}
	kvm->refs = 1;
	kvm->ram = ram;
	kvm->vm_fd = vm_fd;
	kvm->page_bytes = (uint64_t)sysconf(_SC_PAGESIZE);
	kvm->kick = kick;
	kvm->resume = resume;
	kvm->opaque = opaque;
	kvm->listener = (struct gr_ram_listener){
		.region_add = region_add,
		.region_del = region_del,
		.opaque = kvm,
	};
	gr_mutex_init(&kvm->lock, GR_RANK_TRACKER);
	rc = probe(kvm, err);
	if (rc < 0) {
		goto out_free;
	}
	kvm->ids = calloc(GR_DIV_ROUND_UP(kvm->slots_max, 64), sizeof(*kvm->ids));
	if (!kvm->ids) {
		rc = gr_error_set(err, -ENOMEM, "no memory for KVM's slots");
		goto out_free;
	}
	rc = gr_ram_listener_add(ram, &kvm->listener, err);
	if (rc < 0) {
		goto out_free;
	}
	*ret_kvm = kvm;
	return 0;
out_free:
	gr_kvm_memory_put(kvm);
	return rc;
}

void gr_kvm_memory_get(struct gr_kvm_memory *kvm)
{
	gr_add_relaxed(&kvm->refs, 1u);
}

void gr_kvm_memory_set_tracked(struct gr_kvm_memory *kvm, bool tracked)
{
	GR_MUTEX_GUARD(&kvm->lock);
	kvm->tracked = tracked;
}

void gr_kvm_memory_put(struct gr_kvm_memory *kvm)
{
	/* Pairs with itself: what the other holder did is done before it is freed. */
	if (gr_sub_acq_rel(&kvm->refs, 1u) > 1) {
		return;
	}
	gr_kvm_ring_destroy(kvm);
	gr_mutex_destroy(&kvm->lock);
	free(kvm->ids);
	free(kvm->slots);
	free(kvm->words);
	free(kvm);
}

void gr_kvm_memory_free(struct gr_kvm_memory *kvm)
{
	if (!kvm) {
		return;
	}
	gr_ram_listener_del(kvm->ram, &kvm->listener);
	GR_ASSERT(kvm->nslots == 0);
	gr_kvm_memory_put(kvm);
}
