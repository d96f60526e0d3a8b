/* SPDX-License-Identifier: MIT */
/* An image as a plain stream: every page is named exactly once, the tail is as it came. */
#include "image/file.h"
#include "image/image.h"
#include "stream/writer.h"
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <time.h>

enum { STAGE_PAGES = GR_STREAM_RUN_PAGES_MAX };

struct sender {
	struct gr_image *image;
	struct gr_stream_writer *w;
	const struct gr_image_params *params;
	struct gr_migrate_stats stats;
	uint64_t began_ns;
	uint8_t *stage; /* STAGE_PAGES pages */
};

static uint64_t now_ns(void)
{
	struct timespec ts;

	(void)clock_gettime(CLOCK_MONOTONIC, &ts);
	return (uint64_t)ts.tv_sec * 1000000000u + (uint64_t)ts.tv_nsec;
}

static void update_stats(struct sender *s)
{
	uint64_t ns = now_ns() - s->began_ns;

	s->stats.transferred_bytes = gr_stream_writer_bytes(s->w);
	s->stats.total_time_ns = ns;
	s->stats.bandwidth_bytes_per_s =
		(uint64_t)((double)s->stats.transferred_bytes * 1e9 / (double)(ns + 1));
}

static int send_head(struct sender *s, struct gr_error *err)
{
	struct gr_image *image = s->image;
	struct gr_stream_block_desc *blocks;
	uint8_t *config = NULL;
	size_t config_bytes = 0;
	int rc = gr_image_config_rewrite(image->config_raw, &image->config, false, &config,
					 &config_bytes, err);

	if (rc < 0) {
		return rc;
	}
	gr_stream_writer_set_page_bytes(s->w, image->page_bytes);
	rc = gr_stream_write_raw(s->w, config, config_bytes, err);
	free(config);
	if (rc < 0) {
		return rc;
	}
	blocks = calloc(image->count, sizeof(*blocks));
	if (!blocks) {
		return gr_error_set(err, -ENOMEM, "out of memory");
	}
	for (uint32_t i = 0; i < image->count; i++) {
		blocks[i].id = image->parts[i].place.id;
		blocks[i].used_bytes = image->parts[i].place.used_bytes;
		blocks[i].max_bytes = blocks[i].used_bytes;
	}
	rc = gr_stream_write_start(s->w, image->section_id, blocks, image->count, err);
	free(blocks);
	return rc < 0 ? rc : gr_stream_write_eos(s->w, err);
}

static int send_zeros(struct sender *s, const struct gr_image_part *part, uint64_t page, uint64_t n,
		      struct gr_error *err)
{
	for (uint64_t i = 0; i < n; i++) {
		int rc = gr_stream_write_zero(s->w, part->place.id,
					      (page + i) * s->image->page_bytes, err);

		if (rc < 0) {
			return rc;
		}
	}
	s->stats.zero_pages += n;
	return 0;
}

static int send_pages(struct sender *s, uint32_t index, uint64_t page, uint64_t n,
		      struct gr_error *err)
{
	uint32_t page_bytes = s->image->page_bytes;
	uint64_t offsets[STAGE_PAGES];
	const void *pages[STAGE_PAGES];
	int rc = gr_image_read(s->image, index, page * page_bytes, s->stage, n * page_bytes, err);

	if (rc < 0) {
		return rc;
	}
	for (uint64_t i = 0; i < n; i++) {
		offsets[i] = (page + i) * page_bytes;
		pages[i] = s->stage + i * page_bytes;
	}
	s->stats.normal_pages += n;
	return gr_stream_write_pages(s->w, s->image->parts[index].place.id, offsets, pages, n, err);
}

static int send_block(struct sender *s, uint32_t index, struct gr_error *err)
{
	const struct gr_image_part *part = &s->image->parts[index];
	uint64_t end = part->place.used_bytes / s->image->page_bytes;

	for (uint64_t page = 0, n; page < end; page += n) {
		int rc;

		n = gr_image_part_run(part, page, GR_MIN(end, page + STAGE_PAGES));
		rc = gr_image_part_present(part, page) ? send_pages(s, index, page, n, err)
						       : send_zeros(s, part, page, n, err);
		if (rc < 0) {
			return rc;
		}
		s->stats.remaining_bytes -= n * s->image->page_bytes;
		if (s->params->progress) {
			update_stats(s);
			s->params->progress(s->params->opaque, &s->stats);
		}
	}
	return 0;
}

static int send_all(struct sender *s, struct gr_error *err)
{
	struct gr_tail *tail = &s->image->tail;
	int rc = send_head(s, err);

	if (rc == 0) {
		rc = gr_stream_write_section(s->w, GR_SECTION_PART, err);
	}
	for (uint32_t i = 0; rc == 0 && i < s->image->count; i++) {
		rc = send_block(s, i, err);
	}
	if (rc == 0) {
		rc = gr_stream_write_eos(s->w, err);
	}
	/* a destination may wait for the END of every iterable section */
	if (rc == 0) {
		rc = gr_stream_write_section(s->w, GR_SECTION_END, err);
	}
	if (rc == 0) {
		rc = gr_stream_write_eos(s->w, err);
	}
	if (rc == 0) {
		rc = gr_stream_write_raw(s->w, tail->data, tail->bytes, err);
	}
	return rc < 0 ? rc : gr_stream_flush(s->w, err);
}

int gr_image_send(struct gr_image *image, struct gr_channel *channel,
		  const struct gr_image_params *params, struct gr_migrate_stats *ret_stats,
		  struct gr_error *err)
{
	static const struct gr_image_params none = { .size = sizeof(none) };
	struct sender s = { .image = image, .params = params ? params : &none };
	int rc = gr_stream_writer_create(channel, &s.w, err);

	if (rc < 0) {
		return rc;
	}
	s.began_ns = now_ns();
	s.stats.state = GR_MIGRATE_ACTIVE;
	s.stats.total_bytes = image->ram_bytes;
	s.stats.remaining_bytes = image->ram_bytes;
	s.stats.rounds = 1;
	s.stage = malloc((size_t)STAGE_PAGES * image->page_bytes);
	rc = s.stage ? send_all(&s, err) : gr_error_set(err, -ENOMEM, "out of memory");
	if (rc == 0) {
		update_stats(&s);
		s.stats.state = GR_MIGRATE_COMPLETED;
		if (ret_stats) {
			*ret_stats = s.stats;
		}
	}
	free(s.stage);
	gr_stream_writer_free(s.w);
	return rc;
}
