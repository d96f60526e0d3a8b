/* SPDX-License-Identifier: MIT */
/**
 * guestram/relay.h - a migration passed on while it runs.
 *
 * Between a source and a destination that cannot reach each other, or where somebody wants to see
 * what goes by: every record is checked on its way, no page is kept, and the device state is not
 * touched. The source's guest runs and writes until the source switches over; what the destination
 * answers on the return path goes back, so each end knows what it would know without us.
 *
 *     gr_channel_accept(listener, &from, &err);            // QEMU: migrate unix:from.sock
 *     gr_channel_connect("unix:to.sock", &to, &err);       // QEMU: -incoming unix:to.sock
 *     gr_relay(from, to, NULL, &stats, &err);
 */
#ifndef GUESTRAM_RELAY_H
#define GUESTRAM_RELAY_H

#include <guestram/channel.h>
#include <guestram/error.h>
#include <guestram/migrate.h>
#include <guestram/types.h>

GR_BEGIN_DECLS

/** How to pass on. Zero what you do not set. */
struct gr_relay_params {
	size_t size;		 /**< sizeof(struct gr_relay_params) */
	bool allow_unterminated; /**< a stream without the closing description is whole too */
	/** Called now and then, on the thread of gr_relay(); may be NULL. */
	void (*progress)(void *opaque, const struct gr_migrate_stats *stats);
	void *opaque;
};

/**
 * Pass a migration on, to its end.
 *
 * Two guestrams speak QEMU's dialect through a relay: blocks cannot come and go meanwhile.
 * If it fails, both channels are broken: the destination does not start, and the source goes on.
 * Not so once the devices' state is on its way: what has been written cannot be taken back, and the
 * destination may have all it needs. Then look at the destination before anything is started.
 * A source that does not ask for answers (QEMU's default) believes that the destination has what
 * it has written, as it does without us.
 *
 * @param from      An open incoming channel; borrowed.
 * @param to        An open outgoing channel; borrowed. The caller closes both, whatever is
 * returned.
 * @param params    May be NULL.
 * @param ret_stats Set on success; may be NULL.
 * @param err       May be NULL.
 * @return 0 when all has been written, and, if the source asked for answers, the destination has
 *         said that it has everything; or a negative errno.
 * @errors  -EBADMSG, -EPIPE, -EOPNOTSUPP the stream is wrong, ends early, or has what cannot be
 *          passed on (named, with the byte); -EREMOTEIO the destination says that it has failed;
 *          -ENOTSUP the source asks for answers and `to` cannot carry them; what the channels say.
 * @context Any thread. Blocks; gr_channel_shutdown() of both channels ends it.
 */
GR_EXPORT GR_MUST_CHECK int gr_relay(struct gr_channel *from, struct gr_channel *to,
				     const struct gr_relay_params *params,
				     struct gr_migrate_stats *ret_stats, struct gr_error *err);

GR_END_DECLS

#endif
