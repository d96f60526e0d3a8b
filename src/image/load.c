/* SPDX-License-Identifier: MIT */
/*
 * An image into a machine's RAM. Threads take pieces of blocks. Pages that are not there yet are
 * read into a small buffer, which stays in the processor's cache, and placed by what allocates and
 * fills a page at once (migrate/place.h); pages that are there, or come by being touched, are read
 * where they are, unless only stores may change them. What the image does not have is zero, and
 * memory that nobody touched stays so (but for what shares a huge page with what came).
 */
#include "image/load.h"
#include "base/atomic.h"
#include "base/clock.h"
#include "base/memory.h"
#include "base/zero.h"
#include "image/direct.h"
#include "image/image.h"
#include "image/parallel.h"
#include "migrate/holes.h"
#include "migrate/place.h"
#include "migrate/ram_sink.h"
#include "ram/ram.h"
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>

enum { BUFFER_BYTES = 256 << 10 };

struct load {
	struct gr_image *image;
	struct gr_image_members *members; /* one for each of the image's parts */
	enum gr_place_how *how;
	struct gr_placer placer;
	struct gr_direct direct;
	gr_atomic_u64 data_pages; /* (a) sums of what the threads did */
	gr_atomic_u64 zero_pages;
};

/* One thread's. */
struct loader {
	struct load *load;
	struct gr_holes holes;
	struct gr_image_extent extent;
	uint8_t *buffer;
	size_t buffer_bytes;
	uint64_t data_pages, zero_pages;
};

int gr_image_members_attach(struct gr_image_members *m, struct gr_image *image, struct gr_ram *ram,
			    const struct gr_destination_ops *ops, struct gr_error *err)
{
	struct gr_section_watch watch = { 0 };
	int rc = 0;

	if (image->page_bytes != gr_ram_page_bytes(ram)) {
		return gr_error_set(err, -EINVAL,
				    "the image's pages have %u bytes, this machine's have %u",
				    image->page_bytes, gr_ram_page_bytes(ram));
	}
	m->of = calloc(image->count, sizeof(*m->of));
	if (!m->of) {
		return gr_error_set(err, -ENOMEM, "no memory to list %u blocks", image->count);
	}
	for (uint32_t i = 0; rc == 0 && i < image->count; i++) {
		const struct gr_image_place *place = &image->parts[i].place;
		struct gr_stream_block entry = { .used_bytes = place->used_bytes,
						 .max_bytes = place->used_bytes,
						 .gpa = GR_STREAM_GPA_NONE };

		memcpy(entry.id, place->id, sizeof(entry.id));
		rc = gr_ram_sink_block(ram, ops, &entry, &watch, &m->of[i].block, err);
		if (rc == 0) {
			m->of[i].id = place->id;
			m->of[i].bytes = place->used_bytes;
			m->count++;
		}
		if (rc == 0 && !m->of[i].block->host) {
			rc = gr_error_set(
				err, -ENOTSUP,
				"block '%s' is mapped on demand: such blocks have no place "
				"in images",
				place->id);
		}
	}
	return rc;
}

static int read_at(struct loader *w, const struct gr_image_part *part, uint64_t offset, void *to,
		   size_t n, struct gr_error *err)
{
	int rc = gr_direct_pread(&w->load->direct, to, n, part->place.pages_at + offset);

	return rc < 0 ? gr_image_cannot_read(w->load->image, part, offset, rc, err) : 0;
}

/* Tracking that serves stores and no system calls may begin at any time. */
static bool only_stores_get_there(const struct gr_ram_block *block)
{
#ifdef GR_MUTANT_LOAD_READS_PROTECTED
	return false;
#endif
	return gr_load_relaxed(&gr_block(block)->stores_only) != 0;
}

/* Pages of the image into memory that is all there, or all not. */
static int place(struct loader *w, uint32_t index, uint64_t offset, uint64_t end, bool hole,
		 struct gr_error *err)
{
	const struct gr_image_part *part = &w->load->image->parts[index];
	struct gr_ram_block *block = w->load->members->of[index].block;
	enum gr_place_how how = hole ? w->load->how[index] : GR_PLACE_STORE;
	uint32_t size = w->load->image->page_bytes;

	for (uint64_t n; offset < end;) {
		bool staged = how != GR_PLACE_STORE || only_stores_get_there(block);
		int rc;

		n = GR_MIN(end - offset,
			   staged ? (uint64_t)w->buffer_bytes : (uint64_t)GR_IMAGE_PIECE_BYTES);
		rc = read_at(w, part, offset, staged ? w->buffer : block->host + offset, n, err);
		if (rc == 0 && staged) {
			gr_placer_fill(&w->load->placer, block, how, offset, w->buffer, n, size);
		}
		if (rc == 0 || !staged) {
			gr_ram_mark(block, offset, n); /* O1: the bytes are in, of a failure some */
		}
		if (rc == -EFAULT && !staged && only_stores_get_there(block)) {
			continue; /* since just now */
		}
		if (rc < 0) {
			return rc;
		}
		w->data_pages += n / size;
		offset += n;
	}
	return 0;
}

/* What is there and shall be zero. A page of a file of huge pages is not asked for only to be
 * cleared. */
static void clear(struct loader *w, struct gr_ram_block *block, uint64_t offset, uint64_t end)
{
	uint32_t size = w->load->image->page_bytes;

	for (uint64_t at = offset; at < end; at += size) {
		if (!gr_holes_must_read(&w->holes, block) ||
		    gr_holes_read(&w->holes, block, at, w->buffer) < 0 ||
		    !gr_page_is_zero(w->buffer, size)) {
			memset(block->host + at, 0, size);
		}
	}
	gr_ram_mark(block, offset, end - offset); /* O1 */
}

static int load_piece(struct loader *w, uint64_t piece, struct gr_error *err)
{
	uint64_t offset, end;
	uint32_t index = gr_image_members_piece(w->load->members, piece, &offset, &end);
	const struct gr_image_part *part = &w->load->image->parts[index];
	struct gr_ram_block *block = w->load->members->of[index].block;
	uint32_t size = w->load->image->page_bytes;

	for (uint64_t at; offset < end; offset = at) {
		uint64_t page = offset / size;
		bool hole;
		int rc = 0;

		at = offset + gr_image_part_run(part, page, end / size) * size;
		hole = gr_image_members_hole(w->load->members, index, &w->holes, &w->extent, offset,
					     at, &at);
		if (gr_image_part_present(part, page)) {
			rc = place(w, index, offset, at, hole, err);
		} else {
			w->zero_pages += (at - offset) / size;
#ifndef GR_MUTANT_LOAD_OLD_CONTENT_STAYS
			if (!hole) {
				clear(w, block, offset, at);
			}
#endif
		}
		if (rc < 0) {
			return rc;
		}
	}
	return 0;
}

static int load_pieces(struct gr_parallel *p, struct gr_error *err)
{
	struct loader w = { .load = p->opaque };
	uint32_t size = w.load->image->page_bytes;
	int rc = gr_holes_init(&w.holes, size, err);
	uint64_t piece;

	if (rc < 0) {
		return rc;
	}
	w.buffer_bytes = GR_MAX((size_t)BUFFER_BYTES, (size_t)size);
	w.buffer = gr_aligned_alloc(GR_MAX(gr_page_bytes(), (size_t)size), w.buffer_bytes);
	if (!w.buffer) {
		rc = gr_error_set(err, -ENOMEM, "no memory to load an image");
	}
	while (rc == 0 && gr_parallel_next(p, &piece)) {
		rc = load_piece(&w, piece, err);
	}
	(void)gr_add_relaxed(&w.load->data_pages, w.data_pages);
	(void)gr_add_relaxed(&w.load->zero_pages, w.zero_pages);
	gr_aligned_free(w.buffer);
	gr_holes_destroy(&w.holes);
	return rc;
}

int gr_image_load_members(struct gr_image *image, struct gr_image_members *m, unsigned int threads,
			  bool direct, struct gr_image_stats *stats, struct gr_error *err)
{
	struct load l = { .image = image, .members = m };
	struct gr_parallel p = { .work = load_pieces, .opaque = &l };
	int rc;

	l.how = calloc(m->count, sizeof(*l.how));
	if (!l.how) {
		return gr_error_set(err, -ENOMEM, "out of memory");
	}
	gr_image_members_cut(m, image->page_bytes);
	p.pieces = m->pieces;
	gr_direct_open(&l.direct, image->fd, direct, false);
	gr_placer_init(&l.placer);
	for (uint32_t i = 0; i < m->count; i++) {
		if (m->of[i].bytes > 0) {
			l.how[i] = gr_placer_begin(&l.placer, m->of[i].block, image->page_bytes);
		}
	}
	rc = gr_parallel_run(&p, threads, err);
	for (uint32_t i = 0; i < m->count; i++) {
		if (m->of[i].bytes > 0) {
			gr_placer_end(&l.placer, m->of[i].block, l.how[i]);
		}
	}
	gr_placer_destroy(&l.placer);
	free(l.how);
	stats->data_pages = l.data_pages;
	stats->zero_pages = l.zero_pages;
	stats->direct = gr_direct_is_on(&l.direct);
	gr_direct_why(&l.direct, stats->why_not_direct, sizeof(stats->why_not_direct));
	gr_direct_close(&l.direct);
	return rc;
}

int gr_image_check_machine(const struct gr_image *image, const char *machine, struct gr_error *err)
{
	if (machine && strcmp(machine, image->config.machine) != 0) {
		return gr_error_set(err, -EINVAL, "%s: the image is of machine '%s', not '%s'",
				    image->path, image->config.machine, machine);
	}
	return 0;
}

int gr_image_load_devices(struct gr_image *image, const struct gr_destination_ops *ops,
			  struct gr_error *err)
{
	int rc = gr_ram_sink_load_devices(ops, &image->tail, err);

	return rc == 0 && ops->complete ? ops->complete(ops->opaque, err) : rc;
}

int gr_image_load(struct gr_image *image, struct gr_ram *ram,
		  const struct gr_image_load_params *params, const struct gr_destination_ops *ops,
		  struct gr_image_stats *ret_stats, struct gr_error *err)
{
	static const struct gr_image_load_params none = { .size = sizeof(none) };
	static const struct gr_destination_ops no_ops = { 0 };
	struct gr_image_members members = { 0 };
	struct gr_image_stats stats = { 0 };
	uint64_t began_ns = gr_clock_ns();
	int rc;

	params = params ? params : &none;
	ops = ops ? ops : &no_ops;
	if (params->size != sizeof(*params)) {
		return gr_error_set(err, -EINVAL, "parameters of another size");
	}
	rc = gr_ram_loaded_check(ram, err);
	if (rc == 0) {
		rc = gr_image_check_machine(image, params->machine, err);
	}
	if (rc == 0) {
		rc = gr_image_members_attach(&members, image, ram, ops, err);
	}
	if (rc == 0) {
		rc = gr_image_load_members(image, &members, params->threads, params->direct, &stats,
					   err);
	}
	if (rc == 0) {
		rc = gr_image_load_devices(image, ops, err);
	}
	if (rc == 0 && ret_stats) {
		stats.total_time_ns = gr_clock_ns() - began_ns;
		*ret_stats = stats;
	}
	gr_image_members_free(&members);
	return rc;
}
