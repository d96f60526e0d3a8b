/* SPDX-License-Identifier: MIT */
/* On systems without KVM: says so. */
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
