/* SPDX-License-Identifier: MIT */
/*
 * Damage on purpose (enum gr_source_fault): a checker that finds nothing wrong with these
 * moves finds nothing. Each fault lives here and nowhere else, but for
 * GR_FAULT_SKIP_FINAL_SYNC, which is a thing not done (source.c).
 */
#include "migrate/source.h"
#include <errno.h>
#include <stdlib.h>
#include <string.h>

bool gr_source_reads_early(const struct gr_source *s)
{
#ifdef GR_MUTANT_MIGRATE_READ_FIRST
	return s->phase != GR_SOURCE_ENDED; /* against O2 */
#else
	return s->params.fault == GR_FAULT_EARLY_READ;
#endif
}

void gr_source_fault_end(struct gr_source *s)
{
	for (uint32_t i = 0; i < s->shadows; i++) {
		free(s->shadow[i]);
	}
	free(s->shadow);
	free(s->shadow_incarnation);
	s->shadow = NULL;
	s->shadow_incarnation = NULL;
	s->shadows = 0;
}

static struct gr_ram_block *block_get(struct gr_source *s, const struct gr_source_block *e)
{
	struct gr_ram_block *block;

	gr_section_enter(&s->watch);
	block = gr_ram_block_by_id_rcu(s->ram, e->id);
	if (block && block->incarnation == e->incarnation) {
		gr_ram_block_get(block);
	} else {
		block = NULL;
	}
	gr_section_leave(&s->watch);
	return block;
}

/* The guest writes meanwhile: that is the point. */
__attribute__((no_sanitize("thread"))) static void copy_words(uint8_t *to, const uint8_t *from,
							      uint64_t bytes)
{
	for (uint64_t i = 0; i < bytes; i += sizeof(uint64_t)) {
		*(uint64_t *)(void *)(to + i) =
			*(const volatile uint64_t *)(const void *)(from + i);
	}
}

/* What is filled now; holes stay zero, so that they stay untouched here too. */
static void copy_block(struct gr_source *s, const struct gr_ram_block *block, uint8_t *to,
		       uint64_t bytes)
{
	uint64_t end = 0;

	for (uint64_t at = 0; at < bytes; at = end) {
		if (!gr_holes_next(&s->holes, block, at, bytes, &end)) {
			copy_words(to + at, block->host + at, end - at);
		}
	}
}

int gr_source_fault_early_read(struct gr_source *s, struct gr_error *err)
{
	gr_source_fault_end(s);
	s->shadow = calloc(GR_MAX(s->table.count, 1u), sizeof(*s->shadow));
	s->shadow_incarnation = calloc(GR_MAX(s->table.count, 1u), sizeof(*s->shadow_incarnation));
	if (!s->shadow || !s->shadow_incarnation) {
		gr_source_fault_end(s);
		return gr_error_set(err, -ENOMEM, "no memory for early reads");
	}
	for (uint32_t i = 0; i < s->table.count; i++) {
		const struct gr_source_block *e = &s->table.entries[i];
		struct gr_ram_block *block = block_get(s, e);

		if (!block) {
			continue;
		}
		s->shadow[s->shadows] = calloc(1, e->used_bytes);
		if (!s->shadow[s->shadows]) {
			gr_ram_block_put(block);
			return gr_error_set(err, -ENOMEM, "no memory for early reads");
		}
		copy_block(s, block, s->shadow[s->shadows], e->used_bytes);
		s->shadow_incarnation[s->shadows++] = e->incarnation;
		gr_ram_block_put(block);
	}
	return 0;
}

const uint8_t *gr_source_fault_early_page(const struct gr_source *s,
					  const struct gr_ram_block *block, uint64_t offset)
{
	for (uint32_t i = 0; i < s->shadows; i++) {
		if (s->shadow_incarnation[i] == block->incarnation) {
			return s->shadow[i] + offset;
		}
	}
	return NULL;
}

void gr_source_fault_lose_page(struct gr_source *s)
{
	struct gr_source_batch *b = &s->batch;

	if (s->lost || b->count == 0) {
		return;
	}
	b->count--;
	memmove(&b->offsets[0], &b->offsets[1], b->count * sizeof(b->offsets[0]));
	memmove(&b->pages[0], &b->pages[1], b->count * sizeof(b->pages[0]));
	s->lost = true;
}
