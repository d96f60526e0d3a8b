/* SPDX-License-Identifier: MIT */
/*
 * The RAM list: blocks come and go while readers walk and look up. A writer prepares
 * everything first (memory, dirty memory, index, the listeners' consent) and publishes last;
 * what it takes away it unpublishes first and has freed after a grace period.
 */
#include "base/atomic.h"
#include "base/futex.h"
#include "base/hook.h"
#include "ram/ram.h"
#include <errno.h>

static int check_page_bytes(uint32_t page_bytes, struct gr_error *err)
{
	if (!GR_IS_POWER_OF_TWO(page_bytes) || page_bytes < 1024 || page_bytes > 2u << 20) {
		return gr_error_set(err, -EINVAL,
				    "page size %u is not a power of two from 1 KiB to 2 MiB",
				    page_bytes);
	}
	return 0;
}

int gr_ram_create(const struct gr_ram_params *params, struct gr_ram **ret_ram,
		  struct gr_error *err)
{
	uint32_t page_bytes = params && params->page_bytes ? params->page_bytes : 4096;
	struct gr_ram_index *index;
	struct gr_ram *ram;
	int ret;

	if (params && params->size != sizeof(*params)) {
		return gr_error_set(err, -EINVAL, "RAM parameters of %zu bytes, not %zu",
				    params->size, sizeof(*params));
	}
	ret = check_page_bytes(page_bytes, err);
	if (ret < 0) {
		return ret;
	}
	ram = calloc(1, sizeof(*ram));
	index = gr_ram_index_edit(NULL, &(struct gr_ram_edit){ .add_block = NULL });
	if (!ram || !index) {
		free(ram);
		gr_ram_index_free(index);
		return gr_error_set(err, -ENOMEM, "no memory for a machine's RAM list");
	}
	ret = gr_dirty_create(0, &ram->dirty, err);
	if (ret < 0) {
		free(ram);
		gr_ram_index_free(index);
		return ret;
	}
	ram->page_bytes = page_bytes;
	ram->queue = params ? params->queue : NULL;
	gr_mutex_init(&ram->lock, GR_RANK_RAM);
	gr_mutex_init(&ram->discard_lock, GR_RANK_RAM_DISCARD);
	gr_mutex_init(&ram->removed_lock, GR_RANK_RAM_REMOVED);
	gr_rcu_list_init(&ram->blocks);
	gr_rcu_assign_pointer(ram->index, index);
	*ret_ram = ram;
	return 0;
}

struct gr_ram_index *gr_ram_index_publish_locked(struct gr_ram *ram, struct gr_ram_index *index)
{
	struct gr_ram_index *old = gr_rcu_dereference_protected(ram->index);

	/* Its content before itself; pairs with the dereferences in lookup.c. */
	gr_rcu_assign_pointer(ram->index, index);
	return old;
}

static void reclaim_index(struct gr_rcu_head *head)
{
	gr_ram_index_free(gr_container_of(head, struct gr_ram_index, rcu));
}

void gr_ram_index_free_later(struct gr_ram *ram, struct gr_ram_index *index)
{
	gr_rcu_call(ram->queue, &index->rcu, reclaim_index);
}

/* The order of walks: biggest first, older ones first among equals. */
static void list_insert_locked(struct gr_ram *ram, struct gr_block *block) GR_REQUIRES(ram->lock)
{
	struct gr_block *b, *before = NULL;

	gr_rcu_list_for_each(b, &ram->blocks, struct gr_block, node) {
		if (b->pub.max_bytes < block->pub.max_bytes) {
			break;
		}
		before = b;
	}
	if (before) {
		gr_rcu_list_insert_after(&before->node, &block->node);
	} else {
		gr_rcu_list_insert_head(&ram->blocks, &block->node);
	}
}

/* All clear: the memory exists, the index is made, nobody objects. */
static void publish_block_locked(struct gr_ram *ram, struct gr_block *block,
				 struct gr_ram_index *index) GR_REQUIRES(ram->lock)
{
	gr_store_release(&block->listed, true); /* pairs with gr_ram_block_listed() */
	list_insert_locked(ram, block);
	gr_ram_index_free_later(ram, gr_ram_index_publish_locked(ram, index));
	/* After the list: who reads the new number finds the new list (gr_ram_version()). */
	(void)gr_add_acq_rel(&ram->version, 1);
	GR_HOOK("block add: published");
}

static int grow_dirty(struct gr_ram *ram, const struct gr_ram_block *block, struct gr_error *err)
{
	int ret = gr_dirty_grow(ram->dirty,
				(block->offset.v + block->max_bytes) / ram->page_bytes, err);

	if (ret < 0) {
		gr_error_prefix(err, "block '%s': ", block->id);
	}
	return ret;
}

static int check_free_locked(struct gr_ram *ram, const struct gr_ram_index *index,
			     const struct gr_ram_block *block, struct gr_error *err)
	GR_REQUIRES(ram->lock)
{
	uint64_t host = (uintptr_t)block->host;

	if (ram->frozen != 0) {
		return gr_error_set(err, -EBUSY, "block '%s' cannot be added: %s", block->id,
				    ram->frozen_why);
	}
	if (index->blocks >= GR_RAM_BLOCKS_MAX) {
		return gr_error_set(err, -ENOSPC, "block '%s': there are %d blocks already",
				    block->id, GR_RAM_BLOCKS_MAX);
	}
	if (block->id[0] != '\0' && gr_ram_index_by_id(index, block->id)) {
		return gr_error_set(err, -EEXIST, "block '%s': there is one of this id already",
				    block->id);
	}
	for (unsigned int i = 0; block->host && i < index->hosts; i++) {
		const struct gr_ram_span *s = &index->by_host[i];

		if (s->start < host + block->max_bytes && host < s->start + s->bytes) {
			return gr_error_set(err, -EEXIST,
					    "block '%s': its host memory is block '%s' already",
					    block->id, s->block->id);
		}
	}
	return 0;
}

static int block_add_locked(struct gr_ram *ram, const struct gr_ram_block_desc *desc,
			    struct gr_block *block, struct gr_error *err) GR_REQUIRES(ram->lock)
{
	const struct gr_ram_index *old = gr_rcu_dereference_protected(ram->index);
	struct gr_ram_region region = { .gpa = desc->gpa, .block = &block->pub };
	struct gr_ram_edit edit = { .add_block = &block->pub };
	struct gr_ram_index *index;
	int ret = check_free_locked(ram, old, &block->pub, err);

	if (ret == 0) {
		ret = gr_ram_place(ram, old, block->pub.max_bytes, &block->pub.offset, err);
	}
	if (ret == 0 && desc->mapped) {
		region.bytes = desc->used_bytes;
		ret = gr_ram_region_check(ram, old, &region, err);
		edit.add_region = &region;
	}
#ifndef GR_MUTANT_ADD_PUBLISHES_FIRST
	if (ret == 0) {
		ret = grow_dirty(ram, &block->pub, err); /* O3 */
	}
#endif
	if (ret < 0) {
		return ret;
	}
	index = gr_ram_index_edit(old, &edit);
	if (!index) {
		return gr_error_set(err, -ENOMEM, "block '%s': no memory", block->pub.id);
	}
	ret = gr_ram_notify_add_locked(ram, &block->pub, edit.add_region, err);
	if (ret < 0) {
		gr_ram_index_free(index);
		return ret;
	}
	publish_block_locked(ram, block, index);
#ifdef GR_MUTANT_ADD_PUBLISHES_FIRST
	ret = grow_dirty(ram, &block->pub, err);
#endif
#ifndef GR_MUTANT_ADD_STARTS_CLEAN
	/* For every consumer; after publication (O3). */
	gr_ram_mark(&block->pub, 0, gr_ram_block_used_bytes(&block->pub));
#endif
	return 0;
}

int gr_ram_block_add(struct gr_ram *ram, const struct gr_ram_block_desc *desc,
		     struct gr_ram_block **ret_block, struct gr_error *err)
{
	struct gr_block *block;
	int ret = gr_block_create(ram, desc, &block, err); /* maps memory: without the mutex */

	if (ret < 0) {
		return ret;
	}
	gr_mutex_lock(&ram->lock);
	ret = block_add_locked(ram, desc, block, err);
	/* Before anybody else can remove it again. */
	if (ret == 0 && ret_block) {
		*ret_block = &block->pub;
	}
	if (ret == 0) {
		gr_backing_keep(block); /* before anybody else can remove the block again */
	}
	gr_mutex_unlock(&ram->lock);
	if (ret < 0) {
		block->release = NULL; /* on failure the caller's memory stays the caller's */
		gr_backing_undo(block);
		gr_ram_block_put(&block->pub);
	}
	return ret;
}

static int block_del_locked(struct gr_ram *ram, struct gr_block *block, struct gr_error *err)
	GR_REQUIRES(ram->lock)
{
	struct gr_ram_index *old = gr_rcu_dereference_protected(ram->index), *index;

	index = gr_ram_index_edit(old, &(struct gr_ram_edit){ .del_block = &block->pub });
	if (!index) {
		return gr_error_set(err, -ENOMEM, "removing block '%s': no memory",
				    block->pub.id);
	}
	gr_store_release(&block->listed, false); /* pairs with gr_ram_block_listed() */
	gr_rcu_list_del(&block->node);
	(void)gr_ram_index_publish_locked(ram, index);
	(void)gr_add_acq_rel(&ram->version, 1); /* after the list: gr_ram_version() */
	gr_block_removed(block);
	gr_ram_notify_block_del_locked(ram, &block->pub, old);
	gr_ram_index_free_later(ram, old);
	return 0;
}

static int frozen_locked(struct gr_ram *ram, const char *id, struct gr_error *err)
	GR_REQUIRES(ram->lock)
{
	return gr_error_set(err, -EBUSY, "block '%s' cannot be removed: %s", id, ram->frozen_why);
}

int gr_ram_block_del(struct gr_ram_block *block, struct gr_error *err)
{
	struct gr_ram *ram = block->ram;
	int ret;

	gr_mutex_lock(&ram->lock);
	if (!gr_ram_block_listed(block)) {
		ret = gr_error_set(err, -ENOENT, "block '%s' was removed already", block->id);
	} else if (ram->frozen != 0) {
		ret = frozen_locked(ram, block->id, err);
	} else {
		ret = block_del_locked(ram, gr_block(block), err);
	}
	gr_mutex_unlock(&ram->lock);
	if (ret == 0) {
		gr_block_put_later(gr_block(block));
	}
	return ret;
}

int gr_ram_block_del_by_id(struct gr_ram *ram, const char *id, struct gr_error *err)
{
	struct gr_ram_block *block;
	int ret;

	gr_mutex_lock(&ram->lock);
	block = gr_ram_index_by_id(gr_rcu_dereference_protected(ram->index), id);
	if (!block) {
		ret = gr_error_set(err, -ENOENT, "there is no block '%s'", id);
	} else if (ram->frozen != 0) {
		ret = frozen_locked(ram, id, err);
	} else {
		ret = block_del_locked(ram, gr_block(block), err);
	}
	gr_mutex_unlock(&ram->lock);
	if (ret == 0) {
		gr_block_put_later(gr_block(block));
	}
	return ret;
}

void gr_ram_freeze(struct gr_ram *ram, const char *why)
{
	gr_mutex_lock(&ram->lock);
	ram->frozen++;
	ram->frozen_why = why;
	gr_mutex_unlock(&ram->lock);
}

void gr_ram_thaw(struct gr_ram *ram)
{
	gr_mutex_lock(&ram->lock);
	if (ram->frozen == 0) {
		gr_die("gr_ram_thaw without gr_ram_freeze");
	}
	ram->frozen--;
	gr_mutex_unlock(&ram->lock);
}

static void del_all(struct gr_ram *ram)
{
	struct gr_block *b;
	int ret = 0;

	gr_mutex_lock(&ram->lock);
	ram->frozen = 0;
	while (ret == 0 && (b = gr_rcu_list_entry(ram->blocks.first, struct gr_block, node))) {
		ret = block_del_locked(ram, b, NULL);
		if (ret == 0) {
			gr_block_put_later(b);
		}
	}
	gr_mutex_unlock(&ram->lock);
	if (ret < 0) {
		gr_die("gr_ram_free: no memory to take the list apart");
	}
}

void gr_ram_free(struct gr_ram *ram)
{
	uint32_t alive;

	if (!ram) {
		return;
	}
	del_all(ram);
	gr_rcu_barrier(ram->queue);
	/* Pairs with the decrement in block_free(): its memory is back. */
	while ((alive = gr_load_acquire(&ram->blocks_alive)) != 0) {
		(void)gr_futex_wait(&ram->blocks_alive, alive, GR_FUTEX_FOR_EVER);
	}
	gr_dirty_free(ram->dirty);
	gr_ram_index_free(gr_rcu_dereference_protected(ram->index));
	gr_mutex_destroy(&ram->removed_lock);
	gr_mutex_destroy(&ram->discard_lock);
	gr_mutex_destroy(&ram->lock);
	free(ram);
}

uint32_t gr_ram_page_bytes(const struct gr_ram *ram)
{
	return ram->page_bytes;
}

struct gr_dirty *gr_ram_dirty(struct gr_ram *ram)
{
	return ram->dirty;
}

uint64_t gr_ram_version(const struct gr_ram *ram)
{
	/* A walk before this call is not moved behind it; partner: the additions above. */
	gr_fence();
	return gr_load_acquire(&ram->version);
}
