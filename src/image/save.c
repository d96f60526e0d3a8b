/* SPDX-License-Identifier: MIT */
/*
 * A machine's RAM into an image. Threads take pieces of blocks; each page goes from where it is in
 * guest memory to its place in the file, in runs as long as they are. Pages that are zero, that
 * nobody ever touched or that are unplugged are holes in the file, and are not given memory by
 * being looked at.
 */
#include "base/atomic.h"
#include "base/clock.h"
#include "base/memory.h"
#include "base/zero.h"
#include "image/members.h"
#include "image/parallel.h"
#include "image/store.h"
#include "migrate/holes.h"
#include "migrate/state_writer.h"
#include "ram/untouched.h"
#include <errno.h>
#include <guestram/image.h>
#include <inttypes.h>
#include <stdlib.h>

/* The first section is that of 'ram', as in a migration of ours. */
enum { RAM_SECTION = 1 };

struct save {
	struct gr_image_store *store;
	struct gr_image_members members;
	uint32_t page_bytes;
	gr_atomic_u64 data_pages; /* (a) sums of what the threads did */
	gr_atomic_u64 zero_pages;
};

/* One thread's. */
struct saver {
	struct save *save;
	struct gr_holes holes;
	struct gr_image_extent extent;
	uint8_t *page; /* room for one, from a file that must be read */
	uint64_t data_pages, zero_pages;
};

static int write_run(struct saver *w, uint32_t index, uint64_t offset, const uint8_t *data,
		     uint64_t bytes, struct gr_error *err)
{
	w->data_pages += bytes / w->save->page_bytes;
	return gr_image_store_run(w->save->store, index, offset, data, bytes, err);
}

/* Files of huge pages: their holes do not show, and a load would fill them. */
static int save_by_read(struct saver *w, uint32_t index, uint64_t offset, uint64_t end,
			struct gr_error *err)
{
	const struct gr_ram_block *block = w->save->members.of[index].block;
	uint32_t size = w->save->page_bytes;

	for (; offset < end; offset += size) {
		int rc = gr_holes_read(&w->holes, block, offset, w->page);

		if (rc < 0) {
			return gr_error_set(err, rc, "its file cannot be read at %#" PRIx64 ": %s",
					    offset, strerror(-rc));
		}
		if (gr_page_is_zero(w->page, size)) {
			w->zero_pages++;
			continue;
		}
		rc = write_run(w, index, offset, w->page, size, err);
		if (rc < 0) {
			return rc;
		}
	}
	return 0;
}

/* Bytes that have memory behind them. */
static int save_present(struct saver *w, uint32_t index, uint64_t offset, uint64_t end,
			struct gr_error *err)
{
	const struct gr_ram_block *block = w->save->members.of[index].block;
	uint32_t size = w->save->page_bytes;
	uint64_t begin = offset;
	int rc = 0;

	if (gr_holes_must_read(&w->holes, block)) {
		return save_by_read(w, index, offset, end, err);
	}
	for (uint64_t at = offset; rc == 0 && at < end; at += size) {
		if (!gr_page_is_zero(block->host + at, size)) {
			continue;
		}
		w->zero_pages++;
		if (at > begin) {
			rc = write_run(w, index, begin, block->host + begin, at - begin, err);
		}
		begin = at + size;
	}
	if (rc == 0 && end > begin) {
		rc = write_run(w, index, begin, block->host + begin, end - begin, err);
	}
	return rc;
}

static int save_piece(struct saver *w, uint64_t piece, struct gr_error *err)
{
	uint64_t offset, end;
	uint32_t index = gr_image_members_piece(&w->save->members, piece, &offset, &end);
	struct gr_ram_block *block = w->save->members.of[index].block;

	for (uint64_t at; offset < end; offset = at) {
		bool untouched;
		int rc = 0;

		gr_ram_look_begin(block);
		untouched = !gr_ram_plugged_locked(block, offset, end, &at) ||
			    gr_image_members_hole(&w->save->members, index, &w->holes, &w->extent,
						  offset, at, &at);
		gr_ram_look_end(block);
		if (untouched) {
			w->zero_pages += (at - offset) / w->save->page_bytes;
		} else {
			rc = save_present(w, index, offset, at, err);
		}
		if (rc < 0) {
			return gr_error_prefix(err, "block '%s', pages from %#" PRIx64 " on: ",
					       w->save->members.of[index].id, offset);
		}
	}
	return 0;
}

static int save_pieces(struct gr_parallel *p, struct gr_error *err)
{
	struct saver w = { .save = p->opaque };
	int rc = gr_holes_init(&w.holes, w.save->page_bytes, err);
	uint64_t piece;

	if (rc < 0) {
		return rc;
	}
	w.holes.walks_once = true;
	w.page = gr_aligned_alloc(w.save->page_bytes, w.save->page_bytes);
	if (!w.page) {
		rc = gr_error_set(err, -ENOMEM, "no memory to save an image");
	}
	while (rc == 0 && gr_parallel_next(p, &piece)) {
		rc = save_piece(&w, piece, err);
	}
	(void)gr_add_relaxed(&w.save->data_pages, w.data_pages);
	(void)gr_add_relaxed(&w.save->zero_pages, w.zero_pages);
	gr_aligned_free(w.page);
	gr_holes_destroy(&w.holes);
	return rc;
}

static int lay_out(struct save *s, struct gr_error *err)
{
	struct gr_image_place *places;
	int rc;

	if (s->members.count > GR_IMAGE_BLOCKS_MAX) {
		return gr_error_set(err, -EFBIG, "%u blocks: an image has 1 to %d",
				    s->members.count, GR_IMAGE_BLOCKS_MAX);
	}
	places = calloc(s->members.count, sizeof(*places));
	if (!places) {
		return gr_error_set(err, -ENOMEM, "out of memory");
	}
	for (uint32_t i = 0; i < s->members.count; i++) {
		/* at most 255 bytes, as the list has checked */
		memcpy(places[i].id, s->members.of[i].id, strlen(s->members.of[i].id) + 1);
		places[i].used_bytes = s->members.of[i].bytes;
	}
	rc = gr_image_store_blocks(s->store, RAM_SECTION, places, s->members.count, err);
	free(places);
	return rc;
}

static int save_tail(struct save *s, const struct gr_image_save_params *params,
		     struct gr_error *err)
{
	struct gr_tail_builder tail;
	struct gr_state_writer writer = { &tail, RAM_SECTION + 1 };
	const uint8_t *data = NULL;
	size_t bytes = 0;
	int rc = 0;

	gr_tail_builder_init(&tail, s->page_bytes);
	if (params->save) {
		rc = params->save(params->opaque, &writer, err);
		if (rc < 0) {
			gr_error_prefix(err, "saving the devices: ");
		}
	}
	if (rc == 0) {
		rc = gr_tail_builder_finish(&tail, &data, &bytes, err);
	}
	if (rc == 0) {
		rc = gr_image_store_finish(s->store, data, bytes, err);
	}
	gr_tail_builder_destroy(&tail);
	return rc;
}

static int save_all(struct save *s, struct gr_ram *ram, const struct gr_image_save_params *params,
		    struct gr_error *err)
{
	struct gr_parallel p = { .work = save_pieces, .opaque = s };
	int rc = gr_image_members_list(&s->members, ram, err);

	if (rc == 0) {
		rc = gr_image_store_machine(s->store,
					    params->machine ? params->machine : "guestram",
					    s->page_bytes, err);
	}
	if (rc == 0) {
		rc = lay_out(s, err);
	}
	if (rc == 0) {
		gr_image_members_cut(&s->members, s->page_bytes);
		p.pieces = s->members.pieces;
		rc = gr_parallel_run(&p, params->threads, err);
	}
	return rc == 0 ? save_tail(s, params, err) : rc;
}

int gr_image_save(struct gr_ram *ram, const char *path, const struct gr_image_save_params *params,
		  struct gr_image_stats *ret_stats, struct gr_error *err)
{
	static const struct gr_image_save_params none = { .size = sizeof(none) };
	struct gr_image_store_params store_params;
	struct save s = { .page_bytes = gr_ram_page_bytes(ram) };
	struct gr_image_stats stats = { 0 };
	uint64_t began_ns = gr_clock_ns();
	int rc;

	params = params ? params : &none;
	if (params->size != sizeof(*params)) {
		return gr_error_set(err, -EINVAL, "parameters of another size");
	}
	rc = gr_ram_loaded_check(ram, err);
	if (rc < 0) {
		return rc;
	}
	store_params = (struct gr_image_store_params){ params->offset, params->direct };
	rc = gr_image_store_create_with(path, &store_params, &s.store, err);
	if (rc < 0) {
		return rc;
	}
	rc = save_all(&s, ram, params, err);
	if (rc == 0 && ret_stats) {
		stats.data_pages = s.data_pages;
		stats.zero_pages = s.zero_pages;
		stats.direct = gr_image_store_direct(s.store, stats.why_not_direct,
						     sizeof(stats.why_not_direct));
		stats.total_time_ns = gr_clock_ns() - began_ns;
		*ret_stats = stats;
	}
	gr_image_members_free(&s.members);
	gr_image_store_free(s.store);
	return rc;
}
