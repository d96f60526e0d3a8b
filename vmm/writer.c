/* SPDX-License-Identifier: MIT */
#include "writer.h"

#if defined(__has_feature)
#	if __has_feature(thread_sanitizer)
#		define NO_TSAN __attribute__((no_sanitize("thread"), noinline))
#	endif
#elif defined(__SANITIZE_THREAD__)
#	define NO_TSAN __attribute__((no_sanitize_thread, noinline))
#endif
#ifndef NO_TSAN
#	define NO_TSAN
#endif

NO_TSAN void vmm_guest_store(void *host, uint64_t value, uint32_t words)
{
	volatile uint64_t *word = host;

	for (uint32_t k = 0; k < words; k++, value += VMM_STEP) {
		word[k] = value;
	}
}

NO_TSAN void vmm_guest_copy(void *host, const uint64_t *words, uint32_t count)
{
	volatile uint64_t *to = host;

	for (uint32_t k = 0; k < count; k++) {
		to[k] = words[k];
	}
}

NO_TSAN void vmm_guest_load(const void *host, uint64_t *words, uint32_t count)
{
	const volatile uint64_t *from = host;

	for (uint32_t k = 0; k < count; k++) {
		words[k] = from[k];
	}
}

/* Read a few words of a system page: they are in the main RAM, which never goes. */
static bool load_system(const struct vmm_writer *writer, uint64_t gpa, uint64_t *words,
			uint32_t count)
{
	GR_RCU_READ_GUARD();
	uint64_t offset, bytes;
	struct gr_ram_block *block =
		gr_ram_block_by_gpa_rcu(writer->ram, gr_gpa(gpa), &offset, &bytes);

	if (!block || bytes < 8 * (uint64_t)count) {
		return false;
	}
	vmm_guest_load(block->host + offset, words, count);
	return true;
}

static bool load_plug(const struct vmm_writer *writer, uint32_t entry, struct vmm_plug *ret_plug)
{
	uint64_t words[2];

	if (!load_system(writer, VMM_PLUG_TABLE_GPA + entry * sizeof(struct vmm_plug), words, 2) ||
	    words[1] == 0) {
		return false;
	}
	ret_plug->gpa = words[0];
	ret_plug->pages = words[1];
	return true;
}

/* The live entry whose turn it is; 0 if there is none, else entry + 1. */
static uint32_t choose_plug(struct vmm_writer *writer)
{
	uint64_t range[2]; /* first, end */
	struct vmm_plug plug;

	if (!load_system(writer, VMM_PLUG_RANGE_GPA, range, 2) || range[1] > VMM_PLUGS_MAX ||
	    range[0] >= range[1]) {
		return 0;
	}
	for (uint64_t tries = range[1] - range[0]; tries > 0; tries--) {
		uint32_t entry = writer->plug_turn;

		if (entry < range[0] || entry >= range[1]) {
			entry = (uint32_t)range[0];
		}
		writer->plug_turn = entry + 1;
		if (load_plug(writer, entry, &plug)) {
			return entry + 1;
		}
	}
	return 0;
}

void vmm_writer_op(const struct vmm_writer *writer, struct vmm_writer_op *ret_op)
{
	const struct vmm_writer_regs *regs = &writer->regs;
	const struct vmm_workload *wl = writer->wl;
	uint64_t first = vmm_segment_first(wl->writers, writer->number), op = regs->op, pfn;

	ret_op->words = 0;
	if (regs->plug_entry != 0) {
		uint32_t entry = regs->plug_entry - 1;
		struct vmm_plug plug;

		if (!load_plug(writer, entry, &plug)) {
			return; /* unplugged meanwhile */
		}
		op = regs->plug_ops[entry];
		pfn = plug.gpa / VMM_PAGE_BYTES + op % plug.pages;
	} else if (!vmm_workload_page(wl, writer->number, op, &pfn)) {
		return;
	}
	ret_op->words = vmm_segment_words(wl->writers, writer->number) - regs->words_done;
	ret_op->gpa = pfn * VMM_PAGE_BYTES + 8 * (first + regs->words_done);
	ret_op->value =
		vmm_value_after(vmm_workload_base(writer->number, pfn, op), regs->words_done);
}

void vmm_writer_progress(struct vmm_writer *writer, uint32_t words)
{
	writer->regs.words_done += words;
}

bool vmm_writer_finish(struct vmm_writer *writer)
{
	struct vmm_writer_regs *regs = &writer->regs;

	regs->words_done = 0;
	if (regs->plug_entry != 0) {
		regs->plug_ops[regs->plug_entry - 1]++;
		regs->plug_entry = 0;
		return false;
	}
	regs->op++;
	if (regs->op % VMM_PLUG_EVERY == 0) {
		regs->plug_entry = choose_plug(writer);
	}
	return true;
}
