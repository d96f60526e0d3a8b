/* SPDX-License-Identifier: MIT */
#include "check.h"
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

/* The operation that wrote (or is writing) a writer's segment of a page last. */
struct last {
	bool any;
	uint64_t op;
	/* the one in progress, if it is on this page: so many of its words are there */
	uint32_t words_new;
	uint64_t op_new;
};

/* A page of the plug table's entry, or of the main RAM (entry < 0). */
struct place {
	uint64_t pfn;
	int entry;
	uint64_t page; /* within the entry */
};

static void find_last(const struct vmm_check_input *in, const struct place *place, unsigned int w,
		      struct last *ret)
{
	const struct vmm_writer_regs *regs = &in->regs[w];
	uint64_t pfn;

	*ret = (struct last){ 0 };
	if (place->entry >= 0) {
		uint64_t pages = in->plugs[place->entry].pages;
		uint64_t ops = regs->plug_ops[place->entry];

		ret->any = vmm_plug_last_op(pages, place->page, ops, &ret->op);
		if (regs->plug_entry == (uint32_t)place->entry + 1 && ops % pages == place->page) {
			ret->words_new = regs->words_done;
			ret->op_new = ops;
		}
		return;
	}
	ret->any = vmm_workload_last_op(in->wl, w, place->pfn, regs->op, &ret->op);
	if (regs->plug_entry == 0 && regs->words_done > 0 &&
	    vmm_workload_page(in->wl, w, regs->op, &pfn) && pfn == place->pfn) {
		ret->words_new = regs->words_done;
		ret->op_new = regs->op;
	}
}

static void fill(uint64_t *words, uint64_t value, uint32_t count)
{
	for (uint32_t k = 0; k < count; k++, value += VMM_STEP) {
		words[k] = value;
	}
}

/* What the page must be. Returns whether anybody ever wrote it. */
static bool expect_page(const struct vmm_check_input *in, const struct place *place,
			uint64_t *words, bool *ret_by_device)
{
	uint64_t writers = in->wl->writers;
	bool written = false;

	*ret_by_device = false;
	memset(words, 0, VMM_PAGE_BYTES);
	for (unsigned int w = 0; w < writers; w++) {
		uint64_t *segment = words + vmm_segment_first(writers, w);
		struct last last;

		find_last(in, place, w, &last);
		if (last.any) {
			fill(segment, vmm_workload_base(w, place->pfn, last.op),
			     vmm_segment_words(writers, w));
		}
		if (last.words_new > 0) {
			fill(segment, vmm_workload_base(w, place->pfn, last.op_new),
			     last.words_new);
		}
		written = written || last.any || last.words_new > 0;
		*ret_by_device = w == writers - 1 && (last.any || last.words_new > 0);
	}
	return written;
}

/* Say which word it is; `found` may be NULL: nothing is there. */
static void report(const struct vmm_check_input *in, const struct place *place,
		   const uint64_t *words, const uint64_t *found, struct vmm_check *check)
{
	struct vmm_wrong_word *wrong = &check->first_wrong;
	uint64_t writers = in->wl->writers;
	struct last last;
	uint32_t k = 0;

	if (check->pages_wrong++ > 0) {
		return;
	}
	while (found && k < VMM_PAGE_WORDS - 1 && words[k] == found[k]) {
		k++;
	}
	*wrong = (struct vmm_wrong_word){
		.gpa = place->pfn * VMM_PAGE_BYTES + 8 * (uint64_t)k,
		.expected = words[k],
		.found = found ? found[k] : 0,
		.missing = !found,
	};
	while (vmm_segment_first(writers, wrong->writer + 1) <= k) {
		wrong->writer++;
	}
	find_last(in, place, (unsigned int)wrong->writer, &last);
	wrong->written = last.any;
	wrong->last_op = last.op;
	if (k - vmm_segment_first(writers, wrong->writer) < last.words_new) {
		wrong->written = true;
		wrong->last_op = last.op_new;
	}
}

/* A once page: written by now, and before the final round? Its one writer tells. */
static void count_once(const struct vmm_check_input *in, uint64_t pfn, struct vmm_check *check)
{
	uint64_t op;

	for (unsigned int w = 0; w < in->wl->writers && vmm_workload_is_once(in->wl, pfn); w++) {
		if (!vmm_workload_last_op(in->wl, w, pfn, in->regs[w].op, &op)) {
			continue;
		}
		check->pages_written_once++;
		if (in->ops_before_final && op < in->ops_before_final[w]) {
			check->pages_last_written_before_final_round++;
		}
	}
}

static void check_page(const struct vmm_check_input *in, const struct place *place,
		       const uint8_t *host, struct vmm_check *check)
{
	uint64_t words[VMM_PAGE_WORDS];
	bool by_device = false;

	if (place->entry < 0 && place->pfn < VMM_SYSTEM_PAGES) {
		check->pages_checked++;
		if (!in->system_digests ||
		    in->system_digests[place->pfn] == vmm_page_digest(host)) {
			return;
		}
		if (check->pages_wrong++ == 0) {
			check->first_wrong = (struct vmm_wrong_word){
				.gpa = place->pfn * VMM_PAGE_BYTES,
				.expected = in->system_digests[place->pfn],
				.found = vmm_page_digest(host),
				.system = true,
			};
		}
		return;
	}
	if (expect_page(in, place, words, &by_device) && place->entry < 0) {
		count_once(in, place->pfn, check);
	}
	check->device_pages_checked += by_device;
	if (place->entry < 0) {
		check->pages_checked++;
	} else {
		check->plugged_pages_checked++;
	}
	if (memcmp(words, host, VMM_PAGE_BYTES) != 0) {
		report(in, place, words, (const uint64_t *)(const void *)host, check);
	}
}

/* Bytes of a block that are known to be all there, or all not. */
struct extent {
	uint64_t begin, end;
	bool hole;
};

/*
 * Whether a byte of a block lies in a hole of the file behind it. A hole is zero, and asking
 * does not fill it, as a look at it would.
 */
static bool in_hole(const struct gr_ram_block *block, uint64_t offset, struct extent *extent)
{
	off_t at, next;

	if (block->fd < 0) {
		return false;
	}
	if (offset >= extent->begin && offset < extent->end) {
		return extent->hole;
	}
	at = (off_t)(block->fd_offset + offset);
	next = lseek(block->fd, at, SEEK_DATA);
	extent->hole = next > at || (next < 0 && errno == ENXIO);
	if (!extent->hole && next == at) {
		next = lseek(block->fd, at, SEEK_HOLE);
	}
	extent->begin = offset;
	extent->end = next > at	     ? offset + (uint64_t)(next - at)
		      : extent->hole ? UINT64_MAX
				     : offset + 1; /* the system does not say */
	return extent->hole;
}

/*
 * Check pages of guest memory, block by block. A block is kept by a reference, so that no
 * read-side section lasts as long as a check.
 */
static void check_range(const struct vmm_check_input *in, struct place place, uint64_t pages,
			struct vmm_check *check)
{
	static const uint64_t nothing[VMM_PAGE_WORDS];

	while (pages > 0) {
		struct extent extent = { 0 };
		uint64_t offset = 0, bytes = 0, run;
		struct gr_ram_block *block;

		gr_rcu_read_lock();
		block = gr_ram_block_by_gpa_rcu(in->ram, gr_gpa(place.pfn * VMM_PAGE_BYTES),
						&offset, &bytes);
		if (block) {
			gr_ram_block_get(block);
		}
		gr_rcu_read_unlock();
		run = bytes / VMM_PAGE_BYTES < pages ? bytes / VMM_PAGE_BYTES : pages;
		if (!block || run == 0) {
			report(in, &place, nothing, NULL, check);
			run = 1;
			place.pfn++;
			place.page++;
			bytes = 0;
		}
		for (uint64_t p = 0; bytes > 0 && p < run; p++, place.pfn++, place.page++) {
			uint64_t at = offset + p * VMM_PAGE_BYTES;

			check_page(in, &place,
				   in_hole(block, at, &extent) ? (const uint8_t *)nothing
							       : block->host + at,
				   check);
		}
		gr_ram_block_put(block);
		pages -= run;
	}
}

void vmm_check_memory(const struct vmm_check_input *in, struct vmm_check *ret)
{
	*ret = (struct vmm_check){ 0 };
	check_range(in, (struct place){ .pfn = 0, .entry = -1 }, in->wl->ram_pages, ret);
	for (int e = 0; e < VMM_PLUGS_MAX; e++) {
		if (in->plugs[e].pages > 0) {
			check_range(in,
				    (struct place){ .pfn = in->plugs[e].gpa / VMM_PAGE_BYTES,
						    .entry = e },
				    in->plugs[e].pages, ret);
		}
	}
}

void vmm_check_describe(const struct vmm_check *check, char *buf, size_t bytes)
{
	const struct vmm_wrong_word *wrong = &check->first_wrong;
	char last[64] = "nobody ever wrote it";

	if (check->pages_wrong == 0) {
		(void)snprintf(buf, bytes, "every word is right");
		return;
	}
	if (wrong->missing) {
		(void)snprintf(buf, bytes, "%#" PRIx64 ": nothing is mapped there", wrong->gpa);
		return;
	}
	if (wrong->system) {
		(void)snprintf(buf, bytes,
			       "page %#" PRIx64 ": digest %#" PRIx64 ", found %#" PRIx64,
			       wrong->gpa, wrong->expected, wrong->found);
		return;
	}
	if (wrong->written) {
		(void)snprintf(last, sizeof(last), "last written by operation %" PRIu64,
			       wrong->last_op);
	}
	(void)snprintf(buf, bytes,
		       "%#" PRIx64 ": expected %#" PRIx64 ", found %#" PRIx64 " (writer %" PRIu64
		       ", %s)",
		       wrong->gpa, wrong->expected, wrong->found, wrong->writer, last);
}

uint64_t vmm_page_digest(const void *page)
{
	const uint64_t *words = page;
	uint64_t digest = 0;

	for (unsigned int k = 0; k < VMM_PAGE_WORDS; k++) {
		digest = (digest ^ words[k]) * VMM_MIX_OP;
		digest ^= digest >> 29;
	}
	return digest;
}

int vmm_system_digests(struct gr_ram *ram, uint64_t *digests, struct gr_error *err)
{
	for (uint64_t pfn = 0; pfn < VMM_SYSTEM_PAGES; pfn++) {
		uint64_t words[VMM_PAGE_WORDS];
		int rc = gr_ram_read(ram, gr_gpa(pfn * VMM_PAGE_BYTES), words, sizeof(words), err);

		if (rc < 0) {
			return rc;
		}
		digests[pfn] = vmm_page_digest(words);
	}
	return 0;
}
