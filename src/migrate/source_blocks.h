/* SPDX-License-Identifier: MIT */
/*
 * The source's copy of the block list, as it was told to the destination last. It holds no
 * block: whoever wants to send a page looks the block up again, takes a reference for
 * one batch, and compares incarnations. So unplugged memory is never kept for a round.
 */
#ifndef GR_MIGRATE_SOURCE_BLOCKS_H
#define GR_MIGRATE_SOURCE_BLOCKS_H

#include "migrate/section.h"
#include "stream/writer.h"
#include <guestram/ram.h>

struct gr_source_block {
	uint64_t first_page; /* RAM address in pages */
	uint64_t pages;
	uint64_t used_bytes;
	uint64_t max_bytes;
	uint64_t incarnation;
	uint64_t gpa; /* UINT64_MAX: not mapped */
	uint32_t page_bytes;
	uint32_t flags;
	struct gr_file_identity file; /* and where in it the block starts */
	uint64_t file_offset;
	bool ignored;	     /* x-ignore-shared: the destination has it; no page travels */
	uint32_t wire_index; /* place in the order of the list: biggest first */
	char id[GR_RAM_ID_BYTES_MAX + 1];
};

/* Zero-initialise. */
struct gr_source_blocks {
	bool ignore_shared, promised; /* gr_ram_block_is_shared_file(); set by the owner */
	bool tells_files;	      /* so is this: the destination takes identities of files */
	struct gr_source_block *entries; /* by RAM address */
	uint32_t count;
	uint32_t capacity;
	uint64_t version; /* gr_ram_version() before the walk */
	uint64_t total_pages; /* of those that travel */
};

/** @param t Zeroed or filled. */
void gr_source_blocks_destroy(struct gr_source_blocks *t);

/**
 * Copy the list of migratable blocks. On failure the table is as it was; one that has changed its
 * length since the last call is such a failure.
 * @param t     The table.
 * @param ram   The machine's RAM.
 * @param watch Measures the sections.
 * @param err   May be NULL.
 * @return 0, -ENOMEM or -EBUSY (the length).
 */
GR_MUST_CHECK int gr_source_blocks_fill(struct gr_source_blocks *t, struct gr_ram *ram,
					struct gr_section_watch *watch, struct gr_error *err);

/**
 * Find the entry of a page, or the next one.
 * @param t    The table.
 * @param page Page number in RAM address space.
 * @return The first entry that ends behind the page, or NULL.
 */
const struct gr_source_block *gr_source_blocks_at(const struct gr_source_blocks *t, uint64_t page);

/**
 * The list as the stream's writer wants it, biggest first.
 * @param t         The table; the ids stay its.
 * @param ret_descs To be freed with free().
 * @param err       May be NULL.
 * @return 0 or -ENOMEM.
 */
GR_MUST_CHECK int gr_source_blocks_describe(const struct gr_source_blocks *t,
					    struct gr_stream_block_desc **ret_descs,
					    struct gr_error *err);

#endif
