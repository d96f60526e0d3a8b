/* SPDX-License-Identifier: MIT */
/*
 * A writer of the workload as a C program runs it: which stores come next. The threads and
 * the device do the stores in their own ways.
 */
#ifndef VMM_WRITER_H
#define VMM_WRITER_H

#include "workload.h"
#include <guestram/ram.h>

struct vmm_writer {
	const struct vmm_workload *wl; /* (c) */
	struct gr_ram *ram;	       /* (c) */
	unsigned int number;	       /* (c) */
	struct vmm_writer_regs regs;   /* (o) the thread; others while it is stopped */
	uint32_t plug_turn;	       /* (o) the entry after the last one written */
};

/* The stores of the operation in progress that are still to do. */
struct vmm_writer_op {
	uint64_t gpa;	/* of the first word to store */
	uint64_t value; /* of that word */
	uint32_t words; /* how many; 0: the operation writes nothing */
};

void vmm_writer_op(const struct vmm_writer *writer, struct vmm_writer_op *ret_op);
/* So many words of it have been stored, or dropped. */
void vmm_writer_progress(struct vmm_writer *writer, uint32_t words);
/* All of it: go to the next one. true: a main operation was finished. */
bool vmm_writer_finish(struct vmm_writer *writer);

/*
 * Store words: value, value + VMM_STEP, ... A guest's stores race with whoever reads its
 * memory, by design; so they are volatile, and not instrumented.
 */
void vmm_guest_store(void *host, uint64_t value, uint32_t words);
/* The next value after so many words. */
static inline uint64_t vmm_value_after(uint64_t value, uint32_t words)
{
	return value + words * VMM_STEP;
}
/* Store words that were computed. */
void vmm_guest_copy(void *host, const uint64_t *words, uint32_t count);
/* Read words that the monitor or the guest may be writing. */
void vmm_guest_load(const void *host, uint64_t *words, uint32_t count);

#endif
