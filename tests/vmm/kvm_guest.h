/* SPDX-License-Identifier: MIT */
/*
 * The smallest KVM guest that writes memory: one vCPU in flat 32-bit mode that stores where it
 * is told, in the calling thread or on its own. For tests of slots and dirty logs; it is
 * no machine.
 */
#ifndef KVM_GUEST_H
#define KVM_GUEST_H

#include <guestram/ram.h>
#include <guestram/track.h>
#include <linux/kvm.h>
#include <pthread.h>

struct kvm_guest {
	int kvm_fd, vm_fd, vcpu_fd;
	struct kvm_run *run;
	size_t run_bytes;
	uint32_t code;		   /* where its program is */
	struct gr_kvm_memory *kvm; /* whom to tell that the vCPU's dirty ring is full, or NULL */
	uint64_t ring_full;	   /* how often it was */

	pthread_t thread; /* while it spins */
	pthread_mutex_t lock;
	pthread_cond_t changed;
	bool spinning;	      /* (l) the thread shall go on */
	int held;	      /* (l) kicks without resume */
	bool inside;	      /* (l) the vCPU is in the guest, or on its way in or out */
	uint32_t first_value; /* that it stored after */
};

/* Opens /dev/kvm and makes a VM, or skips the test with the reason. */
void kvm_guest_create(struct kvm_guest *g);
/* Its vCPU; kvm may be NULL. */
void kvm_guest_add_vcpu(struct kvm_guest *g, struct gr_kvm_memory *kvm);
/* Once there is RAM: puts the program at a guest address, a page that tests leave alone. */
void kvm_guest_boot(struct kvm_guest *g, struct gr_ram *ram, uint32_t code);
void kvm_guest_destroy(struct kvm_guest *g);

/* The guest stores a 32-bit value; returns KVM's exit reason (KVM_EXIT_HLT: it has). */
uint32_t kvm_guest_store(struct kvm_guest *g, uint32_t gpa, uint32_t value);
/* The guest stores value at gpa, gpa + stride, ... */
void kvm_guest_fill(struct kvm_guest *g, uint32_t gpa, uint32_t stride, uint32_t count,
		    uint32_t value);
/* The guest stores a growing number at the start of random pages of [gpa, gpa + bytes) until
 * it is halted; bytes is a power of two. */
void kvm_guest_spin(struct kvm_guest *g, uint32_t gpa, uint32_t bytes);
/* Random pages of which only these bits of the address vary; the number grows from value on. */
void kvm_guest_spin_over(struct kvm_guest *g, uint32_t gpa, uint32_t bits, uint32_t value);
/* Returns how many stores it has made. May run beside a kick. */
uint32_t kvm_guest_halt(struct kvm_guest *g);
/* Have the spinning guest out and keep it out; for gr_kvm_memory_create(). */
void kvm_guest_kick(void *g);
void kvm_guest_resume(void *g);

#endif
