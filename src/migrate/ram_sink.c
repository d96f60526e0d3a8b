/* SPDX-License-Identifier: MIT */
#include "migrate/ram_sink.h"
#include "base/atomic.h"
#include "base/mutex.h"
#include "migrate/holes.h"
#include "migrate/place.h"
#include "migrate/section.h"
#include "ram/untouched.h"
#include <errno.h>
#include <guestram/ram_change.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Fewer zero bytes than these are cleared rather than given back: they cost less than a system
 * call. */
enum { GIVE_BACK_BYTES = 64 << 10 };

/* One block that takes part in the migration; the user of its entry in the reader's table. */
struct sink_block {
	struct gr_ram_block *block; /* with a reference */
	uint64_t bytes;		    /* its length, in the stream and here */
	uint64_t *present;	    /* (a) a bit per page: something may be in it */
	gr_atomic_u64 placed_pages; /* (a) */
	enum gr_place_how how;
	bool ignored;	/* x-ignore-shared: no page of it comes; no map, nothing placed */
	bool announced; /* by one of ours, who said whether it is shared */
	struct sink_block *next;
};

struct gr_ram_sink {
	struct gr_ram *ram;	       /* (c) */
	struct gr_destination_ops ops; /* (c) */
	uint64_t page_bytes;	       /* (c) of the machine, and then of the stream */
	struct gr_placer placer;       /* (o) */
	struct gr_mutex zero_lock;     /* who clears pages: threads of further channels do it too */
	struct gr_holes holes;	       /* (o), (zero_lock) */
	uint8_t *page;		       /* (zero_lock) room for one */
	bool ignore_shared;	       /* (c) */
	struct sink_block *blocks;     /* (o) */
	struct gr_section_watch watch; /* (o) */
};

/*
 * Threads of further channels share words of the map, never pages between two of their meetings: each
 * page's bit is ordered by those.
 */
static bool page_present(const struct sink_block *b, uint64_t page)
{
	return (gr_load_relaxed(&b->present[page / 64]) >> page % 64 & 1) != 0;
}

/* The bits of [page, end) in the word of `page`. */
static uint64_t word_mask(uint64_t page, uint64_t end)
{
	uint64_t n = GR_MIN(end - page, 64 - page % 64);

	return UINT64_MAX >> (64 - n) << page % 64;
}

static void set_present(struct sink_block *b, uint64_t page, uint64_t pages)
{
	for (uint64_t end = page + pages; page < end; page = (page | 63) + 1) {
		(void)gr_or_acq_rel(&b->present[page / 64], word_mask(page, end));
	}
}

static void clear_present(struct sink_block *b, uint64_t page, uint64_t pages)
{
	for (uint64_t end = page + pages; page < end; page = (page | 63) + 1) {
		(void)gr_and_acq_rel(&b->present[page / 64], ~word_mask(page, end));
	}
}

/* First page at or after `page`, below `end`, of which present is `want`; end if none. */
static uint64_t find_present(const struct sink_block *b, uint64_t page, uint64_t end, bool want)
{
	uint64_t flip = want ? 0 : UINT64_MAX;

	while (page < end) {
		uint64_t word = (gr_load_relaxed(&b->present[page / 64]) ^ flip) >> page % 64;

		if (word != 0) {
			return GR_MIN(page + (uint64_t)__builtin_ctzll(word), end);
		}
		page = (page | 63) + 1;
	}
	return end;
}

int gr_ram_sink_create(struct gr_ram *ram, const struct gr_destination_ops *ops,
		       struct gr_ram_sink **ret_sink, struct gr_error *err)
{
	int rc = gr_ram_loaded_check(ram, err);
	struct gr_ram_sink *sink = rc == 0 ? calloc(1, sizeof(*sink)) : NULL;

	if (rc < 0) {
		return rc;
	}
	if (!sink) {
		return gr_error_set(err, -ENOMEM, "no memory for a destination");
	}
	sink->ram = ram;
	sink->page_bytes = gr_ram_page_bytes(ram);
	if (ops) {
		sink->ops = *ops;
	}
	rc = gr_holes_init(&sink->holes, sink->page_bytes, err);
	sink->holes.walks_once = true;
	sink->page = malloc(sink->page_bytes);
	if (rc == 0 && !sink->page) {
		gr_holes_destroy(&sink->holes);
		rc = gr_error_set(err, -ENOMEM, "no memory for a destination");
	}
	if (rc < 0) {
		free(sink->page);
		free(sink);
		return rc;
	}
	gr_mutex_init(&sink->zero_lock, GR_RANK_MIGRATE);
	gr_placer_init(&sink->placer);
	*ret_sink = sink;
	return 0;
}

static void end_placing(struct gr_ram_sink *sink, struct sink_block *b)
{
	if (!b->ignored) {
		gr_placer_end(&sink->placer, b->block, b->how);
	}
}

static void let_go(struct gr_ram_sink *sink, struct sink_block *b)
{
	for (struct sink_block **at = &sink->blocks; *at; at = &(*at)->next) {
		if (*at == b) {
			*at = b->next;
			break;
		}
	}
	end_placing(sink, b);
	gr_ram_block_put(b->block);
	free(b->present);
	free(b);
}

void gr_ram_sink_set_ignore_shared(struct gr_ram_sink *sink, bool on)
{
	sink->ignore_shared = on;
}

void gr_ram_sink_end(struct gr_ram_sink *sink)
{
	while (sink->blocks) {
		let_go(sink, sink->blocks);
	}
}

void gr_ram_sink_free(struct gr_ram_sink *sink)
{
	if (!sink) {
		return;
	}
	gr_ram_sink_end(sink);
	gr_placer_destroy(&sink->placer);
	gr_holes_destroy(&sink->holes);
	gr_mutex_destroy(&sink->zero_lock);
	free(sink->page);
	free(sink);
}

uint64_t gr_ram_sink_section_ns_max(const struct gr_ram_sink *sink)
{
	return sink->watch.ns_max;
}

void gr_ram_sink_describe(const struct gr_ram_sink *sink, char *buf, size_t bytes)
{
	size_t at = 0;
	int n;

	buf[0] = '\0';
	for (const struct sink_block *b = sink->blocks; b; b = b->next) {
		if (b->ignored) {
			continue;
		}
		n = snprintf(buf + at, bytes - at, "%s%s %llu of %llu", at == 0 ? "" : ", ",
			     b->block->id, (unsigned long long)gr_load_relaxed(&b->placed_pages),
			     (unsigned long long)(b->bytes / sink->page_bytes));
		if (n < 0 || (size_t)n >= bytes - at) {
			buf[at] = '\0';
			return;
		}
		at += (size_t)n;
	}
}

static int sink_config(void *opaque, const struct gr_stream_record *config, struct gr_error *err)
{
	struct gr_ram_sink *sink = opaque;

	if (config->config.page_bytes != sink->page_bytes) {
		return gr_error_set(
			err, -EINVAL, "the stream's pages have %u bytes, this machine's have %llu",
			config->config.page_bytes, (unsigned long long)sink->page_bytes);
	}
	return 0;
}

/* Finds a block with a reference, or NULL. */
static struct gr_ram_block *block_get(struct gr_ram *ram, const char *id,
				      struct gr_section_watch *watch)
{
	struct gr_ram_block *block;

	gr_section_enter(watch);
	block = gr_ram_block_by_id_rcu(ram, id);
	if (block) {
		gr_ram_block_get(block);
	}
	gr_section_leave(watch);
	return block;
}

static int block_make(struct gr_ram *ram, const struct gr_destination_ops *ops,
		      const struct gr_stream_block *entry, struct gr_error *err)
{
	struct gr_block_announcement what = {
		.id = entry->id,
		.used_bytes = entry->used_bytes,
		.max_bytes = GR_MAX(entry->max_bytes, entry->used_bytes),
		.incarnation = entry->incarnation,
		.page_bytes = entry->page_bytes,
		.flags = entry->flags & (GR_RAM_READONLY | GR_RAM_SHARED),
		.mapped = entry->incarnation != 0 && entry->gpa != GR_STREAM_GPA_NONE,
		.gpa = gr_gpa(entry->gpa == GR_STREAM_GPA_NONE ? 0 : entry->gpa),
	};
	struct gr_ram_block_desc desc = {
		.size = sizeof(desc),
		.id = what.id,
		.used_bytes = what.used_bytes,
		.max_bytes = what.max_bytes,
		.flags = what.flags,
		.mapped = what.mapped,
		.gpa = what.gpa,
		.fd = -1,
	};

	if (what.max_bytes > GR_RAM_SINK_BLOCK_BYTES_MAX) {
		return gr_error_set(err, -EFBIG, "block '%s': %llu bytes are too many", what.id,
				    (unsigned long long)what.max_bytes);
	}
	if (ops->block_add) {
		return ops->block_add(ops->opaque, &what, err);
	}
	if (what.flags & GR_RAM_SHARED) {
		return gr_error_set(err, -EINVAL,
				    "block '%s' is shared memory at the source and not here: both must have "
				    "it from the same file (x-ignore-shared)",
				    what.id);
	}
	return gr_ram_block_add(ram, &desc, NULL, err);
}

/* What is in the block already must be cleared where the stream says zero. */
static void look_for_content(struct gr_ram_sink *sink, struct sink_block *b)
{
	uint64_t end = 0;

#ifdef GR_MUTANT_MIGRATE_OLD_CONTENT_STAYS
	end = b->bytes;
#endif
	for (uint64_t at = end; at < b->bytes; at = end) {
		if (!gr_holes_next(&sink->holes, b->block, at, b->bytes, &end)) {
			set_present(b, at / sink->page_bytes, (end - at) / sink->page_bytes);
		}
	}
}

static int check_block(const struct gr_ram_block *block, const struct gr_stream_block *entry,
		       struct gr_error *err)
{
	if (gr_ram_block_used_bytes(block) != entry->used_bytes) {
		return gr_error_set(err, -EINVAL,
				    "block '%s' has %llu bytes at the source, %llu here", entry->id,
				    (unsigned long long)entry->used_bytes,
				    (unsigned long long)gr_ram_block_used_bytes(block));
	}
	if ((gr_ram_block_flags(block) & GR_RAM_NO_MIGRATE) != 0) {
		return gr_error_set(err, -EINVAL, "block '%s' takes no part in migrations here",
				    entry->id);
	}
	return 0;
}

int gr_ram_sink_block(struct gr_ram *ram, const struct gr_destination_ops *ops,
		      const struct gr_stream_block *entry, struct gr_section_watch *watch,
		      struct gr_ram_block **ret_block, struct gr_error *err)
{
	struct gr_ram_block *block = block_get(ram, entry->id, watch);
	int rc;

	if (!block) {
		rc = block_make(ram, ops, entry, err);
		if (rc < 0) {
			return rc;
		}
		block = block_get(ram, entry->id, watch);
		if (!block) {
			return gr_error_set(err, -ENOENT, "block '%s' was not made", entry->id);
		}
	}
	rc = check_block(block, entry, err);
	if (rc < 0) {
		gr_ram_block_put(block);
		return rc;
	}
	*ret_block = block;
	return 0;
}

static bool is_ignored(const struct gr_ram_sink *sink, const struct gr_ram_block *block,
		       const struct gr_stream_block *entry)
{
	return sink->ignore_shared && gr_ram_block_is_shared_file(block, entry->incarnation != 0);
}

/* Whether any region shows it. */
static bool is_mapped(struct gr_ram_sink *sink, const struct gr_ram_block *block)
{
	struct gr_ram_region region;
	gr_gpa_t at = gr_gpa(0);
	bool more = true, found = false;

	while (more && !found) {
		gr_section_enter(&sink->watch);
		for (int i = 0; more && !found && i < GR_SECTION_STEPS; i++) {
			more = gr_ram_region_next_rcu(sink->ram, at, &region);
			if (more) {
				gr_section_step(&sink->watch);
				found = region.block == block;
				at = gr_gpa(region.gpa.v + region.bytes);
				more = at.v != 0;
			}
		}
		gr_section_leave(&sink->watch);
	}
	return found;
}

/* What is at this address shows this block's first byte; or nothing does, and the block is not mapped. */
static bool is_at(struct gr_ram_sink *sink, const struct gr_ram_block *block, uint64_t gpa)
{
	const struct gr_ram_block *there;
	uint64_t offset = 0, len;

	if (gpa == GR_STREAM_GPA_NONE) {
		return true;
	}
	gr_section_enter(&sink->watch);
	there = gr_ram_block_by_gpa_rcu(sink->ram, gr_gpa(gpa), &offset, &len);
	gr_section_leave(&sink->watch);
	return there ? there == block && offset == 0 : !is_mapped(sink, block);
}

/* Both know which file it is, on the same machine since the same boot, and it is not the same. */
static bool is_another_file(const struct gr_ram_block *block, const struct gr_stream_block *entry)
{
	const struct gr_file_identity *here = &gr_block(block)->file, *there = &entry->file;
	static const uint8_t unknown[GR_BOOT_ID_BYTES];

#ifdef GR_MUTANT_SINK_ANY_FILE
	return false;
#endif
	return memcmp(there->boot, unknown, sizeof(unknown)) != 0 &&
	       memcmp(there->boot, here->boot, sizeof(there->boot)) == 0 &&
	       (here->device != there->device || here->inode != there->inode ||
		block->fd_offset != entry->file_offset);
}

/*
 * What one side leaves where it is and the other one waits for would be missing. One of ours says which
 * blocks those are; a QEMU does not, see finish_shared() and sent_although_shared().
 */
static int check_shared(struct gr_ram_sink *sink, const struct gr_ram_block *block,
			const struct gr_stream_block *entry, struct gr_error *err)
{
	bool here = is_ignored(sink, block, entry), there = (entry->flags & GR_RAM_SHARED) != 0;

#ifdef GR_MUTANT_SINK_TRUSTS_SHARED
	return 0;
#endif
	if (here && gr_block(block)->made_longer) {
		return gr_error_set(err, -EINVAL,
				    "block '%s': its file was empty or not there when the block was added here, "
				    "so it is not the one that the source has (x-ignore-shared): start the "
				    "source first, and look at the path",
				    entry->id);
	}
	if (entry->incarnation == 0 || (!here && !there)) {
		return 0;
	}
	if (here != there) {
		return gr_error_set(err, -EINVAL,
				    "block '%s' is shared memory %s: both must have it from the same file "
				    "(x-ignore-shared)",
				    entry->id,
				    here ? "here and not at the source" : "at the source and not here");
	}
	if (is_another_file(block, entry)) {
		return gr_error_set(err, -EINVAL,
				    "block '%s' is another file here (inode %llu, from byte %llu) than at the "
				    "source (%llu, %llu): both must have it from the same file (x-ignore-shared)",
				    entry->id, (unsigned long long)gr_block(block)->file.inode,
				    (unsigned long long)block->fd_offset,
				    (unsigned long long)entry->file.inode,
				    (unsigned long long)entry->file_offset);
	}
	if (!is_at(sink, block, entry->gpa)) {
		return gr_error_set(err, -EINVAL,
				    "block '%s' is at 0x%llx at the source and not here (x-ignore-shared)",
				    entry->id, (unsigned long long)entry->gpa);
	}
	return 0;
}

/* A new entry of the list. */
static int attach(struct gr_ram_sink *sink, struct gr_stream_block *entry, struct gr_error *err)
{
	struct gr_ram_block *block;
	struct sink_block *b;
	int rc = gr_ram_sink_block(sink->ram, &sink->ops, entry, &sink->watch, &block, err);

	if (rc < 0) {
		return rc;
	}
	rc = check_shared(sink, block, entry, err);
	if (rc < 0) {
		gr_ram_block_put(block);
		return rc;
	}
	b = calloc(1, sizeof(*b));
	if (b) {
		b->bytes = entry->used_bytes;
		b->ignored = is_ignored(sink, block, entry);
		b->announced = entry->incarnation != 0;
		b->present = calloc(b->ignored ? 1 : GR_DIV_ROUND_UP(b->bytes / sink->page_bytes, 64),
				    sizeof(*b->present));
	}
	if (!b || !b->present) {
		free(b);
		gr_ram_block_put(block);
		return gr_error_set(err, -ENOMEM, "block '%s': no memory for its page map",
				    entry->id);
	}
	b->block = block;
	if (!b->ignored) {
		b->how = gr_placer_begin(&sink->placer, block, sink->page_bytes);
		look_for_content(sink, b);
	}
	b->next = sink->blocks;
	sink->blocks = b;
	entry->user = b;
	return 0;
}

static int detach(struct gr_ram_sink *sink, struct gr_stream_block *entry, struct gr_error *err)
{
	struct sink_block *b = entry->user;
	int rc = gr_ram_block_del(b->block, err);

	if (rc < 0 && rc != -ENOENT) {
		gr_error_prefix(err, "block '%s' is gone at the source: ", entry->id);
		return rc;
	}
	let_go(sink, b);
	entry->user = NULL;
	return 0;
}

/*
 * The map of its pages has the length that the block came with, and readers check pages against what
 * the entry says now.
 */
static int check_goes_on(const struct gr_stream_block *entry, struct gr_error *err)
{
	const struct sink_block *b = entry->user;

#ifdef GR_MUTANT_SINK_ANY_LENGTH
	return 0;
#endif
	if (b->bytes != entry->used_bytes) {
		return gr_error_set(err, -EINVAL,
				    "block '%s' changed its length during the move, from %llu to "
				    "%llu bytes",
				    entry->id, (unsigned long long)b->bytes,
				    (unsigned long long)entry->used_bytes);
	}
	return 0;
}

static int sink_blocks(void *opaque, struct gr_stream_reader *reader, struct gr_error *err)
{
	struct gr_ram_sink *sink = opaque;
	uint32_t count = gr_stream_reader_block_count(reader);
	int rc;

	/* Those that went first: the new ones may take their ids and addresses. */
	for (uint32_t i = 0; i < count; i++) {
		struct gr_stream_block *entry = gr_stream_reader_block(reader, i);

		if (!entry->alive && entry->user) {
			rc = detach(sink, entry, err);
			if (rc < 0) {
				return rc;
			}
		}
	}
	for (uint32_t i = 0; i < count; i++) {
		struct gr_stream_block *entry = gr_stream_reader_block(reader, i);

		if (entry->alive) {
			rc = entry->user ? check_goes_on(entry, err) : attach(sink, entry, err);
			if (rc < 0) {
				return rc;
			}
		}
	}
	return 0;
}

static int sent_although_shared(struct gr_error *err)
{
	return gr_error_set(err, -EINVAL,
			    "the block is shared memory here, and its content was sent: the source does not "
			    "share it (x-ignore-shared)");
}

/* Pages that follow each other, all present or all absent. */
static void place_run(struct gr_ram_sink *sink, struct sink_block *b, uint64_t offset,
		      const uint8_t *data, uint64_t pages, bool present)
{
	uint64_t bytes = pages * sink->page_bytes;

	if (present) {
		memcpy(b->block->host + offset, data, bytes);
	} else {
		gr_placer_fill(&sink->placer, b->block, b->how, offset, data, bytes,
			       sink->page_bytes);
		set_present(b, offset / sink->page_bytes, pages);
	}
	/* O1: the bytes are in. Consumers and trackers on this side learn of it. */
	gr_ram_mark(b->block, offset, bytes);
	(void)gr_add_relaxed(&b->placed_pages, pages);
}

/* What protects the block serves stores, and no system call that would read into it. */
static bool sink_stores_only(void *opaque, struct gr_stream_block *entry)
{
	struct sink_block *b = entry->user;

	(void)opaque;
	return gr_load_relaxed(&gr_block(b->block)->stores_only) != 0;
}

static uint8_t *sink_page_memory(void *opaque, struct gr_stream_block *entry, uint64_t offset)
{
	struct gr_ram_sink *sink = opaque;
	struct sink_block *b = entry->user;

#ifndef GR_MUTANT_SINK_MEMORY_BEYOND_END
	/* The reader has checked it against the entry; pages() says what is wrong. */
	if (b->ignored || offset >= b->bytes || b->bytes - offset < sink->page_bytes) {
		return NULL;
	}
#endif
#ifndef GR_MUTANT_SINK_MEMORY_OF_STORES_ONLY
	if (sink_stores_only(opaque, entry)) { /* pages() stores */
		return NULL;
	}
#endif
	/* A fresh page is cheaper to fill as a whole (migrate/place.h). */
	return page_present(b, offset / sink->page_bytes) ? b->block->host + offset : NULL;
}

static void sink_stored(void *opaque, struct gr_stream_block *entry, uint64_t offset, uint64_t bytes)
{
	struct gr_ram_sink *sink = opaque;
	struct sink_block *b = entry->user;

	gr_ram_mark(b->block, offset, bytes); /* O1 */
	(void)gr_add_relaxed(&b->placed_pages, bytes / sink->page_bytes);
}

static void sink_torn(void *opaque, struct gr_stream_block *entry, uint64_t offset, uint64_t bytes)
{
	struct sink_block *b = entry->user;

	(void)opaque;
#ifndef GR_MUTANT_SINK_TORN_UNMARKED
	gr_ram_mark(b->block, offset, bytes); /* O1: what came before the failure is in */
#endif
}

static int sink_pages(void *opaque, struct gr_stream_block *entry, uint32_t count,
		      const uint64_t *offsets, const uint8_t *data, uint32_t *ret_bad,
		      struct gr_error *err)
{
	struct gr_ram_sink *sink = opaque;
	struct sink_block *b = entry->user;
	uint64_t size = sink->page_bytes;

	if (b->ignored) {
		*ret_bad = 0;
		return sent_although_shared(err);
	}
	for (uint32_t i = 0, n; i < count; i += n) {
		bool present;

		/* The reader has checked it against the entry; this is the block's own word. */
		if (offsets[i] >= b->bytes || b->bytes - offsets[i] < size) {
			*ret_bad = i;
			return gr_error_set(err, -EBADMSG, "beyond the block's end");
		}
		present = page_present(b, offsets[i] / size);
		for (n = 1;
		     i + n < count && offsets[i + n] == offsets[i] + n * size &&
		     offsets[i + n] < b->bytes && page_present(b, offsets[i + n] / size) == present;
		     n++) {
		}
		place_run(sink, b, offsets[i], data + i * size, n, present);
	}
	return 0;
}

/* Memory that may be given back where it is zero: nobody has asked for it to be there. */
static bool may_give_back(const struct gr_ram_block *block, uint64_t host_page_bytes)
{
	return (block->backing == GR_RAM_MEMFD || block->backing == GR_RAM_ANONYMOUS) &&
	       block->page_bytes == host_page_bytes &&
	       !(gr_ram_block_flags(block) & (GR_RAM_PREALLOC | GR_RAM_LOCK));
}

/* Huge pages do not say whether they are there; those that are not would be by being cleared. */
static void clear_content(struct gr_ram_sink *sink, struct sink_block *b, uint64_t offset,
			  uint64_t bytes) GR_REQUIRES(sink->zero_lock)
{
	for (uint64_t at = offset; at < offset + bytes; at += sink->page_bytes) {
		if (gr_holes_read(&sink->holes, b->block, at, sink->page) < 0 ||
		    sink->page[0] != 0 ||
		    memcmp(sink->page, sink->page + 1, sink->page_bytes - 1) != 0) {
			memset(b->block->host + at, 0, sink->page_bytes);
		}
	}
}

/*
 * Pages that are present become zero. Where they are many, as those of a piece that was unplugged
 * at the source, their memory is given back; who forbids that has them cleared.
 */
static void make_zero(struct gr_ram_sink *sink, struct sink_block *b, uint64_t offset,
		      uint64_t bytes) GR_REQUIRES(sink->zero_lock)
{
	uint64_t unit = GR_MAX(b->block->page_bytes, sink->page_bytes);
	uint64_t first = GR_ROUND_UP(offset, unit), end = (offset + bytes) & ~(unit - 1);

	if (bytes >= GIVE_BACK_BYTES && first < end &&
	    may_give_back(b->block, sink->holes.host_page_bytes) &&
	    gr_ram_discard(b->block, first, end - first, NULL) == 0) {
		clear_present(b, first / sink->page_bytes, (end - first) / sink->page_bytes);
		memset(b->block->host + offset, 0, first - offset);
		memset(b->block->host + end, 0, offset + bytes - end);
	} else if (gr_holes_must_read(&sink->holes, b->block)) {
		clear_content(sink, b, offset, bytes);
	} else {
		memset(b->block->host + offset, 0, bytes);
	}
	gr_ram_mark(b->block, offset, bytes); /* O1 */
}

static int sink_zero(void *opaque, struct gr_stream_block *entry, uint64_t offset, uint64_t bytes,
		     struct gr_error *err)
{
	struct gr_ram_sink *sink = opaque;
	struct sink_block *b = entry->user;
	uint64_t size = sink->page_bytes;
	uint64_t page = offset / size;
	uint64_t end;

	if (b->ignored) {
		return sent_although_shared(err);
	}
	if (offset > b->bytes || bytes > b->bytes - offset) {
		return gr_error_set(err, -EBADMSG, "beyond the block's end");
	}
	(void)gr_add_relaxed(&b->placed_pages, bytes / size);
	end = page + bytes / size;
	/* A page that is not present is zero and stays untouched. */
	while ((page = find_present(b, page, end, true)) < end) {
		uint64_t stop = find_present(b, page, end, false);

		gr_mutex_lock(&sink->zero_lock);
		make_zero(sink, b, page * size, (stop - page) * size);
		gr_mutex_unlock(&sink->zero_lock);
		page = stop;
	}
	return 0;
}

static int sink_page_read(void *opaque, struct gr_stream_block *entry, uint64_t offset,
			  uint8_t *page, struct gr_error *err)
{
	struct gr_ram_sink *sink = opaque;
	struct sink_block *b = entry->user;

	if (b->ignored) {
		return sent_although_shared(err);
	}
	if (offset >= b->bytes) {
		return gr_error_set(err, -EBADMSG, "beyond the block's end");
	}
	if (page_present(b, offset / sink->page_bytes)) {
		memcpy(page, b->block->host + offset, sink->page_bytes);
	} else {
		memset(page, 0, sink->page_bytes);
	}
	return 0;
}

/* A tail that is not ours cannot be taken apart; without a load() nobody wants it. */
static int refuse_foreign(struct gr_tail *tail, struct gr_error *err)
{
	struct gr_tail_device *devices = NULL;
	size_t count = 0;
	int rc = gr_tail_devices(tail, &devices, &count, err);

	if (rc < 0) {
		return rc;
	}
	if (count > 0) {
		rc = gr_error_set(err, -EOPNOTSUPP,
				  "%zu devices of another machine monitor ('%s', ...) "
				  "cannot be loaded here",
				  count, devices[0].name);
	}
	free(devices);
	return rc;
}

int gr_ram_sink_load_devices(const struct gr_destination_ops *ops, struct gr_tail *tail,
			     struct gr_error *err)
{
	struct gr_tail_section section;
	char name[GR_STREAM_ID_BYTES_MAX + 1];
	size_t cursor = 0;
	int rc;

	if (!ops->load) {
		return 0;
	}
	if (!gr_tail_is_ours(tail)) {
		return refuse_foreign(tail, err);
	}
	while ((rc = gr_tail_section_next(tail, &cursor, &section, err)) > 0) {
		memcpy(name, section.name, section.name_bytes);
		name[section.name_bytes] = '\0';
		rc = ops->load(ops->opaque, name, section.instance_id, section.version,
			       section.data, section.data_bytes, err);
		if (rc < 0) {
			gr_error_prefix(err, "device '%s' %u: ", name, section.instance_id);
			return rc;
		}
	}
	return rc;
}

/* Nothing of it is plugged in here (virtio-mem): a QEMU names no page of such a block. */
static bool is_unplugged(const struct sink_block *b)
{
	uint64_t end;
	bool plugged;

	gr_ram_look_begin(b->block);
	plugged = gr_ram_plugged_locked(b->block, 0, b->bytes, &end);
	gr_ram_look_end(b->block);
	return !plugged && end >= b->bytes;
}

/*
 * Each page of each block that travels is named, were it only as zero; each that is plugged in, that is.
 * Asked once more when the devices are loaded: one of them may have plugged in what never came.
 */
static int nothing_is_missing(const struct gr_ram_sink *sink, struct gr_error *err)
{
#ifdef GR_MUTANT_SINK_TRUSTS_SHARED
	return 0;
#endif
	for (const struct sink_block *b = sink->blocks; b && sink->ignore_shared; b = b->next) {
		if (!b->ignored && !b->announced && gr_load_relaxed(&b->placed_pages) == 0 &&
		    !is_unplugged(b)) {
			return gr_error_set(
				err, -EINVAL,
				"block '%s': nothing of it came: it is shared memory at the source and "
				"not here (x-ignore-shared), or all unplugged there and not here",
				b->block->id);
		}
	}
	return 0;
}

static int sink_finish(void *opaque, struct gr_tail *tail, struct gr_error *err)
{
	struct gr_ram_sink *sink = opaque;
	int rc;

	/* Nothing of ours may be in the way of the machine, nor of what load() does. */
	for (struct sink_block *b = sink->blocks; b; b = b->next) {
		end_placing(sink, b);
		b->how = GR_PLACE_STORE;
		if (b->ignored) {
			/* O1: another process has stored it, consumers and trackers saw nothing. */
			gr_ram_mark(b->block, 0, b->bytes);
		}
	}
	rc = nothing_is_missing(sink, err);
	if (rc == 0) {
		rc = gr_ram_sink_load_devices(&sink->ops, tail, err);
	}
#ifndef GR_MUTANT_SINK_LOADS_WHAT_IS_MISSING
	if (rc == 0) {
		rc = nothing_is_missing(sink, err);
	}
#endif
	if (rc == 0 && sink->ops.complete) {
		rc = sink->ops.complete(sink->ops.opaque, err);
	}
	return rc;
}

const struct gr_sink_ops gr_ram_sink_ops = {
	.parallel = true,
	.config = sink_config,
	.blocks = sink_blocks,
	.pages = sink_pages,
	.zero = sink_zero,
	.page_memory = sink_page_memory,
	.stored = sink_stored,
	.torn = sink_torn,
	.stores_only = sink_stores_only,
	.page_read = sink_page_read,
	.finish = sink_finish,
};
