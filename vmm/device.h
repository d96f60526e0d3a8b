/* SPDX-License-Identifier: MIT */
/*
 * The device: the workload's last writer. It writes guest memory as device models do, never
 * through a pointer of its own: by turns with gr_ram_write() and into iovecs, which it takes,
 * fills, keeps for a while as if the I/O were still under way, and then puts back.
 */
#ifndef VMM_DEVICE_H
#define VMM_DEVICE_H

#include "pacer.h"
#include "workload.h"
#include <guestram/ram.h>

struct vmm_device;

/* The device of a machine: writer number wl->writers - 1. Makes its thread, stopped. */
int vmm_device_create(struct gr_ram *ram, const struct vmm_workload *wl, struct vmm_pacer *pacer,
		      struct vmm_device **ret_device, struct gr_error *err);
void vmm_device_free(struct vmm_device *device);

/* Begin to pause: it returns at once, and the thread starts nothing new. */
void vmm_device_pause_begin(struct vmm_device *device);
/* O6: when it returns the thread stands still and every iovec has been put back. */
void vmm_device_pause(struct vmm_device *device);
void vmm_device_resume(struct vmm_device *device);

/* Its registers, while it stands still; to read and to set. */
struct vmm_writer_regs *vmm_device_regs(struct vmm_device *device);

#endif
