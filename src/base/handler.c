/* SPDX-License-Identifier: MIT */
#include "base/handler.h"
#include "base/atomic.h"
#include "base/signals.h"

void gr_handler_set(struct gr_handler *h, gr_handler_fn *fn, void *opaque)
{
	struct gr_signals saved;
	struct gr_handler_slot *s;
	uint32_t sets;

	gr_signals_block(&saved);
	gr_owned_mutex_lock(&h->lock);
	sets = gr_load_relaxed(&h->sets) + 1;
#ifdef GR_MUTANT_HANDLER_ONE_SLOT
	s = &h->slot[0];
#else
	s = &h->slot[sets & 1];
#endif
	/* Release: whoever sees the new content of this slot sees that sets has changed since. */
	gr_store_release(&s->fn, fn);
	gr_store_release(&s->opaque, opaque);
	gr_store_release(&h->sets, sets);
	gr_owned_mutex_unlock(&h->lock);
	gr_signals_restore(&saved);
}

struct gr_handler_slot gr_handler_get(struct gr_handler *h)
{
	struct gr_handler_slot got;
	uint32_t sets;

	do {
		struct gr_handler_slot *s;

		sets = gr_load_acquire(&h->sets);
#ifdef GR_MUTANT_HANDLER_ONE_SLOT
		s = &h->slot[0];
#else
		s = &h->slot[sets & 1];
#endif
		/* Acquire: before the second look at sets. */
		got.fn = gr_load_acquire(&s->fn);
		got.opaque = gr_load_acquire(&s->opaque);
	} while (gr_load_relaxed(&h->sets) != sets);
	return got;
}

void gr_handler_after_fork_in_child(struct gr_handler *h)
{
	gr_owned_mutex_after_fork_in_child(&h->lock);
}
