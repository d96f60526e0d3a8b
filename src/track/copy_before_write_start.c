/* SPDX-License-Identifier: MIT */
/*
 * Start and end of a copy before write. The order of a start:
 *
 *   no memory table goes out    another process would write through a mapping of its own
 *   the blocks are listed       by a listener, which from then on refuses second mappings of files
 *   discards are watched        what goes from now on is shown before
 *   the thread serves           a store of whoever arms (a handler's) needs it already
 *   each block is protected
 *
 * The end goes back, but first of all opens everything: whoever waits for a page may hold what the
 * steps back take.
 */
#include "base/hook.h"
#include "base/memory.h"
#include "track/copy_before_write.h"
#include <errno.h>
#include <guestram/track.h>
#include <stdlib.h>

/* ---- the blocks of one moment ---------------------------------------------------------- */

static bool covered(const struct gr_ram_block *block)
{
	unsigned int flags = gr_ram_block_flags(block);

	return block->host && !(flags & (GR_RAM_NO_MIGRATE | GR_RAM_HOST_READONLY));
}

static int list_block(struct gr_cbw *cbw, struct gr_ram_block *block, struct gr_error *err)
{
	if (cbw->ranges == cbw->room) {
		unsigned int room = cbw->room ? 2 * cbw->room : 16;
		struct gr_cbw_range *more = realloc(cbw->range, room * sizeof(*more));

		if (!more) {
			return gr_error_set(err, -ENOMEM, "no memory to list %u blocks", room);
		}
		cbw->range = more;
		cbw->room = room;
	}
	gr_ram_block_get(block);
	cbw->range[cbw->ranges++] = (struct gr_cbw_range){ .at.block = block };
	return 0;
}

static int on_block_add(void *opaque, struct gr_ram_block *block, struct gr_error *err)
{
	struct gr_cbw *cbw = opaque;
	int ret;

#ifdef GR_MUTANT_CBW_MAPPED_TWICE
	ret = 0;
#else
	/* What is stored through another mapping changes the page without a fault. */
	ret = gr_shown_add(&cbw->shown, block, err);
#endif
	if (ret == 0 && cbw->listing && covered(block)) {
		ret = list_block(cbw, block, err);
		if (ret < 0) {
			gr_shown_del(&cbw->shown, block);
		}
	}
	if (ret < 0) {
		gr_error_prefix(err, cbw->listing ? "no copy before write: "
						  : "a copy before write goes on: ");
	}
	return ret;
}

/* If it is part of the copy, our reference goes on to keep its bytes from being mapped twice. */
static void on_block_del(void *opaque, struct gr_ram_block *block)
{
	struct gr_cbw *cbw = opaque;

	gr_shown_del(&cbw->shown, block);
}

static int by_address(const void *a, const void *b)
{
	const struct gr_cbw_range *x = a, *y = b;

	return x->at.start < y->at.start ? -1 : x->at.start > y->at.start;
}

static int make_sets(struct gr_cbw_range *r, struct gr_error *err)
{
	r->set_bytes = GR_ROUND_UP(GR_DIV_ROUND_UP(r->units, 64) * 8, gr_page_bytes());
	r->taken = gr_pages_alloc(r->set_bytes);
	r->released = gr_pages_alloc(r->set_bytes);
	return r->taken && r->released
		       ? 0
		       : gr_error_set(err, -ENOMEM,
				      "no memory for a copy before write of block '%s'",
				      r->at.block->id);
}

static int list_blocks(struct gr_cbw *cbw, struct gr_error *err)
{
	int ret;

	cbw->listing = true;
	ret = gr_ram_listener_add(cbw->ram, &cbw->listener, err);
	cbw->listens = ret == 0;
	/* What comes only now may be part of it or not. */
	gr_mutex_lock(&cbw->ram->lock);
	cbw->listing = false;
	gr_mutex_unlock(&cbw->ram->lock);
	for (unsigned int i = 0; ret == 0 && i < cbw->ranges; i++) {
		struct gr_cbw_range *r = &cbw->range[i];

		r->used_bytes = gr_ram_block_used_bytes(r->at.block);
		r->at = gr_uffd_range_of(r->at.block, r->used_bytes);
		r->units = r->at.bytes / r->at.unit;
		cbw->stats.bytes += r->used_bytes;
		ret = make_sets(r, err);
	}
	if (ret == 0 && cbw->ranges > 0) {
		qsort(cbw->range, cbw->ranges, sizeof(*cbw->range), by_address);
	}
	return ret;
}

/* ---- start ----------------------------------------------------------------------------- */

static int check_writers(const struct gr_cbw *cbw, unsigned int writers, struct gr_error *err)
{
	unsigned int by_kernel = GR_WRITERS_KVM_VCPUS | GR_WRITERS_MAPPING | GR_WRITERS_MARKED;

	if (writers & (GR_WRITERS_OUTSIDE | GR_WRITERS_REPORTING)) {
		return gr_error_set(
			err, -EINVAL,
			"no copy before write: writers outside this mapping (another mapping, "
			"another process, write() on the file) cannot be stopped");
	}
	if (writers & ~(by_kernel | GR_WRITERS_STORES)) {
		return gr_error_set(err, -EINVAL, "no copy before write: unknown writers %#x",
				    writers);
	}
	if ((writers & by_kernel) && !cbw->server.kernel_faults) {
		return gr_error_set(err, -EINVAL,
				    "no copy before write of what system calls or KVM "
				    "write: " GR_UFFD_USER_FAULTS_WHY);
	}
	return 0;
}

static void watch_discards(struct gr_cbw *cbw)
{
	gr_ram_discard_watch_add(cbw->ram, &cbw->watch);
	cbw->watches = true;
}

static int arm(struct gr_cbw *cbw, struct gr_error *err)
{
	int ret = 0;

#ifndef GR_MUTANT_CBW_WATCHES_LATE
	watch_discards(cbw);
#endif
	if (!cbw->params.no_thread) {
		ret = gr_uffd_server_run(&cbw->server, err);
	}
	for (; ret == 0 && cbw->armed < cbw->ranges; cbw->armed += ret == 0) {
		ret = gr_uffd_arm(&cbw->server, &cbw->range[cbw->armed].at, err);
	}
	if (ret < 0) {
		gr_error_prefix(err, "no copy before write: ");
	}
	GR_HOOK("cbw start: armed");
#ifdef GR_MUTANT_CBW_WATCHES_LATE
	watch_discards(cbw);
#endif
	return ret;
}

static int begin(struct gr_cbw *cbw, struct gr_error *err)
{
	int ret = check_writers(cbw, cbw->params.writers, err);

	if (ret == 0) {
		ret = gr_ram_tables_forbid(cbw->ram, err);
		cbw->tables_forbidden = ret == 0;
		if (ret < 0) {
			gr_error_prefix(err, "no copy before write: ");
		}
	}
	if (ret == 0) {
		ret = list_blocks(cbw, err);
	}
	return ret == 0 ? arm(cbw, err) : ret;
}

/* Nobody waits, is asked, or comes to be. */
static void quiet(struct gr_cbw *cbw)
{
	if (gr_uffd_server_ours(&cbw->server)) {
		gr_cbw_open_all(cbw); /* a listener may store under the locks that come next */
	}
	gr_uffd_server_stop(&cbw->server);
	if (cbw->watches) {
		gr_ram_discard_watch_del(cbw->ram, &cbw->watch);
	}
	if (cbw->listens) {
		gr_ram_listener_del(cbw->ram, &cbw->listener);
	}
}

static void free_all(struct gr_cbw *cbw)
{
	bool ours = gr_uffd_server_ours(&cbw->server);

	for (unsigned int i = 0; i < cbw->ranges; i++) {
		struct gr_cbw_range *r = &cbw->range[i];

		if (i < cbw->armed && ours) {
			gr_uffd_disarm(&cbw->server, &r->at);
		}
		if (r->taken) {
			gr_pages_free(r->taken, r->set_bytes);
		}
		if (r->released) {
			gr_pages_free(r->released, r->set_bytes);
		}
		gr_ram_block_put(r->at.block);
	}
	if (cbw->tables_forbidden) {
		gr_ram_tables_allow(cbw->ram);
	}
	free(cbw->range);
	free(cbw->shown.piece);
	gr_uffd_server_close(&cbw->server);
	if (ours) { /* in a child it may be anybody's */
		gr_mutex_destroy(&cbw->lock);
	}
	free(cbw);
}

int gr_cbw_start(struct gr_ram *ram, const struct gr_cbw_params *params, struct gr_cbw **ret_cbw,
		 struct gr_error *err)
{
	struct gr_cbw *cbw;
	int ret;

	if (params->size != sizeof(*params)) {
		return gr_error_set(err, -EINVAL,
				    "no copy before write: parameters of another version");
	}
	if (!params->before_write) {
		return gr_error_set(err, -EINVAL, "no copy before write: nobody to ask");
	}
	ret = gr_ram_loaded_check(ram, err);
	if (ret < 0) {
		return ret;
	}
	cbw = calloc(1, sizeof(*cbw));
	if (!cbw) {
		return gr_error_set(err, -ENOMEM, "no memory for a copy before write");
	}
	cbw->ram = ram;
	cbw->params = *params;
	ret = gr_uffd_server_open(&cbw->server, gr_cbw_on_fault, cbw, err);
	if (ret < 0) {
		free(cbw);
		gr_error_prefix(err, "no copy before write: ");
		return ret;
	}
	gr_mutex_init(&cbw->lock, GR_RANK_TRACKER);
	cbw->watch =
		(struct gr_ram_discard_watch){ .before = gr_cbw_before_discard, .opaque = cbw };
	cbw->listener = (struct gr_ram_listener){ .block_add = on_block_add,
						  .block_del = on_block_del,
						  .opaque = cbw };
	ret = begin(cbw, err);
	if (ret < 0) {
		(void)gr_cbw_set_over(cbw);
		quiet(cbw);
		free_all(cbw);
		return ret;
	}
	*ret_cbw = cbw;
	return 0;
}

/* ---- end ------------------------------------------------------------------------------- */

int gr_cbw_end(struct gr_cbw *cbw, struct gr_error *err)
{
	struct gr_cbw_stats stats;
	bool abandoned;

	if (!cbw) {
		return 0;
	}
	if (cbw->server.running && pthread_equal(cbw->server.thread, pthread_self())) {
		gr_die("gr_cbw_end() from within before_write()");
	}
	/* A child's copy is nothing. */
	abandoned = !gr_uffd_server_ours(&cbw->server) || !gr_cbw_set_over(cbw);
	quiet(cbw);
	stats = cbw->stats; /* their last questions are answered */
	free_all(cbw);
	if (abandoned) {
		return gr_error_set(err, -ECANCELED, "the copy before write was abandoned");
	}
	if (stats.released_bytes != stats.bytes) {
		return gr_error_set(err, -ECANCELED,
				    "the copy before write ended with %llu of %llu bytes saved",
				    (unsigned long long)stats.released_bytes,
				    (unsigned long long)stats.bytes);
	}
	return 0;
}
