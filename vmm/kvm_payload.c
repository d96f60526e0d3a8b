/* SPDX-License-Identifier: MIT */
#include "kvm_payload.h"
#include "guest/payload.h"
#include "guest/segments.h"
#include <assert.h>
#include <errno.h>
#include <string.h>

/* guest/workload.S */
extern const uint8_t vmm_guest_payload[];
extern const uint8_t vmm_guest_payload_end[];

struct payload_mailbox {
	uint64_t hot_pages, hot_start;
	uint64_t once_pages, once_every, once_stride;
	uint64_t fill_ops;
	uint64_t writers, writer;
	uint64_t mix_writer;
	uint64_t segment_offset, segment_words;
	uint64_t counters;
	uint64_t beats;
	uint64_t plug_end;
	uint64_t plug_cursor;
	uint64_t unused;
};

#define AT(member, offset) static_assert(offsetof(struct payload_mailbox, member) == (offset), "")
AT(hot_pages, MAILBOX_HOT_PAGES);
AT(hot_start, MAILBOX_HOT_START);
AT(once_pages, MAILBOX_ONCE_PAGES);
AT(once_every, MAILBOX_ONCE_EVERY);
AT(once_stride, MAILBOX_ONCE_STRIDE);
AT(fill_ops, MAILBOX_FILL_OPS);
AT(writers, MAILBOX_WRITERS);
AT(writer, MAILBOX_WRITER);
AT(mix_writer, MAILBOX_MIX_WRITER);
AT(segment_offset, MAILBOX_SEGMENT_OFFSET);
AT(segment_words, MAILBOX_SEGMENT_WORDS);
AT(counters, MAILBOX_COUNTERS);
AT(beats, MAILBOX_BEATS);
AT(plug_end, MAILBOX_PLUG_END);
AT(plug_cursor, MAILBOX_PLUG_CURSOR);
static_assert(sizeof(struct payload_mailbox) == MAILBOX_BYTES, "");

static_assert(PAYLOAD_CODE_PAGE * VMM_PAGE_BYTES == VMM_ACCEL_GPA, "");
static_assert(PAYLOAD_HEARTBEAT_GPA == VMM_HEARTBEAT_GPA, "");
static_assert(PAYLOAD_PLUG_RANGE_GPA == VMM_PLUG_RANGE_GPA, "");
static_assert(PAYLOAD_PLUG_TABLE_GPA == VMM_PLUG_TABLE_GPA, "");
static_assert(PAYLOAD_SYSTEM_PAGES == VMM_SYSTEM_PAGES, "");
static_assert(PAYLOAD_GROUP_PAGES == VMM_GROUP_PAGES, "");
static_assert(1 << PAYLOAD_GROUP_SHIFT == VMM_GROUP_PAGES, "");
static_assert(PAYLOAD_GROUP_SPAN == 3 * VMM_GROUP_PAGES, "");
static_assert(PAYLOAD_PLUG_EVERY == VMM_PLUG_EVERY, "");
static_assert(PAYLOAD_PLUG_BASE_GPA == VMM_PLUG_GPA_BASE, "");
static_assert(PAYLOAD_MIX_OP == VMM_MIX_OP, "");
static_assert(PAYLOAD_MIX_PAGE == VMM_MIX_PAGE, "");
static_assert(PAYLOAD_STEP == VMM_STEP, "");
static_assert(sizeof(struct vmm_plug) == 16 && offsetof(struct vmm_plug, pages) == 8, "");

enum {
	COUNTERS_BYTES = VMM_PLUGS_MAX * 8,
	COUNTERS_PAGES = COUNTERS_BYTES / VMM_PAGE_BYTES,
	GIB_PAGES = PAYLOAD_LOW_GIB + PAYLOAD_PLUG_GIB,
	TABLE_ENTRIES = 512,
	/* of a page table's entry: present, writable, accessed, dirty, a 2 MiB page */
	PTE_TABLE = 0x23,
	PTE_LARGE = 0xe3,
};
static_assert(PAYLOAD_PD_PAGE + GIB_PAGES <= PAYLOAD_COUNTERS_PAGE, "");
static_assert(PAYLOAD_COUNTERS_PAGE + (VMM_WRITERS_MAX - 1) * COUNTERS_PAGES <=
		      PAYLOAD_MAILBOX_PAGE,
	      "");
static_assert(PAYLOAD_MAILBOX_PAGE < VMM_SYSTEM_PAGES, "");
#define PLUG_END (VMM_PLUG_GPA_BASE + ((uint64_t)PAYLOAD_PLUG_GIB << 30))
static_assert(PLUG_END == VMM_PLUG_GPA_END, "");

static uint64_t page_gpa(uint64_t page)
{
	return page * VMM_PAGE_BYTES;
}

static uint64_t counters_gpa(unsigned int v)
{
	return page_gpa(PAYLOAD_COUNTERS_PAGE + v * COUNTERS_PAGES);
}

static uint64_t mailbox_gpa(unsigned int v)
{
	return page_gpa(PAYLOAD_MAILBOX_PAGE) + v * MAILBOX_BYTES;
}

/* Identity, with the accessed and dirty bits set: the CPU never writes these pages. */
static int write_tables(struct gr_ram *ram, struct gr_error *err)
{
	uint64_t table[TABLE_ENTRIES] = { page_gpa(PAYLOAD_PDPT_PAGE) | PTE_TABLE };
	int rc = gr_ram_write(ram, gr_gpa(page_gpa(PAYLOAD_PML4_PAGE)), table, sizeof(table), err);

	memset(table, 0, sizeof(table));
	for (unsigned int g = 0; g < GIB_PAGES; g++) {
		table[g] = page_gpa(PAYLOAD_PD_PAGE + g) | PTE_TABLE;
	}
	if (rc == 0) {
		rc = gr_ram_write(ram, gr_gpa(page_gpa(PAYLOAD_PDPT_PAGE)), table, sizeof(table),
				  err);
	}
	for (unsigned int g = 0; rc == 0 && g < GIB_PAGES; g++) {
		for (unsigned int i = 0; i < TABLE_ENTRIES; i++) {
			table[i] = ((uint64_t)g << 30 | (uint64_t)i << 21) | PTE_LARGE;
		}
		rc = gr_ram_write(ram, gr_gpa(page_gpa(PAYLOAD_PD_PAGE + g)), table, sizeof(table),
				  err);
	}
	return rc;
}

static int write_mailbox(struct gr_ram *ram, const struct vmm_workload *wl, unsigned int v,
			 struct gr_error *err)
{
	struct payload_mailbox box = {
		.hot_pages = wl->hot_pages,
		.hot_start = v * wl->hot_pages / wl->writers,
		.once_pages = wl->once_pages,
		.once_every = wl->once_every,
		.once_stride = wl->once_stride,
		.fill_ops = wl->fill_ops,
		.writers = wl->writers,
		.writer = v,
		.mix_writer = (v + 1) * VMM_MIX_WRITER,
		.segment_offset = vmm_segment_first(wl->writers, v) * UINT64_C(8),
		.segment_words = vmm_segment_words(wl->writers, v),
		.counters = counters_gpa(v),
		.beats = v == 0, /* one clock page, one writer */
		.plug_end = PLUG_END,
		.plug_cursor = UINT64_MAX, /* the next one is the first */
	};

	return gr_ram_write(ram, gr_gpa(mailbox_gpa(v)), &box, sizeof(box), err);
}

int vmm_payload_install(struct gr_ram *ram, const struct vmm_workload *wl, unsigned int vcpus,
			struct gr_error *err)
{
	size_t bytes = (size_t)(vmm_guest_payload_end - vmm_guest_payload);
	int rc = gr_ram_write(ram, gr_gpa(VMM_ACCEL_GPA), vmm_guest_payload, bytes, err);

	if (rc == 0) {
		rc = write_tables(ram, err);
	}
	for (unsigned int v = 0; rc == 0 && v < vcpus; v++) {
		rc = write_mailbox(ram, wl, v, err);
	}
	return rc;
}

void vmm_payload_registers(unsigned int v, struct kvm_regs *regs, struct kvm_sregs *sregs)
{
	*regs = (struct kvm_regs){
		.rip = VMM_ACCEL_GPA,
		.rflags = 2,
		.rbp = mailbox_gpa(v),
		.r13 = UINT64_MAX, /* no word of operation 0 is done */
	};
	guest_flat_segments(sregs);
	sregs->cs.db = 0;
	sregs->cs.l = 1;
	sregs->idt.limit = 0;	 /* an exception is the end */
	sregs->cr0 = 0x80000033; /* PG, NE, ET, MP, PE */
	sregs->cr3 = page_gpa(PAYLOAD_PML4_PAGE);
	sregs->cr4 = 0x20;   /* PAE */
	sregs->efer = 0x500; /* LMA, LME */
}

int vmm_payload_decode(struct gr_ram *ram, const struct vmm_workload *wl, unsigned int v,
		       const struct kvm_regs *regs, struct vmm_writer_regs *ret_regs,
		       struct gr_error *err)
{
	uint64_t words = 0;
	uint64_t tag = regs->r15;
	int rc = gr_ram_read(ram, gr_gpa(counters_gpa(v)), ret_regs->plug_ops, COUNTERS_BYTES, err);

	if (rc < 0) {
		return rc;
	}
	if (regs->r14 > VMM_PLUGS_MAX) {
		return gr_error_set(err, -EBADMSG, "vCPU %u works on plug entry %llu of %d", v,
				    (unsigned long long)regs->r14 - 1, VMM_PLUGS_MAX);
	}
	if (regs->r14 > 0) {
		tag = ret_regs->plug_ops[regs->r14 - 1];
	}
	if (regs->r13 == tag) {
		words = (regs->rdi - regs->r8) / 8;
	}
	if (words > vmm_segment_words(wl->writers, v)) {
		return gr_error_set(err, -EBADMSG, "vCPU %u has done %llu words of %u", v,
				    (unsigned long long)words, vmm_segment_words(wl->writers, v));
	}
	ret_regs->op = regs->r15;
	ret_regs->plug_entry = (uint32_t)regs->r14;
	ret_regs->words_done = (uint32_t)words;
	return 0;
}
