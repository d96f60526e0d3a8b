/* SPDX-License-Identifier: MIT */
/*
 * A source with further channels. The main thread harvests, re-arms and looks at pages as ever; a
 * batch becomes a packet that a channel's thread sends while the next batch is filled. A
 * packet holds a reference of its block, and what was unplugged meanwhile is forgotten when
 * its bytes are out.
 */
#include "migrate/multifd_send.h"
#include "migrate/source.h"
#include <errno.h>
#include <string.h>

int gr_source_multifd_init(struct gr_source *s, struct gr_error *err)
{
	const struct gr_multifd *multifd = s->params.multifd;

	if (!multifd) {
		return 0;
	}
	if (s->params.xbzrle_cache_bytes != 0) {
		return gr_error_set(err, -EINVAL,
				    "differences (XBZRLE) and further channels exclude each other");
	}
	s->dialect = multifd->dialect;
	s->params.multifd = NULL; /* the caller's memory */
	return gr_multifd_send_create(multifd, (uint32_t)s->page_bytes, &s->multifd, err);
}

void gr_source_multifd_set_dialect(struct gr_source *s)
{
	if (s->dialect == GR_MULTIFD_BY_MACHINE) {
		s->dialect = s->ours ? GR_MULTIFD_9_0 : gr_multifd_dialect_of(s->machine);
	}
}

uint64_t gr_source_bytes(const struct gr_source *s)
{
	return gr_stream_writer_bytes(s->writer) +
	       (s->multifd ? gr_multifd_send_bytes(s->multifd) : 0);
}

int gr_source_meet(struct gr_source *s, struct gr_error *err)
{
	int rc;

	if (!s->multifd) {
		return 0;
	}
	rc = gr_multifd_send_sync(s->multifd, err);
	if (rc == 0 && s->dialect != GR_MULTIFD_7_2) {
		rc = gr_stream_write_flush_record(s->writer, err);
	}
	return rc;
}

int gr_source_meet_section(struct gr_source *s, struct gr_error *err)
{
	return s->dialect == GR_MULTIFD_7_2 ? gr_source_meet(s, err) : 0;
}

int gr_source_meet_round(struct gr_source *s, struct gr_error *err)
{
#ifdef GR_MUTANT_MULTIFD_ROUNDS_OVERLAP
	if (!s->final) {
		return 0;
	}
#endif
	return s->dialect == GR_MULTIFD_7_2 ? 0 : gr_source_meet(s, err);
}

int gr_source_meet_announcement(struct gr_source *s, struct gr_error *err)
{
	return s->multifd ? gr_multifd_send_sync(s->multifd, err) : 0;
}

/* What was unplugged while the kernel read these pages has no memory again afterwards. */
static void packet_done(struct gr_multifd_job *job)
{
	struct gr_ram_block *block = job->opaque;

	gr_source_forget_unplugged(block, job->cookie, job->header.offsets, job->header.pages,
				   gr_ram_page_bytes(block->ram));
	gr_ram_block_put(block);
}

int gr_source_send_packet(struct gr_source *s, struct gr_error *err)
{
	struct gr_source_batch *b = &s->batch;
	struct gr_multifd_job *job;
	uint8_t *own;
	int rc = gr_multifd_send_job(s->multifd, &job, err);

	if (rc < 0) {
		return rc;
	}
	strcpy(job->header.block, b->entry->id);
	job->header.pages = b->count;
	memcpy(job->header.offsets, b->offsets, b->count * sizeof(b->offsets[0]));
	memcpy(job->pages, b->pages, b->count * sizeof(b->pages[0]));
	/* Copies stay with the packet; the next batch has the room of this one. */
	own = job->own;
	job->own = s->bounce;
	s->bounce = own;
	if (b->direct) {
		gr_ram_block_get(b->block);
		job->opaque = b->block;
		job->cookie = b->discards;
		job->done = packet_done;
		job->file = gr_source_file_of(s, b->block);
		b->direct = false; /* the packet's business */
	}
	gr_multifd_send_give(s->multifd, job);
	return 0;
}

int gr_source_send_zero_packets(struct gr_source *s, uint64_t offset, uint64_t bytes,
				struct gr_error *err)
{
	uint32_t max = gr_multifd_pages_max((uint32_t)s->page_bytes);
	uint64_t end = offset + bytes;

	while (offset < end) {
		struct gr_multifd_job *job;
		int rc = gr_multifd_send_job(s->multifd, &job, err);
		uint32_t n = 0;

		if (rc < 0) {
			return rc;
		}
		strcpy(job->header.block, s->batch.entry->id);
		for (; offset < end && n < max; offset += s->page_bytes) {
			job->header.offsets[n++] = offset;
		}
		job->header.zero_pages = n;
		gr_multifd_send_give(s->multifd, job);
	}
	return 0;
}
