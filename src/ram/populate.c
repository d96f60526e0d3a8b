/* SPDX-License-Identifier: MIT */
/*
 * Pieces of a block that are plugged and unplugged. A bitmap of the block says which granules are
 * unplugged (none until the first one is); listeners hear of runs of granules that change, in the
 * order they came when memory comes, in the reverse order when it goes.
 *
 * Everything under the machine's discard_lock.
 */
#include "ram/untouched.h"
#include <errno.h>

struct run {
	uint64_t offset, bytes;
};

static bool is_gone(const struct gr_block *b, uint64_t granule)
{
	return b->gone && (b->gone[granule / 64] >> granule % 64 & 1);
}

static void set_gone(struct gr_block *b, const struct run *run, bool gone)
{
	uint64_t unit = b->pub.granule_bytes;

	for (uint64_t i = run->offset / unit; i < (run->offset + run->bytes) / unit; i++) {
		if (gone) {
			b->gone[i / 64] |= UINT64_C(1) << i % 64;
		} else {
			b->gone[i / 64] &= ~(UINT64_C(1) << i % 64);
		}
	}
}

/* The first granule from `at` on that is (not) gone, or end. Skips words that are all the other. */
static uint64_t find(const struct gr_block *b, uint64_t at, uint64_t end, bool gone)
{
	while (at < end && is_gone(b, at) != gone) {
		if (!b->gone) {
			return end;
		}
		at += at % 64 == 0 && b->gone[at / 64] == (gone ? 0 : UINT64_MAX) ? 64 : 1;
	}
	return GR_MIN(at, end);
}

/* The next run in [at, end) of granules that are (not) gone. */
static bool next_run(const struct gr_block *b, uint64_t at, uint64_t end, bool gone,
		     struct run *run)
{
	uint64_t unit = b->pub.granule_bytes, first = find(b, at / unit, end / unit, gone);

	run->offset = first * unit;
	run->bytes = (find(b, first, end / unit, !gone) - first) * unit;
	return run->bytes != 0;
}

/*
 * The next run of granules that are there, as listeners hear of it. The last granule may reach beyond the block: in memory of our own that
 * is ours too, but behind a file's piece or the caller's memory there is somebody else's.
 */
static bool next_there(const struct gr_block *b, uint64_t at, uint64_t end, struct run *run)
{
	bool rest = b->pub.backing == GR_RAM_MEMFD || b->pub.backing == GR_RAM_ANONYMOUS;

	if (!next_run(b, GR_ROUND_UP(at, b->pub.granule_bytes), end, false, run)) {
		return false;
	}
#ifdef GR_MUTANT_POPULATE_REPLAYS_TOO_MUCH
	rest = true;
#endif
	if (!rest) {
		run->bytes = GR_MIN(run->bytes, b->pub.max_bytes - run->offset);
	}
	return true;
}

static void tell_gone(struct gr_ram_populate_listener *l, struct gr_block *b, const struct run *run)
{
	if (l->depopulate) {
		l->depopulate(l->opaque, &b->pub, run->offset, run->bytes);
	}
}

static int tell_there(struct gr_ram_populate_listener *l, struct gr_block *b, const struct run *run,
		      struct gr_error *err)
{
	int ret = l->populate ? l->populate(l->opaque, &b->pub, run->offset, run->bytes, err) : 0;

	return GR_MIN(ret, 0);
}

/* From the last one that is not `end` to the first: few, so it is looked for each time. */
static void tell_all_gone(struct gr_block *b, const struct gr_ram_populate_listener *end,
			  const struct run *run)
{
	while (end != b->populate_listeners) {
		struct gr_ram_populate_listener *l = b->populate_listeners;

		while (l->next != end) {
			l = l->next;
		}
		tell_gone(l, b, run);
		end = l;
	}
}

/* All of them, or none. */
static int tell_all_there(struct gr_block *b, const struct run *run, struct gr_error *err)
{
	for (struct gr_ram_populate_listener *l = b->populate_listeners; l; l = l->next) {
		int ret = tell_there(l, b, run, err);

		if (ret < 0) {
#ifndef GR_MUTANT_POPULATE_NO_ROLL_BACK
			tell_all_gone(b, l, run);
#endif
			return ret;
		}
	}
	return 0;
}

/* Backs out of the runs in [offset, end) that were told to be there, last one first. */
static void take_back(struct gr_block *b, uint64_t offset, uint64_t end)
{
	struct run run, last;

	do {
		last.bytes = 0;
		for (uint64_t at = offset; next_run(b, at, end, true, &run); at = run.offset + run.bytes) {
			last = run;
		}
		if (last.bytes != 0) {
			tell_all_gone(b, NULL, &last);
			end = last.offset;
		}
	} while (last.bytes != 0);
}

static int populate_locked(struct gr_block *b, uint64_t offset, uint64_t end, struct gr_error *err)
{
	struct run run;
	int ret = 0;
	uint64_t at;

	for (at = offset; next_run(b, at, end, true, &run); at = run.offset + run.bytes) {
		ret = tell_all_there(b, &run, err);
		if (ret < 0) {
			take_back(b, offset, run.offset);
			return ret;
		}
	}
	for (at = offset; next_run(b, at, end, true, &run); at = run.offset + run.bytes) {
		set_gone(b, &run, false);
		/* After it: to who looks while it is unplugged (a migration) its content is zeroes. */
#ifndef GR_MUTANT_POPULATE_UNMARKED
		gr_ram_mark(&b->pub, run.offset, GR_MIN(run.bytes, b->pub.max_bytes - run.offset));
#endif
	}
	return 0;
}

static size_t bitmap_bytes(const struct gr_block *b)
{
	uint64_t granules = GR_DIV_ROUND_UP(b->pub.max_bytes, b->pub.granule_bytes);

	return GR_ROUND_UP((size_t)GR_DIV_ROUND_UP(granules, 64) * 8, gr_page_bytes());
}

void gr_block_gone_free(struct gr_block *block)
{
	if (block->gone) {
		gr_pages_free(block->gone, bitmap_bytes(block));
	}
}

static int depopulate_locked(struct gr_ram_block *block, uint64_t offset, uint64_t end,
			     struct gr_error *err) GR_REQUIRES(block->ram->discard_lock)
{
	struct gr_block *b = gr_block(block);
	struct run run;
	int ret;

	if (!b->gone) {
		b->gone = gr_pages_alloc(bitmap_bytes(b));
		if (!b->gone) {
			return gr_error_set(err, -ENOMEM, "block '%s': no memory", b->pub.id);
		}
	}
	for (uint64_t at = offset; next_run(b, at, end, false, &run); at = run.offset + run.bytes) {
		tell_all_gone(b, NULL, &run);
		ret = gr_ram_throw_away_locked(block, run.offset, run.bytes, err);
		if (ret < 0) {
			/* Who cannot have it back does without: it is memory like before. */
			for (struct gr_ram_populate_listener *l = b->populate_listeners; l; l = l->next) {
				(void)tell_there(l, b, &run, NULL);
			}
			return ret;
		}
		set_gone(b, &run, true);
	}
	return 0;
}

/* In whole granules: who maps them can let go of no less. */
void gr_ram_tell_memory_goes_locked(struct gr_ram_block *block, uint64_t offset, uint64_t bytes)
{
	struct gr_block *b = gr_block(block);
	uint64_t end = GR_ROUND_UP(offset + bytes, block->granule_bytes);
	struct run run;

	offset -= offset % block->granule_bytes;
	for (uint64_t at = offset; next_there(b, at, end, &run); at = run.offset + run.bytes) {
		tell_all_gone(b, NULL, &run);
	}
}

/* The memory is there whatever they say, so all are asked, and the first refusal is the answer. */
int gr_ram_tell_memory_came_locked(struct gr_ram_block *block, uint64_t offset, uint64_t bytes,
				   struct gr_error *err)
{
	struct gr_block *b = gr_block(block);
	uint64_t end = GR_ROUND_UP(offset + bytes, block->granule_bytes);
	struct run run;
	int ret = 0;

	offset -= offset % block->granule_bytes;
	for (uint64_t at = offset; next_there(b, at, end, &run); at = run.offset + run.bytes) {
		for (struct gr_ram_populate_listener *l = b->populate_listeners; l; l = l->next) {
			int said = tell_there(l, b, &run, ret == 0 ? err : NULL);

			ret = ret == 0 ? said : ret;
		}
	}
	return ret;
}

int gr_ram_populate(struct gr_ram_block *block, uint64_t offset, uint64_t bytes,
		    struct gr_error *err)
{
	int ret = gr_ram_range_check(block, offset, bytes, block->granule_bytes, err);

	if (ret < 0) {
		return ret;
	}
	gr_mutex_lock(&block->ram->discard_lock);
	ret = populate_locked(gr_block(block), offset, offset + bytes, err);
	gr_mutex_unlock(&block->ram->discard_lock);
	return ret;
}

int gr_ram_depopulate(struct gr_ram_block *block, uint64_t offset, uint64_t bytes,
		      struct gr_error *err)
{
	int ret = gr_ram_range_check(block, offset, bytes, block->granule_bytes, err);

	if (ret < 0) {
		return ret;
	}
	gr_mutex_lock(&block->ram->discard_lock);
	ret = gr_ram_discard_allowed_locked(block, 1u << GR_RAM_NO_DISCARDS, err);
	if (ret == 0) {
		ret = depopulate_locked(block, offset, offset + bytes, err);
	}
	gr_mutex_unlock(&block->ram->discard_lock);
	return ret;
}

bool gr_ram_populated(struct gr_ram_block *block, uint64_t offset, uint64_t bytes)
{
	uint64_t unit = block->granule_bytes, end;
	bool all;

	if (__builtin_add_overflow(offset, bytes, &end) || end > block->max_bytes) {
		return false;
	}
	gr_mutex_lock(&block->ram->discard_lock);
	end = GR_DIV_ROUND_UP(end, unit);
	all = bytes == 0 || find(gr_block(block), offset / unit, end, true) == end;
	gr_mutex_unlock(&block->ram->discard_lock);
	return all;
}

static uint64_t replay_end(const struct gr_block *b)
{
	return GR_ROUND_UP(b->pub.max_bytes, b->pub.granule_bytes);
}

bool gr_ram_plugged_locked(const struct gr_ram_block *block, uint64_t offset, uint64_t end,
			   uint64_t *ret_end)
{
	const struct gr_block *b = gr_block(block);
	uint64_t unit = block->granule_bytes, at = offset / unit;
	bool gone = is_gone(b, at);

	*ret_end = GR_MIN(end, find(b, at, GR_DIV_ROUND_UP(end, unit), !gone) * unit);
	return !gone;
}

void gr_ram_forget_unplugged(struct gr_ram_block *block, uint64_t offset, uint64_t bytes)
{
	uint64_t unit = block->granule_bytes, at = offset - offset % unit;
	uint64_t end = GR_ROUND_UP(offset + bytes, unit);
	struct gr_block *b = gr_block(block);
	struct run run;

	gr_mutex_lock(&block->ram->discard_lock);
	for (; next_run(b, at, end, true, &run); at = run.offset + run.bytes) {
		/* Zeroes go. They stay where somebody needs them, or needs to know of it first. */
		if (gr_ram_discard_unforbidden_locked(block, 1u << GR_RAM_NO_DISCARDS, NULL) == 0) {
			(void)gr_ram_throw_away_locked(block, run.offset, run.bytes, NULL);
		}
	}
	gr_mutex_unlock(&block->ram->discard_lock);
}

/* All that is there to one listener, until it refuses. Returns where, and why. */
static int replay(struct gr_block *b, struct gr_ram_populate_listener *l, uint64_t *end,
		  struct gr_error *err)
{
	uint64_t all = replay_end(b);
	struct run run;

	for (uint64_t at = 0; next_there(b, at, all, &run); at = run.offset + run.bytes) {
		int ret = tell_there(l, b, &run, err);

		if (ret < 0) {
			*end = run.offset;
			return ret;
		}
	}
	*end = all;
	return 0;
}

static void replay_back(struct gr_block *b, struct gr_ram_populate_listener *l, uint64_t end)
{
	struct run run;

	for (uint64_t at = 0; next_there(b, at, end, &run); at = run.offset + run.bytes) {
		tell_gone(l, b, &run);
	}
}

int gr_ram_populate_listener_add(struct gr_ram_block *block,
				 struct gr_ram_populate_listener *listener, struct gr_error *err)
{
	struct gr_ram_populate_listener **last = &gr_block(block)->populate_listeners;
	uint64_t end;
	int ret;

	gr_mutex_lock(&block->ram->discard_lock);
	ret = replay(gr_block(block), listener, &end, err);
	if (ret < 0) {
		replay_back(gr_block(block), listener, end);
	} else {
		while (*last) {
			last = &(*last)->next;
		}
		listener->next = NULL;
		*last = listener;
	}
	gr_mutex_unlock(&block->ram->discard_lock);
	return ret;
}

void gr_ram_populate_listener_del(struct gr_ram_block *block,
				  struct gr_ram_populate_listener *listener)
{
	struct gr_ram_populate_listener **at = &gr_block(block)->populate_listeners;

	gr_mutex_lock(&block->ram->discard_lock);
	while (*at && *at != listener) {
		at = &(*at)->next;
	}
	if (!*at) {
		gr_die("gr_ram_populate_listener_del: a listener that was not added");
	}
	*at = listener->next;
	listener->next = NULL;
	replay_back(gr_block(block), listener, replay_end(gr_block(block)));
	gr_mutex_unlock(&block->ram->discard_lock);
}
