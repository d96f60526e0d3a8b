/* SPDX-License-Identifier: MIT */
/*
 * The sink that fills a machine's RAM. It knows of every page whether anything may be in
 * it (present); what is not present is known to be zero, is never read, and is filled by
 * the cheapest way there is (migrate/place.h).
 */
#ifndef GR_MIGRATE_RAM_SINK_H
#define GR_MIGRATE_RAM_SINK_H

#include "migrate/section.h"
#include "migrate/sink.h"
#include <guestram/migrate.h>
#include <guestram/ram.h>

/* Longest block that the destination makes on a stranger's word. */
#define GR_RAM_SINK_BLOCK_BYTES_MAX (UINT64_C(1) << 44)

struct gr_ram_sink;

extern const struct gr_sink_ops gr_ram_sink_ops;

/**
 * @param ram      RAM of a machine that does not run.
 * @param ops      May be NULL; copied.
 * @param ret_sink Its opaque for gr_ram_sink_ops.
 * @param err      May be NULL.
 * @return 0 or -ENOMEM.
 */
GR_MUST_CHECK int gr_ram_sink_create(struct gr_ram *ram, const struct gr_destination_ops *ops,
				     struct gr_ram_sink **ret_sink, struct gr_error *err);

/**
 * Leave blocks of shared files as they are: their content does not travel (x-ignore-shared).
 * @param sink The sink, before it has blocks.
 * @param on   Whether.
 */
void gr_ram_sink_set_ignore_shared(struct gr_ram_sink *sink, bool on);

/**
 * Let go of all blocks: nothing of the sink is left in their way.
 * @param sink The sink.
 */
void gr_ram_sink_end(struct gr_ram_sink *sink);

/** Ends and frees. @param sink May be NULL. */
void gr_ram_sink_free(struct gr_ram_sink *sink);

/**
 * Say in words what has been placed so far, for the message of a failure.
 * @param sink  The sink.
 * @param buf   Filled.
 * @param bytes Its size.
 */
void gr_ram_sink_describe(const struct gr_ram_sink *sink, char *buf, size_t bytes);

/** @param sink The sink. @return Longest read-side section so far. */
uint64_t gr_ram_sink_section_ns_max(const struct gr_ram_sink *sink);

/**
 * The machine's block that an entry of a list names, made if there is none. For images too.
 * @param ram       RAM of a machine that does not run.
 * @param ops       Makes blocks, if it wants to.
 * @param entry     Name, lengths and what is announced of it.
 * @param watch     Of read-side sections.
 * @param ret_block With a reference.
 * @param err       May be NULL.
 * @return 0 or a negative errno.
 * @errors -EINVAL it has another length, or takes no part in migrations; -EFBIG; what making it
 * says.
 */
GR_MUST_CHECK int gr_ram_sink_block(struct gr_ram *ram, const struct gr_destination_ops *ops,
				    const struct gr_stream_block *entry,
				    struct gr_section_watch *watch, struct gr_ram_block **ret_block,
				    struct gr_error *err);

/**
 * Hand the devices of a tail to ops->load(), in their order. Without one nobody wants them.
 * @param ops  The machine.
 * @param tail A whole one.
 * @param err  May be NULL.
 * @return 0 or a negative errno.
 * @errors -EOPNOTSUPP they are another machine monitor's; what load() says.
 */
GR_MUST_CHECK int gr_ram_sink_load_devices(const struct gr_destination_ops *ops,
					   struct gr_tail *tail, struct gr_error *err);

#endif
