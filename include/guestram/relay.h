/* SPDX-License-Identifier: MIT */
/**
 * guestram/relay.h - a migration passed on while it runs.
 *
 * Between a source and a destination that cannot reach each other, or where somebody wants to see
 * what goes by: every record is checked on its way, no page is kept, and the device state is not
 * touched. The source's guest runs and writes until the source switches over; what the destination
 * answers on the return path goes back, so each end knows what it would know without us.
 *
 *     gr_channel_listen("unix:from.sock", &listener, &err);      // QEMU: migrate unix:from.sock
 *     gr_relay_serve(listener, "unix:to.sock", NULL, &stats, &err); // QEMU: -incoming unix:to.sock
 *
 * With as many channels as the source has (QEMU's multifd), compressed by whatever the two ends
 * have agreed on: nothing is to be agreed with the relay. Not with TLS, nor with the state of
 * devices on further channels. Where there is one channel only, as between files:
 *
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
 * @errors  Whatever came first: -EBADMSG, -EPIPE, -EOPNOTSUPP the stream is wrong, ends early, or
 * has what cannot be passed on (named, with the byte); -EREMOTEIO the destination says that it has
 * failed; -ENOTSUP the source asks for answers and `to` cannot carry them; what the channels say.
 * @context Any thread. Blocks; gr_channel_shutdown() of both channels ends it.
 */
GR_EXPORT GR_MUST_CHECK int gr_relay(struct gr_channel *from, struct gr_channel *to,
				     const struct gr_relay_params *params,
				     struct gr_migrate_stats *ret_stats, struct gr_error *err);

/**
 * Accept a source, connect to the destination, and pass the migration on, on all its channels.
 *
 * Channels may come in any order and at any time. Their first byte tells the main one from further
 * ones; the destination is connected to when the main channel has come, that one first, and for a
 * further one when its greeting has been read. On further channels the headers of the packets are
 * checked, what they name is for the destination to check. Each channel has a thread and 256 KiB:
 * who writes faster than the other side reads waits.
 *
 * Who connects and is no channel of the source's (says nothing for a minute, something else, has
 * the number or not the UUID of one that is there, or is another source) is turned away with a
 * remark (log.h), and the migration goes on; so is, once the main channel has come, whom
 * descriptors or memory are short for. Further channels whose source has gone before a main channel
 * came are forgotten. What goes wrong on a further channel ends all of them; the message names the
 * channel, the side or the byte. A destination may be slow for as long as it likes.
 *
 * @param listener  Of tcp: or unix:; borrowed. It serves one migration, and is shut down then.
 * @param to_uri    The destination; further channels need tcp: or unix:.
 * @param params    May be NULL.
 * @param ret_stats Set on success; may be NULL. Its bytes and pages are those of all channels.
 * @param err       May be NULL.
 * @return As gr_relay(). All channels are closed.
 * @errors As gr_relay(), gr_channel_accept() and gr_channel_connect(); -EINVAL a listener of
 * another kind, not a URI; -ETIMEDOUT a further channel has come, and within a minute no main one;
 * or the source does not close it at the end; -EOPNOTSUPP also TLS; -E2BIG more further channels
 * than a QEMU can have.
 * @context Any thread. Blocks; gr_channel_listener_shutdown() ends it with -ECANCELED.
 */
GR_EXPORT GR_MUST_CHECK int gr_relay_serve(struct gr_channel_listener *listener, const char *to_uri,
					   const struct gr_relay_params *params,
					   struct gr_migrate_stats *ret_stats,
					   struct gr_error *err);

GR_END_DECLS

#endif
