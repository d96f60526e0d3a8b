/* SPDX-License-Identifier: MIT */
/*
 * The machine: RAM, trackers, vCPUs, a device, blocks that are plugged and unplugged. It can
 * be moved out (machine_move.h) and filled from a move.
 *
 * Threads: every function may be called from any thread; the machine has one mutex.
 */
#ifndef VMM_MACHINE_H
#define VMM_MACHINE_H

#include "accel.h"
#include "check.h"
#include <guestram/migrate.h>

struct vmm_machine;
struct vmm_device;

/* Where a machine is; the names (vmm_run_state_name()) are QEMU's. */
enum vmm_run_state {
	VMM_PAUSED,
	VMM_RUNNING,
	VMM_INMIGRATE,	    /* waits for, or is, an incoming move */
	VMM_FINISH_MIGRATE, /* stopped by an outgoing move that sends the rest */
	VMM_POSTMIGRATE,    /* it has moved away */
	VMM_SHUTDOWN,	    /* the guest ended by itself */
};
const char *vmm_run_state_name(enum vmm_run_state state);

/* What to build. Zero means the default. */
struct vmm_machine_params {
	uint64_t memory_bytes;
	unsigned int vcpus;	   /* default 1 */
	const char *accel;	   /* "kvm", "threads"; NULL: kvm where it works */
	const char *memory_file;   /* its RAM is this file, mapped shared; NULL: memory of its own */
	const uint8_t *uuid;	   /* GR_MULTIFD_UUID_BYTES, borrowed; NULL: none */
	const char *flat;	   /* run this flat image instead of the workload; needs KVM */
	bool software_tracker;	   /* marks only: for tests */
	bool incoming;		   /* will be filled by a move */
	uint64_t rate_bytes_per_s; /* the workload dirties so much; VMM_RATE_UNLIMITED */
	uint64_t hot_pages;
	uint64_t once_every;
	int debug_fd; /* the debug port's bytes; -1: nowhere */
	/* The run state changed; called with no lock held. May be NULL. */
	void (*changed)(void *opaque, enum vmm_run_state state, const char *why);
	void *opaque;
};

int vmm_machine_create(const struct vmm_machine_params *params, struct vmm_machine **ret_machine,
		       struct gr_error *err);
/* No move may be under way. */
void vmm_machine_free(struct vmm_machine *machine);

struct gr_ram *vmm_machine_ram(struct vmm_machine *machine);
struct gr_track *vmm_machine_track(struct vmm_machine *machine);
/* Take so many percent of their time from the vCPUs; 0: no more. Any thread. */
void vmm_machine_throttle(struct vmm_machine *machine, unsigned int percent);
struct vmm_pacer *vmm_machine_pacer(struct vmm_machine *machine);
const struct vmm_workload *vmm_machine_workload(struct vmm_machine *machine); /* or NULL */
const char *vmm_machine_accel_name(struct vmm_machine *machine);
/* 16 bytes, or NULL: it has none. */
const uint8_t *vmm_machine_uuid(struct vmm_machine *machine);
unsigned int vmm_machine_vcpus(struct vmm_machine *machine);
/* Who writes its memory, for gr_source_params. */
unsigned int vmm_machine_writers(struct vmm_machine *machine);

enum vmm_run_state vmm_machine_state(struct vmm_machine *machine);
/* Run. -EBUSY while a move is at the point where it must not. Does nothing if it runs. */
int vmm_machine_cont(struct vmm_machine *machine, struct gr_error *err);
/* Stop (ordering O6). Does nothing if it does not run. */
int vmm_machine_stop(struct vmm_machine *machine, struct gr_error *err);
/*
 * The beginning of its end: it returns at once, whatever vCPUs and device wait for, and they do nothing new
 * from then on. Only vmm_machine_free() may follow.
 */
void vmm_machine_end_begin(struct vmm_machine *machine);

/*
 * Plug a block. id NULL: "dimmN". gpa 0: the next free address; addresses of plugged blocks
 * are never used twice. -EBUSY while a move is at switch-over.
 */
int vmm_machine_plug(struct vmm_machine *machine, const char *id, uint64_t bytes, uint64_t gpa,
		     struct gr_error *err);
/* Unplug it. -ENOENT: no plugged block has this id. */
int vmm_machine_unplug(struct vmm_machine *machine, const char *id, struct gr_error *err);
/* Call fn for each plugged block, oldest first. */
void vmm_machine_plugs(struct vmm_machine *machine,
		       void (*fn)(void *opaque, const char *id, uint64_t gpa, uint64_t bytes),
		       void *opaque);
unsigned int vmm_machine_plugs_alive(struct vmm_machine *machine);

/* The guest's clock page. */
int vmm_machine_heartbeat(struct vmm_machine *machine, struct vmm_heartbeat *ret,
			  struct gr_error *err);
/* Forget the largest gap, while stopped: what follows is measured afresh. */
int vmm_machine_heartbeat_reset(struct vmm_machine *machine, struct gr_error *err);

/* Check every word. -EBUSY when it runs, -ENOTSUP when a flat image is in it. */
int vmm_machine_check(struct vmm_machine *machine, struct vmm_check *ret, struct gr_error *err);

/* The vCPU's registers by name. Stops a running machine for the moment. */
int vmm_machine_describe(struct vmm_machine *machine, unsigned int cpu,
			 void (*emit)(void *opaque, const char *name, uint64_t value), void *opaque,
			 struct gr_error *err);
/* The main operations each writer has done, at least; also while it runs. */
void vmm_machine_ops(struct vmm_machine *machine, uint64_t ops[VMM_WRITERS_MAX]);

/* For machine_move.c: the steps of an outgoing move. */
int vmm_machine_switch_over(struct vmm_machine *machine, struct gr_error *err);
void vmm_machine_switch_back(struct vmm_machine *machine);
void vmm_machine_moved_away(struct vmm_machine *machine);
void vmm_machine_round_began(struct vmm_machine *machine);
int vmm_machine_save(struct vmm_machine *machine, struct gr_state_writer *writer,
		     struct gr_error *err);

/* What stopping and saving took the last time, for the next move; zeros: not known. */
struct gr_downtime vmm_machine_expected(struct vmm_machine *machine);

/* And of an incoming one. */
int vmm_machine_load(struct vmm_machine *machine, const char *id, uint32_t instance,
		     uint32_t version, const void *data, size_t bytes, struct gr_error *err);
/* Is all of its state here? -EBADMSG if not. */
int vmm_machine_complete(struct vmm_machine *machine, struct gr_error *err);
/* The source knows that it is here. Now it is paused, and may run. Returns whether it ran there. */
bool vmm_machine_arrived(struct vmm_machine *machine);

#endif
