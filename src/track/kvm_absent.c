/* SPDX-License-Identifier: MIT */
/* On systems without KVM: says so. */
#include "track/kvm_memory.h"
#include "track/tracker.h"
#include <errno.h>

int gr_kvm_memory_create(struct gr_ram *ram, int vm_fd, void (*kick)(void *opaque),
			 void (*resume)(void *opaque), void *opaque, struct gr_kvm_memory **ret_kvm,
			 struct gr_error *err)
{
	(void)ram;
	(void)vm_fd;
	(void)kick;
	(void)resume;
	(void)opaque;
	(void)ret_kvm;
	return gr_error_set(err, -ENOTSUP, "this system has no KVM");
}

void gr_kvm_memory_free(struct gr_kvm_memory *kvm)
{
	(void)kvm;
}

int gr_tracker_kvm_log_create(struct gr_ram *ram, const struct gr_tracker_params *params,
			      struct gr_tracker **ret_tracker, struct gr_error *err)
{
	(void)ram;
	(void)params;
	(void)ret_tracker;
	return gr_error_set(err, -ENOTSUP, "this system has no KVM");
}

int gr_tracker_kvm_ring_create(struct gr_ram *ram, const struct gr_tracker_params *params,
			       struct gr_tracker **ret_tracker, struct gr_error *err)
{
	return gr_tracker_kvm_log_create(ram, params, ret_tracker, err);
}

int gr_kvm_vcpu_add(struct gr_kvm_memory *kvm, int vcpu_fd, struct gr_error *err)
{
	(void)kvm;
	(void)vcpu_fd;
	return gr_error_set(err, -ENOTSUP, "this system has no KVM");
}

void gr_kvm_vcpu_del(struct gr_kvm_memory *kvm, int vcpu_fd)
{
	(void)kvm;
	(void)vcpu_fd;
}

int gr_kvm_ring_full(struct gr_kvm_memory *kvm, struct gr_error *err)
{
	(void)kvm;
	return gr_error_set(err, -ENOTSUP, "this system has no KVM");
}

uint64_t gr_kvm_ring_counts(struct gr_kvm_memory *kvm, uint64_t *ret_pages, unsigned int max,
			    unsigned int *ret_count)
{
	(void)kvm;
	(void)ret_pages;
	(void)max;
	*ret_count = 0;
	return 0;
}

bool gr_kvm_ring_any(struct gr_kvm_memory *kvm)
{
	(void)kvm;
	return false;
}
