/* SPDX-License-Identifier: MIT */
/*
 * The KVM guest: the workload of vmm/workload.h as 64-bit code. It is data to the monitor, which
 * copies it to page PAYLOAD_CODE_PAGE of the guest and starts every vCPU at its first byte
 * with the registers of payload.h. It uses no stack, no interrupts and no address of its
 * own; an exception ends the guest.
 */
#include "payload.h"

	.intel_syntax noprefix
	.section .rodata.vmm_guest_payload, "a", @progbits
	.globl vmm_guest_payload
	.hidden vmm_guest_payload
	.globl vmm_guest_payload_end
	.hidden vmm_guest_payload_end
	.balign 16
	.code64

/* rax = the first value of the segment: operation r10 on page rsi. Changes rcx, rdx. */
.macro base_value
	lea	rax, [r10 + 1]
	movabs	rcx, PAYLOAD_MIX_OP
	imul	rax, rcx
	movabs	rdx, PAYLOAD_MIX_PAGE
	imul	rdx, rsi
	add	rax, rdx
	add	rax, [rbp + MAILBOX_MIX_WRITER]
	mov	rdx, rax
	shr	rdx, 32
	xor	rax, rdx
	imul	rax, rcx
	rol	rax, 29
	or	rax, 1
.endm

/*
 * Store the segment of page rsi; r10 is the operation's number, and what r13 becomes when
 * rdi begins to count. Changes rax, rcx, rdx.
 */
.macro store_segment
	base_value
	mov	r8, rsi
	shl	r8, 12
	add	r8, [rbp + MAILBOX_SEGMENT_OFFSET]
	mov	rdi, r8
	mov	ecx, [rbp + MAILBOX_SEGMENT_WORDS]
	movabs	rdx, PAYLOAD_STEP
	mov	r13, r10
.Lword\@:
	stosq
	add	rax, rdx
	dec	ecx
	jnz	.Lword\@
.endm

/* Look at the clock, as vmm_heartbeat_beat() does. Changes rax, rcx, rdx, rsi. */
.macro heartbeat
	mov	esi, PAYLOAD_CLOCK_GPA
	mov	rax, [rsi]
	mov	rcx, [PAYLOAD_HEARTBEAT_GPA]
	cmp	qword ptr [PAYLOAD_HEARTBEAT_GPA + 24], 0
	je	.Lseen\@
	mov	rdx, rax
	sub	rdx, rcx
	cmp	rdx, [PAYLOAD_HEARTBEAT_GPA + 8]
	jbe	.Lseen\@
	mov	[PAYLOAD_HEARTBEAT_GPA + 8], rdx
	mov	[PAYLOAD_HEARTBEAT_GPA + 16], rcx
.Lseen\@:
	mov	[PAYLOAD_HEARTBEAT_GPA], rax
	inc	qword ptr [PAYLOAD_HEARTBEAT_GPA + 24]
.endm

vmm_guest_payload:
take:
	cmp	qword ptr [rbp + MAILBOX_BEATS], 0
	je	ask
	heartbeat
ask:
	mov	ebx, PAYLOAD_BEAT_OPS
	mov	edx, PAYLOAD_PACE_PORT
	in	eax, dx
	test	eax, eax
	jz	take
	mov	r12d, eax

operation:
	dec	ebx
	jnz	which_page
	mov	ebx, PAYLOAD_BEAT_OPS
	cmp	qword ptr [rbp + MAILBOX_BEATS], 0
	je	which_page
	heartbeat

which_page:
	mov	rax, r15
	mov	rcx, r15
	sub	rcx, [rbp + MAILBOX_FILL_OPS]
	jb	hot
	mov	rax, rcx
	xor	edx, edx
	div	qword ptr [rbp + MAILBOX_ONCE_EVERY]	/* rax = q, rdx = j % K */
	inc	rdx
	cmp	rdx, [rbp + MAILBOX_ONCE_EVERY]
	je	once
	mov	rcx, r15
	sub	rcx, rax
	mov	rax, rcx
hot:	/* hot page number rax */
	add	rax, [rbp + MAILBOX_HOT_START]
	xor	edx, edx
	div	qword ptr [rbp + MAILBOX_HOT_PAGES]
	xor	ecx, ecx
	jmp	store
once:	/* once page number rax */
	cmp	rax, [rbp + MAILBOX_ONCE_PAGES]
	jae	nothing
	imul	rax, [rbp + MAILBOX_WRITERS]
	add	rax, [rbp + MAILBOX_WRITER]
	cmp	rax, [rbp + MAILBOX_ONCE_PAGES]
	jae	nothing
	imul	rax, [rbp + MAILBOX_ONCE_STRIDE]
	xor	edx, edx
	div	qword ptr [rbp + MAILBOX_ONCE_PAGES]
	mov	ecx, PAYLOAD_GROUP_PAGES
store:	/* index rdx of its kind, which begins at page rcx of each group */
	mov	rax, rdx
	shr	rax, PAYLOAD_GROUP_SHIFT
	imul	rax, rax, PAYLOAD_GROUP_SPAN
	and	edx, PAYLOAD_GROUP_PAGES - 1
	add	rax, rdx
	lea	rsi, [rax + rcx + PAYLOAD_SYSTEM_PAGES]
	mov	r10, r15
	store_segment
nothing:
	inc	r15			/* the operation is done: r13 is another number */
	test	r15d, PAYLOAD_PLUG_EVERY - 1
	jnz	done

	mov	r9, [PAYLOAD_PLUG_RANGE_GPA]
	mov	r11, [PAYLOAD_PLUG_RANGE_GPA + 8]
	mov	rcx, r11
	sub	rcx, r9
	jbe	done
	mov	rsi, [rbp + MAILBOX_PLUG_CURSOR]
look:	/* the next live entry of [r9, r11) after the cursor rsi, in turn */
	inc	rsi
	cmp	rsi, r9
	jb	wrap
	cmp	rsi, r11
	jb	entry
wrap:
	mov	rsi, r9
entry:
	mov	rax, rsi
	shl	rax, 4
	mov	r10, [rax + PAYLOAD_PLUG_TABLE_GPA + 8]	/* pages, written after gpa */
	mov	rdx, [rax + PAYLOAD_PLUG_TABLE_GPA]
	test	r10, r10
	jz	next_entry
	mov	rax, r10
	shl	rax, 12
	add	rax, rdx
	cmp	rax, [rbp + MAILBOX_PLUG_END]
	jbe	plugged
next_entry:
	dec	rcx
	jnz	look
	jmp	done

plugged: /* entry rsi: r10 pages at rdx */
	mov	[rbp + MAILBOX_PLUG_CURSOR], rsi
	mov	r13, -1
	lea	r14, [rsi + 1]
	mov	r11, [rbp + MAILBOX_COUNTERS]
	lea	r11, [r11 + rsi * 8]
	mov	rsi, rdx
	shr	rsi, 12
	mov	r9, r10
	mov	r10, [r11]
	mov	rax, r10
	xor	edx, edx
	div	r9
	add	rsi, rdx
	store_segment
	inc	qword ptr [r11]		/* the operation is done: r13 is another number */
	mov	r13, -1
	xor	r14d, r14d
done:
	dec	r12
	jnz	operation
	jmp	take
vmm_guest_payload_end:

	.section .note.GNU-stack, "", @progbits
