/* SPDX-License-Identifier: MIT */
#include "kvm_vcpu.h"
#include <errno.h>
#include <guestram/rcu_qs.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

enum { CPUID_ENTRIES_MAX = 256 };

/* The signal only has to end KVM_RUN; the handler does nothing. */
static int kick_signal(void)
{
	return SIGRTMIN;
}

static void on_kick(int sig)
{
	(void)sig;
}

static int set_features(struct vmm_kvm_vcpu *vcpu, struct gr_error *err)
{
	struct kvm_cpuid2 *cpuid =
		calloc(1, sizeof(*cpuid) + CPUID_ENTRIES_MAX * sizeof(cpuid->entries[0]));
	int rc = 0;

	if (!cpuid) {
		return gr_error_set(err, -ENOMEM, "no memory for a vCPU");
	}
	cpuid->nent = CPUID_ENTRIES_MAX;
	if (ioctl(vcpu->kvm->kvm_fd, KVM_GET_SUPPORTED_CPUID, cpuid) < 0 ||
	    ioctl(vcpu->fd, KVM_SET_CPUID2, cpuid) < 0) {
		rc = gr_error_set(err, -errno, "KVM: cannot set the vCPU's features: %s",
				  strerror(errno));
	}
	free(cpuid);
	return rc;
}

int vmm_kvm_vcpu_create(struct vmm_kvm *kvm, unsigned int index, struct gr_error *err)
{
	struct vmm_kvm_vcpu *vcpu = &kvm->vcpu[index];
	int bytes = ioctl(kvm->kvm_fd, KVM_GET_VCPU_MMAP_SIZE, 0);
	void *run;

	if (bytes < 0) {
		return gr_error_set(err, -errno, "KVM: %s", strerror(errno));
	}
	vcpu->fd = ioctl(kvm->vm_fd, KVM_CREATE_VCPU, (unsigned long)index);
	if (vcpu->fd < 0) {
		return gr_error_set(err, -errno, "KVM: cannot make vCPU %u: %s", index,
				    strerror(errno));
	}
	run = mmap(NULL, (size_t)bytes, PROT_READ | PROT_WRITE, MAP_SHARED, vcpu->fd, 0);
	if (run == MAP_FAILED) {
		return gr_error_set(err, -errno, "KVM: cannot map vCPU %u: %s", index,
				    strerror(errno));
	}
	vcpu->run = run;
	vcpu->run_bytes = (size_t)bytes;
	vcpu->settled = true;
	return set_features(vcpu, err);
}

void vmm_kvm_vcpu_destroy(struct vmm_kvm_vcpu *vcpu)
{
	if (vcpu->run) {
		(void)munmap(vcpu->run, vcpu->run_bytes);
	}
	if (vcpu->fd >= 0) {
		(void)close(vcpu->fd);
	}
}

static void set_immediate_exit(struct vmm_kvm_vcpu *vcpu, uint8_t on)
{
	/* Read by the kernel at entry; the signal or the lock orders it. */
	__atomic_store_n(&vcpu->run->immediate_exit, on, __ATOMIC_RELAXED);
}

void vmm_kvm_vcpu_poke_locked(struct vmm_kvm_vcpu *vcpu)
{
	if (vcpu->in_guest) {
		set_immediate_exit(vcpu, 1);
		(void)pthread_kill(vcpu->thread, kick_signal());
	}
}

/* O6: whether KVM still has to deliver what the vCPU left the guest for. */
static bool has_open_exit(const struct vmm_kvm_vcpu *vcpu)
{
#ifdef GR_MUTANT_PAUSE_UNSETTLED
	return false;
#endif
	return !vcpu->settled && !vcpu->ended;
}

/* Waits until the vCPU may enter, or has an exit to complete; false: the thread shall end. */
static bool enter(struct vmm_kvm_vcpu *vcpu)
{
	struct vmm_kvm *kvm = vcpu->kvm;
	bool stand = false;

	(void)pthread_mutex_lock(&kvm->lock);
	while (!kvm->quit) {
		stand = kvm->paused || vcpu->halted || vcpu->ended;
		if (kvm->holds == 0 && (!stand || has_open_exit(vcpu))) {
			break;
		}
		if (kvm->holds == 0) {
			vcpu->standing = true;
			(void)pthread_cond_broadcast(&kvm->changed);
		}
		(void)pthread_cond_wait(&kvm->changed, &kvm->lock);
		vcpu->standing = false;
	}
	if (kvm->quit) {
		(void)pthread_mutex_unlock(&kvm->lock);
		return false;
	}
	set_immediate_exit(vcpu, stand);
	vcpu->in_guest = true;
	(void)pthread_mutex_unlock(&kvm->lock);
	return true;
}

static void leave(struct vmm_kvm_vcpu *vcpu)
{
	(void)pthread_mutex_lock(&vcpu->kvm->lock);
	vcpu->in_guest = false;
	(void)pthread_cond_broadcast(&vcpu->kvm->changed);
	(void)pthread_mutex_unlock(&vcpu->kvm->lock);
}

static void stop_running(struct vmm_kvm_vcpu *vcpu, enum vmm_kvm_next next, const char *why)
{
	struct vmm_accel_env *env = &vcpu->kvm->accel.env;

	(void)pthread_mutex_lock(&vcpu->kvm->lock);
	vcpu->halted = next == VMM_KVM_HALT;
	vcpu->ended = next == VMM_KVM_END;
	if (vcpu->ended) {
		(void)snprintf(vcpu->why, sizeof(vcpu->why), "%s", why);
	}
	(void)pthread_mutex_unlock(&vcpu->kvm->lock);
	if (next == VMM_KVM_END && env->stopped) {
		env->stopped(env->opaque, why);
	}
}

int vmm_kvm_vcpu_alive(struct vmm_kvm_vcpu *vcpu, struct gr_error *err)
{
	int rc = 0;

	(void)pthread_mutex_lock(&vcpu->kvm->lock);
	if (vcpu->ended) {
		rc = gr_error_set(err, -EIO, "the guest has ended: %s", vcpu->why);
	}
	(void)pthread_mutex_unlock(&vcpu->kvm->lock);
	return rc;
}

/*
 * A quiescent-state reader: online while it serves an exit, offline while it is in the guest or
 * waits. Grace periods neither wait for the guest nor (the machine holds a quiet time) interrupt
 * it.
 */
static void *vcpu_thread(void *arg)
{
	struct vmm_kvm_vcpu *vcpu = arg;
	enum vmm_kvm_next next;
	char why[160];

	gr_rcu_qs_register_thread();
	gr_rcu_thread_offline();
	while (enter(vcpu)) {
		int error;

#ifdef GR_MUTANT_KVM_VCPU_STAYS_ONLINE
		gr_rcu_thread_online();
#endif
		error = ioctl(vcpu->fd, KVM_RUN, 0) < 0 ? errno : 0;
		__atomic_store_n(&vcpu->interrupted, vcpu->interrupted + (error == EINTR),
				 __ATOMIC_RELAXED);
		leave(vcpu);
		/* A kick comes after the pending exit was completed: KVM does that first. */
		vcpu->settled = error == EINTR || error == EAGAIN;
		if (vcpu->settled) {
			continue;
		}
		if (error) {
			(void)snprintf(why, sizeof(why), "vCPU %u: KVM cannot run it: %s",
				       vcpu->index, strerror(error));
			next = VMM_KVM_END;
		} else {
			gr_rcu_thread_online();
			next = vmm_kvm_exit(vcpu, why, sizeof(why));
			gr_rcu_thread_offline();
		}
		if (next != VMM_KVM_GO_ON) {
			stop_running(vcpu, next, why);
		}
	}
	gr_rcu_qs_unregister_thread();
	return NULL;
}

int vmm_kvm_vcpu_start(struct vmm_kvm_vcpu *vcpu, struct gr_error *err)
{
	struct sigaction kick = { .sa_handler = on_kick };
	int rc;

	(void)sigemptyset(&kick.sa_mask);
	if (sigaction(kick_signal(), &kick, NULL) < 0) {
		return gr_error_set(err, -errno, "cannot set a signal handler: %s",
				    strerror(errno));
	}
	rc = pthread_create(&vcpu->thread, NULL, vcpu_thread, vcpu);
	if (rc != 0) {
		return gr_error_set(err, -rc, "cannot make a thread for vCPU %u: %s", vcpu->index,
				    strerror(rc));
	}
	return 0;
}
