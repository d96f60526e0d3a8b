/* SPDX-License-Identifier: MIT */
/* A snapshot of a running machine into an image, in a thread of its own. */
#ifndef VMM_SNAPSHOT_H
#define VMM_SNAPSHOT_H

#include "machine.h"
#include <guestram/snapshot.h>
#include <jansson.h>

#define VMM_SNAPSHOT_ARGUMENTS "filename buffer-bytes when-full max-bandwidth"

struct vmm_snapshot;

/* Its state is another one: from its own thread, no lock held. NULL: nobody wants to know. */
typedef void vmm_snapshot_changed_fn(void *opaque, const struct gr_migrate_stats *stats);

/* Begin one, as a QMP command says (VMM_SNAPSHOT_ARGUMENTS). */
int vmm_snapshot_begin(struct vmm_machine *machine, json_t *args, vmm_snapshot_changed_fn *changed,
		       void *opaque, struct vmm_snapshot **ret_snapshot, struct gr_error *err);
/* The answer to a query: "status" and numbers; "error-desc" if it has failed. */
json_t *vmm_snapshot_query(struct vmm_snapshot *snapshot);
/* The numbers as a migration's; whether it has failed, and why in err. */
int vmm_snapshot_stats(struct vmm_snapshot *snapshot, struct gr_migrate_stats *ret_stats,
		       struct gr_error *err);
bool vmm_snapshot_ended(struct vmm_snapshot *snapshot);
/* Ask it to end. Returns at once. */
void vmm_snapshot_cancel(struct vmm_snapshot *snapshot);
/* Cancel it if it has not ended, wait, and free it. May be NULL. */
void vmm_snapshot_free(struct vmm_snapshot *snapshot);

#endif
