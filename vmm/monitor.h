/* SPDX-License-Identifier: MIT */
/*
 * The monitor of a machine: what `guestram run` does after it has built the machine. Serves
 * QMP commands, lets a machine that has arrived run, ends when it is told to.
 */
#ifndef VMM_MONITOR_H
#define VMM_MONITOR_H

#include "machine.h"
#include "machine_move.h"
#include "resume.h"

struct vmm_monitor_params {
	struct vmm_machine_params machine; /* changed and opaque are the monitor's */
	const char *qmp;		   /* where to serve; NULL: nowhere */
	const char *incoming;		   /* receive the machine from this URI; "defer": from the one that
					    * migrate-incoming says; NULL: run it */
	struct vmm_resume_params image;	   /* the machine comes from there; not with incoming */
	bool paused;			   /* do not let it run before it is told to */
	/* A remark for the user: a line. May be NULL. */
	void (*say)(void *opaque, const char *line);
	void *opaque;
};

/*
 * Build the machine and serve until `quit`, SIGTERM or SIGINT. 0, or why it could not go
 * on: an incoming move that failed, a guest that died.
 */
int vmm_monitor_run(const struct vmm_monitor_params *params, struct gr_error *err);

#endif
