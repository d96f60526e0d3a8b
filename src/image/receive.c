/* SPDX-License-Identifier: MIT */
/* A stream into an image: the sink that hands pages to the store. */
#include "migrate/receive.h"
#include "image/store.h"
#include <errno.h>
#include <guestram/image.h>
#include <stdlib.h>

/* The table's users: blocks are known to the store by index + 1 (NULL is "no user"). */
static void *index_to_user(size_t index)
{
	return (void *)(uintptr_t)(index + 1);
}

static size_t user_to_index(const struct gr_stream_block *block)
{
	return (size_t)(uintptr_t)block->user - 1;
}

static int sink_config(void *sink, const struct gr_stream_record *rec, struct gr_error *err)
{
	return gr_image_store_config(sink, rec->config.raw, rec->config.raw_bytes,
				     rec->config.page_bytes, err);
}

/* Called once: what we answer to a source of ours is what a QEMU answers, so no announcement
 * changes the list later. */
static int sink_blocks(void *sink, struct gr_stream_reader *reader, struct gr_error *err)
{
	uint32_t n = gr_stream_reader_block_count(reader);
	struct gr_image_place *places;
	int rc;

	if (n == 0 || n > GR_IMAGE_BLOCKS_MAX) {
		return gr_error_set(err, -EFBIG, "%u blocks: an image has 1 to %d", n,
				    GR_IMAGE_BLOCKS_MAX);
	}
	places = calloc(n, sizeof(*places));
	if (!places) {
		return gr_error_set(err, -ENOMEM, "out of memory");
	}
	for (uint32_t i = 0; i < n; i++) {
		struct gr_stream_block *block = gr_stream_reader_block(reader, i);

		memcpy(places[i].id, block->id, sizeof(places[i].id));
		places[i].used_bytes = block->used_bytes;
		block->user = index_to_user(i);
	}
	rc = gr_image_store_blocks(sink, gr_stream_reader_section_id(reader), places, n, err);
	free(places);
	return rc;
}

static int sink_pages(void *sink, struct gr_stream_block *block, uint32_t count,
		      const uint64_t *offsets, const uint8_t *data, uint32_t *ret_bad,
		      struct gr_error *err)
{
	return gr_image_store_pages(sink, user_to_index(block), offsets, count, data, ret_bad, err);
}

static int sink_zero(void *sink, struct gr_stream_block *block, uint64_t offset, uint64_t bytes,
		     struct gr_error *err)
{
	(void)err;
	gr_image_store_zero(sink, user_to_index(block), offset, bytes);
	return 0;
}

static int sink_page_read(void *sink, struct gr_stream_block *block, uint64_t offset, uint8_t *page,
			  struct gr_error *err)
{
	return gr_image_store_page_read(sink, user_to_index(block), offset, page, err);
}

static int sink_finish(void *sink, struct gr_tail *tail, struct gr_error *err)
{
	struct gr_tail_device *devices;
	size_t count;
	int rc;

	/* What cannot be listed could not be opened again: do not tell the source that all is
	 * well. */
	if (gr_tail_is_complete(tail)) {
		rc = gr_tail_devices(tail, &devices, &count, err);
		if (rc < 0) {
			return rc;
		}
		free(devices);
	}
	return gr_image_store_finish(sink, tail->data, tail->bytes, err);
}

static const struct gr_sink_ops store_ops = {
	.config = sink_config,
	.blocks = sink_blocks,
	.pages = sink_pages,
	.zero = sink_zero,
	.page_read = sink_page_read,
	.finish = sink_finish,
};

/* Steps between two calls of progress(): a step is a record, at most 64 pages. */
enum { PROGRESS_STEPS = 256 };

static int run(struct gr_receive *receive, const struct gr_image_params *params,
	       struct gr_error *err)
{
	struct gr_migrate_stats stats;
	uint64_t steps = 0;
	int rc;

	while ((rc = gr_receive_step(receive, err)) > 0) {
		if (params->progress && ++steps % PROGRESS_STEPS == 0) {
			gr_receive_stats(receive, &stats);
			params->progress(params->opaque, &stats);
		}
	}
	return rc;
}

int gr_image_receive(struct gr_channel *channel, const char *path,
		     const struct gr_image_params *params, struct gr_migrate_stats *ret_stats,
		     struct gr_error *err)
{
	static const struct gr_image_params none = { .size = sizeof(none) };
	struct gr_receive_params receive_params = { .plain = true };
	struct gr_receive *receive = NULL;
	struct gr_image_store *store = NULL;
	struct gr_image_store_params store_params = { 0 };
	struct gr_sink sink = { .ops = &store_ops };
	int rc;

	if (!params) {
		params = &none;
	}
	receive_params.allow_unterminated = params->allow_unterminated;
	receive_params.multifd = params->multifd;
	receive_params.uuid = params->uuid;
	store_params.offset = params->offset;
	rc = gr_image_store_create_with(path, &store_params, &store, err);
	if (rc < 0) {
		return rc;
	}
	sink.opaque = store;
	rc = gr_receive_create(channel, &sink, &receive_params, &receive, err);
	if (rc == 0) {
		rc = run(receive, params, err);
	}
	if (rc == 0 && ret_stats) {
		gr_receive_stats(receive, ret_stats);
	}
	gr_receive_free(receive);
	gr_image_store_free(store);
	return rc;
}
