/* SPDX-License-Identifier: MIT */
/*
 * Listeners, told of each change under the list mutex: of what comes before readers can find
 * it, so that a veto costs nobody anything, and of what goes after readers cannot find it any
 * more.
 */
#include "ram/ram.h"
#include "base/compiler.h"

static int tell_add(struct gr_ram_listener *l, struct gr_ram_block *block,
		    const struct gr_ram_region *region, struct gr_error *err)
{
	int ret = 0;

	if (block && l->block_add) {
		ret = l->block_add(l->opaque, block, err);
	}
	if (ret >= 0 && region && l->region_add) {
		ret = l->region_add(l->opaque, region, err);
		if (ret < 0 && block && l->block_del) {
			l->block_del(l->opaque, block);
		}
	}
	return GR_MIN(ret, 0);
}

static void tell_del(struct gr_ram_listener *l, struct gr_ram_block *block,
		     const struct gr_ram_region *region)
{
	if (region && l->region_del) {
		l->region_del(l->opaque, region);
	}
	if (block && l->block_del) {
		l->block_del(l->opaque, block);
	}
}

int gr_ram_notify_add_locked(struct gr_ram *ram, struct gr_ram_block *block,
			     const struct gr_ram_region *region, struct gr_error *err)
{
	for (struct gr_ram_listener *l = ram->listeners; l; l = l->next) {
		int ret = tell_add(l, block, region, err);

		if (ret < 0) {
			for (struct gr_ram_listener *u = ram->listeners; u != l; u = u->next) {
				tell_del(u, block, region);
			}
			return ret;
		}
	}
	return 0;
}

static int tell_resize(struct gr_ram_listener *l, struct gr_ram_block *block, uint64_t old,
		       uint64_t used, struct gr_error *err)
{
	int ret = l->block_resize ? l->block_resize(l->opaque, block, old, used, err) : 0;

	return GR_MIN(ret, 0);
}

int gr_ram_notify_resize_locked(struct gr_ram *ram, struct gr_ram_block *block, uint64_t old,
				uint64_t used, struct gr_error *err)
{
	for (struct gr_ram_listener *l = ram->listeners; l; l = l->next) {
		int ret = tell_resize(l, block, old, used, err);

		if (ret < 0) {
			/* Who has followed goes back; that cannot be refused. */
			for (struct gr_ram_listener *u = ram->listeners; u != l; u = u->next) {
				(void)tell_resize(u, block, used, old, NULL);
			}
			return ret;
		}
	}
	return 0;
}

void gr_ram_notify_block_del_locked(struct gr_ram *ram, struct gr_ram_block *block,
				    const struct gr_ram_index *old)
{
	for (struct gr_ram_listener *l = ram->listeners; l; l = l->next) {
		for (unsigned int i = old->regions; i-- > 0;) {
			if (old->region[i].block == block) {
				tell_del(l, NULL, &old->region[i]);
			}
		}
		tell_del(l, block, NULL);
	}
}

void gr_ram_notify_region_del_locked(struct gr_ram *ram, const struct gr_ram_region *region)
{
	for (struct gr_ram_listener *l = ram->listeners; l; l = l->next) {
		tell_del(l, NULL, region);
	}
}

/* The reverse of replay(), for the first so many blocks and regions. */
static void replay_back(struct gr_ram_listener *l, const struct gr_ram_index *index,
			unsigned int blocks, unsigned int regions)
{
	while (regions-- > 0) {
		tell_del(l, NULL, &index->region[regions]);
	}
	while (blocks-- > 0) {
		tell_del(l, index->by_offset[blocks].block, NULL);
	}
}

static int replay(struct gr_ram_listener *l, const struct gr_ram_index *index,
		  struct gr_error *err)
{
	unsigned int b, r;
	int ret;

	for (b = 0; b < index->blocks; b++) {
		ret = tell_add(l, index->by_offset[b].block, NULL, err);
		if (ret < 0) {
			replay_back(l, index, b, 0);
			return ret;
		}
	}
	for (r = 0; r < index->regions; r++) {
		ret = tell_add(l, NULL, &index->region[r], err);
		if (ret < 0) {
			replay_back(l, index, b, r);
			return ret;
		}
	}
	return 0;
}

int gr_ram_listener_add(struct gr_ram *ram, struct gr_ram_listener *listener, struct gr_error *err)
{
	struct gr_ram_listener **last = &ram->listeners;
	int ret;

	gr_mutex_lock(&ram->lock);
	ret = replay(listener, gr_rcu_dereference_protected(ram->index), err);
	if (ret == 0) {
		while (*last) {
			last = &(*last)->next;
		}
		listener->next = NULL;
		*last = listener;
	}
	gr_mutex_unlock(&ram->lock);
	return ret;
}

void gr_ram_listener_del(struct gr_ram *ram, struct gr_ram_listener *listener)
{
	struct gr_ram_listener **at = &ram->listeners;
	const struct gr_ram_index *index;

	gr_mutex_lock(&ram->lock);
	while (*at && *at != listener) {
		at = &(*at)->next;
	}
	if (!*at) {
		gr_die("gr_ram_listener_del: a listener that was not added");
	}
	*at = listener->next;
	listener->next = NULL;
	index = gr_rcu_dereference_protected(ram->index);
	replay_back(listener, index, index->blocks, index->regions);
	gr_mutex_unlock(&ram->lock);
}
