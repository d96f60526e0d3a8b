/* SPDX-License-Identifier: MIT */
/* The monitor's commands about migration: out, in, and what QEMU's clients ask of it. */
#include "monitor_internal.h"
#include <errno.h>
#include <stdio.h>
#include <string.h>

#define NS_PER_MS 1000000u

int vmm_do_migrate(void *opaque, json_t *args, json_t **ret, struct gr_error *err)
{
	struct monitor *monitor = opaque;
	struct vmm_move_params params = { .changed = vmm_monitor_move_changed, .opaque = monitor };
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
		return vmm_monitor_background_snapshot(monitor, uri, err);
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

int vmm_do_migrate_continue(void *opaque, json_t *args, json_t **ret, struct gr_error *err)
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

int vmm_do_migrate_cancel(void *opaque, json_t *args, json_t **ret, struct gr_error *err)
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

int vmm_monitor_receive(struct monitor *monitor, const char *uri, struct gr_error *err)
{
	struct vmm_move_params params = { .changed = vmm_monitor_move_changed, .opaque = monitor };
	char line[300];
	int rc;

	vmm_migrate_settings_apply(&monitor->settings, &params);
	rc = vmm_move_in(monitor->machine, uri, &params, &monitor->in, err);
	if (rc == 0) {
		(void)snprintf(line, sizeof(line), "waiting for a machine on %s",
			       vmm_move_uri(monitor->in));
		vmm_monitor_say(monitor, line);
	}
	return rc;
}

int vmm_do_migrate_incoming(void *opaque, json_t *args, json_t **ret, struct gr_error *err)
{
	struct monitor *monitor = opaque;
	const char *uri = NULL;
	int rc = vmm_qmp_need(args, "uri", err);

	(void)ret;
	rc = rc < 0 ? rc : vmm_qmp_get_string(args, "uri", &uri, err);
	if (rc == 0 &&
	    (!monitor->params.incoming || strcmp(monitor->params.incoming, "defer") != 0)) {
		rc = gr_error_set(err, -EINVAL,
				  "'--incoming defer' is required for migrate-incoming");
	}
	if (rc == 0 && monitor->in) {
		rc = gr_error_set(err, -EBUSY, "The incoming migration has already been started");
	}
	return rc < 0 ? rc : vmm_monitor_receive(monitor, uri, err);
}

int vmm_do_set_parameters(void *opaque, json_t *args, json_t **ret, struct gr_error *err)
{
	struct monitor *monitor = opaque;

	(void)ret;
	return vmm_migrate_set_parameters(&monitor->settings, args, err);
}

int vmm_do_query_parameters(void *opaque, json_t *args, json_t **ret, struct gr_error *err)
{
	struct monitor *monitor = opaque;

	(void)args;
	(void)err;
	*ret = vmm_migrate_query_parameters(&monitor->settings);
	return 0;
}

int vmm_do_set_capabilities(void *opaque, json_t *args, json_t **ret, struct gr_error *err)
{
	struct monitor *monitor = opaque;

	(void)ret;
	return vmm_migrate_set_capabilities(&monitor->settings, args, err);
}

int vmm_do_query_capabilities(void *opaque, json_t *args, json_t **ret, struct gr_error *err)
{
	struct monitor *monitor = opaque;

	(void)args;
	(void)err;
	*ret = vmm_migrate_query_capabilities(&monitor->settings);
	return 0;
}

static json_t *ram_stats(const struct gr_migrate_stats *stats)
{
	json_t *ram = json_object();
	uint64_t ms = stats->total_time_ns / NS_PER_MS;

	vmm_qmp_set_u64(ram, "transferred", stats->transferred_bytes);
	vmm_qmp_set_u64(ram, "remaining", stats->remaining_bytes);
	vmm_qmp_set_u64(ram, "total", stats->total_bytes);
	vmm_qmp_set_u64(ram, "duplicate", stats->zero_pages);
	vmm_qmp_set_u64(ram, "skipped", 0);
	vmm_qmp_set_u64(ram, "normal", stats->normal_pages);
	vmm_qmp_set_u64(ram, "normal-bytes", stats->normal_pages * VMM_PAGE_BYTES);
	vmm_qmp_set_u64(ram, "dirty-pages-rate", stats->dirty_pages_per_s);
	vmm_qmp_set_u64(ram, "dirty-sync-count", stats->rounds);
	vmm_qmp_set_u64(ram, "page-size", VMM_PAGE_BYTES);
	vmm_qmp_set_u64(ram, "postcopy-requests", 0);
	vmm_qmp_set_u64(ram, "multifd-bytes", 0);
	vmm_qmp_set_u64(ram, "pages-per-second",
			ms > 0 ? (stats->normal_pages + stats->zero_pages) * 1000 / ms : 0);
	(void)json_object_set_new(
		ram, "mbps",
		json_real(ms > 0 ? (double)stats->transferred_bytes * 8 / 1000 / (double)ms : 0));
	return ram;
}

static json_t *xbzrle_stats(const struct gr_migrate_stats *stats)
{
	uint64_t looked = stats->xbzrle_pages + stats->xbzrle_unchanged_pages +
			  stats->xbzrle_misses + stats->xbzrle_overflows;
	json_t *cache = json_object();

	vmm_qmp_set_u64(cache, "cache-size", stats->xbzrle_cache_bytes);
	vmm_qmp_set_u64(cache, "bytes", stats->xbzrle_bytes);
	vmm_qmp_set_u64(cache, "pages", stats->xbzrle_pages);
	vmm_qmp_set_u64(cache, "cache-miss", stats->xbzrle_misses);
	vmm_qmp_set_u64(cache, "overflow", stats->xbzrle_overflows);
	/* Of the whole migration. */
	(void)json_object_set_new(
		cache, "cache-miss-rate",
		json_real(looked > 0 ? (double)stats->xbzrle_misses / (double)looked : 0));
	(void)json_object_set_new(cache, "encoding-rate",
				  json_real(stats->xbzrle_bytes > 0
						    ? (double)stats->xbzrle_pages * VMM_PAGE_BYTES /
							      (double)stats->xbzrle_bytes
						    : 0));
	return cache;
}

int vmm_do_query_migrate(void *opaque, json_t *args, json_t **ret, struct gr_error *err)
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
	vmm_qmp_set_u64(answer, "total-time", stats.total_time_ns / NS_PER_MS);
	vmm_qmp_set_u64(answer, "setup-time", stats.setup_time_ns / NS_PER_MS);
	if (stats.state == GR_MIGRATE_COMPLETED) {
		vmm_qmp_set_u64(answer, "downtime", stats.downtime_ns / NS_PER_MS);
	} else {
		vmm_qmp_set_u64(answer, "expected-downtime",
				stats.expected_downtime_ns / NS_PER_MS);
	}
	(void)json_object_set_new(answer, "ram", ram_stats(&stats));
	if (stats.xbzrle_cache_bytes != 0) {
		(void)json_object_set_new(answer, "xbzrle-cache", xbzrle_stats(&stats));
	}
	if (stats.throttle_percent != 0) {
		vmm_qmp_set_u64(answer, "cpu-throttle-percentage", stats.throttle_percent);
	}
	if (status < 0) {
		(void)json_object_set_new(answer, "error-desc", json_string(why.msg));
	}
	*ret = answer;
	return 0;
}
