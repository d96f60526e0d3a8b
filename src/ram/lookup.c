/* SPDX-License-Identifier: MIT */
/*
 * Lookups: load the index, ask it. In front of the two common ones stands a hint, which belongs
 * to the thread: at which two places of the index the last answers were.
 *
 * Argument. A hint is a number and promises nothing. It is held against the index that this
 * section loaded: is there such a place, and does it contain the address? So a hint may be
 * old, come from another machine, or have been left by a signal handler in the middle of this
 * very lookup; at worst it does not help. Nothing is shared: no thread writes what another one
 * reads, and a removal needs to clear nothing.
 *
 * The usual design, one shared pointer to the most recently used block that writers clear, has
 * a hole: a reader finds X and stalls; the writer removes X, clears the pointer and waits
 * for readers; the reader stores X into the pointer and leaves; X is freed; the next reader
 * follows the pointer. Here the late store writes the number of a place.
 *
 * gr_ram_block_find_rcu() is inline in guestram/ram.h and comes here when the hint does not help.
 */
#include "base/atomic.h"
#include "base/hook.h"
#include "ram/ram.h"
#include <assert.h>

/* What the inline half in guestram/ram.h takes for granted. */
static_assert(offsetof(struct gr_ram, index) == 0, "a reader finds the index first");
static_assert(offsetof(struct gr_ram_index, by_offset) ==
			      offsetof(struct gr_ram_index_, by_offset) &&
		      offsetof(struct gr_ram_index, blocks) == offsetof(struct gr_ram_index_, blocks),
	      "the index has two layouts");

/* initial-exec: no function call to reach them. Relaxed atomics: the thread's own signal handlers. */
#define THREADS_OWN __thread __attribute__((tls_model("initial-exec")))
__thread uint32_t gr_ram_span_hint_[2];
static THREADS_OWN uint32_t region_hint;

struct gr_ram_block *gr_ram_block_find_slow_rcu(struct gr_ram *ram, gr_ram_addr_t addr)
{
	const struct gr_ram_index *index = gr_rcu_dereference(ram->index);
	const struct gr_ram_span *span;

#ifdef GR_MUTANT_LOOKUP_KEEPS_POINTER
	static THREADS_OWN const struct gr_ram_span *last;

	if (last && addr.v - last->start < last->bytes) {
		return last->block;
	}
#endif
	span = gr_ram_span_at(index->by_offset, index->blocks, addr.v);
	if (!span) {
		return NULL;
	}
	GR_HOOK("lookup: found");
	gr_store_relaxed(&gr_ram_span_hint_[1], gr_load_relaxed(&gr_ram_span_hint_[0]));
	gr_store_relaxed(&gr_ram_span_hint_[0], (uint32_t)(span - index->by_offset));
#ifdef GR_MUTANT_LOOKUP_KEEPS_POINTER
	last = span;
#endif
	return span->block;
}

const struct gr_ram_region *gr_ram_region_at_rcu(const struct gr_ram_index *index, gr_gpa_t gpa)
{
	uint32_t hint = gr_load_relaxed(&region_hint);
	const struct gr_ram_region *r;

	if (GR_LIKELY(hint < index->regions)) {
		r = &index->region[hint];
#ifdef GR_MUTANT_LOOKUP_TRUSTS_HINT
		return r;
#endif
		if (GR_LIKELY(gpa.v - r->gpa.v < r->bytes)) {
			return r;
		}
	}
	r = gr_ram_index_region_from(index, gpa.v);
	if (!r || gpa.v < r->gpa.v) {
		return NULL;
	}
	GR_HOOK("lookup: found");
	gr_store_relaxed(&region_hint, (uint32_t)(r - index->region));
	return r;
}

struct gr_ram_block *gr_ram_block_by_gpa_rcu(struct gr_ram *ram, gr_gpa_t gpa,
					     uint64_t *ret_offset, uint64_t *ret_bytes)
{
	const struct gr_ram_region *r = gr_ram_region_at_rcu(gr_rcu_dereference(ram->index), gpa);

	if (!r) {
		return NULL;
	}
	if (ret_offset) {
		*ret_offset = r->block_offset + (gpa.v - r->gpa.v);
	}
	if (ret_bytes) {
		*ret_bytes = r->bytes - (gpa.v - r->gpa.v);
	}
	return r->block;
}

struct gr_ram_block *gr_ram_block_by_host_rcu(struct gr_ram *ram, const void *host,
					      uint64_t *ret_offset)
{
	const struct gr_ram_index *index = gr_rcu_dereference(ram->index);
	const struct gr_ram_span *span =
		gr_ram_span_at(index->by_host, index->hosts, (uintptr_t)host);

	if (!span) {
		return NULL;
	}
	if (ret_offset) {
		*ret_offset = (uintptr_t)host - span->start;
	}
	return span->block;
}

struct gr_ram_block *gr_ram_block_by_id_rcu(struct gr_ram *ram, const char *id)
{
	return gr_ram_index_by_id(gr_rcu_dereference(ram->index), id);
}

struct gr_ram_block *gr_ram_block_next_rcu(struct gr_ram *ram, struct gr_ram_block *block)
{
	struct gr_rcu_list_node *node = block ? gr_rcu_list_next_rcu(&gr_block(block)->node) :
						gr_rcu_list_first_rcu(&ram->blocks);

	return node ? &gr_rcu_list_entry(node, struct gr_block, node)->pub : NULL;
}

void gr_ram_totals_rcu(struct gr_ram *ram, struct gr_ram_totals *totals)
{
	const struct gr_ram_index *index = gr_rcu_dereference(ram->index);
	struct gr_ram_totals t = { .blocks = index->blocks, .regions = index->regions };

	for (unsigned int i = 0; i < index->blocks; i++) {
		const struct gr_ram_block *b = index->by_offset[i].block;
		uint64_t used = gr_ram_block_used_bytes(b);

		t.used_bytes += used;
		t.max_bytes += b->max_bytes;
		t.migratable_bytes += (gr_ram_block_flags(b) & GR_RAM_NO_MIGRATE) ? 0 : used;
		t.end = b->offset.v + b->max_bytes; /* they are in order */
		t.page_bytes_max = GR_MAX(t.page_bytes_max, b->page_bytes);
		t.page_bytes_min = i == 0 ? b->page_bytes : GR_MIN(t.page_bytes_min, b->page_bytes);
	}
	*totals = t;
}

bool gr_ram_region_next_rcu(struct gr_ram *ram, gr_gpa_t gpa, struct gr_ram_region *ret_region)
{
	const struct gr_ram_index *index = gr_rcu_dereference(ram->index);
	const struct gr_ram_region *r = gr_ram_index_region_from(index, gpa.v);

	/* The one that contains gpa started before it. */
	if (r && r->gpa.v < gpa.v) {
		r = r + 1 < index->region + index->regions ? r + 1 : NULL;
	}
	if (!r) {
		return false;
	}
	*ret_region = *r;
	return true;
}
