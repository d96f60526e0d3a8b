/* SPDX-License-Identifier: MIT */
/**
 * guestram/dirty_rate.h - how fast a guest dirties its memory, without a migration.
 *
 * A measurement looks twice, some time apart; the time between is the caller's, so nothing
 * here sleeps or starts a thread. Three ways:
 *
 *   sampling   checksums of random pages: needs no tracker, sees every writer, costs some CPU,
 *              and is an estimate; a page that was written back to what it was is missed
 *   bitmap     every page that a tracker or a mark reports, each once: exact, and costs the guest
 *              what tracking costs
 *   ring       what went through the vCPUs' dirty rings, per vCPU
 *
 *     gr_dirty_rate_begin(ram, &params, &rate, &err);
 *     ... for a second the guest runs ...
 *     gr_dirty_rate_end(rate, &result, &err);
 *     gr_dirty_rate_free(rate);
 *
 * Threads: the calls on one measurement come from one thread at a time. Any number may run
 * beside each other, and beside a migration, which they do not disturb. Blocks may come and go
 * meanwhile: those that were not there all the time do not count when sampling.
 *
 * Caveats: a page counts once however often it is written, so the rate over a long time is lower
 * than that over a short one. Sampling knows the memory that is backed: a page that was never
 * touched costs a read through the file, or, where there is none or the block is private to this
 * process, a page of zeroes. A page that its file does not give (it was cut short, the memory is
 * broken) does not count.
 */
#ifndef GUESTRAM_DIRTY_RATE_H
#define GUESTRAM_DIRTY_RATE_H

#include <guestram/error.h>
#include <guestram/ram.h>
#include <guestram/track.h>
#include <guestram/types.h>

GR_BEGIN_DECLS

/** How to measure; QEMU's calc-dirty-rate has the same three. */
enum gr_dirty_rate_mode {
	GR_DIRTY_RATE_SAMPLING, /**< "page-sampling" */
	GR_DIRTY_RATE_BITMAP,   /**< "dirty-bitmap" */
	GR_DIRTY_RATE_RING,     /**< "dirty-ring" */
};

enum {
	GR_DIRTY_RATE_SAMPLES_MIN = 128,   /**< fewest sampled pages per GiB */
	GR_DIRTY_RATE_SAMPLES_MAX = 16384, /**< most */
	GR_DIRTY_RATE_VCPUS_MAX = 512,     /**< as many vCPUs have a rate of their own */
};

struct gr_dirty_rate;

/** What to measure. Zero what you do not set. */
struct gr_dirty_rate_params {
	size_t size;                  /**< sizeof(struct gr_dirty_rate_params) */
	enum gr_dirty_rate_mode mode;
	uint32_t samples_per_gib;     /**< sampling: pages; 0: 512 */
	uint64_t block_bytes_min;     /**< sampling: smaller blocks are left out; 0: 128 MiB */
	uint64_t seed;                /**< sampling: which pages; 0: others each time */
	struct gr_track *track;       /**< bitmap, ring: the machine's trackers */
	unsigned int writers;         /**< bitmap, ring: as for gr_track_start() */
	struct gr_kvm_memory *kvm;    /**< ring: whose vCPUs */
};

/** What was found. */
struct gr_dirty_rate_result {
	size_t size;              /**< set by the caller: sizeof(struct gr_dirty_rate_result) */
	uint64_t bytes_per_s;     /**< dirtied a second, by pages */
	uint64_t elapsed_ns;      /**< between the two looks */
	uint64_t dirty_pages;     /**< found dirty: of the samples, or in all */
	uint64_t sampled_pages;   /**< sampling: how many were looked at twice */
	unsigned int vcpus;       /**< ring: how many follow, by gr_kvm_vcpu_add(); the sums are of all */
	uint64_t vcpu_bytes_per_s[GR_DIRTY_RATE_VCPUS_MAX]; /**< ring: of each */
};

/**
 * Look for the first time.
 *
 * @param ram      The machine's RAM.
 * @param params   How; copied.
 * @param ret_rate Set on success only.
 * @param err      May be NULL.
 * @return 0 or a negative errno.
 * @errors  -EINVAL samples out of range, a tracker or vCPUs missing; what gr_track_start(),
 *          gr_track_sync() and gr_dirty_consumer_add() return; -ENOMEM; -EBUSY sampling, and the memory
 *          still comes from an image (gr_image_resume_start()).
 * @context Any thread, outside a read-side section. Bitmap and ring take the tracker locks.
 */
GR_EXPORT GR_MUST_CHECK int gr_dirty_rate_begin(struct gr_ram *ram,
						const struct gr_dirty_rate_params *params,
						struct gr_dirty_rate **ret_rate,
						struct gr_error *err);

/**
 * Look for the second time. May be called again later: the result then counts from the begin.
 *
 * @param rate   The measurement.
 * @param result Filled on success.
 * @param err    May be NULL.
 * @return 0 or a negative errno.
 * @errors  -EINVAL result->size; -EBUSY as gr_dirty_rate_begin(); what gr_track_sync() returns.
 * @context As gr_dirty_rate_begin().
 */
GR_EXPORT GR_MUST_CHECK int gr_dirty_rate_end(struct gr_dirty_rate *rate,
					      struct gr_dirty_rate_result *result,
					      struct gr_error *err);

/**
 * Stop its tracking and free it.
 * @param rate May be NULL.
 * @context As gr_dirty_rate_begin().
 */
GR_EXPORT void gr_dirty_rate_free(struct gr_dirty_rate *rate);

GR_END_DECLS
#endif
