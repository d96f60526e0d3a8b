/* SPDX-License-Identifier: MIT */
#include "kvm_payload.h"
#include "kvm_vcpu.h"
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

/* Pages that Intel's CPUs without unrestricted guests need for real mode; below no RAM of ours. */
#define TSS_GPA		 UINT64_C(0xfffbd000)
#define IDENTITY_MAP_GPA UINT64_C(0xfffbc000)

static struct vmm_kvm *kvm_of(struct vmm_accel *accel)
{
	return (struct vmm_kvm *)accel; /* its first member */
}

static int open_kvm(struct gr_error *err)
{
	int fd = open("/dev/kvm", O_RDWR | O_CLOEXEC);

	if (fd < 0) {
		return gr_error_set(err, -ENOTSUP, "cannot open /dev/kvm: %s", strerror(errno));
	}
	if (ioctl(fd, KVM_GET_API_VERSION, 0) != KVM_API_VERSION) {
		(void)close(fd);
		return gr_error_set(err, -ENOTSUP, "/dev/kvm speaks another version of its API");
	}
	if (ioctl(fd, KVM_CHECK_EXTENSION, KVM_CAP_IMMEDIATE_EXIT) <= 0) {
		(void)close(fd);
		return gr_error_set(err, -ENOTSUP, "this KVM has no immediate_exit");
	}
	return fd;
}

static int create_vm(int kvm_fd, struct gr_error *err)
{
	int fd = ioctl(kvm_fd, KVM_CREATE_VM, 0);

	return fd >= 0 ? fd
		       : gr_error_set(err, -ENOTSUP, "KVM makes no virtual machine: %s",
				      strerror(errno));
}

static int probe(struct gr_error *err)
{
	int kvm_fd = open_kvm(err), vm_fd, vcpu_fd, rc = 0;

	if (kvm_fd < 0) {
		return kvm_fd;
	}
	vm_fd = create_vm(kvm_fd, err);
	if (vm_fd < 0) {
		(void)close(kvm_fd);
		return vm_fd;
	}
	vcpu_fd = ioctl(vm_fd, KVM_CREATE_VCPU, 0);
	if (vcpu_fd < 0) {
		rc = gr_error_set(err, -ENOTSUP, "KVM makes no vCPU: %s", strerror(errno));
	} else {
		(void)close(vcpu_fd);
	}
	(void)close(vm_fd);
	(void)close(kvm_fd);
	return rc;
}

/* For gr_kvm_memory: out of the guest while a slot goes, whoever unplugs it. */
static void hold(void *opaque)
{
	struct vmm_kvm *kvm = opaque;

	(void)pthread_mutex_lock(&kvm->lock);
	kvm->holds++;
	for (unsigned int v = 0; v < kvm->started; v++) {
		vmm_kvm_vcpu_poke_locked(&kvm->vcpu[v]);
	}
	for (unsigned int v = 0; v < kvm->started; v++) {
		while (kvm->vcpu[v].in_guest) {
			(void)pthread_cond_wait(&kvm->changed, &kvm->lock);
		}
	}
	(void)pthread_mutex_unlock(&kvm->lock);
}

static void let_go(void *opaque)
{
	struct vmm_kvm *kvm = opaque;

	(void)pthread_mutex_lock(&kvm->lock);
	kvm->holds--;
	(void)pthread_cond_broadcast(&kvm->changed);
	(void)pthread_mutex_unlock(&kvm->lock);
}

static int create_vcpus(struct vmm_kvm *kvm, struct gr_error *err)
{
	struct vmm_accel_env *env = &kvm->accel.env;

	for (unsigned int v = 0; v < env->vcpus; v++) {
		struct vmm_kvm_vcpu *vcpu = &kvm->vcpu[v];
		struct kvm_regs regs;
		struct kvm_sregs sregs;
		int rc = vmm_kvm_vcpu_create(kvm, v, err);

		if (rc < 0) {
			return rc;
		}
		if (ioctl(vcpu->fd, KVM_GET_SREGS, &sregs) < 0) {
			return gr_error_set(err, -errno, "KVM: %s", strerror(errno));
		}
		if (env->workload) {
			vmm_payload_registers(v, &regs, &sregs);
		} else {
			vmm_flat_registers(&regs, &sregs);
			vcpu->halted = v > 0; /* nobody wakes the others */
		}
		if (ioctl(vcpu->fd, KVM_SET_SREGS, &sregs) < 0 ||
		    ioctl(vcpu->fd, KVM_SET_REGS, &regs) < 0) {
			return gr_error_set(err, -errno, "KVM refuses the registers of vCPU %u: %s",
					    v, strerror(errno));
		}
	}
	return 0;
}

static int create_machine(struct vmm_kvm *kvm, struct gr_error *err)
{
	struct vmm_accel_env *env = &kvm->accel.env;
	struct gr_tracker_params params = { .size = sizeof(params) };
	uint64_t identity_map = IDENTITY_MAP_GPA;
	int rc = 0;

	kvm->kvm_fd = open_kvm(err);
	if (kvm->kvm_fd < 0) {
		return kvm->kvm_fd;
	}
	kvm->vm_fd = create_vm(kvm->kvm_fd, err);
	if (kvm->vm_fd < 0) {
		return kvm->vm_fd;
	}
	/* Only some CPUs know these; who needs them and lacks them fails in KVM_RUN. */
	(void)ioctl(kvm->vm_fd, KVM_SET_IDENTITY_MAP_ADDR, &identity_map);
	(void)ioctl(kvm->vm_fd, KVM_SET_TSS_ADDR, (unsigned long)TSS_GPA);

	rc = gr_kvm_memory_create(env->ram, kvm->vm_fd, hold, let_go, kvm, &kvm->memory, err);
	if (rc < 0) {
		return rc;
	}
	params.kvm = kvm->memory;
	if (!env->software_tracker) {
		rc = gr_track_use(env->track, GR_TRACKER_KVM_LOG, &params, err);
	}
	if (rc == 0 && !env->incoming) {
		rc = env->workload ? vmm_payload_install(env->ram, env->workload, env->vcpus, err)
				   : vmm_flat_load(env->ram, env->flat, err);
	}
	return rc < 0 ? rc : create_vcpus(kvm, err);
}

static void destroy(struct vmm_accel *accel)
{
	struct vmm_kvm *kvm = kvm_of(accel);

	(void)pthread_mutex_lock(&kvm->lock);
	kvm->quit = true;
	for (unsigned int v = 0; v < kvm->started; v++) {
		vmm_kvm_vcpu_poke_locked(&kvm->vcpu[v]);
	}
	(void)pthread_cond_broadcast(&kvm->changed);
	(void)pthread_mutex_unlock(&kvm->lock);
	for (unsigned int v = 0; v < kvm->started; v++) {
		(void)pthread_join(kvm->vcpu[v].thread, NULL);
	}
	for (unsigned int v = 0; v < accel->env.vcpus; v++) {
		vmm_kvm_vcpu_destroy(&kvm->vcpu[v]);
	}
	gr_kvm_memory_free(kvm->memory);
	if (kvm->vm_fd >= 0) {
		(void)close(kvm->vm_fd);
	}
	if (kvm->kvm_fd >= 0) {
		(void)close(kvm->kvm_fd);
	}
	(void)pthread_cond_destroy(&kvm->changed);
	(void)pthread_mutex_destroy(&kvm->lock);
	free(kvm);
}

static int create(const struct vmm_accel_env *env, struct vmm_accel **ret_accel,
		  struct gr_error *err)
{
	struct vmm_kvm *kvm = calloc(1, sizeof(*kvm));
	int rc;

	if (!kvm) {
		return gr_error_set(err, -ENOMEM, "no memory for a KVM machine");
	}
	kvm->accel.ops = &vmm_accel_kvm;
	kvm->accel.env = *env;
	kvm->accel.writers = GR_WRITERS_KVM_VCPUS | GR_WRITERS_MARKED;
	kvm->kvm_fd = kvm->vm_fd = -1;
	kvm->paused = true;
	(void)pthread_mutex_init(&kvm->lock, NULL);
	(void)pthread_cond_init(&kvm->changed, NULL);
	for (unsigned int v = 0; v < VMM_WRITERS_MAX; v++) {
		kvm->vcpu[v].kvm = kvm;
		kvm->vcpu[v].index = v;
		kvm->vcpu[v].fd = -1;
	}
	rc = create_machine(kvm, err);
	if (rc < 0) {
		destroy(&kvm->accel);
		return rc;
	}
	*ret_accel = &kvm->accel;
	return 0;
}

static int start(struct vmm_accel *accel, struct gr_error *err)
{
	struct vmm_kvm *kvm = kvm_of(accel);

	while (kvm->started < accel->env.vcpus) {
		int rc = vmm_kvm_vcpu_start(&kvm->vcpu[kvm->started], err);

		if (rc < 0) {
			return rc; /* destroy() ends those that run */
		}
		kvm->started++;
	}
	return 0;
}

static void pause_begin(struct vmm_accel *accel)
{
	struct vmm_kvm *kvm = kvm_of(accel);

	for (unsigned int v = 0; accel->env.workload && v < kvm->started; v++) {
		vmm_pacer_stop(accel->env.pacer, v);
	}
	(void)pthread_mutex_lock(&kvm->lock);
	kvm->paused = true;
	for (unsigned int v = 0; v < kvm->started; v++) {
		vmm_kvm_vcpu_poke_locked(&kvm->vcpu[v]);
	}
	(void)pthread_mutex_unlock(&kvm->lock);
}

static int pause_vcpus(struct vmm_accel *accel, struct gr_error *err)
{
	struct vmm_kvm *kvm = kvm_of(accel);

	(void)err;
	pause_begin(accel);
	(void)pthread_mutex_lock(&kvm->lock);
	for (unsigned int v = 0; v < kvm->started; v++) {
		while (!kvm->vcpu[v].standing) {
			(void)pthread_cond_wait(&kvm->changed, &kvm->lock);
		}
	}
	(void)pthread_mutex_unlock(&kvm->lock);
	return 0;
}

static void resume(struct vmm_accel *accel)
{
	struct vmm_kvm *kvm = kvm_of(accel);

	for (unsigned int v = 0; accel->env.workload && v < kvm->started; v++) {
		vmm_pacer_go(accel->env.pacer, v);
	}
	(void)pthread_mutex_lock(&kvm->lock);
	kvm->paused = false;
	(void)pthread_cond_broadcast(&kvm->changed);
	(void)pthread_mutex_unlock(&kvm->lock);
}

static int save(struct vmm_accel *accel, unsigned int cpu, struct vmm_blob *blob,
		struct gr_error *err)
{
	return vmm_kvm_save(&kvm_of(accel)->vcpu[cpu], blob, err);
}

static int load(struct vmm_accel *accel, unsigned int cpu, const void *data, size_t bytes,
		struct gr_error *err)
{
	return vmm_kvm_load(&kvm_of(accel)->vcpu[cpu], data, bytes, err);
}

static int registers(struct vmm_accel *accel, unsigned int cpu, struct vmm_writer_regs *regs,
		     struct gr_error *err)
{
	struct vmm_kvm_vcpu *vcpu = &kvm_of(accel)->vcpu[cpu];
	struct kvm_regs r;
	int rc;

	if (!accel->env.workload) {
		return gr_error_set(err, -EINVAL, "a flat image runs, not the workload");
	}
	rc = vmm_kvm_vcpu_alive(vcpu, err);
	if (rc < 0) {
		return rc;
	}
	if (ioctl(vcpu->fd, KVM_GET_REGS, &r) < 0) {
		return gr_error_set(err, -errno, "KVM: cannot read the registers of vCPU %u: %s",
				    cpu, strerror(errno));
	}
	return vmm_payload_decode(accel->env.ram, accel->env.workload, cpu, &r, regs, err);
}

static void describe(struct vmm_accel *accel, unsigned int cpu,
		     void (*emit)(void *opaque, const char *name, uint64_t value), void *opaque)
{
	vmm_kvm_describe(&kvm_of(accel)->vcpu[cpu], emit, opaque);
}

const struct vmm_accel_ops vmm_accel_kvm = {
	.name = "kvm",
	.probe = probe,
	.create = create,
	.destroy = destroy,
	.start = start,
	.pause_begin = pause_begin,
	.pause = pause_vcpus,
	.resume = resume,
	.save = save,
	.load = load,
	.registers = registers,
	.describe = describe,
};
