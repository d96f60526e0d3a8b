/* SPDX-License-Identifier: MIT */
/* The monitor's inside: monitor.c is its life and the table of commands, monitor_*.c are these. */
#ifndef VMM_MONITOR_INTERNAL_H
#define VMM_MONITOR_INTERNAL_H

#include "dirty_rate.h"
#include "migrate_settings.h"
#include "monitor.h"
#include "qmp.h"
#include "snapshot.h"
#include <pthread.h>

struct monitor {
	struct vmm_monitor_params params;
	struct vmm_machine *machine;
	struct gr_loop *loop;
	struct vmm_qmp *qmp;
	struct gr_notifier changed; /* the machine's or a move's state has */
	struct gr_loop_handler *changed_handler;
	struct vmm_dirty_rate *dirty_rate;
	struct vmm_move *out, *in;     /* the last move out; the move in until it has ended */
	struct vmm_snapshot *snapshot; /* the last one */
	bool snapshot_migrates;	       /* it was asked for as a migration (background-snapshot) */
	struct vmm_resume *resume;     /* from an image, the last numbers stay; NULL: none */
	struct gr_loop_handler *resume_handler;
	bool autostart;
	int status; /* why the loop was stopped: 0 or an error, with... */
	struct gr_error why_stopped;
	struct vmm_migrate_settings settings;
	/* Left by a vCPU's thread for ours. */
	pthread_mutex_t lock;
	bool died;     /* (l) */
	bool leaving;  /* (l) what the machine does from here on is no news */
	char why[128]; /* (l) */
};

/* monitor.c */
void vmm_monitor_say(struct monitor *monitor, const char *line);
/* Tell of a move's new state, or of a snapshot's that is one. opaque: the monitor. Any thread. */
void vmm_monitor_move_changed(void *opaque, const struct gr_migrate_stats *stats);

/* monitor_migrate.c */
/* Listen at the URI. */
int vmm_monitor_receive(struct monitor *monitor, const char *uri, struct gr_error *err);
vmm_qmp_command_fn vmm_do_migrate, vmm_do_migrate_continue, vmm_do_migrate_cancel,
	vmm_do_migrate_incoming, vmm_do_set_parameters, vmm_do_query_parameters,
	vmm_do_set_capabilities, vmm_do_query_capabilities, vmm_do_query_migrate;

/* monitor_image.c */
/* The capability: a migration that the machine does not go with. */
int vmm_monitor_background_snapshot(struct monitor *monitor, const char *uri, struct gr_error *err);
/* From an image; it runs if it ran when that was made. */
int vmm_monitor_resume(struct monitor *monitor, struct gr_error *err);
/* Look, or look no more, for news of its memory. */
void vmm_monitor_watch_resume(struct monitor *monitor, bool on);
/*
 * Who touches a page that has not come waits for it, perhaps until x-resume-retry or quit. That
 * must not be the thread that serves those: neither by touching it, nor by waiting for a vCPU that
 * does. It makes no difference whether something has failed: it may the moment after.
 */
int vmm_monitor_memory_has_come(struct monitor *monitor, struct gr_error *err);
/* Its vCPUs stand, or none of them can wait for memory. */
int vmm_monitor_may_wait_for_vcpus(struct monitor *monitor, struct gr_error *err);
vmm_qmp_command_fn vmm_do_snapshot, vmm_do_snapshot_cancel, vmm_do_query_snapshot,
	vmm_do_query_resume, vmm_do_resume_retry;

/* monitor_machine.c */
vmm_qmp_command_fn vmm_do_pmemsave, vmm_do_block_add, vmm_do_block_del, vmm_do_query_blocks,
	vmm_do_query_ramblock, vmm_do_human_command, vmm_do_calc_dirty_rate,
	vmm_do_query_dirty_rate, vmm_do_query_registers, vmm_do_query_heartbeat,
	vmm_do_heartbeat_reset, vmm_do_query_ops, vmm_do_set_rate, vmm_do_check;

#endif
