/* SPDX-License-Identifier: MIT */
/*
 * Memory that is given back while its block stays. One mutex per machine serialises discards with
 * the holds that forbid them and with what listeners hear; readers and the guest take nothing.
 * Content changes, and no tracker sees it: everything here marks what it changed, afterwards (O1).
 */
#include "ram/ram.h"
#include <errno.h>
#include <string.h>

static const char *const hold_names[GR_RAM_DISCARD_HOLDS] = {
	[GR_RAM_NO_DISCARDS] = "memory is pinned",
	[GR_RAM_NO_SIMPLE_DISCARDS] = "discards must be told to listeners",
	[GR_RAM_NEEDS_DISCARDS] = "somebody depends on discards",
	[GR_RAM_NEEDS_DEPOPULATE] = "somebody depends on unplugging pieces of blocks",
};

/* Which holds contradict one. */
static const unsigned int against[GR_RAM_DISCARD_HOLDS] = {
	[GR_RAM_NO_DISCARDS] = 1u << GR_RAM_NEEDS_DISCARDS | 1u << GR_RAM_NEEDS_DEPOPULATE,
	[GR_RAM_NO_SIMPLE_DISCARDS] = 1u << GR_RAM_NEEDS_DISCARDS,
	[GR_RAM_NEEDS_DISCARDS] = 1u << GR_RAM_NO_DISCARDS | 1u << GR_RAM_NO_SIMPLE_DISCARDS,
	[GR_RAM_NEEDS_DEPOPULATE] = 1u << GR_RAM_NO_DISCARDS,
};

/* The first of these holds that somebody has; NULL if none. */
static const char *held_locked(const struct gr_ram *ram, unsigned int which)
{
	for (unsigned int i = 0; i < GR_RAM_DISCARD_HOLDS; i++) {
		if ((which & 1u << i) && ram->discard_holds[i] != 0) {
			return hold_names[i];
		}
	}
	return NULL;
}

int gr_ram_discard_hold(struct gr_ram *ram, enum gr_ram_discard_hold hold, struct gr_error *err)
{
	const char *why;

	if ((unsigned int)hold >= GR_RAM_DISCARD_HOLDS) {
		return gr_error_set(err, -EINVAL, "no hold on discards has number %d", (int)hold);
	}
	gr_mutex_lock(&ram->discard_lock);
	why = held_locked(ram, against[hold]);
	if (!why) {
		ram->discard_holds[hold]++;
	}
	gr_mutex_unlock(&ram->discard_lock);
	return why ? gr_error_set(err, -EBUSY, "not '%s' while %s", hold_names[hold], why) : 0;
}

void gr_ram_discard_release(struct gr_ram *ram, enum gr_ram_discard_hold hold)
{
	if ((unsigned int)hold >= GR_RAM_DISCARD_HOLDS) {
		gr_die("gr_ram_discard_release: no hold has number %d", (int)hold);
	}
	gr_mutex_lock(&ram->discard_lock);
	if (ram->discard_holds[hold] == 0) {
		gr_die("gr_ram_discard_release: nobody has the hold '%s'", hold_names[hold]);
	}
	ram->discard_holds[hold]--;
	gr_mutex_unlock(&ram->discard_lock);
}

bool gr_ram_discard_held(struct gr_ram *ram, enum gr_ram_discard_hold hold)
{
	bool held;

	gr_mutex_lock(&ram->discard_lock);
	held = (unsigned int)hold < GR_RAM_DISCARD_HOLDS && ram->discard_holds[hold] != 0;
	gr_mutex_unlock(&ram->discard_lock);
	return held;
}

int gr_ram_discard_unforbidden_locked(const struct gr_ram_block *block, unsigned int forbidding,
				      struct gr_error *err)
{
	const char *why = held_locked(block->ram, forbidding);

	return why ? gr_error_set(err, -EBUSY, "block '%s': no discards, %s", block->id, why) : 0;
}

int gr_ram_discard_allowed_locked(const struct gr_ram_block *block, unsigned int forbidding,
				  struct gr_error *err)
{
	unsigned int flags = gr_ram_block_flags(block);
	int ret = gr_ram_discard_unforbidden_locked(block, forbidding, err);

	if (ret < 0) {
		return ret;
	}
	if (flags & GR_RAM_HOST_READONLY) {
		return gr_error_set(err, -EROFS, "block '%s' is mapped for reading only", block->id);
	}
	if (block->backing == GR_RAM_CALLER && block->fd < 0 && !(flags & GR_RAM_PRIVATE)) {
		return gr_error_set(err, -ENOTSUP,
				    "block '%s': the caller's memory, of which nobody says that it is "
				    "private (GR_RAM_PRIVATE)",
				    block->id);
	}
	return 0;
}

int gr_ram_range_check(const struct gr_ram_block *block, uint64_t offset, uint64_t bytes,
		       uint64_t unit, struct gr_error *err)
{
	/* The rest of the last page: ours in our own memory, perhaps somebody else's in a file. */
	bool rest = block->backing == GR_RAM_MEMFD || block->backing == GR_RAM_ANONYMOUS;
	uint64_t end = rest ? GR_ROUND_UP(block->max_bytes, unit) :
			      block->max_bytes - block->max_bytes % unit;

	if ((offset | bytes) % unit != 0 || offset > end || bytes > end - offset) {
		return gr_error_set(err, -EINVAL,
				    "block '%s': %#llx bytes from %#llx are not whole units of %#llx "
				    "within its %#llx bytes",
				    block->id, (unsigned long long)bytes,
				    (unsigned long long)offset, (unsigned long long)unit,
				    (unsigned long long)block->max_bytes);
	}
	return 0;
}

void gr_ram_discard_watch_add(struct gr_ram *ram, struct gr_ram_discard_watch *watch)
{
	gr_mutex_lock(&ram->discard_lock);
	watch->next = ram->discard_watches;
	ram->discard_watches = watch;
	gr_mutex_unlock(&ram->discard_lock);
}

void gr_ram_discard_watch_del(struct gr_ram *ram, struct gr_ram_discard_watch *watch)
{
	struct gr_ram_discard_watch **at = &ram->discard_watches;

	gr_mutex_lock(&ram->discard_lock);
	while (*at != watch) {
		GR_ASSERT(*at);
		at = &(*at)->next;
	}
	*at = watch->next;
	gr_mutex_unlock(&ram->discard_lock);
}

int gr_ram_discard_begins_locked(struct gr_ram_block *block, uint64_t offset, uint64_t bytes,
				 bool lost, struct gr_error *err)
{
	int ret = 0;

	for (struct gr_ram_discard_watch *w = block->ram->discard_watches; w && ret == 0;
	     w = w->next) {
		ret = w->before ? w->before(w->opaque, block, offset, bytes, lost, err) : 0;
	}
	return ret;
}

void gr_ram_discard_ended_locked(struct gr_ram_block *block, uint64_t offset, uint64_t bytes)
{
	for (struct gr_ram_discard_watch *w = block->ram->discard_watches; w; w = w->next) {
		if (w->after) {
			w->after(w->opaque, block, offset, bytes);
		}
	}
}

int gr_ram_give_back_locked(struct gr_ram_block *block, uint64_t offset, uint64_t bytes)
{
	struct gr_block *b = gr_block(block);

	b->discards++;
	return b->windows ? gr_windows_discard(b->windows, offset, bytes) :
			    gr_memory_discard(&b->memory, offset, bytes,
					      gr_ram_block_flags(block) & GR_RAM_LOCK);
}

int gr_ram_throw_away_locked(struct gr_ram_block *block, uint64_t offset, uint64_t bytes,
			     struct gr_error *err)
{
	int ret = gr_ram_discard_begins_locked(block, offset, bytes, false, err);

	if (ret < 0) {
		return ret;
	}
	ret = bytes == 0 ? 0 : gr_ram_give_back_locked(block, offset, bytes);
	gr_ram_discard_ended_locked(block, offset, bytes);

#ifndef GR_MUTANT_DISCARD_UNMARKED
	/* Also if it failed: a part may be gone. The last page may be a part of a host's. */
	if (offset < block->max_bytes) {
		gr_ram_mark(block, offset, GR_MIN(bytes, block->max_bytes - offset));
	}
#endif
	return ret == 0 ? 0 :
			  gr_error_set(err, ret == -EOPNOTSUPP ? -ENOTSUP : ret,
				       "block '%s': discarding %#llx bytes from %#llx: %s", block->id,
				       (unsigned long long)bytes, (unsigned long long)offset,
				       strerror(-ret));
}

int gr_ram_discard(struct gr_ram_block *block, uint64_t offset, uint64_t bytes,
		   struct gr_error *err)
{
	uint64_t unit = GR_MAX(block->page_bytes, (uint64_t)block->ram->page_bytes);
	int ret = gr_ram_range_check(block, offset, bytes, unit, err);

	if (ret < 0) {
		return ret;
	}
	gr_mutex_lock(&block->ram->discard_lock);
	ret = gr_ram_discard_allowed_locked(
		block, 1u << GR_RAM_NO_DISCARDS | 1u << GR_RAM_NO_SIMPLE_DISCARDS, err);
	if (ret == 0) {
		ret = gr_ram_throw_away_locked(block, offset, bytes, err);
	}
	gr_mutex_unlock(&block->ram->discard_lock);
	return ret;
}
