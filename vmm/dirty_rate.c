/* SPDX-License-Identifier: MIT */
/*
 * One measurement at a time: the command takes the first look, a timer of the loop the second.
 */
#include "dirty_rate.h"
#include "qmp.h"
#include <errno.h>
#include <guestram/dirty_rate.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum {
	CALC_MS_MIN = 50,
	CALC_MS_MAX = 60000,
	SAMPLES_DEFAULT = 512,
	BLOCK_BYTES_MIN = 1 << 20, /* the guests here are small */
};
#define NS_PER_MS 1000000u

static const char *const mode_names[] = {
	[GR_DIRTY_RATE_SAMPLING] = "page-sampling",
	[GR_DIRTY_RATE_BITMAP] = "dirty-bitmap",
	[GR_DIRTY_RATE_RING] = "dirty-ring",
};

struct vmm_dirty_rate {
	struct vmm_machine *machine;
	struct gr_loop_handler *timer;
	struct gr_dirty_rate *measuring; /* NULL: none is under way */
	bool started, measured;
	int64_t start_time_s; /* of the day's clock */
	uint64_t calc_time;   /* as it was asked for, in... */
	bool in_ms;
	uint64_t samples;
	enum gr_dirty_rate_mode mode;
	struct gr_dirty_rate_result result;
};

static void time_is_over(void *opaque)
{
	struct vmm_dirty_rate *rate = opaque;

	rate->result.size = sizeof(rate->result);
	rate->measured = gr_dirty_rate_end(rate->measuring, &rate->result, NULL) == 0;
	gr_dirty_rate_free(rate->measuring);
	rate->measuring = NULL;
}

int vmm_dirty_rate_create(struct gr_loop *loop, struct vmm_machine *machine,
			  struct vmm_dirty_rate **ret_rate, struct gr_error *err)
{
	struct vmm_dirty_rate *rate = calloc(1, sizeof(*rate));
	const struct gr_loop_timer_desc desc = { .size = sizeof(desc),
						 .fire = time_is_over,
						 .opaque = rate };
	int rc;

	if (!rate) {
		return gr_error_set(err, -ENOMEM, "no memory for dirty rates");
	}
	rate->machine = machine;
	rate->samples = SAMPLES_DEFAULT;
	rc = gr_loop_add_timer(loop, &desc, &rate->timer, err);
	if (rc < 0) {
		free(rate);
		return rc;
	}
	*ret_rate = rate;
	return 0;
}

void vmm_dirty_rate_free(struct vmm_dirty_rate *rate)
{
	if (!rate) {
		return;
	}
	gr_loop_del(rate->timer);
	gr_dirty_rate_free(rate->measuring);
	free(rate);
}

/* What is asked for, into a copy: a command that is refused changes nothing. */
static int parse(struct vmm_dirty_rate *want, json_t *args, struct gr_error *err)
{
	const char *unit = "second", *mode = mode_names[GR_DIRTY_RATE_SAMPLING];
	bool samples_given = json_object_get(args, "sample-pages") != NULL;
	uint64_t ms;
	unsigned int m = 0;
	int rc = vmm_qmp_need(args, "calc-time", err);

	want->samples = SAMPLES_DEFAULT;
	rc = rc < 0 ? rc : vmm_qmp_get_u64(args, "calc-time", &want->calc_time, err);
	rc = rc < 0 ? rc : vmm_qmp_get_string(args, "calc-time-unit", &unit, err);
	rc = rc < 0 ? rc : vmm_qmp_get_u64(args, "sample-pages", &want->samples, err);
	rc = rc < 0 ? rc : vmm_qmp_get_string(args, "mode", &mode, err);
	if (rc < 0) {
		return rc;
	}
	want->in_ms = strcmp(unit, "millisecond") == 0;
	if (!want->in_ms && strcmp(unit, "second") != 0) {
		return gr_error_set(err, -EINVAL, "Parameter 'calc-time-unit' does not accept '%s'",
				    unit);
	}
	while (m < sizeof(mode_names) / sizeof(mode_names[0]) && strcmp(mode, mode_names[m]) != 0) {
		m++;
	}
	if (m == sizeof(mode_names) / sizeof(mode_names[0])) {
		return gr_error_set(err, -EINVAL, "Parameter 'mode' does not accept '%s'", mode);
	}
	want->mode = (enum gr_dirty_rate_mode)m;
	ms = want->calc_time > CALC_MS_MAX ? UINT64_MAX : want->calc_time * (want->in_ms ? 1 : 1000);
	if (ms < CALC_MS_MIN || ms > CALC_MS_MAX) {
		return gr_error_set(err, -EINVAL, "'calc-time' is from %d to %d ms", CALC_MS_MIN,
				    CALC_MS_MAX);
	}
	if (samples_given && want->mode != GR_DIRTY_RATE_SAMPLING) {
		return gr_error_set(err, -EINVAL, "'sample-pages' is for mode '%s'",
				    mode_names[GR_DIRTY_RATE_SAMPLING]);
	}
	if (want->samples < GR_DIRTY_RATE_SAMPLES_MIN || want->samples > GR_DIRTY_RATE_SAMPLES_MAX) {
		return gr_error_set(err, -EINVAL, "'sample-pages' is from %d to %d",
				    GR_DIRTY_RATE_SAMPLES_MIN, GR_DIRTY_RATE_SAMPLES_MAX);
	}
	return 0;
}

int vmm_dirty_rate_calc(struct vmm_dirty_rate *rate, json_t *args, struct gr_error *err)
{
	struct vmm_dirty_rate want = *rate;
	struct gr_dirty_rate_params params = {
		.size = sizeof(params),
		.block_bytes_min = BLOCK_BYTES_MIN,
		.track = vmm_machine_track(rate->machine),
		.writers = vmm_machine_writers(rate->machine),
	};
	int rc;

	if (rate->measuring) {
		return gr_error_set(err, -EBUSY, "a dirty rate is being measured already");
	}
	rc = parse(&want, args, err);
	if (rc < 0) {
		return rc;
	}
	params.mode = want.mode;
	params.samples_per_gib = (uint32_t)want.samples;
	rc = gr_dirty_rate_begin(vmm_machine_ram(rate->machine), &params, &want.measuring, err);
	if (rc < 0) {
		return rc;
	}
	want.started = true;
	want.measured = false;
	want.start_time_s = (int64_t)time(NULL);
	*rate = want;
	gr_loop_set_timer(rate->timer, gr_loop_now_ns() + want.calc_time *
							      (want.in_ms ? 1 : 1000) * NS_PER_MS);
	return 0;
}

static json_int_t mib(uint64_t bytes)
{
	return (json_int_t)(bytes >> 20);
}

json_t *vmm_dirty_rate_query(const struct vmm_dirty_rate *rate)
{
	json_t *answer = json_pack(
		"{sssIsIsssIss}", "status",
		!rate->started ? "unstarted" : rate->measuring ? "measuring" : "measured",
		"start-time", (json_int_t)rate->start_time_s, "calc-time",
		(json_int_t)rate->calc_time, "calc-time-unit",
		rate->in_ms ? "millisecond" : "second", "sample-pages", (json_int_t)rate->samples,
		"mode", mode_names[rate->mode]);

	/* A measurement that failed has no result. */
	if (rate->measured) {
		(void)json_object_set_new(answer, "dirty-rate",
					  json_integer(mib(rate->result.bytes_per_s)));
	}
	if (rate->measured && rate->mode == GR_DIRTY_RATE_RING) {
		json_t *vcpus = json_array();

		for (unsigned int i = 0; i < rate->result.vcpus; i++) {
			(void)json_array_append_new(
				vcpus, json_pack("{sIsI}", "id", (json_int_t)i, "dirty-rate",
						 mib(rate->result.vcpu_bytes_per_s[i])));
		}
		(void)json_object_set_new(answer, "vcpu-dirty-rate", vcpus);
	}
	return answer;
}
