/* SPDX-License-Identifier: MIT */
/* The monitor's commands calc-dirty-rate and query-dirty-rate, with QEMU's names and fields. */
#ifndef VMM_DIRTY_RATE_H
#define VMM_DIRTY_RATE_H

#include "machine.h"
#include <guestram/loop.h>
#include <jansson.h>

struct vmm_dirty_rate;

int vmm_dirty_rate_create(struct gr_loop *loop, struct vmm_machine *machine,
			  struct vmm_dirty_rate **ret_rate, struct gr_error *err);
/* Before the machine goes. May be NULL. */
void vmm_dirty_rate_free(struct vmm_dirty_rate *rate);

/* The arguments of calc-dirty-rate. They run in the loop's thread, as the measurement does. */
#define VMM_DIRTY_RATE_ARGUMENTS "calc-time calc-time-unit sample-pages mode"
int vmm_dirty_rate_calc(struct vmm_dirty_rate *rate, json_t *args, struct gr_error *err);
/* The answer to query-dirty-rate, a new reference. */
json_t *vmm_dirty_rate_query(const struct vmm_dirty_rate *rate);

#endif
