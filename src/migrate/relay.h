/* SPDX-License-Identifier: MIT */
/* What tests set about a relay. */
#ifndef GR_MIGRATE_RELAY_H
#define GR_MIGRATE_RELAY_H

#include <guestram/relay.h>

/**
 * As gr_relay_serve(), with a time limit of one's own.
 * @param listener  As there.
 * @param to_uri    As there.
 * @param limit_ns  For a first byte, for the main channel once another one has come, and for the
 * end of the others once that has ended.
 * @param params    As there.
 * @param ret_stats As there.
 * @param err       May be NULL.
 * @return As gr_relay_serve().
 */
GR_MUST_CHECK int gr_relay_serve_within(struct gr_channel_listener *listener, const char *to_uri,
					uint64_t limit_ns, const struct gr_relay_params *params,
					struct gr_migrate_stats *ret_stats, struct gr_error *err);

#endif
