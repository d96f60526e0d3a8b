/* SPDX-License-Identifier: MIT */
#include "snapshot.h"
#include "qmp.h"
#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

struct vmm_snapshot {
	struct vmm_machine *machine;	  /* (c) */
	struct gr_snapshot *snapshot;	  /* (c) */
	pthread_t thread;		  /* (c) */
	vmm_snapshot_changed_fn *changed; /* (c) */
	void *opaque;			  /* (c) for changed() */
	enum gr_migrate_state told;	  /* (o) its thread: what changed() knows */

	pthread_mutex_t lock;
	bool ended;	     /* (l) */
	int status;	     /* (l) when it has ended */
	struct gr_error err; /* (l) when it has failed */
};

static bool get_stats(struct vmm_snapshot *s, struct gr_snapshot_stats *stats)
{
	bool ended = vmm_snapshot_ended(s); /* then the numbers are the last ones */

	gr_snapshot_stats(s->snapshot, stats);
	if (!ended && stats->move.state > GR_MIGRATE_DEVICE) {
		stats->move.state = GR_MIGRATE_DEVICE; /* its thread is about to say so */
	}
	return ended;
}

/* That it is over is told when everything else has been done. */
static void tell(struct vmm_snapshot *s)
{
	struct gr_snapshot_stats stats;

	gr_snapshot_stats(s->snapshot, &stats);
	if (s->changed && stats.move.state != s->told &&
	    (stats.move.state <= GR_MIGRATE_DEVICE || vmm_snapshot_ended(s))) {
		s->told = stats.move.state;
		s->changed(s->opaque, &stats.move);
	}
}

static int on_pause(void *opaque, struct gr_error *err)
{
	struct vmm_snapshot *s = opaque;

	tell(s);
	return vmm_machine_switch_over(s->machine, err);
}

static void on_resume(void *opaque)
{
	struct vmm_snapshot *s = opaque;

	vmm_machine_switch_back(s->machine);
}

static int on_save(void *opaque, struct gr_state_writer *writer, struct gr_error *err)
{
	struct vmm_snapshot *s = opaque;

	return vmm_machine_save(s->machine, writer, err);
}

static void *run(void *opaque)
{
	struct vmm_snapshot *s = opaque;
	struct gr_error err = { .msg = "" };
	int status;

	do {
		status = gr_snapshot_step(s->snapshot, &err);
		tell(s);
	} while (status > 0);
	(void)pthread_mutex_lock(&s->lock);
	s->status = status;
	s->err = err;
	s->ended = true;
	(void)pthread_mutex_unlock(&s->lock);
	tell(s);
	return NULL;
}

static int parse(json_t *args, const char **filename, struct gr_snapshot_params *params,
		 struct gr_error *err)
{
	const char *when_full = "wait";
	int rc = vmm_qmp_need(args, "filename", err);

	rc = rc < 0 ? rc : vmm_qmp_get_string(args, "filename", filename, err);
	rc = rc < 0 ? rc : vmm_qmp_get_u64(args, "buffer-bytes", &params->buffer_bytes, err);
	rc = rc < 0 ? rc
		    : vmm_qmp_get_u64(args, "max-bandwidth", &params->bandwidth_bytes_per_s_max,
				      err);
	rc = rc < 0 ? rc : vmm_qmp_get_string(args, "when-full", &when_full, err);
	if (rc == 0 && strcmp(when_full, "abort") == 0) {
		params->when_full = GR_SNAPSHOT_ABORT;
	} else if (rc == 0 && strcmp(when_full, "wait") != 0) {
		rc = gr_error_set(err, -EINVAL, "Parameter 'when-full' expects 'wait' or 'abort'");
	}
	return rc;
}

int vmm_snapshot_begin(struct vmm_machine *machine, json_t *args, vmm_snapshot_changed_fn *changed,
		       void *opaque, struct vmm_snapshot **ret_snapshot, struct gr_error *err)
{
	struct gr_snapshot_params params = { .size = sizeof(params),
					     .writers = vmm_machine_writers(machine) };
	struct gr_source_ops ops = { .pause = on_pause, .resume = on_resume, .save = on_save };
	enum vmm_run_state state = vmm_machine_state(machine);
	const char *filename = NULL;
	struct vmm_snapshot *s;
	int rc = parse(args, &filename, &params, err);

	if (rc < 0) {
		return rc;
	}
	if (state != VMM_RUNNING && state != VMM_PAUSED) {
		return gr_error_set(err, -EBUSY, "no snapshot of a machine in state '%s'",
				    vmm_run_state_name(state));
	}
	s = calloc(1, sizeof(*s));
	if (!s) {
		return gr_error_set(err, -ENOMEM, "no memory for a snapshot");
	}
	s->machine = machine;
	s->changed = changed;
	s->opaque = opaque;
	ops.opaque = s;
	rc = gr_snapshot_create(vmm_machine_ram(machine), filename, &params, &ops, &s->snapshot,
				err);
	if (rc < 0) {
		free(s);
		return rc;
	}
	(void)pthread_mutex_init(&s->lock, NULL);
	rc = pthread_create(&s->thread, NULL, run, s);
	if (rc != 0) {
		gr_snapshot_free(s->snapshot);
		(void)pthread_mutex_destroy(&s->lock);
		free(s);
		return gr_error_set(err, -rc, "no thread for a snapshot: %s", strerror(rc));
	}
	*ret_snapshot = s;
	return 0;
}

bool vmm_snapshot_ended(struct vmm_snapshot *s)
{
	bool ended;

	(void)pthread_mutex_lock(&s->lock);
	ended = s->ended;
	(void)pthread_mutex_unlock(&s->lock);
	return ended;
}

static json_t *stalls(const struct gr_cbw_stalls *st)
{
	return json_pack("{sI sI sI sI}", "count", (json_int_t)st->count, "total-ns",
			 (json_int_t)st->ns_total, "max-ns", (json_int_t)st->ns_max, "p99-ns",
			 (json_int_t)st->ns_p99);
}

int vmm_snapshot_stats(struct vmm_snapshot *s, struct gr_migrate_stats *ret_stats,
		       struct gr_error *err)
{
	struct gr_snapshot_stats stats;
	bool ended = get_stats(s, &stats);

	*ret_stats = stats.move;
	return ended && s->status < 0 ? gr_error_set(err, s->status, "%s", s->err.msg) : 0;
}

json_t *vmm_snapshot_query(struct vmm_snapshot *s)
{
	struct gr_snapshot_stats stats;
	bool ended = get_stats(s, &stats);
	json_t *answer;

	answer = json_pack("{ss sI sI sI sI sI sI sI so so}", "status",
			   gr_migrate_state_name(stats.move.state), "total",
			   (json_int_t)stats.move.total_bytes, "remaining",
			   (json_int_t)stats.move.remaining_bytes, "transferred",
			   (json_int_t)stats.move.transferred_bytes, "downtime-ns",
			   (json_int_t)stats.move.downtime_ns, "total-time-ns",
			   (json_int_t)stats.move.total_time_ns, "copied-pages",
			   (json_int_t)stats.copied_pages, "buffered-max",
			   (json_int_t)stats.buffered_bytes_max, "stalls", stalls(&stats.below),
			   "stalls-when-full", stalls(&stats.above));
	if (ended && s->status < 0) {
		(void)json_object_set_new(answer, "error-desc", json_string(s->err.msg));
	}
	return answer;
}

void vmm_snapshot_cancel(struct vmm_snapshot *s)
{
	gr_snapshot_cancel(s->snapshot);
}

void vmm_snapshot_free(struct vmm_snapshot *s)
{
	if (!s) {
		return;
	}
	gr_snapshot_cancel(s->snapshot);
	(void)pthread_join(s->thread, NULL);
	gr_snapshot_free(s->snapshot);
	(void)pthread_mutex_destroy(&s->lock);
	free(s);
}
