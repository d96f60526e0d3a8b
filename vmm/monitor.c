/* SPDX-License-Identifier: MIT */
#include "monitor.h"
#include "dirty_rate.h"
#include "human.h"
#include "migrate_settings.h"
#include "qmp.h"
#include "snapshot.h"
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

enum { SAVE_CHUNK_BYTES = 1 << 20 };
#define NS_PER_MS 1000000u

struct monitor {
	struct vmm_monitor_params params;
	struct vmm_machine *machine;
	struct gr_loop *loop;
	struct vmm_qmp *qmp;
	struct gr_notifier changed; /* the machine's or a move's state has */
	struct gr_loop_handler *changed_handler;
	struct vmm_dirty_rate *dirty_rate;
	struct vmm_move *out, *in; /* the last move out; the move in until it has ended */
	struct vmm_snapshot *snapshot; /* the last one */
	bool snapshot_migrates; /* it was asked for as a migration (background-snapshot) */
	struct vmm_resume *resume; /* from an image, the last numbers stay; NULL: none */
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

/* The one that runs, for the signal handler. */
static struct gr_loop *signal_stops;

static void on_signal(int sig)
{
	(void)sig;
	gr_loop_stop(signal_stops);
}

static uint64_t now_ns(void)
{
	struct timespec ts;

	(void)clock_gettime(CLOCK_MONOTONIC, &ts);
	return (uint64_t)ts.tv_sec * 1000000000u + (uint64_t)ts.tv_nsec;
}

static json_t *json_u64(uint64_t value)
{
	return json_integer(value > INT64_MAX ? INT64_MAX : (json_int_t)value);
}

static void set_u64(json_t *object, const char *name, uint64_t value)
{
	(void)json_object_set_new(object, name, json_u64(value));
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

static void move_changed(void *opaque, const struct gr_migrate_stats *stats)
{
	struct monitor *monitor = opaque;

	vmm_qmp_event(monitor->qmp, "MIGRATION",
		      json_pack("{ss}", "status", gr_migrate_state_name(stats->state)));
	gr_notifier_set(&monitor->changed);
}

static void say(struct monitor *monitor, const char *line)
{
	if (monitor->params.say) {
		monitor->params.say(monitor->params.opaque, line);
	}
}

static void resume_changed(void *opaque);

/* Once something is known the descriptor stays readable: then it is looked at no more. */
static void watch_resume(struct monitor *monitor, bool on)
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
		say(monitor, err.msg); /* who touches it waits until x-resume-retry */
	} else if (vmm_resume_completed(monitor->resume)) {
		say(monitor, "all memory has come");
	} else {
		return;
	}
	watch_resume(monitor, false);
}

/*
 * Who touches a page that has not come waits for it, perhaps until x-resume-retry or quit. That must
 * not be the thread that serves those: neither by touching it, nor by waiting for a vCPU that does. It
 * makes no difference whether something has failed: it may the moment after.
 */
static int memory_has_come(struct monitor *monitor, struct gr_error *err)
{
	struct gr_error why;

	if (!monitor->resume || vmm_resume_completed(monitor->resume)) {
		return 0;
	}
	if (vmm_resume_failed(monitor->resume, &why) < 0) {
		return gr_error_set(err, -EBUSY,
				    "the machine waits for memory of its image that cannot be read: %s; "
				    "x-resume-retry tries again",
				    why.msg);
	}
	return gr_error_set(err, -EBUSY,
			    "the machine's memory still comes from its image; x-query-resume says "
			    "how far that is");
}

/* Its vCPUs stand, or none of them can wait for memory. */
static int may_wait_for_vcpus(struct monitor *monitor, struct gr_error *err)
{
	return vmm_machine_state(monitor->machine) == VMM_RUNNING ? memory_has_come(monitor, err)
								   : 0;
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
	rc = may_wait_for_vcpus(monitor, err);
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
	rc = memory_has_come(monitor, err);
	rc = rc < 0 ? rc
		    : vmm_snapshot_begin(monitor->machine, args, changed, monitor, &snapshot, err);
	if (rc == 0) {
		vmm_snapshot_free(monitor->snapshot);
		monitor->snapshot = snapshot;
	}
	return rc;
}

/* The capability: a migration that the machine does not go with. */
static int background_snapshot(struct monitor *monitor, const char *uri, struct gr_error *err)
{
	json_t *args;
	int rc;

	if (strncmp(uri, "file:", 5) != 0 || strstr(uri, ",offset=")) {
		return gr_error_set(err, -EINVAL,
				    "Background-snapshot writes an image: 'file:PATH', not '%s'", uri);
	}
	args = json_pack("{sssI}", "filename", uri + 5, "max-bandwidth",
			 (json_int_t)monitor->settings.max_bandwidth);
	rc = take_snapshot(monitor, args, move_changed, err);
	monitor->snapshot_migrates = monitor->snapshot_migrates || rc == 0;
	json_decref(args);
	return rc;
}

static int do_migrate(void *opaque, json_t *args, json_t **ret, struct gr_error *err)
{
	struct monitor *monitor = opaque;
	struct vmm_move_params params = { .changed = move_changed, .opaque = monitor };
	const char *uri = NULL;
	struct vmm_move *move;
	int status, rc;

	(void)ret;
	rc = vmm_qmp_need(args, "uri", err);
	rc = rc < 0 ? rc : vmm_qmp_get_string(args, "uri", &uri, err);
	if (rc < 0) {
		return rc;
	}
	if (monitor->out && !vmm_move_ended(monitor->out, &status, NULL)) {
		return gr_error_set(err, -EBUSY, "There's a migration process in progress");
	}
	if (monitor->snapshot && !vmm_snapshot_ended(monitor->snapshot)) {
		return gr_error_set(err, -EBUSY, "a snapshot is being taken");
	}
	if (monitor->settings.background_snapshot) {
		return background_snapshot(monitor, uri, err);
	}
	vmm_migrate_settings_apply(&monitor->settings, &params);
	rc = vmm_move_out(monitor->machine, uri, &params, &move, err);
	if (rc < 0) {
		return rc;
	}
	vmm_move_free(monitor->out);
	monitor->out = move;
	monitor->snapshot_migrates = false;
	return 0;
}

static int do_migrate_cancel(void *opaque, json_t *args, json_t **ret, struct gr_error *err)
{
	struct monitor *monitor = opaque;

	(void)args;
	(void)ret;
	(void)err;
	if (monitor->snapshot_migrates) {
		vmm_snapshot_cancel(monitor->snapshot);
	} else if (monitor->out) {
		vmm_move_cancel(monitor->out);
	}
	return 0;
}

static int do_snapshot(void *opaque, json_t *args, json_t **ret, struct gr_error *err)
{
	struct monitor *monitor = opaque;
	int rc;

	(void)ret;
	rc = take_snapshot(monitor, args, NULL, err);
	monitor->snapshot_migrates = monitor->snapshot_migrates && rc < 0;
	return rc;
}

static int do_snapshot_cancel(void *opaque, json_t *args, json_t **ret, struct gr_error *err)
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

static int do_query_snapshot(void *opaque, json_t *args, json_t **ret, struct gr_error *err)
{
	struct monitor *monitor = opaque;

	(void)args;
	(void)err;
	*ret = monitor->snapshot ? vmm_snapshot_query(monitor->snapshot) : NULL;
	return 0;
}

static json_t *ram_stats(const struct gr_migrate_stats *stats)
{
	json_t *ram = json_object();
	uint64_t ms = stats->total_time_ns / NS_PER_MS;

	set_u64(ram, "transferred", stats->transferred_bytes);
	set_u64(ram, "remaining", stats->remaining_bytes);
	set_u64(ram, "total", stats->total_bytes);
	set_u64(ram, "duplicate", stats->zero_pages);
	set_u64(ram, "skipped", 0);
	set_u64(ram, "normal", stats->normal_pages);
	set_u64(ram, "normal-bytes", stats->normal_pages * VMM_PAGE_BYTES);
	set_u64(ram, "dirty-pages-rate", stats->dirty_pages_per_s);
	set_u64(ram, "dirty-sync-count", stats->rounds);
	set_u64(ram, "page-size", VMM_PAGE_BYTES);
	set_u64(ram, "postcopy-requests", 0);
	set_u64(ram, "multifd-bytes", 0);
	set_u64(ram, "pages-per-second",
		ms > 0 ? (stats->normal_pages + stats->zero_pages) * 1000 / ms : 0);
	(void)json_object_set_new(
		ram, "mbps",
		json_real(ms > 0 ? (double)stats->transferred_bytes * 8 / 1000 / (double)ms : 0));
	return ram;
}

static json_t *xbzrle_stats(const struct gr_migrate_stats *stats)
{
	uint64_t looked = stats->xbzrle_pages + stats->xbzrle_unchanged_pages + stats->xbzrle_misses +
			  stats->xbzrle_overflows;
	json_t *cache = json_object();

	set_u64(cache, "cache-size", stats->xbzrle_cache_bytes);
	set_u64(cache, "bytes", stats->xbzrle_bytes);
	set_u64(cache, "pages", stats->xbzrle_pages);
	set_u64(cache, "cache-miss", stats->xbzrle_misses);
	set_u64(cache, "overflow", stats->xbzrle_overflows);
	/* Of the whole migration. */
	(void)json_object_set_new(
		cache, "cache-miss-rate",
		json_real(looked > 0 ? (double)stats->xbzrle_misses / (double)looked : 0));
	(void)json_object_set_new(
		cache, "encoding-rate",
		json_real(stats->xbzrle_bytes > 0 ? (double)stats->xbzrle_pages * VMM_PAGE_BYTES /
							    (double)stats->xbzrle_bytes
						  : 0));
	return cache;
}

static int do_query_migrate(void *opaque, json_t *args, json_t **ret, struct gr_error *err)
{
	struct monitor *monitor = opaque;
	struct vmm_move *move = monitor->out ? monitor->out : monitor->in;
	struct gr_migrate_stats stats;
	struct gr_error why;
	json_t *answer;
	int status = 0;

	(void)args;
	(void)err;
	if (monitor->snapshot_migrates) {
		status = vmm_snapshot_stats(monitor->snapshot, &stats, &why);
	} else if (move) {
		vmm_move_stats(move, &stats);
		(void)vmm_move_ended(move, &status, &why);
	} else {
		return 0;
	}
	answer = json_pack("{ss}", "status", gr_migrate_state_name(stats.state));
	set_u64(answer, "total-time", stats.total_time_ns / NS_PER_MS);
	set_u64(answer, "setup-time", stats.setup_time_ns / NS_PER_MS);
	if (stats.state == GR_MIGRATE_COMPLETED) {
		set_u64(answer, "downtime", stats.downtime_ns / NS_PER_MS);
	} else {
		set_u64(answer, "expected-downtime", stats.expected_downtime_ns / NS_PER_MS);
	}
	(void)json_object_set_new(answer, "ram", ram_stats(&stats));
	if (stats.xbzrle_cache_bytes != 0) {
		(void)json_object_set_new(answer, "xbzrle-cache", xbzrle_stats(&stats));
	}
	if (stats.throttle_percent != 0) {
		set_u64(answer, "cpu-throttle-percentage", stats.throttle_percent);
	}
	if (status < 0) {
		(void)json_object_set_new(answer, "error-desc", json_string(why.msg));
	}
	*ret = answer;
	return 0;
}

static int do_set_parameters(void *opaque, json_t *args, json_t **ret, struct gr_error *err)
{
	struct monitor *monitor = opaque;

	(void)ret;
	return vmm_migrate_set_parameters(&monitor->settings, args, err);
}

static int do_query_parameters(void *opaque, json_t *args, json_t **ret, struct gr_error *err)
{
	struct monitor *monitor = opaque;

	(void)args;
	(void)err;
	*ret = vmm_migrate_query_parameters(&monitor->settings);
	return 0;
}

static int do_set_capabilities(void *opaque, json_t *args, json_t **ret, struct gr_error *err)
{
	struct monitor *monitor = opaque;

	(void)ret;
	return vmm_migrate_set_capabilities(&monitor->settings, args, err);
}

static int do_query_capabilities(void *opaque, json_t *args, json_t **ret, struct gr_error *err)
{
	struct monitor *monitor = opaque;

	(void)args;
	(void)err;
	*ret = vmm_migrate_query_capabilities(&monitor->settings);
	return 0;
}

static int receive(struct monitor *monitor, const char *uri, struct gr_error *err)
{
	struct vmm_move_params params = { .changed = move_changed, .opaque = monitor };
	char line[300];
	int rc;

	vmm_migrate_settings_apply(&monitor->settings, &params);
	rc = vmm_move_in(monitor->machine, uri, &params, &monitor->in, err);
	if (rc == 0) {
		(void)snprintf(line, sizeof(line), "waiting for a machine on %s",
			       vmm_move_uri(monitor->in));
		say(monitor, line);
	}
	return rc;
}

static int do_migrate_incoming(void *opaque, json_t *args, json_t **ret, struct gr_error *err)
{
	struct monitor *monitor = opaque;
	const char *uri = NULL;
	int rc = vmm_qmp_need(args, "uri", err);

	(void)ret;
	rc = rc < 0 ? rc : vmm_qmp_get_string(args, "uri", &uri, err);
	if (rc == 0 && (!monitor->params.incoming || strcmp(monitor->params.incoming, "defer") != 0)) {
		rc = gr_error_set(err, -EINVAL, "'--incoming defer' is required for migrate-incoming");
	}
	if (rc == 0 && monitor->in) {
		rc = gr_error_set(err, -EBUSY, "The incoming migration has already been started");
	}
	return rc < 0 ? rc : receive(monitor, uri, err);
}

static int do_query_resume(void *opaque, json_t *args, json_t **ret, struct gr_error *err)
{
	struct monitor *monitor = opaque;

	(void)args;
	(void)err;
	*ret = monitor->resume ? vmm_resume_query(monitor->resume) : NULL;
	return 0;
}

static int do_resume_retry(void *opaque, json_t *args, json_t **ret, struct gr_error *err)
{
	struct monitor *monitor = opaque;

	(void)args;
	(void)ret;
	(void)err;
	if (monitor->resume && !vmm_resume_completed(monitor->resume)) {
		vmm_resume_retry(monitor->resume);
		watch_resume(monitor, true);
	}
	return 0;
}

static int do_migrate_continue(void *opaque, json_t *args, json_t **ret, struct gr_error *err)
{
	struct monitor *monitor = opaque;
	const char *state = NULL;
	int rc = vmm_qmp_need(args, "state", err);

	(void)ret;
	rc = rc < 0 ? rc : vmm_qmp_get_string(args, "state", &state, err);
	if (rc == 0 && strcmp(state, "pre-switchover") != 0) {
		rc = gr_error_set(err, -EINVAL, "Migration does not wait in state '%s'", state);
	}
	if (rc < 0) {
		return rc;
	}
	if (!monitor->out) {
		return gr_error_set(err, -EINVAL, "There is no migration that could go on");
	}
	return vmm_move_continue(monitor->out, err);
}

/* Write guest memory into an open file. */
static int save_range(struct gr_ram *ram, uint64_t gpa, uint64_t bytes, FILE *file,
		      struct gr_error *err)
{
	void *buf = malloc(SAVE_CHUNK_BYTES);
	int rc = buf ? 0 : gr_error_set(err, -ENOMEM, "no memory for a buffer");

	while (rc == 0 && bytes > 0) {
		size_t n = bytes < SAVE_CHUNK_BYTES ? bytes : SAVE_CHUNK_BYTES;

		rc = gr_ram_read(ram, gr_gpa(gpa), buf, n, err);
		if (rc == 0 && fwrite(buf, 1, n, file) != n) {
			rc = gr_error_set(err, -EIO, "cannot write: %s", strerror(errno));
		}
		gpa += n;
		bytes -= n;
	}
	free(buf);
	return rc;
}

static int do_pmemsave(void *opaque, json_t *args, json_t **ret, struct gr_error *err)
{
	struct monitor *monitor = opaque;
	const char *filename = NULL;
	uint64_t val = 0, size = 0, end;
	FILE *file;
	int rc = vmm_qmp_need(args, "val", err);

	(void)ret;
	rc = rc < 0 ? rc : vmm_qmp_need(args, "size", err);
	rc = rc < 0 ? rc : vmm_qmp_need(args, "filename", err);
	rc = rc < 0 ? rc : vmm_qmp_get_u64(args, "val", &val, err);
	rc = rc < 0 ? rc : vmm_qmp_get_u64(args, "size", &size, err);
	rc = rc < 0 ? rc : vmm_qmp_get_string(args, "filename", &filename, err);
	if (rc == 0 && __builtin_add_overflow(val, size, &end)) {
		rc = gr_error_set(err, -EINVAL, "Invalid addr or size");
	}
	rc = rc < 0 ? rc : memory_has_come(monitor, err);
	if (rc < 0) {
		return rc;
	}
	file = fopen(filename, "we");
	if (!file) {
		return gr_error_set(err, -errno, "Could not open '%s': %s", filename,
				    strerror(errno));
	}
	rc = save_range(vmm_machine_ram(monitor->machine), val, size, file, err);
	if (fclose(file) != 0 && rc == 0) {
		rc = gr_error_set(err, -EIO, "cannot write '%s': %s", filename, strerror(errno));
	}
	return rc;
}

static void emit_register(void *opaque, const char *name, uint64_t value)
{
	/* all 64 bits, which a JSON integer does not have room for everywhere */
	char text[24];

	(void)snprintf(text, sizeof(text), "0x%" PRIx64, value);
	(void)json_object_set_new(opaque, name, json_string(text));
}

static int do_query_registers(void *opaque, json_t *args, json_t **ret, struct gr_error *err)
{
	struct monitor *monitor = opaque;
	int rc = may_wait_for_vcpus(monitor, err);
	json_t *cpus = json_array();

	(void)args;
	for (unsigned int v = 0; v < vmm_machine_vcpus(monitor->machine) && rc == 0; v++) {
		json_t *registers = json_object();

		rc = vmm_machine_describe(monitor->machine, v, emit_register, registers, err);
		(void)json_array_append_new(cpus, json_pack("{sIso}", "cpu-index", (json_int_t)v,
							    "registers", registers));
	}
	*ret = cpus;
	return rc;
}

static int do_block_add(void *opaque, json_t *args, json_t **ret, struct gr_error *err)
{
	struct monitor *monitor = opaque;
	const char *id = NULL;
	uint64_t size = 0, gpa = 0;
	int rc = vmm_qmp_need(args, "id", err);

	(void)ret;
	rc = rc < 0 ? rc : vmm_qmp_need(args, "size", err);
	rc = rc < 0 ? rc : vmm_qmp_get_string(args, "id", &id, err);
	rc = rc < 0 ? rc : vmm_qmp_get_u64(args, "size", &size, err);
	rc = rc < 0 ? rc : vmm_qmp_get_u64(args, "gpa", &gpa, err);
	rc = rc < 0 ? rc : memory_has_come(monitor, err); /* the guest's table of them is there */
	return rc < 0 ? rc : vmm_machine_plug(monitor->machine, id, size, gpa, err);
}

static int do_block_del(void *opaque, json_t *args, json_t **ret, struct gr_error *err)
{
	struct monitor *monitor = opaque;
	const char *id = NULL;
	int rc = vmm_qmp_need(args, "id", err);

	(void)ret;
	rc = rc < 0 ? rc : vmm_qmp_get_string(args, "id", &id, err);
	rc = rc < 0 ? rc : memory_has_come(monitor, err);
	return rc < 0 ? rc : vmm_machine_unplug(monitor->machine, id, err);
}

static void emit_block(void *opaque, const char *id, uint64_t gpa, uint64_t bytes)
{
	json_t *block = json_pack("{ss}", "id", id);

	set_u64(block, "gpa", gpa);
	set_u64(block, "size", bytes);
	(void)json_array_append_new(opaque, block);
}

static int do_query_blocks(void *opaque, json_t *args, json_t **ret, struct gr_error *err)
{
	struct monitor *monitor = opaque;

	(void)args;
	(void)err;
	*ret = json_array();
	emit_block(*ret, "ram", 0, monitor->params.machine.memory_bytes);
	vmm_machine_plugs(monitor->machine, emit_block, *ret);
	return 0;
}

static int do_query_ramblock(void *opaque, json_t *args, json_t **ret, struct gr_error *err)
{
	struct monitor *monitor = opaque;
	json_t *text;
	int rc = vmm_human_command(vmm_machine_ram(monitor->machine), "info ramblock", &text, err);

	(void)args;
	if (rc == 0) {
		*ret = json_pack("{so}", "human-readable-text", text);
	}
	return rc;
}

static int do_human_command(void *opaque, json_t *args, json_t **ret, struct gr_error *err)
{
	struct monitor *monitor = opaque;
	const char *line = json_string_value(json_object_get(args, "command-line"));

	if (!line) {
		return gr_error_set(err, -EINVAL, "'command-line' is missing or no string");
	}
	return vmm_human_command(vmm_machine_ram(monitor->machine), line, ret, err);
}

static int do_query_heartbeat(void *opaque, json_t *args, json_t **ret, struct gr_error *err)
{
	struct monitor *monitor = opaque;
	struct vmm_heartbeat hb;
	int rc = memory_has_come(monitor, err);

	(void)args;
	rc = rc < 0 ? rc : vmm_machine_heartbeat(monitor->machine, &hb, err);
	if (rc < 0) {
		return rc;
	}
	*ret = json_object();
	set_u64(*ret, "last-ns", hb.last_ns);
	set_u64(*ret, "gap-ns-max", hb.gap_ns_max);
	set_u64(*ret, "gap-began-ns", hb.gap_began_ns);
	set_u64(*ret, "beats", hb.beats);
	return 0;
}

static int do_heartbeat_reset(void *opaque, json_t *args, json_t **ret, struct gr_error *err)
{
	struct monitor *monitor = opaque;
	int rc = memory_has_come(monitor, err);

	(void)args;
	(void)ret;
	return rc < 0 ? rc : vmm_machine_heartbeat_reset(monitor->machine, err);
}

static int do_query_ops(void *opaque, json_t *args, json_t **ret, struct gr_error *err)
{
	struct monitor *monitor = opaque;
	uint64_t ops[VMM_WRITERS_MAX] = { 0 };

	(void)args;
	(void)err;
	vmm_machine_ops(monitor->machine, ops);
	*ret = json_array();
	for (unsigned int w = 0; w <= vmm_machine_vcpus(monitor->machine); w++) {
		(void)json_array_append_new(*ret, json_u64(ops[w]));
	}
	return 0;
}

static int do_check(void *opaque, json_t *args, json_t **ret, struct gr_error *err)
{
	struct monitor *monitor = opaque;
	struct vmm_check check;
	uint64_t began_ns = now_ns();
	char text[256];
	int rc = memory_has_come(monitor, err);

	(void)args;
	rc = rc < 0 ? rc : vmm_machine_check(monitor->machine, &check, err);
	if (rc < 0) {
		return rc;
	}
	vmm_check_describe(&check, text, sizeof(text));
	*ret = json_pack("{ss}", "first-wrong", check.pages_wrong > 0 ? text : "");
	set_u64(*ret, "pages-checked", check.pages_checked);
	set_u64(*ret, "plugged-pages-checked", check.plugged_pages_checked);
	set_u64(*ret, "device-pages-checked", check.device_pages_checked);
	set_u64(*ret, "pages-written-once", check.pages_written_once);
	set_u64(*ret, "pages-last-written-before-final-round",
		check.pages_last_written_before_final_round);
	set_u64(*ret, "pages-wrong", check.pages_wrong);
	set_u64(*ret, "took-ns", now_ns() - began_ns);
	return 0;
}

static int do_set_rate(void *opaque, json_t *args, json_t **ret, struct gr_error *err)
{
	struct monitor *monitor = opaque;
	uint64_t rate = 0;
	int rc = vmm_qmp_need(args, "bytes-per-second", err);

	(void)ret;
	rc = rc < 0 ? rc : vmm_qmp_get_u64(args, "bytes-per-second", &rate, err);
	if (rc == 0) {
		vmm_pacer_set_rate(vmm_machine_pacer(monitor->machine), rate);
	}
	return rc;
}

static int do_calc_dirty_rate(void *opaque, json_t *args, json_t **ret, struct gr_error *err)
{
	struct monitor *monitor = opaque;
	int rc = memory_has_come(monitor, err); /* a grace period waits for who waits for memory */

	(void)ret;
	return rc < 0 ? rc : vmm_dirty_rate_calc(monitor->dirty_rate, args, err);
}

static int do_query_dirty_rate(void *opaque, json_t *args, json_t **ret, struct gr_error *err)
{
	struct monitor *monitor = opaque;

	(void)args;
	(void)err;
	*ret = vmm_dirty_rate_query(monitor->dirty_rate);
	return 0;
}

static int do_query_commands(void *opaque, json_t *args, json_t **ret, struct gr_error *err);

static const struct vmm_qmp_command commands[] = {
	{ "calc-dirty-rate", VMM_DIRTY_RATE_ARGUMENTS, do_calc_dirty_rate },
	{ "cont", "", do_cont },
	{ "human-monitor-command", "command-line cpu-index", do_human_command },
	{ "migrate", "uri", do_migrate },
	{ "migrate-continue", "state", do_migrate_continue },
	{ "migrate-incoming", "uri", do_migrate_incoming },
	{ "migrate-set-capabilities", "capabilities", do_set_capabilities },
	{ "migrate-set-parameters", VMM_MIGRATE_PARAMETERS, do_set_parameters },
	{ "migrate_cancel", "", do_migrate_cancel },
	{ "pmemsave", "val size filename", do_pmemsave },
	{ "query-commands", "", do_query_commands },
	{ "query-dirty-rate", "", do_query_dirty_rate },
	{ "query-migrate", "", do_query_migrate },
	{ "query-migrate-capabilities", "", do_query_capabilities },
	{ "query-migrate-parameters", "", do_query_parameters },
	{ "query-status", "", do_query_status },
	{ "query-version", "", do_query_version },
	{ "quit", "", do_quit },
	{ "stop", "", do_stop },
	{ "x-query-ramblock", "", do_query_ramblock },
	/* not QEMU's */
	{ "x-block-add", "id size gpa", do_block_add },
	{ "x-block-del", "id", do_block_del },
	{ "x-check", "", do_check },
	{ "x-heartbeat-reset", "", do_heartbeat_reset },
	{ "x-query-blocks", "", do_query_blocks },
	{ "x-query-heartbeat", "", do_query_heartbeat },
	{ "x-query-ops", "", do_query_ops },
	{ "x-query-registers", "", do_query_registers },
	{ "x-query-resume", "", do_query_resume },
	{ "x-query-snapshot", "", do_query_snapshot },
	{ "x-resume-retry", "", do_resume_retry },
	{ "x-set-rate", "bytes-per-second", do_set_rate },
	{ "x-snapshot", VMM_SNAPSHOT_ARGUMENTS, do_snapshot },
	{ "x-snapshot-cancel", "", do_snapshot_cancel },
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
		say(monitor, "the machine has arrived and runs");
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

/* From an image; it runs if it ran when that was made. */
static int resume(struct monitor *monitor, struct gr_error *err)
{
	bool ran;
	int rc = vmm_resume_begin(monitor->machine, &monitor->params.image, &ran, &monitor->resume,
				  err);

	if (rc < 0) {
		return rc;
	}
	watch_resume(monitor, true);
	return monitor->params.paused || !ran ? 0 : vmm_machine_cont(monitor->machine, err);
}

static int start(struct monitor *monitor, struct gr_error *err)
{
	if (monitor->params.image.path) {
		return resume(monitor, err);
	}
	if (!monitor->params.incoming) {
		return monitor->params.paused ? 0 : vmm_machine_cont(monitor->machine, err);
	}
	monitor->autostart = !monitor->params.paused;
	return strcmp(monitor->params.incoming, "defer") == 0
		       ? 0
		       : receive(monitor, monitor->params.incoming, err);
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
	rc = rc < 0 ? rc : vmm_dirty_rate_create(monitor->loop, monitor->machine,
						 &monitor->dirty_rate, err);
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
	watch_resume(monitor, false);
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
