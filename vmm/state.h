/* SPDX-License-Identifier: MIT */
/*
 * How the monitor's own state is laid out in the stream: little-endian words, one after the
 * other. Reading checks every length; after a failure everything reads as zero and
 * vmm_reader_end() says so.
 */
#ifndef VMM_STATE_H
#define VMM_STATE_H

#include "accel.h"
#include "workload.h"

struct vmm_reader {
	const uint8_t *at;
	size_t left;
	bool failed;
};

int vmm_put_u64(struct vmm_blob *blob, uint64_t value, struct gr_error *err);
uint64_t vmm_get_u64(struct vmm_reader *in);
/* Bytes that lie in the input, or NULL and failed. */
const void *vmm_get_bytes(struct vmm_reader *in, size_t bytes);
/* -EBADMSG when something was missing or something is left. */
int vmm_reader_end(const struct vmm_reader *in, struct gr_error *err);

/* A writer's registers. Reading refuses what no writer can have in them. */
int vmm_regs_put(struct vmm_blob *blob, const struct vmm_writer_regs *regs, struct gr_error *err);
int vmm_regs_get(struct vmm_reader *in, const struct vmm_workload *wl, unsigned int w,
		 struct vmm_writer_regs *regs, struct gr_error *err);

#endif
