/* SPDX-License-Identifier: MIT */
/* A queue of RCU callbacks that has no thread, run by a loop. */
#include "loop/loop.h"
#include <guestram/rcu_queue.h>

/* One slice: what is left makes the fd readable again, and others have their turn before that. */
static void run_slice(void *opaque)
{
#ifdef GR_MUTANT_LOOP_QUEUE_TAKES_ALL_TURNS
	(void)gr_rcu_queue_poll(opaque, 0, 0);
#else
	(void)gr_rcu_queue_poll(opaque, GR_RCU_SLICE_CALLBACKS, GR_RCU_SLICE_NS);
#endif
}

int gr_loop_add_queue(struct gr_loop *loop, struct gr_rcu_queue *queue,
		      struct gr_loop_handler **ret_handler, struct gr_error *err)
{
	const struct gr_loop_fd_desc desc = {
		.size = sizeof(desc),
		.fd = gr_rcu_queue_fd(queue),
		.events = GR_LOOP_READ,
		.read = run_slice,
		.opaque = queue,
	};

	return gr_loop_add_fd(loop, &desc, ret_handler, err);
}
