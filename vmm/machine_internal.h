/* SPDX-License-Identifier: MIT */
/* The machine's inside, for machine.c, hotplug.c and machine_state.c. */
#ifndef VMM_MACHINE_INTERNAL_H
#define VMM_MACHINE_INTERNAL_H

#include "device.h"
#include "machine.h"
#include <pthread.h>

struct vmm_machine {
	pthread_mutex_t lock;
	struct vmm_machine_params params; /* (c) */
	bool flat;			  /* (c) no workload */
	struct vmm_workload wl;		  /* (c) an incoming move may set it */
	struct gr_ram *ram;		  /* (c) */
	struct gr_track *track;		  /* (c) */
	struct vmm_accel *accel;	  /* (c) */
	struct vmm_device *device;	  /* (c) NULL if flat */
	struct vmm_pacer pacer;
	bool quiet; /* (c) it has vCPUs and holds gr_rcu_quiet_begin() */

	enum vmm_run_state state;		    /* (l) */
	bool was_running;			    /* (l) before switch-over */
	struct gr_downtime expected;		    /* (l) what that took the last time */
	uint64_t ops_base[VMM_WRITERS_MAX];	    /* (l) where the pacer's counting began */
	uint64_t ops_before_final[VMM_WRITERS_MAX]; /* (l) at the last round's beginning */
	bool ops_before_final_known;		    /* (l) */

	/* The plug table; entries below next_entry have been used. */
	struct vmm_plug plugs[VMM_PLUGS_MAX]; /* (l) */
	char *plug_ids[VMM_PLUGS_MAX];	      /* (l) */
	uint32_t next_entry;		      /* (l) */
	uint64_t next_gpa;		      /* (l) */

	/* What a move has brought. */
	bool machine_loaded, device_loaded;	   /* (l) */
	bool cpu_loaded[VMM_WRITERS_MAX];	   /* (l) */
	bool source_ran;			   /* (l) */
	bool digests_known;			   /* (l) the memory has not run since */
	uint64_t system_digests[VMM_SYSTEM_PAGES]; /* (l) */
};

/* Write the plug table as the guest sees it: one entry, and the range. */
int vmm_plug_table_write_locked(struct vmm_machine *machine, uint32_t entry, struct gr_error *err);

/* The registers of all writers, while stopped; the caller frees them. */
int vmm_machine_regs_locked(struct vmm_machine *machine, struct vmm_writer_regs **ret_regs,
			    struct gr_error *err);

#endif
