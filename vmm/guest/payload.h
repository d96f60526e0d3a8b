/* SPDX-License-Identifier: MIT */
/*
 * What the KVM guest's code (workload.S) and the monitor (kvm_payload.c) agree on. Only macros:
 * the assembler reads it too. kvm_payload.c asserts what must equal workload.h.
 *
 * The accelerator's own system pages:
 *
 *     8        the code
 *     9        page tables: the root
 *     10       page tables: 512 entries of 1 GiB each
 *     11..30   page tables: one page for each GiB, 2 MiB entries, identity; the first
 *              4 GiB (RAM and the clock), then PAYLOAD_PLUG_GIB for plugged blocks
 *     47..60   two pages for each vCPU: its counters of plug operations
 *     61       one mailbox of MAILBOX_BYTES for each vCPU
 *
 * Registers, while the guest runs:
 *
 *     r15  number of the main operation in progress or next
 *     r14  0, or the plug table's entry in progress + 1
 *     r13  whose words rdi counts: the main operation's number while r14 is 0, else the
 *          value of the entry's counter; anything else means that no word is done
 *     r8   where the segment begins
 *     rdi  where the next word goes: words done are (rdi - r8) / 8
 *     rbp  the vCPU's mailbox
 *     r12  operations left of what the pacer gave; rbx until the next heartbeat
 *
 * Words are stored by STOSQ, which stores and counts in one instruction, and an operation ends
 * with the one INC that makes r13 another number: so at every instruction boundary these
 * registers, and the counters in memory, say exactly which words have been stored.
 */
#ifndef VMM_GUEST_PAYLOAD_H
#define VMM_GUEST_PAYLOAD_H

#define PAYLOAD_CODE_PAGE	8
#define PAYLOAD_PML4_PAGE	9
#define PAYLOAD_PDPT_PAGE	10
#define PAYLOAD_PD_PAGE		11
#define PAYLOAD_LOW_GIB		4
#define PAYLOAD_PLUG_GIB	16
#define PAYLOAD_COUNTERS_PAGE	47
#define PAYLOAD_MAILBOX_PAGE	61

/* IN gives how many operations may be done now: 0 means look at the clock and ask again. */
#define PAYLOAD_PACE_PORT	0x510
/* Eight bytes at this address read as CLOCK_MONOTONIC in ns. No memory is there. */
#define PAYLOAD_CLOCK_GPA	0xf0000000
/* Main operations between two looks at the clock. */
#define PAYLOAD_BEAT_OPS	128

/* From workload.h. */
#define PAYLOAD_HEARTBEAT_GPA	0x2000
#define PAYLOAD_PLUG_RANGE_GPA	0x3000
#define PAYLOAD_PLUG_TABLE_GPA	0x4000
#define PAYLOAD_SYSTEM_PAGES	64
#define PAYLOAD_GROUP_PAGES	16
#define PAYLOAD_GROUP_SHIFT	4
#define PAYLOAD_GROUP_SPAN	48
#define PAYLOAD_PLUG_EVERY	8
#define PAYLOAD_PLUG_BASE_GPA	0x100000000
#define PAYLOAD_MIX_OP		0x9e3779b97f4a7c15
#define PAYLOAD_MIX_PAGE	0xc2b2ae3d27d4eb4f
#define PAYLOAD_STEP		0xd6e8feb86659fd93

/* Offsets in a vCPU's mailbox, 8 bytes each; struct payload_mailbox. */
#define MAILBOX_HOT_PAGES	0x00
#define MAILBOX_HOT_START	0x08
#define MAILBOX_ONCE_PAGES	0x10
#define MAILBOX_ONCE_EVERY	0x18
#define MAILBOX_ONCE_STRIDE	0x20
#define MAILBOX_FILL_OPS	0x28
#define MAILBOX_WRITERS		0x30
#define MAILBOX_WRITER		0x38
#define MAILBOX_MIX_WRITER	0x40
#define MAILBOX_SEGMENT_OFFSET	0x48
#define MAILBOX_SEGMENT_WORDS	0x50
#define MAILBOX_COUNTERS	0x58
#define MAILBOX_BEATS		0x60
#define MAILBOX_PLUG_END	0x68
#define MAILBOX_PLUG_CURSOR	0x70
#define MAILBOX_BYTES		0x80

#endif
