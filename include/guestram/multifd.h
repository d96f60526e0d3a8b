/* SPDX-License-Identifier: MIT */
/**
 * guestram/multifd.h - pages on several channels at once: QEMU's capability multifd.
 *
 * Beside the main channel, which carries the stream itself, pages travel in packets on further
 * channels, each with a thread of its own. Both ends must agree on how many there are and
 * on the compression; nothing in the stream says it.
 *
 *     gr_multifd_connect("unix:/run/vm.sock", 2, &main, further, &err);      at the source
 *     gr_multifd_accept(listener, 2, &main, further, &err);                  at the destination
 *
 *     struct gr_multifd multifd = { .channels = further, .count = 2 };
 *     params.multifd = &multifd;       gr_source_params, gr_destination_params, gr_image_params
 *
 * Threads: a source or destination with multifd starts one for each further channel, and
 * has ended all of them when it has completed, failed or was cancelled. Channels are
 * borrowed; close them after the source or destination was freed.
 *
 * Caveats: sockets only. A failure on any channel ends the move; the message names it.
 */
#ifndef GUESTRAM_MULTIFD_H
#define GUESTRAM_MULTIFD_H

#include <guestram/channel.h>
#include <guestram/error.h>
#include <guestram/types.h>

GR_BEGIN_DECLS

/** As many as QEMU can have; its default is 2. */
enum { GR_MULTIFD_CHANNELS_MAX = 255, GR_MULTIFD_UUID_BYTES = 16 };

/** What is done to pages on the further channels; QEMU's multifd-compression. */
enum gr_multifd_compression {
	GR_MULTIFD_NONE,
	GR_MULTIFD_ZLIB,
	GR_MULTIFD_ZSTD,
};

/** What QEMU's machine type decides; see docs/wire-format.md. */
enum gr_multifd_dialect {
	GR_MULTIFD_BY_MACHINE, /**< as a machine of that name does: pc-i440fx-7.2 speaks 7.2 */
	GR_MULTIFD_7_2,	       /**< machines up to 8.0: in step after each section */
	GR_MULTIFD_8_1,	       /**< 8.1 and 8.2: in step after each round */
	GR_MULTIFD_9_0,	       /**< from 9.0 on: zero pages go over the further channels too */
};

/** Further channels of a move. Zero what you do not set. */
struct gr_multifd {
	struct gr_channel *const *channels; /**< open, to the same peer as the main one; borrowed */
	unsigned int count;		    /**< how many, 1..GR_MULTIFD_CHANNELS_MAX */
	enum gr_multifd_compression compression;
	enum gr_multifd_dialect dialect; /**< sending only: a receiver finds out */
	int level;			 /**< of the compression, 0: 1, the fastest */
	/** The machine's UUID, GR_MULTIFD_UUID_BYTES. A sender without: zeros; a receiver: any. */
	const uint8_t *uuid;
};

/**
 * Connect all channels of a move: the main one first, as a QEMU 7.2 expects it.
 * @param uri          tcp: or unix:.
 * @param count        Further channels, 1..GR_MULTIFD_CHANNELS_MAX.
 * @param ret_main     The main channel.
 * @param ret_channels Room for count; all set on success, none otherwise.
 * @param err          May be NULL.
 * @return 0 or a negative errno.
 * @errors -EINVAL the count, or a URI of another kind, which is not opened; as gr_channel_connect().
 * @context Any thread. Sleeps as gr_channel_connect().
 */
GR_EXPORT GR_MUST_CHECK int gr_multifd_connect(const char *uri, unsigned int count,
					       struct gr_channel **ret_main,
					       struct gr_channel **ret_channels,
					       struct gr_error *err);

/**
 * Accept all channels of a move, in whatever order they come: their first byte, which is looked
 * at and not taken, tells the main one from the others. Who connects and closes again without
 * a word is passed over, and gives the others no time.
 * @param listener     Of tcp: or unix:.
 * @param count        Further channels, 1..GR_MULTIFD_CHANNELS_MAX.
 * @param ret_main     The main channel.
 * @param ret_channels Room for count; all set on success, none otherwise.
 * @param err          May be NULL.
 * @return 0 or a negative errno.
 * @errors -EINVAL the count, or a listener that gives one channel only; -ETIMEDOUT after one
 *         had come the others did not, or said nothing, for a minute; -EBADMSG what came
 *         is no channel of a move; as gr_channel_accept().
 * @context One thread. Sleeps; gr_channel_listener_shutdown() ends it.
 */
GR_EXPORT GR_MUST_CHECK int gr_multifd_accept(struct gr_channel_listener *listener,
					      unsigned int count, struct gr_channel **ret_main,
					      struct gr_channel **ret_channels,
					      struct gr_error *err);

/**
 * Whether this build has a compression.
 * @param compression Which.
 * @param err         May be NULL. What is missing and how to get it.
 * @return 0 or -ENOTSUP.
 * @context Any.
 */
GR_EXPORT int gr_multifd_supports(enum gr_multifd_compression compression, struct gr_error *err);

/**
 * @param compression Which.
 * @return "none", "zlib" or "zstd", as QEMU calls them.
 * @context Any.
 */
GR_EXPORT const char *gr_multifd_compression_name(enum gr_multifd_compression compression);

GR_END_DECLS
#endif
