/* SPDX-License-Identifier: MIT */
/*
 * One mutex per block covers table, order and mappings; copies run outside it, under their pins. It
 * is held over a mapping call and never over a wait for a grace period, so it may be taken in a
 * read-side section.
 */
#include "ram/windows.h"
#include "base/mutex.h"
#include <errno.h>

struct gr_window {
	struct gr_windows *all;
	struct gr_window *same_hash;	  /* (l) */
	struct gr_window *older, *newer;  /* (l) in the order; itself: pinned */
	uint64_t index;			  /* (l) which window of the file */
	struct gr_memory memory;	  /* (l) host is NULL: nothing is mapped */
	unsigned int pins;		  /* (l) */
};

struct gr_windows {
	struct gr_mutex lock;
	struct gr_memory file;		/* (c) */
	uint64_t file_bytes;		/* (c) what of it is the block; may be more than a size_t */
	size_t window_bytes;		/* (c) */
	unsigned int count;		/* (c) */
	unsigned int table_mask;	/* (c) */
	struct gr_window **table;	/* (l) mapped windows by their index */
	struct gr_window order;		/* (l) ring of those that are not pinned: newer is the oldest */
	struct gr_ram_window_stats stats; /* (l) */
	uint64_t *backed[2];		/* (l) bit set: the page can be read, and [1] written; or NULL */
	struct gr_window window[];
};

/* A bit for each page, in memory that is there when it is used. */
static size_t backed_bytes(const struct gr_windows *all)
{
	uint64_t pages = GR_DIV_ROUND_UP(all->file_bytes, all->file.page_bytes);

	return GR_ROUND_UP((size_t)GR_DIV_ROUND_UP(pages, 64) * 8, gr_page_bytes());
}

static void order_del(struct gr_window *w)
{
	w->older->newer = w->newer;
	w->newer->older = w->older;
	w->older = w->newer = w;
}

static void order_insert_after(struct gr_window *w, struct gr_window *older)
{
	w->older = older;
	w->newer = older->newer;
	w->older->newer = w;
	w->newer->older = w;
}

struct gr_windows *gr_windows_create(const struct gr_memory *file, uint64_t file_bytes,
				     size_t window_bytes, unsigned int windows_max)
{
	struct gr_windows *all = calloc(1, sizeof(*all) + windows_max * sizeof(all->window[0]));
	unsigned int slots = 1;

	while (slots < windows_max) {
		slots *= 2;
	}
	if (all) {
		all->table = calloc(slots, sizeof(struct gr_window *));
	}
	if (!all || !all->table) {
		free(all);
		return NULL;
	}
	gr_mutex_init(&all->lock, GR_RANK_RAM_WINDOWS);
	all->file = *file;
	all->file_bytes = file_bytes;
	all->window_bytes = window_bytes;
	all->count = windows_max;
	all->table_mask = slots - 1;
	all->order.older = all->order.newer = &all->order;
	/* Without them each use asks the file system again. */
	all->backed[0] = gr_pages_alloc(backed_bytes(all));
	all->backed[1] = gr_pages_alloc(backed_bytes(all));
	for (unsigned int i = 0; i < windows_max; i++) {
		all->window[i].all = all;
		order_insert_after(&all->window[i], &all->order);
	}
	return all;
}

void gr_windows_free(struct gr_windows *all)
{
	if (!all) {
		return;
	}
	for (unsigned int i = 0; i < all->count; i++) {
		if (all->window[i].memory.host) {
			gr_memory_unmap(&all->window[i].memory);
		}
	}
	for (unsigned int i = 0; i < 2; i++) {
		if (all->backed[i]) {
			gr_pages_free(all->backed[i], backed_bytes(all));
		}
	}
	gr_mutex_destroy(&all->lock);
	free(all->table);
	free(all);
}

uint64_t gr_windows_clip(const struct gr_windows *all, uint64_t offset, uint64_t bytes)
{
	return GR_MIN(bytes, all->window_bytes - offset % all->window_bytes);
}

/* Where the pointer to the window of that index is or would be. */
static struct gr_window **find_locked(struct gr_windows *all, uint64_t index)
	GR_REQUIRES(all->lock)
{
	struct gr_window **at = &all->table[index & all->table_mask];

	while (*at && (*at)->index != index) {
		at = &(*at)->same_hash;
	}
	return at;
}

static void unmap_locked(struct gr_windows *all, struct gr_window *w) GR_REQUIRES(all->lock)
{
	if (w->memory.host) {
		*find_locked(all, w->index) = w->same_hash;
		gr_memory_unmap(&w->memory);
		w->memory.host = NULL;
		all->stats.mapped--;
		all->stats.evictions++;
	}
}

/* The oldest window becomes that of this index. On failure it is an empty one, the next to be used. */
static int take_locked(struct gr_windows *all, uint64_t index, struct gr_window **ret_window)
	GR_REQUIRES(all->lock)
{
	struct gr_window *w = all->order.newer;
	uint64_t at = index * all->window_bytes;
	int ret;

	if (w == &all->order) {
		return -EBUSY;
	}
	unmap_locked(all, w);
	w->memory = all->file;
	w->memory.bytes = (size_t)GR_MIN((uint64_t)all->window_bytes, all->file_bytes - at);
	w->memory.offset += at;
	ret = gr_memory_map(&w->memory);
	if (ret < 0) {
		w->memory.host = NULL;
		return ret;
	}
	w->index = index;
	w->same_hash = all->table[index & all->table_mask];
	all->table[index & all->table_mask] = w;
	all->stats.mapped++;
	*ret_window = w;
	return 0;
}

static bool is_backed(const uint64_t *map, uint64_t page, uint64_t end)
{
	for (; map && page < end && (map[page / 64] >> page % 64 & 1); page++) {
	}
	return map && page == end;
}

static void set_backed(uint64_t *map, uint64_t page, uint64_t end, bool backed)
{
	for (; map && page < end; page++) {
		uint64_t bit = UINT64_C(1) << page % 64;

		map[page / 64] = backed ? map[page / 64] | bit : map[page / 64] & ~bit;
	}
}

/*
 * A page of a file may have no space in its file system: the first store to it asks for some, in files
 * in memory the first load too, and where none is left that is a signal. So it is asked for before.
 */
static int back_locked(struct gr_windows *all, const struct gr_window *w, uint64_t offset,
		       uint64_t bytes, bool write) GR_REQUIRES(all->lock)
{
	size_t size = all->file.page_bytes;
	uint64_t page = offset / size, end = GR_DIV_ROUND_UP(offset + bytes, size);
	struct gr_memory m = w->memory;
	int ret;

	if (is_backed(all->backed[write], page, end)) {
		return 0;
	}
	if (!write) {
		m.flags |= GR_MEMORY_READONLY;
	}
	ret = gr_memory_populate(&m, (size_t)(page * size - w->index * all->window_bytes),
				 (size_t)(end - page) * size);
	for (unsigned int i = 0; ret == 0 && i <= (unsigned int)write; i++) {
		set_backed(all->backed[i], page, end, true);
	}
	return ret;
}

int gr_windows_discard(struct gr_windows *all, uint64_t offset, uint64_t bytes)
{
	uint64_t page = offset / all->file.page_bytes, end = page + bytes / all->file.page_bytes;
	int ret;

	/* With the lock: nobody finds them backed who are not any more. */
	gr_mutex_lock(&all->lock);
	ret = gr_memory_discard(&all->file, offset, bytes, false);
	set_backed(all->backed[0], page, end, false);
	set_backed(all->backed[1], page, end, false);
	gr_mutex_unlock(&all->lock);
	return ret;
}

int gr_windows_pin(struct gr_windows *all, uint64_t offset, uint64_t bytes, bool write,
		   struct gr_window **ret_window, uint8_t **ret_host)
{
	uint64_t index = offset / all->window_bytes;
	struct gr_window *w;
	int ret = 0;

	gr_mutex_lock(&all->lock);
	w = *find_locked(all, index);
	if (w) {
		all->stats.hits++;
	} else {
		all->stats.misses++;
		ret = take_locked(all, index, &w);
	}
#ifndef GR_MUTANT_WINDOW_UNBACKED
	if (ret == 0) {
		ret = back_locked(all, w, offset, bytes, write);
	}
#endif
	if (ret == 0) {
#ifdef GR_MUTANT_WINDOW_IGNORES_PINS
		order_del(w);
		order_insert_after(w, all->order.older);
#else
		order_del(w); /* pinned: nobody's choice */
#endif
		all->stats.pinned += w->pins++ == 0;
		*ret_window = w;
		*ret_host = w->memory.host + offset % all->window_bytes;
	}
	gr_mutex_unlock(&all->lock);
	return ret;
}

void gr_window_unpin(struct gr_window *window)
{
	struct gr_windows *all = window->all;

	gr_mutex_lock(&all->lock);
	GR_ASSERT(window->pins != 0);
	if (--window->pins == 0) {
		all->stats.pinned--;
		order_del(window);
		order_insert_after(window, all->order.older); /* the newest */
	}
	gr_mutex_unlock(&all->lock);
}

void gr_windows_stats(struct gr_windows *all, struct gr_ram_window_stats *stats)
{
	gr_mutex_lock(&all->lock);
	*stats = all->stats;
	gr_mutex_unlock(&all->lock);
}
