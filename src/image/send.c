/* SPDX-License-Identifier: MIT */
/* An image as a plain stream: every page is named exactly once, the tail is as it came. */
#include "image/file.h"
#include "image/image.h"
#include "migrate/multifd_send.h"
#include "stream/writer.h"
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { STAGE_PAGES = GR_STREAM_RUN_PAGES_MAX };

struct sender {
	struct gr_image *image;
	struct gr_stream_writer *w;
	struct gr_multifd_send *multifd; /* NULL: no further channels */
	enum gr_multifd_dialect dialect;
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

	s->stats.transferred_bytes =
		gr_stream_writer_bytes(s->w) + (s->multifd ? gr_multifd_send_bytes(s->multifd) : 0);
	s->stats.total_time_ns = ns;
	s->stats.bandwidth_bytes_per_s =
		(uint64_t)((double)s->stats.transferred_bytes * 1e9 / (double)(ns + 1));
}

/* The end of a section; all channels meet there, or at the end of a round if that is the dialect.
 */
static int end_section(struct sender *s, bool round, struct gr_error *err)
{
	int rc = 0;

	if (s->multifd && (round || s->dialect == GR_MULTIFD_7_2)) {
		rc = gr_multifd_send_sync(s->multifd, err);
		if (rc == 0 && s->dialect != GR_MULTIFD_7_2) {
			rc = gr_stream_write_flush_record(s->w, err);
		}
	}
	if (rc == 0) {
		rc = gr_stream_write_eos(s->w, err);
	}
	return rc == 0 && s->multifd ? gr_stream_flush(s->w, err) : rc;
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
	return rc < 0 ? rc : end_section(s, true, err);
}

/* As packets of zero pages. */
static int send_zero_packets(struct sender *s, const struct gr_image_part *part, uint64_t page,
			     uint64_t n, struct gr_error *err)
{
	uint32_t page_bytes = s->image->page_bytes, max = gr_multifd_pages_max(page_bytes);

	for (uint64_t end = page + n; page < end;) {
		struct gr_multifd_job *job;
		int rc = gr_multifd_send_job(s->multifd, &job, err);

		if (rc < 0) {
			return rc;
		}
		strcpy(job->header.block, part->place.id);
		for (; page < end && job->header.zero_pages < max; page++) {
			job->header.offsets[job->header.zero_pages++] = page * page_bytes;
		}
		gr_multifd_send_give(s->multifd, job);
	}
	return 0;
}

static int send_zeros(struct sender *s, const struct gr_image_part *part, uint64_t page, uint64_t n,
		      struct gr_error *err)
{
	s->stats.zero_pages += n;
	if (s->multifd && s->dialect == GR_MULTIFD_9_0) {
		return send_zero_packets(s, part, page, n, err);
	}
	for (uint64_t i = 0; i < n; i++) {
		int rc = gr_stream_write_zero(s->w, part->place.id,
					      (page + i) * s->image->page_bytes, err);

		if (rc < 0) {
			return rc;
		}
	}
	return 0;
}

/* Read into the packet that carries them. */
static int send_packet(struct sender *s, uint32_t index, uint64_t page, uint64_t n,
		       struct gr_error *err)
{
	uint32_t page_bytes = s->image->page_bytes;
	struct gr_multifd_job *job;
	int rc = gr_multifd_send_job(s->multifd, &job, err);

	if (rc == 0) {
		rc = gr_image_read(s->image, index, page * page_bytes, job->own, n * page_bytes,
				   err);
	}
	if (rc < 0) {
		return rc;
	}
	strcpy(job->header.block, s->image->parts[index].place.id);
	job->header.pages = (uint32_t)n;
	for (uint64_t i = 0; i < n; i++) {
		job->header.offsets[i] = (page + i) * page_bytes;
		job->pages[i] = job->own + i * page_bytes;
	}
	gr_multifd_send_give(s->multifd, job);
	return 0;
}

static int send_pages(struct sender *s, uint32_t index, uint64_t page, uint64_t n,
		      struct gr_error *err)
{
	uint32_t page_bytes = s->image->page_bytes;
	uint64_t offsets[STAGE_PAGES];
	const void *pages[STAGE_PAGES];
	int rc;

	s->stats.normal_pages += n;
	if (s->multifd) {
		return send_packet(s, index, page, n, err);
	}
	rc = gr_image_read(s->image, index, page * page_bytes, s->stage, n * page_bytes, err);
	if (rc < 0) {
		return rc;
	}
	for (uint64_t i = 0; i < n; i++) {
		offsets[i] = (page + i) * page_bytes;
		pages[i] = s->stage + i * page_bytes;
	}
	return gr_stream_write_pages(s->w, s->image->parts[index].place.id, offsets, pages, n, err);
}

/* Pages read and sent at once. */
static uint64_t run_pages(const struct sender *s)
{
	return s->multifd ? gr_multifd_pages_max(s->image->page_bytes) : STAGE_PAGES;
}

static int send_block(struct sender *s, uint32_t index, struct gr_error *err)
{
	const struct gr_image_part *part = &s->image->parts[index];
	uint64_t end = part->place.used_bytes / s->image->page_bytes;

	for (uint64_t page = 0, n; page < end; page += n) {
		int rc;

		n = gr_image_part_run(part, page, GR_MIN(end, page + run_pages(s)));
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
		rc = end_section(s, true, err);
	}
	/* a destination may wait for the END of every iterable section */
	if (rc == 0) {
		rc = gr_stream_write_section(s->w, GR_SECTION_END, err);
	}
	if (rc == 0) {
		rc = end_section(s, true, err);
	}
	if (rc == 0) {
		rc = gr_stream_write_raw(s->w, tail->data, tail->bytes, err);
	}
	return rc < 0 ? rc : gr_stream_flush(s->w, err);
}

static int open_multifd(struct sender *s, struct gr_error *err)
{
	const struct gr_multifd *multifd = s->params->multifd;
	int rc;

	if (!multifd) {
		return 0;
	}
	s->dialect = multifd->dialect == GR_MULTIFD_BY_MACHINE
			     ? gr_multifd_dialect_of(s->image->config.machine)
			     : multifd->dialect;
	rc = gr_multifd_send_create(multifd, s->image->page_bytes, &s->multifd, err);
	return rc < 0 ? rc : gr_multifd_send_start(s->multifd, err);
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
	rc = s.stage ? open_multifd(&s, err) : gr_error_set(err, -ENOMEM, "out of memory");
	if (rc == 0) {
		rc = send_all(&s, err);
	}
	if (rc == 0) {
		update_stats(&s);
		s.stats.state = GR_MIGRATE_COMPLETED;
		if (ret_stats) {
			*ret_stats = s.stats;
		}
	}
	free(s.stage);
	gr_multifd_send_free(s.multifd);
	gr_stream_writer_free(s.w);
	return rc;
}
