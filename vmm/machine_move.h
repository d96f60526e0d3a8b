/* SPDX-License-Identifier: MIT */
/*
 * Moves of a whole machine: out in a thread of its own while the guest runs, and in.
 */
#ifndef VMM_MACHINE_MOVE_H
#define VMM_MACHINE_MOVE_H

#include "machine.h"
#include <guestram/channel.h>
#include <guestram/migrate.h>

struct vmm_move;

/* How to move out. Zero means the default. */
struct vmm_move_params {
	uint64_t bandwidth_bytes_per_s_max; /* 0: no limit */
	uint64_t downtime_ns_max;	    /* 0: the library's */
	uint64_t rounds_max;		    /* 0: until it fits */
	uint64_t xbzrle_cache_bytes;	    /* 0: send no differences */
	bool auto_converge;		    /* as in struct gr_source_params, with all that follow */
	unsigned int throttle_trigger_percent, throttle_initial_percent;
	unsigned int throttle_increment_percent, throttle_max_percent;
	bool pause_before_switchover; /* wait for vmm_move_continue() */
	bool switchover_ack;
	bool ignore_shared;	      /* x-ignore-shared; also incoming */
	bool validate_uuid;	      /* send the machine's; an incoming one is always looked at */
	unsigned int multifd_channels; /* further channels; also incoming; 0: none */
	enum gr_multifd_compression multifd_compression;
	enum gr_source_fault fault;	    /* for tests of the checker */
	/* Called between two steps of the source, from its thread; may sleep. May be NULL. */
	void (*between)(void *opaque, const struct gr_migrate_stats *stats);
	/* The state changed, from the move's thread, no lock held. May be NULL. */
	void (*changed)(void *opaque, const struct gr_migrate_stats *stats);
	void *opaque;
};

/*
 * Begin to move a machine out: connects and sends in a thread of its own. What happens then
 * is found out with vmm_move_stats() and vmm_move_wait().
 */
int vmm_move_out(struct vmm_machine *machine, const char *uri, const struct vmm_move_params *params,
		 struct vmm_move **ret_move, struct gr_error *err);

/*
 * Begin to listen for a machine, made with .incoming; it is received in a thread of its own.
 * When all is here the machine is paused (vmm_move_source_ran() tells whether it ran); when
 * not, it stays VMM_INMIGRATE for ever and cannot run. Of the params only .changed,
 * .opaque and those that say so are used.
 */
int vmm_move_in(struct vmm_machine *machine, const char *uri, const struct vmm_move_params *params,
		struct vmm_move **ret_move, struct gr_error *err);

/* Where an incoming move can be reached: the URI with the port that port 0 became. */
const char *vmm_move_uri(const struct vmm_move *move);
void vmm_move_stats(struct vmm_move *move, struct gr_migrate_stats *ret_stats);
/* Whether it has ended; if it failed, the reason is in err. */
bool vmm_move_ended(struct vmm_move *move, int *ret_status, struct gr_error *err);
/* Go on from GR_MIGRATE_PRE_SWITCHOVER. */
int vmm_move_continue(struct vmm_move *move, struct gr_error *err);
/* Ask it to end. Returns at once. */
void vmm_move_cancel(struct vmm_move *move);
/* Wait for its end. 0, or why it failed. */
int vmm_move_wait(struct vmm_move *move, struct gr_error *err);
/* An incoming one that has ended well: did the machine run at the source? */
bool vmm_move_source_ran(struct vmm_move *move);
/* Cancel it if it has not ended, wait, and free it. */
void vmm_move_free(struct vmm_move *move);

#endif
