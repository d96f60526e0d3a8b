/* SPDX-License-Identifier: MIT */
#include "monitor_internal.h"
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>

/* The one that runs, for the signal handler. */
static struct gr_loop *signal_stops;

static void on_signal(int sig)
{
	(void)sig;
	gr_loop_stop(signal_stops);
}

void vmm_monitor_move_changed(void *opaque, const struct gr_migrate_stats *stats)
{
	struct monitor *monitor = opaque;

	vmm_qmp_event(monitor->qmp, "MIGRATION",
		      json_pack("{ss}", "status", gr_migrate_state_name(stats->state)));
	gr_notifier_set(&monitor->changed);
}

void vmm_monitor_say(struct monitor *monitor, const char *line)
{
	if (monitor->params.say) {
		monitor->params.say(monitor->params.opaque, line);
	}
}

static void machine_changed(void *opaque, enum vmm_run_state state, const char *why)
{
	struct monitor *monitor = opaque;
	bool leaving;

	(void)pthread_mutex_lock(&monitor->lock);
	leaving = monitor->leaving;
	(void)pthread_mutex_unlock(&monitor->lock);
	if (leaving) {
		return;
	}
	if (state == VMM_SHUTDOWN) {
		(void)pthread_mutex_lock(&monitor->lock);
		monitor->died = true;
		(void)snprintf(monitor->why, sizeof(monitor->why), "%s", why ? why : "");
		(void)pthread_mutex_unlock(&monitor->lock);
		vmm_qmp_event(monitor->qmp, "SHUTDOWN",
			      json_pack("{sbss}", "guest", 1, "reason", "guest-shutdown"));
		gr_notifier_set(&monitor->changed);
	} else if (state == VMM_RUNNING) {
		vmm_qmp_event(monitor->qmp, "RESUME", NULL);
	} else if (state == VMM_PAUSED || state == VMM_FINISH_MIGRATE) {
		vmm_qmp_event(monitor->qmp, "STOP", NULL);
	}
}

static int do_query_status(void *opaque, json_t *args, json_t **ret, struct gr_error *err)
{
	struct monitor *monitor = opaque;
	enum vmm_run_state state = vmm_machine_state(monitor->machine);

	(void)args;
	(void)err;
	*ret = json_pack("{sssbsb}", "status", vmm_run_state_name(state), "running",
			 state == VMM_RUNNING, "singlestep", 0);
	return 0;
}

static int do_query_version(void *opaque, json_t *args, json_t **ret, struct gr_error *err)
{
	(void)opaque;
	(void)args;
	(void)err;
	*ret = json_pack("{s{sisisi}ss}", "qemu", "major", GR_VERSION_MAJOR, "minor",
			 GR_VERSION_MINOR, "micro", GR_VERSION_PATCH, "package", "guestram");
	return 0;
}

static int do_stop(void *opaque, json_t *args, json_t **ret, struct gr_error *err)
{
	struct monitor *monitor = opaque;
	int rc;

	(void)args;
	(void)ret;
	/*
	 * As QEMU: it will be stopped when it is here. Whatever the state: it may have arrived
	 * a moment ago, and look_at_incoming() has not seen it yet.
	 */
	monitor->autostart = false;
	rc = vmm_monitor_may_wait_for_vcpus(monitor, err);
	return rc < 0 ? rc : vmm_machine_stop(monitor->machine, err);
}

static int do_cont(void *opaque, json_t *args, json_t **ret, struct gr_error *err)
{
	struct monitor *monitor = opaque;

	(void)args;
	(void)ret;
	if (vmm_machine_state(monitor->machine) == VMM_INMIGRATE) {
		monitor->autostart = true;
		return 0;
	}
	return vmm_machine_cont(monitor->machine, err);
}

static int do_quit(void *opaque, json_t *args, json_t **ret, struct gr_error *err)
{
	struct monitor *monitor = opaque;

	(void)args;
	(void)ret;
	(void)err;
	gr_loop_stop(monitor->loop);
	vmm_qmp_event(monitor->qmp, "SHUTDOWN",
		      json_pack("{sbss}", "guest", 0, "reason", "host-qmp-quit"));
	return 0;
}

static vmm_qmp_command_fn do_query_commands;

static const struct vmm_qmp_command commands[] = {
	{ "calc-dirty-rate", VMM_DIRTY_RATE_ARGUMENTS, vmm_do_calc_dirty_rate },
	{ "cont", "", do_cont },
	{ "human-monitor-command", "command-line cpu-index", vmm_do_human_command },
	{ "migrate", "uri", vmm_do_migrate },
	{ "migrate-continue", "state", vmm_do_migrate_continue },
	{ "migrate-incoming", "uri", vmm_do_migrate_incoming },
	{ "migrate-set-capabilities", "capabilities", vmm_do_set_capabilities },
	{ "migrate-set-parameters", VMM_MIGRATE_PARAMETERS, vmm_do_set_parameters },
	{ "migrate_cancel", "", vmm_do_migrate_cancel },
	{ "pmemsave", "val size filename", vmm_do_pmemsave },
	{ "query-commands", "", do_query_commands },
	{ "query-dirty-rate", "", vmm_do_query_dirty_rate },
	{ "query-migrate", "", vmm_do_query_migrate },
	{ "query-migrate-capabilities", "", vmm_do_query_capabilities },
	{ "query-migrate-parameters", "", vmm_do_query_parameters },
	{ "query-status", "", do_query_status },
	{ "query-version", "", do_query_version },
	{ "quit", "", do_quit },
	{ "stop", "", do_stop },
	{ "x-query-ramblock", "", vmm_do_query_ramblock },
	/* not QEMU's */
	{ "x-block-add", "id size gpa", vmm_do_block_add },
	{ "x-block-del", "id", vmm_do_block_del },
	{ "x-check", "", vmm_do_check },
	{ "x-heartbeat-reset", "", vmm_do_heartbeat_reset },
	{ "x-query-blocks", "", vmm_do_query_blocks },
	{ "x-query-heartbeat", "", vmm_do_query_heartbeat },
	{ "x-query-ops", "", vmm_do_query_ops },
	{ "x-query-registers", "", vmm_do_query_registers },
	{ "x-query-resume", "", vmm_do_query_resume },
	{ "x-query-snapshot", "", vmm_do_query_snapshot },
	{ "x-resume-retry", "", vmm_do_resume_retry },
	{ "x-set-rate", "bytes-per-second", vmm_do_set_rate },
	{ "x-snapshot", VMM_SNAPSHOT_ARGUMENTS, vmm_do_snapshot },
	{ "x-snapshot-cancel", "", vmm_do_snapshot_cancel },
	{ NULL, NULL, NULL },
};

static int do_query_commands(void *opaque, json_t *args, json_t **ret, struct gr_error *err)
{
	(void)opaque;
	(void)args;
	(void)err;
	*ret = json_array();
	(void)json_array_append_new(*ret, json_pack("{ss}", "name", "qmp_capabilities"));
	for (const struct vmm_qmp_command *c = commands; c->name; c++) {
		(void)json_array_append_new(*ret, json_pack("{ss}", "name", c->name));
	}
	return 0;
}

/* An incoming move that has ended: let the machine run, or give up. */
static int look_at_incoming(struct monitor *monitor, struct gr_error *err)
{
	bool ran;
	int rc = 0;

	if (!monitor->in || !vmm_move_ended(monitor->in, &rc, err) || rc < 0) {
		return rc;
	}
	if (vmm_machine_state(monitor->machine) != VMM_PAUSED) {
		return 0;
	}
	ran = vmm_move_source_ran(monitor->in);
	if (monitor->autostart && ran) {
		monitor->autostart = false;
		vmm_monitor_say(monitor, "the machine has arrived and runs");
		return vmm_machine_cont(monitor->machine, err);
	}
	return 0;
}

static int look_at_guest(struct monitor *monitor, struct gr_error *err)
{
	int rc = 0;

	(void)pthread_mutex_lock(&monitor->lock);
	if (monitor->died) {
		rc = gr_error_set(err, -ECANCELED, "the guest stopped: %s", monitor->why);
	}
	(void)pthread_mutex_unlock(&monitor->lock);
	return rc;
}

/* Something has changed: look what. An error ends the monitor. */
static void changed(void *opaque)
{
	struct monitor *monitor = opaque;
	int rc;

	(void)gr_notifier_clear(&monitor->changed);
	rc = look_at_incoming(monitor, &monitor->why_stopped);
	rc = rc < 0 ? rc : look_at_guest(monitor, &monitor->why_stopped);
	if (rc < 0) {
		monitor->status = rc;
		gr_loop_stop(monitor->loop);
	}
}

static int serve(struct monitor *monitor, struct gr_error *err)
{
	int rc = gr_loop_run(monitor->loop, err);

	if (rc == 0 && monitor->status < 0) {
		rc = gr_error_set(err, monitor->status, "%s", monitor->why_stopped.msg);
	}
	return rc;
}

static int start(struct monitor *monitor, struct gr_error *err)
{
	if (monitor->params.image.path) {
		return vmm_monitor_resume(monitor, err);
	}
	if (!monitor->params.incoming) {
		return monitor->params.paused ? 0 : vmm_machine_cont(monitor->machine, err);
	}
	monitor->autostart = !monitor->params.paused;
	return strcmp(monitor->params.incoming, "defer") == 0
		       ? 0
		       : vmm_monitor_receive(monitor, monitor->params.incoming, err);
}

static int prepare(struct monitor *monitor, struct gr_error *err)
{
	const struct gr_loop_fd_desc desc = {
		.size = sizeof(desc),
		.fd = gr_notifier_fd(&monitor->changed),
		.events = GR_LOOP_READ,
		.read = changed,
		.opaque = monitor,
	};
	struct vmm_machine_params machine = monitor->params.machine;
	int rc = gr_loop_add_fd(monitor->loop, &desc, &monitor->changed_handler, err);

	if (rc < 0) {
		return rc;
	}
	machine.incoming = monitor->params.incoming || monitor->params.image.path;
	machine.changed = machine_changed;
	machine.opaque = monitor;
	rc = vmm_machine_create(&machine, &monitor->machine, err);
	rc = rc < 0 ? rc
		    : vmm_dirty_rate_create(monitor->loop, monitor->machine, &monitor->dirty_rate,
					    err);
	return rc < 0 ? rc : start(monitor, err);
}

/* With loop and notifier made: everything else, until it is over. */
static int run(struct monitor *monitor, struct gr_error *err)
{
	const struct sigaction act = { .sa_handler = on_signal };
	struct sigaction old_int, old_term;
	int rc = vmm_qmp_create(monitor->loop, monitor->params.qmp, commands, monitor,
				&monitor->qmp, err);

	if (rc < 0) {
		return rc;
	}
	signal_stops = monitor->loop;
	(void)sigaction(SIGINT, &act, &old_int);
	(void)sigaction(SIGTERM, &act, &old_term);
	rc = prepare(monitor, err);
	rc = rc < 0 ? rc : serve(monitor, err);
	vmm_move_free(monitor->in);
	vmm_move_free(monitor->out);
	vmm_snapshot_free(monitor->snapshot);
	vmm_dirty_rate_free(monitor->dirty_rate);
	vmm_monitor_watch_resume(monitor, false);
	(void)pthread_mutex_lock(&monitor->lock);
	monitor->leaving = true;
	(void)pthread_mutex_unlock(&monitor->lock);
	vmm_resume_free(monitor->resume); /* first: a vCPU may wait for memory */
	vmm_machine_free(monitor->machine);
	if (monitor->changed_handler) {
		gr_loop_del(monitor->changed_handler);
	}
	vmm_qmp_flush(monitor->qmp);
	(void)sigaction(SIGINT, &old_int, NULL);
	(void)sigaction(SIGTERM, &old_term, NULL);
	signal_stops = NULL;
	vmm_qmp_free(monitor->qmp);
	return rc;
}

int vmm_monitor_run(const struct vmm_monitor_params *params, struct gr_error *err)
{
	struct monitor monitor = { .params = *params };
	int rc = gr_loop_create(NULL, &monitor.loop, err);

	if (rc < 0) {
		return rc;
	}
	vmm_migrate_settings_init(&monitor.settings);
	rc = gr_notifier_init(&monitor.changed, err);
	if (rc == 0) {
		(void)pthread_mutex_init(&monitor.lock, NULL);
		rc = run(&monitor, err);
		(void)pthread_mutex_destroy(&monitor.lock);
		gr_notifier_destroy(&monitor.changed);
	}
	gr_loop_free(monitor.loop);
	return rc;
}
