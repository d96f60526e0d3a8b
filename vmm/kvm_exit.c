/* SPDX-License-Identifier: MIT */
/* What the guest leaves for: ports, addresses without memory, halts, and its end. */
#include "guest/payload.h"
#include "kvm_vcpu.h"
#include <errno.h>
#include <guestram/rcu_qs.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

enum {
	DEBUG_PORT = 0xe9,
	PACE_NS_MAX = 1000000, /* then the guest looks at the clock again */
};

static uint64_t now_ns(void)
{
	struct timespec ts;

	(void)clock_gettime(CLOCK_MONOTONIC, &ts);
	return (uint64_t)ts.tv_sec * 1000000000u + (uint64_t)ts.tv_nsec;
}

static void debug_byte(int fd, uint8_t byte)
{
	ssize_t n;

	if (fd < 0) {
		return;
	}
	gr_rcu_thread_offline(); /* a pipe may be full */
	do {
		n = write(fd, &byte, 1);
	} while (n < 0 && errno == EINTR);
	gr_rcu_thread_online();
}

/* What a port reads as, one element. */
static uint32_t port_in(struct vmm_kvm_vcpu *vcpu, uint16_t port)
{
	struct vmm_accel_env *env = &vcpu->kvm->accel.env;
	uint32_t value = UINT32_MAX;

	if (env->workload && port == PAYLOAD_PACE_PORT) {
		gr_rcu_thread_offline(); /* it sleeps there */
		value = vmm_pacer_take_within(env->pacer, vcpu->index, PACE_NS_MAX);
		gr_rcu_thread_online();
	}
	return value;
}

/* A string instruction brings several elements in one exit. */
static void do_port(struct vmm_kvm_vcpu *vcpu)
{
	struct kvm_run *run = vcpu->run;
	uint8_t *data = (uint8_t *)run + run->io.data_offset;
	size_t bytes = run->io.size;

	for (uint32_t i = 0; i < run->io.count; i++, data += bytes) {
		if (run->io.direction == KVM_EXIT_IO_IN) {
			uint32_t value = port_in(vcpu, run->io.port);

			memcpy(data, &value, bytes);
		} else if (run->io.port == DEBUG_PORT) {
			debug_byte(vcpu->kvm->accel.env.debug_fd, *data);
		}
	}
}

/* No memory there: stores are dropped, loads give ones. */
static void do_mmio(struct vmm_kvm_vcpu *vcpu)
{
	struct kvm_run *run = vcpu->run;
	uint64_t now;

	if (run->mmio.is_write) {
		return;
	}
	memset(run->mmio.data, 0xff, sizeof(run->mmio.data));
	if (vcpu->kvm->accel.env.workload && run->mmio.phys_addr == PAYLOAD_CLOCK_GPA) {
		now = now_ns();
		memcpy(run->mmio.data, &now, sizeof(now));
	}
}

enum vmm_kvm_next vmm_kvm_exit(struct vmm_kvm_vcpu *vcpu, char *why, size_t why_bytes)
{
	struct kvm_run *run = vcpu->run;

	switch (run->exit_reason) {
	case KVM_EXIT_IO:
		do_port(vcpu);
		return VMM_KVM_GO_ON;
	case KVM_EXIT_MMIO:
		do_mmio(vcpu);
		return VMM_KVM_GO_ON;
	case KVM_EXIT_INTR:
	case KVM_EXIT_IRQ_WINDOW_OPEN:
		return VMM_KVM_GO_ON;
	case KVM_EXIT_HLT:
		if (!vcpu->kvm->accel.env.workload) {
			return VMM_KVM_HALT;
		}
		(void)snprintf(why, why_bytes, "vCPU %u halted", vcpu->index);
		return VMM_KVM_END;
	case KVM_EXIT_SHUTDOWN:
		(void)snprintf(why, why_bytes, "vCPU %u shut down (triple fault)", vcpu->index);
		return VMM_KVM_END;
	case KVM_EXIT_FAIL_ENTRY:
		(void)snprintf(why, why_bytes,
			       "vCPU %u: the CPU refuses to enter the guest (%#llx)", vcpu->index,
			       (unsigned long long)run->fail_entry.hardware_entry_failure_reason);
		return VMM_KVM_END;
	case KVM_EXIT_INTERNAL_ERROR:
		(void)snprintf(why, why_bytes, "vCPU %u: KVM cannot go on (suberror %u)",
			       vcpu->index, run->internal.suberror);
		return VMM_KVM_END;
	default:
		(void)snprintf(why, why_bytes, "vCPU %u: KVM exit %u is none of ours", vcpu->index,
			       run->exit_reason);
		return VMM_KVM_END;
	}
}
