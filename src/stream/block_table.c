/* SPDX-License-Identifier: MIT */
#include "stream/block_table.h"
#include "base/random.h"
#include <errno.h>
#include <string.h>

/* Living entries and those that died and whose consumer has not let go of them. */
enum { ENTRIES_MAX = 2 * GR_STREAM_BLOCKS_MAX };

void gr_block_table_init(struct gr_block_table *t)
{
	memset(t, 0, sizeof(*t));
	if (!gr_random(&t->seed, sizeof(t->seed))) {
		t->seed = (uint64_t)(uintptr_t)t;
	}
}

void gr_block_table_destroy(struct gr_block_table *t)
{
	free(t->entries);
	free(t->pending);
	free(t->slots);
	memset(t, 0, sizeof(*t));
}

static uint64_t hash(const struct gr_block_table *t, const char *id)
{
	uint64_t h = t->seed ^ UINT64_C(0xcbf29ce484222325);

	for (; *id; id++) {
		h = (h ^ (uint8_t)*id) * UINT64_C(0x100000001b3);
		h ^= h >> 29;
	}
	return h;
}

/* The slot of the id, or the free one where it would go. */
static uint32_t *probe(const struct gr_block_table *t, const struct gr_stream_block *entries,
		       const char *id)
{
	uint32_t mask = t->slot_count - 1;
	uint32_t at = (uint32_t)hash(t, id) & mask;

	while (t->slots[at] && strcmp(entries[t->slots[at] - 1].id, id) != 0) {
		at = (at + 1) & mask;
	}
	return &t->slots[at];
}

uint32_t gr_block_table_find(const struct gr_block_table *t, const char *id)
{
	uint32_t slot = t->slot_count ? *probe(t, t->entries, id) : 0;

	return slot ? slot - 1 : (uint32_t)GR_BLOCK_NONE;
}

static bool reserve(struct gr_stream_block **array, uint32_t *capacity, uint32_t wanted)
{
	uint32_t larger = GR_MAX(2 * *capacity, wanted + 16u);
	struct gr_stream_block *grown;

	if (wanted <= *capacity) {
		return true;
	}
	grown = realloc(*array, larger * sizeof(**array));
	if (!grown) {
		return false;
	}
	*array = grown;
	*capacity = larger;
	return true;
}

struct gr_stream_block *gr_block_table_pend(struct gr_block_table *t)
{
	struct gr_stream_block *b;

	if (!reserve(&t->pending, &t->pending_capacity, t->pending_count + 1)) {
		return NULL;
	}
	b = &t->pending[t->pending_count++];
	memset(b, 0, sizeof(*b));
	return b;
}

static void hash_living(struct gr_block_table *t)
{
	memset(t->slots, 0, t->slot_count * sizeof(*t->slots));
	for (uint32_t i = 0; i < t->count; i++) {
		if (t->entries[i].alive) {
			*probe(t, t->entries, t->entries[i].id) = i + 1;
		}
	}
}

static bool grow_slots(struct gr_block_table *t, uint32_t entries)
{
	uint32_t n = 64;
	uint32_t *slots;

	while (n < 2 * entries) {
		n *= 2;
	}
	if (n <= t->slot_count) {
		return true;
	}
	slots = calloc(n, sizeof(*slots));
	if (!slots) {
		return false;
	}
	free(t->slots);
	t->slots = slots;
	t->slot_count = n;
	hash_living(t);
	return true;
}

/* The living entry that goes on as the listed block, or GR_BLOCK_NONE: it is a new one. */
static uint32_t same_block(const struct gr_block_table *t, const struct gr_stream_block *listed)
{
	uint32_t at = gr_block_table_find(t, listed->id);

	if (at != (uint32_t)GR_BLOCK_NONE && t->entries[at].incarnation != 0 &&
	    t->entries[at].incarnation != listed->incarnation) {
		return (uint32_t)GR_BLOCK_NONE;
	}
	return at;
}

/* Checks the list against itself and the table; changes nothing but the hash. */
static int check(struct gr_block_table *t, const char **ret_id)
{
	int code = 0;

	memset(t->slots, 0, t->slot_count * sizeof(*t->slots));
	for (uint32_t i = 0; i < t->pending_count && code == 0; i++) {
		uint32_t *slot = probe(t, t->pending, t->pending[i].id);

		if (*slot) {
			*ret_id = t->pending[i].id;
			code = -EEXIST;
		}
		*slot = i + 1;
	}
	hash_living(t);
	for (uint32_t i = 0; i < t->pending_count && code == 0; i++) {
		const struct gr_stream_block *p = &t->pending[i];
		uint32_t at = same_block(t, p);

		if (at != (uint32_t)GR_BLOCK_NONE && t->entries[at].incarnation != 0 &&
		    t->entries[at].max_bytes != p->max_bytes) {
			*ret_id = p->id;
			code = -EINVAL;
		}
	}
	return code;
}

/* How many entries the list needs beyond those that go on and those that may be reused. */
static uint32_t missing_entries(const struct gr_block_table *t)
{
	uint32_t reuse = 0, fresh = 0;

	for (uint32_t i = 0; i < t->count; i++) {
		reuse += !t->entries[i].alive && !t->entries[i].user;
	}
	for (uint32_t i = 0; i < t->pending_count; i++) {
		fresh += same_block(t, &t->pending[i]) == (uint32_t)GR_BLOCK_NONE;
	}
	return fresh > reuse ? fresh - reuse : 0;
}

int gr_block_table_commit(struct gr_block_table *t, const char **ret_id)
{
	uint32_t old_count = t->count;
	bool *free_before;
	int code;

	if (!grow_slots(t, t->pending_count + t->count) ||
	    !reserve(&t->entries, &t->capacity, t->count + t->pending_count)) {
		return -ENOMEM;
	}
	code = check(t, ret_id);
	if (code < 0) {
		return code;
	}
	if (t->count + missing_entries(t) > ENTRIES_MAX) {
		return -ENOSPC;
	}
	free_before = calloc(old_count + 1u, sizeof(*free_before));
	if (!free_before) {
		return -ENOMEM;
	}
	for (uint32_t i = 0; i < old_count; i++) {
		free_before[i] = !t->entries[i].alive && !t->entries[i].user;
		t->entries[i].alive = false;
	}
	/* The hash still finds what lived before. Those that go on first: the rest is new. */
	for (uint32_t i = 0; i < t->pending_count; i++) {
		struct gr_stream_block *p = &t->pending[i];
		uint32_t at = same_block(t, p);

		if (at != (uint32_t)GR_BLOCK_NONE) {
			p->user = t->entries[at].user;
			p->alive = true;
			t->entries[at] = *p;
		}
	}
	for (uint32_t i = 0, at = 0; i < t->pending_count; i++) {
		if (t->pending[i].alive) {
			continue;
		}
		while (at < old_count && !free_before[at]) {
			at++;
		}
		t->pending[i].alive = true;
		if (at < old_count) {
			t->entries[at++] = t->pending[i];
		} else {
			t->entries[t->count++] = t->pending[i];
		}
	}
	t->pending_count = 0;
	free(free_before);
	hash_living(t);
	return 0;
}
