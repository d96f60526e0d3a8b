/* SPDX-License-Identifier: MIT */
#include "machine_move.h"
#include "channels.h"
#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

struct vmm_move {
	struct vmm_machine *machine;   /* (c) */
	struct vmm_move_params params; /* (c) */
	char *uri;		       /* (c) */
	pthread_t thread;	       /* (c) */

	pthread_mutex_t lock;
	pthread_cond_t cond;
	struct gr_channel_listener *listener; /* (l) incoming, until a peer has come */
	struct gr_source *source;	      /* (l) while the move runs */
	struct gr_destination *destination;   /* (l) while the move runs */
	struct gr_migrate_stats stats;	      /* (l) the last known */
	bool cancelled;			      /* (l) */
	bool ended;			      /* (l) */
	int status;			      /* (l) when it has ended */
	bool source_ran;		      /* (l) incoming, when it has ended well */
	struct gr_error err;		      /* (l) when it has failed */
};

/* Take the latest numbers; true if the state or the round is another one now. */
static bool refresh(struct vmm_move *move, struct gr_migrate_stats *ret)
{
	struct gr_migrate_stats old;

	(void)pthread_mutex_lock(&move->lock);
	old = move->stats;
	if (move->source) {
		gr_source_stats(move->source, &move->stats);
	} else if (move->destination) {
		gr_destination_stats(move->destination, &move->stats);
	}
	*ret = move->stats;
	(void)pthread_mutex_unlock(&move->lock);
	return ret->state != old.state || ret->rounds != old.rounds;
}

static void set_state(struct vmm_move *move, enum gr_migrate_state state)
{
	struct gr_migrate_stats stats;

	(void)pthread_mutex_lock(&move->lock);
	move->stats.state = state;
	stats = move->stats;
	(void)pthread_mutex_unlock(&move->lock);
	if (move->params.changed) {
		move->params.changed(move->params.opaque, &stats);
	}
}

static int on_pause(void *opaque, struct gr_error *err)
{
	struct vmm_move *move = opaque;

	return vmm_machine_switch_over(move->machine, err);
}

static void on_resume(void *opaque)
{
	struct vmm_move *move = opaque;

	vmm_machine_switch_back(move->machine);
}

static int on_save(void *opaque, struct gr_state_writer *writer, struct gr_error *err)
{
	struct vmm_move *move = opaque;

	return vmm_machine_save(move->machine, writer, err);
}

static void on_throttle(void *opaque, unsigned int percent)
{
	struct vmm_move *move = opaque;

	vmm_machine_throttle(move->machine, percent);
}

/* Drive the source step by step, so that the caller sees every step. */
static int drive(struct vmm_move *move, struct gr_source *source, struct gr_error *err)
{
	struct gr_migrate_stats stats;
	enum gr_migrate_state state = GR_MIGRATE_SETUP;
	uint64_t rounds = UINT64_MAX;
	int rc;

	do {
		(void)refresh(move, &stats);
		if (stats.rounds != rounds && stats.state < GR_MIGRATE_PRE_SWITCHOVER) {
			rounds = stats.rounds;
			vmm_machine_round_began(move->machine);
		}
		if (stats.state != state && stats.state < GR_MIGRATE_COMPLETED) {
			state = stats.state;
			set_state(move, state);
		}
		if (move->params.between) {
			move->params.between(move->params.opaque, &stats);
		}
		rc = gr_source_step(source, err);
	} while (rc > 0);
	return rc;
}

static int send_machine(struct vmm_move *move, const struct vmm_channels *channels,
			struct gr_error *err)
{
	struct vmm_machine *machine = move->machine;
	const struct gr_source_params params = {
		.size = sizeof(params),
		.writers = vmm_machine_writers(machine),
		.bandwidth_bytes_per_s_max = move->params.bandwidth_bytes_per_s_max,
		.downtime_ns_max = move->params.downtime_ns_max,
		.rounds_max = move->params.rounds_max,
		.expected = vmm_machine_expected(machine),
		.xbzrle_cache_bytes = move->params.xbzrle_cache_bytes,
		.auto_converge = move->params.auto_converge,
		.throttle_trigger_percent = move->params.throttle_trigger_percent,
		.throttle_initial_percent = move->params.throttle_initial_percent,
		.throttle_increment_percent = move->params.throttle_increment_percent,
		.throttle_max_percent = move->params.throttle_max_percent,
		.pause_before_switchover = move->params.pause_before_switchover,
		.switchover_ack = move->params.switchover_ack,
		.ignore_shared = move->params.ignore_shared,
		.uuid = move->params.validate_uuid ? vmm_machine_uuid(machine) : NULL,
		.multifd = vmm_channels_multifd(channels),
		.fault = move->params.fault,
	};
	const struct gr_source_ops ops = {
		.pause = on_pause,
		.resume = on_resume,
		.save = on_save,
		.throttle = on_throttle,
		.opaque = move,
	};
	struct gr_migrate_stats stats;
	struct gr_source *source;
	int rc = gr_source_create(vmm_machine_ram(machine), vmm_machine_track(machine),
				  channels->main, &params, &ops, &source, err);

	if (rc < 0) {
		return rc;
	}
	(void)pthread_mutex_lock(&move->lock);
	move->source = source;
	if (move->cancelled) {
		gr_source_cancel(source);
	}
	(void)pthread_mutex_unlock(&move->lock);
	rc = drive(move, source, err);
	(void)refresh(move, &stats);
	(void)pthread_mutex_lock(&move->lock);
	move->source = NULL;
	(void)pthread_mutex_unlock(&move->lock);
	gr_source_free(source);
	return rc;
}

/* Tell how it ended, once everything else has been done. */
static void end(struct vmm_move *move, int rc, const struct gr_error *err)
{
	struct gr_migrate_stats stats;

	(void)pthread_mutex_lock(&move->lock);
	move->status = rc;
	move->stats.state = GR_MIGRATE_COMPLETED;
	if (rc < 0) {
		move->err = *err;
		move->stats.state = move->cancelled ? GR_MIGRATE_CANCELLED : GR_MIGRATE_FAILED;
	}
	stats = move->stats;
	move->ended = true;
	(void)pthread_cond_broadcast(&move->cond);
	(void)pthread_mutex_unlock(&move->lock);
	if (move->params.changed) {
		move->params.changed(move->params.opaque, &stats);
	}
}

static void init_channels(const struct vmm_move *move, struct vmm_channels *channels)
{
	vmm_channels_init(channels, move->params.multifd_channels, move->params.multifd_compression,
			  vmm_machine_uuid(move->machine));
}

static void *out_main(void *opaque)
{
	struct vmm_move *move = opaque;
	struct gr_error err = { .msg = "" };
	struct vmm_channels channels = { 0 };
	int rc;

	init_channels(move, &channels);
	rc = vmm_channels_connect(&channels, move->uri, &err);
	if (rc == 0) {
		rc = send_machine(move, &channels, &err);
		if (vmm_channels_close(&channels, rc == 0 ? &err : NULL) < 0 && rc == 0) {
			/* the peer has all: only a command behind exec: can still say no */
			rc = err.code;
			vmm_machine_switch_back(move->machine);
		}
	}
	if (rc == 0) {
		vmm_machine_moved_away(move->machine);
	}
	end(move, rc, &err);
	return NULL;
}

static int on_load(void *opaque, const char *id, uint32_t instance, uint32_t version,
		   const void *data, size_t bytes, struct gr_error *err)
{
	struct vmm_move *move = opaque;

	return vmm_machine_load(move->machine, id, instance, version, data, bytes, err);
}

static int on_complete(void *opaque, struct gr_error *err)
{
	const struct vmm_move *move = opaque;

	return vmm_machine_complete(move->machine, err);
}

static void on_progress(void *opaque, const struct gr_migrate_stats *stats)
{
	struct vmm_move *move = opaque;
	bool news;

	(void)pthread_mutex_lock(&move->lock);
	news = move->stats.state != stats->state && stats->state < GR_MIGRATE_COMPLETED;
	(void)pthread_mutex_unlock(&move->lock);
	if (news) {
		set_state(move, stats->state);
	}
}

static int receive_machine(struct vmm_move *move, const struct vmm_channels *channels,
			   struct gr_error *err)
{
	const struct gr_destination_params params = {
		.size = sizeof(params),
		.uuid = vmm_machine_uuid(move->machine),
		.ignore_shared = move->params.ignore_shared,
		.multifd = vmm_channels_multifd(channels),
	};
	const struct gr_destination_ops ops = { .load = on_load,
						.complete = on_complete,
						.progress = on_progress,
						.opaque = move };
	struct gr_migrate_stats stats;
	struct gr_destination *destination;
	bool ran = false;
	int rc = gr_destination_create(vmm_machine_ram(move->machine), channels->main, &params,
				       &ops, &destination, err);

	if (rc < 0) {
		return rc;
	}
	(void)pthread_mutex_lock(&move->lock);
	move->destination = destination;
	if (move->cancelled) {
		gr_destination_cancel(destination);
	}
	(void)pthread_mutex_unlock(&move->lock);
	rc = gr_destination_run(destination, err);
	(void)refresh(move, &stats);
	if (rc == 0) {
		ran = vmm_machine_arrived(move->machine);
	}
	(void)pthread_mutex_lock(&move->lock);
	move->destination = NULL;
	move->source_ran = ran;
	(void)pthread_mutex_unlock(&move->lock);
	gr_destination_free(destination);
	return rc;
}

static void *in_main(void *opaque)
{
	struct vmm_move *move = opaque;
	struct gr_error err = { .msg = "" };
	struct vmm_channels channels = { 0 };
	int rc;

	init_channels(move, &channels);
	rc = vmm_channels_accept(&channels, move->listener, &err);
	if (rc == 0) {
		rc = receive_machine(move, &channels, &err);
		(void)vmm_channels_close(&channels, NULL);
	}
	end(move, rc, &err);
	return NULL;
}

static int begin(struct vmm_machine *machine, const char *uri, const struct vmm_move_params *params,
		 struct gr_channel_listener *listener, void *(*thread)(void *opaque),
		 struct vmm_move **ret_move, struct gr_error *err)
{
	struct vmm_move *move = calloc(1, sizeof(*move));
	char *copy = strdup(uri);
	int rc;

	if (!move || !copy) {
		free(copy);
		free(move);
		return gr_error_set(err, -ENOMEM, "no memory for a move");
	}
	move->machine = machine;
	move->uri = copy;
	move->listener = listener;
	move->stats.state = GR_MIGRATE_SETUP;
	if (params) {
		move->params = *params;
	}
	(void)pthread_mutex_init(&move->lock, NULL);
	(void)pthread_cond_init(&move->cond, NULL);
	rc = pthread_create(&move->thread, NULL, thread, move);
	if (rc != 0) {
		(void)pthread_cond_destroy(&move->cond);
		(void)pthread_mutex_destroy(&move->lock);
		free(copy);
		free(move);
		return gr_error_set(err, -rc, "cannot make a thread for the move: %s",
				    strerror(rc));
	}
	*ret_move = move;
	return 0;
}

int vmm_move_out(struct vmm_machine *machine, const char *uri, const struct vmm_move_params *params,
		 struct vmm_move **ret_move, struct gr_error *err)
{
	enum vmm_run_state state = vmm_machine_state(machine);

	if (state == VMM_INMIGRATE || state == VMM_POSTMIGRATE || state == VMM_FINISH_MIGRATE) {
		return gr_error_set(err, -EBUSY, "a machine in state '%s' cannot be moved",
				    vmm_run_state_name(state));
	}
	return begin(machine, uri, params, NULL, out_main, ret_move, err);
}

int vmm_move_in(struct vmm_machine *machine, const char *uri, const struct vmm_move_params *params,
		struct vmm_move **ret_move, struct gr_error *err)
{
	struct gr_channel_listener *listener;
	int rc;

	/* The thread would say so too, but then it is over: this can be asked for again. */
	if (params && params->multifd_channels > 0 && strncmp(uri, "tcp:", 4) != 0 &&
	    strncmp(uri, "unix:", 5) != 0) {
		return gr_error_set(err, -EINVAL,
				    "%s: further channels need a socket: tcp: or unix:", uri);
	}
	rc = gr_channel_listen(uri, &listener, err);
	if (rc < 0) {
		return rc;
	}
	rc = begin(machine, uri, params, listener, in_main, ret_move, err);
	if (rc < 0) {
		gr_channel_listener_close(listener);
	}
	return rc;
}

const char *vmm_move_uri(const struct vmm_move *move)
{
	return move->listener ? gr_channel_listener_uri(move->listener) : move->uri;
}

void vmm_move_stats(struct vmm_move *move, struct gr_migrate_stats *ret_stats)
{
	(void)refresh(move, ret_stats);
}

bool vmm_move_ended(struct vmm_move *move, int *ret_status, struct gr_error *err)
{
	bool ended;

	(void)pthread_mutex_lock(&move->lock);
	ended = move->ended;
	if (ended) {
		*ret_status = move->status;
	}
	if (ended && move->status < 0 && err) {
		*err = move->err;
	}
	(void)pthread_mutex_unlock(&move->lock);
	return ended;
}

int vmm_move_continue(struct vmm_move *move, struct gr_error *err)
{
	int rc;

	(void)pthread_mutex_lock(&move->lock);
	if (move->source) {
		rc = gr_source_continue(move->source, err);
	} else {
		rc = gr_error_set(err, -EINVAL, "no migration waits to go on");
	}
	(void)pthread_mutex_unlock(&move->lock);
	return rc;
}

void vmm_move_cancel(struct vmm_move *move)
{
	(void)pthread_mutex_lock(&move->lock);
	move->cancelled = true;
	if (move->source) {
		gr_source_cancel(move->source);
	}
	if (move->destination) {
		gr_destination_cancel(move->destination);
	}
	if (move->listener) {
		gr_channel_listener_shutdown(move->listener);
	}
	(void)pthread_mutex_unlock(&move->lock);
}

int vmm_move_wait(struct vmm_move *move, struct gr_error *err)
{
	int status = 0;

	(void)pthread_mutex_lock(&move->lock);
	while (!move->ended) {
		(void)pthread_cond_wait(&move->cond, &move->lock);
	}
	(void)pthread_mutex_unlock(&move->lock);
	(void)vmm_move_ended(move, &status, err);
	return status;
}

bool vmm_move_source_ran(struct vmm_move *move)
{
	bool ran;

	(void)pthread_mutex_lock(&move->lock);
	ran = move->source_ran;
	(void)pthread_mutex_unlock(&move->lock);
	return ran;
}

void vmm_move_free(struct vmm_move *move)
{
	if (!move) {
		return;
	}
	vmm_move_cancel(move);
	(void)pthread_join(move->thread, NULL);
	gr_channel_listener_close(move->listener);
	(void)pthread_cond_destroy(&move->cond);
	(void)pthread_mutex_destroy(&move->lock);
	free(move->uri);
	free(move);
}
