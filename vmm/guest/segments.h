/* SPDX-License-Identifier: MIT */
/* The segments of a vCPU that sees all of its memory flat: for every guest of KVM in this tree. */
#ifndef GUEST_SEGMENTS_H
#define GUEST_SEGMENTS_H

#include <linux/kvm.h>
#include <stdint.h>

/* 32-bit protected mode; the rest of the registers stays. For 64-bit code: cs.db = 0, cs.l = 1. */
static inline void guest_flat_segments(struct kvm_sregs *s)
{
	const struct kvm_segment data = { .limit = UINT32_MAX,
					  .selector = 16,
					  .type = 3,
					  .present = 1,
					  .db = 1,
					  .s = 1,
					  .g = 1 };

	s->cr0 |= 1;
	s->cs = data;
	s->cs.selector = 8;
	s->cs.type = 11;
	s->ds = s->es = s->fs = s->gs = s->ss = data;
}

#endif
