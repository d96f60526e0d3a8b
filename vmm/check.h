/* SPDX-License-Identifier: MIT */
/*
 * The checker: is every word of guest memory what the workload's closed form says?
 * The machine must be stopped.
 */
#ifndef VMM_CHECK_H
#define VMM_CHECK_H

#include "workload.h"
#include <guestram/ram.h>

/* What the checker needs to know besides the memory: it all travels in the device state. */
struct vmm_check_input {
	struct gr_ram *ram;
	const struct vmm_workload *wl;
	const struct vmm_writer_regs *regs; /* one for each writer */
	const struct vmm_plug *plugs;	    /* VMM_PLUGS_MAX entries */
	/* digests of the system pages, or NULL not to check those */
	const uint64_t *system_digests;
	/* operations of each writer before the final round began, or NULL */
	const uint64_t *ops_before_final;
};

/* A word that is wrong. */
struct vmm_wrong_word {
	uint64_t gpa;
	uint64_t expected;
	uint64_t found;
	uint64_t writer;  /* whose word it is */
	bool written;	  /* whether any operation wrote it */
	uint64_t last_op; /* if so, which was the last */
	bool missing;	  /* nothing is mapped there at all */
	bool system;	  /* a system page: only its digest is known */
};

struct vmm_check {
	uint64_t pages_checked;		/* of the main RAM, all of it */
	uint64_t plugged_pages_checked; /* of the blocks that are plugged */
	uint64_t device_pages_checked;	/* of both: with words that the device wrote */
	uint64_t pages_written_once;	/* once pages that have been written by now */
	uint64_t pages_last_written_before_final_round;
	uint64_t pages_wrong;
	struct vmm_wrong_word first_wrong; /* if pages_wrong > 0 */
};

void vmm_check_memory(const struct vmm_check_input *in, struct vmm_check *ret);

/* Say the first wrong word in a line. */
void vmm_check_describe(const struct vmm_check *check, char *buf, size_t bytes);

/* The digest of one page. */
uint64_t vmm_page_digest(const void *page);
/* Digests of the VMM_SYSTEM_PAGES system pages. -EFAULT when they are not mapped. */
int vmm_system_digests(struct gr_ram *ram, uint64_t *digests, struct gr_error *err);

#endif
