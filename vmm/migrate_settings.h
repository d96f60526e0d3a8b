/* SPDX-License-Identifier: MIT */
/*
 * How the monitor's machine is to be moved: QEMU's migration capabilities and parameters, those that
 * there are here, under their names.
 */
#ifndef VMM_MIGRATE_SETTINGS_H
#define VMM_MIGRATE_SETTINGS_H

#include "machine_move.h"
#include <jansson.h>

struct vmm_migrate_settings {
	bool xbzrle, auto_converge, pause_before_switchover, switchover_ack;
	bool multifd, ignore_shared, validate_uuid, background_snapshot;
	enum gr_multifd_compression multifd_compression;
	uint64_t multifd_channels;
	uint64_t max_bandwidth, downtime_limit_ms, xbzrle_cache_bytes;
	uint64_t throttle_trigger, throttle_initial, throttle_increment, throttle_max;
};

/* What "migrate-set-parameters" takes. */
#define VMM_MIGRATE_PARAMETERS                                                                     \
	"max-bandwidth downtime-limit xbzrle-cache-size throttle-trigger-threshold "               \
	"cpu-throttle-initial cpu-throttle-increment max-cpu-throttle multifd-channels "           \
	"multifd-compression"

/* QEMU's defaults, but for the bandwidth: no limit. */
void vmm_migrate_settings_init(struct vmm_migrate_settings *s);

/* The QMP commands' bodies. Nothing is changed if anything is wrong. */
int vmm_migrate_set_parameters(struct vmm_migrate_settings *s, json_t *args, struct gr_error *err);
json_t *vmm_migrate_query_parameters(const struct vmm_migrate_settings *s);
int vmm_migrate_set_capabilities(struct vmm_migrate_settings *s, json_t *args,
				 struct gr_error *err);
json_t *vmm_migrate_query_capabilities(const struct vmm_migrate_settings *s);

/* Fill in what they mean for a move. */
void vmm_migrate_settings_apply(const struct vmm_migrate_settings *s, struct vmm_move_params *params);

#endif
