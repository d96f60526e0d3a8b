/* SPDX-License-Identifier: MIT */
/*
 * A block's life. It is made with one reference, the list's. Taking it off the list gives
 * that reference back after a grace period, so whoever finds the block in a read-side section
 * may take a reference there: the count cannot have reached zero. Who drops the last one
 * gives the memory back.
 */
#include "base/atomic.h"
#include "base/clock.h"
#include "base/futex.h"
#include "base/random.h"
#include "ram/ram.h"
#include <errno.h>
#include <string.h>
#include <unistd.h>

/*
 * High half random, low half counted: two blocks of one process never share it, and two of
 * different processes (a fork's child too) hardly ever do. Never 0.
 */
static uint64_t make_incarnation(void)
{
	static uint32_t count; /* (a) uniqueness is all that is asked of it */
	uint32_t low = gr_add_relaxed(&count, 1) + 1;
	uint32_t high;

	if (!gr_random(&high, sizeof(high))) {
		high = (uint32_t)getpid() * 0x9e3779b9u ^ (uint32_t)gr_clock_ns();
	}
	return (uint64_t)(high | 1u << 31) << 32 | low;
}

static int check_desc(const struct gr_ram *ram, const struct gr_ram_block_desc *desc,
		      struct gr_error *err)
{
	uint64_t max = desc->max_bytes ? desc->max_bytes : desc->used_bytes;

	/* What takes no part in migrations needs none. */
	if (!(desc->flags & GR_RAM_NO_MIGRATE) || desc->id[0] != '\0') {
		int ret = gr_block_id_check(desc->id, err);

		if (ret < 0) {
			return ret;
		}
	}
	if (desc->used_bytes == 0 || desc->used_bytes > max) {
		return gr_error_set(err, -EINVAL,
				    "block '%s': used length %llu is zero or above the maximum %llu",
				    desc->id, (unsigned long long)desc->used_bytes,
				    (unsigned long long)max);
	}
	if (desc->used_bytes % ram->page_bytes != 0 || max % ram->page_bytes != 0) {
		return gr_error_set(err, -EINVAL,
				    "block '%s': lengths %llu and %llu are not multiples of the page "
				    "size %u",
				    desc->id, (unsigned long long)desc->used_bytes,
				    (unsigned long long)max, ram->page_bytes);
	}
	if (max > gr_ram_addr_max(ram)) {
		return gr_error_set(err, -EINVAL, "block '%s': %llu bytes are more than %llu can be",
				    desc->id, (unsigned long long)max,
				    (unsigned long long)gr_ram_addr_max(ram));
	}
	if (max > SIZE_MAX / 2 && desc->backing != GR_RAM_ON_DEMAND) {
		return gr_error_set(err, -ENOMEM, "block '%s': this process cannot map %llu bytes",
				    desc->id, (unsigned long long)max);
	}
	if (desc->granule_bytes != 0 &&
	    (!GR_IS_POWER_OF_TWO(desc->granule_bytes) || max % desc->granule_bytes != 0)) {
		return gr_error_set(err, -EINVAL,
				    "block '%s': pieces of %llu bytes are no power of two that divides "
				    "%llu",
				    desc->id, (unsigned long long)desc->granule_bytes,
				    (unsigned long long)max);
	}
	return gr_policy_check(desc, err);
}

/* The size of its pieces is known when that of its pages is. */
static int set_granule(struct gr_block *b, const struct gr_ram_block_desc *desc,
		       struct gr_error *err)
{
	uint64_t least = GR_MAX(b->pub.page_bytes, (uint64_t)b->pub.ram->page_bytes);

	b->pub.granule_bytes = desc->granule_bytes ? desc->granule_bytes : least;
	if (b->pub.granule_bytes < least) {
		return gr_error_set(err, -EINVAL,
				    "block '%s': pieces of %llu bytes are smaller than pages of %llu",
				    desc->id, (unsigned long long)desc->granule_bytes,
				    (unsigned long long)least);
	}
	return 0;
}

static int block_fill(struct gr_block *b, const struct gr_ram_block_desc *desc,
		      struct gr_error *err)
{
	unsigned int flags = desc->flags;
	int ret;

	if (flags & GR_RAM_HOST_READONLY) {
		flags |= GR_RAM_READONLY;
	}
	b->pub.id = gr_block_id_keep(b, desc->id);
	if (!b->pub.id) {
		return gr_error_set(err, -ENOMEM, "block '%s': no memory", desc->id);
	}
	b->pub.used_bytes_atomic = desc->used_bytes;
	b->pub.max_bytes = desc->max_bytes ? desc->max_bytes : desc->used_bytes;
	b->pub.flags_atomic = flags;
	b->pub.incarnation = desc->incarnation ? desc->incarnation : make_incarnation();
	b->numa_policy = desc->numa_policy;
	b->numa_nodes = desc->numa_nodes;
	b->refs = 1;
	ret = gr_backing_map(b, desc, err);
	if (ret < 0) {
		return ret;
	}
	ret = set_granule(b, desc, err);
	if (ret < 0) {
		b->release = NULL; /* the caller's memory stays the caller's */
		gr_backing_undo(b);
		gr_backing_unmap(b);
	}
	return ret;
}

int gr_block_create(struct gr_ram *ram, const struct gr_ram_block_desc *from,
		    struct gr_block **ret_block, struct gr_error *err)
{
	struct gr_ram_block_desc desc;
	struct gr_block *b;
	int ret;

	/* Before anything else of it is read: another version's may end early. */
	if (from->size != sizeof(desc)) {
		return gr_error_set(err, -EINVAL, "block description of %zu bytes, not %zu",
				    from->size, sizeof(desc));
	}
	desc = *from;
	if (!desc.id) {
		desc.id = "";
	}
	ret = check_desc(ram, &desc, err);
	if (ret < 0) {
		return ret;
	}
	b = calloc(1, sizeof(*b));
	if (!b) {
		return gr_error_set(err, -ENOMEM, "block '%s': no memory", desc.id);
	}
	b->pub.ram = ram;
	ret = block_fill(b, &desc, err);
	if (ret < 0) {
		gr_block_ids_free(b);
		free(b);
		return ret;
	}
	/* Pairs with the decrement in block_free(). */
	(void)gr_add_acq_rel(&ram->blocks_alive, 1);
	*ret_block = b;
	return 0;
}

void gr_block_removed(struct gr_block *block)
{
	struct gr_ram *ram = block->pub.ram;

	gr_mutex_lock(&ram->removed_lock);
	block->removed_next = ram->removed;
	block->removed_at = &ram->removed;
	if (ram->removed) {
		ram->removed->removed_at = &block->removed_next;
	}
	ram->removed = block;
	gr_mutex_unlock(&ram->removed_lock);
}

/* One that never was on the list is not there either. */
static void removed_del(struct gr_block *b)
{
	struct gr_ram *ram = b->pub.ram;

	gr_mutex_lock(&ram->removed_lock);
	if (b->removed_at) {
		*b->removed_at = b->removed_next;
		if (b->removed_next) {
			b->removed_next->removed_at = b->removed_at;
		}
	}
	gr_mutex_unlock(&ram->removed_lock);
}

static void block_free(struct gr_block *b)
{
	uint32_t *alive = &b->pub.ram->blocks_alive;

	removed_del(b);
	gr_backing_unmap(b);
	gr_block_gone_free(b);
	gr_block_ids_free(b);
	free(b);
	/* Pairs with the acquire in gr_ram_free(): the machine may be gone after this. */
	if (gr_sub_acq_rel(alive, 1) == 1) {
		gr_futex_wake(alive, GR_FUTEX_ALL); /* an address, not its memory */
	}
}

void gr_ram_block_get(struct gr_ram_block *block)
{
	/* The caller's section or reference keeps it above zero; nothing to order. */
	uint32_t before = gr_add_relaxed(&gr_block(block)->refs, 1);

	GR_ASSERT(before != 0 && before != UINT32_MAX);
}

/* Whether it was the last one. */
static bool drop(struct gr_block *b)
{
	/* Everybody's last use before the memory goes; pairs with itself. */
	uint32_t before = gr_sub_acq_rel(&b->refs, 1);

	GR_ASSERT(before != 0);
	return before == 1;
}

void gr_ram_block_put(struct gr_ram_block *block)
{
	if (block && drop(gr_block(block))) {
		block_free(gr_block(block));
	}
}

static void put_after_grace_period(struct gr_rcu_head *head)
{
	struct gr_block *b = gr_container_of(head, struct gr_block, rcu);
	struct gr_mutex *lock = &b->pub.ram->removed_lock;
	bool last;

	/* Both at once, for who counts the others' references. */
	gr_mutex_lock(lock);
	b->list_gone = true;
	last = drop(b);
	gr_mutex_unlock(lock);
	if (last) {
		block_free(b);
	}
}

bool gr_ram_removed_in_use(struct gr_ram *ram,
			   bool (*match)(void *opaque, const struct gr_ram_block *block),
			   void *opaque)
{
	bool found = false;

	gr_mutex_lock(&ram->removed_lock);
	for (struct gr_block *b = ram->removed; b && !found; b = b->removed_next) {
		/* One that is being freed is not waited for; nor does it matter any more. */
		found = gr_load_acquire(&b->refs) > (b->list_gone ? 0u : 1u) &&
			match(opaque, &b->pub);
	}
	gr_mutex_unlock(&ram->removed_lock);
	return found;
}

void gr_block_put_later(struct gr_block *block)
{
#ifdef GR_MUTANT_BLOCK_NO_GRACE_PERIOD
	put_after_grace_period(&block->rcu);
#else
	gr_rcu_call(block->pub.ram->queue, &block->rcu, put_after_grace_period);
#endif
}

bool gr_ram_block_listed(const struct gr_ram_block *block)
{
	return gr_load_acquire(&gr_block(block)->listed); /* pairs with the stores in list.c */
}
