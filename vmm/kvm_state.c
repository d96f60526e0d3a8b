/* SPDX-License-Identifier: MIT */
/*
 * A vCPU's state as it travels: KVM's own structures, which are the kernel's stable interface, in
 * one fixed layout. KVM checks every value when it is set.
 */
#include "kvm_vcpu.h"
#include <errno.h>
#include <string.h>
#include <sys/ioctl.h>

/* Model-specific registers that a guest can have set and that are not in kvm_sregs. */
static const uint32_t msr_index[] = {
	0x00000010,					/* TSC */
	0x00000174, 0x00000175, 0x00000176,		/* SYSENTER: cs, esp, eip */
	0x000001a0,					/* MISC_ENABLE */
	0x00000277,					/* PAT */
	0xc0000081, 0xc0000082, 0xc0000083, 0xc0000084, /* STAR, LSTAR, CSTAR, FMASK */
	0xc0000102,					/* KERNEL_GS_BASE */
	0xc0000103,					/* TSC_AUX */
};
enum { MSRS = sizeof(msr_index) / sizeof(msr_index[0]) };

#define STATE_MAGIC UINT64_C(0x3155504356464d56) /* "VMFVCPU1" */

struct vcpu_state {
	uint64_t magic;
	uint32_t bytes;	      /* of this struct */
	uint32_t halted;      /* 0 or 1 */
	uint64_t msr_present; /* bit i: msr[i] is there */
	uint64_t msr[MSRS];
	struct kvm_regs regs;
	struct kvm_sregs sregs;
	struct kvm_fpu fpu;
	struct kvm_xcrs xcrs; /* nr_xcrs 0: the host has none */
	struct kvm_debugregs debugregs;
	struct kvm_vcpu_events events;
	struct kvm_mp_state mp;
};

/* KVM's list of MSRs, with room for one. */
union one_msr {
	struct kvm_msrs list;
	uint8_t room[sizeof(struct kvm_msrs) + sizeof(struct kvm_msr_entry)];
};

static bool get_msr(int fd, uint32_t index, uint64_t *ret_value)
{
	union one_msr m = { .list = { .nmsrs = 1 } };

	m.list.entries[0].index = index;
	m.list.entries[0].reserved = 0;
	if (ioctl(fd, KVM_GET_MSRS, &m) != 1) {
		return false;
	}
	*ret_value = m.list.entries[0].data;
	return true;
}

static bool set_msr(int fd, uint32_t index, uint64_t value)
{
	union one_msr m = { .list = { .nmsrs = 1 } };

	m.list.entries[0].index = index;
	m.list.entries[0].reserved = 0;
	m.list.entries[0].data = value;
	return ioctl(fd, KVM_SET_MSRS, &m) == 1;
}

/* One part of the state: what to call it, and where it is. */
struct part {
	const char *name;
	unsigned long get, set;
	size_t offset;
};

#define PART(name, member, GET, SET)                                \
	{                                                           \
		name, GET, SET, offsetof(struct vcpu_state, member) \
	}
/* In the order in which they must be set: modes before what depends on them. */
static const struct part parts[] = {
	PART("special registers", sregs, KVM_GET_SREGS, KVM_SET_SREGS),
	PART("registers", regs, KVM_GET_REGS, KVM_SET_REGS),
	PART("floating point", fpu, KVM_GET_FPU, KVM_SET_FPU),
	PART("debug registers", debugregs, KVM_GET_DEBUGREGS, KVM_SET_DEBUGREGS),
	PART("events", events, KVM_GET_VCPU_EVENTS, KVM_SET_VCPU_EVENTS),
	PART("run state", mp, KVM_GET_MP_STATE, KVM_SET_MP_STATE),
};

int vmm_kvm_save(struct vmm_kvm_vcpu *vcpu, struct vmm_blob *blob, struct gr_error *err)
{
	struct vcpu_state s;
	int rc = vmm_kvm_vcpu_alive(vcpu, err);

	if (rc < 0) {
		return rc;
	}
	memset(&s, 0, sizeof(s)); /* gaps too */
	s.magic = STATE_MAGIC;
	s.bytes = sizeof(s);
	s.halted = vcpu->halted;
	for (size_t i = 0; i < sizeof(parts) / sizeof(parts[0]); i++) {
		if (ioctl(vcpu->fd, parts[i].get, (char *)&s + parts[i].offset) < 0) {
			return gr_error_set(err, -errno, "KVM: cannot read the %s of vCPU %u: %s",
					    parts[i].name, vcpu->index, strerror(errno));
		}
	}
	if (ioctl(vcpu->fd, KVM_GET_XCRS, &s.xcrs) < 0) {
		memset(&s.xcrs, 0, sizeof(s.xcrs));
	}
	for (unsigned int i = 0; i < MSRS; i++) {
		if (get_msr(vcpu->fd, msr_index[i], &s.msr[i])) {
			s.msr_present |= UINT64_C(1) << i;
		}
	}
	return vmm_blob_put(blob, &s, sizeof(s), err);
}

int vmm_kvm_load(struct vmm_kvm_vcpu *vcpu, const void *data, size_t bytes, struct gr_error *err)
{
	struct vcpu_state s;

	if (bytes != sizeof(s)) {
		return gr_error_set(err, -EBADMSG, "state of vCPU %u: %zu bytes instead of %zu",
				    vcpu->index, bytes, sizeof(s));
	}
	memcpy(&s, data, sizeof(s));
	if (s.magic != STATE_MAGIC || s.bytes != sizeof(s) || s.halted > 1) {
		return gr_error_set(err, -EBADMSG, "state of vCPU %u: not one of a KVM guest",
				    vcpu->index);
	}
	if (s.xcrs.nr_xcrs > 0 && ioctl(vcpu->fd, KVM_SET_XCRS, &s.xcrs) < 0) {
		return gr_error_set(err, -EBADMSG, "KVM refuses the XCRs of vCPU %u: %s",
				    vcpu->index, strerror(errno));
	}
	for (size_t i = 0; i < sizeof(parts) / sizeof(parts[0]); i++) {
		if (ioctl(vcpu->fd, parts[i].set, (char *)&s + parts[i].offset) < 0) {
			return gr_error_set(err, -EBADMSG, "KVM refuses the %s of vCPU %u: %s",
					    parts[i].name, vcpu->index, strerror(errno));
		}
	}
	for (unsigned int i = 0; i < MSRS; i++) {
		if ((s.msr_present >> i & 1) && !set_msr(vcpu->fd, msr_index[i], s.msr[i])) {
			return gr_error_set(err, -EBADMSG, "KVM refuses MSR %#x of vCPU %u",
					    msr_index[i], vcpu->index);
		}
	}
	vcpu->halted = s.halted;
	return 0;
}

void vmm_kvm_describe(struct vmm_kvm_vcpu *vcpu,
		      void (*emit)(void *opaque, const char *name, uint64_t value), void *opaque)
{
	struct kvm_regs r;
	struct kvm_sregs s;

	if (ioctl(vcpu->fd, KVM_GET_REGS, &r) < 0 || ioctl(vcpu->fd, KVM_GET_SREGS, &s) < 0) {
		return;
	}
	const struct {
		const char *name;
		uint64_t value;
	} list[] = {
		{ "rip", r.rip },	 { "rflags", r.rflags },  { "rax", r.rax },
		{ "rbx", r.rbx },	 { "rcx", r.rcx },	  { "rdx", r.rdx },
		{ "rsi", r.rsi },	 { "rdi", r.rdi },	  { "rbp", r.rbp },
		{ "rsp", r.rsp },	 { "r8", r.r8 },	  { "r9", r.r9 },
		{ "r10", r.r10 },	 { "r11", r.r11 },	  { "r12", r.r12 },
		{ "r13", r.r13 },	 { "r14", r.r14 },	  { "r15", r.r15 },
		{ "cs", s.cs.selector }, { "ds", s.ds.selector }, { "es", s.es.selector },
		{ "fs", s.fs.selector }, { "gs", s.gs.selector }, { "ss", s.ss.selector },
		{ "cr0", s.cr0 },	 { "cr2", s.cr2 },	  { "cr3", s.cr3 },
		{ "cr4", s.cr4 },	 { "efer", s.efer },
	};
	for (size_t i = 0; i < sizeof(list) / sizeof(list[0]); i++) {
		emit(opaque, list[i].name, list[i].value);
	}
	emit(opaque, "halted", vcpu->halted);
}
