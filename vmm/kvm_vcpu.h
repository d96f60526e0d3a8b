/* SPDX-License-Identifier: MIT */
/*
 * The KVM accelerator's inside: a thread for each vCPU, and two ways to get them out.
 *
 *   pause   the machine stops (O6): every vCPU leaves the guest, what its last exit still has to
 *           deliver is delivered (KVM_RUN with immediate_exit completes it and does not
 *           enter), then the thread stands.
 *   hold    a memory slot is about to go: every vCPU leaves the guest and stays out. It may stand
 * in the middle of an exit; nothing is completed meanwhile, as that writes memory.
 *
 * vmm_kvm.lock covers the flags. A thread checks them and sets in_guest in one go, and who wants
 * it out sets immediate_exit before the signal: a thread on its way in meets the one, a
 * thread inside the other.
 */
#ifndef VMM_KVM_VCPU_H
#define VMM_KVM_VCPU_H

#include "accel.h"
#include <linux/kvm.h>
#include <pthread.h>

struct vmm_kvm;

struct vmm_kvm_vcpu {
	struct vmm_kvm *kvm;  /* (c) */
	unsigned int index;   /* (c) */
	int fd;		      /* (c) */
	struct kvm_run *run;  /* (c) shared with the kernel */
	size_t run_bytes;     /* (c) */
	pthread_t thread;     /* (c) after start */
	bool in_guest;	      /* (l) in KVM_RUN, or about to */
	bool standing;	      /* (l) out, nothing left to complete, waits */
	bool halted;	      /* (l) after HLT; nothing wakes it */
	bool ended;	      /* (l) cannot run on */
	bool settled;	      /* (o) the last exit is completed */
	uint64_t interrupted; /* (a) times a signal ended its stay in the guest */
	char why[160];	      /* (l) if it ended: the reason, for people */
};

struct vmm_kvm {
	struct vmm_accel accel;
	int kvm_fd;		      /* (c) */
	int vm_fd;		      /* (c) */
	struct gr_kvm_memory *memory; /* (c) */
	pthread_mutex_t lock;
	pthread_cond_t changed; /* of any flag */
	bool paused;		/* (l) */
	bool quit;		/* (l) threads end */
	unsigned int holds;	/* (l) slots about to go */
	unsigned int started;	/* (c) after start: threads there are */
	struct vmm_kvm_vcpu vcpu[VMM_WRITERS_MAX];
};

/* vCPU `index` with the host's features and the registers KVM gives it. */
int vmm_kvm_vcpu_create(struct vmm_kvm *kvm, unsigned int index, struct gr_error *err);
void vmm_kvm_vcpu_destroy(struct vmm_kvm_vcpu *vcpu);
/* Its thread; it stands until the machine runs. */
int vmm_kvm_vcpu_start(struct vmm_kvm_vcpu *vcpu, struct gr_error *err);
/* -EIO with the reason if it has ended: its registers say nothing any more. Not while it runs. */
int vmm_kvm_vcpu_alive(struct vmm_kvm_vcpu *vcpu, struct gr_error *err);
/* Have it leave the guest soon, if it is there; under the lock. */
void vmm_kvm_vcpu_poke_locked(struct vmm_kvm_vcpu *vcpu);

enum vmm_kvm_next {
	VMM_KVM_GO_ON,
	VMM_KVM_HALT, /* waits for an interrupt that never comes */
	VMM_KVM_END,  /* cannot run on */
};

/* kvm_exit.c: do what the guest left for. `why` is filled for VMM_KVM_END. */
enum vmm_kvm_next vmm_kvm_exit(struct vmm_kvm_vcpu *vcpu, char *why, size_t why_bytes);

/* kvm_state.c */
int vmm_kvm_save(struct vmm_kvm_vcpu *vcpu, struct vmm_blob *blob, struct gr_error *err);
int vmm_kvm_load(struct vmm_kvm_vcpu *vcpu, const void *data, size_t bytes, struct gr_error *err);
void vmm_kvm_describe(struct vmm_kvm_vcpu *vcpu,
		      void (*emit)(void *opaque, const char *name, uint64_t value), void *opaque);

#endif
