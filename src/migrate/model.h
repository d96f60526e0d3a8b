/* SPDX-License-Identifier: MIT */
/*
 * When to switch over: what the guest would have to wait for if it were stopped now.
 *
 *     downtime = (pages left + pages dirtied until it stands still) x bytes / bandwidth
 *              + the last sync and harvest + device state + the answer's way
 *
 * What devices and stopping take was measured the last time, or else is a guess; that may take up a
 * quarter of the limit at most, or a short limit could never be met.
 *
 * Bandwidth is bytes over time with a memory of about a second, weighted by time: one slow
 * or fast moment does not decide. Pure arithmetic; one thread.
 */
#ifndef GR_MIGRATE_MODEL_H
#define GR_MIGRATE_MODEL_H

#include "base/clock.h"
#include <stdbool.h>

/* What saving and loading the devices and stopping the vCPUs take, as long as nobody knows. */
#define GR_MODEL_STATE_NS (5 * GR_NS_PER_MS)
#define GR_MODEL_PAUSE_NS (1 * GR_NS_PER_MS)

struct gr_model {
	uint64_t pages, bytes, ns;  /* of the samples, older ones faded */
	uint64_t limit_ns;	    /* the downtime allowed; 0: not said */
	uint64_t bytes_per_s_max;   /* the bandwidth limit; 0: none. To be on the safe side it
				     * counts for the last pages too, although they ignore it. */
	uint64_t harvest_ns;	    /* of the last sync and begin */
	uint64_t answer_ns;	    /* round trip to the peer, or to its last word the last time */
	uint64_t pause_ns, state_ns; /* measured the last time; 0: not known */
	uint64_t state_bytes;	    /* of the devices */
	uint64_t dirty_pages_per_s; /* between the last two harvests */
	uint64_t harvested_ns;	    /* when the last one was; 0: never */
};

/**
 * @param m     The model.
 * @param pages So many pages that are not zero
 * @param bytes were sent in so many bytes, fewer than they have where differences are sent,
 * @param ns    in this time, without what the bandwidth limit made us sleep.
 */
void gr_model_sample(struct gr_model *m, uint64_t pages, uint64_t bytes, uint64_t ns);

/** @param m The model. @return Bytes per second; 0: not known. */
uint64_t gr_model_bandwidth(const struct gr_model *m);

/**
 * A harvest has found pages.
 * @param m       The model.
 * @param pages   How many were dirty.
 * @param cost_ns What sync and begin took.
 * @param now_ns  The time.
 */
void gr_model_harvest(struct gr_model *m, uint64_t pages, uint64_t cost_ns, uint64_t now_ns);

/**
 * @param m          The model.
 * @param pages      Left to be sent.
 * @param page_bytes What a whole page takes on the wire; if pages took less so far, that counts.
 * @return The expected downtime; UINT64_MAX: not known.
 */
uint64_t gr_model_downtime_ns(const struct gr_model *m, uint64_t pages, uint64_t page_bytes);

/**
 * Whether the guest may be stopped now. Where what no further round makes shorter (stopping, devices, the
 * answer) takes most of the limit by itself, the limit cannot be kept, and a guest that could never be
 * moved helps nobody: then the rest has to fit into a quarter of it.
 * @param m          The model, with a limit.
 * @param pages      As above.
 * @param page_bytes As above.
 * @return true if so.
 */
bool gr_model_fits(const struct gr_model *m, uint64_t pages, uint64_t page_bytes);

/**
 * Whether one more round is worth its time for a guest that may be stopped now: sending these pages takes
 * more than an eighth of the limit, and so little is dirtied meanwhile that half of them at most are left. The move
 * takes longer by what is sent twice, the standstill shorter by the rest.
 * @param m          The model, with a limit.
 * @param pages      As above.
 * @param page_bytes As above.
 * @return true if so.
 */
bool gr_model_gains(const struct gr_model *m, uint64_t pages, uint64_t page_bytes);

#endif
