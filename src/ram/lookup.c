/* SPDX-License-Identifier: MIT */
/*
 * Lookups: load the index, ask it. In front of the two common ones sits a cache of one
 * entry, and it belongs to the thread.
 *
 * Invariants
 * C1 An entry is (generation, pointer into the index of that generation). Generations come from
 *    one counter of the process and never repeat, neither over time nor between machines.
 * C2 It is used only in a read-side section, and only if its generation is that of the index
 *    which was loaded in this same section.
 * C3 Before it is used, the pointer is seen to lie in that index. A signal handler may look
 *    something up between the two loads or the two stores of an entry, in another machine too,
 *    and leave a pair that does not belong together. The generation is loaded first: then
 *    a pointer that does not belong to it was stored while its index existed, and so lies in
 *    other memory.
 *
 * Argument. A hit means that the entry points into the very index that this section loaded
 * from ram->index. That index was published when the section loaded it, so the grace period
 * before it (and before the blocks that only it names) is freed cannot end before the section.
 * Nothing is shared: no thread writes what another one reads, and a removal needs to clear
 * nothing.
 *
 * The usual design, one shared pointer to the most recently used block that writers clear, has
 * a hole: a reader finds X and stalls; the writer removes X, clears the pointer and waits
 * for readers; the reader stores X into the pointer and leaves; X is freed; the next reader
 * follows the pointer. Here the reader's late store writes the old generation, which
 * nobody will ever match again.
 */
#include "base/atomic.h"
#include "base/hook.h"
#include "ram/ram.h"

/*
 * One thread's last answers. initial-exec: no function call to reach them. Relaxed atomics: the
 * thread's own signal handlers change them (C3).
 */
static __thread __attribute__((tls_model("initial-exec"))) struct {
	gr_atomic_u64 span_generation; /* (o) 0: empty */
	const struct gr_ram_span *span;
	gr_atomic_u64 region_generation; /* (o) 0: empty */
	const struct gr_ram_region *region;
} last;

/* C3: is p one of the n elements that start at first? */
static inline bool lies_in(const void *p, const void *first, unsigned int n, size_t bytes)
{
#ifdef GR_MUTANT_LOOKUP_ANY_INDEX
	return p || first || n || bytes;
#else
	return (uintptr_t)p - (uintptr_t)first < (uintptr_t)n * bytes;
#endif
}

struct gr_ram_block *gr_ram_block_find_rcu(struct gr_ram *ram, gr_ram_addr_t addr)
{
	const struct gr_ram_index *index = gr_rcu_dereference(ram->index);
	uint64_t generation = gr_load_relaxed(&last.span_generation);
	const struct gr_ram_span *span;

	gr_barrier(); /* C3: the generation first */
	span = gr_load_relaxed(&last.span);
#ifdef GR_MUTANT_LOOKUP_NO_GENERATION
	(void)generation;
	if (span && addr.v - span->start < span->bytes) {
#else
	if (generation == index->generation &&
	    lies_in(span, index->by_offset, index->blocks, sizeof(*span)) &&
	    addr.v - span->start < span->bytes) {
#endif
		return span->block;
	}
	span = gr_ram_span_at(index->by_offset, index->blocks, addr.v);
	if (!span) {
		return NULL;
	}
	GR_HOOK("lookup: found");
	gr_store_relaxed(&last.span, span);
	GR_HOOK("lookup: half stored");
	gr_store_relaxed(&last.span_generation, index->generation);
	return span->block;
}

const struct gr_ram_region *gr_ram_region_at_rcu(const struct gr_ram_index *index, gr_gpa_t gpa)
{
	uint64_t generation = gr_load_relaxed(&last.region_generation);
	const struct gr_ram_region *r;

	gr_barrier(); /* C3: the generation first */
	r = gr_load_relaxed(&last.region);
#ifdef GR_MUTANT_LOOKUP_NO_GENERATION
	(void)generation;
	if (r && gpa.v - r->gpa.v < r->bytes) {
#else
	if (generation == index->generation &&
	    lies_in(r, index->region, index->regions, sizeof(*r)) && gpa.v - r->gpa.v < r->bytes) {
#endif
		return r;
	}
	r = gr_ram_index_region_from(index, gpa.v);
	if (!r || gpa.v < r->gpa.v) {
		return NULL;
	}
	gr_store_relaxed(&last.region, r);
	GR_HOOK("lookup: half stored");
	gr_store_relaxed(&last.region_generation, index->generation);
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
		gr_ram_span_at(index->by_host, index->blocks, (uintptr_t)host);

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
