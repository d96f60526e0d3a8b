/* SPDX-License-Identifier: MIT */
#include "ram/index.h"
#include <stdlib.h>
#include <string.h>

static struct gr_ram_index *index_alloc(unsigned int blocks, unsigned int regions)
{
	struct gr_ram_index *x =
		calloc(1, sizeof(*x) + ((size_t)blocks + 1) * sizeof(x->by_offset[0]));

	if (!x) {
		return NULL;
	}
	x->by_host = calloc((size_t)blocks + 1, sizeof(x->by_host[0]));
	x->by_id = calloc((size_t)blocks + 1, sizeof(x->by_id[0]));
	x->region = calloc((size_t)regions + 1, sizeof(x->region[0]));
	if (!x->by_host || !x->by_id || !x->region) {
		gr_ram_index_free(x);
		return NULL;
	}
	return x;
}

void gr_ram_index_free(struct gr_ram_index *index)
{
	if (index) {
		free(index->by_host);
		free(index->by_id);
		free(index->region);
		free(index);
	}
}

/* Copies spans without those of a block, and inserts `add` (may be NULL) in its place. How many. */
static unsigned int edit_spans(struct gr_ram_span *to, const struct gr_ram_span *from,
			       unsigned int n, const struct gr_ram_block *del,
			       const struct gr_ram_span *add)
{
	struct gr_ram_span *first = to;

	for (unsigned int i = 0; i < n; i++) {
		if (add && add->start < from[i].start) {
			*to++ = *add;
			add = NULL;
		}
		if (from[i].block != del) {
			*to++ = from[i];
		}
	}
	if (add) {
		*to++ = *add;
	}
	return (unsigned int)(to - first);
}

/* The same by id. Returns how many there are afterwards. */
static unsigned int edit_ids(struct gr_ram_named *to, const struct gr_ram_index *old,
			     const struct gr_ram_edit *edit)
{
	const struct gr_ram_block *del = edit->rename ? edit->rename : edit->del_block;
	struct gr_ram_named add = { edit->id, edit->rename };
	unsigned int n = 0;

	if (edit->add_block) {
		add = (struct gr_ram_named){ edit->add_block->id, edit->add_block };
	}
	if (add.id && add.id[0] == '\0') {
		add.block = NULL;
	}
	for (unsigned int i = 0; old && i < old->ids; i++) {
		if (add.block && strcmp(add.id, old->by_id[i].id) < 0) {
			to[n++] = add;
			add.block = NULL;
		}
		if (old->by_id[i].block != del) {
			to[n++] = old->by_id[i];
		}
	}
	if (add.block) {
		to[n++] = add;
	}
	return n;
}

/* Returns how many regions there are afterwards. */
static unsigned int edit_regions(struct gr_ram_region *to, const struct gr_ram_index *old,
				 const struct gr_ram_edit *edit)
{
	const struct gr_ram_region *add = edit->add_region;
	unsigned int n = 0;

	for (unsigned int i = 0; old && i < old->regions; i++) {
		const struct gr_ram_region *r = &old->region[i];

		if (add && add->gpa.v < r->gpa.v) {
			to[n++] = *add;
			add = NULL;
		}
		if (r != edit->del_region && r->block != edit->del_block) {
			to[n++] = *r;
		}
	}
	if (add) {
		to[n++] = *add;
	}
	return n;
}

struct gr_ram_index *gr_ram_index_edit(const struct gr_ram_index *old,
				       const struct gr_ram_edit *edit)
{
	unsigned int blocks = old ? old->blocks : 0, regions = old ? old->regions : 0;
	struct gr_ram_block *add = edit->add_block;
	struct gr_ram_index *x = index_alloc(blocks + 1, regions + 1);
	struct gr_ram_span at_offset, at_host;

	if (!x) {
		return NULL;
	}
	if (add) {
		at_offset = (struct gr_ram_span){ add->offset.v, add->max_bytes, add };
		at_host = (struct gr_ram_span){ (uintptr_t)add->host, add->max_bytes, add };
	}
	x->blocks = edit_spans(x->by_offset, old ? old->by_offset : NULL, blocks, edit->del_block,
			       add ? &at_offset : NULL);
	x->hosts = edit_spans(x->by_host, old ? old->by_host : NULL, old ? old->hosts : 0,
			      edit->del_block, add && add->host ? &at_host : NULL);
	x->ids = edit_ids(x->by_id, old, edit);
	x->regions = edit_regions(x->region, old, edit);
	return x;
}

const struct gr_ram_span *gr_ram_span_at(const struct gr_ram_span *spans, unsigned int n,
					 uint64_t addr)
{
	const struct gr_ram_span *at = spans; /* the last one that starts at or before addr, if any */

	if (n == 0) {
		return NULL;
	}
	/* The steps depend on n alone, and the choice is a move: nothing to predict wrongly. */
	while (n > 1) {
		unsigned int half = n / 2;

		at += at[half].start <= addr ? half : 0;
		n -= half;
	}
	return addr - at->start < at->bytes ? at : NULL;
}

const struct gr_ram_region *gr_ram_index_region_from(const struct gr_ram_index *index,
						     uint64_t gpa)
{
	unsigned int lo = 0, hi = index->regions;

	while (lo < hi) {
		unsigned int mid = lo + (hi - lo) / 2;
		const struct gr_ram_region *r = &index->region[mid];

		/* Its last byte: the end itself may not be a 64-bit number. */
		if (r->gpa.v + (r->bytes - 1) < gpa) {
			lo = mid + 1;
		} else {
			hi = mid;
		}
	}
	return lo < index->regions ? &index->region[lo] : NULL;
}

struct gr_ram_block *gr_ram_index_by_id(const struct gr_ram_index *index, const char *id)
{
	unsigned int lo = 0, hi = index->ids;

	while (lo < hi) {
		unsigned int mid = lo + (hi - lo) / 2;
		int order = strcmp(id, index->by_id[mid].id);

		if (order == 0) {
			return index->by_id[mid].block;
		}
		if (order < 0) {
			hi = mid;
		} else {
			lo = mid + 1;
		}
	}
	return NULL;
}
