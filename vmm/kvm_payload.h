/* SPDX-License-Identifier: MIT */
/*
 * The KVM guest's inside: what its memory and registers hold when it begins, and what they say
 * when it stands still. The code itself is guest/workload.S.
 */
#ifndef VMM_KVM_PAYLOAD_H
#define VMM_KVM_PAYLOAD_H

#include "workload.h"
#include <guestram/ram.h>
#include <linux/kvm.h>

/* Writes code, page tables and mailboxes for so many vCPUs into the system pages. */
int vmm_payload_install(struct gr_ram *ram, const struct vmm_workload *wl, unsigned int vcpus,
			struct gr_error *err);
/* What vCPU v begins with: 64-bit mode, flat segments. `sregs` holds what KVM gave. */
void vmm_payload_registers(unsigned int v, struct kvm_regs *regs, struct kvm_sregs *sregs);
/*
 * Which words vCPU v has written, from its registers and its counters in memory. -EBADMSG: no
 * such registers can be.
 */
int vmm_payload_decode(struct gr_ram *ram, const struct vmm_workload *wl, unsigned int v,
		       const struct kvm_regs *regs, struct vmm_writer_regs *ret_regs,
		       struct gr_error *err);

/* Loads a flat 16-bit image to 0x7c00. */
int vmm_flat_load(struct gr_ram *ram, const char *path, struct gr_error *err);
/* Real mode, cs:ip 0:0x7c00, the stack below. */
void vmm_flat_registers(struct kvm_regs *regs, struct kvm_sregs *sregs);

#endif
