/* SPDX-License-Identifier: MIT */
#include "migrate_settings.h"
#include "qmp.h"
#include <errno.h>
#include <stddef.h>
#include <string.h>

static const struct {
	const char *name;
	size_t at; /* of a bool in the settings */
} capabilities[] = {
	{ "auto-converge", offsetof(struct vmm_migrate_settings, auto_converge) },
	{ "background-snapshot", offsetof(struct vmm_migrate_settings, background_snapshot) },
	{ "multifd", offsetof(struct vmm_migrate_settings, multifd) },
	{ "pause-before-switchover", offsetof(struct vmm_migrate_settings, pause_before_switchover) },
	{ "switchover-ack", offsetof(struct vmm_migrate_settings, switchover_ack) },
	{ "validate-uuid", offsetof(struct vmm_migrate_settings, validate_uuid) },
	{ "x-ignore-shared", offsetof(struct vmm_migrate_settings, ignore_shared) },
	{ "xbzrle", offsetof(struct vmm_migrate_settings, xbzrle) },
};

static const struct {
	const char *name;
	size_t at; /* of a uint64_t */
	uint64_t min, max;
	const char *range; /* in words */
} parameters[] = {
	{ "max-bandwidth", offsetof(struct vmm_migrate_settings, max_bandwidth), 0, INT64_MAX,
	  "any number of bytes a second" },
	{ "downtime-limit", offsetof(struct vmm_migrate_settings, downtime_limit_ms), 0, 2000000,
	  "an integer in the range of 0 to 2000 seconds" },
	{ "xbzrle-cache-size", offsetof(struct vmm_migrate_settings, xbzrle_cache_bytes), 4096,
	  INT64_MAX, "at least a page" },
	{ "multifd-channels", offsetof(struct vmm_migrate_settings, multifd_channels), 1,
	  GR_MULTIFD_CHANNELS_MAX, "a value between 1 and 255" },
	{ "throttle-trigger-threshold", offsetof(struct vmm_migrate_settings, throttle_trigger), 1,
	  100, "an integer in the range of 1 to 100" },
	{ "cpu-throttle-initial", offsetof(struct vmm_migrate_settings, throttle_initial), 1, 99,
	  "an integer in the range of 1 to 99" },
	{ "cpu-throttle-increment", offsetof(struct vmm_migrate_settings, throttle_increment), 1, 99,
	  "an integer in the range of 1 to 99" },
	{ "max-cpu-throttle", offsetof(struct vmm_migrate_settings, throttle_max), 1, 99,
	  "an integer in the range of 1 to 99" },
};

enum {
	CAPABILITIES = sizeof(capabilities) / sizeof(capabilities[0]),
	PARAMETERS = sizeof(parameters) / sizeof(parameters[0]),
};

static uint64_t *parameter(struct vmm_migrate_settings *s, size_t i)
{
	return (uint64_t *)(void *)((char *)s + parameters[i].at);
}

static bool *capability(struct vmm_migrate_settings *s, size_t i)
{
	return (bool *)((char *)s + capabilities[i].at);
}

void vmm_migrate_settings_init(struct vmm_migrate_settings *s)
{
	*s = (struct vmm_migrate_settings){
		.downtime_limit_ms = 300,
		.xbzrle_cache_bytes = 64 << 20,
		.throttle_trigger = 50,
		.throttle_initial = 20,
		.throttle_increment = 10,
		.throttle_max = 99,
		.multifd_channels = 2,
	};
}

static int set_compression(struct vmm_migrate_settings *s, json_t *args, struct gr_error *err)
{
	static const enum gr_multifd_compression all[] = { GR_MULTIFD_NONE, GR_MULTIFD_ZLIB,
							   GR_MULTIFD_ZSTD };
	const char *name = NULL;
	int rc = vmm_qmp_get_string(args, "multifd-compression", &name, err);

	if (rc < 0 || !name) {
		return rc;
	}
	for (size_t i = 0; i < sizeof(all) / sizeof(all[0]); i++) {
		if (strcmp(name, gr_multifd_compression_name(all[i])) == 0) {
			s->multifd_compression = all[i];
			return gr_multifd_supports(all[i], err);
		}
	}
	return gr_error_set(err, -EINVAL,
			    "Parameter 'multifd-compression' does not accept value '%s'", name);
}

int vmm_migrate_set_parameters(struct vmm_migrate_settings *s, json_t *args, struct gr_error *err)
{
	struct vmm_migrate_settings n = *s;
	int said = set_compression(&n, args, err);

	if (said < 0) {
		return said;
	}
	for (size_t i = 0; i < PARAMETERS; i++) {
		uint64_t *value = parameter(&n, i);
		int rc = vmm_qmp_get_u64(args, parameters[i].name, value, err);

		if (rc < 0) {
			return rc;
		}
		if (*value < parameters[i].min || *value > parameters[i].max) {
			return gr_error_set(err, -EINVAL, "Parameter '%s' expects %s",
					    parameters[i].name, parameters[i].range);
		}
	}
	*s = n;
	return 0;
}

json_t *vmm_migrate_query_parameters(const struct vmm_migrate_settings *s)
{
	struct vmm_migrate_settings copy = *s;
	json_t *answer = json_object();

	for (size_t i = 0; i < PARAMETERS; i++) {
		(void)json_object_set_new(answer, parameters[i].name,
					  json_integer((json_int_t)*parameter(&copy, i)));
	}
	(void)json_object_set_new(answer, "multifd-compression",
				  json_string(gr_multifd_compression_name(s->multifd_compression)));
	return answer;
}

static int set_capability(struct vmm_migrate_settings *s, json_t *one, struct gr_error *err)
{
	const char *name = json_string_value(json_object_get(one, "capability"));
	json_t *state = json_object_get(one, "state");

	if (!name || !json_is_boolean(state)) {
		return gr_error_set(err, -EINVAL,
				    "'capabilities' is a list of {capability: string, state: boolean}");
	}
	for (size_t i = 0; i < CAPABILITIES; i++) {
		if (strcmp(name, capabilities[i].name) == 0) {
			*capability(s, i) = json_is_true(state);
			return 0;
		}
	}
	/* What we do without being asked. */
	if (strcmp(name, "return-path") == 0 && json_is_true(state)) {
		return 0;
	}
	return gr_error_set(err, -EINVAL, "Parameter 'capability' does not accept value '%s'", name);
}

int vmm_migrate_set_capabilities(struct vmm_migrate_settings *s, json_t *args, struct gr_error *err)
{
	struct vmm_migrate_settings n = *s;
	json_t *list = json_object_get(args, "capabilities"), *one;
	size_t i;

	if (!json_is_array(list)) {
		return gr_error_set(err, -EINVAL, "Parameter 'capabilities' is missing or no list");
	}
	json_array_foreach(list, i, one)
	{
		int rc = set_capability(&n, one, err);

		if (rc < 0) {
			return rc;
		}
	}
	/* As QEMU: it is no migration, the machine stays. */
	for (i = 0; n.background_snapshot && i < CAPABILITIES; i++) {
		if (*capability(&n, i) && strcmp(capabilities[i].name, "background-snapshot") != 0) {
			return gr_error_set(err, -EINVAL,
					    "Background-snapshot is not compatible with %s",
					    capabilities[i].name);
		}
	}
	*s = n;
	return 0;
}

json_t *vmm_migrate_query_capabilities(const struct vmm_migrate_settings *s)
{
	struct vmm_migrate_settings copy = *s;
	json_t *answer = json_array();

	for (size_t i = 0; i < CAPABILITIES; i++) {
		(void)json_array_append_new(answer, json_pack("{sssb}", "capability",
							      capabilities[i].name, "state",
							      *capability(&copy, i)));
	}
	return answer;
}

void vmm_migrate_settings_apply(const struct vmm_migrate_settings *s, struct vmm_move_params *params)
{
	params->bandwidth_bytes_per_s_max = s->max_bandwidth;
	/* 0 would be the default. */
	params->downtime_ns_max = s->downtime_limit_ms != 0 ? s->downtime_limit_ms * 1000000u : 1;
	params->xbzrle_cache_bytes = s->xbzrle ? s->xbzrle_cache_bytes : 0;
	params->auto_converge = s->auto_converge;
	params->throttle_trigger_percent = (unsigned int)s->throttle_trigger;
	params->throttle_initial_percent = (unsigned int)s->throttle_initial;
	params->throttle_increment_percent = (unsigned int)s->throttle_increment;
	params->throttle_max_percent = (unsigned int)s->throttle_max;
	params->pause_before_switchover = s->pause_before_switchover;
	params->switchover_ack = s->switchover_ack;
	params->ignore_shared = s->ignore_shared;
	params->validate_uuid = s->validate_uuid;
	params->multifd_channels = s->multifd ? (unsigned int)s->multifd_channels : 0;
	params->multifd_compression = s->multifd ? s->multifd_compression : GR_MULTIFD_NONE;
}
