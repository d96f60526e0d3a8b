/* SPDX-License-Identifier: MIT */
#include "base/atomic.h"
#include "migrate/progress.h"
#include "migrate/ram_sink.h"
#include "migrate/receive.h"
#include <errno.h>
#include <stdlib.h>

/* Records that one gr_destination_step() takes at most. */
enum { RECORDS_PER_STEP = 16 };

struct gr_destination {
	struct gr_ram_sink *sink;      /* (o) */
	struct gr_receive *receive;    /* its own locking */
	struct gr_destination_ops ops; /* (c) */
	uint64_t told_ns;	       /* (o) when progress() was called last */
	gr_atomic_u64 section_ns_max;       /* (a) copy of the sink's */
	struct gr_error error;	       /* (o) how it ended, if it failed */
};

int gr_destination_create(struct gr_ram *ram, struct gr_channel *channel,
			  const struct gr_destination_params *params,
			  const struct gr_destination_ops *ops,
			  struct gr_destination **ret_destination, struct gr_error *err)
{
	struct gr_receive_params receive_params = { 0 };
	struct gr_sink sink = { .ops = &gr_ram_sink_ops };
	struct gr_destination *d;
	int rc;

	if (!ram || !channel || (params && params->size != sizeof(*params))) {
		return gr_error_set(err, -EINVAL,
				    "a destination needs RAM, a channel and "
				    "parameters of the right size");
	}
	d = calloc(1, sizeof(*d));
	if (!d) {
		return gr_error_set(err, -ENOMEM, "no memory for a destination");
	}
	if (ops) {
		d->ops = *ops;
	}
	if (params) {
		receive_params.machine = params->machine;
		receive_params.allow_unterminated = params->allow_unterminated;
		receive_params.plain = params->plain;
		receive_params.uuid = params->uuid;
		receive_params.ignore_shared = params->ignore_shared;
		receive_params.switchover_ack = params->switchover_ack;
		receive_params.switchover_ready = d->ops.switchover_ready;
		receive_params.opaque = d->ops.opaque;
		receive_params.multifd = params->multifd;
	}
	rc = gr_ram_sink_create(ram, ops, &d->sink, err);
	if (rc == 0) {
		gr_ram_sink_set_ignore_shared(d->sink, receive_params.ignore_shared);
		sink.opaque = d->sink;
		rc = gr_receive_create(channel, &sink, &receive_params, &d->receive, err);
	}
	if (rc < 0) {
		gr_destination_free(d);
		return rc;
	}
	*ret_destination = d;
	return 0;
}

void gr_destination_free(struct gr_destination *d)
{
	if (!d) {
		return;
	}
	gr_receive_free(d->receive); /* first: threads of further channels use the sink */
	gr_ram_sink_free(d->sink);
	free(d);
}

void gr_destination_cancel(struct gr_destination *d)
{
	gr_receive_cancel(d->receive);
}

void gr_destination_stats(struct gr_destination *d, struct gr_migrate_stats *ret_stats)
{
	gr_receive_stats(d->receive, ret_stats);
	ret_stats->section_ns_max = gr_load_relaxed(&d->section_ns_max);
}

static void tell(struct gr_destination *d, bool now)
{
	struct gr_migrate_stats stats;
	uint64_t ns;

	/* Statistics only: no order with anything. */
	gr_store_relaxed(&d->section_ns_max, gr_ram_sink_section_ns_max(d->sink));
	if (!d->ops.progress) {
		return;
	}
	ns = gr_clock_ns();
	if (now || ns - d->told_ns >= GR_PROGRESS_INTERVAL_NS) {
		d->told_ns = ns;
		gr_destination_stats(d, &stats);
		d->ops.progress(d->ops.opaque, &stats);
	}
}

/* Says what the RAM is worth now, and lets go of it. */
static void fail(struct gr_destination *d, const struct gr_error *reason)
{
	char placed[GR_ERROR_MSG_BYTES / 2];

	gr_ram_sink_describe(d->sink, placed, sizeof(placed));
	(void)gr_error_set(&d->error, reason->code, "%s%s%s", reason->msg,
			   placed[0] ? "; RAM is incomplete, pages placed: " : "", placed);
	gr_ram_sink_end(d->sink);
	tell(d, true);
}

int gr_destination_step(struct gr_destination *d, struct gr_error *err)
{
	struct gr_error reason = { 0 };
	int rc = 1;

	if (d->error.code == 0) {
		for (int i = 0; i < RECORDS_PER_STEP && rc > 0; i++) {
			rc = gr_receive_step(d->receive, &reason);
		}
		if (rc < 0) {
			fail(d, &reason);
		}
	}
	if (d->error.code < 0) {
		if (err) {
			*err = d->error;
		}
		return d->error.code;
	}
	if (rc == 0) {
		gr_ram_sink_end(d->sink);
	}
	tell(d, rc == 0);
	return rc;
}

int gr_destination_run(struct gr_destination *d, struct gr_error *err)
{
	int rc;

	do {
		rc = gr_destination_step(d, err);
	} while (rc > 0);
	return rc;
}
