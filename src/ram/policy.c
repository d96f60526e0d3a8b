/* SPDX-License-Identifier: MIT */
/*
 * What a block's flags ask of the system beyond the mapping. A wish that cannot be met refuses the
 * block: who asked for locked or undumped memory must not find out later that it is not.
 */
#include "ram/ram.h"
#include <errno.h>
#include <string.h>

static const struct {
	unsigned int flag;
	unsigned int backings; /* those that know it: 1 << enum gr_ram_backing */
	const char *name;
} known[] = {
#define ON(backing) (1u << GR_RAM_##backing)
#define FILES	    (ON(FILE) | ON(FD))
#define OURS	    (ON(MEMFD) | ON(ANONYMOUS) | FILES)
#define WHOLE	    (OURS | ON(CALLER))
#define ANY	    (WHOLE | ON(ON_DEMAND))
	{ GR_RAM_READONLY, ANY, "READONLY" },
	{ GR_RAM_NO_MIGRATE, ANY, "NO_MIGRATE" },
	{ GR_RAM_SHARED, ANY, "SHARED" },
	{ GR_RAM_PRIVATE, FILES | ON(ANONYMOUS) | ON(CALLER), "PRIVATE" },
	{ GR_RAM_NO_RESERVE, OURS, "NO_RESERVE" },
	{ GR_RAM_HOST_READONLY, FILES | ON(ON_DEMAND), "HOST_READONLY" },
	{ GR_RAM_PREALLOC, OURS, "PREALLOC" },
	{ GR_RAM_THP, WHOLE, "THP" },
	{ GR_RAM_NO_DUMP, WHOLE, "NO_DUMP" },
	{ GR_RAM_NO_FORK, WHOLE, "NO_FORK" },
	{ GR_RAM_MERGE, WHOLE, "MERGE" },
	{ GR_RAM_LOCK, WHOLE, "LOCK" },
	{ GR_RAM_PERSISTENT, FILES, "PERSISTENT" },
};

static int check_flags(const struct gr_ram_block_desc *desc, struct gr_error *err)
{
	unsigned int rest = desc->flags;

	for (size_t i = 0; i < GR_ARRAY_SIZE(known); i++) {
		if (!(rest & known[i].flag)) {
			continue;
		}
		rest &= ~known[i].flag;
		if (!(known[i].backings & 1u << desc->backing)) {
			return gr_error_set(err, -EINVAL,
					    "block '%s': its backing does not know GR_RAM_%s",
					    desc->id, known[i].name);
		}
	}
	if (rest != 0) {
		return gr_error_set(err, -EINVAL, "block '%s': unknown flags %#x", desc->id, rest);
	}
	if ((desc->flags & GR_RAM_SHARED) && (desc->flags & GR_RAM_PRIVATE)) {
		return gr_error_set(err, -EINVAL, "block '%s': both shared and private", desc->id);
	}
	if ((desc->flags & GR_RAM_SHARED) && desc->backing == GR_RAM_CALLER && desc->fd < 0) {
		return gr_error_set(err, -EINVAL,
				    "block '%s': GR_RAM_SHARED for the caller's memory, without the fd "
				    "that is behind it",
				    desc->id);
	}
	if (((desc->flags & GR_RAM_HOST_READONLY) || desc->backing == GR_RAM_ON_DEMAND) &&
	    !(desc->flags & GR_RAM_NO_MIGRATE)) {
		return gr_error_set(err, -EINVAL,
				    "block '%s': a migration cannot have it, since it is mapped on demand "
				    "or for reading only: set GR_RAM_NO_MIGRATE",
				    desc->id);
	}
	if ((desc->flags & GR_RAM_PERSISTENT) && (desc->flags & GR_RAM_PRIVATE)) {
		return gr_error_set(err, -EINVAL, "block '%s': both persistent and private",
				    desc->id);
	}
	return 0;
}

int gr_policy_check(const struct gr_ram_block_desc *desc, struct gr_error *err)
{
	bool own_pages = desc->backing == GR_RAM_MEMFD || desc->backing == GR_RAM_ANONYMOUS;
	bool nodes = desc->numa_policy != GR_RAM_NUMA_DEFAULT;
	int ret;

	if ((unsigned int)desc->backing > GR_RAM_ON_DEMAND) {
		return gr_error_set(err, -EINVAL, "block '%s': unknown backing %d", desc->id,
				    (int)desc->backing);
	}
	ret = check_flags(desc, err);
	if (ret < 0) {
		return ret;
	}
	if (desc->page_bytes != 0 && (!own_pages || !GR_IS_POWER_OF_TWO(desc->page_bytes) ||
				      desc->page_bytes < gr_page_bytes() ||
				      desc->page_bytes > SIZE_MAX / 4)) {
		return gr_error_set(err, -EINVAL,
				    "block '%s': pages of %llu bytes are not possible, or not the "
				    "description's to choose with this backing",
				    desc->id, (unsigned long long)desc->page_bytes);
	}
	if (desc->align_bytes != 0 &&
	    (desc->backing == GR_RAM_CALLER || desc->backing == GR_RAM_ON_DEMAND || !GR_IS_POWER_OF_TWO(desc->align_bytes) ||
	     desc->align_bytes > SIZE_MAX / 4)) {
		return gr_error_set(err, -EINVAL,
				    "block '%s': alignment %llu is no power of two, too large, or the "
				    "caller's own",
				    desc->id, (unsigned long long)desc->align_bytes);
	}
	if ((desc->window_bytes != 0 || desc->windows_max != 0) && desc->backing != GR_RAM_ON_DEMAND) {
		return gr_error_set(err, -EINVAL, "block '%s': windows, but not GR_RAM_ON_DEMAND",
				    desc->id);
	}
	if ((unsigned int)desc->numa_policy > GR_RAM_NUMA_INTERLEAVE ||
	    (nodes && desc->backing == GR_RAM_ON_DEMAND) ||
	    nodes != (desc->numa_nodes != 0)) {
		return gr_error_set(err, -EINVAL,
				    "block '%s': NUMA policy %d with nodes %#llx makes no sense",
				    desc->id, (int)desc->numa_policy,
				    (unsigned long long)desc->numa_nodes);
	}
	return 0;
}

/*
 * Wishes that the kernel takes and forgets. Who has asked for merging or for nodes must not find out
 * later that nothing came of it.
 */
static int check_deaf(const struct gr_block *block, struct gr_error *err)
{
	const struct gr_memory *m = &block->memory;
	bool shared = m->flags & GR_MEMORY_SHARED;
	unsigned int flags = gr_ram_block_flags(&block->pub);

#ifdef GR_MUTANT_WISHES_UNHEARD
	return 0;
#endif
	if ((flags & GR_RAM_MERGE) &&
	    (shared || m->page_bytes > gr_page_bytes() ||
	     (block->pub.backing == GR_RAM_CALLER && !(flags & GR_RAM_PRIVATE)))) {
		return gr_error_set(err, -ENOTSUP,
				    "block '%s': GR_RAM_MERGE, but only private memory in ordinary pages "
				    "is merged (GR_RAM_ANONYMOUS, or GR_RAM_PRIVATE)",
				    block->pub.id);
	}
	if (block->numa_policy != GR_RAM_NUMA_DEFAULT && shared && m->fd >= 0 &&
	    !gr_memory_file_is_memory(m->fd)) {
		return gr_error_set(err, -ENOTSUP,
				    "block '%s': a NUMA policy, but its file is cached wherever who reads "
				    "it first runs (only files in memory heed one)",
				    block->pub.id);
	}
	return 0;
}

static int advise(const struct gr_block *block, size_t offset, size_t bytes,
		  enum gr_memory_advice advice, const char *what, struct gr_error *err)
{
	int ret = gr_memory_advise(block->memory.host + offset, bytes, advice);

	return ret == 0 ? 0 :
			  gr_error_set(err, ret, "block '%s': %s %zu bytes: %s", block->pub.id, what,
				       bytes, strerror(-ret));
}

/* Before the first page is there, so that it comes from the right node and has the right size. */
static int apply_early(const struct gr_block *block, size_t offset, size_t bytes,
		       struct gr_error *err)
{
	static const struct {
		unsigned int flag;
		enum gr_memory_advice advice;
		const char *what;
	} wishes[] = {
		{ GR_RAM_THP, GR_MEMORY_THP, "huge pages for" },
		{ GR_RAM_NO_DUMP, GR_MEMORY_NO_DUMP, "excluding from core files" },
		{ GR_RAM_NO_FORK, GR_MEMORY_NO_FORK, "excluding from children" },
		{ GR_RAM_MERGE, GR_MEMORY_MERGE, "merging equal pages of" },
	};
	unsigned int flags = gr_ram_block_flags(&block->pub);
	int ret;

	for (size_t i = 0; i < GR_ARRAY_SIZE(wishes); i++) {
		if (flags & wishes[i].flag) {
			ret = advise(block, offset, bytes, wishes[i].advice, wishes[i].what, err);
			if (ret < 0) {
				return ret;
			}
		}
	}
	if (block->numa_policy == GR_RAM_NUMA_DEFAULT) {
		return 0;
	}
	ret = gr_memory_bind(block->memory.host + offset, bytes, (unsigned int)block->numa_policy,
			     block->numa_nodes);
	return ret == 0 ? 0 :
			  gr_error_set(err, ret, "block '%s': binding to NUMA nodes %#llx: %s",
				       block->pub.id, (unsigned long long)block->numa_nodes,
				       strerror(-ret));
}

/* Last: it brings in what is not there yet, with one thread and without progress. */
static int apply_lock(const struct gr_block *block, size_t offset, size_t bytes,
		      struct gr_error *err)
{
	if (!(gr_ram_block_flags(&block->pub) & GR_RAM_LOCK)) {
		return 0;
	}
	return advise(block, offset, bytes, GR_MEMORY_LOCK, "locking", err);
}

int gr_policy_apply(struct gr_block *block, const struct gr_ram_block_desc *desc,
		    struct gr_error *err)
{
	int ret = check_deaf(block, err);

	if (ret == 0) {
		ret = apply_early(block, 0, block->memory.bytes, err);
	}
	if (ret == 0 && (desc->flags & GR_RAM_PREALLOC)) {
		ret = gr_prealloc(block, &desc->prealloc, err);
	}
	return ret < 0 ? ret : apply_lock(block, 0, block->memory.bytes, err);
}

int gr_policy_again(struct gr_block *block, size_t offset, size_t bytes, struct gr_error *err)
{
	int ret = apply_early(block, offset, bytes, err);

	return ret < 0 ? ret : apply_lock(block, offset, bytes, err);
}
