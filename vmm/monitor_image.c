/* SPDX-License-Identifier: MIT */
/* The monitor and images: snapshots into one, the machine that is resumed from one. */
#include "monitor_internal.h"
#include <errno.h>
#include <string.h>

/* changed: NULL, or who is told as of a migration. */
static int take_snapshot(struct monitor *monitor, json_t *args, vmm_snapshot_changed_fn *changed,
			 struct gr_error *err)
{
	struct vmm_snapshot *snapshot = NULL;
	int status, rc;

	if ((monitor->snapshot && !vmm_snapshot_ended(monitor->snapshot)) ||
	    (monitor->out && !vmm_move_ended(monitor->out, &status, NULL))) {
		return gr_error_set(err, -EBUSY, "a snapshot or a migration is in progress");
	}
	rc = vmm_monitor_memory_has_come(monitor, err);
	rc = rc < 0 ? rc
		    : vmm_snapshot_begin(monitor->machine, args, changed, monitor, &snapshot, err);
	if (rc == 0) {
		vmm_snapshot_free(monitor->snapshot);
		monitor->snapshot = snapshot;
	}
	return rc;
}

int vmm_monitor_background_snapshot(struct monitor *monitor, const char *uri, struct gr_error *err)
{
	json_t *args;
	int rc;

	if (strncmp(uri, "file:", 5) != 0 || strstr(uri, ",offset=")) {
		return gr_error_set(err, -EINVAL,
				    "Background-snapshot writes an image: 'file:PATH', not '%s'",
				    uri);
	}
	args = json_pack("{sssI}", "filename", uri + 5, "max-bandwidth",
			 (json_int_t)monitor->settings.max_bandwidth);
	rc = take_snapshot(monitor, args, vmm_monitor_move_changed, err);
	monitor->snapshot_migrates = monitor->snapshot_migrates || rc == 0;
	json_decref(args);
	return rc;
}

int vmm_do_snapshot(void *opaque, json_t *args, json_t **ret, struct gr_error *err)
{
	struct monitor *monitor = opaque;
	int rc;

	(void)ret;
	rc = take_snapshot(monitor, args, NULL, err);
	monitor->snapshot_migrates = monitor->snapshot_migrates && rc < 0;
	return rc;
}

int vmm_do_snapshot_cancel(void *opaque, json_t *args, json_t **ret, struct gr_error *err)
{
	struct monitor *monitor = opaque;

	(void)args;
	(void)ret;
	(void)err;
	if (monitor->snapshot) {
		vmm_snapshot_cancel(monitor->snapshot);
	}
	return 0;
}

int vmm_do_query_snapshot(void *opaque, json_t *args, json_t **ret, struct gr_error *err)
{
	struct monitor *monitor = opaque;

	(void)args;
	(void)err;
	*ret = monitor->snapshot ? vmm_snapshot_query(monitor->snapshot) : NULL;
	return 0;
}

static void resume_changed(void *opaque);

/* Once something is known the descriptor stays readable: then it is looked at no more. */
void vmm_monitor_watch_resume(struct monitor *monitor, bool on)
{
	const struct gr_loop_fd_desc desc = {
		.size = sizeof(desc),
		.fd = monitor->resume ? vmm_resume_fd(monitor->resume) : -1,
		.events = GR_LOOP_READ,
		.read = resume_changed,
		.opaque = monitor,
	};

	if (monitor->resume_handler) {
		gr_loop_del(monitor->resume_handler);
		monitor->resume_handler = NULL;
	}
	if (on && desc.fd >= 0) {
		(void)!gr_loop_add_fd(monitor->loop, &desc, &monitor->resume_handler, NULL);
	}
}

static void resume_changed(void *opaque)
{
	struct monitor *monitor = opaque;
	struct gr_error err;

	if (vmm_resume_failed(monitor->resume, &err) < 0) {
		vmm_monitor_say(monitor, err.msg); /* who touches it waits until x-resume-retry */
	} else if (vmm_resume_completed(monitor->resume)) {
		vmm_monitor_say(monitor, "all memory has come");
	} else {
		return;
	}
	vmm_monitor_watch_resume(monitor, false);
}

int vmm_monitor_resume(struct monitor *monitor, struct gr_error *err)
{
	bool ran;
	int rc = vmm_resume_begin(monitor->machine, &monitor->params.image, &ran, &monitor->resume,
				  err);

	if (rc < 0) {
		return rc;
	}
	vmm_monitor_watch_resume(monitor, true);
	return monitor->params.paused || !ran ? 0 : vmm_machine_cont(monitor->machine, err);
}

int vmm_monitor_memory_has_come(struct monitor *monitor, struct gr_error *err)
{
	struct gr_error why;

	if (!monitor->resume || vmm_resume_completed(monitor->resume)) {
		return 0;
	}
	if (vmm_resume_failed(monitor->resume, &why) < 0) {
		return gr_error_set(
			err, -EBUSY,
			"the machine waits for memory of its image that cannot be read: %s; "
			"x-resume-retry tries again",
			why.msg);
	}
	return gr_error_set(err, -EBUSY,
			    "the machine's memory still comes from its image; x-query-resume says "
			    "how far that is");
}

int vmm_monitor_may_wait_for_vcpus(struct monitor *monitor, struct gr_error *err)
{
	return vmm_machine_state(monitor->machine) == VMM_RUNNING
		       ? vmm_monitor_memory_has_come(monitor, err)
		       : 0;
}

int vmm_do_query_resume(void *opaque, json_t *args, json_t **ret, struct gr_error *err)
{
	struct monitor *monitor = opaque;

	(void)args;
	(void)err;
	*ret = monitor->resume ? vmm_resume_query(monitor->resume) : NULL;
	return 0;
}

int vmm_do_resume_retry(void *opaque, json_t *args, json_t **ret, struct gr_error *err)
{
	struct monitor *monitor = opaque;

	(void)args;
	(void)ret;
	(void)err;
	if (monitor->resume && !vmm_resume_completed(monitor->resume)) {
		vmm_resume_retry(monitor->resume);
		vmm_monitor_watch_resume(monitor, true);
	}
	return 0;
}
