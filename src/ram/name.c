/* SPDX-License-Identifier: MIT */
/*
 * Ids. Readers use block->id without a lock and may keep the pointer as long as they keep the
 * block, so an id's text never changes and is freed with the block. Lookups use the copy of the
 * pointer in their index: what an index was sorted by stays what it was.
 */
#include "base/atomic.h"
#include "ram/ram.h"
#include <errno.h>
#include <string.h>

struct gr_block_id {
	struct gr_block_id *next;
	char text[];
};

int gr_block_id_check(const char *id, struct gr_error *err)
{
	if (!id || id[0] == '\0' ||
	    strnlen(id, GR_RAM_ID_BYTES_MAX + 1) > GR_RAM_ID_BYTES_MAX) {
		return gr_error_set(err, -EINVAL, "block id must have 1 to %d bytes",
				    GR_RAM_ID_BYTES_MAX);
	}
	return 0;
}

const char *gr_block_id_keep(struct gr_block *block, const char *id)
{
	size_t bytes = strlen(id) + 1;
	struct gr_block_id *kept;

	if (bytes == 1) {
		return "";
	}
	for (kept = block->ids; kept; kept = kept->next) {
		if (strcmp(kept->text, id) == 0) {
			return kept->text;
		}
	}
	kept = malloc(sizeof(*kept) + bytes);
	if (!kept) {
		return NULL;
	}
	memcpy(kept->text, id, bytes);
	kept->next = block->ids;
	block->ids = kept;
	return kept->text;
}

void gr_block_ids_free(struct gr_block *block)
{
	struct gr_block_id *next;

	for (struct gr_block_id *id = block->ids; id; id = next) {
		next = id->next;
		free(id);
	}
}

int gr_ram_changeable_locked(const struct gr_ram *ram, const struct gr_ram_block *block,
			     struct gr_error *err)
{
	if (!gr_ram_block_listed(block)) {
		return gr_error_set(err, -ENOENT, "block '%s' was removed already", block->id);
	}
	if (ram->frozen != 0) {
		return gr_error_set(err, -EBUSY, "block '%s' cannot be changed: %s", block->id,
				    ram->frozen_why);
	}
	return 0;
}

/* id "": none any more. */
static int rename_locked(struct gr_ram *ram, struct gr_ram_block *block, const char *id,
			 struct gr_error *err) GR_REQUIRES(ram->lock)
{
	struct gr_ram_index *old = gr_rcu_dereference_protected(ram->index), *index = NULL;
	const char *kept = gr_block_id_keep(gr_block(block), id);

	if (kept) {
		index = gr_ram_index_edit(old, &(struct gr_ram_edit){ .rename = block, .id = kept });
	}
	if (!index) {
		return gr_error_set(err, -ENOMEM, "id '%s': no memory", id);
	}
	gr_store_release(&block->id, kept); /* its text before it; pairs with plain reads by address */
	gr_ram_index_free_later(ram, gr_ram_index_publish_locked(ram, index));
	(void)gr_add_acq_rel(&ram->version, 1); /* after the list: gr_ram_version() */
	return 0;
}

static int set_id_locked(struct gr_ram *ram, struct gr_ram_block *block, const char *id,
			 struct gr_error *err) GR_REQUIRES(ram->lock)
{
	int ret = gr_ram_changeable_locked(ram, block, err);

	if (ret < 0) {
		return ret;
	}
	if (block->id[0] != '\0') {
		return gr_error_set(err, -EEXIST, "block '%s' cannot be '%s' too", block->id, id);
	}
	if (gr_ram_index_by_id(gr_rcu_dereference_protected(ram->index), id)) {
		return gr_error_set(err, -EEXIST, "block '%s': there is one of this id already", id);
	}
	return rename_locked(ram, block, id, err);
}

int gr_ram_block_set_id(struct gr_ram_block *block, const char *id, struct gr_error *err)
{
	struct gr_ram *ram = block->ram;
	int ret = gr_block_id_check(id, err);

	if (ret < 0) {
		return ret;
	}
	gr_mutex_lock(&ram->lock);
	ret = set_id_locked(ram, block, id, err);
	gr_mutex_unlock(&ram->lock);
	return ret;
}

static int unset_id_locked(struct gr_ram *ram, struct gr_ram_block *block, struct gr_error *err)
	GR_REQUIRES(ram->lock)
{
	int ret = gr_ram_changeable_locked(ram, block, err);

	if (ret < 0) {
		return ret;
	}
	if (block->id[0] == '\0') {
		return gr_error_set(err, -ENOENT, "the block at %#llx has no id",
				    (unsigned long long)block->offset.v);
	}
	if (!(gr_ram_block_flags(block) & GR_RAM_NO_MIGRATE)) {
		return gr_error_set(err, -EINVAL, "block '%s' needs its id for migrations",
				    block->id);
	}
	return rename_locked(ram, block, "", err);
}

int gr_ram_block_unset_id(struct gr_ram_block *block, struct gr_error *err)
{
	struct gr_ram *ram = block->ram;
	int ret;

	gr_mutex_lock(&ram->lock);
	ret = unset_id_locked(ram, block, err);
	gr_mutex_unlock(&ram->lock);
	return ret;
}

static int set_migratable_locked(struct gr_ram *ram, struct gr_ram_block *block, bool migratable,
				 struct gr_error *err) GR_REQUIRES(ram->lock)
{
	unsigned int flags = gr_ram_block_flags(block);
	bool joins = migratable && (flags & GR_RAM_NO_MIGRATE);
	int ret = gr_ram_changeable_locked(ram, block, err);

	if (ret < 0) {
		return ret;
	}
	if (migratable &&
	    (block->id[0] == '\0' || (flags & GR_RAM_HOST_READONLY) || !block->host)) {
		return gr_error_set(err, -EINVAL, "block '%s' %s", block->id,
				    block->id[0] == '\0' ? "has no id to migrate it by" :
							   "is mapped for reading only, or on demand");
	}
	flags = migratable ? flags & ~(unsigned int)GR_RAM_NO_MIGRATE : flags | GR_RAM_NO_MIGRATE;
	gr_store_release(&block->flags_atomic, flags); /* pairs with gr_ram_block_flags() */
	(void)gr_add_acq_rel(&ram->version, 1);
#ifndef GR_MUTANT_JOINS_CLEAN
	/* A migration that runs has dropped its marks so far; it knows the block before these. */
	if (joins) {
		gr_ram_mark(block, 0, gr_ram_block_used_bytes(block));
	}
#else
	(void)joins;
#endif
	return 0;
}

int gr_ram_block_set_migratable(struct gr_ram_block *block, bool migratable, struct gr_error *err)
{
	struct gr_ram *ram = block->ram;
	int ret;

	gr_mutex_lock(&ram->lock);
	ret = set_migratable_locked(ram, block, migratable, err);
	gr_mutex_unlock(&ram->lock);
	return ret;
}
