/* SPDX-License-Identifier: MIT */
/* Parts of bench/tracker: ways to track a guest's writes, ours, QEMU's and none. */
#ifndef BENCH_TRACKER_H
#define BENCH_TRACKER_H

#include <guestram/ram.h>
#include <guestram/track.h>
#include <stdbool.h>
#include <stdint.h>

enum { PAGE = 4096, BURST_MAX = 4096 };

/* A guest whose memory is being watched. */
struct watched {
	const struct way *way;
	uint8_t *host; /* its memory */
	uint64_t pages;
	uint32_t *seen; /* the first word of each page, as it was last read after a report */
	/* Has the guest fill n pages, each with a number of its own, from `value` on. */
	void (*burst)(struct watched *w, const uint32_t *page, unsigned n, uint32_t value);
	void *guest;   /* of burst() */
	void *tracker; /* of the way */
};

/* One way to track. */
struct way {
	const char *name;
	/* Sets guest, burst and tracker. From the return on, every write is tracked. */
	void (*create)(struct watched *w);
	/* Finds the pages that were written, watches them again and reads them; NULL: untracked. */
	void (*round)(struct watched *w);
	void (*destroy)(struct watched *w);
};

/* Ours, its peer, and the same guest untracked. */
struct comparison {
	const char *name; /* in "tracker.<name>_<MB/s>" */
	struct way ours, qemu, untracked;
	const struct way *log; /* that ours is to be no slower than, or NULL */
};

extern const struct comparison compare_software, compare_uffd_wp, compare_uffd_sync;
extern const struct comparison compare_kvm_log, compare_kvm_ring;

/* Why there is no KVM here, or NULL. */
const char *kvm_missing(void);

/* After its report: pages [first, first + n) as they are now. */
static inline void watched_read(struct watched *w, uint64_t first, uint64_t n)
{
	for (uint64_t p = first; p < first + n; p++) {
		w->seen[p] =
			__atomic_load_n((uint32_t *)(void *)(w->host + p * PAGE), __ATOMIC_RELAXED);
	}
}

/* ---- ours (tracker_ours.c): what all of them share ----------------------------------------- */

struct ours {
	struct gr_ram *ram;
	struct gr_ram_block *block;
	struct gr_track *track;
	struct gr_dirty_consumer *consumer;
};

/* RAM at a guest address, a driver; no tracker yet. */
struct ours *ours_create(struct watched *w, uint64_t gpa);
/* Tracking begins. */
void ours_start(struct ours *o, unsigned int writers);
void ours_round(struct watched *w);
void ours_free(struct ours *o);

/* A guest that is a thread: the caller's. */
void thread_burst(struct watched *w, const uint32_t *page, unsigned n, uint32_t value);
void fill_page(uint8_t *host, uint32_t value);

#endif
